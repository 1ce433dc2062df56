"""patch_tokenizer.py adds voices to a release, as its server would compute them, and removes them again."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from mistral_common.tokens.tokenizers.audio import Audio

import codec
from data.reference import prepare, read_clip
from evaluation.server_codec import load_server_codec
from experiments.random_release import SMALL, TINY, random_codec
from release.changes import STATE
from tests.patching import (
    PRESET,
    clip,
    counts,
    edit,
    linked_copy,
    make_release,
    named,
    noise,
    patch,
    prompt,
    rows,
    save,
    served_voices,
    snapshot,
)
from tests.speaking_release import write_speaking_release


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def test_a_right_release_is_said_to_clone_and_is_not_touched(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(release)
    for arguments in ([], ["--check"]):
        assert patch(release, *arguments) == 0
        assert "clones voices: it takes ref_audio, and has 1 named voices" in capsys.readouterr().out
    assert snapshot(release) == before
    assert not (release / STATE).exists()


def test_a_release_without_encoder_speaks_but_does_not_clone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = make_release(tmp_path / "release", with_encoder=False)
    assert patch(release, "--check") == 1
    assert "ref_audio gets status 400 until inject_encoder.py" in capsys.readouterr().out
    before = snapshot(release)
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 2
    assert "has no encoder" in capsys.readouterr().err
    assert snapshot(release) == before


def test_a_voice_is_in_the_three_places(release: Path, tmp_path: Path) -> None:
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav', 4.01)}") == 0
    embedding = rows(release, "anna")
    assert embedding.dtype == torch.bfloat16
    assert embedding.shape == (51 + 1, TINY.embedding_dim)
    assert embedding.untyped_storage().nbytes() == embedding.numel() * 2
    assert counts(release) == {PRESET: 5, "anna": 52}
    assert named(release) == {PRESET: 0, "anna": 1}
    assert served_voices(release) == {PRESET, "anna"}
    assert torch.equal(embedding[-1], rows(release, PRESET)[-1])
    assert patch(release, "--check") == 0


FORMS = [
    ("wav", 24000, 1),
    ("flac", 24000, 1),
    ("mp3", 24000, 1),
    ("ogg", 24000, 1),
    ("wav", 16000, 1),
    ("wav", 48000, 1),
    ("mp3", 48000, 1),
    ("flac", 44100, 2),
    ("wav", 24000, 2),
]


@pytest.mark.parametrize(("form", "rate", "channels"), FORMS)
def test_a_voice_is_what_the_server_makes_of_the_clip_sent_as_ref_audio(
    tmp_path: Path, form: str, rate: int, channels: int
) -> None:
    release = write_speaking_release(tmp_path / "release", random_codec(SMALL))
    path = clip(tmp_path / f"a.{form}", 3.21, rate, channels)
    assert patch(release, "--voice", f"anna={path}") == 0
    sent = path.read_bytes()
    if channels == 2:  # the server accepts only mono
        stereo, _ = soundfile.read(path, dtype="float32")
        file = io.BytesIO()
        soundfile.write(file, stereo.mean(axis=1), rate, format="WAV", subtype="FLOAT")
        sent = file.getvalue()
    audio = Audio.from_bytes(sent)
    audio.resample(24000)
    waveform = torch.from_numpy(audio.audio_array).to(torch.bfloat16)
    server = load_server_codec(release)
    assert torch.equal(rows(release, "anna"), server.encode_waveforms([waveform])[0])
    ours = codec.load_release(release).encode(prepare([read_clip(path)]).waveform[None])
    assert torch.equal(ours, server._tokenize_audio(waveform[None, None]))
    assert prompt(release, voice="anna") == prompt(release, ref_audio=sent)


def test_the_prompt_has_the_ids_that_the_model_was_trained_with(release: Path, tmp_path: Path) -> None:
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 0
    assert prompt(release, voice="anna") == [1, 25, *[24] * 51, 36, 1000 + ord("a"), 35, 25]


@pytest.mark.parametrize("samples", [13440, 26880, 53760, 105600])
def test_a_length_that_mistral_common_miscounts_is_cut_by_a_sample(
    release: Path, tmp_path: Path, samples: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = clip(tmp_path / "a.wav", samples / 24000)
    frames = samples // 1920
    assert prompt(release, ref_audio=path.read_bytes()).count(24) == frames + 2
    assert patch(release, "--voice", f"anna={path}") == 0
    assert "one sample is cut" in capsys.readouterr().out
    assert prompt(release, voice="anna").count(24) == frames + 1 == len(rows(release, "anna"))
    prepared = prepare([read_clip(path)])
    assert prompt(release, ref_audio=prepared.wav()).count(24) == frames + 1


@pytest.mark.parametrize("way", ["commas", "several"])
def test_clips_of_one_speaker_are_joined(release: Path, tmp_path: Path, way: str) -> None:
    one, two = clip(tmp_path / "a.wav"), clip(tmp_path / "b.flac", seed=1)
    arguments = [f"anna={one},{two}"] if way == "commas" else [f"anna={one}", "--voice", f"anna={two}"]
    assert patch(release, "--voice", *arguments) == 0
    assert counts(release)["anna"] == 100 + 1
    assert served_voices(release) == {PRESET, "anna"}


def test_several_voices_are_one_change(release: Path, tmp_path: Path) -> None:
    before, path = snapshot(release), clip(tmp_path / "a,b.wav")
    assert patch(release, "--voice", f"anna={path}", "--voice", f"bert={path}") == 0
    assert named(release) == {PRESET: 0, "anna": 1, "bert": 2}
    assert served_voices(release) == {PRESET, "anna", "bert"}
    assert patch(release, "--undo") == 0
    assert snapshot(release) == before


def test_trimming_cuts_silence_and_nothing_else(release: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, torch.nn.functional.pad(torch.from_numpy(noise(3)), (48000, 48000)).numpy(), 24000)
    assert patch(release, "--voice", f"anna={path}", "--trim") == 0
    assert counts(release)["anna"] == 40 + 1  # 3 s and 0.1 s on both sides
    assert patch(release, "--trim") == 2


@pytest.mark.parametrize(
    "layout", [{}, {"indent": 2}, {"indent": 4, "ensure_ascii": False}, {"separators": (",", ":")}]
)
def test_remove_and_undo_restore_byte_for_byte(release: Path, tmp_path: Path, layout: dict) -> None:
    for name in ("params.json", "tekken.json"):
        text = json.dumps(json.loads((release / name).read_text()), **layout)
        (release / name).unlink()
        (release / name).write_text(text, encoding="utf-8")
    (release / "tekken.json").chmod(0o640)
    before, path = snapshot(release), clip(tmp_path / "a.wav")
    assert patch(release, "--voice", f"anna={path}") == 0
    with_anna = snapshot(release)
    assert with_anna["tekken.json"][0] & 0o777 == 0o640
    assert patch(release, "--remove", "anna") == 0
    assert snapshot(release) == before
    assert patch(release, "--undo") == 0
    assert snapshot(release) == with_anna
    assert patch(release, "--voice", f"anna={path},{path}") == 0
    assert snapshot(release) != with_anna
    assert patch(release, "--undo") == 0
    assert snapshot(release) == with_anna
    assert patch(release, "--undo") == 2


def test_files_that_are_linked_elsewhere_stay_as_they_are_there(release: Path, tmp_path: Path) -> None:
    elsewhere = linked_copy(release, tmp_path / "elsewhere")
    before = snapshot(elsewhere)
    for arguments in (["--voice", f"anna={clip(tmp_path / 'a.wav')}"], ["--remove", PRESET, "--force"], ["--undo"]):
        assert patch(release, *arguments) == 0
        assert snapshot(elsewhere) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "elsewhere", "release"]


def test_nothing_is_written_through_a_link_that_leads_out_of_the_folder(release: Path, tmp_path: Path) -> None:
    (release / "voice_embedding").rename(tmp_path / "outside")
    (release / "voice_embedding").symlink_to(tmp_path / "outside")
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 2
    assert [path.name for path in (tmp_path / "outside").iterdir()] == [f"{PRESET}.pt"]


def test_a_hubs_cache_of_links_is_patched_and_its_blobs_are_not(release: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for name in ("params.json", "tekken.json", f"voice_embedding/{PRESET}.pt"):
        blob = (release / name).rename(tmp_path / "blobs" / Path(name).name)
        (release / name).symlink_to(blob)
    before = snapshot(tmp_path / "blobs")
    for undo in (["--undo"], ["--remove", "anna"]):
        assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav', 1)}") == 0
        assert served_voices(release) == {PRESET, "anna"}
        assert snapshot(tmp_path / "blobs") == before
        assert patch(release, *undo) == 0
        for name in ("params.json", "tekken.json"):
            assert (release / name).readlink() == tmp_path / "blobs" / name
    assert patch(release, "--remove", PRESET, "--force") == 0
    assert patch(release, "--undo") == 0
    assert (release / "voice_embedding" / f"{PRESET}.pt").is_symlink()
    assert served_voices(release) == {PRESET}
    assert snapshot(tmp_path / "blobs") == before


def test_presets_are_protected_unless_forced(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, path = snapshot(release), clip(tmp_path / "a.wav")
    save(release / "voice_embedding" / "orphan.pt", rows(release, PRESET))
    for arguments in (["--voice", f"{PRESET}={path}"], ["--remove", PRESET], ["--voice", f"orphan={path}"]):
        assert patch(release, *arguments) == 2
        assert "--force" in capsys.readouterr().err
    (release / "voice_embedding" / "orphan.pt").unlink()
    assert snapshot(release) == before
    assert patch(release, "--voice", f"{PRESET}={path}", "--force") == 0
    assert counts(release) == {PRESET: 51}
    assert named(release) == {PRESET: 0}
    assert patch(release, "--undo") == 0
    assert patch(release, "--remove", PRESET, "--force") == 0
    assert (named(release), counts(release)) == ({}, {})
    assert patch(release, "--undo") == 0
    assert snapshot(release) == before


def test_the_list_tells_presets_from_what_was_added(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 0
    capsys.readouterr()
    assert patch(release, "--list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [[PRESET, "0.3", "s", "preset"], ["anna", "4.0", "s", "from", "a.wav"]]
    assert str(tmp_path) not in (release / STATE / "voices.json").read_text(), "a release may be given to others"


@pytest.mark.parametrize("name", [b"caf\xe9.wav", "声.wav".encode(), b"new\nline.wav"])
def test_a_clip_may_have_any_name(release: Path, tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the terminal shows nothing but ASCII."""
    path = tmp_path / os.fsdecode(name)
    clip(tmp_path / "a.wav").rename(path)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", shown)
    assert patch(release, "--voice", f"anna={path}") == 0
    assert patch(release, "--list") == 0
    listed = shown.buffer.getvalue().decode("ascii").splitlines()[-1]  # type: ignore[attr-defined]
    assert listed.startswith("anna ")
    assert listed.endswith(".wav")


def test_a_copy_of_the_checkpoint_in_the_folder_is_named(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "consolidated-1.safetensors").hardlink_to(release / "consolidated.safetensors")
    assert patch(release, "--check") == 0
    said = capsys.readouterr().out
    assert "note: consolidated-1.safetensors and consolidated.safetensors hold the same" in said


def test_nothing_is_undone_over_what_somebody_else_changed(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 0
    edit(release / "params.json", lambda params: params.update(rope_theta=1.0))
    before = snapshot(release)
    assert patch(release, "--undo") == 2
    assert "params.json was changed since" in capsys.readouterr().err
    assert snapshot(release) == before


def test_at_the_real_size_of_a_tokenizer_only_its_audio_section_changes(tmp_path: Path) -> None:
    release = write_speaking_release(tmp_path / "release", random_codec(TINY), whole=True)
    before = (release / "tekken.json").read_text(encoding="utf-8")
    assert len(before) > 15_000_000
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 0
    after = (release / "tekken.json").read_text(encoding="utf-8")
    entry = f'"{PRESET}": 5'
    assert before.count(entry) == 1
    assert after == before.replace(entry, f'{entry},\n            "anna": 51')
    assert prompt(release, voice="anna").count(24) == 51
