"""The server speaks: Whisper hears the words, and a clip's voice is nearer to its speaker than to others."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import pytest
import soundfile
import torch
from torch.nn import functional as F

from data import decode
from data.reference import read_clip
from evaluation.judges.speakers import Resemblyzer
from evaluation.judges.words import Words, errors
from tests.serving.conftest import SENTENCES
from tests.serving.scene import Scene
from tests.serving.server import Answer, said
from tests.whisper_base import whisper_base

pytestmark = pytest.mark.served

VOICES = {"preset": None, "anna": "anna.wav", "clip": "16_bits.wav"}  # what speaks, and the clip that it sounds like
MOST_WRONG = 0.35  # of some forty words of a voice; about 10 % are wrong
NEARER = 0.05  # mean cosine to the own clip, above that to the others; about 0.13


@cache
def words() -> Words:
    return Words(str(whisper_base()), "en", torch.device("cpu"))


@cache
def resemblyzer() -> Resemblyzer:
    return Resemblyzer(torch.device("cpu"))


def sentences(scene: Scene, voice: str) -> list[Answer]:
    return [scene.answers[f"{voice} says {number}"] for number in range(len(SENTENCES))]


def sound(wav: bytes) -> torch.Tensor:
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    assert rate == 24000
    return torch.from_numpy(samples[:, 0])


@pytest.mark.parametrize("voice", VOICES)
def test_whisper_hears_the_words(own_file: Scene, voice: str) -> None:
    wrong = total = 0.0
    for text, answer in zip(SENTENCES, sentences(own_file, voice), strict=True):
        assert answer.status == 200
        transcript = words().transcribe(sound(answer.body))
        rate, _ = errors(words().normalize(text), words().normalize(transcript))
        assert rate is not None
        wrong, total = wrong + rate[0] * rate[1], total + rate[1]
        said(f"  {voice}: {text}\n    Whisper: {transcript.strip()}")
    said(f"  {voice}: {wrong / total:.0%} of {total:.0f} words wrong")
    assert wrong / total <= MOST_WRONG


@pytest.mark.parametrize("voice", [voice for voice, clip in VOICES.items() if clip])
def test_a_clip_lends_its_voice(own_file: Scene, clips: dict[str, Path], voice: str) -> None:
    """Its speech is nearer to the clip than to the clips of seven other speakers."""
    names = sorted(clips)
    references = torch.stack([resemblyzer().embed(sound_of(clips[name])) for name in names])
    own = names.index(str(VOICES[voice]))
    similar = torch.stack(
        [
            F.cosine_similarity(resemblyzer().embed(sound(answer.body))[None], references)
            for answer in sentences(own_file, voice)
        ]
    )
    to_own, to_others = similar[:, own], (similar.sum(dim=1) - similar[:, own]) / (len(names) - 1)
    for mine, theirs in zip(to_own, to_others, strict=True):
        said(f"  {voice}: similarity {float(mine):.3f} to its clip, {float(theirs):.3f} to seven others")
    nearest = int((similar.argmax(dim=1) == own).sum())
    said(f"  {voice}: nearest to its clip in {nearest} of {len(SENTENCES)} sentences")
    assert to_own.mean() - to_others.mean() >= NEARER


def sound_of(path: Path) -> torch.Tensor:
    return decode(read_clip(path), 24000, resample=True)[0]
