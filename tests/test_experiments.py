"""The programs of the ablations and the benchmark: what they make of a run's files."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from experiments import ablations, benchmark


def test_an_ablation_is_a_row_of_means_each_seeds_figure_and_what_changes_without_the_part() -> None:
    shown = {name for ablation in ablations.ABLATIONS for name in ablation.metrics}
    common = {"better": "", "definition": "", "digits": 2}
    metrics = {name: {"name": name, "title": name, "percent": name == "wer", **common} for name in shown}
    runs = {run for ablation in ablations.ABLATIONS for run in (ablation.complete, ablation.without)}
    totals = {f"{run}_{seed}": {name: {"value": 0.2 + 0.1 * seed} for name in shown} for run in runs for seed in (0, 1)}
    totals |= {"against": {name: {"value": 0.5} for name in shown}, "untrained": {"mel": {"value": 7}}}

    def clip(words: int, change: float, *left_out: str) -> dict[str, Any]:
        scores: dict[str, dict[str, float]] = {f"{run}_{seed}": {} for run in runs for seed in (0, 1)}
        for run in ("recipe", "no_asr"):
            for seed in (0, 1):
                scores[f"{run}_{seed}"]["wer"] = 0.5 + (1 + seed) * change * (run == "no_asr")
        for run in left_out:
            del scores[run]["wer"]
        return {"scores": scores, "weights": {"wer": words}, "speaker": ""}

    # seeds average to changes of 0.3 and 0.6, one word and three; the last clip was not scored by all
    clips = [clip(1, 0.2), clip(3, 0.4), clip(99, 0.1, "no_asr_1")]
    found = {"metrics": metrics, "totals": totals, "clips": clips}
    rows = ablations.table(found, seeds=2).splitlines()
    figures = "0.25 (0.20, 0.30)"
    assert f"| hand-set weights | mel | {figures}, `recipe` | {figures}, `fixed_weights` | – | 0.50 | 7.00 |" in rows
    words = "| words | wer | 25.0 % (20.0 %, 30.0 %), `recipe` | 25.0 % (20.0 %, 30.0 %), `no_asr` | +52.5 % ["
    assert [row.endswith("| 50.0 % | – |") for row in rows if row.startswith(words)] == [True]


def test_every_configuration_of_an_ablation_is_in_the_table_and_the_other_way_round() -> None:
    configs = {path.stem for path in ablations.CONFIGS.glob("*.yaml")}
    named = {run for ablation in ablations.ABLATIONS for run in (ablation.complete, ablation.without)}
    assert configs == named - {ablations.BAND_LIMITED}


def test_steps_are_measured_behind_their_warm_up(tmp_path: Path) -> None:
    settings = {"batch_size": 4, "accumulate": 2, "data": {"crop_seconds": 1.5}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    half, whole, line = benchmark.MEASURED // 2, benchmark.MEASURED, benchmark.LINE
    speeds = {line: 1.0, half: 60.0, half + line: 2.0, whole: 24.0}
    lines = [{"step": step, "mel": 1.0, "audio_seconds_per_second": speed} for step, speed in speeds.items()]
    lines.append({"step": whole, "validation/mel": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert benchmark.seconds_a_step(tmp_path) == (0.2, 0.5)


def test_the_encoders_of_the_curve_are_kept_while_a_run_overwrites_them(tmp_path: Path) -> None:
    ended = threading.Event()
    keeper = threading.Thread(target=benchmark.keep_encoders, args=(tmp_path, ended))
    keeper.start()
    for step in (110, 220):
        partial = tmp_path / "partial"
        save_file({"weight": torch.zeros(1)}, partial, {"step": f"{step}"})
        partial.rename(tmp_path / "encoder.safetensors")
        time.sleep(1.2)
    ended.set()
    keeper.join()
    assert [path.name for path in sorted((tmp_path / "kept").glob("step_*"))] == [
        "step_000110.safetensors",
        "step_000220.safetensors",
    ]
