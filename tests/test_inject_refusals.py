"""inject_encoder.py answers bad input with one sentence and exit status 2, and changes nothing."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import inject_encoder
from codec.checkpoint import save_encoder
from codec.tensors import expected_encoder
from experiments.random_release import SMALL, TINY, linked_copy, params_json, random_codec
from release import splice
from tests.forked_commands import exit_status, without_rights
from tests.injecting import (
    INDEX,
    OWN,
    Case,
    encoder_with,
    forked,
    inject,
    make_case,
    read_encoder,
    snapshot,
)

NAMES = list(expected_encoder(TINY))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def no_folder(case: Case) -> list[str]:
    return ["--model-dir", str(case.release / "nowhere")]


def empty_folder(case: Case) -> list[str]:
    (case.release.parent / "empty").mkdir()
    return ["--model-dir", str(case.release.parent / "empty")]


def foreign_folder(case: Case) -> list[str]:
    (case.release / "params.json").write_text('{"dim": 4096, "n_layers": 32}')
    return []


def no_checkpoint(case: Case) -> list[str]:
    (case.release / "consolidated.safetensors").unlink()
    return []


def params_not_json(case: Case) -> list[str]:
    (case.release / "params.json").write_text("<html>")
    return []


def params_of_other_dimensions(case: Case) -> list[str]:
    (case.release / "params.json").write_text(json.dumps(params_json(SMALL)))
    return []


def truncated_checkpoint(case: Case) -> list[str]:
    path = case.release / "consolidated.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return []


def checkpoint_cut_in_its_header(case: Case) -> list[str]:
    path = case.release / "consolidated.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    return []


def half_a_codec(case: Case) -> list[str]:
    tensors, metadata = read_encoder(case.release / "consolidated.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "quantizer" not in name}
    save_file(kept, case.release / "consolidated.safetensors", metadata=metadata)
    return []


def codec_not_bf16(case: Case) -> list[str]:
    tensors, metadata = read_encoder(case.release / "consolidated.safetensors")
    wide = {name: tensor.float() if "cluster_usage" in name else tensor for name, tensor in tensors.items()}
    save_file(wide, case.release / "consolidated.safetensors", metadata=metadata)
    return []


def index_of_missing_files(case: Case) -> list[str]:
    (case.release / INDEX).write_text('{"weight_map": {"norm.weight": "consolidated-00001-of-00002.safetensors"}}')
    return []


def own_file_with_other_tensors(case: Case) -> list[str]:
    shutil.copy(case.release / "consolidated.safetensors", case.release / OWN)
    return []


def no_encoder_file(case: Case) -> list[str]:
    return ["--encoder", str(case.release / "encoder.safetensors")]


def truncated_encoder(case: Case) -> list[str]:
    case.encoder.write_bytes(case.encoder.read_bytes()[:-1000])
    return []


def encoder_of_another_shape(case: Case) -> list[str]:
    save_encoder(case.encoder, random_codec(SMALL), {})
    return []


def encoder_with_everything_wrong(case: Case) -> list[str]:
    tensors = read_encoder(case.encoder)[0]
    largest = torch.finfo(torch.float32).max  # BF16 rounds it to infinity
    changes = {
        NAMES[0]: None,
        NAMES[1]: torch.zeros(3, 3, dtype=torch.bfloat16),
        NAMES[2]: tensors[NAMES[2]].to(torch.int32),
        NAMES[3]: torch.full_like(tensors[NAMES[3]], torch.nan),
        NAMES[4]: torch.full_like(tensors[NAMES[4]], largest, dtype=torch.float32),
        "audio_tokenizer.extra": torch.zeros(1, dtype=torch.bfloat16),
    }
    encoder_with(case.encoder, case.encoder, changes)
    return []


def output_that_exists(case: Case) -> list[str]:
    return ["--merge", "--output", str(case.release.parent)]


def output_in_the_release(case: Case) -> list[str]:
    return ["--merge", "--output", str(case.release / "merged")]


def output_without_merge(case: Case) -> list[str]:
    return ["--output", str(case.release.parent / "new")]


def output_of_an_unset_variable(case: Case) -> list[str]:
    return ["--merge", "--output", ""]


def encoder_of_an_unset_variable(case: Case) -> list[str]:
    return ["--encoder", ""]


REFUSALS: dict[Callable[[Case], list[str]], str] = {
    no_folder: "is not a folder",
    empty_folder: "holds no params.json",
    foreign_folder: "this is not a Voxtral TTS release",
    no_checkpoint: "holds no consolidated*.safetensors",
    params_not_json: "is not valid JSON",
    params_of_other_dimensions: "the codec does not fit params.json",
    truncated_checkpoint: "consolidated.safetensors is truncated",
    checkpoint_cut_in_its_header: "consolidated.safetensors is truncated",
    half_a_codec: "2 missing: audio_tokenizer.quantizer.semantic_codebook.cluster_usage",
    codec_not_bf16: "1 not BF16: audio_tokenizer.quantizer.semantic_codebook.cluster_usage F32",
    index_of_missing_files: "lists files that are not there: consolidated-00001-of-00002.safetensors",
    own_file_with_other_tensors: "holds tensors that are no encoder's",
    no_encoder_file: "encoder.safetensors is not a file",
    truncated_encoder: "encoder_1.safetensors is truncated",
    encoder_of_another_shape: "instead of",
    encoder_with_everything_wrong: "1 missing: ",
    output_that_exists: "is not an empty folder",
    output_in_the_release: "is inside the release",
    output_without_merge: "--output needs --merge",
    output_of_an_unset_variable: "--output is empty",
    encoder_of_an_unset_variable: "--encoder is empty",
}


@pytest.mark.parametrize("spoil", REFUSALS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("form", [(), ("--merge",)], ids=["own file", "merged"])
def test_bad_input_gets_a_sentence_and_changes_nothing(
    case: Case, spoil: Callable[[Case], list[str]], form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    given = spoil(case)
    before = snapshot(case.release.parent)
    merge = () if spoil is output_without_merge else form
    assert inject(case.release, "--encoder", case.encoder, *merge, *given) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert REFUSALS[spoil] in said
    assert snapshot(case.release.parent) == before


def test_everything_wrong_with_an_encoder_is_in_one_sentence(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    encoder_with_everything_wrong(case)
    assert inject(case.release, "--encoder", case.encoder) == 2
    said = capsys.readouterr().err
    for part in (
        f"1 missing: {NAMES[0]}",
        "1 unknown: audio_tokenizer.extra",
        f"1 of another shape: {NAMES[1]} [3, 3] instead of",
        f"1 not BF16: {NAMES[2]} I32",
    ):
        assert part in said
    assert "2 NaN or infinite: " in said
    assert NAMES[3] in said
    assert NAMES[4] in said


def test_without_a_release_or_an_encoder_it_says_how_to_name_one(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MODEL_DIR", raising=False)
    monkeypatch.delenv("OUTPUT_DIR", raising=False)
    assert inject_encoder.main([]) == 2
    assert "pass --model-dir DIR, or set MODEL_DIR" in capsys.readouterr().err
    assert inject(case.release) == 2
    assert "pass --encoder FILE, or set OUTPUT_DIR" in capsys.readouterr().err


@pytest.mark.parametrize("form", [(), ("--merge",)], ids=["own file", "merged"])
def test_a_folder_one_may_not_write_to_is_named(
    case: Case, others_folder: Path, form: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    release = shutil.copytree(case.release, others_folder / "release")
    encoder = shutil.copy(case.encoder, others_folder / "encoder.safetensors")
    for path in [encoder, *release.rglob("*")]:
        path.chmod(0o555)
    release.chmod(0o555)
    before = snapshot(others_folder)
    assert exit_status(forked(release, "--encoder", encoder, *form, first=without_rights)) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: cannot write {release}")
    assert f"(Permission denied): make {release} writable; nothing was changed" in said
    assert snapshot(others_folder) == before


@pytest.mark.parametrize("name", ["encoder_1.safetensors", "release/consolidated.safetensors", "release/params.json"])
def test_a_file_one_may_not_read_is_named(
    case: Case, others_folder: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(case.release.parent, others_folder / "copy")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555)
    (folder / name).chmod(0)
    arguments = ["--encoder", folder / "encoder_1.safetensors"]
    assert exit_status(forked(folder / "release", *arguments, first=without_rights)) == 2
    said = capfd.readouterr().err
    assert str(folder / name) in said
    assert "Permission denied" in said


@pytest.mark.parametrize("form", [(), ("--merge",)], ids=["own file", "merged"])
def test_a_full_disk_is_noticed_before_anything_is_written(
    case: Case, form: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(splice.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    before = snapshot(case.release)
    assert inject(case.release, "--encoder", case.encoder, *form) == 2
    assert "free, but" in capsys.readouterr().err
    assert snapshot(case.release) == before


@pytest.mark.parametrize(
    "form", [(), ("--merge",), ("--merge", "--output", "new")], ids=["own", "merged", "new folder"]
)
def test_a_write_that_fails_in_its_middle_leaves_nothing_behind(
    case: Case, form: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stops the writing, as a full disk does."""

    def limit() -> None:
        os.chdir(case.release.parent)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    before = snapshot(case.release.parent)
    assert exit_status(forked(case.release, "--encoder", case.encoder, *form, first=limit)) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: cannot write ")
    assert said.endswith("(File too large): free some space or raise the limit; nothing was changed\n")
    assert snapshot(case.release.parent) == before
    assert not (case.release.parent / "new").exists()


