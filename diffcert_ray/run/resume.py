"""What a store already holds of a plan, and so what is left to do."""

from collections.abc import Sequence

from diffcert_ray.config.tables import Config
from diffcert_ray.errors import StoreError
from diffcert_ray.plain.plan import PlainPlan
from diffcert_ray.plain.stages import LossStages
from diffcert_ray.run.stored_losses import StoredLosses, read_losses
from diffcert_ray.run.vote_rows import stored_units, unfounded, votes_held
from diffcert_ray.storage.done_units import DoneUnits
from diffcert_ray.storage.store import RunStore
from diffcert_ray.votes.image import Plan
from diffcert_ray.votes.stages import Stages

Certified = set[tuple[float, int, int]]
"""(sigma, image_id, votes used) of certificates."""


def held_by(store: RunStore, plan: Plan | PlainPlan) -> DoneUnits | StoredLosses:
    """What the store holds for a plan; read once, since it may be large."""
    if isinstance(plan, PlainPlan):
        return read_losses(store, len(plan.s), plan.classes)
    return store.done_units()


def stored_certificates(
    store: RunStore, plan: Plan | PlainPlan, unreadable: Sequence[int], *, votes_id: str
) -> Certified:
    """(sigma, image_id, votes used) of the plan's certificates that are stored already.

    The row of an image that could not be read counts only while that is so.

    Args:
        store: the run's folder.
        plan: what is certified now.
        unreadable: image_ids that could not be read at this start.
        votes_id: identity of the run's votes.
    """
    columns = ["sigma", "image_id", "alpha", "bound", "n0", "n", "nfe", "votes_id"]
    table = store.certificates().select(columns).to_pandas()
    same = (table["alpha"] == plan.alpha) & (table["bound"] == plan.bound)
    same &= (table["n0"] == plan.n0) & (table["votes_id"] == votes_id)
    read = table["nfe"] > 0
    if plan.bound != "sequential":  # which looks at any n; the others hold at the n fixed before
        read &= table["n"] == plan.n
    unread = (table["nfe"] == 0) & table["image_id"].isin(unreadable)
    rows = table[same & (read | unread)]
    return set(
        zip(rows["sigma"].tolist(), rows["image_id"].tolist(), rows["n"].tolist(), strict=True)
    )


def unfounded_certificates(
    store: RunStore,
    plan: Plan | PlainPlan,
    stored: Certified,
    held: DoneUnits | StoredLosses,
) -> Certified:
    """The plan's certificates that rest on lost votes, to be made anew; refused unless asked for.

    The last part of a writer leaves no gap in the numbering when it is deleted: this finds it.

    Args:
        store: the run's folder.
        plan: what is certified now.
        stored: of ``stored_certificates``.
        held: of ``held_by``.

    Raises:
        StoreError: there are some, and the store was opened with ``on_damaged="refuse"``.
    """
    planned = set(plan.image_ids.tolist())
    votes = votes_held(held) if isinstance(held, DoneUnits) else held.draws_held()
    found = unfounded((key for key in stored if key[1] in planned), votes, plan.n0)
    if found and store.on_damaged == "refuse":
        sigma, image_id, n = min(found)
        select, estimate = votes(sigma, image_id)
        raise StoreError(
            f"{len(found)} certificates in {store.address} rest on votes that are not stored, "
            f"first image {image_id} at sigma {sigma:g}: {select} + {estimate} votes are there of "
            f"{plan.n0} + {n}. A part was deleted: restore it from a copy, or run again with "
            'on_damaged="recompute" (--recompute-damaged): what is missing is computed again'
        )
    return found


def stages_of(
    settings: Config,
    plan: Plan | PlainPlan,
    held: DoneUnits | StoredLosses,
    stored: Certified,
) -> Stages | LossStages:
    """What is left to do.

    Args:
        settings: of this start.
        plan: what is certified now.
        held: of ``held_by``.
        stored: certificates that stand, of ``stored_certificates`` less the unfounded ones.
    """
    certified = {(sigma, image_id) for sigma, image_id, _ in stored}
    if isinstance(held, StoredLosses):
        assert isinstance(plan, PlainPlan)
        return LossStages(plan, held.of, certified=certified)
    assert isinstance(plan, Plan)
    return Stages(
        plan,
        stored_units(held, plan),
        hand_back_levels=settings.sift.levels if settings.execution.stages == "split" else None,
        # A sequential certificate may be of an earlier, smaller n: its image is looked at again.
        certified=certified if plan.bound != "sequential" else (),
    )
