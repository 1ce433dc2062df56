"""Each fault that breaks the server: what patch_tokenizer.py says of a release with it, and what it repairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from codec.files import INDEX_NAME
from tests.patching import PRESET, clip, counts, edit, make_release, named, patch, rows, save, served_voices, snapshot

KILLS = "kills the engine at the first request"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def voice_of(params: dict) -> dict:
    return params["multimodal"]["audio_tokenizer_args"]["voice"]


def pt(release: Path) -> Path:
    return release / "voice_embedding" / f"{PRESET}.pt"


def holding(content: Callable[[Tensor], object]) -> Callable[[Path], None]:
    """A fault: the preset's file holds a changed version of its content."""
    return lambda release: save(pt(release), content(rows(release, PRESET)))


def counted(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda release: edit(release / "tekken.json", lambda t: change(t["audio"]["voice_num_audio_tokens"]))


def indexed(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda release: edit(release / "params.json", lambda params: change(voice_of(params)))


def upper_case(release: Path) -> None:
    indexed(lambda voice: voice.update(Anna=1))(release)
    counted(lambda count: count.update(Anna=5))(release)
    save(release / "voice_embedding" / "Anna.pt", rows(release, PRESET))


def upper_case_in_one_place(release: Path) -> None:
    indexed(lambda voice: voice.update(Anna=1))(release)
    counted(lambda count: count.update(anna=5))(release)
    save(release / "voice_embedding" / "Anna.pt", rows(release, PRESET))


def without_end_row(release: Path) -> None:
    holding(lambda r: r[:-1].clone())(release)
    counted(lambda count: count.update({PRESET: 4}))(release)


def damaged(release: Path) -> None:
    content = pt(release).read_bytes()
    pt(release).unlink()
    pt(release).write_bytes(content[: len(content) // 2])


VOICES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "N too large by one": (counted(lambda c: c.update({PRESET: 6})), "has 6 tokens in tekken.json and 5 rows", KILLS),
    "N too small by one": (counted(lambda c: c.update({PRESET: 4})), "has 4 tokens in tekken.json and 5 rows", KILLS),
    "end row missing, N not": (holding(lambda r: r[:-1].clone()), "has 5 tokens in tekken.json and 4 rows", KILLS),
    "wrong width": (holding(lambda r: r[:, :-1].clone()), "has the shape [5, 255], expected [N, 256]", KILLS),
    "wrong number of dimensions": (holding(lambda r: r[None].clone()), "has the shape [1, 5, 256]", KILLS),
    "no rows": (holding(lambda r: r[:0].clone()), "has the shape [0, 256]", KILLS),
    "missing file": (lambda release: pt(release).unlink(), f"{PRESET}.pt is missing", KILLS),
    "dict in the file": (holding(lambda r: {"embedding": r}), "holds a dict instead of a tensor", KILLS),
    "list in the file": (holding(lambda r: [r]), "holds a list instead of a tensor", KILLS),
    "damaged file": (damaged, "cannot be read", "stops the server's start-up"),
    "NaN": (holding(lambda r: r * torch.nan), "holds values that are not finite", "or kills the engine"),
    "name missing in params.json": (indexed(dict.clear), "is missing in params.json", "status 400"),
    "name missing in tekken.json": (counted(dict.clear), "is missing in tekken.json", "status 500"),
    "upper-case name": (upper_case, "'Anna' is not in lower case", "status 500"),
    "upper-case name in params.json only": (upper_case_in_one_place, "'Anna' is not in lower case", KILLS),
}
NOTES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "fp32": (holding(Tensor.float), "holds float32 instead of bfloat16", "is served nevertheless, rounded"),
    "end-of-audio row missing": (without_end_row, "lacks its end-of-audio row", "is served nevertheless, but worse"),
    "file of no voice": (
        lambda release: save(release / "voice_embedding" / "x.pt", rows(release, PRESET)),
        "x.pt belongs to no voice",
        "is served nevertheless",
    ),
}


@pytest.mark.parametrize("name", [*VOICES, *NOTES])
def test_check_says_what_a_voice_written_by_others_does_to_the_server(
    release: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fault, what, effect = (VOICES | NOTES)[name]
    fault(release)
    before = snapshot(release)
    assert patch(release, "--check") == (1 if name in VOICES else 0)
    label = "problem: " if name in VOICES else "note: "
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(label)]
    assert any(what in line and effect in line for line in lines), lines
    assert snapshot(release) == before


@pytest.mark.parametrize("name", VOICES)
def test_a_broken_voice_can_be_removed_and_the_release_is_right_again(release: Path, name: str, tmp_path: Path) -> None:
    VOICES[name][0](release)
    broken = snapshot(release)
    bad = {"Anna", "anna"} & (named(release).keys() | counts(release).keys()) or {PRESET}
    for voice in bad:
        assert patch(release, "--remove", voice, "--force") == 0
    assert patch(release, "--check") == 0
    if len(bad) == 1:
        assert patch(release, "--undo") == 0
        assert snapshot(release) == broken


MENDED = ["N too large by one", "N too small by one", "name missing in tekken.json"]


@pytest.mark.parametrize("name", MENDED)
def test_counts_are_mended_from_sound_embeddings(release: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    VOICES[name][0](release)
    broken = snapshot(release)
    assert patch(release, "--check") == 1
    assert "a run without --check repairs it" in capsys.readouterr().out
    assert patch(release) == 0
    assert counts(release) == {PRESET: 5}
    assert served_voices(release) == {PRESET}
    assert patch(release, "--undo") == 0
    assert snapshot(release) == broken


@pytest.mark.parametrize("name", [name for name in VOICES if name not in MENDED])
def test_what_cannot_be_known_is_not_mended(release: Path, name: str) -> None:
    VOICES[name][0](release)
    before = snapshot(release)
    assert patch(release) == 1
    assert snapshot(release) == before


KEYS = [
    ("audio",),
    ("audio", "sampling_rate"),
    ("audio", "frame_rate"),
    ("audio", "audio_encoding_config"),
    ("audio", "audio_encoding_config", "hop_length"),
    ("audio", "voice_num_audio_tokens"),
]


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_keys_that_a_copy_of_the_tokenizer_lacks_are_added(
    release: Path, tmp_path: Path, path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((release / "tekken.json").read_text())

    def cut(tokenizer: dict) -> None:
        for key in path[:-1]:
            tokenizer = tokenizer[key]
        del tokenizer[path[-1]]

    edit(release / "tekken.json", cut)
    lacking = snapshot(release)
    assert patch(release, "--check") == 1
    assert snapshot(release) == lacking
    assert patch(release) == 0
    assert f"repaired tekken.json: {'.'.join(path)}" in capsys.readouterr().out
    assert json.loads((release / "tekken.json").read_text()) == whole
    assert Tekkenizer.from_file(release / "tekken.json").audio is not None
    assert patch(release, "--undo") == 0
    assert snapshot(release) == lacking
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 0
    assert served_voices(release) == {PRESET, "anna"}
    assert patch(release, "--check") == 0


TOKENIZERS: dict[str, Callable[[dict], object]] = {
    "special tokens elsewhere": lambda t: t["special_tokens"][24].update(token_str="[X]"),
    "two special tokens exchanged": lambda t: (
        t["special_tokens"][35].update(token_str="[NEXT_AUDIO_TEXT]"),
        t["special_tokens"][36].update(token_str="[REPEAT_AUDIO_TEXT]"),
    ),
    "another frame rate": lambda t: t["audio"].update(frame_rate=25.0),
    "another sampling rate": lambda t: t["audio"].update(sampling_rate=16000),
    "a version without audio": lambda t: t["config"].update(version="v3"),
    "no version": lambda t: t["config"].pop("version"),
    "an unknown audio key": lambda t: t["audio"].update(nonsense=1),
    "no vocabulary": lambda t: t.pop("vocab"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_cannot_ask_for_speech_is_a_problem_and_gets_no_voice(
    release: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(release / "tekken.json", TOKENIZERS[name])
    before = snapshot(release)
    assert patch(release) == 1
    assert "cannot be served" in capsys.readouterr().out
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 2
    assert "no voice was added" in capsys.readouterr().err
    assert snapshot(release) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"audio": 3}', "\xff"])
@pytest.mark.parametrize("file", ["tekken.json", "params.json"])
def test_json_that_is_none_is_an_error(
    release: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (release / file).unlink()
    (release / file).write_text(content, encoding="latin-1")
    assert patch(release) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (release / file).read_text(encoding="latin-1") == content


def tensors_changed(release: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = release / "consolidated.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path)


ENCODER = "audio_tokenizer.input_proj.conv.parametrizations.weight.original0"
USAGE = "audio_tokenizer.quantizer.semantic_codebook.cluster_usage"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "one of the encoder's missing": (lambda t: t.pop(ENCODER), f"1 tensors are missing, {ENCODER}: stops the server's"),
    "a shape that is not params.json's": (
        lambda t: t.update({ENCODER: t[ENCODER][:1].clone()}),
        "have shapes that do not fit params.json",
    ),
    "quantizer in F32": (lambda t: t.update({USAGE: t[USAGE].float()}), "kills the engine at the first ref_audio"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_the_server_does_not_stand_are_a_problem(
    release: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = TENSORS[name]
    tensors_changed(release, change)
    assert patch(release, "--check") == 1
    out = capsys.readouterr().out
    assert message in out
    assert "cannot be served" in out


def test_an_encoder_in_a_file_of_its_own_is_found_unless_an_index_leaves_it_out(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = release / "consolidated.safetensors"
    tensors = load_file(path)
    encoder = {name: tensors.pop(name) for name in list(tensors) if "input_proj" in name or "encoder_blocks" in name}
    path.unlink()
    save_file(tensors, path)
    assert len(encoder) == 114
    assert patch(release, "--check") == 1
    save_file(encoder, release / "consolidated_encoder.safetensors")
    assert patch(release, "--check") == 0
    listed = dict.fromkeys(tensors, path.name)
    (release / INDEX_NAME).write_text(json.dumps({"weight_map": listed}))
    capsys.readouterr()
    assert patch(release, "--check") == 1
    assert "ref_audio gets status 400" in capsys.readouterr().out
    listed |= dict.fromkeys(encoder, "consolidated_encoder.safetensors")
    (release / INDEX_NAME).write_text(json.dumps({"weight_map": listed}))
    assert patch(release, "--check") == 0


def test_params_without_a_table_of_voices_get_one(release: Path, tmp_path: Path) -> None:
    edit(release / "params.json", lambda p: p["multimodal"]["audio_tokenizer_args"].pop("voice"))
    assert patch(release, "--voice", f"anna={clip(tmp_path / 'a.wav')}") == 0
    assert named(release) == {"anna": 0}
    assert served_voices(release) == {"anna"}
