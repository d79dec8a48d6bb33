"""What a person sees while a run goes on: a live bar on a terminal, lines elsewhere."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from diffcert_ray.run import Progress as RunProgress

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
    return (
        f"{progress.images_done}/{progress.images_total} images, "
        f"{progress.votes_done:,}/{progress.votes_total:,} votes, "
        f"{progress.nfe_per_s:,.0f} NFE/s, {duration(progress.seconds_left)} left, "
        f"{pool.live} workers{pending}{requeued}{note}"
    )


class LineProgress:
    """Progress as one line every ten seconds, for logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._said_at: float | None = None
        self._last = ""

    def __call__(self, progress: RunProgress) -> None:
        """Say where the run stands, if it is time."""
        now, line = self._clock(), progress_line(progress)
        done = progress.images_done == progress.images_total
        due = self._said_at is None or now - self._said_at >= LINE_S or done
        if due and line != self._last:
            self._console.print(line, soft_wrap=True, highlight=False)
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
