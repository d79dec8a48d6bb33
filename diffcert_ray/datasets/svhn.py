"""SVHN, cropped digits (format 2): MATLAB files of X [32, 32, 3, N] and y [N, 1].

Source: Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning";
the label 10 stands for the digit 0.
"""

import io
from typing import Any

import numpy as np

from diffcert_ray.datasets.pixel_scale import check_published
from diffcert_ray.datasets.reader import Request, Split, split_of_bytes
from diffcert_ray.errors import DatasetError


def read_svhn(request: Request) -> Split:
    """SVHN through scipy.io, split "train", "test" or "extra"; image_id is the row in the file.

    The path is the folder of SPLIT_32x32.mat; the split is in memory as bytes.
    """
    request.check_split("test", "train", "extra")
    files, name = request.files(), f"{request.split}_32x32.mat"
    where = f"{files.address}/{name}"
    variables = _variables(files.read(name), where)
    values, labels = variables.get("X"), variables.get("y")
    if values is not None:
        check_published(values, where)
    if (
        values is None
        or labels is None
        or values.shape[:-1] != (32, 32, 3)
        or labels.size != values.shape[-1]
    ):
        raise DatasetError(
            f"{where} does not hold X (bytes [32, 32, 3, N]) and y (N labels): it is not a file of "
            "SVHN's cropped digits (format 2)"
        )
    digits = labels.ravel().astype(np.int64)
    if digits.min() < 1 or digits.max() > 10:
        raise DatasetError(
            f"{where} has labels {digits.min()} to {digits.max()}, not 1 to 10: it is damaged or "
            "was changed; fetch it again"
        )
    names = tuple(str(digit) for digit in range(10))
    return split_of_bytes(request, values.transpose(3, 2, 0, 1), digits % 10, names)


def _variables(data: bytes, where: str) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    file: Any = io.BytesIO(data)  # the stubs know names of files only
    try:
        variables: dict[str, Any] = loadmat(file, variable_names=["X", "y"])
    except (MatReadError, NotImplementedError, ValueError, TypeError, OSError, EOFError) as error:
        raise DatasetError(
            f"{where} cannot be read as a MATLAB 5 file ({error}): fetch it again"
        ) from None
    return variables
