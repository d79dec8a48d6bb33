"""Starting workers: how many fit, what a failed start means, and what is missing; without Ray.

Resources are mappings from a name ("CPU", "GPU") to an amount; nodes are known by name.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

HOPELESS = 5  # failures in a row, with no worker started in between: it is given up
LEFT_OUT = 3  # failures in a row on one node: it is left out while others work


def asked_of_a_node(device: str, gpus_per_actor: float) -> dict[str, float]:
    """The resources that one worker needs: a CPU core, and on "cuda" its share of a GPU."""
    return {"CPU": 1.0, "GPU": gpus_per_actor} if device == "cuda" else {"CPU": 1.0}


def fitting(there: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many workers have a place on a node with ``there``; each asks for amounts > 0.

    A share of a GPU is one of a single GPU: of eight GPUs, 0.3 each fits 24 times and not 26.
    """
    return min(_times(there.get(n, 0.0), amount, n == "GPU") for n, amount in asked.items())


def _times(there: float, amount: float, in_one: bool) -> int:
    if in_one and amount < 1.0:
        return int(there + 1e-6) * int(1.0 / amount + 1e-6)
    return int(there / amount + 1e-6)


def missing(
    placing: int,
    asked: Mapping[str, float],
    nodes: Iterable[Mapping[str, float]],
    free: Mapping[str, float],
) -> str:
    """One clause that says what workers without a place wait for."""
    nodes = list(nodes)
    each = " and ".join(f"{amount:g} {name}" for name, amount in asked.items())
    there = " and ".join(
        f"{sum(n.get(name, 0.0) for n in nodes):g} {name} ({free.get(name, 0.0):g} free)"
        for name in asked
    )
    waiting = "1 worker waits" if placing == 1 else f"{placing} workers wait"
    where = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"{waiting} for a place: each asks for {each}; the cluster has {there} on {where}"


class Starts:
    """What failed starts of workers mean: try again, leave out a node, or stop."""

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self._in_a_row = 0
        self._on_node: Counter[str] = Counter()

    def succeeded(self, node: str) -> None:
        """A worker started."""
        self._in_a_row = 0
        self._on_node[node] = 0

    def failed(self, node: str, error: BaseException, *, others: int) -> str | None:
        """A worker did not start.

        Args:
            node: where; "" if it was nowhere yet.
            error: why. A ValueError or a missing file is a fault of the configuration or of what is
                on the node: trying again there cannot help.
            others: workers that take items, or may yet start on other nodes.

        Returns:
            Why the pool must give up, or None. A node that is left out from now on is in
            ``left_out`` with the reason.
        """
        self._in_a_row += 1
        self._on_node[node] += 1
        text = str(error) or type(error).__name__
        hopeless = isinstance(error, (ValueError, FileNotFoundError))
        if not others and (hopeless or self._in_a_row >= HOPELESS):
            tried = "" if hopeless else f"{self._in_a_row} workers in a row did not start: "
            return tried + text
        if node and others and (hopeless or self._on_node[node] >= LEFT_OUT):
            self.left_out[node] = text
        return None
