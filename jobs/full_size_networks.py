"""Load the published full-size networks from generated files, and evaluate one batch of each.

    python jobs/full_size_networks.py [--folder FOLDER] [--batch 4]

Writes a state dict with random weights of each network (223 MB and 1.2 GB), loads it the way a
user's checkpoint is loaded (recognised from its tensors), evaluates one batch, and deletes it.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from diffcert_ray.checkpoints.load import load_denoiser
from diffcert_ray.checkpoints.network_shape import PUBLISHED
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser

NETWORKS = {"edm-cifar10-32x32-cond-vp": 55.7, "edm-imagenet-64x64-cond-adm": 295.9}
"""Published numbers of parameters, in millions."""


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files go [default: temporary]")
    parser.add_argument("--batch", type=int, default=4, help="images in the batch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in NETWORKS:
            path = Path(folder) / "checkpoint.pt"
            generate(path, name)
            measure(path, name, arguments.batch)
            path.unlink()


def generate(path: Path, name: str) -> None:
    """Write a state dict of random weights."""
    with torch.device("meta"):
        expected = EdmDenoiser(EdmConfiguration(**PUBLISHED[name])).state_dict()
    state = {
        key: tensor if tensor.device.type == "cpu" else torch.randn(tensor.shape) / 50
        for key, tensor in expected.items()
    }
    torch.save(state, path)


def measure(path: Path, name: str, batch: int) -> None:
    """Load and evaluate, and say how long it took."""
    size, begun = path.stat().st_size, _clocks()
    denoiser = load_denoiser(path)
    loading, begun = _since(begun), _clocks()
    u = torch.randn(batch, *denoiser.image_shape)
    with torch.inference_mode():
        found = denoiser(u, torch.full((batch,), 0.5), torch.zeros(batch, dtype=torch.int64))
    evaluating = _since(begun)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    if round(count / 1e6, 1) != NETWORKS[name] or not torch.isfinite(found).all():
        raise SystemExit(f"{name}: {count:,} parameters, published {NETWORKS[name]} million")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}: {count:,} parameters, file {size / 1e6:,.0f} MB, loaded in {loading}, "
        f"{batch} images evaluated in {evaluating}, peak memory {peak:.1f} GiB",
        flush=True,
    )


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(begun: tuple[float, float]) -> str:
    wall, cpu = (now - then for now, then in zip(_clocks(), begun, strict=True))
    return f"{wall:.1f} s (CPU {cpu:.1f} s)"


if __name__ == "__main__":
    main()
