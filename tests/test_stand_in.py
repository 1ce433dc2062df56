"""The programs that make the stand-in's codec: speech with phonemes, the training, and the statistics of its codes."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.checkpoint import load_release, with_encoder
from codec.config import CodecConfig, read_params_file
from experiments.random_release import TINY, params_json
from experiments.stand_in.code_statistics import Codes, encode, followers, phoneme_pairs, predictability
from experiments.stand_in.codec_settings import Settings
from experiments.stand_in.labelled_speech import NO_CLASS, UNIT, LabelledSpeech, without_marks
from experiments.stand_in.plan_speech import NEAREST, Speaker, add_mixes, dealt
from experiments.stand_in.sentences import sentences, vocabulary
from experiments.stand_in.settings import read_settings
from experiments.stand_in.speak import LAG, MARGIN, Clip, batches, finished, write
from experiments.stand_in.train_codec import Trainer, beyond_unit_ball

CPU = torch.device("cpu")
A, B, SPACE, STRESS, LONG = 43, 44, 16, 156, 158
FEW = Settings(steps=4, batch_size=3, frames=8, discriminator_channels=2, discriminator_crops=2, discriminator_frames=2)


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Noise, and phonemes that change every 100 ms."""
    random = np.random.default_rng(0)
    for split, units in (("train", (40, 31, 52)), ("dev", (60, 61)), ("test", (33, 40))):
        total = sum(units)
        (0.1 * 32768 * random.standard_normal(total * UNIT)).astype("<i2").tofile(tmp_path / f"{split}.bin")
        np.repeat(random.choice([0, A, B, SPACE, STRESS], total), 4)[:total].astype(np.uint8).tofile(
            tmp_path / f"{split}.lab"
        )
        rows = [["closed", f"speaker {i}", "a b", "ab", count] for i, count in enumerate(units)]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


def test_stress_marks_belong_to_the_next_phoneme_and_length_marks_to_the_one_before() -> None:
    ids = np.array([STRESS, STRESS, A, LONG, LONG, SPACE, STRESS, B, LONG], np.uint8)
    assert without_marks(ids).tolist() == [A, A, A, A, A, SPACE, B, B, B]


