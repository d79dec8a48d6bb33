"""The one error for a checkpoint that cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, not the expected one, or not safe to read."""
