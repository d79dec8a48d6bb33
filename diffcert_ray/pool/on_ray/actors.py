"""Workers as Ray actors on any number of nodes that come and go: start, feed, drain, replace, grow.

Ray restarts and retries nothing here: this driver replaces a lost actor and puts back what it had.
(With Ray's own retries, calls were seen to hang on dead actors of preempted nodes.)
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from diffcert_ray.errors import PoolError
from diffcert_ray.pool.dispatch import Deadline, Dispatch
from diffcert_ray.pool.local import Loads, PoolState
from diffcert_ray.pool.on_ray.cluster import alive_nodes, brief, connect, draining_nodes
from diffcert_ray.pool.on_ray.remote_worker import Actor, RemoteWorker
from diffcert_ray.pool.starts import Starts, asked_of_a_node, fitting, missing
from diffcert_ray.votes.units import Item, Result

logger = logging.getLogger(__name__)

TICK_S = 0.5  # how often deadlines and starts are looked at
LOOK_AT_CLUSTER_S = 2.0


class RayPool:
    """A pool whose workers are Ray actors, one for each GPU or CPU core unless told otherwise.

    Args:
        actors: how many; None is one for each GPU (``spec.device == "cuda"``) or CPU core of the
            cluster, and more when nodes join.
        most_actors: with ``actors`` None, so many are asked for, also where no node has room for
            them yet: an autoscaler adds nodes for those. None: no more than there is room for.
        address: "auto" or host:port of a cluster; None starts Ray on this machine for this pool,
            unless this process is connected to Ray already.
        gpus_per_actor: GPUs of each actor, > 0; with fractions, actors share one.
        start_timeout_s: how long loading may take once an actor has a place, seconds.
        stall_timeout_s: how long to wait while there is no worker at all, seconds.
        copies: when nothing is left to hand out, give idle workers the last open items a second
            time, so that a slow worker does not hold up the end.

    Raises:
        PoolError: the cluster cannot be joined.
    """

    def __init__(
        self,
        spec: Loads,
        *,
        actors: int | None = None,
        most_actors: int | None = None,
        address: str | None = None,
        gpus_per_actor: float = 1.0,
        start_timeout_s: float = 600.0,
        stall_timeout_s: float = 1800.0,
        copies: bool = False,
        deadline: Deadline | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources = asked_of_a_node(spec.device, gpus_per_actor)
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._dispatch = Dispatch(deadline=deadline)
        self._copies, self._hungry = copies, False
        self._starts = Starts()
        self._actors: dict[str, Actor] = {}
        self._calls: dict[Any, tuple[Actor, int | None]] = {}
        self._given_up: list[Item] = []
        self._fatal: PoolError | None = None
        self._nodes: dict[str, dict[str, Any]] = {}
        self._free: dict[str, float] = {}
        self._draining: frozenset[str] = frozenset()
        self._asked, self._most = actors, most_actors
        self._target, self._named = actors or 1, 0
        self._progress_at = clock()
        self._connected_here = connect(address, actors)
        try:
            self._spec = ray.put(spec)
            self._look_at_cluster()
            self._start_actors()
        except BaseException:
            self.close()
            raise

    # ---- what a run calls ------------------------------------------------------------------------

    def room(self) -> int:
        """How many more items it wants now."""
        return self._dispatch.room()

    def submit(self, item: Item) -> None:
        """Take an item."""
        self._dispatch.submit(item)
        self._feed()

    def collect(self, timeout_s: float) -> list[Result]:
        """Results that are there, after waiting at most ``timeout_s`` for the first.

        Returns early, and empty, when a worker has become live or an item was given up.

        Raises:
            PoolError: workers do not start, there has been none for ``stall_timeout_s``, or every
                item fails.
        """
        until = time.monotonic() + timeout_s
        self._hungry = self._dispatch.room() > 0  # the caller has nothing more, for the moment
        if self._hungry and self._copies:
            self._feed(self._dispatch.copy_call)
        live = self._dispatch.live
        while True:
            left = until - time.monotonic()
            # Answers before deadlines: a driver that was busy for long must not kill for it.
            results = self._take_ready(max(0.0, min(left, TICK_S)))
            self._tend()
            if self._fatal is not None and not results:
                raise self._fatal
            news = results or self._given_up or self._dispatch.live > live
            if news or left <= TICK_S or not self._dispatch.outstanding:
                return results

    def given_up(self) -> list[Item]:
        """Items quarantined since the last call."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def state(self) -> PoolState:
        """What the pool is doing."""
        pending = sum(a.phase != "live" for a in self._actors.values())
        note = self._waits_for() if pending else ""
        draining = len(self._draining & self._nodes.keys())
        return PoolState(self._dispatch.live, pending, self._dispatch.requeued, note, draining)

    def close(self) -> None:
        """Stop the actors, and Ray if this pool started or joined it."""
        if ray.is_initialized():
            for actor in list(self._actors.values()):
                self._remove(actor)
        if self._connected_here:
            self._connected_here = False
            ray.shutdown()

    # ---- actors come and go ----------------------------------------------------------------------

    def _start_actors(self) -> None:
        options: dict[str, Any] = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        if "GPU" in self._resources:
            options["num_gpus"] = self._resources["GPU"]
        if self._starts.left_out:
            nodes = ",".join(sorted(self._starts.left_out))
            options["label_selector"] = {"ray.io/node-id": f"!in({nodes})"}
        remote_class: Any = ray.remote(**options)(RemoteWorker)
        if self._hungry and self._most is not None and self._dispatch.live:
            # No node is to be added for nothing.
            for actor in [a for a in self._actors.values() if a.phase == "placing"]:
                self._remove(actor)
            return
        for _ in range(self._target - sum(not a.draining for a in self._actors.values())):
            self._named += 1
            handle = remote_class.remote()
            actor = Actor(f"actor-{self._named}", handle)
            self._actors[actor.name] = actor
            self._call(actor, handle.place.remote())

    def _call(self, actor: Actor, ref: Any, item_id: int | None = None) -> None:
        actor.refs.add(ref)
        self._calls[ref] = (actor, item_id)

    def _remove(self, actor: Actor) -> None:
        """Forget an actor and end its process, which may be alive though Ray says that it died."""
        self._actors.pop(actor.name, None)
        for ref in actor.refs:
            self._calls.pop(ref, None)
        ray.kill(actor.handle)

    def _lose(self, actor: Actor, error: str, *, blame: bool) -> None:
        self._remove(actor)
        lost = self._dispatch.lose_worker(actor.name, error, blame=blame)
        logger.warning("lost %s requeued=%d error=%r", _where(actor), len(lost), brief(error))

    def _start_failed(self, actor: Actor, error: BaseException) -> None:
        self._remove(actor)
        logger.warning("start failed %s error=%r", _where(actor), brief(str(error)))
        if actor.node and actor.node not in alive_nodes():
            return
        reason = self._starts.failed(actor.node, error, others=self._others(actor.node))
        if reason is not None:
            where = f" on node {actor.address} ({actor.node[:8]})" if actor.node else ""
            self._fatal = PoolError(
                f"no worker can start{where}: {brief(reason)}. Every node needs the packages and "
                "files of the driver, under the same paths: put them there, or correct the "
                "configuration"
            )
        elif actor.node in self._starts.left_out:
            logger.error("left out node %s reason=%r", _where(actor), brief(str(error)))
            self._target = self._asked or 1
            self._look_at_cluster()

    def _others(self, node: str) -> int:
        """Workers that take items, or may yet start on another node."""
        elsewhere = self._nodes.keys() - self._starts.left_out.keys() - {node}
        places = any(fitting(self._nodes[i]["Resources"], self._resources) for i in elsewhere)
        return sum(
            a.phase == "live" or a.node in elsewhere or (a.phase == "placing" and places)
            for a in self._actors.values()
        )

    # ---- every tick ------------------------------------------------------------------------------

    def _tend(self) -> None:
        now = self._clock()
        if now - self._looked_at >= LOOK_AT_CLUSTER_S:
            self._look_at_cluster()
        self._enforce_limits(now)
        for item, error in self._dispatch.take_given_up():
            logger.error("given up item=%d error=%r", item.item_id, brief(error))
            self._given_up.append(item)
            if self._dispatch.hopeless:
                self._fatal = PoolError(f"every item fails, on every try; the last error: {error}")
        if self._fatal is None:
            self._start_actors()
            self._feed()
        if any(a.phase != "placing" for a in self._actors.values()):
            self._progress_at = now
        elif now - self._progress_at > self._stall_timeout_s:
            waited = now - self._progress_at
            self._fatal = PoolError(f"no worker for {waited:.0f} s: {self._waits_for()}")

    def _enforce_limits(self, now: float) -> None:
        if overdue := self._dispatch.overdue(now):
            limit = self._dispatch.limit_s
            for name in overdue:
                self._lose(self._actors[name], f"no answer in {limit:.0f} s", blame=True)
            self._dispatch.lengthen_limit()
        for actor in list(self._actors.values()):
            if actor.phase == "loading" and now - actor.since > self._start_timeout_s:
                limit = self._start_timeout_s
                self._start_failed(actor, TimeoutError(f"loading took more than {limit:.0f} s"))
            elif actor.draining and self._dispatch.idle(actor.name):
                self._lose(actor, "its node drains", blame=False)

    def _look_at_cluster(self) -> None:
        self._looked_at = self._clock()
        self._nodes = alive_nodes()
        self._free = ray.available_resources()  # type: ignore[no-untyped-call]
        self._draining = draining_nodes()
        for actor in self._actors.values():
            if actor.node in self._draining and not actor.draining and actor.phase == "live":
                actor.draining = True
                self._dispatch.stop_feeding(actor.name)
                logger.info("not fed any more: its node drains %s", _where(actor))
        if self._asked is None:
            usable = [n for i, n in self._nodes.items() if i not in self._starts.left_out]
            places = sum(fitting(n["Resources"], self._resources) for n in usable)
            self._target = max(self._target, places) if self._most is None else self._most

    def _feed(self, following: Callable[[float], tuple[str, Item] | None] | None = None) -> None:
        following = following or self._dispatch.next_call
        while (pair := following(self._clock())) is not None:
            name, item = pair
            actor = self._actors[name]
            self._call(actor, actor.handle.evaluate.remote(item), item.item_id)

    def _waits_for(self) -> str:
        phases = Counter(a.phase for a in self._actors.values())
        parts = []
        if phases["loading"]:
            parts.append(f"{phases['loading']} of {self._target} workers are loading")
        if phases["placing"]:
            nodes = [n["Resources"] for n in self._nodes.values()]
            parts.append(missing(phases["placing"], self._resources, nodes, self._free))
        for node, why in self._starts.left_out.items():
            parts.append(f"node {node[:8]} is left out ({brief(why)})")
        return "; ".join(parts)

    # ---- answers ---------------------------------------------------------------------------------

    def _take_ready(self, timeout_s: float) -> list[Result]:
        refs = list(self._calls)
        if not refs:
            time.sleep(timeout_s if self._dispatch.outstanding else 0.0)
            return []
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        answers = [(ref, _answer(ref)) for ref in ready]
        results: list[Result] = []
        # Values first: of an actor that has died since, only what it did not finish is lost.
        for ref, answer in sorted(answers, key=lambda pair: isinstance(pair[1], BaseException)):
            if ref not in self._calls:  # of an actor that was removed just now
                continue
            actor, item_id = self._calls.pop(ref)
            actor.refs.discard(ref)
            if item_id is None:
                self._take_start(actor, answer)
            elif isinstance(answer, BaseException):
                self._take_failure(actor, item_id, answer)
            elif self._dispatch.finish(actor.name, item_id, self._clock()):
                results.append(answer)
        return results

    def _take_start(self, actor: Actor, answer: Any) -> None:
        if isinstance(answer, BaseException):
            self._start_failed(actor, answer)
        elif actor.phase == "placing":
            actor.node, actor.address = answer
            if actor.node in self._starts.left_out:  # it was asked for before
                self._remove(actor)
                return
            actor.phase, actor.since = "loading", self._clock()
            self._call(actor, actor.handle.load.remote(self._spec, actor.name))
        else:
            actor.phase = "live"
            self._starts.succeeded(actor.node)
            self._dispatch.add_worker(actor.name)
            numerics, compiled, seconds = answer
            loaded = f"numerics={numerics} compiled={compiled!r} load_s={seconds:.1f}"
            logger.info("live %s %s", _where(actor), loaded)

    def _take_failure(self, actor: Actor, item_id: int, error: BaseException) -> None:
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            blame = actor.node in alive_nodes() and actor.node not in self._draining
            self._lose(actor, str(error), blame=blame)
        elif self._dispatch.fail(actor.name, item_id, error, self._clock()):
            self._lose(actor, f"{type(error).__name__}: {error}", blame=False)


def _answer(ref: Any) -> Any:
    """What a finished call returned, or the exception that it raised."""
    try:
        return ray.get(ref, timeout=1.0)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except RayError as error:
        return error


def _where(actor: Actor) -> str:
    return f"actor={actor.name} address={actor.address} node={actor.node[:8]}"
