"""Votes and predictions of single images, in this process."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcert_ray.config.loading import load_config
from diffcert_ray.datasets.pixel_scale import as_images, check_channel_order
from diffcert_ray.errors import ConfigError
from diffcert_ray.method.grid import slack
from diffcert_ray.votes.units import Item, Part, Unit

if TYPE_CHECKING:
    from diffcert_ray.checkpoints.image_classifier import Network
    from diffcert_ray.denoisers.denoiser import Denoiser
    from diffcert_ray.denoisers.shortlist_head import ShortlistHead
    from diffcert_ray.method.base_classifier import BaseClassifier

PREDICT_VOTES = 4096  # votes that share batches when a batch of images is predicted


class Classifier:
    """A base classifier at one sigma, in this process.

    Args:
        denoiser: a Denoiser, or what ``load_denoiser`` takes; None for "classify".
        sigma: smoothing noise, pixel units.
        method: "apndc", "epndc", "apndc-posterior" or "dc"; or, with a classifier, "classify" or
            "denoise-classify"; or "shortlist-classify", by ``settings["sift"]["head"]``.
        classifier: a torch module that takes images [B, C, H, W] in pixel units and returns logits
            [B, K]; for "classify" and "denoise-classify" only.
        settings: further configuration tables, as in a TOML file, e.g.
            ``{"sift": {"rule": "full"}, "noise_levels": {"grid": "linear"}}``.
        device: where the denoiser lives. On "cuda" torch computes from then on in this process as
            it does in workers, so that votes are those of a run: deterministically, and with TF32
            only where ``numerics.dtype`` is "tf32".

    Raises:
        ConfigError: the settings do not fit each other or the network.
    """

    def __init__(
        self,
        denoiser: "Denoiser | str | None",
        *,
        sigma: float,
        method: str = "apndc",
        classifier: "Network | None" = None,
        settings: Mapping[str, Any] | None = None,
        device: str = "cpu",
    ) -> None:
        from diffcert_ray.checkpoints.load import load_denoiser
        from diffcert_ray.denoisers.device import compute_alike

        tables = dict(settings or {})
        tables["method"] = {"name": method}
        tables["votes"] = dict(tables.get("votes", {})) | {"sigmas": [sigma]}
        self._config = load_config(tables)
        if device.partition(":")[0] == "cuda":
            compute_alike(self._config.numerics.dtype)
        network: Denoiser | None
        if isinstance(denoiser, str):
            options = self._config.execution.storage_options
            settings = self._config.model.config
            network = load_denoiser(denoiser, settings, device=device, storage_options=options)
        else:
            network = denoiser
        self.sigma = sigma
        self.nfe = 0
        self._base = self._base_of(network, classifier, device)

    def _base_of(
        self, network: "Denoiser | None", classifier: "Network | None", device: str
    ) -> "BaseClassifier":
        from diffcert_ray.checkpoints.image_classifier import ImageClassifier
        from diffcert_ray.method.diffusion_base import base_classifier
        from diffcert_ray.method.trained_base import TrainedBase

        config, about = self._config, self._config.classifier
        head = self._head(device)
        needs = {"classify": (False, True), "denoise-classify": (True, True)}
        if (network is not None, classifier is not None) != needs.get(
            config.method.name, (True, False)
        ):
            raise ConfigError(
                f'method "{config.method.name}": "classify" takes a classifier, "denoise-classify" '
                "a denoiser and a classifier, every other method a denoiser; pass None for the rest"
            )
        seed, batch = config.votes.seed, config.numerics.batch
        if config.method.name == "shortlist-classify":
            return TrainedBase(None, network, self.sigma, seed, batch, device, head)
        if classifier is None:
            assert network is not None  # by the table above
            return base_classifier(config, network, self.sigma, head=head, device=device)
        wrapped = ImageClassifier(
            classifier,
            mean=about.mean,
            std=about.std,
            dtype=config.numerics.dtype,
            device=device,
        )
        return TrainedBase(wrapped, network, self.sigma, seed, batch, device)

    def _head(self, device: str) -> "ShortlistHead | None":
        """The head of ``sift.head`` at this sigma, where votes depend on one."""
        from diffcert_ray.checkpoints.head_file import head_at, load_heads

        if not self._config.uses_head:
            return None
        options = self._config.execution.storage_options
        heads = load_heads(str(self._config.sift.head), device=device, storage_options=options)
        return head_at(heads, self.sigma)

    def votes(
        self, image: np.ndarray, image_id: int, stream: str, start: int, stop: int
    ) -> np.ndarray:
        """Votes start:stop of one image: the class of each of its noisy copies.

        Args:
            image: [C, H, W], floats in [0, 1], or uint8, which stand for x / 255.
            image_id: what the noise is addressed by, >= 0.
            stream: "select" or "estimate".
            start: first vote index.
            stop: one past the last.

        Returns:
            int64 [stop - start], class of each vote, -2 where unresolved. The same arguments always
            give the same votes. ``self.nfe`` grows by the evaluations spent.

        Raises:
            ConfigError: an image of another shape than the network's.
            PixelsError: pixels that are not in [0, 1], or channels last.
        """
        unit = Unit(self.sigma, image_id, stream, start, stop)
        pixels = self._pixels(np.asarray(image)[None])
        return self._cast({unit: pixels[0]})

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """Images [B, C, H, W] as the method takes them, float32, checked."""
        network = self._base.denoiser
        wanted = None if network is None else tuple(network.image_shape)
        shape = images.shape[1:]
        check_channel_order(shape, wanted, "an image")
        if len(shape) != 3 or (wanted is not None and shape != wanted):
            raise ConfigError(
                f"image has shape {shape}, the network takes "
                f"{wanted or '(channels, height, width)'}"
            )
        return as_images(images, "image")

    def _cast(self, images: Mapping[Unit, np.ndarray]) -> np.ndarray:
        """All votes of some units, one after the other; images that share batches cost less."""
        from diffcert_ray.engine.votes import evaluate_votes

        parts = tuple(Part(unit, unit.start, unit.stop) for unit in images)
        pixels = {unit.image_id: image for unit, image in images.items()}
        item = Item(0, self.sigma, parts)
        winners, nfe = evaluate_votes(self._base, item, pixels.__getitem__)
        self.nfe += nfe
        return winners

    def predict(
        self, images: np.ndarray, image_ids: Sequence[int] = (), *, n: int = 100,
        alpha: float = 0.001,
    ) -> np.ndarray:  # fmt: skip
        """The class that the smoothed classifier returns, or ABSTAIN; certifies no radius.

        For each image, with probability at least 1 - alpha over the noise, this abstains or returns
        the class of the smoothed classifier itself.

        Args:
            images: [C, H, W], or a batch [B, C, H, W]; floats in [0, 1], or uint8, which stand for
                x / 255.
            image_ids: what the noise of each is addressed by, >= 0 and distinct; by default 0, 1,
                ... B - 1.
            n: votes for each image (of its estimation stream).
            alpha: failure probability for each image, in (0, 1).

        Returns:
            int64 [] for one image, [B] for a batch: classes, -1 where it abstains. The same
            arguments always give the same answer. ``self.nfe`` grows by the evaluations spent.

        Raises:
            ConfigError: images of another shape than the network's, or ids that do not fit them.
            PixelsError: pixels that are not in [0, 1], or channels last.
            ValueError: alpha or n is out of range.

        Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 3.2.1 (PREDICT).
        """
        from diffcert_ray.certificates.prediction import check_prediction, prediction

        images = np.asarray(images)
        noise_slack = slack(self.sigma, int(np.prod(images.shape[-3:])))
        check_prediction(n, alpha, noise_slack)
        batch = self._pixels(images.reshape(-1, *images.shape[-3:]))
        ids = [int(i) for i in image_ids] or list(range(len(batch)))
        if len(ids) != len(batch) or len(set(ids)) < len(ids):
            raise ConfigError(
                f"{len(ids)} image_ids for {len(batch)} images: give each image an id of its own"
            )
        units = [Unit(self.sigma, i, "estimate", 0, n) for i in ids]
        together = max(1, PREDICT_VOTES // n)
        classes: list[int] = []
        for first in range(0, len(units), together):
            chosen = slice(first, first + together)
            votes = self._cast(dict(zip(units[chosen], batch[chosen], strict=True)))
            counts = [Counter(v.tolist()) for v in votes.reshape(-1, n)]
            classes += [prediction(c, alpha=alpha, slack=noise_slack) for c in counts]
        return np.array(classes, np.int64).reshape(images.shape[:-3])

    def logits(self, u: Any, draws: int = 1, seed: int = 0) -> Any:
        """Scores f_y of clean inputs: minus the weighted denoising errors, larger is better.

        With a classifier: its logits for a vote's input without noise; draws and seed play no part.

        Args:
            u: tensor [B, C, H, W] in model space [-1, 1] (2x - 1 for pixels x).
            draws: noise draws for each level.
            seed: of the noise, which all inputs and classes share.

        Returns:
            Tensor [B, K], differentiable with respect to u.
        """
        return self._base.clean_scores(u, draws, seed)
