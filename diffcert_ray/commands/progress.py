"""Progress of a run: a live bar on a terminal, else lines for logs and machines."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from diffcert_ray.commands.screen import err
from diffcert_ray.run.loop import Progress as RunProgress

LINE_S = 10.0


def duration(seconds: float | None) -> str:
    """Seconds as "45 s", "3 min 20 s" or "2 h 05 min"; "?" while unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def progress_line(progress: RunProgress) -> str:
    """One line of plain text about where a run stands."""
    pool = progress.pool
    pending = f" (+{pool.pending} starting)" if pool.pending else ""
    requeued = f", {pool.requeued} items requeued" if pool.requeued else ""
    note = f"; {pool.note}" if pool.note else ""
    budget = f", spent {progress.budget}" if progress.budget else ""
    return (
        f"{progress.images_done}/{progress.images_total} images, "
        f"{progress.votes_done:,}/{progress.votes_total:,} votes, "
        f"{progress.nfe_per_s:,.0f} NFE/s, {duration(progress.seconds_left)} left, "
        f"{pool.live} workers{pending}{requeued}{budget}{note}"
    )


def progress_facts(progress: RunProgress) -> dict[str, int | float | str | None]:
    """The same for machines: seconds_left is None while unknown, note is "" where there is none."""
    pool, left = progress.pool, progress.seconds_left
    return {
        "images": progress.images_done,
        "images_total": progress.images_total,
        "votes": progress.votes_done,
        "votes_total": progress.votes_total,
        "nfe_per_s": round(progress.nfe_per_s, 1),
        "seconds_left": None if left is None else round(left, 1),
        "workers": pool.live,
        "pending": pool.pending,
        "requeued": pool.requeued,
        "note": pool.note,
        **({"budget": progress.budget} if progress.budget else {}),
    }


def key_value_line(progress: RunProgress) -> str:
    """Where a run stands as the word "progress" and key=value pairs, quoted as a shell does it."""
    facts = {k: "?" if v is None else v for k, v in progress_facts(progress).items() if v != ""}
    return " ".join(["progress", *(f"{k}={shlex.quote(str(v))}" for k, v in facts.items())])


def json_line(progress: RunProgress) -> str:
    """Where a run stands as one JSON object."""
    return json.dumps({"event": "progress"} | progress_facts(progress))


@contextmanager
def progress_shown(*, quiet: bool = False, as_json: bool = False) -> Iterator[Any]:
    """What takes a run's progress: a live bar on a terminal, else a line now and then.

    Args:
        quiet: show nothing.
        as_json: JSON lines, on a terminal too.
    """
    shown: LineProgress | LiveProgress | QuietProgress
    if quiet:
        shown = QuietProgress()
    elif as_json:
        shown = LineProgress(err, line=json_line)
    else:
        shown = LiveProgress(err) if err.is_terminal else LineProgress(err)
    with shown as progress:
        yield progress


class CountedProgress:
    """How many of a known number of steps are done, and the time left: now and then a line.

    Args:
        console: where the lines go.
        what: the steps, as "units".
        clock: monotonic seconds; time counts from the call of this constructor.
        every_s: least seconds between two lines; the last step has one in any case.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = LINE_S,
    ) -> None:
        self._console, self._what, self._clock, self._every_s = console, what, clock, every_s
        self._began = self._said_at = clock()

    def __call__(self, done: int, total: int, about: str = "") -> None:
        """Say how far it is, if it is time."""
        now = self._clock()
        if now - self._said_at < self._every_s and done < total:
            return
        left = (now - self._began) / done * (total - done) if done else None
        text = f"{done}/{total} {self._what}, {duration(left)} left{about}"
        self._console.print(text, soft_wrap=True, markup=False)
        self._said_at = now


class QuietProgress:
    """No progress at all."""

    def __call__(self, progress: RunProgress) -> None:
        """Say nothing."""

    def __enter__(self) -> "QuietProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to restore."""


class LineProgress:
    """Progress as one line every ten seconds, for logs, pipes and machines.

    Args:
        console: where the lines go.
        clock: monotonic seconds.
        line: what makes a line: ``key_value_line`` or ``json_line``.
    """

    def __init__(
        self,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        line: Callable[[RunProgress], str] = key_value_line,
    ) -> None:
        self._console, self._clock, self._line = console, clock, line
        self._said_at: float | None = None
        self._last = ""

    def __call__(self, progress: RunProgress) -> None:
        """Say where the run stands, if it is time."""
        now, line = self._clock(), self._line(progress)
        done = progress.images_done == progress.images_total
        due = self._said_at is None or now - self._said_at >= LINE_S or done
        if due and line != self._last:
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
            self._said_at, self._last = now, line

    def __enter__(self) -> "LineProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to restore."""


class LiveProgress:
    """Progress as a live bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.fields[images]} images"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            _Facts(),
            console=console,
        )
        self._task = self._bar.add_task("votes", total=None, images="0/?", facts="starting workers")

    def __call__(self, progress: RunProgress) -> None:
        """Move the bar."""
        facts = progress_line(progress).split(" images, ", 1)[1]
        self._bar.update(
            self._task,
            total=progress.votes_total,
            completed=progress.votes_done,
            images=f"{progress.images_done}/{progress.images_total}",
            facts=facts,
        )

    def __enter__(self) -> "LiveProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


class _Facts(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields["facts"]), overflow="ellipsis", no_wrap=True)
