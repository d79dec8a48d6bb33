"""Names of what the engine does, for whoever measures it; nothing by default."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Watch = Callable[[str], AbstractContextManager[object]]
"""Called with a part's name; what it returns is entered while that part is done."""

PARTS = ("admission", "noise", "network", "head", "losses", "decisions")
"""Votes let in with their smoothing noise; internal noise; the network; what a head says of it;
losses; sifting."""

_NOTHING = nullcontext()


def unwatched(part: str) -> AbstractContextManager[object]:
    """Watch nothing."""
    return _NOTHING
