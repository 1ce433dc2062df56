"""The listener: a small speaker network that knows one encoder's codes only, and hears other encoders' codes.

It is trained to tell speakers apart by the withheld encoder's codes. Then it hears another encoder's codes of clips of
speakers that it was not trained on. How often it confuses them says how much of the voice somebody hears who knows the
withheld encoder's way of using the codes, as a language model does.

    listener = train(codes, speakers, config, seed=0)
    trials = hear(listener, enrolled, heard, speakers)
    equal_error_rate(trials)

`experiments.stand_in.measure_codes` does this for the stand-in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import CodecConfig
from evaluation.statistics import LEVEL, Interval, grouped, resampled_counts

ROW, CHANNELS, EMBEDDING = 96, 192, 128  # dimensions
CROP = 28  # frames of a training example: 2.2 s
BATCH = 128
STEPS = 2500
LR, WEIGHT_DECAY, DROPOUT = 2e-3, 0.05, 0.2
THRESHOLDS = 400


class Listener(nn.Module):
    """Codes to a voice: the sum of a table's rows, two convolutions, mean and spread over the frames."""

    first_rows: Tensor

    def __init__(self, config: CodecConfig, speakers: int):
        super().__init__()
        sizes = [config.semantic_codebook_size, *[config.acoustic_codebook_size] * config.acoustic_dim]
        self.register_buffer("first_rows", torch.tensor([0, *sizes[:-1]]).cumsum(0)[:, None], persistent=False)
        self.table = nn.Embedding(sum(sizes), ROW)
        nn.init.normal_(self.table.weight, std=0.2)
        self.layers = nn.Sequential(
            *(nn.Conv1d(ROW, CHANNELS, 5, padding=2), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.Dropout(DROPOUT)),
            *(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.Dropout(DROPOUT)),
        )
        self.voice = nn.Linear(2 * CHANNELS, EMBEDDING)
        self.speakers = nn.Linear(EMBEDDING, speakers, bias=False)

    def forward(self, codes: Tensor, kept: Tensor) -> Tensor:
        """Codes [B, 37, F] int64, padded where `kept` [B, F] is 0, to voices [B, EMBEDDING]."""
        rows = self.table(codes + self.first_rows).sum(dim=1) * kept[..., None]
        states, kept = self.layers(rows.transpose(1, 2)), kept[:, None]
        frames = kept.sum(dim=2)
        mean = (states * kept).sum(dim=2) / frames
        spread = ((states - mean[..., None]).square() * kept).sum(dim=2) / frames
        return self.voice(torch.cat([mean, (spread + 1e-5).sqrt()], dim=1))


def train(
    codes: Sequence[Tensor],
    speakers: Sequence[str],
    config: CodecConfig,
    seed: int,
    steps: int = STEPS,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
) -> Listener:
    """A listener in evaluation mode, trained on crops of clips' codes [37, F]. Speakers come equally often."""
    torch.manual_seed(seed)
    random, names = np.random.default_rng(seed), sorted(set(speakers))
    number = {name: i for i, name in enumerate(names)}
    clips_of = [np.flatnonzero(np.array(speakers) == name) for name in names]
    listener = Listener(config, len(names)).to(device).train()
    optimizer = torch.optim.AdamW(listener.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        drawn = random.integers(len(names), size=batch)
        clips = [int(random.choice(clips_of[speaker])) for speaker in drawn]
        inputs = padded([crop(codes[clip], random) for clip in clips], device)
        wanted = torch.tensor([number[speakers[clip]] for clip in clips], device=device)
        loss = F.cross_entropy(listener.speakers(listener(*inputs)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return listener.eval().requires_grad_(False)


def crop(codes: Tensor, random: np.random.Generator) -> Tensor:
    first = int(random.integers(max(0, codes.shape[1] - CROP) + 1))
    return codes[:, first : first + CROP]


def padded(codes: Sequence[Tensor], device: torch.device | str) -> tuple[Tensor, Tensor]:
    frames = torch.tensor([each.shape[1] for each in codes])
    longest = int(frames.max())
    batch = torch.stack([F.pad(each, (0, longest - each.shape[1])) for each in codes])
    return batch.to(device), (torch.arange(longest) < frames[:, None]).float().to(device)


class Trials(NamedTuple):
    """Each clip compared with its own speaker and with every other one."""

    own: np.ndarray
    """[clips], cosines."""
    others: np.ndarray
    """[clips, speakers − 1]"""
    speakers: tuple[str, ...]

    @property
    def nearest(self) -> np.ndarray:
        """[clips], 1 where the own speaker is the nearest."""
        return (self.own > self.others.max(axis=1)).astype(float)


@torch.inference_mode()
def hear(
    listener: Listener, known: Sequence[Tensor], heard: Sequence[Tensor], speakers: Sequence[str], batch: int = 256
) -> Trials:
    """Compares clips with speakers. A speaker is the mean voice of its clips by the codes `known`, of the clip in
    question all but that one. The clip itself is heard by its codes `heard`. Each speaker needs two clips."""
    voices = [_voices(listener, codes, batch) for codes in (known, heard)]
    names, of_clip = np.unique(np.array(speakers), return_inverse=True)
    sums = np.stack([voices[0][of_clip == i].sum(axis=0) for i in range(len(names))])
    own, others = [], []
    for clip, voice in enumerate(voices[1]):
        means = sums.copy()
        means[of_clip[clip]] -= voices[0][clip]
        similarity = means @ voice / np.linalg.norm(means, axis=1)
        own.append(similarity[of_clip[clip]])
        others.append(np.delete(similarity, of_clip[clip]))
    return Trials(np.array(own), np.stack(others), tuple(speakers))


def _voices(listener: Listener, codes: Sequence[Tensor], batch: int) -> np.ndarray:
    device = next(listener.parameters()).device
    parts = [listener(*padded(codes[i : i + batch], device)) for i in range(0, len(codes), batch)]
    return F.normalize(torch.cat(parts), dim=1).cpu().numpy()


def equal_error_rate(trials: Sequence[Trials], seed: int = 0) -> tuple[Interval, np.ndarray]:
    """The error rate at the threshold where as many own clips are refused as others' are accepted, mean over several
    listeners' trials of the same clips. The interval's bootstrap draws speakers. Also returns the draws: their
    differences from those of other codes of the same clips are paired."""
    counts = resampled_counts(grouped(trials[0].speakers), seed)
    everything = np.concatenate([np.ones((1, counts.shape[1])), counts])
    rates = np.mean([_rates(each, everything) for each in trials], axis=0)
    low, high = np.quantile(rates[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(rates[0]), float(low), float(high)), rates[1:]


def _rates(trials: Trials, counts: np.ndarray) -> np.ndarray:
    """The equal error rate [draws] of clips that are counted so often [draws, clips]."""
    both = np.concatenate([trials.own, trials.others.ravel()])
    thresholds = np.quantile(both, np.linspace(0, 1, THRESHOLDS))
    refused = (trials.own[:, None] < thresholds).astype(float)
    accepted = np.stack([(row[:, None] >= thresholds).mean(axis=0) for row in trials.others])
    total = counts.sum(axis=1, keepdims=True)
    return np.maximum(counts @ refused / total, counts @ accepted / total).min(axis=1)
