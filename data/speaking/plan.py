"""What a language model is to speak for pairs.

A job is a text with the voice that speaks it. Jobs are numbered, and a job is a function of its number. So several
processes speak different ones, and a run that was killed goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codec.config import CodecConfig
from data.order import Shuffled
from data.seeds import derive_seed

VOICE, CLIP, GUIDANCE = -6, -7, -8  # different random numbers of a job


class Job(NamedTuple):
    number: int
    text: str
    voice: str
    """The name of a preset or registered voice; empty where `prompt` is the voice."""
    prompt: int
    """The clip whose voice speaks, or -1."""


@dataclass(frozen=True)
class Plan:
    """All jobs of a run. Without `repeat` each text is spoken once, with it the texts come again in other voices."""

    texts: tuple[str, ...]
    voices: tuple[str, ...]
    prompts: int = 0  # clips that lend their voices; 0 without
    cfg_alpha: tuple[float, float] = (1.2, 1.2)
    seed: int = 0
    shard_jobs: int = 1000
    repeat: bool = False

    @property
    def shards(self) -> int | None:
        """How many shards the jobs fill; None if they never end."""
        return None if self.repeat else -(-len(self.texts) // self.shard_jobs)

    def jobs(self, shard: int) -> list[Job]:
        first = shard * self.shard_jobs
        last = first + self.shard_jobs if self.repeat else min(first + self.shard_jobs, len(self.texts))
        order = Shuffled(len(self.texts), self.seed)
        return [self.job(number, order(number)[1] if self.repeat else number) for number in range(first, last)]

    def job(self, number: int, text: int) -> Job:
        if self.prompts:
            return Job(number, self.texts[text], "", self.draw(self.prompts, number, CLIP))
        return Job(number, self.texts[text], self.voices[self.draw(len(self.voices), number, VOICE)], -1)

    def guidance(self, shard: int) -> float:
        """The cfg_alpha of all jobs of a shard, uniform in the range."""
        low, high = self.cfg_alpha
        return round(low + (high - low) * self.draw(1001, shard, GUIDANCE) / 1000, 3)

    def draw(self, limit: int, *numbers: int) -> int:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *numbers))
        return int(torch.randint(limit, (), generator=generator))

    def fingerprint(self) -> str:
        """Of everything that decides which job has which number."""
        content = [list(self.texts), list(self.voices), self.prompts, list(self.cfg_alpha), self.seed]
        content += [self.shard_jobs, self.repeat]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """What a process needs to know."""

    release: Path
    out: Path
    plan: Plan
    config: CodecConfig
    codec_fingerprint: str
    language: str
    prompts: tuple[str, ...]
    cache: str
    stage: dict[str, Any]
    max_tokens: int
    keep: tuple[str, ...]
    max_word_errors: float | None
    whisper: str
    processes: int
