"""Judges: their values against their libraries and standards, and clips that they cannot score."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import huggingface_hub.constants
import librosa
import numpy as np
import pystoi
import pytest
import soxr
import torch

from data.reference import SAMPLE_RATE
from evaluation import Speech, evaluate_originals, open_judges, read_speech
from evaluation.judges.available import NAMES
from evaluation.judges.judge import Judge
from evaluation.judges.pool import ClipVersions, score_versions
from evaluation.judges.quality import Distances, Estoi, Pesq
from evaluation.judges.speakers import Resemblyzer
from evaluation.judges.words import Words
from evaluation.speech import at_rate
from tests.whisper_base import whisper_base

DEMO = Path("data/demo")
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Speech]:
    cache = tmp_path_factory.mktemp("cache")
    return read_speech([str(DEMO / "unseen.parquet")], str(cache), limit=2)[0]


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(str(whisper_base()), "en", CPU)


def _noisy(clip: Speech, level: float) -> torch.Tensor:
    noise = torch.randn(clip.waveform.shape, generator=torch.Generator().manual_seed(0))
    return (clip.waveform + level * noise).clamp(-1, 1)


def test_pesq_of_a_clip_with_itself_is_the_highest_that_the_standard_can_give(clips: list[Speech]) -> None:
    """P.862.2 maps the raw score 4.5 to 0.999 + 4 / (1 + exp(−1.3669 · 4.5 + 3.8224))."""
    highest = 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224))
    assert Pesq().score(clips[0], clips[0].waveform).values["pesq"].value == pytest.approx(highest, abs=1e-3)


def test_estoi_of_a_clip_with_itself_is_1_and_of_others_what_the_package_gives(clips: list[Speech]) -> None:
    clip = clips[0]
    assert Estoi().score(clip, clip.waveform).values["estoi"].value == pytest.approx(1, abs=1e-6)
    noisy = _noisy(clip, 0.05)
    expected = pystoi.stoi(clip.waveform.numpy(), noisy.numpy(), SAMPLE_RATE, extended=True)
    assert Estoi().score(clip, noisy).values["estoi"].value == pytest.approx(expected, abs=1e-4)


def test_distances_of_a_clip_with_itself_are_0(clips: list[Speech]) -> None:
    values = Distances().score(clips[0], clips[0].waveform).values
    assert values["mel"].value == values["stft"].value == 0


def test_the_level_above_8_khz_depends_on_the_upper_band_only(clips: list[Speech]) -> None:
    clip = clips[0]
    half = Distances().score(clip, clip.waveform / 2).values["band_level"].value
    assert half == pytest.approx(-6.02, abs=0.01)
    low = torch.from_numpy(soxr.resample(soxr.resample(clip.waveform.numpy(), SAMPLE_RATE, 16000), 16000, SAMPLE_RATE))
    assert Distances().score(clip, low).values["band_level"].value < -30
    silence = Distances().score(clip, torch.zeros_like(clip.waveform))
    assert "band_level" in silence.failed


@pytest.mark.parametrize("name", ["distances", "pesq", "estoi", "resemblyzer", "ecapa", "quality"])
def test_every_judge_prefers_little_noise_to_much_and_repeats_its_values(name: str, clips: list[Speech]) -> None:
    judges, missing = open_judges([name], speaker_model=str(DEMO / "speaker"))
    assert not missing
    (judge,) = judges
    little, much, again = (judge.score(clips[0], _noisy(clips[0], level)) for level in (0.003, 0.1, 0.003))
    assert little.values == again.values
    for metric in (metric for metric in judge.metrics if metric.better):
        sign = -1 if metric.better == "lower" else 1
        assert sign * little.values[metric.name].value > sign * much.values[metric.name].value


def test_a_voice_is_more_similar_to_itself_than_to_another(clips: list[Speech]) -> None:
    judge = Resemblyzer(CPU)
    same = judge.score(clips[0], _noisy(clips[0], 0.003)).values["speaker_resemblyzer"].value
    assert same > 0.85
    assert same > judge.score(clips[0], clips[1].waveform).values["speaker_resemblyzer"].value + 0.1


@pytest.mark.parametrize("name", ["distances", "pesq", "estoi", "resemblyzer", "ecapa", "quality"])
@pytest.mark.parametrize("seconds", [0.1, 0.02])
def test_a_clip_that_is_too_short_gets_a_reason_and_never_a_made_up_number(
    name: str, seconds: float, clips: list[Speech]
) -> None:
    (judge,) = open_judges([name], speaker_model=str(DEMO / "speaker"))[0]
    start = SAMPLE_RATE
    short = Speech("short", clips[0].waveform[start : start + int(seconds * SAMPLE_RATE)])
    scores = evaluate_originals([short], [_Absolute(judge)])
    values = scores.clips[0].values
    assert {problem.what for problem in scores.problems} | set(values) == {metric.name for metric in judge.metrics}
    assert all(problem.reason for problem in scores.problems)
    assert all(math.isfinite(measured.value) for measured in values.values())
    if name != "distances":
        assert not values


@pytest.mark.parametrize("name", ["resemblyzer", "ecapa", "quality"])
def test_a_network_judges_a_second_and_nothing_shorter(name: str, clips: list[Speech]) -> None:
    (judge,) = open_judges([name], speaker_model=str(DEMO / "speaker"))[0]
    assert judge.score(*_of_seconds(clips[0], 1.0)).values
    with pytest.raises(ValueError, match=r"0\.90 s are too short to judge, expected 1 s or more"):
        judge.score(*_of_seconds(clips[0], 0.9))


class _Absolute:
    """Makes a judge score originals too."""

    absolute = True

    def __init__(self, judge: Judge):
        self.name, self.metrics, self.score = judge.name, judge.metrics, judge.score


def test_if_librosa_refuses_a_clip_the_reason_is_kept_and_the_other_judges_score_it(
    clips: list[Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    """librosa raises an exception class of its own."""

    def refuse(samples: np.ndarray) -> None:
        raise librosa.ParameterError("Audio buffer is not finite everywhere")

    judges = open_judges(["distances", "resemblyzer"])[0]
    monkeypatch.setattr(judges[1], "trim_silence", refuse)
    (found,) = score_versions(judges, ClipVersions(clips[0], [_noisy(clips[0], 0.003)]))
    assert "mel" in found.values
    assert found.failed == {"speaker_resemblyzer": "Audio buffer is not finite everywhere"}


def test_pesq_refuses_a_clip_that_its_library_would_crash_on(clips: list[Speech]) -> None:
    """The library's arrays hold 50 utterances: 96 s of speech with pauses crashed the process."""
    assert Pesq().score(*_of_seconds(clips[0], 30.0)).values
    with pytest.raises(ValueError, match=r"30\.5 s are too long for PESQ, expected 30 s or less"):
        Pesq().score(*_of_seconds(clips[0], 30.5))


