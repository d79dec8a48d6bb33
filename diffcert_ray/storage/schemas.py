"""The columns of stored units, losses and certificates, as Arrow schemas and as row types."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffcert_ray.conventions import STREAM_NAMES

SCHEMA_VERSION = 3
VERSION_KEY = b"diffcert.schema"
PUBLISHED_KEY = b"diffcert.published_us"  # unix time; tells how fast a run goes, never what counts
# Columns that files of an earlier schema lack: the version that brought them, and what they hold
# there, which is a value or, in a tuple, the name of the column whose values they hold.
LATER_COLUMNS: dict[str, tuple[int, Any]] = {
    "slack": (2, 0.0),
    "taken_off": (2, 0.0),
    "n0_used": (3, ("n0",)),
    "withdrawn": (3, False),
}


@dataclass(frozen=True)
class UnitRow:
    """The counts of one complete unit of votes.

    `classes` are distinct and their `counts` add up to stop - start; class -2 holds the votes for
    "not the target, or unresolved". `target` is -1 where every class could be voted for.
    """

    sigma: float
    image_id: int
    image_sha: str
    stream: str
    start: int
    stop: int
    target: int
    classes: tuple[int, ...]
    counts: tuple[int, ...]
    nfe: int
    seconds: float
    device: str
    numerics: str
    worker: str
    attempt: int


@dataclass(frozen=True, eq=False)
class LossRow:
    """The losses of one complete unit of draws: `sums` and `squares` are float64 [T, K].

    It becomes T * K rows of the table, level by level.
    """

    image_id: int
    image_sha: str
    start: int
    stop: int
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    seconds: float
    device: str
    numerics: str
    worker: str


@dataclass(frozen=True)
class CertificateRow:
    """One image's certificate at one sigma by one bound.

    Certificates of the plain classifier, bounds lipschitz and local, have no smoothing (sigma 0)
    and no votes (n_a, n0 and n0_used are 0, p_low is NaN); their n is the number of noise draws. A
    row that is ``withdrawn`` says that one with its key is no certificate any more.
    """

    sigma: float
    image_id: int
    label: int
    predicted: int
    correct: bool
    abstained: bool
    radius: float
    p_low: float
    slack: float
    taken_off: float
    n_a: int
    n: int
    n0: int
    n0_used: int
    alpha: float
    bound: str
    nfe: int
    seconds: float
    method: str
    votes_id: str
    withdrawn: bool = False


def column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """A column that is never null, with its unit of measure or meaning in the metadata."""
    return pa.field(name, kind, nullable=False, metadata={"unit": meaning})


UNIT_SCHEMA = pa.schema(
    [
        column("sigma", pa.float64(), "noise std of pixels in [0, 1]"),
        column("image_id", pa.int64(), "row of the dataset"),
        column("image_sha", pa.string(), "prefix of the pixels' sha256"),
        column("stream", pa.string(), "select or estimate"),
        column("start", pa.int32(), "first vote"),
        column("stop", pa.int32(), "vote after the last"),
        column("target", pa.int32(), "class, -1: all classes"),
        column("classes", pa.list_(pa.int32()), "class, -2: not the target, or unresolved"),
        column("counts", pa.list_(pa.int32()), "votes"),
        column("nfe", pa.int64(), "evaluations of a network"),
        column("seconds", pa.float64(), "s"),
        column("device", pa.string(), "device model"),
        column("numerics", pa.string(), "numerics kind (hash of the probe batch's results)"),
        column("worker", pa.string(), "worker"),
        column("attempt", pa.int32(), "0: first"),
    ],
    metadata={VERSION_KEY: f"units/{SCHEMA_VERSION}"},
)

LOSS_SCHEMA = pa.schema(
    [
        column("image_id", pa.int64(), "row of the dataset"),
        column("image_sha", pa.string(), "prefix of the pixels' sha256"),
        column("start", pa.int32(), "first draw"),
        column("stop", pa.int32(), "draw after the last"),
        column("level", pa.int32(), "noise level, from the lowest"),
        column("class", pa.int32(), "class"),
        column("sum", pa.float64(), "sum of losses in [0, 1], pixels in [0, 1], per dimension"),
        column("sumsq", pa.float64(), "sum of their squares"),
        column("nfe", pa.int64(), "evaluations of a network"),
        column("seconds", pa.float64(), "s"),
        column("device", pa.string(), "device model"),
        column("numerics", pa.string(), "numerics kind (hash of the probe batch's results)"),
        column("worker", pa.string(), "worker"),
    ],
    metadata={VERSION_KEY: f"losses/{SCHEMA_VERSION}"},
)

CERTIFICATE_SCHEMA = pa.schema(
    [
        column("sigma", pa.float64(), "noise std of pixels in [0, 1]; 0: plain, no smoothing"),
        column("image_id", pa.int64(), "row of the dataset"),
        column("label", pa.int32(), "class"),
        column("predicted", pa.int32(), "class, -1: abstained"),
        column("correct", pa.bool_(), "predicted the label"),
        column("abstained", pa.bool_(), "no certificate"),
        column("radius", pa.float64(), "L2, pixels in [0, 1]"),
        column("p_low", pa.float64(), "probability, less the slack; NaN: a bound without votes"),
        column("slack", pa.float64(), "probability, for the noise as it is sampled"),
        column("taken_off", pa.float64(), "L2 taken off the radius, for rounding to the grid"),
        column("n_a", pa.int64(), "votes for the predicted class; 0: a bound without votes"),
        column("n", pa.int64(), "votes that estimated; draws, for lipschitz and local"),
        column("n0", pa.int64(), "votes that selected at most"),
        column("n0_used", pa.int64(), "votes that selected"),
        column("alpha", pa.float64(), "probability of a wrong certificate"),
        column("bound", pa.string(), "name of the bound"),
        column("nfe", pa.int64(), "evaluations of a network"),
        column("seconds", pa.float64(), "s"),
        column("method", pa.string(), "name of the base classifier"),
        column("votes_id", pa.string(), "hash of what a vote depends on"),
        column("withdrawn", pa.bool_(), "the last of its key: there is no such certificate"),
    ],
    metadata={VERSION_KEY: f"certificates/{SCHEMA_VERSION}"},
)

LOSS_UNIT_KEY = ("image_id", "start", "stop")
LOSS_KEY = (*LOSS_UNIT_KEY, "level", "class")
LOSS_DECIDING_COLUMNS = (*LOSS_KEY, "image_sha", "sum", "sumsq", "numerics")
UNIT_KEY = ("sigma", "stream", "image_id", "start", "stop", "target")
CERTIFICATE_KEY = ("sigma", "image_id", "bound", "alpha", "n", "n0", "method", "votes_id")
# What is needed to decide which rows count, and to resume.
UNIT_COUNT_COLUMNS = (*UNIT_KEY, "image_sha", "classes", "counts", "numerics")


def check_unit(row: UnitRow) -> None:
    """Refuse a unit that is not complete: an empty range, or counts that do not add up to it."""
    if row.stream not in STREAM_NAMES:
        raise ValueError(f"unit stream {row.stream!r}: use one of {', '.join(STREAM_NAMES)}")
    if not 0 <= row.start < row.stop:
        raise ValueError(f"unit votes {row.start}:{row.stop}: use 0 <= start < stop")
    distinct = len(set(row.classes)) == len(row.classes) == len(row.counts)
    if not distinct or sum(row.counts) != row.stop - row.start or min(row.counts) < 0:
        raise ValueError(
            f"unit of image {row.image_id} votes {row.start}:{row.stop} has classes {row.classes} "
            f"and counts {row.counts}: give each class once, and {row.stop - row.start} votes in "
            "all, so that stored means complete"
        )


def unit_table(rows: Sequence[UnitRow]) -> pa.Table:
    """Units as a table, each with its classes in increasing order."""
    columns: dict[str, list[Any]] = {name: [] for name in UNIT_SCHEMA.names}
    for row in rows:
        pairs = sorted(zip(row.classes, row.counts, strict=True))
        values = vars(row) | {
            "classes": [klass for klass, _ in pairs],
            "counts": [count for _, count in pairs],
        }
        for name, cells in columns.items():
            cells.append(values[name])
    return pa.table(columns, schema=UNIT_SCHEMA)


def loss_table(rows: Sequence[LossRow]) -> pa.Table:
    """Losses as a table: T * K rows for each unit, in the order of levels, then classes."""
    columns: dict[str, list[Any]] = {name: [] for name in LOSS_SCHEMA.names}
    for row in rows:
        levels, classes = row.sums.shape
        level, klass = np.divmod(np.arange(levels * classes), classes)
        values = vars(row) | {
            "level": level,
            "class": klass,
            "sum": row.sums.ravel(),
            "sumsq": row.squares.ravel(),
            "nfe": row.stop - row.start,
            "seconds": row.seconds / (levels * classes),
        }
        for name, cells in columns.items():
            value = values[name]
            many = isinstance(value, np.ndarray)
            cells.extend(value.tolist() if many else [value] * (levels * classes))
    return pa.table(columns, schema=LOSS_SCHEMA)


def certificate_table(rows: Sequence[CertificateRow]) -> pa.Table:
    """Certificates as a table."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=CERTIFICATE_SCHEMA)
