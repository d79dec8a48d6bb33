"""The check of a failure probability, a confidence or another fraction: strictly inside (0, 1)."""


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction that is not strictly between 0 and 1; NaN is not.

    Args:
        name: what the message calls it.
        value: the fraction.

    Raises:
        ValueError: it is not in (0, 1).

    Source: ours.
    """
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name}={value!r} must lie in (0, 1)")
