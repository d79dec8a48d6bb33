"""Whose votes a stored file holds: the votes_id and the method version of its run."""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from diffcert_ray.errors import StoreError

VOTES_ID_KEY = b"diffcert.votes_id"
METHOD_VERSION_KEY = b"diffcert.method_version"
CHECKSUM_DIGITS = 16  # of the sha256 of a file's bytes, in its name
UNMARKED_VERSION = 1  # of the method: its files say neither whose they are nor their checksum


def checksum(data: bytes) -> str:
    """What the name of a stored file says about its bytes."""
    return hashlib.sha256(data).hexdigest()[:CHECKSUM_DIGITS]


@dataclass(frozen=True)
class Origin:
    """The run that files are of.

    Args:
        votes_id: hash of everything that its votes depend on.
        method_version: of the program's method that casts them.
        notes_kinds: the run names the numerics kinds of its units in notes, which runs begun
            before there were any do not.
    """

    votes_id: str = ""
    method_version: int = 0
    notes_kinds: bool = False

    @classmethod
    def of_document(cls, run_document: bytes) -> "Origin":
        """The origin that a run.toml states; StoreError if it is no TOML."""
        try:
            tables = tomllib.loads(run_document.decode())
            version = tables.get("votes_identity", {}).get("method_version", 0)
            notes_kinds = tables.get("notes_kinds", False) is True
            return cls(str(tables.get("votes_id", "")), int(version), notes_kinds)
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(
                f"run.toml does not say whose votes the run holds ({error}): restore it from a copy"
            ) from error

    @property
    def unmarked(self) -> bool:
        """Whether files may lack marks and checksums: those of the time before there were any."""
        return self.method_version == UNMARKED_VERSION

    def metadata(self) -> dict[bytes, bytes]:
        """What each file of this run says in its schema."""
        version = str(self.method_version).encode()
        return {VOTES_ID_KEY: self.votes_id.encode(), METHOD_VERSION_KEY: version}

    def why_foreign(self, metadata: Mapping[bytes, bytes]) -> str:
        """Why a file with this schema metadata is of another run, or "" if it is this one's."""
        if self.unmarked and VOTES_ID_KEY not in metadata and METHOD_VERSION_KEY not in metadata:
            return ""
        return self.why_other(
            metadata.get(VOTES_ID_KEY, b"").decode(errors="replace"),
            metadata.get(METHOD_VERSION_KEY, b"").decode(errors="replace"),
        )

    def why_other(self, votes_id: str, method_version: str) -> str:
        """Why what states these two is of another run, or "" if it is this one's."""
        if votes_id == self.votes_id and method_version == str(self.method_version):
            return ""
        return (
            f"foreign: it holds votes of votes_id {votes_id or 'unknown'}, method version "
            f"{method_version or 'unknown'}, and this run those of {self.votes_id or 'unknown'}, "
            f"{self.method_version}"
        )