@pytest.mark.parametrize("checked", [True, False], ids=["checked", "filled by others meanwhile"])
def test_on_a_disk_that_is_really_full_the_release_stays(
    tmp_path: Path, small_disk: Path, checked: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = make_case(tmp_path, megabytes=5)
    release = shutil.copytree(case.release, small_disk / "release")
    if not checked:
        monkeypatch.setattr(splice, "require_room", lambda folder, needed: None)
    before = snapshot(small_disk)
    assert inject(release, "--merge", "--encoder", case.encoder) == 2
    assert ("beside the old ones needs" if checked else os.strerror(errno.ENOSPC)) in capsys.readouterr().err
    assert snapshot(small_disk) == before
    assert inject(release, "--encoder", case.encoder) == 0  # for this there is room
    assert inject(release, "--check") == 0


def test_a_disk_that_loses_what_was_written_is_noticed(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lose(handle: int) -> None:
        with Path(f"/proc/self/fd/{handle}").open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))

    monkeypatch.setattr(splice.os, "fsync", lose)
    before = snapshot(case.release)
    for form in [(), ("--merge",)]:
        assert inject(case.release, "--encoder", case.encoder, *form) == 2
        assert "read back differs from what was written" in capsys.readouterr().err
        assert snapshot(case.release) == before


def test_a_linked_copy_shows_that_nothing_is_written_in_place(case: Case, tmp_path: Path) -> None:
    copy = linked_copy(case.release, tmp_path / "copy")
    before = snapshot(case.release)
    for form in [("--merge",), ("--remove",), ()]:
        assert inject(copy, "--encoder", case.encoder, *form) == 0
    assert snapshot(case.release) == before
