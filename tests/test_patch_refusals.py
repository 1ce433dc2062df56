"""patch_tokenizer.py answers bad input with one sentence and exit status 2, and changes nothing."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from release import changes
from release.changes import STATE
from tests.forked_commands import exit_status, without_rights
from tests.patching import PRESET, clip, edit, forked, make_release, named, patch, rows, save, snapshot


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return clip(tmp_path / "a.wav")


REFUSED = {
    "a name that leaves its folder": (["--voice", "../anna=CLIP"], "a name is lower case letters"),
    "a name in upper case": (["--voice", "Anna=CLIP"], "a name is lower case letters"),
    "no name": (["--voice", "CLIP"], "expected NAME=CLIP"),
    "no clip": (["--voice", "anna="], "expected NAME=CLIP"),
    "a comma and no clip": (["--voice", "anna=,"], "expected NAME=CLIP"),
    "a clip that is not there": (["--voice", "anna=none.wav"], "none.wav cannot be read (No such file or directory)"),
    "many clips that are not there": (["--voice", f"anna={','.join(['none.wav'] * 99)}"], "none.wav cannot be read"),
    "one bad clip of two voices": (["--voice", "anna=CLIP", "--voice", "bert=tests/patching.py"], "cannot be decoded"),
    "a voice that is not there": (["--remove", "anna"], "--list shows those it has"),
    "nothing to undo": (["--undo"], "no change to undo"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_one_sentence_and_changes_nothing(
    release: Path, path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(release)
    arguments, message = REFUSED[name]
    assert patch(release, *(part.replace("CLIP", str(path)) for part in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert captured.out == ""
    assert snapshot(release) == before
    assert not (release / STATE).exists()


def test_a_folder_that_is_no_release_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patch(tmp_path) == 2
    assert patch(tmp_path / "none") == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert list(tmp_path.iterdir()) == []


MISSING = {
    "params.json": "holds no params.json",
    "tekken.json": "holds no tekken.json: give the folder of a Voxtral TTS release, or download that file again",
    "consolidated.safetensors": "holds no consolidated*.safetensors",
}
ENCODER = "audio_tokenizer.input_proj.conv.parametrizations.weight.original0"


@pytest.mark.parametrize("file", MISSING)
def test_a_release_that_lacks_a_file_is_told_which(
    release: Path, path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / file).unlink()
    before = snapshot(release)
    for arguments in ([], ["--check"], ["--list"], ["--voice", f"anna={path}"]):
        assert patch(release, *arguments) == 2
        assert MISSING[file] in capsys.readouterr().err
    assert snapshot(release) == before


def test_an_encoder_alone_is_no_release(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_file(release / "consolidated.safetensors")
    (release / "consolidated.safetensors").unlink()
    save_file({ENCODER: whole[ENCODER]}, release / "consolidated_encoder.safetensors")
    assert patch(release) == 2
    assert f"no consolidated*.safetensors of {release} holds mm_audio_embeddings" in capsys.readouterr().err


def test_a_release_that_another_voice_keeps_from_being_served_gets_none(
    release: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patch(release, "--voice", f"anna={path}") == 0
    (release / "voice_embedding" / "anna.pt").unlink()
    (release / "voice_embedding" / "anna.pt").write_bytes(b"PK")
    before = snapshot(release)
    assert patch(release, "--voice", f"bert={path}") == 2
    assert "no voice was added: voice_embedding/anna.pt cannot be read" in capsys.readouterr().err
    assert snapshot(release) == before
    assert patch(release, "--voice", f"anna={path}") == 0, "it can still be replaced"
    assert patch(release, "--check") == 0


def test_what_can_be_done_about_a_broken_voice_is_said(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(release / "voice_embedding" / f"{PRESET}.pt", {"embedding": rows(release, PRESET)})
    assert patch(release, "--check") == 1
    assert f"to do for {PRESET}: " in capsys.readouterr().out
    assert patch(release, "--remove", PRESET, "--force") == 0
    capsys.readouterr()
    assert patch(release, "--check") == 0
    assert "to do" not in capsys.readouterr().out


def test_what_mending_does_is_not_left_to_do(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(release / "tekken.json", lambda tokenizer: tokenizer["audio"]["voice_num_audio_tokens"].clear())
    assert patch(release, "--check") == 1
    assert "to do" not in capsys.readouterr().out


COMMANDS = ["--voice anna=CLIP", "--remove bert", "--undo"]


@pytest.fixture
def with_bert(release: Path, path: Path) -> Path:
    assert patch(release, "--voice", f"bert={path}") == 0
    return release


@pytest.mark.parametrize("command", [*COMMANDS, "--voice anna=CLIP, the first of all"])
def test_a_folder_one_may_not_write_to_is_named(
    with_bert: Path, path: Path, others_folder: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    release = shutil.copytree(with_bert, others_folder / "release")
    audio = shutil.copy(path, others_folder / "a.wav")
    command, _, first = command.partition(", ")
    if first:
        shutil.rmtree(release / STATE)
    for each in [release, *release.rglob("*"), Path(audio)]:
        each.chmod(0o555)
    before = snapshot(others_folder)
    capfd.readouterr()
    arguments = command.replace("CLIP", str(audio)).split()
    assert exit_status(forked(release, *arguments, first=without_rights)) == 2
    captured = capfd.readouterr()
    closed = release if first else release / STATE
    assert captured.err.startswith("error: cannot write ")
    assert captured.err.endswith(f"(Permission denied): make {closed} writable; nothing was changed\n")
    assert captured.out == "", "what was not done is said to be done"
    assert snapshot(others_folder) == before


def on_a_full_disk(disk: Path, release: Path) -> Path:
    folder = shutil.copytree(release, disk / "release")
    with (disk / "filling").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - 4096))
    return folder


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("checked", [True, False], ids=["checked", "filled by others meanwhile"])
def test_on_a_full_disk_nothing_changes(
    with_bert: Path,
    path: Path,
    small_disk: Path,
    command: str,
    checked: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    release = on_a_full_disk(small_disk, with_bert)
    if not checked:
        monkeypatch.setattr(changes, "require_room", lambda folder, needed: None)
    before = snapshot(release)
    capsys.readouterr()
    assert patch(release, *command.replace("CLIP", str(path)).split()) == 2
    captured = capsys.readouterr()
    assert ("beside the old ones needs" if checked else "No space left on device") in captured.err
    assert captured.err.endswith("nothing was changed\n")
    assert captured.out == ""
    assert snapshot(release) == before
    assert not (release / STATE / "change").exists()
    (small_disk / "filling").unlink()
    assert patch(release, *command.replace("CLIP", str(path)).split()) == 0


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_a_write_that_fails_in_its_middle_leaves_nothing_behind(
    release: Path, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stops the writing, as a quota does."""
    before = snapshot(release)
    assert exit_status(forked(release, "--voice", f"anna={path}", first=limited)) == 2
    captured = capfd.readouterr()
    assert captured.err.endswith("(File too large): free some space or raise the limit; nothing was changed\n")
    assert captured.out == ""
    assert (snapshot(release), named(release)) == (before, {PRESET: 0})
    assert not (release / STATE).exists()
