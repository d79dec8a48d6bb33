"""The gallery of the page: a row for each image of each series and sigma, and small pictures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from diffcert_ray.certificates.radius import round_radius_down
from diffcert_ray.method.noise_key import noise_key
from diffcert_ray.report.series import Series
from diffcert_ray.report.thumbnails import Sprites, make_sprites


@dataclass(frozen=True)
class Pictures:
    """What the gallery may show of a dataset.

    Args:
        image: image_id -> float32 [C, H, W] in [0, 1], or None where the dataset is not at hand.
        ids: images that ``image`` knows.
        dataset: its name; series on another one are shown without pictures.
        class_names: name of each class, or () where they are not known.
        missing: why there are no pictures, or "".
    """

    image: Callable[[int], np.ndarray] | None = None
    ids: frozenset[int] = frozenset()
    dataset: str = ""
    class_names: tuple[str, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Gallery:
    """The gallery's data, ready for JSON.

    Args:
        data: blocks of columns, picture sizes and class names.
        sprites: data URIs of the pictures.
        note: a sentence about the pictures.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    sprites: tuple[str, ...] = ()
    note: str = ""


def make_gallery(series: Sequence[Series], pictures: Pictures) -> Gallery:
    """Columns and pictures of every image of some series on one dataset.

    Radii and p_low are rounded down. Noisy copies are not stored: the page makes them from the
    picture and the same noise that the votes saw.
    """
    parts = [(one, *part) for one in series for part in one.by_sigma()]
    blocks = [_block(*part) for part in parts]
    datasets = [one.dataset for one, *_ in parts]
    data: dict[str, Any] = {"blocks": blocks, "classes": list(pictures.class_names)}
    for block, dataset in zip(blocks, datasets, strict=True):
        block["pictured"] = dataset == pictures.dataset
    shown = sorted({i for b in blocks if b["pictured"] for i in b["id"]} & pictures.ids)
    if pictures.image is None or not shown:
        return Gallery(data, (), pictures.missing or "The dataset is not at hand: no pictures.")
    sprites = make_sprites(shown, pictures.image)
    channels, height, width = pictures.image(shown[0]).shape
    data["pictures"] = {
        "ids": shown,
        "height": sprites.height,
        "width": sprites.width,
        "factor": sprites.factor,
        "shape": [channels, height, width],
    }
    return Gallery(data, sprites.data, _note(sprites))


def _note(sprites: Sprites) -> str:
    return (
        f"Pictures: {sprites.encoding}. The noisy copy is that of the chosen estimation vote: the "
        "page makes its noise from the same address as the run did, clipped to [0, 1] to be shown."
    )


def _block(series: Series, sigma: float, rows: pd.DataFrame) -> dict[str, Any]:
    rows = rows.sort_values("image_id")
    known = series.seed is not None and sigma > 0
    return {
        "series": series.name,
        "sigma": sigma,
        "key": list(noise_key(series.seed, sigma)) if known and series.seed is not None else None,
        "id": [int(i) for i in rows["image_id"]],
        "label": [int(c) for c in rows["label"]],
        "predicted": [int(c) for c in rows["predicted"]],
        "radius": _numbers(rows["radius"], 4),
        "p_low": _numbers(rows["p_low"], 5),
        "votes": _numbers(rows["n"] + rows["n0_used"], 0),
        "nfe": _numbers(rows["nfe"], 0),
    }


def _numbers(values: pd.Series, decimals: int) -> list[float] | None:
    """Numbers as JSON knows them, rounded down, or None where none of them is known."""
    if values.isna().any():
        return None
    exact = [round_radius_down(v, decimals) for v in values]
    return [int(text) if decimals == 0 else float(text) for text in exact]
