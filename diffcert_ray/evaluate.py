"""Votes on one worker: many votes fill fixed-shape batches, until each knows its class.

The engine keeps a set of *lanes*, one for each vote under way, and a queue of rows
(lane, entry of the sift rule, class). It fills batches of exactly ``batch`` rows from whatever is in
the queue, so that votes of several units and images share a batch and a vote that ends makes room at
once. Nothing that a vote returns depends on the lane, the batch or the neighbours: noise has an
address, batches have one shape (the last is padded), and sums are taken in a fixed order in float64.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.base_classifier import BaseClassifier
from diffcert_ray.classifier import class_logits, row_losses, to_model_image
from diffcert_ray.noise import NoiseSource
from diffcert_ray.sift import Sift
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
CHUNK_BATCHES = 8  # batches between two decisions: more spread numpy's overhead, fewer keep votes fresh
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
        raise ValueError(f"item {item.item_id} is at sigma {item.sigma}, the worker at {base.sigma}")
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


class _ItemRun:
    """The state of one item under evaluation."""

    def __init__(
        self, base: BaseClassifier, item: Item, image: Callable[[int], np.ndarray]
    ) -> None:
        self.base, self.item, self.image = base, item, image
        self.votes = Votes.of(item)
        self.noise = NoiseSource(base.seed, base.sigma, int(np.prod(base.denoiser.image_shape)))
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
        shape = (lanes, self.noise.elements)
        self.noisy = torch.zeros(shape, device=base.device)
        self.denoised = torch.zeros(shape, device=base.device)
        self.queue = np.empty((3, 0), np.int64)
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
                if self.queue.shape[1] == 0:
                    return
                self._evaluate_chunk()

    # ---- votes enter ---------------------------------------------------------------------------

    def _admit(self) -> None:
        chunk = CHUNK_BATCHES * self.base.batch
        rows_each = 1 if self.base.plan.needs_denoised else self.classes
        while self.queue.shape[1] < chunk and len(self.free) and self.admitted < len(self.winner):
            wanted = -(-(chunk - self.queue.shape[1]) // rows_each)
            count = min(wanted, len(self.free), len(self.winner) - self.admitted)
            lanes, self.free = self.free[:count], self.free[count:]
            votes = np.arange(self.admitted, self.admitted + count)
            self.admitted += count
            self._enter(lanes, votes)

    def _enter(self, lanes: np.ndarray, votes: np.ndarray) -> None:
        self.of_vote[lanes] = votes
        self.alive[lanes] = True
        self.next_round[lanes] = 0
        self._restore(lanes, votes)
        units = self.votes.unit_index[votes]
        ids = self.image_id[units]
        different, which = np.unique(ids, return_inverse=True)
        pixels = np.stack([self.image(int(i)).reshape(-1) for i in different])
        clean = to_model_image(torch.from_numpy(pixels)[torch.from_numpy(which)])
        clean = clean.to(self.base.device)
        delta = self.noise.normal(
            ids, self.stream[units], self.votes.vote[votes], "smoothing", device=self.base.device
        )
        index = torch.from_numpy(lanes).to(self.base.device)
        noisy = clean + self.base.plan.s_tau * delta
        self.noisy[index] = noisy
        self.denoised[index] = noisy  # the input of the denoising step, until its output replaces it
        if not self.base.plan.needs_denoised:
            self._queue_rounds(lanes)
        elif self.base.unconditional is self.base.denoiser:
            self._queue_rows(lanes, np.full(count := len(lanes), DENOISE), np.full(count, -1))
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
        batch, shape = self.base.batch, self.base.denoiser.image_shape
        s = self.s[-1].expand(batch)
        for start in range(0, len(lanes), batch):
            group = lanes[start : start + batch]
            rows = torch.from_numpy(np.resize(group, batch)).to(self.base.device)
            out = self.base.unconditional(self.noisy[rows].reshape(batch, *shape), s, None)
            self.denoised[rows[: len(group)]] = out.reshape(batch, -1)[: len(group)]
            self._count(group)
            self.padded += batch - len(group)

    # ---- rows are queued and evaluated -----------------------------------------------------------

    def _queue_rows(self, lanes: np.ndarray, entries: np.ndarray, classes: np.ndarray) -> None:
        self.queue = np.concatenate([self.queue, np.stack([lanes, entries, classes])], axis=1)

    def _queue_rounds(self, lanes: np.ndarray) -> None:
        """Queue the next round of each lane: rows in the order lane, entry, class."""
        for round_index in np.unique(self.next_round[lanes]):
            group = lanes[self.next_round[lanes] == round_index]
            start, stop = self.base.sift.rounds[round_index]
            alive = self.alive[group]
            mask = np.broadcast_to(alive[:, None, :], (len(group), stop - start, self.classes))
            row, entry, column = np.nonzero(mask)
            self.remaining[group] = alive.sum(axis=1) * (stop - start)
            self._queue_rows(group[row], start + entry, column)

    def _evaluate_chunk(self) -> None:
        batch = self.base.batch
        batches = min(max(self.queue.shape[1] // batch, 1), CHUNK_BATCHES)
        rows, self.queue = np.split(self.queue, [batches * batch], axis=1)
        lane, entry, column = rows
        noise, noise_row = self._internal_noise(lane, entry)
        losses = [
            self._evaluate_batch(rows[:, a : a + batch], noise, noise_row[a : a + batch])
            for a in range(0, rows.shape[1], batch)
        ]
        self._count(lane)
        self.padded += batches * batch - rows.shape[1]
        scored = entry != DENOISE
        values = torch.cat(losses).cpu().numpy()
        self.losses[lane[scored], entry[scored], column[scored]] = values[scored]
        np.subtract.at(self.remaining, lane, 1)
        done = np.unique(lane)
        done = done[self.remaining[done] == 0]
        waiting = np.zeros(len(self.remaining), bool)
        waiting[lane[~scored]] = True  # its input is denoised, no round has run yet
        self._queue_rounds(done[waiting[done]])
        self._decide(done[~waiting[done]])

    def _internal_noise(self, lane: np.ndarray, entry: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Noise of each (vote, level) in the rows, once for all classes; a zero row for denoising."""
        level = self.level_of[entry]
        address = lane * (len(self.base.plan.s) + 1) + level
        unique, first, inverse = np.unique(address, return_index=True, return_inverse=True)
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

    def _evaluate_batch(self, rows: np.ndarray, noise: Tensor, noise_row: np.ndarray) -> Tensor:
        """Losses float64 [rows] of one batch; outputs of denoising rows become votes' inputs."""
        base, count = self.base, rows.shape[1]
        lane, entry, column = (np.resize(r, base.batch) for r in rows)
        to = base.device
        level = torch.from_numpy(self.level_of[entry]).to(to)
        lanes = torch.from_numpy(lane).to(to)
        eps = noise[torch.from_numpy(np.resize(noise_row, base.batch)).to(to)]
        source = self.denoised if base.plan.base == "denoised" else self.noisy
        aim = self.denoised if base.plan.target == "denoised" else self.noisy
        z = source[lanes] + self.input_scale[level, None] * eps
        target = aim[lanes] + self.target_scale[level, None] * eps
        out = base.denoiser(
            z.reshape(base.batch, *base.denoiser.image_shape),
            self.s[level],
            torch.from_numpy(column).to(to),
        ).reshape(base.batch, -1)
        losses = row_losses(out, target)
        denoising = np.flatnonzero(entry[:count] == DENOISE)
        if len(denoising):
            picked = torch.from_numpy(denoising).to(to)
            self.denoised[lanes[picked]] = out[picked]
        return losses[:count]

    def _count(self, lane: np.ndarray) -> None:
        np.add.at(self.nfe, self.votes.unit_index[self.of_vote[lane]], 1)

    # ---- votes leave -------------------------------------------------------------------------------

    def _decide(self, lanes: np.ndarray) -> None:
        rounds = self.next_round[lanes]  # as it is before any of them moves on
        for round_index in np.unique(rounds):
            self._decide_round(int(round_index), lanes[rounds == round_index])
        ended = self.winner[self.of_vote[lanes]] != -1
        limit = self.item.hand_back_levels
        stays = lanes[~ended]
        if limit is not None and len(stays):
            starts = np.array([r[0] for r in self.base.sift.rounds])
            full = starts[self.next_round[stays]] >= limit
            for lane in stays[full]:
                self._hand_back(int(lane))
            self.free = np.concatenate([self.free, stays[full]])
            stays = stays[~full]
        self.free = np.concatenate([self.free, lanes[ended]])
        self._queue_rounds(stays)

    def _decide_round(self, round_index: int, group: np.ndarray) -> None:
        seen = self.base.sift.rounds[round_index][1]
        alive = self.alive[group]
        width = int(alive.sum(axis=1).max())
        # Survivors' columns only, in ascending order of class; rows with fewer are filled up.
        columns = np.sort(np.argsort(~alive, axis=1, kind="stable")[:, :width], axis=1)
        index = np.arange(len(group))[:, None]
        losses = self.losses[group[None, :, None], np.arange(seen)[:, None, None], columns[None]]
        still, following, winner = self.base.sift.step(round_index, losses, alive[index, columns])
        kept = np.zeros_like(alive)
        kept[index, columns] = still
        votes = self.of_vote[group]
        target = self.votes.target[votes]
        won = np.where(winner >= 0, columns[np.arange(len(group)), np.maximum(winner, 0)], winner)
        # A vote about one class ends when that class is out; when it is the winner, `won` says so.
        about = target != ALL_CLASSES
        out = about & ~kept[np.arange(len(group)), np.maximum(target, 0)]
        won[out | (about & (won >= 0) & (won != target))] = NOT_TARGET
        self.alive[group] = kept
        self.next_round[group] = following
        self.winner[votes] = won

    def _hand_back(self, lane: int) -> None:
        round_index = int(self.next_round[lane])
        seen = self.base.sift.rounds[round_index][0]
        survivors = np.flatnonzero(self.alive[lane]).astype(np.int32)
        losses = self.losses[lane, :seen][:, survivors]
        self.back.append((int(self.of_vote[lane]), round_index, survivors, losses.ravel()))

    # ---- what the item returns -----------------------------------------------------------------------

    def tallies(self) -> tuple[Tally, ...]:
        """Counts of the settled votes, one tally for each unit and target."""
        unit_target: dict[int, int] = {}
        counts: list[dict[int, int]] = [{} for _ in self.votes.units]
        for unit, target in zip(self.votes.unit_index, self.votes.target, strict=True):
            unit_target[int(unit)] = int(target)
        settled = self.winner != -1
        pairs = np.stack([self.votes.unit_index[settled], self.winner[settled]])
        values, times = np.unique(pairs, axis=1, return_counts=True)
        for unit, winner, count in zip(*values, times, strict=True):
            counts[int(unit)][int(winner)] = int(count)
        return tuple(
            Tally(unit, unit_target[i], counts[i], int(self.nfe[i]))
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
            entries=np.array([self.base.sift.rounds[r][0] for r in rounds], np.int64),
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
