"""One item under evaluation: votes are let in, rows fill batches, losses settle votes.

The rows of votes of several units and images share batches, and a vote that ends makes room at
once. Nothing that a vote returns depends on the lane, the batch or the neighbours: noise has an
address, batches have one shape or a smaller one that gives the same bits (the last is padded), and
sums are taken in a fixed order, in float64.

Rows are evaluated in *chunks* of up to ``CHUNK_BATCHES`` batches, since the decisions between two
of them wait for the device. On a GPU the next chunk is queued before the losses of the last one are
looked at, so that it computes while the host decides: the host waits for the device once in a
chunk, for its losses, and the device for the host only where votes run out.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcert_ray.conventions import DENOISE, NO_CLASS, OPEN
from diffcert_ray.datasets.pixel_grid import to_grid
from diffcert_ray.denoisers.device import Coming, sent
from diffcert_ray.engine.item_votes import CastVotes, HandedBack, Unpacked, Votes, packed
from diffcert_ray.engine.lanes import Lanes, Rows
from diffcert_ray.engine.proposals import Proposals
from diffcert_ray.engine.row_queue import RowQueue
from diffcert_ray.engine.watch import Watch, unwatched
from diffcert_ray.method.diffusion_base import DiffusionBase
from diffcert_ray.method.diffusion_classifier import row_losses
from diffcert_ray.method.noise import NoiseSource, noisy_model_images
from diffcert_ray.votes.units import Item

LANE_BYTES = 512 * 2**20  # what the losses of the votes under way may take
CHUNK_BATCHES = 8  # between two decisions: more spread their cost, fewer keep votes fresh
AHEAD = {"cpu": 0, "cuda": 1}  # chunks queued before the losses of the last one are looked at


@dataclass(frozen=True)
class Chunk:
    """Rows that the device evaluates or has evaluated, and their losses on the way to the host."""

    rows: Rows
    losses: Coming
    log_p: Coming | None  # of the head for the denoising rows, in their order


class ItemRun:
    """The state of one item under evaluation.

    Args:
        image: image_id -> float32 [C, H, W] in [0, 1].
    """

    def __init__(
        self,
        base: DiffusionBase,
        item: Item,
        image: Callable[[int], np.ndarray],
        watch: Watch = unwatched,
    ) -> None:
        self._base, self._image, self._watch = base, image, watch
        self._limit = item.hand_back_levels
        self.votes = Votes.of(item)
        self._image_id, self._stream = self.votes.addresses()
        self._held = Unpacked(item.open_votes) if item.open_votes is not None else None
        self._first_held = len(self.votes) - len(item.open_votes or ())
        self._ahead = AHEAD[torch.device(base.device).type]
        self._classes = base.denoiser.num_classes
        # Rows that a vote is expected to need while it waits for its denoising row: what a head
        # leaves of the classes is known only afterwards.
        self._each = self._classes if base.head is None else 1
        self._proposals: Proposals | None = None
        if base.head is not None:
            network = base.unconditional
            self._proposals = Proposals(network, base.head, base.batch, base.device)
        self._lanes = Lanes(base.sift, self._classes, self._lanes_wanted())
        self._queue = RowQueue()
        # In the queue, a denoising row counting as the round that follows it.
        self._expected_rows = 0
        self._admitted = 0
        self.winner = np.full(len(self.votes), OPEN, np.int64)
        self.nfe = np.zeros(len(self.votes), np.int64)
        self.padded = 0
        self.back: list[HandedBack] = []
        self._set_up_device()

    def _lanes_wanted(self) -> int:
        entries, chunk = len(self._base.sift.order), CHUNK_BATCHES * self._base.batch
        affordable = max(1, LANE_BYTES // (entries * self._classes * 8))
        return min(affordable, max(len(self.votes), 1), 2 * (1 + self._ahead) * chunk)

    def _set_up_device(self) -> None:
        base, device = self._base, self._base.device
        elements = int(np.prod(base.denoiser.image_shape))
        self._internal = NoiseSource(base.seed, base.sigma, elements)
        self._smoothing = NoiseSource(base.seed, base.sigma, int(np.prod(base.smoothed_shape)))
        self._noisy = torch.zeros((len(self._lanes), self._smoothing.elements), device=device)
        self._denoised = torch.zeros((len(self._lanes), elements), device=device)
        # Tables over the noise levels with one more entry for the denoising step: no extra noise.
        plan = base.plan
        self._level_of = np.append(base.sift.order, len(plan.s))
        self._s = _table(plan.s, plan.s_tau, device)
        self._input_scale = _table(plan.noise_scale, 0.0, device)
        self._target_scale = _table(plan.target_scale, 0.0, device)
        self._no_noise = torch.zeros((1, elements), device=device)

    def finish(self) -> CastVotes:
        """Evaluate until every vote has its class or is handed back."""
        under_way: deque[Chunk] = deque()
        with torch.inference_mode():
            while True:
                self._admit()
                full = self._queue.rows >= self._base.batch
                if (full and len(under_way) <= self._ahead) or (self._queue.rows and not under_way):
                    under_way.append(self._queue_chunk())
                elif under_way:
                    self._settle(under_way.popleft())
                else:
                    break
        open_votes = packed(self.votes, self.back)
        return CastVotes(self.votes, self.winner, self.nfe, self.padded, open_votes)

    # ---- votes enter -----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let in as many votes as keep the queue filled: each one under way holds memory."""
        batch = self._base.batch
        chunks = (1 + self._ahead) * CHUNK_BATCHES * batch
        while len(self._lanes.free) and self._admitted < len(self.votes):
            wanted = -(-(chunks - self._expected_rows) // self._each)
            wanted = max(wanted, batch - self._queue.rows)
            if wanted <= 0:
                return
            count = min(wanted, len(self._lanes.free), len(self.votes) - self._admitted)
            votes = np.arange(self._admitted, self._admitted + count)
            self._admitted += count
            with self._watch("admission"):
                self._enter(votes)

    def _enter(self, votes: np.ndarray) -> None:
        lanes = self._lanes.enter(votes)
        if self._held is not None:
            for lane, row in zip(lanes, votes - self._first_held, strict=True):
                if row >= 0:
                    self._lanes.restore(int(lane), self._held.row(int(row)))
        index = sent(lanes, self._base.device)
        noisy = self._noisy_images(votes)
        self._noisy[index] = noisy
        if noisy.shape[1] == self._denoised.shape[1]:
            # The input of the denoising step, until its output replaces it.
            self._denoised[index] = noisy
        if not self._base.denoises:
            self._queue_rounds(lanes)
        elif self._base.unconditional is self._base.denoiser:
            self._queue.put(lanes, np.full_like(lanes, DENOISE), np.full_like(lanes, NO_CLASS))
            self._expected_rows += len(lanes) * self._each
            self._lanes.wait_for(lanes, 1)
        else:
            self._begin(lanes, self._denoise_apart(lanes))

    def _noisy_images(self, votes: np.ndarray) -> Tensor:
        """Images of votes under their smoothing noise, model space [n, elements]."""
        ids, device = self._image_id[votes], self._base.device
        different, which = np.unique(ids, return_inverse=True)
        pixels = np.stack([self._image(int(i)).reshape(-1) for i in different])
        points = sent(to_grid(pixels), device)[sent(which.reshape(-1), device)]
        steps = self._smoothing.steps(
            ids, self._stream[votes], self.votes.vote[votes], device=device
        )
        return noisy_model_images(points, steps)

    def _denoise_apart(self, lanes: np.ndarray) -> Coming | None:
        """The unconditional step by a network of its own, in batches of its own.

        Returns:
            What the head says of each lane, if there is one.
        """
        batch, shape = self._base.batch, self._base.smoothed_shape
        s, seen = self._s[-1].expand(batch), []
        for start in range(0, len(lanes), batch):
            group = lanes[start : start + batch]
            rows = sent(np.resize(group, batch), self._base.device)
            noisy = self._noisy[rows].reshape(batch, *shape)
            if self._proposals is None:
                out = self._base.unconditional(noisy, s, None)
            else:
                asking = np.arange(len(group))
                out, features = self._proposals.evaluate(noisy, s, None, asking)
                seen.append(features)
            self._denoised[rows[: len(group)]] = out.reshape(batch, -1)[: len(group)]
            self.nfe[self._lanes.vote[group]] += 1
            self.padded += batch - len(group)
        return Coming(self._proposals.log_p(torch.cat(seen))) if self._proposals else None

    def _begin(self, lanes: np.ndarray, log_p: Coming | None) -> None:
        """Begin the rounds of votes whose denoised input is there; some need none.

        Args:
            lanes: int64 [n].
            log_p: what the head says of each, in their order; None without a head.
        """
        if log_p is not None:
            votes = self._lanes.vote[lanes]
            winner = self._lanes.propose(lanes, log_p.array(), self.votes.target[votes])
            self.winner[votes] = winner
            lanes = lanes[winner == OPEN]
        self._queue_rounds(np.sort(lanes))

    def _queue_rounds(self, lanes: np.ndarray) -> None:
        for rows in self._lanes.next_rows(lanes):
            self._queue.put(*rows)
            self._expected_rows += len(rows[0])

    # ---- rows are evaluated ----------------------------------------------------------------------

    def _queue_chunk(self) -> Chunk:
        """Let the device evaluate what waits first: whole batches, or one that is padded."""
        batch, device = self._base.batch, self._base.device
        batches = min(max(self._queue.rows // batch, 1), CHUNK_BATCHES)
        lane, entry, klass = self._queue.take(batches * batch)
        with self._watch("noise"):
            noise, noise_row = self._noise_of(lane, entry)
        # Rows are repeated to fill the last batch.
        short = (size for size in self._base.short_batches if size >= len(lane))
        filled = np.arange(min(short, default=batches * batch)) % len(lane)
        table = np.stack([lane, self._level_of[entry], klass, noise_row])
        rows = sent(table[:, filled], device)
        (denoising,) = np.nonzero(entry == DENOISE)
        with self._watch("network"):
            out, target, features = self._denoise(rows, noise, denoising)
        with self._watch("losses"):
            losses = row_losses(out, target)[: len(lane)]
            # Outputs of denoising rows become their votes' inputs; nobody has used these yet.
            if len(denoising):
                self._denoised[sent(lane[denoising], device)] = out[sent(denoising, device)]
        log_p = None
        if self._proposals is not None and len(denoising):
            with self._watch("head"):
                log_p = Coming(self._proposals.log_p(features))
        chunk = Chunk((lane, entry, klass), Coming(losses), log_p)
        self.padded += len(filled) - len(lane)
        return chunk

    def _denoise(
        self, rows: Tensor, noise: Tensor, denoising: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs and targets [n, elements] of rows (lane, level, class, noise), int64 [4, n].

        And what a head looks at of the denoising rows, [their number, features].
        """
        base = self._base
        lane, level, klass, noise_row = rows
        eps = noise[noise_row]
        source = self._denoised if base.plan.base == "denoised" else self._noisy
        aim = self._denoised if base.plan.target == "denoised" else self._noisy
        base_image = source[lane]
        target = base_image if aim is source else aim[lane]
        z = (base_image + self._input_scale[level, None] * eps).reshape(
            -1, *base.denoiser.image_shape
        )
        if base.plan.moves_target:
            target = target + self._target_scale[level, None] * eps
        batches = zip(*(part.split(base.batch) for part in (z, self._s[level], klass)), strict=True)
        outs, seen = [], []
        for index, (x, s, y) in enumerate(batches):
            if self._proposals is None:
                outs.append(base.denoiser(x, s, y))
                continue
            asking = denoising[denoising // base.batch == index] - index * base.batch
            out, features = self._proposals.evaluate(x, s, y, asking)
            outs.append(out)
            seen.append(features)
        out = torch.cat(outs)
        return out.reshape(len(out), -1), target, torch.cat(seen) if seen else self._no_noise

    def _noise_of(self, lane: np.ndarray, entry: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Noise of each (vote, level) in the rows, once for all classes; zeros for denoising."""
        address = lane * len(self._level_of) + entry + 1
        _, first, inverse = np.unique(address, return_index=True, return_inverse=True)
        wanted = entry[first] != DENOISE
        position = np.where(wanted, np.cumsum(wanted) - 1, wanted.sum())
        kept = first[wanted]
        votes = self._lanes.vote[lane[kept]]
        noise = self._internal.normal(
            self._image_id[votes],
            self._stream[votes],
            self.votes.vote[votes],
            self._level_of[entry[kept]],
            device=self._base.device,
        )
        return torch.cat([noise, self._no_noise]), position[inverse.reshape(-1)]

    # ---- votes leave -----------------------------------------------------------------------------

    def _settle(self, chunk: Chunk) -> None:
        """Take in a chunk's losses, and move on the lanes that wait for no further row."""
        with self._watch("losses"):
            values = chunk.losses.array()
        with self._watch("decisions"):
            lane, entry, klass = chunk.rows
            scored = entry != DENOISE
            denoised = lane[~scored]
            self._lanes.store((lane[scored], entry[scored], klass[scored]), values[scored])
            self.nfe += np.bincount(self._lanes.vote[lane], minlength=len(self.nfe))
            self._expected_rows -= len(lane) + len(denoised) * (self._each - 1)
            done = self._lanes.arrived(lane)
            self._begin(denoised, chunk.log_p)
            self._decide(done[~np.isin(done, denoised)])

    def _decide(self, lanes: np.ndarray) -> None:
        votes = self._lanes.vote[lanes]
        self.winner[votes] = self._lanes.decide(lanes, self.votes.target[votes])
        stays = lanes[self.winner[votes] == OPEN]
        if self._limit is not None and len(stays):
            full = self._lanes.entries_seen(stays) >= self._limit
            self.back += [self._lanes.state(int(lane)) for lane in stays[full]]
            self._lanes.release(stays[full])
            stays = stays[~full]
        self._queue_rounds(stays)


def _table(values: np.ndarray, last: float, device: str) -> Tensor:
    return sent(np.append(values, last).astype(np.float32), device)
