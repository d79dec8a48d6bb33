"""What a dataset is refused with."""

import difflib
from collections.abc import Iterable


class DatasetError(ValueError):
    """A dataset, or a file of it, that cannot be used; the message names it and the remedy."""


class CorruptImageError(DatasetError):
    """One image that cannot be decoded or is unlike the others; the message names its id."""


class UndecodableError(ValueError):
    """Why an image cannot be decoded, said by a reader that knows nothing of image ids."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: ": did you mean 'x'? known are x, y"."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    hint = f": did you mean {near[0]!r}?" if near else ":"
    return f"{hint} known are {', '.join(known)}"
