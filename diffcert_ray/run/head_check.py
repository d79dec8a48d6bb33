"""Whether the head of a run is one of its network, sigmas and classes, and has not seen its images.

A certificate holds whatever a head proposes. But a head of another network, or at another noise,
proposes at random, and one that was trained on an image flatters the accuracy on it.
"""

from collections.abc import Iterable, Mapping

from diffcert_ray.config.tables import Config
from diffcert_ray.datasets import Dataset
from diffcert_ray.errors import ConfigError, PixelsError

SHOWN_IDS = 5


def check_head(
    config: Config,
    weights: Mapping[str, str],
    dataset: Dataset,
    image_ids: Iterable[int],
    shas: Mapping[int, str],
) -> None:
    """Refuse a head that was made for something else, or from what is to be certified.

    Args:
        config: of the run.
        weights: sha256 of each checkpoint by role.
        dataset: the run's images.
        image_ids: those that are certified and can be read.
        shas: hash of the pixels by image id, as far as they are known.

    Raises:
        ConfigError: another network, sigma or number of classes, or images that it was trained on.
    """
    if not config.uses_head:
        return
    from diffcert_ray.checkpoints.head_file import head_path, raced_with, read_head_facts

    name = str(config.sift.head)
    path = head_path(name, weights["head"], config.execution.storage_options)
    facts = read_head_facts(path)
    network = weights.get("unconditional", weights["denoiser"])
    if facts.denoiser != network:
        raise ConfigError(
            f"sift.head {name!r} was trained on the network {facts.denoiser[:12]}, the "
            f"unconditional step of this run is by {network[:12]}: train a head on it with "
            '`diffcert tune`, or set sift.rule = "paired-z"'
        )
    if missing := [s for s in config.votes.sigmas if s not in facts.sigmas]:
        raise ConfigError(
            f"votes.sigmas has {', '.join(f'{s:g}' for s in missing)}, sift.head {name!r} was "
            f"trained for sigma {', '.join(f'{s:g}' for s in facts.sigmas)}: train a head for it "
            "with `diffcert tune`, or leave the sigma out"
        )
    if facts.num_classes != dataset.num_classes:
        raise ConfigError(
            f"sift.head {name!r} was trained on {facts.num_classes} classes, dataset "
            f"{dataset.name} has {dataset.num_classes}: train a head with `diffcert tune`"
        )
    races = config.method.name != "shortlist-classify"
    if races and facts.raced is not None and facts.raced != (asked := raced_with(config)):
        differ = [k for k in asked if facts.raced.get(k) != asked[k]]
        shown = ", ".join(f"{k} {facts.raced.get(k)!r} against {asked[k]!r}" for k in differ)
        raise ConfigError(
            f"sift.head {name!r} foretells races of other votes than this run's ({shown}): train "
            "one for these with `diffcert tune`, or take the method and noise_levels that it "
            "was trained for"
        )
    seen = [i for i in image_ids if _sha(dataset, i, shas) in facts.image_shas]
    if seen:
        shown = ", ".join(map(str, seen[:SHOWN_IDS])) + ("..." if len(seen) > SHOWN_IDS else "")
        raise ConfigError(
            f"sift.head {name!r} was trained on {len(seen)} of the images to certify (image_id "
            f"{shown}): the certificates would hold, their accuracy would flatter; train a head "
            "on other images (`diffcert tune --images ...`), or leave these out"
        )


def _sha(dataset: Dataset, image_id: int, shas: Mapping[int, str]) -> str | None:
    """The hash of an image's pixels; None where they cannot be read."""
    try:
        return shas[image_id] if image_id in shas else dataset.image_sha(image_id)
    except PixelsError:
        return None
