"""Pairs by the stand-in's language model without a server: what is written is what it said, in the voices asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.checkpoint import codec_fingerprint, load_release
from data.pairs import SPOKEN, Pairs
from experiments.stand_in import generate_pairs
from experiments.stand_in.letters import text_of
from experiments.stand_in.sentences import split_of
from language_model import LanguageModel, Prompt, Speech
from tests.language_models import CODEC, write_tiny_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_release(tmp_path_factory.mktemp("speaking"))


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    """Three clips of each of four speakers. A speaker's semantic codes are all its number; one clip is too short."""
    lengths = np.tile([25, 30, 5], 4)
    semantic = np.repeat(np.arange(12) // 3, lengths).astype(np.int16)
    acoustic = np.zeros((len(semantic), CODEC.acoustic_dim), np.uint8)
    np.savez(tmp_path / "train.npz", semantic=semantic, acoustic=acoustic, lengths=lengths)
    rows = [["closed", f"speaker {clip // 3}", "", "", 0] for clip in range(12)]
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


class Speaker:
    """Takes the place of `generate`. Its codes show what it was asked: the text's length, and the voice."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.batches: list[int] = []
        self.ends: Callable[[str], bool] = lambda text: True

    def __call__(
        self, model: LanguageModel, prompts: Sequence[Prompt], frames: int, cfg_alpha: float, seeds: Sequence[int]
    ) -> list[Speech]:
        self.seeds += seeds
        self.batches.append(len(prompts))
        return [self.say(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def say(self, prompt: Prompt, seed: int) -> Speech:
        text = text_of(prompt.text)
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(CODEC.acoustic_codebook_size, (7, len(text)), generator=generator)
        codes[1] = voice_number(prompt.voice)
        return Speech(codes, self.ends(text))


def voice_number(voice: Tensor) -> int:
    """The speaker's number in `codes`; 0 for a preset."""
    return 0 if voice.is_floating_point() else int(voice[0, 0])


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Speaker:
    speaker = Speaker()
    monkeypatch.setattr(generate_pairs, "generate", speaker)
    return speaker


def run(release: Path, out: Path, *more: str) -> int:
    small = ("--texts", "40", "--shard-texts", "10", "--batch", "4", "--hours", "0.03")
    return generate_pairs.main([str(out), "--model-dir", str(release), *small, *more])


def opened(release: Path, out: Path) -> Pairs:
    codec = load_release(release)
    return Pairs([out], codec.config, codec_fingerprint(codec))


def test_pairs_of_the_presets_are_what_was_said_until_the_hours_are_reached(
    release: Path, tmp_path: Path, speaker: Speaker
) -> None:
    assert run(release, tmp_path) == 0
    pairs = opened(release, tmp_path)
    assert pairs.sources == [SPOKEN]
    longest = pairs.lengths.max() / pairs.config.frame_rate / 3600
    assert 0.03 <= pairs.hours <= 0.03 + longest
    assert max(speaker.batches) == 4
    abouts = pairs.about()
    assert {about.voice for about in abouts} == {"anna", "ben"}
    assert {split_of(about.text) for about in abouts} == {"train"}
    for index, about in enumerate(abouts):
        assert about.noise_seed is not None
        generator = torch.Generator().manual_seed(about.noise_seed)
        said = torch.randint(CODEC.acoustic_codebook_size, (7, len(about.text)), generator=generator)
        assert torch.equal(pairs.codes(index)[2:], said[2:])
    assert len(set(speaker.seeds)) == len(speaker.seeds)


def test_voices_are_those_of_so_many_speakers_clips(
    release: Path, codes: Path, tmp_path: Path, speaker: Speaker
) -> None:
    assert run(release, tmp_path / "out", "--prompts", str(codes), "--speakers", "2") == 0
    pairs = opened(release, tmp_path / "out")
    voices = [about.voice for about in pairs.about()]
    assert len(set(voices)) == 2
    for index, voice in enumerate(voices):
        assert voice == f"speaker {int(pairs.codes(index)[1, 0])}"


def test_another_seed_adds_other_pairs_and_the_same_one_is_refused(
    release: Path, codes: Path, tmp_path: Path, speaker: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("--prompts", str(codes))
    assert run(release, tmp_path / "out", *prompts) == 0
    first = {(about.text, about.noise_seed) for about in opened(release, tmp_path / "out").about()}
    assert run(release, tmp_path / "out", *prompts, "--seed", "1") == 0
    both = [(about.text, about.noise_seed) for about in opened(release, tmp_path / "out").about()]
    assert first < set(both)
    assert len(both) == len(set(both))
    assert run(release, tmp_path / "out", *prompts) == 2
    assert "name another folder or seed" in capsys.readouterr().err


def test_what_does_not_end_is_left_out_and_counted(
    release: Path, codes: Path, tmp_path: Path, speaker: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker.ends = lambda text: not text.startswith("The")
    assert run(release, tmp_path / "out", "--prompts", str(codes)) == 0
    assert not any(about.text.startswith("The") for about in opened(release, tmp_path / "out").about())
    assert "the model did not say the end of audio" in capsys.readouterr().out


def test_a_model_that_never_speaks_and_too_few_speakers_are_sentences(
    release: Path, codes: Path, tmp_path: Path, speaker: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker.ends = lambda text: False
    assert run(release, tmp_path / "out") == 2
    assert "none of 10 texts became speech" in capsys.readouterr().err
    assert run(release, tmp_path / "out", "--prompts", str(codes), "--speakers", "5") == 2
    assert "of 4 speakers, expected 5" in capsys.readouterr().err
