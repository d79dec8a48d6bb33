"""What a store already holds of a run: which certificates stand, and on the same images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from diffcert_ray.conventions import ABSTAIN
from diffcert_ray.errors import ConfigError, StoreError
from diffcert_ray.run.kind import Held, Plan, VotesHeld
from diffcert_ray.storage.schemas import CertificateRow
from diffcert_ray.storage.store import RunStore

Certified = set[tuple[float, int, int]]
"""(sigma, image_id, votes used) of certificates."""


def stored_certificates(
    store: RunStore, plan: Plan, unreadable: Sequence[int], *, votes_id: str
) -> dict[tuple[float, int, int], int]:
    """(sigma, image_id, votes used) of the plan's stored certificates -> selection votes used.

    The row of an image that could not be read counts only while that is so.
    """
    columns = ["sigma", "image_id", "alpha", "bound", "n0", "n0_used", "n", "nfe", "votes_id"]
    table = store.certificates().select(columns).to_pandas()
    same = (table["alpha"] == plan.alpha) & (table["bound"] == plan.bound)
    same &= (table["n0"] == plan.n0) & (table["votes_id"] == votes_id)
    read = table["nfe"] > 0
    if plan.bound != "sequential":  # which looks at any n; the others hold at the n fixed before
        read &= table["n"] == plan.n
    unread = (table["nfe"] == 0) & table["image_id"].isin(unreadable)
    rows = table[same & (read | unread)]
    keys = zip(*(rows[name].tolist() for name in ("sigma", "image_id", "n")), strict=True)
    return dict(zip(keys, rows["n0_used"].tolist(), strict=True))


def unfounded_certificates(
    store: RunStore,
    plan: Plan,
    stored: Mapping[tuple[float, int, int], int],
    votes_held: VotesHeld,
) -> Certified:
    """The plan's certificates that rest on lost votes, to be made anew; refused unless asked for.

    ``stored`` is what ``stored_certificates`` returns. The last part of a writer leaves no gap in
    the numbering when it is deleted: this finds it.

    Raises:
        StoreError: there are some, and the store was opened with ``on_damaged="refuse"``.
    """
    planned = set(plan.image_ids.tolist())
    lost = {
        (sigma, image_id, n)
        for (sigma, image_id, n), n0 in stored.items()
        if image_id in planned and not _founded(votes_held(sigma, image_id), n0, n)
    }
    if lost and store.on_damaged == "refuse":
        sigma, image_id, n = min(lost)
        select, estimate = votes_held(sigma, image_id)
        raise StoreError(
            f"{len(lost)} certificates in {store.address} rest on votes that are not stored, "
            f"first image {image_id} at sigma {sigma:g}: {select} + {estimate} votes are there of "
            f"{stored[sigma, image_id, n]} + {n}. A part was deleted: restore it from a copy, or "
            'run again with on_damaged="recompute" (--recompute-damaged): what is missing is '
            "computed again"
        )
    return lost


def _founded(held: tuple[int, int], n0: int, n: int) -> bool:
    select, estimate = held
    return select >= n0 and estimate >= n


def unread_rows(
    plan: Plan,
    image_ids: Iterable[int],
    labels: Mapping[int, int],
    *,
    p_low: float,
    method: str,
    votes_id: str,
) -> Iterator[CertificateRow]:
    """Certificates of images that could not be read: abstentions without votes or evaluations.

    Yields:
        A row for each sigma and image; no other row has ``nfe`` 0.
    """
    for sigma in plan.sigmas:
        for image_id in image_ids:
            yield CertificateRow(
                sigma=sigma,
                image_id=image_id,
                label=labels[image_id],
                predicted=ABSTAIN,
                correct=False,
                abstained=True,
                radius=0.0,
                p_low=p_low,
                slack=0.0,
                taken_off=0.0,
                n_a=0,
                n=0,
                n0=plan.n0,
                n0_used=0,
                alpha=plan.alpha,
                bound=plan.bound,
                nfe=0,
                seconds=0.0,
                method=method,
                votes_id=votes_id,
            )


def check_same_images(held: Held, known: set[int], image_sha: Callable[[int], str]) -> None:
    """Refuse to continue with other pixels under a stored image_id (ConfigError)."""
    for image_id, sha in held.image_sha.items():
        if image_id in known and (sha_now := image_sha(image_id)) != sha:
            raise ConfigError(
                f"image {image_id} has pixels {sha_now}, but the run's votes were cast on "
                f"{sha}: the data "
                "has changed; give another run folder (--run), or restore the data"
            )
