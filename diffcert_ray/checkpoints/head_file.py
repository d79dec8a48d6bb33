"""Heads that propose classes, as one safetensors file: a head for each sigma, and whence they are.

The file says which network the heads were trained on, at which sigmas and on which images, so that
a run can refuse a head of another network, of another sigma, or of the images that it certifies.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffcert_ray.checkpoints.files import file_sha256, local_path, shipped
from diffcert_ray.checkpoints.tensors import safetensors_of
from diffcert_ray.config.tables import Config
from diffcert_ray.denoisers.lag_prior import LagPrior
from diffcert_ray.denoisers.shortlist_head import ShortlistHead
from diffcert_ray.errors import CheckpointError, ConfigError, nearest

METADATA_KEY = "diffcert_ray_heads"
FORMAT = 2
_IMAGES = "images"
_SHA_BYTES = 8  # of a `pixels_sha`


@dataclasses.dataclass(frozen=True)
class HeadFacts:
    """What a file of heads says of itself.

    Attributes:
        denoiser: sha256 of the network whose activations the heads look at.
        sigmas: smoothing noises that there is a head for, pixel units.
        num_classes: K.
        image_shas: hashes of the pixels of all images that the heads have seen.
        recipe: how they were trained.
        raced: method and noise levels of the votes that their priors of lags were measured on;
            None where they have none.
    """

    denoiser: str
    sigmas: tuple[float, ...]
    num_classes: int
    image_shas: frozenset[str]
    recipe: Mapping[str, Any]
    raced: Mapping[str, Any] | None


def raced_with(config: Config) -> dict[str, Any]:
    """What lags of classes depend on beside the network, the sigma and the data: `HeadFacts.raced`.

    The number of levels is not in it: a lag is a sum over all, whose weights add up to the same.
    """
    levels = config.noise_levels.model_dump(exclude={"levels"})
    return {"method": config.method.name, **levels}


def shipped_heads() -> dict[str, Path]:
    """The heads that come with the package, by name."""
    return shipped("models/heads")


def head_path(
    source: str,
    sha256: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Find a file of heads, fetching it first if it is at a remote address.

    Args:
        source: name of a shipped one, path, or address that fsspec knows.
        sha256: what its hash is known to be; a copy that this machine has is then taken unasked.
        storage_options: what fsspec's filesystem takes, for a remote address.

    Raises:
        CheckpointError: there is no such file.
    """
    known = shipped_heads()
    path = local_path(source, known, file_sha256, sha256, storage_options)
    if not path.is_file():
        raise CheckpointError(
            f"sift.head {source!r} is no file: give the path or address of one that "
            f"`diffcert tune` wrote, or the name of a shipped one{nearest(source, known)}"
        )
    return path


