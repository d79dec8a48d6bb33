"""Tuning from configuration to configuration: head, votes, choice, files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.datasets import Dataset
from diffcert_ray.datasets.dataset import labels_of
from diffcert_ray.run.loop import Progress
from diffcert_ray.run.opening import store_options
from diffcert_ray.storage.location import Location
from diffcert_ray.storage.open_location import open_location
from diffcert_ray.tuning.candidates import Setting
from diffcert_ray.tuning.casting import Caster, Votes
from diffcert_ray.tuning.choice import (
    CONFIDENCE,
    Choice,
    Measured,
    chosen,
    least_agreement,
    mean_nfe,
    measured,
    promising,
)
from diffcert_ray.tuning.files import write_files
from diffcert_ray.tuning.intervals import difference, intervals
from diffcert_ray.tuning.prepared import Asked, Prepared, prepare
from diffcert_ray.tuning.record import keep_record
from diffcert_ray.tuning.results import Gap, Results
from diffcert_ray.tuning.training import Heads, OnHead, train_heads
from diffcert_ray.tuning.workers import SharedWorkers


@dataclass(frozen=True)
class Watch:
    """Who is told what happens.

    Attributes:
        on_stage: a line at the beginning of each stage.
        on_head: where the training of a head stands.
        on_progress: as `certify`, of the votes of one setting.
        on_calibrated: as `certify`.
        should_stop: as `certify`.
    """

    on_stage: Callable[[str], None] = lambda said: None
    on_head: OnHead = lambda sigma, step: None
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_calibrated: Callable[[str], None] = lambda said: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Tuned:
    """A tuning that has ended.

    Attributes:
        results: what was measured and chosen.
        config: where its configuration is, for `certify`.
        folder: of all files.
    """

    results: Results
    config: str
    folder: str


def tune(
    config: Config,
    output: str,
    asked: Asked,
    *,
    local: bool = False,
    address: str | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Choose the cheapest rule of a configuration that agrees with the full vote; or continue.

    Args:
        config: whose [sift] is chosen.
        output: folder or fsspec address of all that it makes.
        asked: what to choose by.
        local: in this process, without Ray.
        address: of a Ray cluster; by default a local Ray is started.
        watch: who is told.

    Raises:
        ConfigError: something is wrong that could be checked before any work.
        StoppedError: it was asked to stop.
    """
    watch = watch or Watch()
    prepared = prepare(config, asked)
    location = open_location(output, store_options(config, output))
    keep_record(location, prepared.record())
    watch.on_stage(_plan_said(prepared))
    with _ray(config, address, local=local):
        tuning = _Tuning(prepared, location, local, address, watch)
        heads = tuning.heads() if asked.labels else None
        results = tuning.results(heads)
    final = None if heads is None else heads.final
    return Tuned(results, write_files(prepared, location, results, final), location.address)


