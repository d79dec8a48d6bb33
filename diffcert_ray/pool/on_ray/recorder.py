"""Numbers of a run that Ray's agent exports to a monitoring system."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class RayRecorder:
    """Numbers exported by Ray's agent on the driver's node, as ``ray_NAME`` (counters: ``_total``).

    Args:
        run: the run's name, the only tag; Ray adds node, session and process.
        counters: descriptions by name.
        gauges: descriptions by name.
    """

    def __init__(self, run: str, counters: Mapping[str, str], gauges: Mapping[str, str]) -> None:
        tag, keys = {"run": run}, ("run",)
        self._counters = {n: Counter(n, d, keys) for n, d in counters.items()}
        self._gauges = {n: Gauge(n, d, keys) for n, d in gauges.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags(tag)

    def add(self, name: str, amount: float) -> None:
        """Let a counter grow by ``amount`` > 0."""
        self._counters[name].inc(amount)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name].set(value)