def test_labels_are_those_of_the_samples_and_a_space_has_none(speech: Path) -> None:
    train = LabelledSpeech(speech, "train", "cpu")
    ids = without_marks(np.fromfile(speech / "train.lab", np.uint8))
    starts, offsets = torch.tensor([0, 41 * UNIT]), torch.arange(0, 5 * UNIT, 100)
    expected = [
        [{0: 0, A: 1, B: 2, SPACE: NO_CLASS}[int(ids[(s + o) // UNIT])] for o in range(0, 3000, 100)]
        for s in (0, 41 * UNIT)
    ]
    assert train.labels(starts, offsets).tolist() == expected
    samples = np.fromfile(speech / "train.bin", "<i2")[41 * UNIT : 42 * UNIT] / 32768
    np.testing.assert_allclose(train.crops(starts, UNIT)[1, 0], samples, rtol=1e-6)


def test_speech_whose_files_do_not_fit_together_is_refused(speech: Path) -> None:
    (speech / "dev.lab").write_bytes(b"\0" * 7)
    with pytest.raises(ValueError, match=r"dev: 72600 samples and 7 labels, expected 72600 and 121"):
        LabelledSpeech(speech, "dev", "cpu")


def test_a_run_leaves_a_release_and_its_encoder_and_repeats_itself(speech: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.json"
    params.write_text(json.dumps(params_json(TINY)))
    train = LabelledSpeech(speech, "train", CPU)
    losses = []
    for _ in range(2):
        trainer = Trainer(FEW, TINY, train, CPU)
        losses.append([{name: float(value) for name, value in trainer.train_step(step).items()} for step in range(4)])
    assert losses[0] == losses[1]
    assert ["discriminator" in metrics for metrics in losses[0]] == [False, False, True, False]
    found = trainer.validate(LabelledSpeech(speech, "dev", CPU, train.class_of), frames=10)
    assert all(np.isfinite(value) for value in found.values())
    trainer.save(tmp_path / "run", params, 4)
    codec = with_encoder(
        load_release(tmp_path / "run" / "release", torch.float32), tmp_path / "run" / "encoder.safetensors"
    )
    assert codec.encoder is not None
    kept = trainer.averaged().encoder
    assert kept is not None
    for name, value in kept.state_dict().items():
        assert torch.equal(codec.encoder.state_dict()[name], value.bfloat16().float()), name


def test_the_sound_sends_no_gradient_to_the_semantic_part(speech: Path) -> None:
    """With the phonemes' loss and the commitment nearly off, semantic latents stay where they are."""
    train = LabelledSpeech(speech, "train", CPU)
    trainer = Trainer(replace(FEW, phonemes=1e-30, commitment=1e-30), TINY, train, CPU)
    last = trainer.encoder.encoder_blocks[-1].conv.parametrizations.weight.original1
    before = last.detach().clone()
    trainer.train_step(0)
    gradient = last.grad
    assert gradient is not None
    assert gradient[: TINY.semantic_dim].abs().max() < 1e-20 < 1e-6 < gradient[TINY.semantic_dim :].abs().max()
    assert not torch.equal(before, last)


def test_only_long_latents_are_shortened() -> None:
    latents = torch.tensor([0.5, 1.0, 3.0])[:, None, None].expand(3, 4, 1)  # root mean squares
    assert beyond_unit_ball(latents)[:, :, 0].norm(dim=1).tolist() == pytest.approx([0, 0, 2], abs=1e-5)


def test_settings_have_the_type_of_their_default() -> None:
    assert read_settings(Settings, ["steps=7", "lr=1e-4"]) == replace(Settings(), steps=7, lr=1e-4)
    with pytest.raises(ValueError, match="speed is no setting"):
        read_settings(Settings, ["speed=3"])


def test_the_parameters_of_the_stand_in_are_a_codecs() -> None:
    config = CodecConfig.from_params(read_params_file(Path("configs/params/stand_in_512.json")))
    assert (config.semantic_codebook_size, config.dim, config.num_codebooks) == (512, 256, 37)


def test_codes_of_a_clip_do_not_depend_on_its_batch(speech: Path) -> None:
    codec = Trainer(FEW, TINY, LabelledSpeech(speech, "train", CPU), CPU).averaged()
    dev = LabelledSpeech(speech, "dev", CPU)
    codes = encode(codec, dev)
    assert codes.lengths.tolist() == [19, 20]
    alone = codec.encode(dev.crops(torch.tensor([0]), 60 * UNIT))[0]
    assert torch.equal(torch.from_numpy(codes.acoustic[:19].T.astype(int)), alone[1:])
    assert torch.equal(torch.from_numpy(codes.semantic[:19].astype(int)), alone[0])


def test_predictable_codes_cost_few_bits() -> None:
    lengths = np.array([500, 500])
    semantic = (np.arange(1000) % 2).astype(np.int16)  # each code follows from the one before and from the phoneme
    codes = Codes(semantic, np.zeros((1000, 36), np.uint8), lengths)
    found = predictability(codes, codes, {"train": 7 * semantic, "test": 7 * semantic}, entries=4)
    assert found["unigram"] == pytest.approx(1, abs=0.01)
    assert found["bigram"] < 0.1
    assert found["phonemes"] < 0.1
    assert found["bigram_right"] == found["phonemes_right"] == 1
    assert followers(np.array([2, 3])).tolist() == [1, 3, 4]
    labels = np.arange(40, dtype=np.uint8)
    assert phoneme_pairs(labels, np.array([7, 33]), np.array([3, 11]), 1920)[:4].tolist() == [
        256 * 1 + 2,
        256 * 4 + 5,
        256 * 6 + 6,
        256 * (7 + 1) + 7 + 2,
    ]


def test_a_spoken_clip_starts_and_ends_near_its_sound_and_its_labels_stay_with_it() -> None:
    sound = np.zeros(60 * UNIT)
    sound[20 * UNIT : 50 * UNIT] = 0.25 * np.sin(np.arange(30 * UNIT))
    late = np.repeat([0, A, 0], [20 + LAG, 30, 8]).astype(np.uint8)  # as the model's durations say it
    clip = finished(["dev", "open", "speaker", "a", "a"], sound, late, np.random.default_rng(0))
    assert clip is not None
    assert len(clip.samples) == UNIT * len(clip.labels)
    assert clip.labels.tolist() == [0] * MARGIN + [A] * 30 + [0] * MARGIN
    assert 10 ** (-6 / 20) - 0.01 < np.abs(clip.samples).max() / 32767 < 10 ** (-1 / 20) + 0.01
    assert finished(clip.row, 0 * sound, late, np.random.default_rng(0)) is None


def test_spoken_clips_are_read_back(tmp_path: Path) -> None:
    clips = [
        Clip([split, "closed", f"s{i}", "a b", "ab"], np.full((30 + i) * UNIT, i, "<i2"), np.full(30 + i, A, np.uint8))
        for i, split in enumerate(("train", "dev", "test", "train"))
    ]
    assert write(iter(clips), tmp_path) == pytest.approx(126 / 40 / 3600)
    train = LabelledSpeech(tmp_path, "train", "cpu")
    assert (train.speakers, train.kinds, train.units.tolist()) == (["s0", "s3"], ["closed", "closed"], [30, 33])
    assert train.waveform.tolist() == [0] * 30 * UNIT + [3] * 33 * UNIT
    assert (train.classes == 1).all()


def test_batches_hold_like_lengths_of_one_split_and_train_comes_last() -> None:
    rows = [[split, "", "", "", "x" * length] for length in range(7) for split in ("train", "test", "dev")]
    found = batches(rows, 3)
    assert [group[0][0] for group in found] == ["test"] * 3 + ["dev"] * 3 + ["train"] * 3
    assert sorted(len(row[4]) for group in found[6:] for row in group) == list(range(7))
    assert all(len({row[0] for row in group}) == 1 for group in found)


def test_no_two_splits_share_a_sentence_and_their_words_are_the_vocabularys() -> None:
    splits = [set(sentences(split, 200, seed)) for seed, split in enumerate(("train", "dev", "test"))]
    assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
    words = {word for split in splits for text in split for word in re.findall("[a-z]+", text.lower())}
    assert words <= set(vocabulary())
    assert len(vocabulary()) == 521


def test_new_speakers_keep_away_from_those_held_out() -> None:
    means = {name: np.full(256, value) for name, value in (("af_a", 0.0), ("bm_b", 0.1), ("bf_c", 0.2))}
    held_out = [Speaker("1", ["af_a", "bf_c"], [0.5, 0.5], "en-us", 1.0)]
    speakers: list[Speaker] = []
    add_mixes(speakers, 20, held_out, means, seed=0)
    assert len({speaker.id for speaker in speakers}) == 20
    for speaker in speakers:
        assert np.linalg.norm(speaker.style(means) - held_out[0].style(means)) >= NEAREST
        assert speaker.accent == ("en-gb" if speaker.voices[int(np.argmax(speaker.weights))][0] == "b" else "en-us")


def test_speakers_are_dealt_evenly() -> None:
    speakers = [Speaker(str(i), [], [], "en-us", 1.0) for i in range(5)]
    pairs = dealt([f"text {i}" for i in range(20)], speakers, seed=1)
    assert Counter(speaker.id for _, speaker in pairs) == {str(i): 4 for i in range(5)}
    assert len({text for text, _ in pairs}) == 20
