"""Audio files are judged by their headers, and decoded in bounded memory whatever these claim."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data import Crops, Shuffled
from data.audio import BadClipError, Clip, decode, open_audio, read_audio
from data.clips import FolderClips
from data.crops import UNSEEKABLE
from experiments.random_speech import audio_bytes
from system.names import printable

RATE = 24000


def encoded(seconds: float, rate: int = RATE, **form: str) -> bytes:
    """Noise in any format and subtype of libsndfile."""
    stream = io.BytesIO()
    samples = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate))
    soundfile.write(stream, samples, rate, **form)
    return stream.getvalue()


def with_flac_frames(content: bytes, frames: int) -> bytes:
    """A FLAC file that claims another length, in the last 36 bits before the checksum in its first block."""
    edited = bytearray(content)
    edited[21] = edited[21] & 0xF0 | frames >> 32
    edited[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(edited)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW", "PCM_U8", "DOUBLE"])
def test_wav_files_of_telephones_and_editors_are_read(subtype: str) -> None:
    clip = Clip("clip", encoded(1.0, 8000, format="WAV", subtype=subtype))
    assert decode(clip, RATE, resample=True).shape[-1] == pytest.approx(RATE, rel=0.05)


def test_a_header_that_claims_hours_is_refused_before_anything_is_decoded() -> None:
    flac = with_flac_frames(encoded(1.0, format="FLAC"), 2**36 - 1)
    one_hertz = bytearray(audio_bytes(1.0))
    one_hertz[24:28] = (4000).to_bytes(4, "little")
    with open_audio(Clip("clip", flac)) as audio:
        assert audio.seconds > 2e6
    with pytest.raises(BadClipError, match=r"^clip is too long \(286331\d s by its header, expected 163 s or less\)$"):
        read_audio(Clip("clip", flac), most_seconds=163)
    with pytest.raises(BadClipError, match="is too long"):
        decode(Clip("clip", flac), RATE)
    with pytest.raises(BadClipError, match=r"is too long \(6 s by its header"):
        read_audio(Clip("clip", bytes(one_hertz)), most_seconds=5)


@pytest.mark.parametrize("rate", [0, 1, 3999, 400_000, 2**31 - 1, 2**32 - 1])
def test_an_impossible_sample_rate_is_a_bad_clip(rate: int) -> None:
    wav = bytearray(audio_bytes(0.2))
    wav[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(BadClipError, match=r"has an impossible sample rate|cannot be decoded"):
        decode(Clip("clip", bytes(wav)), RATE, resample=True)


def test_a_flac_file_out_of_a_pipe_does_not_know_its_length_and_is_good() -> None:
    whole = encoded(1.0, format="FLAC")
    streamed = decode(Clip("clip", with_flac_frames(whole, 0)), RATE)
    assert torch.equal(streamed, decode(Clip("clip", whole), RATE))


def data_size(size: int, riff: int | None = None) -> bytes:
    """A second of WAV whose header claims another size of the samples, and of the file."""
    wav = bytearray(audio_bytes(1.0))
    wav[40:44] = size.to_bytes(4, "little")
    if riff is not None:
        wav[4:8] = riff.to_bytes(4, "little")
    return bytes(wav)


@pytest.mark.parametrize("riff", [0, 8, 1000, 48036, 48044, 480000, 0x7FFFF024, 0xFFFFFFFF])
def test_whether_a_wav_file_is_whole_is_said_by_its_samples_and_not_by_the_files_size(riff: int) -> None:
    assert decode(Clip("clip", data_size(48000, riff)), RATE).shape == (1, RATE)
    with pytest.raises(BadClipError, match="is cut short"):
        decode(Clip("clip", data_size(96000, riff)), RATE)


@pytest.mark.parametrize("size", [0, 48000 + 44, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_file_that_does_not_know_the_size_of_its_samples_is_good(size: int) -> None:
    assert torch.equal(decode(Clip("clip", data_size(size)), RATE), decode(Clip("clip", audio_bytes(1.0)), RATE))


def test_a_wav_file_without_samples_is_empty_also_with_chunks_behind_them() -> None:
    empty = audio_bytes(0.0)
    for content in (empty, empty + b"LIST" + (4).to_bytes(4, "little") + b"INFO"):
        with pytest.raises(BadClipError, match="clip is empty"):
            decode(Clip("clip", content), RATE)


def test_chunks_around_the_samples_do_not_matter() -> None:
    whole = audio_bytes(1.0)
    junk = b"JUNK" + (7).to_bytes(4, "little") + bytes(8)  # padded to an even size
    for content in (whole[:12] + junk + whole[12:], whole + b"LIST" + (2000).to_bytes(4, "little") + b"cut"):
        assert decode(Clip("clip", content), RATE).shape == (1, RATE)


def test_an_upper_limit_of_memory_holds_for_every_header(tmp_path: Path) -> None:
    """In a process of its own with 100 MB more than its imports take, and at most 16 MB of samples at a time."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 48000, 2, format="FLAC") as file:
        for _ in range(6):
            file.write(np.full((480000, 2), 2e-4, dtype=np.float32))
    (tmp_path / "lying.flac").write_bytes(with_flac_frames(encoded(1.0, format="FLAC"), 2**36 - 1))
    (tmp_path / "streamed.flac").write_bytes(with_flac_frames((tmp_path / "long.flac").read_bytes(), 0))
    script = """
import resource, sys
from pathlib import Path
import data.audio as audio
audio.MOST_SAMPLES, audio.BLOCK = 2**22, 2**16
now = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (now + 100 * 2**20, now + 100 * 2**20))
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        audio.decode(audio.Clip("clip", path), 48000, resample=True)
    except audio.BadClipError as error:
        print(path.name, error)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert not result.returncode, result.stderr
    said = dict(line.split(" ", 1) for line in result.stdout.splitlines())
    assert said.keys() == {"long.flac", "lying.flac", "streamed.flac"}
    assert all("is too long" in text for text in said.values()), said


@pytest.mark.parametrize("transcript", ["pipe", "device", "large"])
def test_a_transcript_that_is_no_text_is_said_and_not_waited_for(tmp_path: Path, transcript: str) -> None:
    path = tmp_path / "ann/1/a.normalized.txt"
    path.parent.mkdir(parents=True)
    path.with_name("a.wav").write_bytes(audio_bytes(0.5))
    make = {"pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to("/dev/zero")}
    make.get(transcript, lambda: path.write_bytes(b"a" * (2 << 20)))()
    clips = FolderClips(tmp_path)
    with pytest.raises(BadClipError, match=r"has a transcript that cannot be read \("):
        clips.read(0)
    assert clips.texts() == [""]


def test_pipes_and_folders_with_the_name_of_a_sound_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    for name, reason in (("pipe", "regular file"), ("folder", "regular file"), ("gone", "No such file")):
        with pytest.raises(BadClipError, match=f"cannot be read .*{reason}"):
            decode(Clip("clip", tmp_path / f"{name}.wav"), RATE)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("long.wav", {"format": "WAV"}),
        ("long.mp3", {"format": "MP3"}),
        ("long.ogg", {"format": "OGG", "subtype": "OPUS"}),
        ("telephone.wav", {"format": "WAV", "subtype": "GSM610"}),
        ("streamed.flac", {"format": "FLAC"}),
    ],
)
def test_a_crop_of_a_long_file_decodes_an_excerpt(
    tmp_path: Path, name: str, form: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.crops.LONG_SECONDS", 3.0)
    monkeypatch.setattr("data.crops.EXCERPT_SECONDS", 1.5)
    content = encoded(4.0, 8000, **form)
    (tmp_path / name).write_bytes(with_flac_frames(content, 0) if name == "streamed.flac" else content)
    clips = FolderClips(tmp_path)
    crops = Crops(clips, Shuffled(1, seed=0), RATE, RATE, resample=True, seed=0)
    clip, waveform, faults = crops.usable(0, torch.Generator().manual_seed(0))
    assert waveform.shape[-1] == pytest.approx(1.5 * RATE, rel=0.01)
    assert (UNSEEKABLE in [fault.kind for fault in faults]) == (name in ("telephone.wav", "streamed.flac"))
    items = [crops[epoch, 0].waveform for epoch in range(2)]
    assert torch.equal(items[0], crops[0, 0].waveform)
    assert not torch.equal(items[0], items[1])
    assert torch.allclose(crops.usable(0)[1][:, :RATE], decode(Clip("", clip.audio), RATE, True)[:, :RATE], atol=1e-3)


def test_an_excerpt_is_what_lies_at_its_place_in_the_file(tmp_path: Path) -> None:
    samples = np.arange(20 * 8000, dtype=np.int32) << 8
    for form in ({"subtype": "PCM_32"}, {"format": "FLAC", "subtype": "PCM_24"}):
        soundfile.write(tmp_path / "count.wav", samples, 8000, **({"format": "WAV"} | form))
        with open_audio(Clip("clip", tmp_path / "count.wav")) as audio:
            assert np.array_equal(audio.read(70_001, 5)[:, 0] * 2**23, np.arange(70_001, 70_006, dtype=np.float32))


def test_a_part_that_is_silent_is_named_with_its_place() -> None:
    wav = io.BytesIO()
    soundfile.write(wav, np.concatenate([np.zeros(8000), np.full(8000, 0.1)]), 8000, format="WAV")
    with (
        open_audio(Clip("clip", wav.getvalue())) as audio,
        pytest.raises(BadClipError, match=r"^clip, 0 to 1 s, is"),
    ):
        audio.read(0, 8000)


def test_names_that_are_no_text_can_be_shown_and_written(tmp_path: Path) -> None:
    assert printable(Path(os.fsdecode(b"a/caf\xe9.wav"))) == r"a/caf\xe9.wav"
    assert printable("two\nlines\x1b[31m.wav") == r"two\nlines\x1b[31m.wav"
    assert printable("声 é 🙂.wav") == "声 é 🙂.wav"
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"caf\xe9/\xff.wav")).write_bytes(audio_bytes(0.5))
    clip = FolderClips(tmp_path).read(0)
    assert (Path(clip.name).name, clip.speaker) == (r"\xff.wav", r"caf\xe9")
    assert decode(clip, RATE).shape == (1, 12000)


def test_every_real_file_of_a_folder_with_links_counts_once(tmp_path: Path) -> None:
    """Links to the folder itself, to its parent, to a speaker, to a clip, and to nothing."""
    speech = tmp_path / "speech"
    for name in ("ann/1.wav", "ann/2.WAV", "bob/1.wav", "elsewhere/3.opus"):
        path = (tmp_path if name.startswith("elsewhere") else speech) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(audio_bytes(0.5, kind="OGG" if name.endswith(".opus") else "WAV"))
    (speech / "ann" / "again").symlink_to(speech)
    (speech / "above").symlink_to(tmp_path)
    (speech / "all").symlink_to(speech / "ann")
    (speech / "bob" / "best.wav").symlink_to(speech / "ann" / "1.wav")
    (speech / "bob" / "self.wav").symlink_to(speech / "bob" / "self.wav")
    clips = FolderClips(speech)
    names = [str(Path(clips.read(i).name).relative_to(speech)) for i in range(len(clips))]
    assert names == ["above/elsewhere/3.opus", "ann/1.wav", "ann/2.WAV", "bob/1.wav", "bob/self.wav"]
    assert clips.speakers().tolist() == [0, 1, 1, 2, 2]
    with pytest.raises(BadClipError, match=r"self\.wav cannot be read \(Too many levels of symbolic links\)"):
        decode(clips.read(4), RATE)


NAMES = ["a.opus", "a.oga", "a.OPUS", "a.Flac", "a.MP3", "a.aif", "a.AIFF", "a.au", "a.caf", "a.rf64", "a.sph", "a.w64"]


@pytest.mark.parametrize("name", NAMES)
def test_files_of_messengers_studios_and_corpora_are_looked_at(tmp_path: Path, name: str) -> None:
    form = {"opus": {"format": "OGG", "subtype": "OPUS"}, "oga": {"format": "OGG"}}
    form |= {"aif": {"format": "AIFF"}, "sph": {"format": "NIST"}}
    kind = name.split(".")[1].lower()
    (tmp_path / name).write_bytes(encoded(0.5, **form.get(kind, {"format": kind.upper()})))
    assert decode(FolderClips(tmp_path).read(0), RATE).shape[-1] == pytest.approx(12000, rel=0.2)
