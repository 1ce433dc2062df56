"""The programs in experiments/: what they make of a run's files, and the networks that they describe."""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from experiments import ablations, benchmark, recipe_speed
from experiments.performance import line
from experiments.runs import ROOT, ExperimentError, run, run_shown
from experiments.stand_in.speaker_network import PUBLISHED, SMALL, write_hyperparameters, write_random_network
from experiments.step_speed import Measured
from losses.speaker import WEIGHTS, SpeakerNetwork, load_speaker_network
from tests.rank_processes import start, statuses


def test_an_ablation_is_a_row_of_means_each_seeds_figure_and_what_changes_without_the_part() -> None:
    shown = {name for ablation in ablations.ABLATIONS for name in ablation.metrics}
    common = {"better": "", "definition": "", "digits": 2}
    metrics = {name: {"name": name, "title": name, "percent": name == "wer", **common} for name in shown}
    runs = {run for ablation in ablations.ABLATIONS for run in (ablation.complete, ablation.without)}
    totals = {f"{run}_{seed}": {name: {"value": 0.2 + 0.1 * seed} for name in shown} for run in runs for seed in (0, 1)}
    totals |= {"against": {name: {"value": 0.5} for name in shown}, "untrained": {"mel": {"value": 7}}}

    def clip(words: int, change: float, *left_out: str) -> dict[str, Any]:
        scores: dict[str, dict[str, float]] = {f"{name}_{seed}": {} for name in runs for seed in (0, 1)}
        for name in ("recipe", "no_asr"):
            for seed in (0, 1):
                scores[f"{name}_{seed}"]["wer"] = 0.5 + (1 + seed) * change * (name == "no_asr")
        for name in left_out:
            del scores[name]["wer"]
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
    data = {"train": ["speech"], "validation": ["speech"], "crop_seconds": 1.5}
    settings = {"model_dir": "release", "batch_size": 4, "accumulate": 2, "data": data}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    half, whole, line = benchmark.MEASURED_STEPS // 2, benchmark.MEASURED_STEPS, benchmark.LOG_EVERY
    speeds = {line: 1.0, half: 60.0, half + line: 2.0, whole: 24.0}
    lines = [{"step": step, "mel": 1.0, "audio_seconds_per_second": speed} for step, speed in speeds.items()]
    lines.append({"step": whole, "validation/mel": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert benchmark.seconds_per_step(tmp_path) == (0.2, 0.5)


def test_the_encoders_of_the_curve_are_kept_while_a_run_overwrites_them(tmp_path: Path) -> None:
    ended = threading.Event()
    keeper = threading.Thread(target=benchmark.keep_encoders, args=(tmp_path, ended))
    keeper.start()
    for step in (110, 220):
        partial = tmp_path / "partial"
        save_file({"weight": torch.zeros(1)}, partial, {"step": f"{step}"})
        partial.rename(tmp_path / "encoder.safetensors")
        kept, deadline = tmp_path / "kept" / f"step_{step:06}.safetensors", time.monotonic() + 60
        while not kept.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    ended.set()
    keeper.join()
    assert [path.name for path in sorted((tmp_path / "kept").glob("step_*"))] == [
        "step_000110.safetensors",
        "step_000220.safetensors",
    ]


def test_the_output_of_a_program_is_returned_and_its_last_words_are_in_the_error() -> None:
    assert (
        run("-c", "import os; print(os.getcwd(), os.environ['GIVEN'])", environment={"GIVEN": "it"}) == f"{ROOT} it\n"
    )
    with pytest.raises(ExperimentError, match=r"ended with status 3; it ends with:\nno room"):
        run("-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)")


def test_a_log_has_both_outputs_of_a_program_and_is_named_in_the_error(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(ExperimentError, match=r"ended with status 3; see .*log\.txt"):
        run_shown("-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", log=log)
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_the_demos_speaker_network_is_the_small_one_that_the_program_describes(tmp_path: Path) -> None:
    demo = Path("data/demo/speaker")
    write_hyperparameters(tmp_path, SMALL)
    (tmp_path / WEIGHTS).write_bytes((demo / WEIGHTS).read_bytes())
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    shipped, described = (load_speaker_network(str(folder)).eval() for folder in (demo, tmp_path))
    with torch.no_grad():
        assert torch.equal(shipped(noise), described(noise))


def test_what_the_published_description_leaves_out_has_speechbrains_default(tmp_path: Path) -> None:
    written = load_speaker_network(str(write_random_network(tmp_path / "written", PUBLISHED)))
    named = {"input_size", "channels", "kernel_sizes", "dilations", "attention_channels", "lin_neurons"}
    listed = write_hyperparameters(tmp_path / "listed", {name: PUBLISHED[name] for name in named})
    shapes = [
        {name: tensor.shape for name, tensor in network.state_dict().items()}
        for network in (written, SpeakerNetwork(listed))
    ]
    assert shapes[0] == shapes[1]


def test_a_row_of_the_table_of_speeds_has_medians_and_ranges_over_all_runs() -> None:
    found = [Measured([100.0, 120.0], 72.0, 20.04, 22.0), Measured([110.0], 72.0, 21.0, 23.0)]
    assert line("it", found) == "| it | 110.0 (100.0 to 120.0) | 655 (600 to 720) | 20.0 | 22.0 | 0.9 |"


def test_the_time_of_a_step_is_measured_with_its_collectives_and_without(settings: Path, tmp_path: Path) -> None:
    """Without collectives each rank has its own norms and gradients."""
    change = f"""
import json, sys, torch
import experiments.exchange_speed as speed
trained = {{}}
class Seen(speed.Trainer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        trained[len(trained)] = self
speed.Trainer, speed.ROUNDS, speed.CYCLES = Seen, 1, 1
sys.argv = ["exchange_speed.py", {str(settings)!r}]
status = speed.main()
for number, trainer in trained.items():
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.trained.parameters()])
    torch.save(weights, f"{tmp_path}/{{number}}_{{rank}}.pt")
sys.exit(status)
"""
    log = tmp_path / "log"
    assert statuses(start(2, [], log, change)) == [0, 0], log.read_text()
    found = json.loads(log.read_text().splitlines()[-1])
    assert found["step_ms"] > 0
    assert found["step_alone_ms"] > 0
    weights = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    assert torch.equal(weights["0_0"], weights["0_1"])
    assert not torch.equal(weights["1_0"], weights["1_1"])


def test_what_recipe_speed_is_not_given_it_makes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("write_random_clips", "write_release", "write_random_network", "random_teacher"):
        monkeypatch.setattr(recipe_speed, name, lambda *_, made=name, **__: made)
    monkeypatch.setattr(recipe_speed, "random_codec", lambda _: None)
    options = argparse.Namespace(speech="a", whisper="b", overrides=["model_dir=c", "steps=3"])
    settings = [setting for setting in recipe_speed.made_settings(tmp_path, options) if "/" not in setting]
    assert settings[4:] == [
        *("data.train=a", "data.validation=a", "losses.asr_teacher=b", "model_dir=c", "steps=3"),
        "losses.speaker_model=write_random_network",
    ]
    options = argparse.Namespace(speech=None, whisper=None, overrides=[])
    assert {"model_dir=write_release", "data.train=write_random_clips", "losses.asr_teacher=random_teacher"} < {
        *recipe_speed.made_settings(tmp_path, options)
    }


def test_numbers_of_gpus_are_compared_with_the_first() -> None:
    found = [
        recipe_speed.Measured(1, 136.2, 40.0, 0.001, 0.0, 30.4),
        recipe_speed.Measured(4, 540.0, 41, 0.02, 0.006, 50),
    ]
    assert recipe_speed.table(found).splitlines()[2:] == [
        "| 1 | 136 | 1.00 | 40.0 GB | 0.1% | 0.0% | 30 s |",
        "| 4 | 540 | 3.96 | 41.0 GB | 2.0% | 0.6% | 50 s |",
    ]
