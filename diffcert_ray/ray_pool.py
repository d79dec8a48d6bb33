"""Workers as Ray actors on any number of nodes that come and go: start, feed, drain, replace, grow.

Ray restarts and retries nothing here: an actor that is lost is replaced, and what it had is put back,
by this driver. (With Ray's own retries an item can hang on a dead actor of a preempted node.)
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from diffcert_ray.dispatch import Deadline, Dispatch, Starts, spoils_worker
from diffcert_ray.pool import PoolError, PoolState
from diffcert_ray.work import Item, Result

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20  # only arguments and results above 100 kB go through it
TICK_S = 0.5  # deadlines and starts are looked at this often
LOOK_AT_CLUSTER_S = 2.0
STILL = "diffcert_ray.ray_pool"


class LoadedWorker(Protocol):
    """What a spec loads; see ``diffcert_ray.worker.Worker``."""

    numerics: str

    def evaluate(self, item: Item) -> Result:
        """Evaluate one item."""
        ...


class Loads(Protocol):
    """What the pool sends to its actors; see ``diffcert_ray.worker.WorkerSpec``."""

    def load(self, name: str) -> LoadedWorker:
        """Load networks and images in the process of the caller."""
        ...


class _RemoteWorker:
    """The process of one worker. Its constructor does nothing: waiting and constructing look alike."""

    def __init__(self) -> None:
        self._worker: LoadedWorker | None = None

    def place(self) -> tuple[str, str]:
        """Node id and address: this call returns when the actor has a place."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def load(self, spec: Loads, name: str) -> str:
        """Load; returns the numerics kind."""
        self._worker = spec.load(name)
        return self._worker.numerics

    def evaluate(self, item: Item) -> Result:
        """Evaluate one item."""
        if self._worker is None:
            raise RuntimeError("evaluate was called before load")
        return self._worker.evaluate(item)


@dataclass
class _Actor:
    """What the driver knows of an actor: phase is "placing", "loading" or "live"."""

    name: str
    handle: Any
    phase: str = "placing"
    node: str = ""
    address: str = ""
    since: float = 0.0
    draining: bool = False
    refs: set[Any] = field(default_factory=set)


