"""Votes on one worker: many votes fill fixed-shape batches, until each knows its class.

The engine keeps a set of *lanes*, one for each vote under way, and a queue of rows
(lane, entry of the sift rule, class). It fills batches of exactly ``batch`` rows from whatever is
in the queue, so that votes of several units and images share a batch and a vote that ends makes
room at once. Nothing that a vote returns depends on the lane, the batch or the neighbours: noise
has an address, batches have one shape (the last is padded), and sums are taken in a fixed order in
float64.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.base_classifier import BaseClassifier
from diffcert_ray.classifier import class_logits, row_losses, to_model_image
from diffcert_ray.noise import NoiseSource
from diffcert_ray.work import (
    ALL_CLASSES,
    NOT_TARGET,
    STREAM_NAMES,
    Item,
    OpenVotes,
    Result,
    Tally,
    Unit,
)

LANE_BYTES = 512 * 2**20  # what the losses of the votes under way may take
CHUNK_BATCHES = 8  # between two decisions: more spread their cost, fewer keep votes fresh
DECIDE_BYTES = 32 * 2**20  # losses that one call of the sifting rule is given
DENOISE = -1  # entry of the row that makes a vote's denoised input


@dataclass
class Votes:
    """The votes of one item, flat: each array is [N]."""

    units: tuple[Unit, ...]
    unit_index: np.ndarray
    vote: np.ndarray
    target: np.ndarray

    @staticmethod
    def of(item: Item) -> "Votes":
        """All votes of an item: fresh ones first, then those to continue."""
        units: dict[Unit, int] = {}
        unit_index, vote, target = [], [], []
        for part in item.parts:
            count = part.stop - part.start
            unit_index.append(np.full(count, units.setdefault(part.unit, len(units)), np.int64))
            vote.append(np.arange(part.start, part.stop, dtype=np.int64))
            target.append(np.full(count, part.target, np.int64))
        if item.open_votes is not None:
            held = item.open_votes
            renumber = np.array([units.setdefault(u, len(units)) for u in held.units], np.int64)
            unit_index.append(renumber[held.unit_index])
            vote.append(held.vote)
            target.append(held.target)
        empty = np.empty(0, np.int64)
        columns = [np.concatenate([empty, *column]) for column in (unit_index, vote, target)]
        return Votes(tuple(units), *columns)


def evaluate_item(
    base: BaseClassifier,
    item: Item,
    image: Callable[[int], np.ndarray],
    *,
    worker: str = "local",
    numerics: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Evaluate one item.

    Args:
        base: the base classifier at the item's sigma.
        item: what to evaluate.
        image: image_id -> float32 [C, H, W] in [0, 1].
        worker: name stored with the result.
        numerics: numerics kind of this worker.
        clock: seconds.

    Returns:
        The result; its counts depend on the item's votes only.

    Raises:
        ValueError: the item is about another sigma than the base classifier.
    """
    if item.sigma != base.sigma:
        raise ValueError(
            f"item {item.item_id} is at sigma {item.sigma}, the worker at {base.sigma}"
        )
    started = clock()
    run = _ItemRun(base, item, image)
    run.finish()
    return Result(
        item_id=item.item_id,
        tallies=run.tallies(),
        open_votes=run.handed_back(),
        nfe=int(run.nfe.sum()),
        padded=run.padded,
        seconds=clock() - started,
        worker=worker,
        device=base.device,
        numerics=numerics,
    )


def evaluate_votes(
    base: BaseClassifier, item: Item, image: Callable[[int], np.ndarray]
) -> tuple[np.ndarray, int]:
    """The class of every vote of an item, one by one.

    Args:
        base: the base classifier at the item's sigma.
        item: what to evaluate, without ``hand_back_levels``.
        image: image_id -> float32 [C, H, W] in [0, 1].

    Returns:
        int64 [N], classes in the order of the item's votes (-2: unresolved), and the evaluations.
    """
    run = _ItemRun(base, item, image)
    run.finish()
    return run.winner, int(run.nfe.sum())


