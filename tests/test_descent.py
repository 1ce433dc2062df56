"""Codes found without an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from codec import Codec, load_release
from data import decode, open_clips
from evaluation import evaluate
from evaluation.descent import SILENCE_AFTER, Descent
from evaluation.judges.available import open_judges
from evaluation.speech import read_speech
from losses import MelDistance
from losses.speaker import SpeakerDistance

DEMO = Path("data/demo")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def codec() -> Codec:
    return load_release(DEMO / "release")


@pytest.fixture(scope="module")
def waveform(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    clips = open_clips([str(DEMO / "unseen.parquet")], str(tmp_path_factory.mktemp("cache")))
    return decode(clips.read(0), 24000)[0, : 12 * 1920 - 700]


def test_it_finds_codes_that_sound_nearer_with_every_step(codec: Codec, waveform: torch.Tensor) -> None:
    mel = MelDistance(codec.sample_rate)

    def distance(steps: int) -> float:
        (codes,) = Descent(codec, steps=steps)([waveform])
        assert codes.shape == (37, 12)
        return float(mel(codec.decode(codes[None])[..., : len(waveform)], waveform[None, None]))

    start, after = distance(0), distance(12)
    assert after < 0.7 * start


def test_it_repeats_and_leaves_the_codec_as_it_was(codec: Codec, waveform: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in codec.state_dict().items()}
    one, other = (Descent(codec, steps=3, seed=1)([waveform]) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in codec.state_dict().items())
    assert codec.dtype == torch.bfloat16


def test_a_clip_finds_in_a_batch_what_it_finds_alone(
    codec: Codec, waveform: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside longer and shorter, louder and quieter ones, with the speaker's loss; but for roundings, which a few
    codes may tell."""
    clips = [waveform[:9000], 0.1 * waveform, waveform[3000:]]
    descent = Descent(codec, SpeakerDistance(str(DEMO / "speaker")), steps=6)
    alone = [descent([clip])[0] for clip in clips]
    batches: list[list[int]] = []
    monkeypatch.setattr(descent, "_batches", lambda waveforms: batches.append(list(range(len(waveforms)))) or batches)
    together = descent(clips)
    assert len(batches) == 1
    for one, other, clip in zip(alone, together, clips, strict=True):
        assert one.shape == other.shape == (37, -(-len(clip) // 1920))
        assert (one != other).float().mean() < 1e-2


def test_behind_the_silence_after_a_clip_the_speaker_network_sees_no_more_padding(waveform: torch.Tensor) -> None:
    speaker, lengths = SpeakerDistance(str(DEMO / "speaker")), torch.tensor([len(waveform)])

    def gradient(seconds: float) -> torch.Tensor:
        original = torch.nn.functional.pad(waveform, (0, round(24000 * seconds)))[None, None]
        sound = original.cumsum(-1).where(original != 0, 0).requires_grad_()  # muffled; level alone is no matter to it
        speaker.per_clip(sound, original, lengths).sum().backward()
        assert sound.grad is not None
        return sound.grad[0, 0, : len(waveform)]

    far = gradient(4 * SILENCE_AFTER)
    assert (gradient(SILENCE_AFTER) - far).norm() < 1e-4 * far.norm()
    assert (gradient(0) - far).norm() > 0.01 * far.norm(), "without it there would be a difference"


def test_clips_of_like_lengths_are_found_together_and_come_back_in_their_order(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    descent = Descent(codec, steps=0)
    clips = [torch.zeros(round(24000 * seconds)) for seconds in (3, 120, 2, 90, 2)]
    assert descent._batches(clips) == [[2], [4], [0], [3], [1]], "one by one on a CPU"
    monkeypatch.setattr(descent, "device", torch.device("cuda"))
    assert descent._batches(clips) == [[2, 4, 0], [3], [1]]
    monkeypatch.setattr(descent, "device", torch.device("cpu"))
    assert [found.shape[1] for found in descent([clips[0], clips[2]])] == [38, 25]


def test_a_clip_that_is_too_short_for_a_loss_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="2047 samples are too few"):
        Descent(codec, steps=1)([torch.zeros(24000), torch.zeros(2047)])


def test_a_batch_that_the_memory_is_too_small_for_leaves_the_others_their_codes(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def descend(waveforms: list[torch.Tensor], done: Iterator[int]) -> list[torch.Tensor]:
        if len(waveforms[0]) == 72000:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more of it")
        return whole(waveforms, done)

    descent = Descent(codec, steps=1)
    whole = descent._descend
    monkeypatch.setattr(descent, "_descend", descend)
    clips = [torch.zeros(72000), torch.zeros(24000)]
    found, failed = descent.find(clips)
    assert list(found) == [1]
    assert failed == {0: "CUDA out of memory"}
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        descent(clips)


def test_a_release_without_encoder_can_be_scored_so(codec: Codec) -> None:
    speech, _, _ = read_speech([str(DEMO / "unseen.parquet")], "", 1)
    judges, _ = open_judges(["distances"])
    with pytest.raises(ValueError, match="no encoder"):
        evaluate(codec, speech, judges)
    scores = evaluate(codec, speech, judges, name="descent", encode=Descent(codec, steps=2))
    assert scores.total("mel") is not None
    assert scores.total("moved_acoustic") is None
