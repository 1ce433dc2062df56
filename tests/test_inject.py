"""What inject_encoder.py writes: the encoder's own file or merged, how it is removed, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import codec
import inject_encoder
from codec.checkpoint import checkpoint_tensors
from codec.tensors import ENCODER_PREFIXES
from experiments.random_release import TINY, random_codec, write_release
from release import splice
from release.injection import encoder_part
from release.splice import LINK_FROM, read_tensor_file
from tests.injecting import (
    INDEX,
    OWN,
    Case,
    encoder_with,
    inject,
    make_case,
    read_encoder,
    same,
    served,
    served_encoder,
    snapshot,
)


@pytest.fixture(params=[1, 3], ids=["one file", "three shards"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return make_case(tmp_path, shards=request.param)


@pytest.fixture
def single(tmp_path: Path) -> Case:
    return make_case(tmp_path)


def assert_has(folder: Path, encoder: Path) -> None:
    """The release can be loaded, and this is its encoder."""
    assert same(served_encoder(folder), read_encoder(encoder)[0])
    assert codec.load_release(folder).has_encoder
    assert inject(folder, "--check") == 0


def test_by_default_the_encoder_gets_a_file_of_its_own_beside_an_untouched_checkpoint(case: Case) -> None:
    before = snapshot(case.release)
    assert inject(case.release, "--encoder", case.encoder) == 0
    after = snapshot(case.release)
    assert_has(case.release, case.encoder)
    assert after.keys() - before.keys() == {OWN}
    assert {name for name in before if before[name] != after[name]} <= {INDEX}
    assert read_encoder(case.release / OWN)[1]["step"] == "7"
    assert codec.load_release(case.release).encode(torch.zeros(1, 1, 4000)).shape == (1, 37, 3)


def test_merging_adds_the_encoder_to_the_file_with_the_codec_and_keeps_the_rest(case: Case) -> None:
    for path in case.release.glob("*.safetensors"):
        path.chmod(0o640)
    before, rest = snapshot(case.release), served(case.release)
    assert inject(case.release, "--merge", "--encoder", case.encoder) == 0
    after = snapshot(case.release)
    assert_has(case.release, case.encoder)
    assert same({name: served(case.release)[name] for name in rest}, rest)
    assert before.keys() == after.keys()
    (home,) = {name for name in before if before[name] != after[name]} - {INDEX}
    assert "audio_tokenizer.output_proj" in header(case.release / home)
    assert after[home][0] == 0o640
    with safe_open(case.release / home, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "source": "random"}


def test_neither_form_needs_torch(single: Case) -> None:
    """Importing torch takes more than a second and 600 MB."""
    script = "import sys, inject_encoder as it; sys.exit(it.main(sys.argv[1:]) or 'torch' in sys.modules)"
    for form in [("--merge",), ("--check",), ("--remove",), ()]:
        arguments = ["--model-dir", str(single.release), "--encoder", str(single.encoder), *form]
        subprocess.run([sys.executable, "-c", script, *arguments], check=True)
    assert_has(single.release, single.encoder)


def header(path: Path) -> str:
    return " ".join(read_tensor_file(path).tensors)


@pytest.mark.parametrize("form", [(), ("--merge",)], ids=["own file", "merged"])
def test_removing_gives_back_every_byte(case: Case, form: tuple[str, ...]) -> None:
    before = snapshot(case.release)
    assert inject(case.release, "--encoder", case.encoder, *form) == 0
    assert inject(case.release, "--remove") == 0
    assert snapshot(case.release) == before
    assert not codec.load_release(case.release).has_encoder
    assert inject(case.release, "--check") == 1


@pytest.mark.parametrize("form", [(), ("--merge",)], ids=["own file", "merged"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_whole_codec_loses_its_encoder_and_gets_it_back(tmp_path: Path, shards: int, form: tuple[str, ...]) -> None:
    case = make_case(tmp_path)
    release = write_release(tmp_path / "whole", case.codec, shards=shards)
    whole = served(release)
    assert inject(release, "--check") == 0
    assert inject(release, "--remove") == 0
    assert not codec.load_release(release).has_encoder
    assert same(served(release), {n: t for n, t in whole.items() if not n.startswith(ENCODER_PREFIXES)})
    assert not (release / OWN).exists()
    assert inject(release, "--encoder", case.encoder, *form) == 0
    assert same(served(release), whole)
    assert inject(release, "--check") == 0


def test_the_index_tells_every_tensor_and_the_size_in_either_form(tmp_path: Path) -> None:
    case = make_case(tmp_path, shards=3)
    for form in [(), ("--merge",)]:
        assert inject(case.release, "--encoder", case.encoder, *form) == 0
        index = json.loads((case.release / INDEX).read_text())
        files = {name: path.name for path in case.release.glob("*.safetensors") for name in header(path).split()}
        assert index["weight_map"] == files
        assert index["metadata"]["total_size"] == sum(
            t.numel() * t.element_size() for t in served(case.release).values()
        )


def test_a_second_encoder_replaces_the_first_in_whichever_form(case: Case) -> None:
    before = snapshot(case.release)
    for encoder, form in [
        (case.other, ()),
        (case.encoder, ()),
        (case.other, ("--merge",)),
        (case.encoder, ("--merge",)),
    ]:
        assert inject(case.release, "--encoder", encoder, *form) == 0
        assert_has(case.release, encoder)
        assert (case.release / OWN).exists() == (not form)
    assert inject(case.release, "--remove") == 0
    assert snapshot(case.release) == before


def test_merging_over_an_encoder_spread_over_the_shards_leaves_one(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    release = write_release(tmp_path / "whole", case.codec, shards=3)
    assert inject(release, "--merge", "--encoder", case.other) == 0
    assert_has(release, case.other)
    assert sum("audio_tokenizer.input_proj" in header(path) for path in release.glob("*.safetensors")) == 1


def test_merging_into_a_new_folder_makes_a_whole_release_and_leaves_the_old(tmp_path: Path) -> None:
    case = make_case(tmp_path, shards=3, megabytes=4.5 * LINK_FROM / 1e6)
    assert inject(case.release, "--encoder", case.other) == 0
    before, output = snapshot(case.release), tmp_path / "new"
    assert inject(case.release, "--merge", "--encoder", case.encoder, "--output", output) == 0
    assert snapshot(case.release) == before
    assert_has(output, case.encoder)
    assert snapshot(output).keys() == before.keys() - {OWN}
    shared = {path.name for path in output.iterdir() if path.samefile(case.release / path.name)}
    large = {name for name, (_, content) in snapshot(output).items() if len(content) >= LINK_FROM}
    assert shared  # weights are linked; files that people edit are not, because an edit would change both releases
    assert shared == {name for name in large if "audio_tokenizer.input_proj" not in header(output / name)}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_script_takes_release_and_encoder_from_the_environment(single: Case) -> None:
    encoder = single.encoder.rename(single.encoder.with_name("encoder.safetensors"))
    named = {"MODEL_DIR": str(single.release), "OUTPUT_DIR": str(encoder.parent)}
    command = [sys.executable, str(Path(inject_encoder.__file__))]
    result = subprocess.run(command, env=os.environ | named, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"patch_tokenizer.py --model-dir {single.release}" in result.stdout
    assert_has(single.release, encoder)
    encoder.unlink()
    assert subprocess.run(command, env=os.environ | named, capture_output=True).returncode == 2


@pytest.mark.parametrize("form", [(), ("--merge",), ("--remove",)])
def test_a_dry_run_tells_files_and_bytes_and_changes_nothing(
    case: Case, form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    if form == ("--remove",):
        assert inject(case.release, "--merge", "--encoder", case.encoder) == 0
    before = snapshot(case.release)
    capsys.readouterr()
    assert inject(case.release, "--encoder", case.encoder, "--dry-run", *form) == 0
    assert snapshot(case.release) == before
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("would write")]
    assert inject(case.release, "--encoder", case.encoder, *form) == 0
    after = snapshot(case.release)
    changed = [name for name in sorted(after) if after[name] != before.get(name)]
    assert sorted(said) == [f"would write {case.release / n} ({len(after[n][1])} bytes)" for n in changed]


def test_a_float32_encoder_is_written_as_bf16_and_said_so(single: Case, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = read_encoder(single.encoder)[0]
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    mixed = {name: tensor.to(kinds[i % 3]) for i, (name, tensor) in enumerate(tensors.items())}
    path = encoder_with(single.encoder.with_name("mixed.safetensors"), single.encoder, mixed)
    assert inject(single.release, "--encoder", path) == 0
    assert same(served_encoder(single.release), {name: tensor.bfloat16() for name, tensor in mixed.items()})
    assert "holds F16 and F32; it is written as BF16" in capsys.readouterr().out


def test_an_encoder_that_does_not_name_its_codec_is_taken_and_said_so(
    single: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    path = encoder_with(single.encoder.with_name("bare.safetensors"), single.encoder, {}, codec_fingerprint="")
    assert inject(single.release, "--encoder", path) == 0
    assert "does not say which codec it was trained against" in capsys.readouterr().out


def test_an_encoder_of_another_codec_of_the_same_shape_is_refused_unless_asked_for(
    single: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = write_release(tmp_path / "another", random_codec(TINY, seed=9), with_encoder=False)
    before = snapshot(release)
    assert inject(release, "--encoder", single.encoder) == 2
    assert "trained against another codec" in capsys.readouterr().err
    assert snapshot(release) == before
    assert inject(release, "--encoder", single.encoder, "--any-codec") == 0
    assert_has(release, single.encoder)


def test_the_default_form_beside_a_merged_encoder_is_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert inject(case.release, "--merge", "--encoder", case.encoder) == 0
    before = snapshot(case.release)
    assert inject(case.release, "--encoder", case.other) == 2
    assert "replace it with --merge, or remove it with --remove" in capsys.readouterr().err
    assert snapshot(case.release) == before


def test_check_finds_what_is_wrong_and_remove_mends_it(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(expected: str) -> None:
        capsys.readouterr()
        assert inject(case.release, "--check") == 2
        assert expected in capsys.readouterr().err
        assert inject(case.release, "--remove") == 0
        assert snapshot(case.release) == before

    before, own = snapshot(case.release), case.release / OWN
    first = next(iter(read_encoder(case.encoder)[0]))
    damages: dict[str, torch.Tensor | None] = {
        "1 missing": None,
        "1 not BF16": read_encoder(case.encoder)[0][first].float(),
        "1 NaN or infinite": torch.full_like(read_encoder(case.encoder)[0][first], torch.nan),
        "1 of another shape": torch.zeros(3, dtype=torch.bfloat16),
    }
    for expected, tensor in damages.items():
        assert inject(case.release, "--encoder", case.encoder) == 0
        encoder_with(own, case.encoder, {first: tensor})
        wrong(expected)
    assert inject(case.release, "--encoder", case.encoder) == 0
    own.write_bytes(own.read_bytes()[:-100])
    wrong("truncated")
    assert inject(case.release, "--merge", "--encoder", case.encoder) == 0
    own.write_bytes(case.other.read_bytes())
    wrong("there are two")


def test_a_file_the_index_does_not_list_is_no_encoder_yet(tmp_path: Path) -> None:
    case = make_case(tmp_path, shards=3)
    before = snapshot(case.release)
    (case.release / OWN).write_bytes(case.other.read_bytes())
    assert not codec.load_release(case.release).has_encoder
    assert inject(case.release, "--check") == 2
    assert inject(case.release, "--encoder", case.encoder) == 0
    assert_has(case.release, case.encoder)
    (case.release / OWN).unlink()  # the index still lists it, so the server would not start
    assert inject(case.release, "--check") == 2
    assert inject(case.release, "--remove") == 0
    assert snapshot(case.release) == before


def test_a_hubs_cache_keeps_the_file_its_links_point_to(single: Case, tmp_path: Path) -> None:
    blob, link = tmp_path / "blob", single.release / "consolidated.safetensors"
    link.rename(blob)
    link.symlink_to(blob)
    before = blob.read_bytes()
    assert inject(single.release, "--merge", "--encoder", single.encoder) == 0
    assert blob.read_bytes() == before
    assert_has(single.release, single.encoder)
    assert not link.is_symlink()
    assert inject(single.release, "--remove", "--dry-run") == 0
    assert not link.is_symlink()
    assert inject(single.release, "--remove") == 0
    assert link.readlink() == blob, "the 8 GB are there twice"
    assert not list(single.release.glob(".*"))
    assert blob.read_bytes() == before


def test_links_come_back_in_a_hubs_cache_of_shards_with_an_index(tmp_path: Path) -> None:
    case = make_case(tmp_path, shards=3)
    (tmp_path / "blobs").mkdir()
    for path in [path for path in case.release.iterdir() if path.is_file()]:
        blob = path.rename(tmp_path / "blobs" / path.name)
        path.symlink_to(os.path.relpath(blob, case.release))
    links = {path.name: path.readlink() for path in case.release.iterdir() if path.is_symlink()}
    blobs = snapshot(tmp_path / "blobs")
    for form in [("--merge",), ()]:
        assert inject(case.release, "--encoder", case.encoder, *form) == 0
        assert_has(case.release, case.encoder)
        assert inject(case.release, "--encoder", case.other, *form) == 0
        assert inject(case.release, "--remove") == 0
        found = {path.name: path.readlink() for path in case.release.iterdir() if path.name in links}
        assert found == links
    assert snapshot(tmp_path / "blobs") == blobs
    assert inject(case.release, "--merge", "--output", tmp_path / "new", "--encoder", case.encoder) == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*links, "voice_embedding"}
    assert not any(path.is_symlink() for path in (tmp_path / "new").iterdir())


@pytest.mark.parametrize("name", ["consolidated-backup", "consolidated (copy)", "consolidated_old", "consolidated"])
@pytest.mark.parametrize("link", [False, True])
def test_a_copy_beside_the_checkpoint_is_named_and_never_written_to(
    single: Case, name: str, link: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, copy = single.release / "consolidated.safetensors", single.release / f"{name}.copy.safetensors"
    copy.hardlink_to(checkpoint) if link else copy.write_bytes(checkpoint.read_bytes())
    before = copy.read_bytes()
    assert inject(single.release, "--merge", "--encoder", single.encoder) == 0
    both = " and ".join(sorted([copy.name, checkpoint.name]))
    assert f"note: {both} hold the same" in capsys.readouterr().out
    assert same(encoder_part(read_encoder(checkpoint)[0]), read_encoder(single.encoder)[0])
    assert_has(single.release, single.encoder)
    assert copy.read_bytes() == before
    assert inject(single.release, "--remove") == 0
    assert (checkpoint.read_bytes(), copy.read_bytes()) == (before, before)


def test_a_backup_that_has_an_encoder_keeps_it(single: Case, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, copy = single.release / "consolidated.safetensors", single.release / "consolidated-backup.safetensors"
    assert inject(single.release, "--merge", "--encoder", single.encoder) == 0
    copy.write_bytes(checkpoint.read_bytes())
    before = snapshot(single.release)
    for form in [("--merge",), ("--remove",)]:
        assert inject(single.release, "--encoder", single.other, *form) == 2
        assert "consolidated-backup.safetensors and consolidated.safetensors hold the same" in capsys.readouterr().err
        assert snapshot(single.release) == before


@pytest.mark.parametrize("name", ["consolidated_encoder_old", "consolidated_encoder (copy)", "consolidated-mine"])
def test_a_copy_of_the_encoder_is_named_and_never_emptied(
    single: Case, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inject(single.release, "--encoder", single.encoder) == 0
    (single.release / f"{name}.safetensors").write_bytes(single.other.read_bytes())
    before = snapshot(single.release)
    forms: list[tuple[str, ...]] = [("--encoder", str(single.encoder)), ("--remove",), ("--check",)]
    for form in [*forms, ("--merge", *forms[0])]:
        assert inject(single.release, *form) == 2
        said = f"{name}.safetensors holds an encoder, and the server reads it: move it out of the folder"
        assert said in capsys.readouterr().err
        assert snapshot(single.release) == before


def test_of_two_copies_without_the_usual_name_none_is_chosen(single: Case, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = single.release / "consolidated.safetensors"
    for name in ("consolidated-a.safetensors", "consolidated-b.safetensors"):
        (single.release / name).write_bytes(checkpoint.read_bytes())
    checkpoint.unlink()
    before = snapshot(single.release)
    assert inject(single.release, "--merge", "--encoder", single.encoder) == 2
    assert "consolidated-a.safetensors, consolidated-b.safetensors all hold the codec" in capsys.readouterr().err
    assert snapshot(single.release) == before
    assert inject(single.release, "--encoder", single.encoder) == 0


def test_runs_that_only_read_do_not_disturb_one_another(
    single: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handle = os.open(single.release, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    assert inject(single.release, "--check") == 1
    assert inject(single.release, "--encoder", single.encoder, "--dry-run") == 0
    monkeypatch.setattr(splice, "LOCK_SECONDS", 0.2)
    assert inject(single.release, "--encoder", single.encoder) == 2
    assert f"another run is reading {single.release}: wait" in capsys.readouterr().err
    os.close(handle)


def test_a_run_waits_for_one_that_only_reads(single: Case, capsys: pytest.CaptureFixture[str]) -> None:
    handle = os.open(single.release, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    reader = threading.Timer(0.3, lambda: os.close(handle))
    reader.start()
    assert inject(single.release, "--encoder", single.encoder) == 0
    assert "waiting up to" in capsys.readouterr().err
    reader.join()


def test_two_runs_do_not_change_a_release_at_once(single: Case, capsys: pytest.CaptureFixture[str]) -> None:
    handle = os.open(single.release, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert inject(single.release, "--encoder", single.encoder) == 2
    assert "another run is changing" in capsys.readouterr().err
    os.close(handle)
    assert inject(single.release, "--encoder", single.encoder) == 0


def test_headers_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    """Also if tensors of other dtypes follow, some of odd size, and if names are not ASCII."""
    path = tmp_path / "consolidated.safetensors"
    kinds = [torch.bfloat16, torch.float32, torch.uint8, torch.int64, torch.float8_e4m3fn]
    tensors = {f'w"{i}é\n': torch.zeros(i % 4, 2 * i + 1).to(kinds[i % 5]) for i in range(40)}
    save_file(tensors, path, metadata={"note": "é \\ \x01"})
    file = read_tensor_file(path)
    assert path.read_bytes().startswith(file.header())
    assert file.nbytes == path.stat().st_size
    encoder = random_codec(TINY)
    extra = tmp_path / "extra.safetensors"
    save_file(checkpoint_tensors(encoder), extra)
    added = read_tensor_file(extra).tensors
    merged = file.spliced(added)
    assert merged.spliced({}, added).header() == file.header()
    places, at = [], 0
    for name, tensor in merged.tensors.items():
        places += [at] if name in added else []
        at += tensor.nbytes
    assert all(place % 2 == 0 for place in places)
