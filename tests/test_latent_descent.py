"""Codes by gradient descent on the latents, alone and as a system of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from codec import Codec, load_release
from data import decode, open_clips
from data.reference import SAMPLE_RATE
from evaluation import evaluate, measure
from evaluation.judges.available import NAMES, open_judges
from evaluation.speech import read_speech
from experiments import evaluate_with_descent
from experiments.latent_descent import SILENCE_AFTER, LatentDescent
from losses import MelDistance
from losses.speaker import SpeakerDistance

DEMO = Path("data/demo")
WITHHELD = DEMO / "withheld_encoder.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_release(DEMO / "release")


@pytest.fixture(scope="module")
def waveform(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    clips = open_clips([str(DEMO / "unseen.parquet")], str(tmp_path_factory.mktemp("cache")))
    return decode(clips.read(0), 24000)[0, : 12 * 1920 - 700]


def test_more_steps_find_codes_that_sound_closer_to_the_original(codec: Codec, waveform: torch.Tensor) -> None:
    mel = MelDistance(codec.sample_rate)

    def distance(steps: int) -> float:
        (codes,) = LatentDescent(codec, steps=steps)([waveform])
        assert codes.shape == (37, 12)
        return float(mel(codec.decode(codes[None])[..., : len(waveform)], waveform[None, None]))

    start, after = distance(0), distance(12)
    assert after < 0.7 * start


def test_the_descent_repeats_and_does_not_change_the_codec(codec: Codec, waveform: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    one, other = (LatentDescent(codec, steps=3, seed=1)([waveform]) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())
    assert codec.dtype == torch.bfloat16


def test_a_clip_gets_in_a_batch_the_codes_it_gets_alone(
    codec: Codec, waveform: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch with longer, shorter and quieter clips, with the speaker loss. Rounding may change a few codes."""
    clips = [waveform[:9000], 0.1 * waveform, waveform[3000:]]
    descent = LatentDescent(codec, SpeakerDistance(str(DEMO / "speaker")), steps=6)
    alone = [descent([clip])[0] for clip in clips]
    batches: list[list[int]] = []
    monkeypatch.setattr(descent, "_batches", lambda waveforms: batches.append(list(range(len(waveforms)))) or batches)
    together = descent(clips)
    assert len(batches) == 1
    for one, other, clip in zip(alone, together, clips, strict=True):
        assert one.shape == other.shape == (37, -(-len(clip) // 1920))
        assert (one != other).float().mean() < 1e-2


def test_padding_after_the_silence_behind_a_clip_does_not_reach_the_speaker_loss(waveform: torch.Tensor) -> None:
    speaker, lengths = SpeakerDistance(str(DEMO / "speaker")), torch.tensor([len(waveform)])

    def gradient(seconds: float) -> torch.Tensor:
        original = torch.nn.functional.pad(waveform, (0, round(24000 * seconds)))[None, None]
        # muffled and not just quieter, because the network ignores the level
        sound = original.cumsum(-1).where(original != 0, 0).requires_grad_()
        speaker.per_clip(sound, original, lengths).sum().backward()
        assert sound.grad is not None
        return sound.grad[0, 0, : len(waveform)]

    far = gradient(4 * SILENCE_AFTER)
    assert (gradient(SILENCE_AFTER) - far).norm() < 1e-4 * far.norm()
    assert (gradient(0) - far).norm() > 0.01 * far.norm(), "without the silence, padding makes a difference"


def test_clips_of_similar_lengths_share_a_batch_and_come_back_in_their_order(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    descent = LatentDescent(codec, steps=0)
    clips = [torch.zeros(round(24000 * seconds)) for seconds in (3, 120, 2, 90, 2)]
    assert descent._batches(clips) == [[2], [4], [0], [3], [1]], "one by one on a CPU"
    monkeypatch.setattr(descent, "device", torch.device("cuda"))
    assert descent._batches(clips) == [[2, 4, 0], [3], [1]]
    monkeypatch.setattr(descent, "device", torch.device("cpu"))
    assert [found.shape[1] for found in descent([clips[0], clips[2]])] == [38, 25]


def test_a_clip_that_is_too_short_for_a_loss_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="2047 samples are too few"):
        LatentDescent(codec, steps=1)([torch.zeros(24000), torch.zeros(2047)])


def test_if_one_batch_runs_out_of_memory_the_others_have_codes(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def optimize(waveforms: list[torch.Tensor], done: Iterator[int]) -> list[torch.Tensor]:
        if len(waveforms[0]) == 72000:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")
        return whole(waveforms, done)

    descent = LatentDescent(codec, steps=1)
    whole = descent._optimize
    monkeypatch.setattr(descent, "_optimize", optimize)
    clips = [torch.zeros(72000), torch.zeros(24000)]
    found, failed = descent.find(clips)
    assert list(found) == [1]
    assert failed == {0: "CUDA out of memory"}
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        descent(clips)


def test_a_release_without_encoder_can_be_scored_by_descent(codec: Codec) -> None:
    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], "", 1)
    judges, _ = open_judges(["distances"])
    with pytest.raises(ValueError, match="no encoder"):
        evaluate(codec, speech, judges)
    scores = evaluate(codec, speech, judges, name="descent", encode=LatentDescent(codec, steps=2))
    assert scores.total("mel") is not None
    assert scores.total("moved_acoustic") is None


def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setenv("HF_CACHE", str(tmp_path / "cache"))
    release = ("--model-dir", DEMO / "release", "--device", "cpu", "--encoder", WITHHELD)
    return evaluate_with_descent.main([*map(str, (*release, *arguments))])


def _figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_descent_on_some_clips_is_compared_on_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = ("--without", "words", "wavlm", "ecapa", "quality", "resemblyzer")
    outputs = ("--json", tmp_path / "json", "--report", tmp_path / "report")
    descent = ("--clips", "3", "--descent-steps", "3", "--descent-clips", "2")
    assert _run(tmp_path, monkeypatch, *left_out, "--against", WITHHELD, *descent, *outputs) == 0
    found = _figures(tmp_path / "json")
    assert found["settings"]["extra_systems"] == {"descent": {"steps": 3, "clips": 2}}
    assert "<dt>descent</dt><dd>steps 3, clips 2</dd>" in (tmp_path / "report" / "index.html").read_text()
    assert ["descent" in clip["scores"] and bool(clip["scores"]["descent"]) for clip in found["clips"]] == [1, 0, 1]
    assert found["totals"]["descent"]["mel"]["clips"] == found["comparisons"]["descent"]["mel"]["clips"] == 2
    assert found["comparisons"]["encoder"]["mel"]["clips"] == 3
    assert found["comparisons"]["descent"]["mel"]["difference"]["value"] > 0
    assert "sem_util" not in found["comparisons"]["descent"]
    assert "descent, 2 clips" in capsys.readouterr().out


def test_a_descent_without_its_speaker_network_is_an_error_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def score_encoding(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(measure, "score_encoding", score_encoding)
    judges = ("--without", *(name for name in NAMES if name != "ecapa"))
    assert _run(tmp_path, monkeypatch, *judges, "--clips", "1", "--speaker-model", tmp_path) == 2
    assert "error: descent: the speaker network" in capsys.readouterr().err


def test_if_the_memory_is_too_small_for_the_descent_its_clips_are_named_and_the_rest_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")

    monkeypatch.setattr(LatentDescent, "_optimize", fail)
    arguments = ("--clips", "1", "--descent-steps", "1", "--json", tmp_path / "json")
    assert _run(tmp_path, monkeypatch, *arguments, "--without", *NAMES[1:], "speed") == 0
    assert _figures(tmp_path / "json")["totals"]["encoder"]["mel"]["value"] > 0
    assert ": clip of descent: CUDA out of memory" in capsys.readouterr().out


def test_clips_too_short_for_the_descent_are_named_and_the_others_have_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=1)[0][0].waveform
    folder = tmp_path / "speech"
    folder.mkdir()
    for name, samples in (("good", 48000), ("tenth_of_a_second", 2400), ("shorter_than_a_window", 2000)):
        soundfile.write(folder / f"{name}.wav", good[24000 : 24000 + samples], SAMPLE_RATE)
    arguments = ("--data", folder, "--json", tmp_path / "json", "--descent-steps", "1")
    assert _run(tmp_path, monkeypatch, *arguments, "--without", *NAMES[1:], "speed") == 0
    found = _figures(tmp_path / "json")
    problems = {(problem["clip"], problem["what"], problem["encoder"]) for problem in found["problems"]}
    assert ("shorter_than_a_window.wav", "clip", "descent") in problems
    assert found["totals"]["descent"]["mel"]["clips"] == 2
    assert "not scored: shorter_than_a_window.wav: clip of descent: too short" in capsys.readouterr().out
