"""Pairs of codes and text: shards on disk, and the crops that training draws from them."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from codec import Codec, load_release
from codec.checkpoint import codec_fingerprint, save_encoder
from codec.config import CodecConfig, ReleaseError
from data import DataError, decode, open_clips
from data.clips import Clips
from data.pairs import SPOKEN, PairCrops, Pairs, write_shard
from experiments import encode_pairs
from experiments.random_release import SMALL, TINY, random_codec
from tests.random_pairs import random_pair, random_shards, write_random_shard
from training.pairs import SETTLING, PairDecoder

pytestmark = pytest.mark.usefixtures("one_thread")

FRAME = 1920


@pytest.fixture(scope="module")
def codec(tiny_release: Path) -> Codec:
    return load_release(tiny_release, torch.float32)


@pytest.fixture(scope="module")
def shards(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_shards(tiny_release, tmp_path_factory.mktemp("pairs"))


def opened(folder: Path, codec: Codec) -> Pairs:
    return Pairs([folder], codec.config, codec_fingerprint(codec))


def test_pairs_are_read_as_they_were_written(shards: Path, codec: Codec) -> None:
    pairs = opened(shards, codec)
    assert pairs.lengths.tolist() == [60, 1, 30, 20, 40]
    assert pairs.sources == [SPOKEN]
    assert pairs.hours == pytest.approx(151 * 0.08 / 3600)
    for index, seed in enumerate((0, 1, 2, 10, 11)):
        written = random_pair(codec.config, int(pairs.lengths[index]), seed)
        assert torch.equal(pairs.codes(index), written.codes)
        assert torch.equal(pairs.codes(index, 5, 7), written.codes[:, 5:12])
        assert pairs.about()[index] == written.about
    assert pairs.name(4) == "pairs_1.safetensors pair 1"


def test_a_hundred_hours_take_about_170_megabytes(tmp_path: Path) -> None:
    codec, frames = random_codec(replace(TINY, semantic_codebook_size=8192)), 200  # 16 s
    write_random_shard(tmp_path / "a.safetensors", codec, [frames] * 50)
    size = (tmp_path / "a.safetensors").stat().st_size
    assert size / (50 * frames) * 12.5 * 3600 * 100 < 180e6


def test_pairs_of_another_release_are_refused(shards: Path) -> None:
    with pytest.raises(DataError, match="was spoken by another release"):
        opened(shards, random_codec(TINY, seed=1))


@pytest.mark.parametrize("part", ["codes", "header", "end"])
def test_a_damaged_shard_is_refused_in_a_sentence_that_names_it(
    shards: Path, codec: Codec, tmp_path: Path, part: str
) -> None:
    path = tmp_path / "pairs_0.safetensors"
    content = bytearray((shards / path.name).read_bytes())
    if part == "end":
        content = content[:-100]
    else:
        content[9 if part == "header" else -2000] ^= 1
    path.write_bytes(content)
    with pytest.raises((DataError, ReleaseError), match=re.escape(str(path))):
        opened(tmp_path, codec)


@pytest.mark.parametrize(("row", "code"), [(0, TINY.semantic_codebook_size), (5, TINY.acoustic_codebook_size)])
def test_codes_that_the_codec_does_not_have_are_refused(tmp_path: Path, codec: Codec, row: int, code: int) -> None:
    pair = random_pair(codec.config, 30, 0)
    pair.codes[row, 7] = code
    write_shard(tmp_path / "a.safetensors", [pair], codec_fingerprint(codec))
    with pytest.raises(DataError, match="is damaged"):
        opened(tmp_path, codec)


def test_what_holds_no_pairs_is_refused(tmp_path: Path, tiny_release: Path, codec: Codec) -> None:
    with pytest.raises(DataError, match="has no pairs"):
        opened(tmp_path, codec)
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "nowhere", codec)
    shutil.copy(tiny_release / "consolidated.safetensors", tmp_path / "release.safetensors")
    with pytest.raises(DataError, match="holds no pairs"):
        opened(tmp_path, codec)


def test_a_crops_sound_is_that_of_its_place_in_the_whole_pair(shards: Path, codec: Codec) -> None:
    pairs, samples = opened(shards, codec), 9 * FRAME + 700
    crops = PairCrops(pairs, samples, seed=0)
    decode = PairDecoder(codec, samples, bf16=False)
    starts = set()
    for step in range(2):
        batch = crops.draw(step, 4)
        decoded = decode(batch.codes, batch.begins)
        assert decoded.waveform.shape == (4, 1, samples)
        for name, waveform, codes, counted in zip(batch.names, *decoded, strict=True):
            index = [pairs.name(i) for i in range(len(pairs))].index(name)
            whole = pairs.codes(index)
            (start,) = [s for s in range(whole.shape[1] - 8) if torch.equal(whole[:, s : s + 9], codes)]
            sound = codec.decode(whole[None])[0, 0, start * FRAME :][:samples]
            assert (waveform[0] - sound).abs().max() < 1e-5 * sound.abs().max()
            starts.add(min(start, 22))
            assert counted.tolist() == [start == 0 or frame >= SETTLING for frame in range(9)]
    assert len(starts) > 3


def test_the_frames_that_a_sound_depends_on_reach_as_far_back_as_stated() -> None:
    """A changed code changes the sound for `decoder_context` frames after its own, and no longer."""
    assert CodecConfig().decoder_context == 21
    codec = random_codec(SMALL)
    codes = random_pair(codec.config, 60, 0).codes[None]
    other = codes.clone()
    other[:, 1:, 20] = (codes[:, 1:, 20] + 9) % codec.config.acoustic_codebook_size
    differing = (codec.decode(codes) != codec.decode(other))[0, 0].view(-1, FRAME).any(dim=1).nonzero().flatten()
    assert differing.min() == 20
    assert 20 + codec.config.decoder_context - 2 <= differing.max() <= 20 + codec.config.decoder_context


def test_all_positions_come_equally_often_and_short_pairs_never(shards: Path, codec: Codec) -> None:
    pairs = opened(shards, codec)
    crops = PairCrops(pairs, 20 * FRAME, seed=0)
    drawn = Counter(name for step in range(40) for name in crops.draw(step, 50).names)
    positions = {pairs.name(0): 41, pairs.name(2): 11, pairs.name(3): 1, pairs.name(4): 21}
    assert drawn.keys() == positions.keys()
    for name, count in positions.items():
        assert drawn[name] == pytest.approx(2000 * count / 74, rel=0.4)
    assert crops.too_short == 1


def test_the_draw_is_a_function_of_seed_and_step_whatever_the_number_of_ranks(shards: Path, codec: Codec) -> None:
    crops = PairCrops(opened(shards, codec), 10 * FRAME, seed=0)
    whole = crops.draw(3, 6)
    parts = [crops.draw(3, 3, rank, 2) for rank in range(2)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    assert torch.equal(whole.begins, torch.cat([part.begins for part in parts]))
    assert not torch.equal(whole.codes, crops.draw(4, 6).codes)
    assert not torch.equal(whole.codes, PairCrops(crops.pairs, 10 * FRAME, seed=1).draw(3, 6).codes)


def test_pairs_that_are_all_too_short_say_how_long_they_are(shards: Path, codec: Codec) -> None:
    with pytest.raises(DataError, match=r"the longest has 4\.80 s"):
        PairCrops(opened(shards, codec), 61 * FRAME, seed=0)


def test_an_encoders_codes_stand_in_for_spoken_ones_and_say_so(
    tiny_release: Path, speech_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codec = load_release(tiny_release)
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(encoder, codec, {})
    arguments = [str(tmp_path / "out"), str(speech_folder), f"--model-dir={tiny_release}", f"--encoder={encoder}"]
    assert encode_pairs.main(arguments) == 0
    assert "13 pairs" in capsys.readouterr().out
    pairs = opened(tmp_path / "out", codec)
    assert pairs.sources == ["encoder encoder.safetensors, in place of a language model"]
    clip = decode(open_clips([str(speech_folder)]).read(3), 24000)
    expected = codec.encode(clip[None])[0]
    assert any(torch.equal(pairs.codes(index), expected) for index in range(len(pairs)))
    assert encode_pairs.main(arguments) == 2
    assert "has shards already" in capsys.readouterr().err


def test_pairs_of_some_speakers() -> None:
    class FourSpeakers:
        def speakers(self) -> np.ndarray:
            return np.repeat(np.arange(4, dtype=np.int32), 5)

    clips = cast("Clips", FourSpeakers())
    chosen = encode_pairs.choose(clips, 2, seed=0)
    assert len(chosen) == 10
    assert len({index // 5 for index in chosen}) == 2
    assert chosen == encode_pairs.choose(clips, 2, seed=0)
    assert sorted(encode_pairs.choose(clips, 0, seed=0)) == list(range(20))
    with pytest.raises(DataError, match="the clips have 4"):
        encode_pairs.choose(clips, 5, seed=0)
