"""Codes found without an encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codec import Codec, load_release
from data import decode, open_clips
from evaluation import evaluate
from evaluation.descent import Descent
from evaluation.judges import open_judges
from evaluation.speech import read_speech
from losses import MelDistance

DEMO = Path("data/demo")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_release(DEMO / "release")


@pytest.fixture(scope="module")
def waveform(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    clips = open_clips([str(DEMO / "unseen.parquet")], str(tmp_path_factory.mktemp("cache")))
    return decode(clips.read(0), 24000)[None, :, : 12 * 1920 - 700]


def test_it_finds_codes_that_sound_nearer_with_every_step(codec: Codec, waveform: torch.Tensor) -> None:
    mel = MelDistance(codec.sample_rate)

    def distance(steps: int) -> float:
        codes = Descent(codec, steps=steps)(waveform)
        assert codes.shape == (1, 37, 12)
        return float(mel(codec.decode(codes)[..., : waveform.shape[-1]], waveform))

    start, after = distance(0), distance(12)
    assert after < 0.7 * start


def test_it_repeats_and_leaves_the_codec_as_it_was(codec: Codec, waveform: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    one, other = (Descent(codec, steps=3, seed=1)(waveform) for _ in range(2))
    assert torch.equal(one, other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())
    assert codec.dtype == torch.bfloat16


def test_a_release_without_encoder_can_be_scored_so(codec: Codec) -> None:
    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], "", 1)
    judges, _ = open_judges(["distances"])
    with pytest.raises(ValueError, match="no encoder"):
        evaluate(codec, speech, judges)
    scores = evaluate(codec, speech, judges, name="descent", encode=Descent(codec, steps=2))
    assert scores.total("mel") is not None
    assert scores.total("moved_acoustic") is None
