"""The pictures of README and docs, from a real run: the promise, the idea, the tower of packages.

    python jobs/pictures.py [--run runs/pictures] [--image 27] [--vote 18] [--output docs/pictures]
    python jobs/pictures.py --only packages

The first two are drawn from one image of preset `digits` (sigma 0.25, n0 = 100, n = 1000, seed 1),
which the job certifies in this process if the run does not hold it yet; half a minute with it.

- promise: the image, four of its noisy copies (the first three, and the first that votes for
  another class), the stored counts of its estimation votes, p_low and the certified radius.
- idea: the losses of one of these votes in the order in which it visited the noise levels, and
  where each class dropped out. Vote 18 is one of median cost whose lines cross little.
- packages: the layers of the import-linter contract in pyproject.toml with the first line of each
  one's docstring, and how many modules it has.

Every picture is written for light and for dark pages, and the text that stands in for it is
printed. Equal runs give equal files.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from package_tower import layers, packages_drawing
from picture_canvas import Drawing, save
from picture_drawing import Copy, Promise, Race, idea_drawing, promise_drawing

from diffcert_ray import Run, certify, load_dataset, load_denoiser
from diffcert_ray.conventions import OPEN, STREAM_NAMES
from diffcert_ray.datasets.pixel_grid import to_grid
from diffcert_ray.engine.item_run import ItemRun
from diffcert_ray.method.diffusion_base import DiffusionBase, base_classifier
from diffcert_ray.method.diffusion_classifier import (
    denoised_image,
    network_input,
    row_losses,
    target,
)
from diffcert_ray.method.noise import NoiseSource, noisy_model_images
from diffcert_ray.method.sift import Sift
from diffcert_ray.votes.units import Item, Part, Unit

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ("promise", "idea", "packages")
STREAM = "estimate"


@dataclass(frozen=True)
class Votes:
    """The estimation votes of one image, cast again: what they are made of is not stored.

    Attributes:
        base: the run's base classifier.
        image_id: whose votes.
        image: float32 [C, H, W] in [0, 1].
        answers: class of each vote, int64 [n].
        evaluations: of each vote, int64 [n].
    """

    base: DiffusionBase
    image_id: int
    image: np.ndarray
    answers: np.ndarray
    evaluations: np.ndarray

    @staticmethod
    def of(run: Run, image_id: int) -> "Votes":
        """Those of a run with one sigma; they must be the votes that it counted."""
        config, data = run.config, load_dataset(run.config.dataset)
        (sigma,) = config.votes.sigmas
        base = base_classifier(config, load_denoiser(config.model.checkpoint), sigma)
        unit = Unit(sigma, image_id, STREAM, 0, config.votes.n)
        work = ItemRun(base, Item(0, sigma, (Part(unit, 0, unit.stop),)), data.image)
        work.finish()
        counts = stored_counts(run, image_id, base.denoiser.num_classes)
        if not np.array_equal(np.bincount(work.winner, minlength=len(counts)), counts):
            raise RuntimeError(
                f"image {image_id}: the votes here are not those that {run.address} "
                "holds; give another --run, for one that this machine makes"
            )
        return Votes(base, image_id, data.image(image_id), work.winner, work.nfe)

    def noise(self, vote: int, level: np.ndarray) -> torch.Tensor:
        """Internal noise of one vote at some levels, float32 [levels, C, H, W]."""
        many = [np.full(len(level), part, np.int64) for part in self._address(vote)]
        return self._source.normal(*many, level).reshape(-1, *self.image.shape)

    def noisy(self, vote: int) -> torch.Tensor:
        """The image under the smoothing noise of one vote, model space [1, C, H, W]."""
        steps = self._source.steps(*(np.array([part]) for part in self._address(vote)))
        points = torch.from_numpy(to_grid(self.image))
        return noisy_model_images(points, steps.reshape(points.shape))[None]

    def _address(self, vote: int) -> tuple[int, int, int]:
        return self.image_id, STREAM_NAMES.index(STREAM), vote

    @property
    def _source(self) -> NoiseSource:
        return NoiseSource(self.base.seed, self.base.sigma, self.image.size)


def stored_counts(run: Run, image_id: int, classes: int) -> np.ndarray:
    """Estimation votes of an image for each class, int64 [classes], as the run holds them."""
    counts = np.zeros(classes, np.int64)
    units = run.units()
    for row in units[(units["image_id"] == image_id) & (units["stream"] == STREAM)].itertuples():
        counts[row.classes] += row.counts
    return counts


def promise_of(run: Run, votes: Votes) -> Promise:
    """The certificate of an image, the counts that it rests on, and four noisy copies."""
    (row,) = run.certificates().query("image_id == @votes.image_id").itertuples()
    if row.abstained:
        raise ValueError(f"image {votes.image_id} has no certified ball: take another --image")
    others = np.flatnonzero(votes.answers != row.predicted)
    shown = sorted({0, 1, 2, int(others[0]) if len(others) else 3})
    sigma = votes.base.sigma
    copies = []
    for vote in shown:
        pixels = (votes.noisy(vote)[0].numpy() + 1.0) / 2.0
        copies.append(Copy(vote, pixels[0], int(votes.answers[vote])))
    counts = stored_counts(run, votes.image_id, votes.base.denoiser.num_classes)
    return Promise(
        image=votes.image[0],
        copies=tuple(copies),
        counts=counts,
        answer=int(row.predicted),
        p_low=float(row.p_low),
        radius=float(row.radius),
        alpha=float(row.alpha),
        sigma=sigma,
    )


def vote_losses(votes: Votes, vote: int) -> np.ndarray:
    """Losses of one vote in the order of visits, all classes at all levels: float64 [E, K]."""
    base, order = votes.base, votes.base.sift.order
    classes, entries = base.denoiser.num_classes, len(order)
    level = torch.from_numpy(order)
    with torch.inference_mode():
        noisy = votes.noisy(vote)
        denoised = denoised_image(base.plan, base.unconditional, noisy)
        images = [image.expand(entries, -1, -1, -1) for image in (noisy, denoised)]
        eps = votes.noise(vote, order)
        seen = network_input(base.plan, level, *images, eps)
        wanted = target(base.plan, level, *images, eps)
        s = torch.from_numpy(base.plan.s[order]).float()
        losses = [
            row_losses(base.denoiser(seen, s, torch.full((entries,), label)), wanted)
            for label in range(classes)
        ]
    return torch.stack(losses, dim=1).numpy()


def ends(sift: Sift, losses: np.ndarray) -> tuple[np.ndarray, int]:
    """Entries that each class took part in before it dropped out, int64 [K], and who won."""
    if sift.leader_round is not None or sift.refine_round:
        raise ValueError(f'rule "{sift.rule}" goes over levels twice: take a run with "paired-z"')
    alive = np.ones((1, losses.shape[1]), bool)
    taken = np.zeros(losses.shape[1], np.int64)
    for index, (_, stop) in enumerate(sift.rounds):
        taken[alive[0]] = stop
        alive, _, winner = sift.step(index, losses[:stop, None, :], alive)
        if winner[0] != OPEN:
            break
    return taken, int(winner[0])


def race_of(votes: Votes, vote: int) -> Race:
    """One of the votes, replayed from its losses."""
    sift = votes.base.sift
    losses = vote_losses(votes, vote)
    taken, answer = ends(sift, losses)
    once = int(votes.base.plan.needs_denoised)
    seen = (int(taken.sum()) + once, answer)
    if seen != (votes.evaluations[vote], votes.answers[vote]):
        raise RuntimeError(
            f"vote {vote} replayed gives (evaluations, class) = {seen}, the engine "
            f"{votes.evaluations[vote], votes.answers[vote]}"
        )
    return Race(
        terms=losses * sift.coefficient[:, None],
        levels=votes.base.plan.s[sift.order],
        taken=taken,
        answer=answer,
        evaluations=int(votes.evaluations[vote]),
        full=votes.base.most_nfe,
        usual=float(np.median(votes.evaluations)),
        mean=float(votes.evaluations.mean()),
    )


def drawings(wanted: list[str], address: str, position: int, vote: int) -> Iterator[Drawing]:
    """The pictures asked for; a run is made or continued only where one of them needs it."""
    if {"promise", "idea"} & set(wanted):
        run = certify("digits", address, images=(position, position + 1), local=True)
        votes = Votes.of(run, int(load_dataset(run.config.dataset).ids[position]))
        if "promise" in wanted:
            yield promise_drawing(promise_of(run, votes))
        if "idea" in wanted:
            yield idea_drawing(race_of(votes, vote))
    if "packages" in wanted:
        yield packages_drawing(layers(ROOT))


def main(arguments: list[str]) -> int:
    """Draw, save, print the text that stands in for each picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", default="runs/pictures", help="preset digits; made or continued")
    parser.add_argument("--image", type=int, default=27, help="position in the preset's images")
    parser.add_argument("--vote", type=int, default=18, help="of its n, the one that is a race")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=PICTURES)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    for drawing in drawings(list(options.only), options.run, options.image, options.vote):
        save(drawing, options.output)
        print(f"{drawing.name}: {drawing.alt}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
