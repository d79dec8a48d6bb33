"""Writes checkpoints in the published EDM format: whole objects with their classes' source."""

import pickle
import sys
import types
from contextlib import contextmanager

import torch
from torch import nn

BUFFERS = ("resample_filter", "freqs", "u")


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a persistent object was reconstructed")


class EasyDict(dict):
    """As the published one: a dict that is pickled as an object of its own class."""


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


class Persistent(nn.Module):
    """A module that is pickled as the published ones are, with source code that nobody may run."""

    def __init__(self, class_name, source, **keywords):
        super().__init__()
        self.__dict__["_stub"] = (class_name, source)
        self._init_args = ()
        self._init_kwargs = EasyDict(keywords)

    def __reduce__(self):
        class_name, source = self._stub
        state = {key: value for key, value in self.__dict__.items() if key != "_stub"}
        meta = {
            "type": "class", "version": 6, "module_src": source, "class_name": class_name,
            "state": state,
        }  # fmt: skip
        return (_reconstruct_persistent_obj, (meta,))


@contextmanager
def published_modules():
    """The names under which the published checkpoints look up what they are made of."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    made = {name: types.ModuleType(name) for name in names}
    made["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    made["dnnlib.util"].EasyDict = EasyDict
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def network_of(state, outer, inner, *, outer_keywords, inner_keywords, source=""):
    """The tree of modules that has these tensors.

    Args:
        state: tensors by their names in a state dict, as "model.enc.8x8_conv.weight".
        outer: class name of the preconditioning.
        inner: class name of the network.
        outer_keywords: what the preconditioning was made with.
        inner_keywords: what the network was made with.
        source: code that each object carries.
    """
    root = Persistent(outer, source, **outer_keywords)
    root.model = Persistent(inner, source, **inner_keywords)
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for depth, part in enumerate(path):
            if part not in module._modules:
                made = nn.ModuleDict() if part in ("enc", "dec") else Persistent("Part", source)
                module.add_module(part, made)
            module = module._modules[part]
            assert depth < 10
        if leaf in BUFFERS:
            module.register_buffer(leaf, tensor)
        else:
            module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    root.eval()
    return root


def write_checkpoint(path, network, *, source="", protocol=4):
    """Write a network as the `ema` of a published checkpoint."""
    content = {
        "ema": network,
        "loss_fn": Persistent("EDMLoss", source, P_mean=-1.2),
        "augment_pipe": Persistent("AugmentPipe", source, p=0.12),
        "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset"),
    }
    with published_modules(), path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)


def persistent_meta(class_name="EDMPrecond", **state):
    """A persistent object's dict, for pickles written by hand."""
    return {
        "type": "class",
        "version": 6,
        "module_src": "",
        "class_name": class_name,
        "state": state,
    }


def random_like(shapes, seed=0):
    """Random tensors of these shapes by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
