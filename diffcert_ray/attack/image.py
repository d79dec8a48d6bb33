"""The attack on one certificate: search inside its radius and beyond, judge by fresh votes.

A search (``search``) proposes perturbations; a verdict asks the smoothed classifier there,
by votes whose noise neither the run nor the search has used. A verdict names a class only if a
two-sided binomial test against the runner-up says so (``prediction``); inside the radius its
level is shared out over all tries, so that one false alarm in the whole attack has probability at
most ``alpha``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.attack.search import Effort, Search, within
from diffcert_ray.attack.smoothed import Smoothed
from diffcert_ray.certificates.prediction import check_prediction, prediction
from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.method.base_classifier import BaseClassifier

Kind = Literal["gradient", "random", "scaled"]

INSIDE = 0.999  # of the radius: the certificate is about the open ball
TRIES_INSIDE = 2  # the best of the gradients, and the best of the random search
MULTIPLES = (1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)
HALVINGS = 2  # between the last multiple without a change and the first one with it
SEARCH, VERDICT = "search", "verdict"


@dataclass(frozen=True)
class Judgement:
    """How a point's class is decided.

    Args:
        votes: fresh votes at each point, >= 1.
        alpha: probability of at least one wrong change among all tries inside radii, in (0, 1).
        tries: how many these are, >= 1.

    Raises:
        ValueError: a value is out of range.
    """

    votes: int
    alpha: float
    tries: int

    def __post_init__(self) -> None:
        check_prediction(self.votes, self.alpha)
        if self.tries < 1:
            raise ValueError(f"tries={self.tries}: at least one is judged")
        if 2.0 ** (1 - min(self.votes, 1000)) > self.level:
            raise ValueError(
                f"{self.votes} votes cannot decide a class at level {self.level:.2g} (alpha "
                f"{self.alpha:g} over {self.tries} tries), even all of them: give more votes"
            )

    @property
    def level(self) -> float:
        """Level of one test (Bonferroni)."""
        return self.alpha / self.tries


@dataclass(frozen=True)
class Try:
    """One perturbed image and what fresh votes say of it.

    Attributes:
        kind: which search proposed it.
        length: l2 length of the perturbation, pixel units, as the votes saw it.
        counts: votes for each class (-2: unresolved).
        said: the class, or ABSTAIN.
        start: first of its votes.
        stop: one past the last.
    """

    kind: Kind
    length: float
    counts: dict[int, int]
    said: int
    start: int
    stop: int


@dataclass
class ImageAttack:
    """The attack on one certificate.

    Attributes:
        sigma: smoothing noise, pixel units.
        image_id: the image.
        predicted: its certified class.
        radius: its certified radius, pixel units.
        seed: of the verdicts' votes.
        tries: every verdict, those inside the radius first.
        broken: verdicts inside the radius that name another class, with the points [C, H, W].
        changed_at: least length found at which another class is named; None: at none tried.
        changed_to: that class.
        furthest: largest length tried.
        nfe: evaluations, those for gradients counted once.
        votes: votes of searches and verdicts.
    """

    sigma: float
    image_id: int
    predicted: int
    radius: float
    seed: int
    tries: list[Try] = field(default_factory=list)
    broken: list[tuple[Try, np.ndarray]] = field(default_factory=list)
    changed_at: float | None = None
    changed_to: int = ABSTAIN
    furthest: float = 0.0
    nfe: int = 0
    votes: int = 0

    @property
    def share(self) -> float | None:
        """The share of the radius at which the class first changes, as far as was found."""
        return None if self.changed_at is None else self.changed_at / self.radius


def attack_image(
    base: BaseClassifier,
    image: np.ndarray,
    certificate: tuple[int, int, float],
    judgement: Judgement,
    *,
    effort: Effort = Effort(),  # noqa: B008 (frozen)
    seed: int = 0,
    towards: np.ndarray | None = None,
    multiples: Sequence[float] = MULTIPLES,
) -> ImageAttack:
    """Attack one certificate: inside its radius, then beyond it.

    Args:
        base: the run's base classifier at the certificate's sigma.
        image: float32 [C, H, W] in [0, 1].
        certificate: image_id, certified class, radius (pixel units, > 0).
        judgement: how a point's class is decided.
        effort: how hard to try.
        seed: of the search and of the verdicts.
        towards: directions worth a try, float32 [M, C, H, W], for example to other images.
        multiples: of the radius, beyond it, ascending; the first change ends the search.

    Returns:
        What was tried and found.

    Source: ours; the searches are named in ``search``.
    """
    image_id, predicted, radius = certificate
    key = (seed, base.sigma, image_id)
    attack = ImageAttack(base.sigma, image_id, predicted, radius, derived_seed(*key, VERDICT))
    judge = _Judge(Smoothed(base, attack.seed), image, judgement, attack)
    x = torch.from_numpy(np.array(image, np.float32)).to(base.device)
    ways = x.new_empty((0, *x.shape)) if towards is None else torch.from_numpy(towards).to(x)
    searching = Smoothed(base, derived_seed(*key, SEARCH))
    generator = torch.Generator().manual_seed(derived_seed(*key, "gradients"))
    search = Search(searching, x, predicted, effort, generator, ways)
    inside = INSIDE * radius
    steep = search.fewest_votes([search.by_gradient(inside, b) for b in search.rivals])[0]
    vague = search.at_random(inside)
    judge.verdict("gradient", steep, inside)
    judge.verdict("random", vague, inside)
    if not attack.broken:
        best = search.fewest_votes([steep, vague])[0]
        _beyond(search, judge, best, [m * radius for m in multiples])
    attack.nfe = judge.smoothed.nfe + searching.nfe
    attack.votes = judge.smoothed.votes_cast + searching.votes_cast
    return attack


def _beyond(search: Search, judge: "_Judge", steep: Tensor, lengths: Sequence[float]) -> None:
    """Search at growing lengths until the class changes, then between the last two."""
    shorter = float(steep.norm())
    for length in lengths:
        grown = steep * (length / max(float(steep.norm()), 1e-30))
        led = search.by_gradient(length, search.rivals[0], grown)
        steep = search.fewest_votes([grown, led])[0]
        kind: Kind = "gradient" if steep is led else "scaled"
        if judge.verdict(kind, steep, length):
            longer = length
            for _ in range(HALVINGS):
                middle = (shorter + longer) / 2
                if judge.verdict("scaled", within(steep, middle), middle):
                    longer = middle
                else:
                    shorter = middle
            return
        shorter = length


@dataclass
class _Judge:
    """Asks the smoothed classifier around one image, every time by votes not used before."""

    smoothed: Smoothed
    image: np.ndarray
    judgement: Judgement
    attack: ImageAttack

    def verdict(self, kind: Kind, delta: Tensor, most: float) -> bool:
        """Note what fresh votes say; whether it is another class."""
        attack, votes = self.attack, self.judgement.votes
        point, length = perturbed(self.image, delta.detach().cpu().numpy(), most)
        start = len(attack.tries) * votes
        (counts,) = self.smoothed.votes({attack.image_id: point}, "estimate", start, start + votes)
        said = prediction(counts, alpha=self.judgement.level)
        one = Try(kind, length, dict(sorted(counts.items())), said, start, start + votes)
        attack.tries.append(one)
        attack.furthest = max(attack.furthest, length)
        changed = said not in (attack.predicted, ABSTAIN)
        if changed and (attack.changed_at is None or length < attack.changed_at):
            attack.changed_at, attack.changed_to = length, said
        if changed and length < attack.radius:
            attack.broken.append((one, point))
        return changed


def perturbed(image: np.ndarray, delta: np.ndarray, most: float) -> tuple[np.ndarray, float]:
    """A perturbed image as the network sees it, and how far it really is from the image.

    Args:
        image: float32 [C, H, W].
        delta: perturbation [C, H, W].
        most: l2 length that rounding must not exceed, pixel units, > 0.

    Returns:
        float32 [C, H, W], and its l2 distance from the image, in float64.

    Source: ours.
    """
    shrink = 1.0
    while True:
        point = (image.astype(np.float64) + shrink * delta.astype(np.float64)).astype(np.float32)
        length = float(np.linalg.norm(point.astype(np.float64) - image.astype(np.float64)))
        if length <= most:
            return point, length
        shrink *= 0.9999 * min(1.0, most / length)


def derived_seed(*key: object) -> int:
    """A seed in [0, 2^63) that depends on all of a key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
