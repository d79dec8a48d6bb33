"""OpenAI's names for the tensors of an ADM network, turned into those of `DhariwalUNet`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from diffcert_ray.denoisers.configuration import EdmConfiguration

_BLOCK = {
    "in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine",
    "out_layers.0": "norm1", "out_layers.3": "conv1", "skip_connection": "skip",
}  # fmt: skip
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
_REST = {
    "time_embed.0": "map_layer0", "time_embed.2": "map_layer1", "label_emb": "map_label",
    "out.0": "out_norm", "out.2": "out_conv",
}  # fmt: skip


def from_openai_names(
    tensors: Mapping[str, Tensor], configuration: EdmConfiguration
) -> dict[str, Tensor]:
    """Rename the tensors of improved-diffusion, guided-diffusion or consistency_models to ours.

    The layers are the same and come in the same order; only where blocks are counted differs: there
    a level's last block also goes up, here going up begins the next level. Attention's 1d
    convolutions become 2d ones, and the table of class embeddings a linear layer. Unknown names are
    kept.
    """
    prefixes = dict(_prefixes(configuration)) | _REST
    renamed = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        ours = prefixes.get(prefix)
        if ours is None:
            renamed[name] = tensor
            continue
        if ours == "map_label":
            tensor = tensor.T
        elif tensor.ndim == 3:
            tensor = tensor[..., None]
        renamed[f"model.{ours}.{kind}"] = tensor
    return renamed


def _prefixes(c: EdmConfiguration) -> Iterator[tuple[str, str]]:
    """(their prefix, ours) of every layer on the way down and up."""
    per_level = c.num_blocks + 1
    resolutions = [c.img_resolution >> level for level in range(len(c.channel_mult))]
    convolutions = c.resampling == "convolution"
    for level, res in enumerate(resolutions):
        start = f"input_blocks.{level * per_level}.0"
        if level == 0:
            yield start, f"enc.{res}x{res}_conv"
        elif convolutions:
            yield f"{start}.op", f"enc.{res}x{res}_down"
        else:
            yield from _block(start, f"enc.{res}x{res}_down")
        for i in range(c.num_blocks):
            theirs = f"input_blocks.{level * per_level + 1 + i}"
            yield from _block_and_attention(theirs, f"enc.{res}x{res}_block{i}")
    lowest = f"dec.{resolutions[-1]}x{resolutions[-1]}"
    yield from _block_and_attention("middle_block", f"{lowest}_in0")
    yield from _block("middle_block.2", f"{lowest}_in1")
    for level, res in enumerate(reversed(resolutions)):
        for i in range(per_level):
            theirs = f"output_blocks.{level * per_level + i}"
            yield from _block_and_attention(theirs, f"dec.{res}x{res}_block{i}")
        if level < len(resolutions) - 1:
            last = 2 if res in c.attn_resolutions else 1
            up, above = f"{theirs}.{last}", f"dec.{2 * res}x{2 * res}_up"
            if convolutions:
                yield f"{up}.conv", above
            else:
                yield from _block(up, above)


def _block_and_attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield from _block(f"{theirs}.0", ours)
    for part, name in _ATTENTION.items():
        yield f"{theirs}.1.{part}", f"{ours}.{name}"


def _block(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for part, name in _BLOCK.items():
        yield f"{theirs}.{part}", f"{ours}.{name}"
