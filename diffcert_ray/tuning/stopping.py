"""A tuning that was asked to stop."""


class StoppedError(Exception):
    """It was asked to stop; what there is, is stored, and the same call continues."""
