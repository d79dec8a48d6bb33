"""Votes on one worker: an item in, its result out, whatever the base classifier is."""

import time
from collections.abc import Callable

import numpy as np

from diffcert_ray.engine.item_run import ItemRun
from diffcert_ray.engine.item_votes import CastVotes
from diffcert_ray.engine.trained_votes import cast_by_trained
from diffcert_ray.engine.watch import Watch, unwatched
from diffcert_ray.method.base_classifier import BaseClassifier
from diffcert_ray.method.diffusion_base import DiffusionBase
from diffcert_ray.method.trained_base import TrainedBase
from diffcert_ray.votes.units import Item, Result


def evaluate_item(
    base: BaseClassifier,
    item: Item,
    image: Callable[[int], np.ndarray],
    *,
    clock: Callable[[], float] = time.perf_counter,
    watch: Watch = unwatched,
) -> Result:
    """Evaluate one item; its counts depend on its votes only.

    ``image`` gives float32 [C, H, W] in [0, 1] by image_id, ``clock`` seconds.

    Raises:
        ValueError: the item is about another sigma than the base classifier.
    """
    if item.sigma != base.sigma:
        raise ValueError(
            f"item {item.item_id} is at sigma {item.sigma}, the worker at {base.sigma}"
        )
    started = clock()
    cast = _cast(base, item, image, watch)
    return Result(
        item_id=item.item_id,
        tallies=cast.votes.tallies(cast.winner, cast.nfe),
        open_votes=cast.open_votes,
        nfe=int(cast.nfe.sum()),
        padded=cast.padded,
        seconds=clock() - started,
        device=base.device,
    )


def evaluate_votes(
    base: BaseClassifier, item: Item, image: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, int]:
    """The class of every vote of an item without ``hand_back_levels``, one by one.

    Returns:
        int64 [N], classes in the order of the item's votes (-2: unresolved), and the evaluations.
    """
    cast = _cast(base, item, image, unwatched)
    return cast.winner, int(cast.nfe.sum())


def _cast(
    base: BaseClassifier, item: Item, image: Callable[[int], np.ndarray], watch: Watch
) -> CastVotes:
    """The one place that knows how each kind of base classifier fills its batches."""
    match base:
        case DiffusionBase():
            return ItemRun(base, item, image, watch).finish()
        case TrainedBase():
            return cast_by_trained(base, item, image)
    raise TypeError(f"{type(base).__name__} is no base classifier")
