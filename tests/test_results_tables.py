"""The tables of RESULTS.md, from figures made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from evaluation.codes import AGREEMENT
from evaluation.judges.judge import Metric
from experiments.results_tables import main

MEL = Metric("mel", "mel distance", "lower", "made up")
PESQ = Metric("pesq", "PESQ", "higher", "made up", 2)
USED = Metric("sem_util", "codes used", "", "made up", 0)
SHARES = {"recipe": (0.96, 0.5), "step_2": (0.7, 0.3), "step_1": (0.4, -0.1), "random": (0.9, 0.2), "descent": (1.2, 1)}


def _interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def _compared(difference: float, recovered: float | None) -> dict[str, Any]:
    share = None if recovered is None else _interval(recovered)
    return {"clips": 2, "difference": _interval(difference), "recovered": share, "recovered_clips": 2 if share else 0}


def _figures() -> dict[str, Any]:
    metrics = [MEL, PESQ, USED, AGREEMENT[0]]
    systems = [*SHARES, "against", "untrained"]
    return {
        "settings": {
            **{"data": ["unseen"], "arithmetic": "bf16", "machine": "a machine", "seed": 0, "whisper": "base"},
            "bootstrap_over": "speakers",
            "versions": {"torch": "2.11"},
        },
        "metrics": {metric.name: asdict(metric) for metric in metrics},
        "totals": {name: {m.name: _interval(i + 1) | {"clips": 2} for m in metrics} for i, name in enumerate(systems)},
        "comparisons": {
            name: {
                "mel": _compared(0.1, shares[0]),
                "pesq": _compared(-0.2, shares[1]),
                "sem_util": _compared(-3, None),
                AGREEMENT[0].name: _compared(-0.9, 0.01),
            }
            for name, shares in SHARES.items()
        },
        "encoders": {
            "recipe": {"file": "recipe.safetensors", "step": 400.0, "audio_seconds": 4 * 3600.0},
            "step_2": {"file": "2.safetensors", "step": 200.0, "audio_seconds": 2 * 3600.0},
            "step_1": {"file": "1.safetensors", "step": 100.0, "audio_seconds": 1800.0},
            "random": {"file": "random.safetensors", "step": 400.0},
            "against": {"file": "withheld.safetensors"},
        },
        "left_out": {},
        "speed": {},
        "clips": [
            {"seconds": 30.0, "speaker": "a", "scores": {name: {"mel": 1.0} for name in systems}},
            {"seconds": 30.0, "speaker": "b", "scores": {name: {"mel": 1.0} for name in systems} | {"descent": {}}},
        ],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(_figures()))
    return path


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_metrics_stand_beside_their_intervals_differences_and_shares(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--curve", "step_*"]) == 0
    lines = _lines(capsys)
    assert lines[0].startswith("2 clips of 2 speakers, 1.0 minutes, of unseen; bf16, a machine; seed 0;")
    assert lines[0].endswith(" 95 % intervals, bootstrap over the speakers.")
    assert "| metric | recipe | random | descent, 1 clip | untrained | against |" in lines
    row = (
        "| mel distance ↓ | 1.000 [0.990, 1.010] | 4.000 [3.990, 4.010] | 5.000 [4.990, 5.010] | 7.000 [6.990, 7.010] |"
    )
    assert any(line.startswith(row) for line in lines)
    (comparison,) = [line for line in lines if line.startswith("| PESQ ↑ | -0.20")]
    assert comparison.startswith(
        "| PESQ ↑ | -0.20 [-0.21, -0.19] | 50 % [49, 51] | -0.20 [-0.21, -0.19] | 20 % [19, 21]"
    )
    assert any(line.startswith("| codes used | -3 [-3, -3] | – |") for line in lines)


def test_the_metric_furthest_from_the_goal_is_named_and_is_not_how_alike_the_codes_are(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file)]) == 0
    (line,) = [line for line in _lines(capsys) if line.startswith("recipe: ")]
    assert line == "recipe: 1 of 2 metrics at 95 % or more; furthest from it is PESQ: recovered 50 % [49, 51]."


def test_the_curve_goes_by_hours_of_audio(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--curve", "step_*", "recipe"]) == 0
    lines = _lines(capsys)
    start = lines.index("| recovered after | 0.5 h | 2 h | 4 h |")
    assert lines[start + 2] == "| mel distance ↓ | 40 % [39, 41] | 70 % [69, 71] | 96 % [95, 97] |"
    assert lines[start + 3] == "| PESQ ↑ | -10 % [-11, -9] | 30 % [29, 31] | 50 % [49, 51] |"
    assert "| step_1 | `1.safetensors` | 100 | 0.5 h |" in lines


def test_hours_that_a_file_does_not_say_are_its_steps_or_an_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--curve", "random"]) == 2
    assert "give --seconds-a-step" in capsys.readouterr().err
    assert main([str(file), "--curve", "random", "--seconds-a-step", "90"]) == 0
    assert "| recovered after | 10 h |" in _lines(capsys)


def test_figures_over_fewer_clips_say_over_how_many(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = _figures()
    figures["totals"]["recipe"]["pesq"]["clips"] = 1
    figures["comparisons"]["recipe"]["pesq"] |= {"clips": 1, "recovered_clips": 1}
    figures["comparisons"]["recipe"]["mel"]["recovered_clips"] = 1
    file.write_text(json.dumps(figures))
    assert main([str(file), "--curve", "recipe"]) == 0
    lines = _lines(capsys)
    assert any(line.startswith("| PESQ ↑ | 1.00 [0.99, 1.01], 1 clip | 2.00 [1.99, 2.01] |") for line in lines)
    assert any(line.startswith("| PESQ ↑ | -0.20 [-0.21, -0.19], 1 clip | 50 % [49, 51], 1 clip |") for line in lines)
    assert any(line.startswith("| mel distance ↓ | +0.100 [0.090, 0.110] | 96 % [95, 97], 1 clip |") for line in lines)
    assert any("is PESQ: recovered 50 % [49, 51], 1 clip." in line for line in lines)
    assert "| PESQ ↑ | 50 % [49, 51], 1 clip |" in lines


def test_what_was_left_out_and_the_speed_have_a_line_each(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file)]) == 0
    assert not any(line.startswith(("Left out", "Speed")) for line in _lines(capsys))
    speed = {"latency": 0.05, "latency_min": 0.04, "latency_max": 0.06, "encode_rtf": 0.005, "decode_rtf": 0.006}
    file.write_text(json.dumps(_figures() | {"left_out": {"words": "no Whisper"}, "speed": {"cpu": speed}}))
    assert main([str(file)]) == 0
    lines = _lines(capsys)
    assert "Left out: words (no Whisper)." in lines
    (line,) = [line for line in lines if line.startswith("Speed: ")]
    assert line.startswith("Speed: cpu: a 10 s prompt takes 50 ms (40 to 60);")


def test_other_files_and_names_are_one_sentence(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text('{"metrics": []}')
    for arguments in ([str(tmp_path / "other.json")], [str(file), "--curve", "nothing"], ["nowhere.json"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
