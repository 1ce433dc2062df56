"""The order of the training clips. An order is an endless, pure function of a position, so a run resumes in the middle
of an epoch without reading the clips before. It also chooses the replacement of a clip that cannot be used, so that
sources and speakers keep their shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from data.clips import DataError
from data.seeds import derive_seed

BLOCK = 1000  # positions in which every source has exactly its share
OF_SPEAKER = 20  # replacements tried from one speaker before other speakers' clips
ROUND, SPEAKER, SHARES = -2, -3, -4  # different seeds for different permutations; an epoch's has -1


class Order(Protocol):
    def __call__(self, position: int) -> tuple[int, int]:
        """The clip at a position, from 0 on: its epoch, which is how often it came before, and its index."""

    def replacement(self, index: int, attempt: int, generator: torch.Generator) -> int:
        """Draws a clip in place of `index`, which cannot be used, like the `attempt` replacements drawn before."""


class Shuffled:
    """Epochs of all clips, each in a new random order."""

    def __init__(self, clips: int, seed: int):
        self.clips, self.seed = clips, seed
        self.epoch, self.order = -1, torch.empty(0)

    def __call__(self, position: int) -> tuple[int, int]:
        epoch, index = divmod(position, self.clips)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, _permutation(self.clips, self.seed, epoch, -1)
        return epoch, int(self.order[index])

    def replacement(self, index: int, attempt: int, generator: torch.Generator) -> int:
        return _below(self.clips, generator)


class BySpeaker:
    """Rounds of all speakers in random order. In each round a speaker gives the next clip of an own random order, which
    is drawn anew when all of the speaker's clips have come. `speakers` [clips] numbers the clips' speakers from 0."""

    def __init__(self, speakers: np.ndarray, seed: int):
        self.speakers, self.seed = speakers, seed
        self.members = np.argsort(speakers, kind="stable").astype(np.int32)  # clips, speaker by speaker
        self.counts = np.bincount(speakers)
        self.begins = np.cumsum(self.counts) - self.counts
        self.round, self.order = -1, torch.empty(0)

    def __call__(self, position: int) -> tuple[int, int]:
        turn, index = divmod(position, len(self.counts))
        if turn != self.round:
            self.round, self.order = turn, _permutation(len(self.counts), self.seed, turn, ROUND)
        speaker = int(self.order[index])
        epoch, index = divmod(turn, int(self.counts[speaker]))
        within = int(_permutation(int(self.counts[speaker]), self.seed, epoch, SPEAKER, speaker)[index])
        return epoch, int(self.members[self.begins[speaker] + within])

    def replacement(self, index: int, attempt: int, generator: torch.Generator) -> int:
        """A clip of the same speaker; after many attempts, of any speaker."""
        speaker = self.speakers[index]
        clips = int(self.counts[speaker])
        if attempt >= min(OF_SPEAKER, clips - 1):
            return _below(len(self.members), generator)
        return int(self.members[self.begins[speaker] + _below(clips, generator)])


class Mixed:
    """Several orders, each with its share: exactly its part of every `BLOCK` positions, in a random order. Indices
    count through the sources, one after another. Raises DataError for a share too small for one position in `BLOCK`."""

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

    def __call__(self, position: int) -> tuple[int, int]:
        block, offset = divmod(position, BLOCK)
        if block != self.block:
            self.block = block
            shares = np.repeat(np.arange(len(self.quotas)), self.quotas)
            self.sources = shares[_permutation(BLOCK, self.seed, block, SHARES).numpy()]
            self.before = np.empty(BLOCK, dtype=int)  # positions of the same source before, in this block
            for source, quota in enumerate(self.quotas):
                self.before[self.sources == source] = np.arange(quota)
        source = int(self.sources[offset])
        epoch, index = self.orders[source](block * int(self.quotas[source]) + int(self.before[offset]))
        return epoch, int(self.begins[source]) + index

    def replacement(self, index: int, attempt: int, generator: torch.Generator) -> int:
        """A clip of the same source."""
        source = int(np.searchsorted(self.begins, index, side="right")) - 1
        begin = int(self.begins[source])
        return begin + self.orders[source].replacement(index - begin, attempt, generator)


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _permutation(size: int, *numbers: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(*numbers)))