class RayPool:
    """A pool whose workers are Ray actors, one for each GPU or CPU core unless told otherwise.

    Args:
        spec: what each worker loads.
        actors: how many; None is one for each GPU (``spec.device == "cuda"``) or CPU core of the
            cluster, and more when nodes join.
        address: "auto" or host:port of a cluster; None starts Ray on this machine, for this pool
            only, unless this process is connected already.
        gpus_per_actor: GPUs of each actor, > 0; fractions share one.
        start_timeout_s: how long loading may take once an actor has a place, seconds.
        stall_timeout_s: how long to wait with no worker at all, seconds.
        deadline: how long one call may take.
        clock: seconds, monotonic.

    Raises:
        PoolError: the cluster cannot be joined.
    """

    def __init__(
        self,
        spec: Loads,
        *,
        actors: int | None = None,
        address: str | None = None,
        gpus_per_actor: float = 1.0,
        start_timeout_s: float = 600.0,
        stall_timeout_s: float = 1800.0,
        deadline: Deadline | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        cuda = getattr(spec, "device", "cpu") == "cuda"
        self._resources = {"CPU": 1.0} | ({"GPU": gpus_per_actor} if cuda else {})
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._dispatch = Dispatch(deadline=deadline)
        self._starts = Starts()
        self._actors: dict[str, _Actor] = {}
        self._calls: dict[Any, tuple[_Actor, int | None]] = {}
        self._given_up: list[Item] = []
        self._nodes: dict[str, dict[str, Any]] = {}
        self._draining: frozenset[str] = frozenset()
        self._looked_at = -float("inf")
        self._named = 0
        self._asked = actors
        self._owns_ray = _connect(address, actors)
        self._target = actors or 1
        self._spec = ray.put(spec)
        self._progress_at = clock()
        self._look_at_cluster()
        self._start_actors()

    # ---- what a run calls --------------------------------------------------------------------------

    def room(self) -> int:
        """How many more items it wants now."""
        return self._dispatch.room()

    def submit(self, item: Item) -> None:
        """Take an item."""
        self._dispatch.submit(item)
        self._feed()

    def collect(self, timeout_s: float) -> list[Result]:
        """Results that are there, after waiting at most ``timeout_s`` for the first.

        Raises:
            PoolError: workers do not start, or there has been none for ``stall_timeout_s``.
        """
        until = time.monotonic() + timeout_s
        while True:
            self._tend()
            left = until - time.monotonic()
            results = self._take_ready(max(0.0, min(left, TICK_S)))
            self._feed()
            if results or self._given_up or left <= TICK_S or not self._dispatch.outstanding:
                return results

    def given_up(self) -> list[Item]:
        """Items quarantined since the last call."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def state(self) -> PoolState:
        """What the pool is doing."""
        live = self._dispatch.live
        pending = sum(a.phase != "live" for a in self._actors.values())
        note = "" if live >= self._target else self._missing()
        return PoolState(live, pending, self._dispatch.requeued, note)

    def close(self) -> None:
        """Stop the actors, and Ray if this pool started or joined it."""
        for actor in list(self._actors.values()):
            self._remove(actor)
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()

    # ---- actors come and go ------------------------------------------------------------------------

    def _start_actors(self) -> None:
        wanted = self._target - sum(not a.draining for a in self._actors.values())
        for _ in range(wanted):
            self._named += 1
            name = f"actor-{self._named}"
            options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
            if "GPU" in self._resources:
                options["num_gpus"] = self._resources["GPU"]
            if self._starts.left_out:
                nodes = ",".join(sorted(self._starts.left_out))
                options["label_selector"] = {"ray.io/node-id": f"!in({nodes})"}
            actor = _Actor(name, ray.remote(**options)(_RemoteWorker).remote())
            self._actors[name] = actor
            self._call(actor, actor.handle.place.remote())

    def _call(self, actor: _Actor, ref: Any, item_id: int | None = None) -> None:
        actor.refs.add(ref)
        self._calls[ref] = (actor, item_id)

    def _remove(self, actor: _Actor) -> None:
        """Forget an actor and end its process, so that no late answer of it can come back."""
        self._actors.pop(actor.name, None)
        for ref in actor.refs:
            self._calls.pop(ref, None)
        ray.kill(actor.handle)

    def _lose(self, actor: _Actor, error: str, *, blame: bool) -> None:
        self._remove(actor)
        lost = self._dispatch.lose_worker(actor.name, error, blame=blame)
        logger.warning(
            "lost actor=%s node=%s address=%s requeued=%d error=%s",
            actor.name, actor.node[:8], actor.address, len(lost), _first_line(error),
        )  # fmt: skip

    def _start_failed(self, actor: _Actor, error: BaseException) -> None:
        self._remove(actor)
        others = sum(
            a.phase != "placing" and a.node not in self._starts.left_out and a.node != actor.node
            or a.phase == "live"
            for a in self._actors.values()
        )
        logger.warning(
            "start failed actor=%s node=%s address=%s error=%s",
            actor.name, actor.node[:8], actor.address, _first_line(str(error)),
        )  # fmt: skip
        reason = self._starts.failed(actor.node, error, others=others)
        if reason is not None:
            where = f" on node {actor.address} ({actor.node[:8]})" if actor.node else ""
            raise PoolError(
                f"no worker can start{where}: {reason}; every node needs the same files and packages "
                "as the driver: put them there, or leave such nodes out of the cluster"
            )

    # ---- every tick --------------------------------------------------------------------------------

    def _tend(self) -> None:
        now = self._clock()
        if now - self._looked_at >= LOOK_AT_CLUSTER_S:
            self._look_at_cluster()
        for name in self._dispatch.overdue(now):
            limit = self._dispatch.limit_s
            self._lose(self._actors[name], f"no answer in {limit:.0f} s", blame=True)
        for actor in list(self._actors.values()):
            if actor.phase == "loading" and now - actor.since > self._start_timeout_s:
                slow = TimeoutError(f"loading took more than {self._start_timeout_s:.0f} s")
                self._start_failed(actor, slow)
            elif actor.draining and self._dispatch.idle(actor.name):
                self._remove(actor)
                self._dispatch.lose_worker(actor.name, "drained", blame=False)
        self._start_actors()
        self._feed()
        loading = any(a.phase == "loading" for a in self._actors.values())
        if self._dispatch.live or loading:
            self._progress_at = now
        elif now - self._progress_at > self._stall_timeout_s:
            raise PoolError(f"no worker for {now - self._progress_at:.0f} s: {self._missing()}")

    def _look_at_cluster(self) -> None:
        self._looked_at = self._clock()
        self._nodes = {n["NodeID"]: n for n in ray.nodes() if n["Alive"]}
        self._draining = _draining_nodes()
        for actor in self._actors.values():
            if actor.phase == "live" and not actor.draining and actor.node in self._draining:
                actor.draining = True
                self._dispatch.stop_feeding(actor.name)
                logger.info("draining actor=%s node=%s", actor.name, actor.node[:8])
        if self._asked is None:
            fitting = sum(self._fitting(n["Resources"]) for n in self._nodes.values())
            self._target = max(self._target, fitting)

    def _fitting(self, resources: dict[str, float]) -> int:
        unit = "GPU" if "GPU" in self._resources else "CPU"
        return int(resources.get(unit, 0.0) / self._resources[unit] + 1e-6)

    def _feed(self) -> None:
        while (pair := self._dispatch.next_call(self._clock())) is not None:
            name, item = pair
            actor = self._actors[name]
            self._call(actor, actor.handle.evaluate.remote(item), item.item_id)

    # ---- answers -----------------------------------------------------------------------------------

    def _take_ready(self, timeout_s: float) -> list[Result]:
        refs = list(self._calls)
        if not refs:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        answers = [(ref, _answer(ref)) for ref in ready]
        results: list[Result] = []
        # Values first: an actor that has died since takes only the calls that it did not finish.
        for ref, answer in sorted(answers, key=lambda a: isinstance(a[1], BaseException)):
            actor, item_id = self._calls.pop(ref, (None, None))
            if actor is None:
                continue
            actor.refs.discard(ref)
            if item_id is None:
                self._started(actor, answer)
            elif isinstance(answer, BaseException):
                self._failed(actor, item_id, answer)
            elif self._dispatch.finish(actor.name, item_id, self._clock()):
                results.append(answer)
        for item, error in self._dispatch.take_given_up():
            logger.error("given up item=%d error=%s", item.item_id, error)
            self._given_up.append(item)
        return results

    def _started(self, actor: _Actor, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._start_failed(actor, answer)
        elif actor.phase == "placing":
            actor.node, actor.address = answer
            actor.phase, actor.since = "loading", self._clock()
            self._call(actor, actor.handle.load.remote(self._spec, actor.name))
        else:
            actor.phase = "live"
            self._starts.succeeded(actor.node)
            self._dispatch.add_worker(actor.name)
            logger.info("live actor=%s address=%s numerics=%s", actor.name, actor.address, answer)

    def _failed(self, actor: _Actor, item_id: int, error: BaseException) -> None:
        if isinstance(error, RayError):
            alive = actor.node in {n["NodeID"] for n in ray.nodes() if n["Alive"]}
            self._lose(actor, str(error), blame=alive and actor.node not in self._draining)
        elif self._dispatch.fail(actor.name, item_id, error, self._clock()):
            self._lose(actor, str(error), blame=False)

    def _missing(self) -> str:
        """One sentence: what is asked, what is there."""
        there = {k: sum(n["Resources"].get(k, 0) for n in self._nodes.values()) for k in self._resources}
        asked = " and ".join(f"{v:g} {k}" for k, v in self._resources.items())
        have = ", ".join(f"{v:g} {k}" for k, v in there.items())
        return f"{self._target} workers are asked for, each with {asked}; {len(self._nodes)} nodes have {have}"


def _connect(address: str | None, actors: int | None) -> bool:
    """Connect to Ray; returns whether the connection is this pool's to end."""
    if address is not None and address.startswith("ray://"):
        raise PoolError(
            f"address {address!r} is Ray's client protocol, which loses the run when the connection "
            "drops: submit a job (ray job submit), or run on the head node with --address auto"
        )
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is not None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            raise PoolError(
                f"cannot join a Ray cluster at {address!r}: {error}; check that it runs (ray status) "
                "and that RAY_AUTH_MODE and the token are the cluster's"
            ) from error
        return True
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=max(os.cpu_count() or 1, actors or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    return True


def _answer(ref: Any) -> Any:
    """What a finished call returned, or the exception that it raised."""
    try:
        return ray.get(ref, timeout=1.0)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        return cause
    except RayError as error:
        return error


def _draining_nodes() -> frozenset[str]:
    """Nodes that are about to go. A private name of Ray: without it they are fed until they are gone."""
    try:
        return frozenset(ray._private.state.state.get_draining_nodes())
    except (AttributeError, TypeError):
        return frozenset()


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0][:300]