def shared_noise_logits(base: BaseClassifier, u: Tensor, draws: int, seed: int) -> Tensor:
    """Scores of clean inputs under noise that all inputs and classes share.

    Args:
        base: the base classifier; its sifting rule is not used.
        u: tensor [B, C, H, W], model space.
        draws: noise draws for each level, >= 1.
        seed: of the noise.

    Returns:
        Tensor [B, K], differentiable with respect to u.
    """
    levels = len(base.plan.s)
    source = NoiseSource(seed, base.sigma, int(np.prod(base.denoiser.image_shape)))
    draw, level = np.divmod(np.arange(draws * levels), levels)
    zero = np.zeros_like(draw)
    noise = source.normal(zero, zero, draw, "internal", level, device=u.device)
    eps = noise.reshape(draws, levels, *u.shape[1:]).to(u.dtype)
    return class_logits(base.denoiser, u, base.plan, eps, unconditional=base.unconditional)


class _RowQueue:
    """Rows that wait for a batch, first in, first out: int64 [3, n] of lane, entry and class."""

    def __init__(self) -> None:
        self._blocks: deque[np.ndarray] = deque()
        self.rows = 0

    def put(self, lane: np.ndarray, entry: np.ndarray, column: np.ndarray) -> None:
        """Add rows at the end."""
        self._blocks.append(np.stack([lane, entry, column]))
        self.rows += len(lane)

    def take(self, count: int) -> np.ndarray:
        """The first ``count`` rows, or all if there are fewer."""
        taken, missing = [], min(count, self.rows)
        self.rows -= missing
        while missing:
            block = self._blocks.popleft()
            if block.shape[1] > missing:
                self._blocks.appendleft(block[:, missing:])
            taken.append(block[:, :missing])
            missing -= taken[-1].shape[1]
        return np.concatenate(taken, axis=1)


