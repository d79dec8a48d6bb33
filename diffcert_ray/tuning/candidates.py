"""The settings of [sift] that are tried, and the two that they are compared with."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from diffcert_ray.config.tables import Config, SiftConfig
from diffcert_ray.errors import ConfigError

MANY_CLASSES = 100  # above so many the full vote by `exact` would be most of the time
FULL = "full"  # the name of the votes in full
AS_CONFIGURED = "as configured"
RACE_KEYS = ("z", "first_ratio", "first_level")
SHORTLIST_KEYS = ("z", "first_level", "least_p")
ALL_KEYS = (*RACE_KEYS, "least_p")
CAUTIOUS = {"rule": "paired-z", "z": 3.5, "first_ratio": 4.0, "first_level": 0.72}
"""The race of all classes in place of the full vote."""


@dataclass(frozen=True)
class Setting:
    """A [sift] table under a name that is also the name of its folder."""

    name: str
    sift: SiftConfig

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a vote depends on."""
        return SHORTLIST_KEYS if self.sift.rule == "shortlist" else RACE_KEYS

    def said(self) -> str:
        """The values of these keys in a few words."""
        if self.sift.rule not in ("shortlist", "paired-z"):
            return self.sift.rule
        words = {"first_ratio": "ratio", "first_level": "level", "least_p": "p"}
        table = self.sift.model_dump()
        return ", ".join(f"{words.get(k, k)} {table[k]:g}" for k in self.keys)


def full_votes(classes: int, asked: str | None = None) -> Setting:
    """What an agreement is with: the full vote by ``exact``, or by a cautious race of all classes.

    Args:
        classes: K.
        asked: "exact" or "paired-z"; by default what the number of classes suggests.
    """
    rule = asked or ("exact" if classes <= MANY_CLASSES else "paired-z")
    table = CAUTIOUS if rule == "paired-z" else {"rule": "exact"}
    return Setting(FULL, SiftConfig.model_validate(table))


def configured(config: Config) -> Setting | None:
    """The configuration's own rule, where it is one that can be compared without its head."""
    rule = config.sift.rule
    return Setting(AS_CONFIGURED, config.sift) if rule in ("paired-z", "threshold") else None


def usual_candidates(classes: int, *, head: bool) -> list[Setting]:
    """The settings that are tried unless a file names others.

    Args:
        classes: K: with more classes each is given less probability.
        head: whether there is a head, for the rule shortlist.
    """
    if not head:
        return combinations(
            "paired-z",
            {
                "z": (1.5, 2.0, 2.5, 3.0),
                "first_ratio": (2.0, 3.0),
                "first_level": (1 / 3, 0.5, 0.72),
            },
        )
    fewer = min(1.0, (10 / classes) ** 0.75)
    return combinations(
        "shortlist",
        {
            "z": (1.0, 1.4, 1.8, 2.25),
            "first_level": (0.4, 0.72),
            "least_p": tuple(float(f"{p * fewer:.1g}") for p in (0.05, 0.02, 0.01)),
        },
    )


def read_candidates(path: str, *, head: bool) -> list[Setting]:
    """The settings that a TOML file names: keys of [sift], where lists stand for all values.

    Args:
        path: the file.
        head: whether there is a head, for the rule shortlist.

    Raises:
        ConfigError: no such file, no TOML, keys that the rule does not have, or values out of
            range.
    """
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--candidates {path!r} cannot be read as TOML: {error}") from None
    rule = str(table.pop("rule", "shortlist" if head else "paired-z"))
    known = {"paired-z": RACE_KEYS, "shortlist": SHORTLIST_KEYS if head else ()}.get(rule, ())
    if not known or set(table) - set(known):
        raise ConfigError(
            f"--candidates {path!r} has rule {rule!r} with {', '.join(table) or 'no keys'}: give "
            f"lists for {', '.join(known or RACE_KEYS)}"
            + ("" if head else ', of rule "paired-z": there is no head')
        )
    return combinations(rule, table)


def combinations(rule: str, lists: Mapping[str, Any]) -> list[Setting]:
    """All combinations of some values of keys of [sift]; ConfigError says what is out of range."""
    values = [v if isinstance(v, list | tuple) else [v] for v in lists.values()]
    found = []
    for chosen in itertools.product(*values):
        table = dict(zip(lists, chosen, strict=True))
        try:
            sift = SiftConfig.model_validate({"rule": rule, **table})
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"candidate {table}: {first['loc'][0]}: {first['msg']}") from None
        found.append(Setting("", sift))
    if not found:
        raise ConfigError(f"candidates {dict(lists)} name no setting: give each key a value")
    return [Setting(_folder(s), s.sift) for s in found]


def _folder(setting: Setting) -> str:
    """A name for a folder: the rule and its values."""
    table = setting.sift.model_dump()
    return "-".join([setting.sift.rule, *(f"{k}-{table[k]:.6g}" for k in setting.keys)])