@dataclass(frozen=True)
class _Tuning:
    """One start of a tuning."""

    prepared: Prepared
    location: Location
    local: bool
    address: str | None
    watch: Watch

    def heads(self) -> Heads:
        """The heads, trained as far as they are not stored."""
        from diffcert_ray.denoisers.device import resolve_device

        sigmas = ", ".join(f"{s:g}" for s in self.prepared.tuning.votes.sigmas)
        self.watch.on_stage(f"training a head at sigma {sigmas}")
        return train_heads(
            self.prepared,
            self.location,
            resolve_device(self.prepared.tuning.execution.device),
            local=self.local,
            on_head=self.watch.on_head,
            should_stop=self.watch.should_stop,
        )

    def results(self, heads: Heads | None) -> Results:
        """Votes of all settings, and the choice."""
        prepared = self.prepared
        candidates = [_headed(s, heads) for s in prepared.candidates]
        ids = prepared.parts.voting.tolist()
        screened_images = len(prepared.parts.screening)
        with self._caster(prepared.tuning, ids, "votes", heads) as caster:
            self.watch.on_stage(
                f"{len(candidates)} settings on {screened_images} images, and the votes in full"
            )
            groups = self._measure(caster, prepared.data, candidates, 0, screened_images)
            screened, by_name = groups[1:], {s.name: s for s in candidates}
            names = [s.name for s in promising(screened, prepared.asked.target)]
            self.watch.on_stage(
                f"the {len(names)} settings left, and the votes in full, on "
                f"{len(ids) - screened_images} further images"
            )
            finalists = [by_name[name] for name in names]
            full, *compared = self._measure(
                caster, prepared.data, finalists, screened_images, len(ids)
            )
        choice = chosen(compared, prepared.asked.target)
        gaps = self._gaps(choice, heads) if prepared.asked.certified else ()
        return Results(tuple(screened), full, choice, gaps)

    def _measure(
        self, caster: Caster, data: Dataset, settings: Sequence[Setting], start: int, stop: int
    ) -> list[tuple[Measured, ...]]:
        """The votes in full, then those of settings, at every sigma, on images start:stop."""
        labels = None
        if self.prepared.asked.labels:
            by_id = labels_of(data)
            labels = np.array([by_id[i] for i in caster.image_ids[start:stop]])
        sigmas, full, found = self.prepared.tuning.votes.sigmas, dict[float, Votes](), []
        for number, setting in enumerate((self.prepared.full, *settings)):
            run = caster.cast(setting, sigmas, start, stop)
            votes = {s: caster.read(run, s, start, stop) for s in sigmas}
            full = full or votes
            group = tuple(measured(setting, s, votes[s], full[s], labels) for s in sigmas)
            found.append(group)
            self.watch.on_stage(
                f"{number}/{len(settings)} {setting.said()}: {mean_nfe(group):.2f} NFE/vote, "
                f"agreement {100 * least_agreement(group):.2f} %"
            )
        return found

    def _gaps(self, choice: Choice, heads: Heads | None) -> tuple[Gap, ...]:
        """The chosen setting on certified images."""
        prepared = self.prepared
        ids = prepared.certified.ids.tolist()[: prepared.asked.certified]
        self.watch.on_stage(f"the chosen setting on {len(ids)} certified images")
        theirs = {"dataset": prepared.config.dataset.whole()}
        config = prepared.tuning.model_copy(update=theirs)
        with self._caster(config, ids, "certified", heads) as caster:
            _, there = self._measure(
                caster, prepared.certified, [choice.taken.setting], 0, len(ids)
            )
        return tuple(_gap(a, b) for a, b in zip(there, choice.taken.measured, strict=True))

    @contextmanager
    def _caster(
        self, config: Config, ids: list[int], folder: str, heads: Heads | None
    ) -> Iterator[Caster]:
        """Who casts votes, with workers that stay until the end."""
        weights = {} if heads is None else {"head": heads.working.sha256}
        sift = self.prepared.full.sift
        if heads is not None:
            sift = SiftConfig(rule="shortlist", head=heads.working.source)
        workers = SharedWorkers(sift, weights, local=self.local, address=self.address)
        watch = self.watch
        try:
            yield Caster(
                config,
                ids,
                self.prepared.asked.votes,
                f"{self.location.address}/{folder}",
                workers,
                self.local,
                self.address,
                watch.on_progress,
                watch.on_calibrated,
                watch.should_stop,
            )
        finally:
            workers.close()


@contextmanager
def _ray(config: Config, address: str | None, *, local: bool) -> Iterator[None]:
    """One connection to Ray for all, unless ``local``."""
    if local:
        yield
        return
    from diffcert_ray.pool.on_ray.cluster import joined

    with joined(address, config.execution.actors):
        yield


def _plan_said(prepared: Prepared) -> str:
    parts = prepared.parts
    head = f"{len(parts.head)} for the head, " if len(parts.head) else ""
    return (
        f"tuning images: {head}{len(parts.screening)} to look settings through, "
        f"{len(parts.confirming)} to compare the best; {prepared.asked.votes} votes of each; in "
        f"full by {prepared.full.said()}"
    )


def _headed(setting: Setting, heads: Heads | None) -> Setting:
    """The setting with its head, where it needs one."""
    if heads is None or setting.sift.rule != "shortlist":
        return setting
    head = {"head": heads.working.source, "head_sha256": heads.working.sha256}
    tables = setting.sift.model_dump(exclude_unset=True) | head
    return replace(setting, sift=SiftConfig.model_validate(tables))


def _gap(there: Measured, here: Measured) -> Gap:
    at, of = _with_ends(there), _with_ends(here)
    return Gap(there.sigma, there, at[1:], (at[0] - of[0], *difference(at, of)))


def _with_ends(one: Measured) -> tuple[float, float, float]:
    """The agreement with its 95 % interval."""
    low, high = intervals(one.agreeing[:, None], one.votes, CONFIDENCE, 1)
    return one.agreement, float(low[0]), float(high[0])
