"""Clips from folders and parquet files, crops, and what bad clips get."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from data import Crops, DataError, Shuffled, Source, Stream, crop_loader, decode, fixed_clips, open_clips, open_sources
from data.audio import BadClipError, Clip
from experiments.random_speech import audio_bytes, write_parquet

RATE = 24000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (name, kind) in enumerate(
        [("a/1.wav", "WAV"), ("a/2.flac", "FLAC"), ("b/3.ogg", "OGG"), ("b/4.mp3", "MP3")]
    ):
        path = tmp_path / "speech" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio_bytes(1.0 + 0.1 * i, kind=kind))
    (tmp_path / "speech" / "notes.txt").write_text("no audio")
    return tmp_path / "speech"


def test_folders_and_parquet_files_give_the_same_clips_joined(folder: Path, tmp_path: Path) -> None:
    parquet = write_parquet(tmp_path / "rows.parquet", {"x": audio_bytes(1.0), "y": audio_bytes(2.0)})
    clips = open_clips([str(folder), str(parquet)], str(tmp_path / "cache"))
    assert len(clips) == 6
    lengths = [decode(clips.read(i), RATE).shape[-1] / RATE for i in range(6)]
    assert lengths == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.0, 2.0], abs=0.05)
    assert clips.read(4).speaker == "x"
    assert clips.read(5).text == "words"


def test_crops_repeat_for_a_seed_on_any_number_of_workers(folder: Path) -> None:
    clips = open_clips([str(folder)])
    crops = Crops(clips, Shuffled(len(clips), seed=0), 12000, RATE, resample=False, seed=5)

    def batches(workers: int, first_step: int) -> list[torch.Tensor]:
        order = Shuffled(len(clips), seed=5)
        stream = crop_loader(crops, Stream(order, 3, first_position=3 * first_step), workers, False)
        return [next(stream).waveform for _ in range(4 - first_step)]

    alone, with_workers = batches(0, 0), batches(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(alone, with_workers, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[2:], batches(0, 2), strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_an_epoch_holds_every_clip_once_and_ranks_share_it() -> None:
    keys = iter(Stream(Shuffled(10, seed=0), 4))
    seen = [key for _ in range(5) for key in next(keys)]
    assert sorted(index for epoch, index in seen if epoch == 0) == list(range(10))
    assert sorted(index for epoch, index in seen if epoch == 1) == list(range(10))
    assert [index for epoch, index in seen if epoch == 0] != [index for epoch, index in seen if epoch == 1]
    halves = [iter(Stream(Shuffled(10, seed=0), 2, rank=rank, ranks=2)) for rank in range(2)]
    shared = [key for _ in range(5) for half in halves for key in next(half)]
    assert shared == seen


def float_wav(peak: float) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, peak * np.sin(np.arange(24000) / 20), 24000, format="WAV", subtype="FLOAT")
    return stream.getvalue()


BAD = {
    "corrupt": b"RIFF no audio at all",
    "silent": audio_bytes(1.0, level=0.0),
    "short": audio_bytes(0.2),
    "other_rate": audio_bytes(1.0, rate=16000),
    "empty": b"",
    "cut_short": audio_bytes(1.0)[:30000],
    "unscaled": float_wav(2.0**15),
    "nonsense": float_wav(1e38),
}


def test_bad_clips_are_replaced_and_named_with_their_reason(tmp_path: Path) -> None:
    good = {f"good{i}": audio_bytes(1.0 + i / 100) for i in range(5)}
    clips = open_clips([str(write_parquet(tmp_path / "rows.parquet", good | BAD))], str(tmp_path / "cache"))
    crops = Crops(clips, Shuffled(len(clips), seed=0), 12000, RATE, resample=False, seed=0)
    items = [crops[0, i] for i in range(len(clips))]
    assert all(item.waveform.shape == (1, 12000) for item in items)
    kinds = {skipped.message.split()[0]: skipped.kind for item in items for skipped in item.skipped}
    assert kinds == {
        "corrupt": "cannot be decoded",
        "silent": "is silent",
        "short": "is shorter than a crop",
        "other_rate": "is not at 24000 Hz",
        "empty": "holds no audio",
        "cut_short": "is cut short",
        "unscaled": "is far over full scale",
        "nonsense": "is far over full scale",
    }


@pytest.mark.parametrize("kind", ["WAV", "OGG", "FLAC"])
def test_a_file_that_an_interrupted_copy_left_is_a_bad_clip(kind: str) -> None:
    whole = audio_bytes(3.0, kind=kind)
    assert decode(Clip("whole", whole), RATE).shape == (1, 72000)
    for share in (0.3, 0.9, 0.99):
        with pytest.raises(BadClipError, match=r"is (cut short|empty)|cannot be decoded"):
            decode(Clip("part", whole[: int(share * len(whole))]), RATE)


@pytest.mark.parametrize("size", [0, 0x7FFFF024, 0xFFFFFFFF])
def test_a_wav_file_out_of_a_pipe_does_not_know_its_size_and_is_good(size: int) -> None:
    whole = audio_bytes(1.0)
    assert decode(Clip("pipe", whole[:4] + size.to_bytes(4, "little") + whole[8:]), RATE).shape == (1, 24000)


def test_a_row_without_sound_is_a_bad_clip_and_one_without_transcript_a_good_one(tmp_path: Path) -> None:
    rows = pq.read_table(
        write_parquet(tmp_path / "rows.parquet", {f"{i}": audio_bytes(1.0) for i in range(3)})
    ).to_pylist()
    rows[0]["audio"], rows[1]["text_normalized"] = None, None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    clips = open_clips([str(tmp_path / "rows.parquet")], str(tmp_path / "cache"))
    with pytest.raises(BadClipError, match="0 holds no audio"):
        clips.read(0)
    assert [clips.read(index).text for index in (1, 2)] == ["", "words"]


@pytest.mark.parametrize(
    "audio", [pa.array([3]), pa.array([[0.1, 0.2]]), pa.array([{"array": [0.1]}]), pa.array([{"bytes": 1}])]
)
def test_audio_of_another_type_is_an_error_that_names_it(tmp_path: Path, audio: pa.Array) -> None:
    columns = {"audio": audio, "text_normalized": ["words"], "speaker_id": ["1"], "id": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    with pytest.raises(
        DataError, match=r"other\.parquet has audio of type .*expected the bytes of a file, its path, or"
    ):
        open_clips([str(tmp_path / "other.parquet")], str(tmp_path / "cache"))


def test_an_empty_split_holds_no_clips(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "rows.parquet", {"a": audio_bytes(1.0)})
    pq.write_table(pq.read_table(whole).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet has no clips"):
        open_clips([str(tmp_path / "empty.parquet")], str(tmp_path / "cache"))
    assert len(open_clips([str(tmp_path)], str(tmp_path / "cache"))) == 1


def test_shared_memory_without_room_ends_the_run_with_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm)")

    clips = open_clips([str(folder)])
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    crops = Crops(clips, Shuffled(len(clips), seed=0), 12000, RATE, resample=False, seed=0)
    with pytest.raises(DataError, match=r"^a loader worker has no room .*enlarge /dev/shm .*data\.workers lower$"):
        next(crop_loader(crops, Stream(Shuffled(len(clips), seed=0), 2), 1, pin_memory=False))


def test_another_sample_rate_is_resampled_when_allowed() -> None:
    clip = Clip("tone", audio_bytes(1.0, rate=16000))
    assert decode(clip, RATE, resample=True).shape == (1, 24000)
    with pytest.raises(BadClipError, match="16000 Hz"):
        decode(clip, RATE)


def test_resampling_makes_no_image_above_the_old_band() -> None:
    """Linear interpolation would leave mirrored energy above 8 kHz."""
    time = np.arange(16000) / 16000
    stream = io.BytesIO()
    soundfile.write(stream, 0.5 * np.sin(2 * np.pi * 6000 * time), 16000, format="WAV", subtype="FLOAT")
    spectrum = torch.fft.rfft(decode(Clip("tone", stream.getvalue()), RATE, resample=True)[0, 2000:-2000]).abs()
    above = int(len(spectrum) * 8500 / 12000)
    assert spectrum[above:].max() < 1e-2 * spectrum.max()


def test_stereo_is_mixed_down() -> None:
    assert decode(Clip("stereo", audio_bytes(1.0, channels=2)), RATE).shape == (1, 24000)


def test_data_of_nothing_but_bad_clips_ends_with_the_reason(tmp_path: Path) -> None:
    clips = open_clips([str(write_parquet(tmp_path / "rows.parquet", BAD))], str(tmp_path / "cache"))
    with pytest.raises(DataError, match="no usable clip among 50"):
        Crops(clips, Shuffled(len(clips), seed=0), 12000, RATE, resample=False, seed=0)[0, 0]


def test_unusable_sources_say_what_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_clips([str(tmp_path / "nothing")])
    with pytest.raises(DataError, match=r"expected \.wav, \.flac, .*, \.w64 files; or "):
        open_clips([str(tmp_path)])
    pq.write_table(pa.table({"sound": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks the column audio; it has sound"):
        open_clips([str(tmp_path / "other.parquet")], str(tmp_path / "cache"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        open_clips([str(tmp_path / "broken.parquet")], str(tmp_path / "cache"))
    whole = write_parquet(tmp_path / "holes.parquet", {f"{i}": audio_bytes(1.0 + i / 100) for i in range(9)})
    content = whole.read_bytes()
    whole.write_bytes(content[:1000] + bytes(len(content) - 4000) + content[-3000:])
    with pytest.raises(DataError, match=r"holes\.parquet (cannot be read as parquet|could not be copied)"):
        open_clips([str(whole)], str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"has no splits: leave out 'train'"):
        open_sources([Source(str(tmp_path), "train")])


def test_a_cache_without_space_is_named_with_the_reason(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    parquet = write_parquet(tmp_path / "rows.parquet", {f"{i}": audio_bytes(1.0 + i / 100) for i in range(9)})
    script = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from data import DataError, open_clips
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    open_clips([{str(parquet)!r}], {str(tmp_path / "cache")!r})
except DataError as error:
    sys.exit(str(error))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert re.search(r"rows\.parquet could not be copied into the cache .*File too large", result.stderr), result.stderr


def test_validation_clips_are_the_same_every_time_and_long_enough(folder: Path) -> None:
    clips = open_clips([str(folder)])
    first = fixed_clips(clips, 2, 28000, RATE, resample=False)
    assert first.shape == (2, 1, 28000)
    assert torch.equal(first, fixed_clips(clips, 2, 28000, RATE, resample=False))
    # of both speakers, though two clips of the first would do
    assert torch.equal(fixed_clips(clips, 2, 12000, RATE, resample=False)[1], decode(clips.read(2), RATE)[:, :12000])
    with pytest.raises(DataError, match=r"expected 5: .*the last clip that cannot be used: .* is shorter than a crop"):
        fixed_clips(clips, 5, 28000, RATE, resample=False)
