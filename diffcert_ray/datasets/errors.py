"""What a dataset is refused with."""


class UndecodableError(ValueError):
    """Why an image cannot be decoded, said by a reader that knows nothing of image ids."""
