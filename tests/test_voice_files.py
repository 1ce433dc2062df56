"""Voice files of a release: which are accepted, and that every program names one that cannot be used."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor

import evaluate_encoder
import train_encoder
from codec import ReleaseError
from codec.voices import read_voice, read_voices

DEMO = Path("data/demo")
DIM = 512

GOOD = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0)).bfloat16()


def save(content: object) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def truncate(path: Path) -> None:
    torch.save(GOOD, path)
    path.write_bytes(path.read_bytes()[:-700])


def write_text(path: Path) -> None:
    path.write_text("not a tensor", encoding="utf-8")


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "cannot be read"),
    "empty": (lambda path: path.touch(), "cannot be read (the file is empty or ends too early)"),
    "text": (write_text, "cannot be read"),
    "a folder": (Path.mkdir, "cannot be read"),
    "a dict": (save({"embedding": GOOD}), "holds a dict instead of a tensor"),
    "wrong width": (save(GOOD[:, :-1].clone()), f"has the shape [4, {DIM - 1}], expected [N, {DIM}]"),
    "one dimension": (save(GOOD[0].clone()), f"has the shape [{DIM}], expected [N, {DIM}]"),
    "no rows": (save(GOOD[:0].clone()), f"has the shape [0, {DIM}], expected [N, {DIM}]"),
    "no frame": (save(GOOD[:1].clone()), "holds 1 row, expected at least one frame and the end-of-audio row"),
    "integers": (save(GOOD.long()), "holds int64, expected floating-point values"),
    "NaN": (save(GOOD * torch.nan), "holds values that are not finite"),
    "sparse": (save(GOOD.float().to_sparse()), "holds a tensor without a value for each of its elements"),
    "on the meta device": (save(GOOD.to("meta")), "holds a tensor without a value for each of its elements"),
    "a stride of 0": (save(GOOD[:1, :1].clone().expand(10**9, DIM)), "holds a tensor without a value for each"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_voice_file_that_cannot_be_used_is_an_error_that_names_the_file_and_the_fault(
    tmp_path: Path, name: str
) -> None:
    write, fault = FAULTS[name]
    write(tmp_path / "odd.pt")
    with pytest.raises(ReleaseError) as raised:
        read_voices(tmp_path, DIM)
    assert str(raised.value).startswith(f"{tmp_path / 'odd.pt'} {fault}")
    assert "\n" not in str(raised.value)


def test_a_single_damaged_byte_never_causes_another_error(tmp_path: Path) -> None:
    """Half of the changes are in the first 1,200 bytes, which describe the tensor."""
    path = tmp_path / "voice.pt"
    generator = torch.Generator().manual_seed(0)
    for new_format in (True, False):
        torch.save(GOOD, path, _use_new_zipfile_serialization=new_format)
        content = path.read_bytes()
        for limit in [1200, len(content)] * 150:
            damaged = bytearray(content)
            damaged[int(torch.randint(limit, (), generator=generator))] = int(
                torch.randint(256, (), generator=generator)
            )
            path.write_bytes(damaged)
            with suppress(ReleaseError):
                read_voice(path, DIM)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_voices_are_read_as_they_were_saved_sorted_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    voices = {name: GOOD.to(dtype) + i for i, name in enumerate("ba")}
    for name, voice in voices.items():
        torch.save(voice, tmp_path / f"{name}.pt")
    found = read_voices(tmp_path, DIM)
    assert list(found) == sorted(voices)
    assert all(torch.equal(found[name], voice) and found[name].dtype == dtype for name, voice in voices.items())
    assert read_voices(tmp_path / "nowhere", DIM) == {}


PRESETS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "truncated": (lambda voice: voice, "cannot be read"),
    "a dict": (lambda voice: {"embedding": voice}, "holds a dict instead of a tensor"),
    "wrong width": (lambda voice: voice[:, :-1].clone(), "has the shape"),
}


@pytest.mark.parametrize("fault", PRESETS)
def test_evaluation_and_training_name_a_broken_preset_in_one_sentence_with_status_2(
    fault: str,
    settings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, expected = PRESETS[fault]
    release = shutil.copytree(DEMO / "release", tmp_path / "release")
    preset = release / "voice_embedding" / "preset_2.pt"
    torch.save(change(torch.load(preset, weights_only=True)), preset)
    if fault == "truncated":
        preset.write_bytes(preset.read_bytes()[:-700])

    monkeypatch.setenv("HF_CACHE", str(tmp_path / "cache"))
    evaluation = ["--model-dir", release, "--encoder", DEMO / "withheld_encoder.safetensors", "--clips", "1"]
    assert evaluate_encoder.main([*map(str, evaluation), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {preset} {expected}")

    training = ["train_encoder.py", "--config", settings, f"model_dir={release}", "losses.shaping=1"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in training])
    assert train_encoder.main() == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {preset} {expected}")