def _of_seconds(clip: Speech, seconds: float) -> tuple[Speech, torch.Tensor]:
    """The clip repeated to so many seconds, and a noisy copy of it."""
    samples = round(seconds * SAMPLE_RATE)
    long = Speech("long", clip.waveform.repeat(-(-samples // clip.waveform.shape[-1]))[:samples])
    return long, _noisy(long, 0.003)


@pytest.mark.parametrize("name", ["pesq", "resemblyzer", "quality"])
def test_a_silent_reconstruction_gets_a_reason_and_no_number(name: str, clips: list[Speech]) -> None:
    (judge,) = open_judges([name])[0]
    with pytest.raises(ValueError, match="silent"):
        judge.score(clips[0], torch.zeros_like(clips[0].waveform))


@pytest.mark.parametrize(
    ("judge", "module"),
    [
        ("pesq", "pesq"),
        ("estoi", "pystoi"),
        ("resemblyzer", "resemblyzer"),
        ("quality", "distillmos"),
        ("words", "jiwer"),
    ],
)
def test_a_judge_whose_library_is_missing_is_named(judge: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    judges, missing = open_judges([judge])
    assert judges == []
    assert list(missing) == [judge]
    assert module in missing[judge]


def test_missing_weights_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "broken.pt").write_text("no weights")
    names = ["words", "ecapa", "wavlm"]
    judges, missing = open_judges(names, whisper=str(tmp_path / "broken.pt"), cache=str(tmp_path))
    assert judges == []
    assert list(missing) == names
    assert "--whisper" in missing["words"]


def test_resampling_keeps_length_and_level(clips: list[Speech]) -> None:
    low = at_rate(clips[0].waveform, 16000)
    assert len(low) == pytest.approx(clips[0].seconds * 16000, abs=2)
    assert abs(low).max() == pytest.approx(float(clips[0].waveform.abs().max()), rel=0.2)


def test_whisper_recognizes_the_words_of_a_clip_but_not_in_another_clip(words: Words, clips: list[Speech]) -> None:
    scores = evaluate_originals(clips[:1], [words])
    assert scores.problems == []
    values = scores.clips[0].values
    assert values["wer"].value < 0.35
    assert values["wer"].weight == len(words.normalize(clips[0].text).split())
    assert values["wer_to_original"].value == values["cer_to_original"].value == 0
    other = words.score(clips[0], clips[1].waveform)
    assert other.values["wer"].value > 0.6


def test_a_clip_without_transcript_is_compared_with_whispers_transcript_of_the_original(
    words: Words, clips: list[Speech]
) -> None:
    untranscribed = Speech("no transcript", clips[0].waveform)
    found = words.score(untranscribed, untranscribed.waveform)
    assert found.failed == {"wer": "there is no transcript", "cer": "there is no transcript"}
    assert found.values["wer_to_original"].value == 0


def test_a_clip_in_another_language_than_expected_gets_no_word_errors(
    words: Words, clips: list[Speech], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words.model, "detect_language", lambda mel: (None, {"fr": 0.9, "en": 0.1}))
    foreign = Speech("foreign", clips[0].waveform, text="quelque chose")
    scores = evaluate_originals([foreign], [words])
    assert scores.clips[0].values == {}
    assert {problem.what for problem in scores.problems} == {metric.name for metric in words.metrics}
    assert "'fr'" in scores.problems[0].reason


def test_every_judge_has_a_name_and_a_definition_of_each_metric(words: Words) -> None:
    names = [name for name in NAMES if name not in ("words", "wavlm")]
    judges, missing = open_judges(names, speaker_model=str(DEMO / "speaker"))
    metrics = [metric for judge in (*judges, words) for metric in judge.metrics]
    assert len({metric.name for metric in metrics}) == len(metrics)
    assert all(metric.definition for metric in metrics)
    assert [metric.name for metric in metrics if not metric.better] == ["band_level"]  # 0 is best, not most or least
    assert not missing
