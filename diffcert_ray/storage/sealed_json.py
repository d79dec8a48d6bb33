"""A JSON document that holds the checksum of its own bytes, so that any changed byte is noticed.

For files whose name must not depend on their content, since the first to take it wins.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

KEY = "sha256_with_zeros_here"
ZEROS = "0" * 64
SEAL = re.compile(rb'^\{\n "' + KEY.encode() + rb'": "([0-9a-f]{64})"')


def seal(document: Mapping[str, Any]) -> bytes:
    """The document as JSON; its first key is the sha256 of the whole with zeros in its place."""
    blank = json.dumps({KEY: ZEROS, **document}, indent=1).encode()
    return blank.replace(ZEROS.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


def unseal(data: bytes, *, required: bool = True) -> dict[str, Any]:
    """The document from its bytes.

    Args:
        data: of ``seal``.
        required: without it, a document that was written before there were seals is taken as it is.

    Raises:
        ValueError: its bytes are not those that were sealed, or it is no JSON object.
    """
    match = SEAL.match(data)
    if match:
        blank = data[: match.start(1)] + ZEROS.encode() + data[match.end(1) :]
        if hashlib.sha256(blank).hexdigest().encode() != match[1]:
            raise ValueError("its bytes are not those of its checksum")
    elif required:
        raise ValueError("it has no checksum of its bytes")
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    document.pop(KEY, None)
    return document
