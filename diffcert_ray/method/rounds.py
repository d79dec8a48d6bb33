"""In which order a vote visits the noise levels, and after how many it looks at what it has."""

import numpy as np


def visiting_order(levels: int, first: float = 1 / 3) -> np.ndarray:
    """Order in which few visits cover the whole range of levels.

    The first level lies a fraction ``first`` up the grid; the others follow a van der Corput
    sequence (bit reversal), shifted so that it starts there.

    Args:
        levels: T >= 1.
        first: position of the first level, 0 <= first < 1.

    Returns:
        int64 [T], a permutation of 0..T-1.
    """
    count = 1 << max(levels - 1, 1).bit_length()
    bits = count.bit_length() - 1
    index = np.arange(count)
    reversed_bits = np.zeros(count, np.int64)
    for bit in range(bits):
        reversed_bits |= ((index >> bit) & 1) << (bits - 1 - bit)
    wanted = np.floor((reversed_bits / count + first) % 1.0 * levels).astype(np.int64)
    _, position = np.unique(wanted, return_index=True)
    seen = wanted[np.sort(position)]
    missing = np.setdiff1d(np.arange(levels), seen)
    return np.concatenate([seen, missing])


def growing_rounds(entries: int) -> tuple[tuple[int, int], ...]:
    """Rounds that end after 1, 3, 7, ... entries: each as long as all before it, plus one.

    Args:
        entries: E >= 1.

    Returns:
        (start, stop) pairs that cover 0..E.
    """
    ends = [1]
    while ends[-1] < entries:
        ends.append(min(2 * ends[-1] + 1, entries))
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def fine_rounds(entries: int) -> tuple[tuple[int, int], ...]:
    """Rounds that end after each of the first 16 entries, then an eighth later each time.

    What a vote costs is decided by the few that stay open long, and each round that is longer than
    it needs to be overshoots: on digits doubling rounds take half as many evaluations again.

    Args:
        entries: E >= 1.

    Returns:
        (start, stop) pairs that cover 0..E, none longer than 8.
    """
    ends = [1]
    while ends[-1] < entries:
        ends.append(min(ends[-1] + min(max(ends[-1] // 8, 1), 8), entries))
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


def even_rounds(start: int, stop: int, length: int) -> tuple[tuple[int, int], ...]:
    """Rounds of a fixed length from start to stop; the last may be shorter."""
    return tuple((a, min(a + length, stop)) for a in range(start, stop, length))
