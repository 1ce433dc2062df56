"""Float32 is float32 for every program: TF32 is forbidden where a program gets its device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from system.command import UserError
from system.device import open_device

ROOT = Path(__file__).parents[1]
# what asks only whether there is a GPU
ASKING = {"system/device.py", "evaluation/measure.py", "experiments/runs.py", "training/progress.py"}


@pytest.fixture
def flags() -> Iterator[None]:
    """Puts PyTorch's flags back, which monkeypatch cannot."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


@pytest.mark.usefixtures("flags")
def test_opening_a_device_forbids_tf32_and_leaves_the_other_flags() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = True
    assert open_device("cpu") == torch.device("cpu")
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (False, False, True)


@pytest.mark.usefixtures("flags")
def test_without_a_name_it_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert open_device().type == kind


@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize(
    ("name", "said"), [("xyz", "xyz is no device: expected cpu"), ("cuda:99", "cuda:99 is not there: PyTorch finds ")]
)
def test_a_device_that_is_not_there_is_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}"):
        open_device(name)


def test_no_program_chooses_its_device_elsewhere() -> None:
    folders = [folder for folder in ROOT.iterdir() if not (folder / "pyvenv.cfg").exists()]  # but for environments
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    choosing = {file.relative_to(ROOT).as_posix() for file in files if "cuda.is_available()" in file.read_text("utf-8")}
    assert {path for path in choosing if not path.startswith("tests/")} == ASKING