class _ItemRun:
    """The state of one item under evaluation."""

    def __init__(
        self, base: BaseClassifier, item: Item, image: Callable[[int], np.ndarray]
    ) -> None:
        self.base, self.item, self.image = base, item, image
        self.votes = Votes.of(item)
        self.noise = NoiseSource(base.seed, base.sigma, int(np.prod(base.denoiser.image_shape)))
        self.smoothing = NoiseSource(base.seed, base.sigma, int(np.prod(base.smoothed_shape)))
        self.classes = base.denoiser.num_classes
        entries = len(base.sift.order)
        self.stream = np.array([STREAM_NAMES.index(u.stream) for u in self.votes.units], np.int64)
        self.image_id = np.array([u.image_id for u in self.votes.units], np.int64)
        count = len(self.votes.vote)
        lanes = int(np.clip(LANE_BYTES // (entries * self.classes * 8), 1, max(count, 1)))
        lanes = min(lanes, 2 * CHUNK_BATCHES * base.batch)
        self.free = np.arange(lanes)
        self.of_vote = np.zeros(lanes, np.int64)
        self.losses = np.empty((lanes, entries, self.classes))
        self.alive = np.zeros((lanes, self.classes), bool)
        self.next_round = np.zeros(lanes, np.int64)
        self.remaining = np.zeros(lanes, np.int64)
        self.noisy = torch.zeros((lanes, self.smoothing.elements), device=base.device)
        self.denoised = torch.zeros((lanes, self.noise.elements), device=base.device)
        self.queue = _RowQueue()
        self.expected_rows = (
            0  # in the queue, a denoising row counting as the round that follows it
        )
        self.admitted = 0
        self.winner = np.full(count, -1, np.int64)
        self.nfe = np.zeros(len(self.votes.units), np.int64)
        self.padded = 0
        self.back: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        # Tables over the noise levels with one more entry for the denoising step: no extra noise.
        plan = base.plan
        self.level_of = np.append(base.sift.order, len(base.plan.s))
        self.s = _table(plan.s, plan.s_tau, base.device)
        self.input_scale = _table(plan.noise_scale, 0.0, base.device)
        self.target_scale = _table(plan.target_scale, 0.0, base.device)
        self.offsets = _loss_offsets(item.open_votes)

    def finish(self) -> None:
        with torch.inference_mode():
            while True:
                self._admit()
                if self.queue.rows == 0:
                    return
                self._evaluate_chunk()

    # ---- votes enter ---------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let in as many votes as keep the queue filled: each one under way holds memory."""
        batch = self.base.batch
        while len(self.free) and self.admitted < len(self.winner):
            wanted = -(-(CHUNK_BATCHES * batch - self.expected_rows) // self.classes)
            wanted = max(wanted, batch - self.queue.rows)
            if wanted <= 0:
                return
            count = min(wanted, len(self.free), len(self.winner) - self.admitted)
            lanes, self.free = self.free[:count], self.free[count:]
            votes = np.arange(self.admitted, self.admitted + count)
            self.admitted += count
            self._enter(lanes, votes)

    def _enter(self, lanes: np.ndarray, votes: np.ndarray) -> None:
        self.of_vote[lanes] = votes
        self.alive[lanes] = True
        self.next_round[lanes] = 0
        if self.base.sift.leader_round is not None:
            self.losses[lanes, -1] = np.nan  # the sifting rule tells by it who went to the end
        self._restore(lanes, votes)
        units = self.votes.unit_index[votes]
        ids = self.image_id[units]
        different, which = np.unique(ids, return_inverse=True)
        pixels = np.stack([self.image(int(i)).reshape(-1) for i in different])
        clean = to_model_image(torch.from_numpy(pixels)[torch.from_numpy(which)])
        clean = clean.to(self.base.device)
        delta = self.smoothing.normal(
            ids, self.stream[units], self.votes.vote[votes], "smoothing", device=self.base.device
        )
        index = torch.from_numpy(lanes).to(self.base.device)
        noisy = clean + self.base.plan.s_tau * delta
        self.noisy[index] = noisy
        if noisy.shape[1] == self.denoised.shape[1]:
            # The input of the denoising step, until its output replaces it.
            self.denoised[index] = noisy
        if not self.base.plan.needs_denoised:
            self._queue_rounds(lanes)
        elif self.base.unconditional is self.base.denoiser:
            self.queue.put(lanes, np.full_like(lanes, DENOISE), np.full_like(lanes, -1))
            self.expected_rows += len(lanes) * self.classes
            self.remaining[lanes] = 1
        else:
            self._denoise_apart(lanes)
            self._queue_rounds(lanes)

    def _restore(self, lanes: np.ndarray, votes: np.ndarray) -> None:
        """Give votes that another item handed back their survivors and losses."""
        held = self.item.open_votes
        if held is None:
            return
        first = len(self.winner) - len(held)
        for lane, row in zip(lanes, votes - first, strict=True):
            if row < 0:
                continue
            a, b = self.offsets[0][row : row + 2]
            survivors = held.survivors[a:b]
            round_index = int(held.round[row])
            seen = int(held.entries[row])
            c, d = self.offsets[1][row : row + 2]
            self.alive[lane] = False
            self.alive[lane, survivors] = True
            self.next_round[lane] = round_index
            self.losses[lane, :seen, survivors] = held.losses[c:d].reshape(seen, -1).T

    def _denoise_apart(self, lanes: np.ndarray) -> None:
        """The unconditional step by a network of its own, in batches of its own."""
        batch, shape = self.base.batch, self.base.smoothed_shape
        s = self.s[-1].expand(batch)
        for start in range(0, len(lanes), batch):
            group = lanes[start : start + batch]
            rows = torch.from_numpy(np.resize(group, batch)).to(self.base.device)
            out = self.base.unconditional(self.noisy[rows].reshape(batch, *shape), s, None)
            self.denoised[rows[: len(group)]] = out.reshape(batch, -1)[: len(group)]
            self._count(group)
            self.padded += batch - len(group)

    # ---- rows are queued and evaluated ---------------------------------------------------------

    def _queue_rounds(self, lanes: np.ndarray) -> None:
        """Queue the next round of each lane: rows in the order lane, entry, class."""
        for round_index in np.unique(self.next_round[lanes]):
            group = lanes[self.next_round[lanes] == round_index]
            start, stop = self.base.sift.rounds[round_index]
            asked = self._asked(int(round_index), group)
            mask = np.broadcast_to(asked[:, None, :], (len(group), stop - start, self.classes))
            row, entry, column = np.nonzero(mask)
            self.remaining[group] = asked.sum(axis=1) * (stop - start)
            self.queue.put(group[row], start + entry, column)
            self.expected_rows += len(row)

    def _asked(self, round_index: int, group: np.ndarray) -> np.ndarray:
        """Classes that the next round of each lane of a group evaluates: bool [lanes, K]."""
        sift = self.base.sift
        if sift.leader_round is None:
            return self.alive[group]
        asked = np.zeros((len(group), self.classes), bool)
        for a, b, losses, alive, columns in self._survivors(
            group, sift.entries_before(round_index)
        ):
            np.put_along_axis(asked[a:b], columns, sift.asked(round_index, losses, alive), axis=1)
        return asked

    def _evaluate_chunk(self) -> None:
        batch = self.base.batch
        batches = min(max(self.queue.rows // batch, 1), CHUNK_BATCHES)
        lane, entry, column = self.queue.take(batches * batch)
        noise, noise_row = self._internal_noise(lane, entry)
        # The same shape for every batch: rows are repeated to fill the last one.
        rows = np.resize(
            np.stack([lane, self.level_of[entry], column, noise_row]).T, (batches * batch, 4)
        ).T
        scored = entry != DENOISE
        to = self.base.device
        batched = torch.from_numpy(np.ascontiguousarray(rows)).to(to).split(batch, dim=1)
        losses = []
        for index, batch_rows in enumerate(batched):
            out, target = self._denoise_batch(batch_rows, noise)
            losses.append(row_losses(out, target))
            # Outputs of denoising rows become their votes' inputs; nobody has used these yet.
            (denoising,) = np.nonzero(~scored[index * batch : (index + 1) * batch])
            if len(denoising):
                picked = torch.from_numpy(denoising).to(to)
                self.denoised[batch_rows[0, picked]] = out[picked]
        self.padded += batches * batch - len(lane)
        values = torch.cat(losses)[: len(lane)].cpu().numpy()
        self.losses[lane[scored], entry[scored], column[scored]] = values[scored]
        self._settle(lane, lane[~scored])

    def _denoise_batch(self, rows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Output and target [batch, elements] of one batch of rows (lane, level, class, noise)."""
        base = self.base
        lane, level, column, noise_row = rows
        eps = noise[noise_row]
        source = self.denoised if base.plan.base == "denoised" else self.noisy
        aim = self.denoised if base.plan.target == "denoised" else self.noisy
        z = source[lane] + self.input_scale[level, None] * eps
        target = aim[lane]
        if base.plan.moves_target:
            target = target + self.target_scale[level, None] * eps
        image = z.reshape(base.batch, *base.denoiser.image_shape)
        return base.denoiser(image, self.s[level], column).reshape(base.batch, -1), target

    def _settle(self, lane: np.ndarray, denoised: np.ndarray) -> None:
        """Count the rows of a chunk and move on the lanes that wait for no further row."""
        self._count(lane)
        self.expected_rows -= len(lane) + len(denoised) * (self.classes - 1)
        rows_of_lane = np.bincount(lane, minlength=len(self.remaining))
        self.remaining -= rows_of_lane
        done = (rows_of_lane > 0) & (self.remaining == 0)
        done[denoised] = False  # their rounds begin only now
        self._queue_rounds(np.sort(denoised))
        self._decide(np.flatnonzero(done))

    def _internal_noise(self, lane: np.ndarray, entry: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Noise of each (vote, level) in the rows, once for all classes; zeros for denoising."""
        level = self.level_of[entry]
        address = lane * (len(self.base.plan.s) + 1) + level
        _, first, inverse = np.unique(address, return_index=True, return_inverse=True)
        wanted = entry[first] != DENOISE
        position = np.where(wanted, np.cumsum(wanted) - 1, wanted.sum())
        kept = first[wanted]
        votes = self.of_vote[lane[kept]]
        units = self.votes.unit_index[votes]
        noise = self.noise.normal(
            self.image_id[units],
            self.stream[units],
            self.votes.vote[votes],
            "internal",
            level[kept],
            device=self.base.device,
        )
        zero = torch.zeros((1, noise.shape[1]), device=noise.device)
        return torch.cat([noise, zero]), position[inverse.reshape(-1)]

    def _count(self, lane: np.ndarray) -> None:
        units = self.votes.unit_index[self.of_vote[lane]]
        self.nfe += np.bincount(units, minlength=len(self.nfe))

    # ---- votes leave ---------------------------------------------------------------------------

    def _decide(self, lanes: np.ndarray) -> None:
        rounds = self.next_round[lanes]  # as it is before any of them moves on
        for round_index in np.unique(rounds):
            self._decide_round(int(round_index), lanes[rounds == round_index])
        ended = self.winner[self.of_vote[lanes]] != -1
        limit = self.item.hand_back_levels
        stays = lanes[~ended]
        if limit is not None and len(stays):
            rounds = self.next_round[stays]
            before = np.array([self.base.sift.entries_before(int(r)) for r in rounds])
            full = before >= limit
            for lane in stays[full]:
                self._hand_back(int(lane))
            self.free = np.concatenate([self.free, stays[full]])
            stays = stays[~full]
        self.free = np.concatenate([self.free, lanes[ended]])
        self._queue_rounds(stays)

    def _survivors(
        self, group: np.ndarray, seen: int
    ) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """Losses of the first entries for lanes a:b of a group, with survivors' columns only.

        Yields:
            (a, b, losses [seen, b - a, w], alive [b - a, w], columns [b - a, w]). Columns are in
            ascending order of class; rows with fewer survivors are filled up with dropped classes.
        """
        alive = self.alive[group]
        width = int(alive.sum(axis=1).max())
        step = max(1, DECIDE_BYTES // (8 * max(seen, 1) * width))
        for a in range(0, len(group), step):
            b = min(a + step, len(group))
            still = alive[a:b]
            columns = np.sort(np.argsort(~still, axis=1, kind="stable")[:, :width], axis=1)
            entries = np.arange(seen)[:, None, None]
            losses = self.losses[group[None, a:b, None], entries, columns[None]]
            yield a, b, losses, np.take_along_axis(still, columns, axis=1), columns

    def _decide_round(self, round_index: int, group: np.ndarray) -> None:
        sift = self.base.sift
        for a, b, losses, alive, columns in self._survivors(
            group, sift.entries_before(round_index + 1)
        ):
            still, following, winner = sift.step(round_index, losses, alive)
            lanes, row = group[a:b], np.arange(b - a)
            kept = np.zeros((b - a, self.classes), bool)
            np.put_along_axis(kept, columns, still, axis=1)
            votes = self.of_vote[lanes]
            target = self.votes.target[votes]
            won = np.where(winner >= 0, columns[row, np.maximum(winner, 0)], winner)
            # A vote about one class ends when that class is out; when it wins, `won` says so.
            about = target != ALL_CLASSES
            out = about & ~kept[row, np.maximum(target, 0)]
            won[out | (about & (won >= 0) & (won != target))] = NOT_TARGET
            self.alive[lanes] = kept
            self.next_round[lanes] = following
            self.winner[votes] = won

    def _hand_back(self, lane: int) -> None:
        round_index = int(self.next_round[lane])
        seen = self.base.sift.entries_before(round_index)
        survivors = np.flatnonzero(self.alive[lane]).astype(np.int32)
        losses = self.losses[lane, :seen][:, survivors]
        self.back.append((int(self.of_vote[lane]), round_index, survivors, losses.ravel()))

    # ---- what the item returns -----------------------------------------------------------------

    def tallies(self) -> tuple[Tally, ...]:
        """Counts of the settled votes, one tally for each unit."""
        target = np.full(len(self.votes.units), ALL_CLASSES, np.int64)
        target[self.votes.unit_index] = self.votes.target
        counts: list[dict[int, int]] = [{} for _ in self.votes.units]
        settled = self.winner != -1
        pairs = np.stack([self.votes.unit_index[settled], self.winner[settled]], axis=1)
        values, times = np.unique(pairs, axis=0, return_counts=True)
        for (unit, winner), count in zip(values.tolist(), times.tolist(), strict=True):
            counts[unit][winner] = count
        return tuple(
            Tally(unit, int(target[i]), counts[i], int(self.nfe[i]))
            for i, unit in enumerate(self.votes.units)
        )

    def handed_back(self) -> OpenVotes | None:
        """The votes still open, in the order of the item's votes, or None."""
        if not self.back:
            return None
        self.back.sort(key=lambda row: row[0])
        votes = np.array([row[0] for row in self.back])
        used, unit_index = np.unique(self.votes.unit_index[votes], return_inverse=True)
        return OpenVotes(
            units=tuple(self.votes.units[i] for i in used),
            unit_index=unit_index.astype(np.int64),
            vote=self.votes.vote[votes],
            target=self.votes.target[votes],
            round=(rounds := np.array([row[1] for row in self.back], np.int64)),
            entries=np.array([self.base.sift.entries_before(int(r)) for r in rounds], np.int64),
            survivor_counts=np.array([len(row[2]) for row in self.back], np.int64),
            survivors=np.concatenate([row[2] for row in self.back]),
            losses=np.concatenate([row[3] for row in self.back]),
        )


def _table(values: np.ndarray, last: float, device: str) -> Tensor:
    return torch.tensor(np.append(values, last), dtype=torch.float32, device=device)


def _loss_offsets(held: OpenVotes | None) -> tuple[np.ndarray, np.ndarray]:
    """Where each open vote's survivors and losses begin: two int64 [N + 1]."""
    if held is None:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    survivors = np.concatenate([[0], np.cumsum(held.survivor_counts)])
    losses = np.concatenate([[0], np.cumsum(held.survivor_counts * held.entries)])
    return survivors, losses
