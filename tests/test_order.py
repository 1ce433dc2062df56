"""The order of the training clips: each comes in its turn, and a position is found without those before it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data import Crops, DataError, JoinedClips, Order, Shuffled, Stream, crop_loader, open_clips, open_sources, order_of
from data.order import BLOCK, OF_SPEAKER, BySpeaker, Mixed
from data.sources import Source
from experiments.random_speech import audio_bytes, write_parquet

SPEAKERS = np.array([0, 0, 0, 0, 0, 1, 1, 2], dtype=np.int32)  # one with much speech, one with a single clip


def orders() -> list[Order]:
    return [
        Shuffled(8, seed=1),
        BySpeaker(SPEAKERS, seed=1),
        Mixed([Shuffled(8, seed=1), BySpeaker(SPEAKERS, seed=2)], [8, 8], [3.0, 1.0], seed=1),
    ]


@pytest.mark.parametrize("kind", range(3))
def test_a_place_is_the_same_whatever_was_asked_before(kind: int) -> None:
    walked = [orders()[kind](place) for place in range(3000)]
    jumped = orders()[kind]
    for place in np.random.default_rng(0).permutation(3000)[:200]:
        assert jumped(int(place)) == walked[place]
    assert [pickle.loads(pickle.dumps(jumped))(place) for place in (7, 2999)] == [walked[7], walked[2999]]


@pytest.mark.parametrize("kind", range(3))
def test_a_clip_comes_again_only_in_the_next_epoch(kind: int) -> None:
    """The epoch is what its crop is drawn from: the same clip never comes with the same crop twice."""
    order = orders()[kind]
    drawn = [order(place) for place in range(3000)]
    assert len(set(drawn)) == len(drawn)
    for index in {index for _, index in drawn}:
        assert [epoch for epoch, i in drawn if i == index] == sorted(epoch for epoch, i in drawn if i == index)


def test_by_speaker_each_comes_as_often_and_each_of_their_clips_in_turn() -> None:
    order = BySpeaker(SPEAKERS, seed=0)
    drawn = [order(place)[1] for place in range(30)]
    assert Counter(SPEAKERS[drawn].tolist()) == {0: 10, 1: 10, 2: 10}
    assert Counter(drawn) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 7: 10}
    for begin in range(0, 30, 3):
        assert sorted(SPEAKERS[drawn[begin : begin + 3]]) == [0, 1, 2]


def test_sources_have_their_shares_and_each_walks_its_own_epochs() -> None:
    order = Mixed([Shuffled(1500, seed=0), Shuffled(50, seed=1)], [1500, 50], [3.0, 1.0], seed=0)
    drawn = [order(place) for place in range(2 * BLOCK)]
    assert sum(index < 1500 for _, index in drawn[:BLOCK]) == 750
    first, second = [[h for h in drawn if (h[1] < 1500) is small] for small in (True, False)]
    assert sorted(index for _, index in first) == list(range(1500))
    assert Counter(index for _, index in second) == dict.fromkeys(range(1500, 1550), 10)
    assert {epoch for epoch, _ in second} == set(range(10))
    with pytest.raises(DataError, match="1/1000"):
        Mixed([Shuffled(5, 0), Shuffled(5, 0)], [5, 5], [1.0, 0.0001], seed=0)


def test_a_clip_is_replaced_by_one_of_its_speaker_and_after_many_in_vain_by_any() -> None:
    order, generator = BySpeaker(SPEAKERS, seed=0), torch.Generator().manual_seed(0)
    assert {order.replacement(2, 0, generator) for _ in range(100)} == {0, 1, 2, 3, 4}
    assert {order.replacement(5, 0, generator) for _ in range(100)} == {5, 6}
    assert {order.replacement(7, 0, generator) for _ in range(200)} == set(range(8))  # the speaker's only one
    assert {order.replacement(2, OF_SPEAKER, generator) for _ in range(200)} == set(range(8))


def test_a_clip_is_replaced_by_one_of_its_source(tmp_path: Path) -> None:
    """A source of short clips would lose its share to the others, and one of long clips would get it."""
    clips = {f"long{i}": audio_bytes(0.5 + i / 100) for i in range(20)}
    write_parquet(tmp_path / "long.parquet", clips)
    write_parquet(tmp_path / "mostly.parquet", {f"s{i}": audio_bytes(0.5 if i < 3 else 0.1) for i in range(12)})
    parts = open_sources(
        [Source(str(tmp_path / f"{name}.parquet")) for name in ("long", "mostly")], str(tmp_path / "c")
    )
    order = order_of(parts, [1.0, 1.0], "clips", seed=0)
    crops = Crops(JoinedClips(parts), order, 12000, 24000, resample=False, seed=0)
    items = [crops[order(place)] for place in range(200)]
    assert any(item.skipped for item in items)
    short = sum(order(place)[1] >= 20 for place in range(200))
    assert sum(item.name.startswith("s") for item in items) == short
    assert 80 < short < 120


def test_balance_needs_more_than_one_speaker(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(audio_bytes(0.5))
    parts = open_sources([Source(str(tmp_path))])
    with pytest.raises(DataError, match=r"data\.sampling is speakers, but all clips are of one speaker"):
        order_of(parts, [0.0], "speakers", seed=0)


def test_a_source_of_one_speaker_can_be_mixed_with_others_by_speaker(tmp_path: Path) -> None:
    for speaker in ("own", "others/a", "others/b"):
        (tmp_path / speaker).mkdir(parents=True)
        (tmp_path / speaker / "clip.wav").write_bytes(audio_bytes(0.5))
    parts = open_sources([Source(str(tmp_path / name)) for name in ("own", "others")])
    order = order_of(parts, [0.5, 0.5], "speakers", seed=0)
    drawn = [order(place)[1] for place in range(1000)]
    assert [drawn.count(index) for index in range(3)] == [500, 250, 250]


def test_the_corpus_in_its_own_layout_gives_speakers_and_transcripts(tmp_path: Path) -> None:
    for speaker, chapter, number in [("84", "1", "0"), ("84", "2", "0"), ("174", "1", "0")]:
        folder = tmp_path / "dev-clean" / speaker / chapter
        folder.mkdir(parents=True)
        (folder / f"{speaker}_{chapter}_{number}.wav").write_bytes(audio_bytes(0.5))
        (folder / f"{speaker}_{chapter}_{number}.normalized.txt").write_text(f"It is {speaker}.\n")
        (folder / f"{speaker}_{chapter}_{number}.original.txt").write_text("It is he.\n")
    (tmp_path / "dev-clean/84/1/84_1_1.wav").write_bytes(audio_bytes(0.5))
    clips = open_clips([str(tmp_path / "dev-clean")])
    read = [clips.read(i) for i in (0, 3)]
    assert [(clip.speaker, clip.text) for clip in read] == [("174", "It is 174."), ("84", "It is 84.")]
    assert clips.speakers().tolist() == [0, 1, 1, 1]
    crops = Crops(clips, Shuffled(len(clips), seed=0), 4000, 24000, resample=False, seed=0)
    assert (crops[0, 2].skipped, clips.read(2).text) == ((), "")  # a clip without transcript trains, too


def test_speakers_of_several_sources_are_told_apart(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_parquet(tmp_path / f"{name}.parquet", {"a1": audio_bytes(0.5), "b1": audio_bytes(0.5)})
    clips = open_clips([str(tmp_path / f"{name}.parquet") for name in ("x", "y")], str(tmp_path / "cache"))
    assert clips.speakers().tolist() == [0, 1, 2, 3]


# LibriTTS-R, train.clean.100, train.clean.360 and train.other.500: clips and speakers
SPLITS = {"train.clean.100": (33_232, 247), "train.clean.360": (116_462, 904), "train.other.500": (205_035, 1160)}


def made_up_audio(number: int) -> bytes:
    """A WAV file of three samples, of which two tell the clip's number."""
    samples = struct.pack("<hhh", number & 0x7FFF, number >> 15, 9000)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 42, b"WAVE", b"fmt ", 16, 1, 1, 24000, 48000, 2, 16, b"data", 6)
    return head + samples


