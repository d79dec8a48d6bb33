"""Networks of four scales with random weights, for a table of what scale costs."""

from collections.abc import Mapping

from diffcert_ray.checkpoints.network_shape import PUBLISHED
from diffcert_ray.denoisers.configuration import EdmConfiguration
from diffcert_ray.denoisers.edm import EdmDenoiser, NetworkDtype
from diffcert_ray.tools.training.networks import digits_configuration

SCALES: Mapping[str, EdmConfiguration] = {
    "digits": digits_configuration(),
    "digits-32": digits_configuration(channels=32),
    "cifar10": EdmConfiguration.model_validate(PUBLISHED["edm-cifar10-32x32-cond-vp"]),
    "imagenet64": EdmConfiguration.model_validate(PUBLISHED["edm-imagenet-64x64-cond-adm"]),
}
"""By name: 180 thousand, 715 thousand, 55.7 million and 295.9 million parameters."""


def random_network(scale: str, device: str, dtype: NetworkDtype = "float32") -> EdmDenoiser:
    """A network of one of SCALES with random weights; it takes "no class", too."""
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r} is none of {', '.join(SCALES)}: give one of these")
    configuration = SCALES[scale].model_copy(update={"has_unconditional": True})
    network = EdmDenoiser(configuration, dtype=dtype)
    return network.to(device).eval().requires_grad_(False)
