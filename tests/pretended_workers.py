"""Workers of a Ray cluster that find a GPU, which is pretended, and note which one Ray gave them.

Actors cannot import test modules: this one travels with what is sent to them, and says where the
others are.
"""

import dataclasses
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray

from diffcert_ray.engine.worker import Worker, WorkerSpec

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclasses.dataclass(frozen=True)
class Pretending:
    """A spec whose workers have a pretended GPU from their start on; ``book`` is their notes."""

    spec: WorkerSpec
    book: Path
    tests: Path = Path(__file__).parent

    @property
    def device(self) -> str:
        return self.spec.device

    def load(self, name: str) -> "PretendingWorker":
        return PretendingWorker(self, name)


class PretendingWorker:
    """Evaluates as the spec's worker does, and says what the device was given."""

    def __init__(self, pretending: Pretending, name: str) -> None:
        sys.path.insert(0, str(pretending.tests.parent))
        from tests import pretended_gpu

        self._stack = ExitStack()
        self._gpu = self._stack.enter_context(pretended_gpu.pretended_gpu())
        self._book, self._name = pretending.book, name
        self._worker: Worker = pretending.spec.load(name)
        self.numerics, self.compiled = self._worker.numerics, self._worker.compiled

    def evaluate(self, item: Any) -> Any:
        result = self._worker.evaluate(item)
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        with self._book.open("a") as notes:
            node = ray.get_runtime_context().get_node_id()
            notes.write(f"{node} {gpus} {sum(self._gpu.launches.values())} {self._gpu.faults}\n")
        return result