def resident() -> int:
    """Memory of this process and the loader's workers that is not a file's: bytes."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    statuses = [Path(f"/proc/{process}/status").read_text() for process in processes]
    return sum(int(status.partition("RssAnon:")[2].split()[0]) * 1024 for status in statuses)


def test_in_the_real_corpus_an_interrupted_epoch_brings_each_clip_once_in_constant_memory(tmp_path: Path) -> None:
    """The order is walked whole. The loader walks its beginning, with an interruption, and its end."""
    begin = 0
    for split, (count, speakers) in SPLITS.items():
        numbers = range(begin, begin + count)
        names = pa.array([f"{number % speakers}_{number}" for number in numbers])
        audio = pa.array([made_up_audio(number) for number in numbers], pa.binary())
        columns = {
            "audio": pa.StructArray.from_arrays([audio, names], ["bytes", "path"]),
            "text_normalized": names,
            "speaker_id": pa.array([str(number % speakers) for number in numbers]),
            "id": names,
        }
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet", row_group_size=1000)
        begin += count
    clips = open_clips([str(tmp_path / "corpus" / split) for split in SPLITS], str(tmp_path / "cache"))
    assert len(clips) == begin == 354_729
    order = Shuffled(len(clips), seed=0)
    epoch = np.array([order(position)[1] for position in range(len(clips))])
    assert (np.bincount(epoch, minlength=len(clips)) == 1).all()

    crops = Crops(clips, Shuffled(len(clips), seed=0), 3, 24000, resample=False, seed=0)
    batch_size, ranks = 512, 2
    both = batch_size * ranks

    def walk(first_position: int, batches: int) -> None:
        """The ranks together get the clips of the epoch from a position on, and no memory is lost on the way."""
        streams = [Stream(order, batch_size, first_position, rank, ranks) for rank in range(ranks)]
        loaders = [crop_loader(crops, stream, workers=1, pin_memory=False) for stream in streams]
        memory = []
        for number in range(batches):
            for rank, loader in enumerate(loaders):
                batch = next(loader)
                samples = (batch.waveform[:, 0, :2] * 32768).round().int()
                found = (samples[:, 0] + (samples[:, 1] << 15)).numpy()
                place = first_position + number * both + rank * batch_size
                expected = epoch[place : place + batch_size]
                assert (found[: len(expected)] == expected).all()
                assert not batch.skipped
            if number % 2 == 0:
                memory.append(resident())
        for loader in loaders:
            loader.close()
        assert max(memory[2:]) - memory[2] < 60e6

    walk(0, 12)
    walk(12 * both, 12)
    walk(len(clips) - 7 * both - 100, 8)  # past the end of the epoch
