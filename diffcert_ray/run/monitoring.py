"""What a run tells a monitoring system: the metrics by name, and how progress becomes them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from diffcert_ray.run.loop import Progress

# Each only grows while a driver lives; a monitoring system takes the rate.
COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "diffcert_votes": "Votes settled (draws, where the plain classifier is certified)",
        "diffcert_nfe": "Evaluations of the denoiser network",
        "diffcert_items": "Items evaluated",
        "diffcert_item_seconds": "Compute time of the items on their workers, seconds",
        "diffcert_items_requeued": "Items put back because their worker was lost or failed",
        "diffcert_bytes_written": "Bytes of the parts written to the store",
    }
)
GAUGES: Mapping[str, str] = MappingProxyType(
    {
        "diffcert_images_done": "Certificates ready (images times sigmas)",
        "diffcert_images": "Certificates asked for (images times sigmas)",
        "diffcert_actors_live": "Actors that take items",
        "diffcert_actors_pending": "Actors asked for that have not started",
        "diffcert_nodes_draining": "Nodes that are about to go and get nothing more",
    }
)


class Recorder(Protocol):
    """Where numbers go, such as `pool.on_ray.recorder.RayRecorder`: under names of this module."""

    def add(self, name: str, amount: float) -> None:
        """Let a counter grow by ``amount`` > 0."""
        ...

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        ...


class Monitor:
    """Records what has changed from one progress of a driver to the next, about once a second."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._counted = dict.fromkeys(COUNTERS, 0.0)

    def __call__(self, progress: Progress) -> None:
        """Record where the run stands."""
        for name, total in _totals(progress).items():
            if total > self._counted[name]:
                self._recorder.add(name, total - self._counted[name])
                self._counted[name] = total
        for name, value in _levels(progress).items():
            self._recorder.set(name, value)


def _totals(progress: Progress) -> dict[str, float]:
    return {
        "diffcert_votes": progress.votes,
        "diffcert_nfe": progress.nfe,
        "diffcert_items": progress.items,
        "diffcert_item_seconds": progress.item_seconds,
        "diffcert_items_requeued": progress.pool.requeued,
        "diffcert_bytes_written": progress.bytes_written,
    }


def _levels(progress: Progress) -> dict[str, float]:
    return {
        "diffcert_images_done": progress.images_done,
        "diffcert_images": progress.images_total,
        "diffcert_actors_live": progress.pool.live,
        "diffcert_actors_pending": progress.pool.pending,
        "diffcert_nodes_draining": progress.pool.draining,
    }
