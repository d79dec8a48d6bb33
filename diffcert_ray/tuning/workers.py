"""Workers that stay for the runs of all settings: networks are loaded once, rules change."""

from dataclasses import dataclass, replace
from typing import Any

from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.engine.networks import DiffusionNetworks
from diffcert_ray.engine.votes import evaluate_item
from diffcert_ray.engine.worker import Worker, WorkerSpec
from diffcert_ray.method.diffusion_base import DiffusionBase
from diffcert_ray.pool.local import Pool, PoolState
from diffcert_ray.pool.usual import usual_pool
from diffcert_ray.votes.units import Item, Result


@dataclass(frozen=True)
class LentItem:
    """An item, and the rule that its votes are cast by."""

    item_id: int
    item: Item
    sift: SiftConfig


@dataclass(frozen=True)
class TuningSpec:
    """What a worker of all settings loads: ``inner`` is of one that needs all there is to load."""

    inner: WorkerSpec

    @property
    def device(self) -> str:
        """What the actors ask for."""
        return self.inner.device

    def load(self, name: str) -> "TuningWorker":
        """As `WorkerSpec.load`."""
        return TuningWorker(self.inner.load(name))


class TuningWorker:
    """Evaluates items of every setting.

    Args:
        worker: of a setting that needs all there is to load.
    """

    def __init__(self, worker: Worker) -> None:
        assert isinstance(worker.networks, DiffusionNetworks)
        self._networks, self._worker, self.name = worker.networks, worker, worker.name
        self.numerics, self.compiled = worker.numerics, worker.compiled
        self._bases: dict[tuple[str, float], DiffusionBase] = {}

    def evaluate(self, lent: LentItem) -> Result:
        """Evaluate one item by its rule."""
        key = lent.sift.model_dump_json(), lent.item.sigma
        if key not in self._bases:
            self._bases[key] = self._networks.base(lent.item.sigma, lent.sift)
        result = evaluate_item(self._bases[key], lent.item, self._worker.dataset.image)
        return replace(
            result,
            worker=self.name,
            numerics=self.numerics,
            computed_on=self._worker.computed_on,
        )


class SharedWorkers:
    """Makes the pools of runs (`run.certify.MakePool`), all of the same workers.

    Args:
        sift: of a setting that needs all there is to load.
        weights: sha256 by role of what it needs beside the votes in full, as the head's.
        local: in this process, without Ray.
        address: of a Ray cluster.
    """

    def __init__(
        self, sift: SiftConfig, weights: dict[str, str], *, local: bool, address: str | None
    ) -> None:
        self._sift, self._weights = sift, weights
        self._local, self._address = local, address
        self._pool: Pool | None = None
        self._lent = 0

    def __call__(self, spec: WorkerSpec, config: Config) -> Pool:
        """The workers, for one run; they are made for the first one."""
        if self._pool is None:
            whole = config.model_copy(update={"sift": self._sift})
            inner = replace(spec, config=whole, weights={**spec.weights, **self._weights})
            self._pool = usual_pool(
                TuningSpec(inner), config, local=self._local, address=self._address
            )
        return _LentPool(self._pool, config.sift, self)

    def number(self) -> int:
        """A new number for an item: two runs may have the same ones."""
        self._lent += 1
        return self._lent

    def close(self) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


class _LentPool:
    """The workers as one run sees them; closing it leaves them."""

    def __init__(self, pool: Pool, sift: SiftConfig, owner: SharedWorkers) -> None:
        self._pool, self._sift, self._owner = pool, sift, owner
        self._requeued_before = pool.state().requeued

    def room(self) -> int:
        return self._pool.room()

    def submit(self, item: Any) -> None:
        self._pool.submit(LentItem(self._owner.number(), item, self._sift))

    def collect(self, timeout_s: float) -> list[Any]:
        return self._pool.collect(timeout_s)

    def given_up(self) -> list[Any]:
        return [lent.item for lent in self._pool.given_up()]

    def state(self) -> PoolState:
        state = self._pool.state()
        return replace(state, requeued=state.requeued - self._requeued_before)

    def close(self) -> None:
        """The workers stay for the next run."""
