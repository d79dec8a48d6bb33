"""run.toml: the configuration that a run folder belongs to, its two hashes, and what may change."""

import math
import os
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import tomli_w

from diffcert_ray.config import identity
from diffcert_ray.config.identity import canonical_hash, plan_identity, votes_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config, NumericsConfig
from diffcert_ray.errors import ConfigError
from diffcert_ray.run.kind import kind_of

GRID_SINCE = 2  # version of the method
WEIGHTS = "weights."
VERSIONED = ("diffcert_ray", "torch", "ray", "numpy", "scipy", "pyarrow")


@dataclass(frozen=True)
class RunDocument:
    """What a run folder says about itself."""

    config: Config  # of the run's first start, without storage options
    votes_identity: Mapping[str, Any]  # everything that a vote depends on, by key
    votes_id: str  # its hash
    plan_id: str  # hash of what was asked for at the first start
    dataset: Mapping[str, Any]  # name, split, fingerprint, number of classes and image shape
    versions: Mapping[str, str]  # of this package and of what it computes with
    document_id: str  # hash of both ids, dataset and versions; "" in runs begun before it was kept
    notes_kinds: bool = False  # whether the numerics kinds of its units are noted in kinds/
    calibration: Mapping[str, Any] = field(default_factory=dict)  # what it compared, if it did

    @staticmethod
    def of(
        config: Config,
        weights: Mapping[str, str],
        dataset: Mapping[str, Any],
        method_version: int | None = None,  # of a stored run to compare with; else this program's
    ) -> "RunDocument":
        """The document of a run about to start, with final [numerics]."""
        votes = votes_identity(config, weights, method_version)
        votes_id = canonical_hash(votes)
        plan_id = canonical_hash(plan_identity(config, votes_id))
        versions = {name: _version(name) for name in VERSIONED}
        versions["python"] = platform.python_version()
        document = RunDocument(
            config, votes, votes_id, plan_id, dataset, versions, "", notes_kinds=True
        )
        return replace(document, document_id=document._whole())

    def calibrated(self, compared: Mapping[str, Any]) -> "RunDocument":
        """The same of a run whose numerics were chosen by comparing these."""
        document = replace(self, calibration=compared)
        return replace(document, document_id=document._whole())

    def _whole(self) -> str:
        """Hash of all that it says and that nobody has a reason to change."""
        said: dict[str, Any] = {"votes_id": self.votes_id, "plan_id": self.plan_id}
        said |= {"dataset": self.dataset, "versions": self.versions}
        if self.notes_kinds:  # runs begun before there were notes keep their hash
            said["notes_kinds"] = True
        if self.calibration:
            said["calibration"] = self.calibration
        return canonical_hash(_without_none(said))

    def to_bytes(self) -> bytes:
        """TOML, without execution settings that may hold credentials."""
        tables = self.config.model_dump(mode="json")
        tables["execution"].pop("storage_options")
        document = {
            "votes_id": self.votes_id,
            "plan_id": self.plan_id,
            "document_id": self.document_id,
            **({"notes_kinds": True} if self.notes_kinds else {}),
            "config": tables,
            "votes_identity": dict(self.votes_identity),
            "dataset": dict(self.dataset),
            "versions": dict(self.versions),
            **({"calibration": dict(self.calibration)} if self.calibration else {}),
        }
        return tomli_w.dumps(_without_none(document)).encode()

    @staticmethod
    def from_bytes(data: bytes) -> "RunDocument":
        """Read a run.toml.

        Raises:
            ConfigError: it is not one, or was changed after it was written.
        """
        try:
            tables = tomllib.loads(data.decode())
            document = RunDocument(
                load_config(tables["config"]),
                tables["votes_identity"],
                tables["votes_id"],
                tables["plan_id"],
                tables["dataset"],
                tables["versions"],
                tables.get("document_id", ""),
                tables.get("notes_kinds", False) is True,
                dict(tables.get("calibration", {})),
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"run.toml is not a run document of this version: {error}; the folder was "
                "written by "
                "another version or changed by hand: restore it from a copy, or give another folder"
            ) from None
        document._check_hashes()
        document._check_identity()
        return document

    def _check_hashes(self) -> None:
        """Refuse a document whose hashes are not those of what it says.

        A larger n written into it would let a fixed-n bound be extended after a look, fewer images
        in its dataset let those without a certificate disappear.
        """
        first_version = self.method_version == 1
        for name, stated, actual in (
            ("votes_id", self.votes_id, canonical_hash(self.votes_identity)),
            ("plan_id", self.plan_id, canonical_hash(plan_identity(self.config, self.votes_id))),
            ("document_id", self.document_id, self._whole()),
        ):
            if stated != actual and not (name == "document_id" and not stated and first_version):
                raise ConfigError(
                    f"run.toml states {name} {stated}, but what it says has {actual}: it was "
                    "changed by hand, or written by another version; restore it from a copy, or "
                    "give another folder"
                )

    def _check_identity(self) -> None:
        """Refuse a document whose [config] is not that of its votes: a seed changed in one place.

        Whatever no vote depends on, such as the paths of checkpoint and images, may be changed.
        """
        mine = dict(self.votes_identity)
        roles = [key.removeprefix(WEIGHTS) for key in mine if key.startswith(WEIGHTS)]
        weights = {role: mine[WEIGHTS + role] for role in roles if "." not in role}
        theirs = _without_none(votes_identity(self.config, weights, self.method_version))
        keys = {*mine, *theirs}
        if not self.castable:  # another version may have had other keys
            keys &= {*mine} & {*theirs}
        for key in sorted(keys):
            stated, actual = (canonical_hash({"": m.get(key)}) for m in (mine, theirs))
            if stated != actual:
                raise ConfigError(
                    f"run.toml states {key} {mine.get(key)!r} for its votes, but its [config] "
                    f"gives {theirs.get(key)!r}: it was changed by hand; restore it from a copy, "
                    "or give another folder"
                )

    def with_storage_options(self, options: Mapping[str, Any]) -> "RunDocument":
        """The same for a process that reaches store and dataset with these options."""
        execution = self.config.execution.model_copy(update={"storage_options": dict(options)})
        return replace(self, config=self.config.model_copy(update={"execution": execution}))

    def with_dataset_path(self, path: str) -> "RunDocument":
        """The same for a process that has the images elsewhere; a label map is looked for there."""
        moved: dict[str, Any] = {"path": path}
        label_map = self.config.dataset.label_map
        if isinstance(label_map, str) and not os.path.exists(label_map):
            beside = os.path.join(path, os.path.basename(label_map))
            moved |= {"label_map": beside} if os.path.exists(beside) else {}
        dataset = self.config.dataset.model_copy(update=moved)
        return replace(self, config=self.config.model_copy(update={"dataset": dataset}))

    def adopt_numerics(self, config: Config) -> Config:
        """The configuration with this run's [numerics], which every driver of the run must use."""
        numerics = NumericsConfig.model_validate(self.config.numerics.model_dump())
        return config.model_copy(update={"numerics": numerics})

    @property
    def method_version(self) -> int:
        """Version of the method that cast the run's votes."""
        return int(self.votes_identity.get("method_version", 0))

    @property
    def dimensions(self) -> int:
        """Numbers in the noise of a vote, where it is on a grid; 0 in runs of before there was one.

        Whatever they take off a certificate is 0 for 0.
        """
        if self.method_version < GRID_SINCE:
            return 0
        return math.prod(int(side) for side in self.dataset["image_shape"])

    @property
    def castable(self) -> bool:
        """Whether this program casts the run's votes: it knows one version of the method."""
        return self.method_version == identity.METHOD_VERSION

    def check_castable(self) -> None:
        """Refuse to cast votes for a run of another version of the method (ConfigError)."""
        if not self.castable:
            now = identity.METHOD_VERSION
            remedy = "give another run folder (--run)"
            if self.method_version > now:
                remedy = f"upgrade diffcert_ray, or {remedy}"
            raise ConfigError(
                f"this run's votes are of method version {self.method_version}, and this program "
                f"casts those of version {now}: other noise, other votes, so it can neither "
                "continue the run nor cast its votes again (report, status, export and verify "
                f"without replay still read it); {remedy}"
            )

    def check_continues(self, other: "RunDocument") -> None:
        """Refuse a start that would mix other votes, or another fixed n, into this run.

        Args:
            other: the document of the start, with this run's [numerics].

        Raises:
            ConfigError: naming every differing key, both values and the remedy.
        """
        if other.method_version != self.method_version:
            self.check_castable()
        mine, theirs = self.votes_identity, other.votes_identity
        differing = [k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]
        if differing:
            shown = "; ".join(f"{k}: run {mine.get(k)!r}, now {theirs.get(k)!r}" for k in differing)
            raise ConfigError(
                f"this run folder holds votes of another configuration ({shown}); give another run "
                "folder (--run), or the configuration that the run was started with"
            )
        kind = kind_of(self.config)
        for key, before in kind.fixed(self.config).items():
            now = kind.fixed(other.config).get(key)
            if before != now:
                raise ConfigError(
                    f"{key} is {now!r}, but this run was started with {before!r}, and it is fixed "
                    "before an image's first estimation vote or draw; give another run folder "
                    "(--run)"
                )
        if self.dataset.get("fingerprint") != other.dataset.get("fingerprint"):
            raise ConfigError(
                f"the dataset's fingerprint is {other.dataset.get('fingerprint')}, the run "
                "was started "
                f"with {self.dataset.get('fingerprint')}: the data has changed; give another "
                "run folder"
            )


def _without_none(tables: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null: an absent key is a default."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in tables.items()
        if value is not None
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # Ray may be missing where only one process is used
        return "absent"