def head_sha256(source: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """The sha256 of a file of heads (`sha256sum FILE`); arguments as `head_path`."""
    return file_sha256(head_path(source, storage_options=storage_options))


def save_heads(
    path: str | Path,
    heads: Mapping[float, ShortlistHead],
    *,
    denoiser: str,
    image_shas: Iterable[str],
    recipe: Mapping[str, Any],
    raced: Mapping[str, Any] | None = None,
) -> None:
    """Write heads of one network as one file, complete or not at all.

    Args:
        path: the file, ending in ".safetensors"; replaced if it exists.
        heads: by sigma, pixel units; at least one, all with the same classes.
        denoiser: sha256 of the network.
        image_shas: `pixels_sha` of every image that they have seen.
        recipe: how they were made, JSON-able.
        raced: see `HeadFacts`, JSON-able.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"the path of heads {str(path)!r} must end in .safetensors")
    shapes = {
        repr(float(sigma)): {
            "num_classes": head.num_classes,
            "image_shape": list(head.image_shape),
            "bottom": None if head.bottom is None else list(head.bottom),
            "grid": head.grid,
            "hidden": head.hidden,
            "lag_prior": None if raced is None else dataclasses.asdict(head.lag_prior),
        }
        for sigma, head in heads.items()
    }
    content = {
        "format": FORMAT,
        "denoiser": denoiser,
        "heads": shapes,
        "recipe": dict(recipe),
        "raced": None if raced is None else dict(raced),
    }
    tensors = {
        f"{sigma!r}.{name}": tensor.detach().float().cpu().contiguous()
        for sigma, head in ((float(s), h) for s, h in heads.items())
        for name, tensor in head.state_dict().items()
    }
    seen = b"".join(bytes.fromhex(sha) for sha in sorted(set(image_shas)))
    images = np.frombuffer(seen, np.uint8).reshape(-1, _SHA_BYTES)
    tensors[_IMAGES] = torch.from_numpy(images.copy())
    data = save(tensors, metadata={METADATA_KEY: json.dumps(content, sort_keys=True)})
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_head_facts(path: Path) -> HeadFacts:
    """What a file says of its heads, without their weights.

    Raises:
        CheckpointError: it is damaged, or holds no heads.
    """
    content = _content(path)
    try:
        with safe_open(path, framework="numpy") as file:
            images = np.asarray(file.get_tensor(_IMAGES))
    except SafetensorError as error:
        raise _damaged(path, error) from None
    shas = frozenset(bytes(row).hex() for row in images)
    heads = content["heads"]
    classes = {int(h["num_classes"]) for h in heads.values()}
    if len(classes) != 1:
        raise _damaged(path, "its heads have different classes")
    sigmas = tuple(sorted(map(float, heads)))
    told = (content["denoiser"], sigmas, classes.pop(), shas, content["recipe"])
    return HeadFacts(*told, content.get("raced"))


def load_heads(
    source: str,
    *,
    device: str = "cpu",
    sha256: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> dict[float, ShortlistHead]:
    """The heads of a file by sigma, in evaluation mode.

    Raises:
        CheckpointError: no such file, damaged, or another one than the driver's.
    """
    path = head_path(source, sha256, storage_options)
    if sha256 is not None and (actual := file_sha256(path)) != sha256.lower():
        raise CheckpointError(
            f"sift.head {source!r} has sha256 {actual}, not {sha256}: this machine has another "
            "file than the driver; copy the driver's here"
        )
    shapes = _content(path)["heads"]
    tensors = safetensors_of(path, f"sift.head {path}")
    heads = {}
    for sigma, shape in shapes.items():
        own = {n.removeprefix(f"{sigma}."): t for n, t in tensors.items() if n.startswith(sigma)}
        try:
            with torch.random.fork_rng(devices=[]):
                head = _shaped(shape)
            head.load_state_dict(own)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise _damaged(path, error) from None
        heads[float(sigma)] = head.to(device).eval().requires_grad_(False)
    return heads


def head_at(heads: Mapping[float, ShortlistHead], sigma: float) -> ShortlistHead:
    """The head for a sigma, pixel units; ConfigError where there is none."""
    if sigma not in heads:
        raise ConfigError(
            f"votes.sigmas has {sigma:g}, sift.head was trained for sigma "
            f"{', '.join(f'{s:g}' for s in sorted(heads))}: train one (`diffcert tune`), or "
            "leave the sigma out"
        )
    return heads[sigma]


def _shaped(shape: Mapping[str, Any]) -> ShortlistHead:
    channels, height, width = map(int, shape["image_shape"])
    bottom = shape["bottom"]
    inner = None if bottom is None else (int(bottom[0]), int(bottom[1]), int(bottom[2]))
    head = ShortlistHead(
        int(shape["num_classes"]),
        (channels, height, width),
        inner,
        int(shape["grid"]),
        int(shape["hidden"]),
    )
    if (prior := shape["lag_prior"]) is not None:
        head.lag_prior = LagPrior(**{name: float(value) for name, value in prior.items()})
    return head


def _content(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        content = json.loads(text) if text else None
    except (SafetensorError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    wanted = {"denoiser": str, "heads": dict, "recipe": dict}
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"sift.head {path} holds no heads of format {FORMAT}: give a file that "
            "`diffcert tune` wrote"
        )
    if not all(isinstance(content.get(k), kind) for k, kind in wanted.items()):
        raise _damaged(path, "its description is not complete")
    return content


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(f"sift.head {path} is damaged ({reason}): fetch or train it again")
