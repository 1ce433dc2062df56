"""Files of `torch.save` that are damaged, or that a stranger made."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from system.torch_files import TorchFileError, load_torch_file


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before zip"])
def test_a_damaged_file_is_one_kind_of_error(tmp_path: Path, zipped: bool) -> None:
    path, dice = tmp_path / "a.pt", random.Random(0)
    torch.save({"weight": torch.ones(3, 4), "step": 5}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    assert load_torch_file(path, checksums=zipped)["step"] == 5
    reasons = []
    for _ in range(300):
        damaged = bytearray(content)
        damaged[dice.randrange(len(content))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice([len(content), dice.randrange(len(content))])])
        try:
            load_torch_file(path, checksums=zipped)
        except TorchFileError as error:
            reasons.append(str(error))
    assert len(reasons) > 150
    assert all(reason and "\n" not in reason for reason in reasons)


def test_what_is_no_file_of_torch_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(bytes(3 << 20))
    for name, reason in {
        "gone": "No such file or directory",
        "empty": "the file is empty or ends too early",
        "large": "it has more than 2 MB",
        ".": "it is not a regular file",
    }.items():
        with pytest.raises(TorchFileError, match=reason):
            load_torch_file(tmp_path / name, limit=2 << 20)
