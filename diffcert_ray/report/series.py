"""A series: the certificates that one curve, one table row and one gallery are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from diffcert_ray.certificates.norms import NORMS
from diffcert_ray.errors import ConfigError, LogError, nearest
from diffcert_ray.report.cohen_log import DEFAULT_ALPHA, check_header, read_cohen_log
from diffcert_ray.report.sigma_names import sigma_of_name
from diffcert_ray.report.unfinished import unfinished_line

MAX_ASKED_RADII = 9  # columns of a log's table, which has no asked radii of its own


@dataclass(frozen=True)
class Series:
    """The certificates of one run by one bound, or of one log.

    Args:
        name: what the report calls it, distinct within a report.
        title: what was certified, in words.
        certificates: rows of the certificates table, one bound and alpha.
        radii: asked radii, pixel units.
        dataset: name of the dataset, or "" where it is not known.
        facts: what is known about how it was made: (what, value).
        notes: sentences to show with its figures.
        command: the command that made it, or "".
        config: the configuration as TOML, or "".
        seed: of the votes' noise, or None where it is not known.
        asked: images asked for at each sigma; None: those that have a certificate (a log).
        dimensions: numbers in an image, channels x height x width; None where nobody knows (a log).
        norms: other norms whose derived figures are asked for: "linf", "l1".
        votes: most estimation votes of an image, n; 0 where there are none, or a log does not say.
        reach: the largest radius that so many votes can certify, at each sigma; None: not known.
    """

    name: str
    title: str
    certificates: pd.DataFrame
    radii: tuple[float, ...]
    dataset: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    config: str = ""
    seed: int | None = None
    asked: Mapping[float, int] | None = None
    dimensions: int | None = None
    norms: tuple[str, ...] = ()
    votes: int = 0
    reach: Mapping[float, float] | None = None

    @property
    def bound(self) -> str:
        """The bound of every certificate."""
        return str(self.certificates["bound"].iloc[0])

    @property
    def unfinished(self) -> str:
        """One line on the images that lack a result, or "" where none does."""
        return unfinished_line(self.certificates, self.asked)

    def by_sigma(self) -> list[tuple[float, pd.DataFrame]]:
        """The rows of each sigma, ascending."""
        groups = self.certificates.groupby("sigma")
        return [(float(str(sigma)), rows) for sigma, rows in groups]


def series_of_log(
    path: str, text: str, *, sigma: float | None = None, alpha: float = DEFAULT_ALPHA
) -> Series:
    """A log of Cohen et al. as a series; its sigma is what the path tells, unless it is given.

    Raises:
        LogError: it is no log of certificates, or its sigma is not known.
    """
    try:
        check_header(text)
    except LogError as error:
        raise LogError(f"{path}: {error}") from None
    known = sigma if sigma is not None else sigma_of_name(path)
    if known is None:
        raise LogError(
            f"{path}: a log does not say its sigma, and this name does not tell one number for it: "
            "give --log-sigma, or rename it, as in sigma-0.25.tsv"
        )
    try:
        rows = read_cohen_log(text, sigma=known, alpha=alpha)
    except LogError as error:
        raise LogError(f"{path}: {error}") from None
    name = path.rstrip("/").rsplit("/", 1)[-1]
    title = f"{name}: a log of clopper-pearson, taken as alpha {alpha:g}"
    facts = (("log", path), ("sigma", f"{known:g}"), ("alpha", f"{alpha:g} (a log does not say)"))
    return Series(name, title, rows, asked_radii(rows), facts=facts)


def asked_radii(certificates: pd.DataFrame) -> tuple[float, ...]:
    """Radii for a table where nobody asked for any: quarters, or halves where these are many."""
    largest = float(certificates["radius"].max())
    step = 0.25 if largest < 0.25 * MAX_ASKED_RADII else 0.5
    count = min(int(largest / step) + 1, MAX_ASKED_RADII)
    return tuple(step * i for i in range(count))


def with_norms(
    series: Sequence[Series], norms: Sequence[str], log_dimensions: int | None = None
) -> tuple[Series, ...]:
    """The same series with figures in other norms, which follow from their l2 radii.

    Args:
        series: of runs and logs.
        norms: "linf" or "l1", each once.
        log_dimensions: numbers in an image of the logs.

    Raises:
        ConfigError: another norm, or l-infinity of a log without its dimensions.
    """
    for norm in norms:
        if norm not in NORMS:
            raise ConfigError(f"--norm {norm!r} is not known{nearest(norm, NORMS)}")
    known = [
        replace(one, norms=tuple(dict.fromkeys(norms)), dimensions=one.dimensions or log_dimensions)
        for one in series
    ]
    for one in known:
        if "linf" in one.norms and one.dimensions is None:
            raise ConfigError(
                f"{one.name}: a log does not say how many numbers an image has, by which its "
                "l-infinity radii follow: give --log-dimensions, as in 3072 (3 x 32 x 32, CIFAR) "
                "or 150528 (3 x 224 x 224, ImageNet)"
            )
    return tuple(known)


def unfinished_lines(series: Sequence[Series]) -> list[str]:
    """A line for each series that lacks results, with its name where there are several."""
    named = len(series) > 1
    return [f"{s.name}: {s.unfinished}" if named else s.unfinished for s in series if s.unfinished]


def distinct_names(series: list[Series]) -> list[Series]:
    """The same series, with a number behind names that occur twice."""
    seen: dict[str, int] = {}
    renamed = []
    for one in series:
        seen[one.name] = seen.get(one.name, 0) + 1
        count = seen[one.name]
        renamed.append(one if count == 1 else replace(one, name=f"{one.name} ({count})"))
    return renamed
