"""The order in which clips are used. An order is an endless pure function of the position, so a run can resume in the
middle of an epoch without replaying it. It also chooses the replacement for a clip that cannot be used, so that sources
and speakers keep their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from data.clips import DataError
from data.seeds import derive_seed

BLOCK = 1000  # places among which sources have exactly their shares
OF_SPEAKER = 20  # clips of a speaker tried in a row before another speaker's are
ROUND, SPEAKER, SHARES = -2, -3, -4  # keep the seeds of different permutations apart; -1 is an epoch's


class Order(Protocol):
    def __call__(self, place: int) -> tuple[int, int]:
        """The clip at position `place`, 0 or more: its epoch (how often it was used before) and its index."""

    def instead(self, index: int, attempt: int, generator: torch.Generator) -> int:
        """Draws a clip to replace `index`, after `attempt` other replacements that could not be used either."""


class Shuffled:
    """Epoch after epoch of all clips, each epoch in an order of its own."""

    def __init__(self, clips: int, seed: int):
        self.clips, self.seed = clips, seed
        self.epoch, self.order = -1, torch.empty(0)

    def __call__(self, place: int) -> tuple[int, int]:
        epoch, position = divmod(place, self.clips)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, _permutation(self.clips, self.seed, epoch, -1)
        return epoch, int(self.order[position])

    def instead(self, index: int, attempt: int, generator: torch.Generator) -> int:
        return _below(self.clips, generator)


class BySpeaker:
    """Round after round of all speakers; at each of their turns a speaker's next clip, in an order of their own that
    changes when all were used. `speakers` [clips] numbers the clips' speakers from 0."""

    def __init__(self, speakers: np.ndarray, seed: int):
        self.speakers, self.seed = speakers, seed
        self.members = np.argsort(speakers, kind="stable").astype(np.int32)  # clips, speaker by speaker
        self.counts = np.bincount(speakers)
        self.begins = np.cumsum(self.counts) - self.counts
        self.round, self.order = -1, torch.empty(0)

    def __call__(self, place: int) -> tuple[int, int]:
        turn, position = divmod(place, len(self.counts))
        if turn != self.round:
            self.round, self.order = turn, _permutation(len(self.counts), self.seed, turn, ROUND)
        speaker = int(self.order[position])
        epoch, position = divmod(turn, int(self.counts[speaker]))
        within = int(_permutation(int(self.counts[speaker]), self.seed, epoch, SPEAKER, speaker)[position])
        return epoch, int(self.members[self.begins[speaker] + within])

    def instead(self, index: int, attempt: int, generator: torch.Generator) -> int:
        """A clip of the same speaker; after many in vain, of any."""
        speaker = self.speakers[index]
        clips = int(self.counts[speaker])
        if attempt >= min(OF_SPEAKER, clips - 1):
            return _below(len(self.members), generator)
        return int(self.members[self.begins[speaker] + _below(clips, generator)])


class Mixed:
    """Several orders, each with its share of the places: of every `BLOCK` places exactly its part, in a drawn order.
    Indices count through the sources, one after another. Raises DataError for a share too small to get a place."""

    def __init__(self, orders: Sequence[Order], clips: Sequence[int], weights: Sequence[float], seed: int):
        self.orders, self.seed = list(orders), seed
        self.begins = np.cumsum(clips) - np.asarray(clips)
        exact = np.asarray(weights, dtype=np.float64) / sum(weights) * BLOCK
        self.quotas = np.floor(exact).astype(int)
        for i in np.argsort(self.quotas - exact, kind="stable")[: BLOCK - self.quotas.sum()]:  # largest remainders
            self.quotas[i] += 1
        if not self.quotas.all():
            raise DataError(f"the sources' weights are {list(weights)}: each has to be 1/{BLOCK} of their sum or more")
        self.block, self.sources, self.before = -1, np.empty(0), np.empty(0)

    def __call__(self, place: int) -> tuple[int, int]:
        block, position = divmod(place, BLOCK)
        if block != self.block:
            self.block = block
            shares = np.repeat(np.arange(len(self.quotas)), self.quotas)
            self.sources = shares[_permutation(BLOCK, self.seed, block, SHARES).numpy()]
            self.before = np.empty(BLOCK, dtype=int)  # places of the same source before, in this block
            for source, quota in enumerate(self.quotas):
                self.before[self.sources == source] = np.arange(quota)
        source = int(self.sources[position])
        epoch, index = self.orders[source](block * int(self.quotas[source]) + int(self.before[position]))
        return epoch, int(self.begins[source]) + index

    def instead(self, index: int, attempt: int, generator: torch.Generator) -> int:
        """A clip of the same source."""
        source = int(np.searchsorted(self.begins, index, side="right")) - 1
        begin = int(self.begins[source])
        return begin + self.orders[source].instead(index - begin, attempt, generator)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _permutation(size: int, *numbers: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(*numbers)))
