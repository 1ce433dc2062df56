"""What a language model is to speak for pairs, and whether what it spoke is speech.

A job is a text with the voice that speaks it. Jobs are numbered, and a job is a function of its number. So several
processes speak different ones, and a run that was killed goes on with those that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from codec.config import ReleaseError, read_params
from data.clips import BadClipError, Clips, DataError
from data.order import Shuffled
from data.reference import BEST_SECONDS, Reference, prepare
from data.seeds import derive_seed
from data.sources import open_clips
from data.tables import TABLES, shown
from system.environment import expand_home

VOICE, CLIP, GUIDANCE = -6, -7, -8  # different random numbers of a job
ATTEMPTS = 50  # clips tried as a prompt before the source is called unusable

# Limits of speech, generous: people speak 10 to 20 characters a second, in every language that the model speaks.
FASTEST, SLOWEST = 40.0, 3.0  # characters a second
PAUSES = 3.0  # seconds that a short text may take longer
LONGEST_PERIOD = 25  # frames (2 s) of a group of codes that is repeated
LOOP_SECONDS, LOOP_ROUNDS = 2.0, 3  # so long, and so many rounds of the group, is a loop
NO_END, LENGTH, LOOP, WORDS = "no end", "length", "loop", "words"
REASONS = {
    NO_END: "the model did not say the end of audio",
    LENGTH: "the text cannot take so long or so short a time",
    LOOP: "a code or a group of codes came again and again",
    WORDS: "Whisper heard other words",
}


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


def read_texts(source: str, cache: str = "") -> tuple[str, ...]:
    """The texts of a file, one a line, or the transcripts of a source of speech, such as a table. Raises DataError if
    there is none."""
    path = Path(expand_home(source))
    if path.is_file() and path.suffix.lower() not in TABLES:
        try:
            texts = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8 ({error}): convert it") from error
    else:
        texts = open_clips([source], cache).texts()
    found = tuple(text.strip() for text in texts if text.strip())
    if not found:
        raise DataError(
            f"{shown(source)} has no texts: expected a text file, a text a line, or speech with transcripts; a table's "
            "column of texts is named as in {path: train.tsv, text: sentence}"
        )
    return found


def choose_voices(release: Path, wanted: Sequence[str]) -> tuple[str, ...]:
    """The voices that a release names in params.json: those that are wanted, or all. Raises DataError for a name that
    it has not, and ReleaseError if it has none."""
    known = read_params(release).get("multimodal", {}).get("audio_tokenizer_args", {}).get("voice") or {}
    if not known:
        raise ReleaseError(f"{release} has no voices: add one with patch_tokenizer.py, or give --prompts")
    missing = [name for name in wanted if name not in known]
    if missing:
        raise DataError(f"{release} has no voice {missing[0]!r}; it has {', '.join(sorted(known))}")
    return tuple(wanted or sorted(known))


def prompt_of(clips: Clips, index: int, seed: int) -> tuple[Reference, str]:
    """A clip as a reference, and its speaker. A clip that cannot be used, or that is too short or too long, is replaced
    by another one. Raises DataError if no clip can be used."""
    generator, last = torch.Generator().manual_seed(derive_seed(seed, index, CLIP)), ""
    for _ in range(ATTEMPTS):
        try:
            clip = clips.read(index)
            reference = prepare([clip])
            if BEST_SECONDS[0] <= reference.seconds <= BEST_SECONDS[1]:
                return reference, clip.speaker
            last = f"{clip.name} has {reference.seconds:.1f} s, expected {BEST_SECONDS[0]:g} to {BEST_SECONDS[1]:g}"
        except BadClipError as error:
            last = str(error)
        index = int(torch.randint(len(clips), (), generator=generator))
    raise DataError(f"--prompts: none of {ATTEMPTS} clips can be a prompt; the last one: {last}")


def fault(codes: Tensor, ended: bool, text: str, frame_rate: float) -> str:
    """Why codes [37, F] are no speech of the text, a key of REASONS, or an empty text. `ended` is whether the model
    said the end of audio. Words are judged elsewhere."""
    if not ended:
        return NO_END
    seconds = codes.shape[1] / frame_rate
    if not len(text) / FASTEST <= seconds <= len(text) / SLOWEST + PAUSES or not seconds:
        return LENGTH
    return LOOP if loops(codes[0], frame_rate) else ""


def loops(semantic: Tensor, frame_rate: float) -> bool:
    """Whether semantic codes [F] repeat a code or a group of up to LONGEST_PERIOD codes for long."""
    for period in range(1, min(LONGEST_PERIOD, len(semantic) // 2) + 1):
        same = semantic[period:] == semantic[:-period]
        # the longest run of equal codes: between two unequal ones
        breaks = torch.cat([torch.tensor([-1]), (~same).nonzero().flatten().cpu(), torch.tensor([len(same)])])
        longest = int(breaks.diff().max()) - 1 + period
        if longest >= max(LOOP_SECONDS * frame_rate, LOOP_ROUNDS * period):
            return True
    return False
