"""Speech that has been at 16 kHz is found by its empty upper band, counted, and dropped when that is asked for."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
import torchaudio

from data import Crops, DataError, Source, crop_loader, decode, fixed_clips, open_clips
from data.bandwidth import is_band_limited
from data.crops import Stream
from data.order import Shuffled
from experiments.random_speech import write_parquet
from training.config import Config, Data
from training.distributed import Ranks
from training.progress import Progress

DEMO = Path("data/demo")
RATE = 24000


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The demo's speech of unseen speakers, at 24 kHz from the start."""
    clips = open_clips([str(DEMO / "unseen.parquet")], str(tmp_path_factory.mktemp("cache")))
    return [decode(clips.read(index), RATE)[0].numpy() for index in range(len(clips))]


def by_soxr(samples: np.ndarray, rate: int = 16000) -> np.ndarray:
    return soxr.resample(soxr.resample(samples, RATE, rate), rate, RATE)


def by_torchaudio(samples: np.ndarray) -> np.ndarray:
    """Its default filter is the least steep in use: the most is left above 8 kHz."""
    low = torchaudio.functional.resample(torch.from_numpy(samples)[None], RATE, 16000)
    return torchaudio.functional.resample(low, 16000, RATE)[0].numpy()


def in_16_bits(samples: np.ndarray) -> np.ndarray:
    return (np.round(samples * 32767) / 32768).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_native_speech_is_not_found_at_any_level(native: list[np.ndarray]) -> None:
    assert len(native) >= 30
    for samples in native:
        for gain in (1, 1e-3):
            assert not is_band_limited(gain * samples, RATE)
        assert not is_band_limited(in_16_bits(samples / 30), RATE)


@pytest.mark.parametrize(
    "changed",
    [
        by_soxr,
        by_torchaudio,
        lambda samples: 1e-3 * by_soxr(samples),
        lambda samples: in_16_bits(by_soxr(samples)),
        lambda samples: in_16_bits(by_soxr(samples) / 10),
        lambda samples: in_16_bits(by_torchaudio(samples)),
        lambda samples: in_16_bits(by_soxr(samples, 8000)),
    ],
    ids=["soxr", "torchaudio", "soxr, quiet", "soxr, 16 bits", "quiet in 16 bits", "torchaudio, 16 bits", "telephone"],
)
def test_speech_that_was_at_16_khz_or_less_is_found(
    native: list[np.ndarray], changed: Callable[[np.ndarray], np.ndarray]
) -> None:
    assert all(is_band_limited(changed(samples), RATE) for samples in native)


def test_speech_at_another_rate_is_judged_by_the_same_frequencies(native: list[np.ndarray]) -> None:
    for samples in native[:8]:
        for rate in (44100, 48000):
            assert not is_band_limited(soxr.resample(samples, RATE, rate), rate)
            assert is_band_limited(soxr.resample(by_soxr(samples), RATE, rate), rate)
        assert is_band_limited(soxr.resample(samples, RATE, 16000), 16000)


def test_the_whole_clip_is_judged_and_not_the_crop(native: list[np.ndarray], tmp_path: Path) -> None:
    """Native speech between seconds of a vowel's low tone: most crops have nothing above 8 kHz, the clip has."""
    tone = 0.3 * np.sin(2 * np.pi * 200 * np.arange(10 * RATE) / RATE).astype(np.float32)
    samples = np.concatenate([tone, native[0], tone])
    assert is_band_limited(tone, RATE)
    clips = open_clips([str(write_parquet(tmp_path / "rows.parquet", {"a": wav(samples)}))], str(tmp_path / "cache"))
    crops = Crops(clips, Shuffled(len(clips), seed=0), RATE, RATE, resample=False, seed=0, drop_band_limited=True)
    items = [crops[epoch, 0] for epoch in range(20)]
    assert any(is_band_limited(item.waveform[0].numpy(), RATE) for item in items)
    assert not any(item.skipped or item.kept for item in items)


@pytest.fixture
def mixed(native: list[np.ndarray], tmp_path: Path) -> str:
    """Two native clips, one that was resampled, one that is at 16 kHz."""
    long = [samples for samples in native if len(samples) > 2 * RATE]
    clips = {
        "upsampled": wav(by_soxr(long[0])),
        "at_16_khz": wav(soxr.resample(long[1], RATE, 16000), 16000),
        "native_1": wav(long[0]),
        "native_2": wav(long[1]),
    }
    return str(write_parquet(tmp_path / "rows.parquet", clips))


@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
def test_band_limited_clips_are_named_and_dropped_when_asked_for(mixed: str, drop: bool, tmp_path: Path) -> None:
    clips = open_clips([mixed], str(tmp_path / "cache"))
    crops = Crops(clips, Shuffled(4, seed=0), RATE, RATE, True, seed=0, drop_band_limited=drop)
    items = [crops[0, i] for i in range(4)]
    for item, name in zip(items, ("upsampled", "at_16_khz"), strict=False):
        found, other = (item.skipped, item.kept) if drop else (item.kept, item.skipped)
        fault = found[0]
        assert fault.kind == "has nothing above 8 kHz"
        assert fault.message.startswith(f"{name} has nothing above 8 kHz (data.band_limited=")
        assert drop or other == ()
    assert not any(item.skipped or item.kept for item in items[2:])
    with_validation = fixed_clips(clips, 2, RATE, RATE, True, drop)
    first = decode(clips.read(2 if drop else 0), RATE)
    assert torch.equal(with_validation[0], first[:, :RATE])


def test_a_run_counts_them_and_names_each_once(mixed: str, tmp_path: Path) -> None:
    clips = open_clips([mixed], str(tmp_path / "cache"))
    for fate, drop in (("kept", False), ("skipped", True)):
        folder = tmp_path / fate
        progress = Progress(folder, 0, 3, 1.0, Ranks(0, 1, torch.device("cpu")))
        stream = Stream(Shuffled(4, seed=0), 4)
        crops = Crops(clips, Shuffled(4, seed=0), RATE, RATE, True, 0, drop)
        batches = crop_loader(crops, stream, 0, pin_memory=False)
        for _ in range(3):
            batch = next(batches)
            progress.count("skipped", batch.skipped)
            progress.count("kept", batch.kept)
        progress.close(Config(model_dir="release", data=Data((Source("a"),), (Source("b"),))), 0, math.inf)
        assert progress.counts[fate]["has nothing above 8 kHz"] >= 6
        lines = (folder / f"{fate}_clips.txt").read_text().splitlines()
        assert sorted(line.split()[0] for line in lines) == ["at_16_khz", "upsampled"]
        other = "skipped" if fate == "kept" else "kept"
        assert (folder / f"{other}_clips.txt").read_text() == ""


def test_data_of_nothing_but_band_limited_clips_ends_with_the_reason(native: list[np.ndarray], tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "rows.parquet", {"a": wav(by_soxr(native[0]))})
    clips = open_clips([str(path)], str(tmp_path / "cache"))
    crops = Crops(clips, Shuffled(1, seed=0), 9600, RATE, False, 0, drop_band_limited=True)
    with pytest.raises(DataError, match=r"nothing above 8 kHz \(data.band_limited=keep uses it\)"):
        crops[0, 0]
