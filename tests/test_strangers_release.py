"""A release may come from strangers: nothing in it makes a program write, delete or copy anything outside of it. What
is not as it has to be is said in a sentence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codec.checkpoint import load_release
from codec.config import CodecConfig, ReleaseError
from codec.voices import load_voice
from experiments.random_release import TINY, params_json
from release.changes import STATE
from tests.injecting import Case, inject, make_case
from tests.patching import PRESET, clip, make_release, patch

DIM = TINY.embedding_dim


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def plant(release: Path, target: str, content: bytes | None, old: bytes | None, place: str = "change") -> None:
    """Puts the journal of an interrupted change into the release, as a stranger could have written it."""
    work = release / STATE / place
    for part in ("new", "old"):
        (work / part).mkdir(parents=True)
    if content is not None:
        (work / "new" / "0").write_bytes(content)
    if old is not None:
        (work / "old" / "0").write_bytes(old)
    digest = None if content is None else sha256(content)
    before = {target: None if old is None else sha256(old)}
    journal = {"undoable": False, "steps": [{"target": target, "sha256": digest}], "old": before}
    (work / "journal.json").write_text(json.dumps(journal))


def everything(folder: Path) -> dict[str, bytes | str]:
    """Path -> content, or where the link leads, of everything below a folder."""
    found: dict[str, bytes | str] = {}
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *files]):
            if path.is_symlink():
                found[str(path)] = str(path.readlink())
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else ""
    return found


OUTSIDE = [
    "../home/planted",
    "HOME/planted",
    "voice_embedding/../../home/planted",
    "voice_embedding/../../home/planted.pt",
    "voice_embedding/..pt/../../home/planted.pt",
    "./params.json",
    "params.json/",
    "/params.json",
    "consolidated.safetensors",
    "voice_embedding/a/b.pt",
    "voice_embedding/.pt",
    "voice_embedding/a\0.pt",
    ".patch_tokenizer/undo/journal.json",
    ".patch_tokenizer",
    "..",
    "",
]


@pytest.mark.parametrize("target", OUTSIDE)
@pytest.mark.parametrize("what", ["write", "replace", "delete"])
def test_a_planted_change_touches_nothing_but_the_files_that_describe_voices(
    release: Path, tmp_path: Path, target: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "planted").write_bytes(b"mine")
    target = target.replace("HOME", str(home))
    plant(release, target, None if what == "delete" else b"planted", None if what == "write" else b"mine")
    before = everything(tmp_path)
    for arguments in ([], ["--check"], ["--list"], ["--undo"], ["--remove", PRESET, "--force"]):
        assert patch(release, *arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert "not this program's" in said
        assert said.count("\n") == 1
    assert everything(tmp_path) == before


def test_a_planted_record_of_the_last_change_is_not_undone(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "planted").write_bytes(b"now")
    plant(release, "../planted", b"now", b"before", place="undo")
    before = everything(tmp_path)
    assert patch(release, "--undo") == 2
    assert "not this program's" in capsys.readouterr().err
    assert everything(tmp_path) == before


def test_a_planted_file_that_is_a_link_does_not_get_into_the_release(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "private").write_bytes(b"private")
    plant(release, "voice_embedding/x.pt", b"private", None)
    (release / STATE / "change" / "new" / "0").unlink()
    (release / STATE / "change" / "new" / "0").symlink_to(tmp_path / "private")
    before = everything(tmp_path)
    assert patch(release) == 2
    assert "is not what voice_embedding/x.pt was to become" in capsys.readouterr().err
    assert everything(tmp_path) == before


LINKED = [STATE, f"{STATE}/change", f"{STATE}/undo", f"{STATE}/change/new", "voice_embedding"]


@pytest.mark.parametrize("place", LINKED)
@pytest.mark.parametrize("leads", ["out", "to itself", "to nothing"])
def test_nothing_is_written_or_deleted_through_a_linked_folder(
    release: Path, tmp_path: Path, place: str, leads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    for folder in ("change/new", "undo"):
        (outside / folder).mkdir(parents=True)
        (outside / folder / "mine").write_bytes(b"mine")
    link = release / place
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(tmp_path / "aside")
    link.symlink_to({"out": outside, "to itself": link, "to nothing": tmp_path / "nothing"}[leads])
    before = everything(tmp_path)
    path = clip(tmp_path / "a.wav", 1)
    for arguments in ([], ["--check"], ["--voice", f"anna={path}"], ["--remove", PRESET, "--force"], ["--undo"]):
        assert patch(release, *arguments) == 2
        assert f"{link} is a link" in capsys.readouterr().err
    path.unlink()
    assert everything(tmp_path) == before


NO_JOURNALS = [
    "[]",
    "{}",
    "null",
    "1",
    '"steps"',
    '{"steps": 1}',
    "",
    "{",
    "\xff",
    "[" * 100_000,
    "1" * 5000,
    '{"undoable": true, "steps": [1], "old": {}}',
    '{"undoable": true, "steps": [{"target": "params.json"}], "old": {}}',
    '{"undoable": true, "steps": [{"target": "params.json", "sha256": "x"}], "old": {"params.json": null}}',
    '{"undoable": true, "steps": [{"target": ["params.json"], "sha256": null}], "old": {}}',
    '{"undoable": true, "steps": [], "old": {"params.json": 3}}',
]


@pytest.mark.parametrize("text", NO_JOURNALS, ids=lambda text: text[:30])
@pytest.mark.parametrize("place", ["change", "undo"])
def test_what_is_no_journal_is_said_in_a_sentence(
    release: Path, place: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / STATE / place).mkdir(parents=True)
    (release / STATE / place / "journal.json").write_text(text, encoding="latin-1")
    before = everything(release)
    assert patch(release, *(["--undo"] if place == "undo" else [])) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {release / STATE / place / 'journal.json'} is damaged, or not this program's")
    assert said.count("\n") == 1
    assert everything(release) == before


@pytest.mark.parametrize("text", ["null", "[]", "1", '{"a": 1}', '{"a": [1]}', "", "[" * 100_000, '"' + "x" * 100])
def test_a_record_of_added_voices_that_is_none_is_said_in_a_sentence(
    release: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / STATE).mkdir()
    (release / STATE / "voices.json").write_text(text)
    before = everything(release)
    for arguments in ([], ["--list"], ["--remove", "a"]):
        assert patch(release, *arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {release / STATE / 'voices.json'} ")
        assert said.count("\n") == 1
    assert everything(release) == before


PIPES = [
    "params.json",
    "tekken.json",
    f"{STATE}/voices.json",
    f"voice_embedding/{PRESET}.pt",
    "consolidated_x.safetensors",
]


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_not_waited_for(release: Path, name: str, kind: str) -> None:
    (release / name).unlink(missing_ok=True)
    (release / name).parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(release / name)
    else:
        (release / name).symlink_to("/dev/zero")
    assert patch(release, "--check") in (1, 2)


def test_names_that_would_control_the_terminal_are_printed_as_text(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voices = json.loads((release / "params.json").read_text())
    odd = ["\x1b[2J\n", "\udce9", "\ud800", "x" * 10000]
    voices["multimodal"]["audio_tokenizer_args"]["voice"] |= dict.fromkeys(odd, 1)
    (release / "params.json").unlink()
    (release / "params.json").write_text(json.dumps(voices))
    assert patch(release, "--list") == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"\x1b[2J\n" in said
    assert r"\xe9" in said


LIES: list[tuple[str, Any]] = [
    ("multimodal.audio_model_args.audio_encoding_args", [1]),
    ("multimodal.audio_model_args.audio_encoding_args", "x"),
    ("multimodal.audio_model_args.audio_encoding_args.frame_rate", float("nan")),
    ("multimodal.audio_tokenizer_args", []),
    ("dim", float("nan")),
    ("dim", float("inf")),
    ("dim", 10**4000),
    ("dim", 2**40),
    ("dim", True),
    ("dim", []),
    ("multimodal.audio_tokenizer_args.norm_eps", 10**4000),
    ("multimodal.audio_tokenizer_args.norm_eps", float("nan")),
    ("multimodal.audio_tokenizer_args.acoustic_dim", 10**7),
    ("multimodal.audio_tokenizer_args.hidden_dim", float("nan")),
    ("multimodal.audio_tokenizer_args.encoder_transformer_lengths_str", "1000000000,2,2,2"),
    ("multimodal.audio_tokenizer_args.decoder_transformer_lengths_str", "2,2,2,1000000000"),
    ("multimodal.audio_tokenizer_args.encoder_convs_kernels_str", "1000000000,4,4,3"),
    ("multimodal.audio_tokenizer_args.encoder_convs_strides_str", "9" * 5000),
    ("multimodal.audio_tokenizer_args.encoder_convs_strides_str", ",".join("1" * 1000)),
    ("multimodal.audio_tokenizer_args.pretransform_patch_size", 2**23),
]


def lying_params(key: str, value: Any) -> dict[str, Any]:
    params: dict[str, Any] = params_json(TINY)
    *sections, last = key.split(".")
    section = params
    for name in sections:
        section = section[name]
    section[last] = value
    return params


@pytest.mark.parametrize(("key", "value"), LIES, ids=lambda value: str(value)[:60])
def test_a_wrong_value_in_params_json_is_said_in_a_short_sentence(key: str, value: Any) -> None:
    with pytest.raises(ReleaseError, match=r"^params\.json: ") as raised:
        CodecConfig.from_params(lying_params(key, value))
    assert len(str(raised.value)) < 400


def test_a_whole_number_may_be_written_with_a_point() -> None:
    config = CodecConfig.from_params(lying_params("multimodal.audio_tokenizer_args.sampling_rate", 24000.0))
    assert config == TINY
    assert isinstance(config.sampling_rate, int)


TEXTS = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"dim": ' + "1" * 5000 + "}",
    "[]",
    "\xff",
    '{"dim": 1, "dim": 2}',
    "{}" * 2,
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:20])
@pytest.mark.parametrize("name", ["params.json", "tekken.json", "consolidated.safetensors.index.json"])
def test_json_that_no_program_writes_is_said_in_a_sentence(
    release: Path, name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / name).unlink(missing_ok=True)
    (release / name).write_text(text, encoding="latin-1")
    for run in (patch, inject):
        status = run(release, "--check")
        assert status == 2 or (run is inject and name == "tekken.json")
        assert capsys.readouterr().err.count("\n") == (status == 2)


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


HEADERS: dict[str, bytes] = {
    "a header of exabytes": struct.pack("<Q", 2**62) + b"{}",
    "a header of 90 MB": struct.pack("<Q", 90 << 20) + b"{",
    "a huge shape": safetensors({"x": {"dtype": "BF16", "shape": [2**40, 2**40], "data_offsets": [0, 2]}}, b"00"),
    "a huge empty shape": safetensors({"x": {"dtype": "BF16", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
    "offsets beyond the file": safetensors({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [2**40, 2**40 + 2]}}),
    "negative offsets": safetensors({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [-2, 0]}}),
    "an unknown dtype": safetensors({"x": {"dtype": "X9", "shape": [1], "data_offsets": [0, 2]}}, b"00"),
    "no object": safetensors([1]),
    "deep": struct.pack("<Q", 50_000) + b"[" * 50_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_checkpoint_whose_header_lies_is_said_in_a_sentence(
    release: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("consolidated.safetensors", "consolidated_encoder.safetensors"):
        (release / file).unlink(missing_ok=True)
        (release / file).write_bytes(HEADERS[name])
    for run in (patch, inject):
        assert run(release, "--check") == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ReleaseError):
        load_release(release)


def test_an_index_cannot_name_files_elsewhere(release: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    index = {"weight_map": {"x": "../outside.safetensors", "y": "/etc/passwd"}}
    (release / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ReleaseError, match="lists files that are not there"):
        load_release(release)


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def bomb() -> bytes:
    """A voice file whose values are a gigabyte of zeros, compressed."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(2, DIM, dtype=torch.bfloat16), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            content = source.read(record)
            with target.open(record.filename, "w", force_zip64=True) as file:
                for _ in range(64 if "/data/" in record.filename else 1):
                    file.write(bytes(1 << 20) if "/data/" in record.filename else content)
    return packed.getvalue()


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "compressed": bomb,
    "a bytearray of 100 GB": lambda: saved(Call(bytearray, 100 << 30)),
    "a tensor without values": lambda: saved(Call(torch.Tensor, 10**7, DIM)),
    "a function of the system": lambda: saved(Call(os.system, "true")),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_voice_file_cannot_take_more_memory_than_it_has_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(BOMBS[name]())
    with pytest.raises(ReleaseError, match=r"cannot be read|without a value for each"):
        load_voice(path, DIM)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link to nowhere, which is no file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "is a link to odd, which is no file"),
    "a link to its parent": (lambda path: path.symlink_to("."), "is a link to a folder"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "is a link to /dev/zero, which is no file"),
    "a pipe": (os.mkfifo, "is no file but a pipe"),
    "many folders": (lambda path: (path / "/".join("a" * 30)).mkdir(parents=True), "is nested more than 20 folders"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_cannot_be_copied_into_a_new_folder_is_named(
    case: Case, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = ODD[name]
    make(case.release / "odd")
    assert inject(case.release, "--merge", "--output", tmp_path / "new", "--encoder", case.encoder) == 2
    said = capsys.readouterr().err
    assert str(case.release / "odd") in said
    assert message in said
    assert not (tmp_path / "new").exists()


def test_a_link_of_a_release_that_leads_out_is_named_when_it_is_copied(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "private").write_text("private")
    (case.release / "README.md").symlink_to(tmp_path / "private")
    (case.release / "LICENSE").symlink_to("params.json")
    assert inject(case.release, "--merge", "--output", tmp_path / "new", "--encoder", case.encoder) == 0
    assert f"README.md of {case.release} are links to files outside of it" in capsys.readouterr().out
