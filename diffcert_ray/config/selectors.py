"""The keys of [dataset] that choose images: at most one of them may be set."""

from collections.abc import Collection

from diffcert_ray.errors import ConfigError

SELECTORS = ("first", "every", "ids", "sample")


def the_selector(given: Collection[str]) -> str | None:
    """The selector among the keys that are set, if there is one.

    Raises:
        ConfigError: there are two.
    """
    selectors = [key for key in SELECTORS if key in given]
    if len(selectors) > 1:
        raise ConfigError(f"dataset.{' and dataset.'.join(selectors)} exclude each other: keep one")
    return selectors[0] if selectors else None
