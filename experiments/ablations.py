"""Shows what each part of the recipe is for: encoders trained with it and without it, everything else equal.

    python -m experiments.ablations OUT --speech SPEECH --unseen PATH ... --whisper MODEL [key=value ...]

Trains an encoder by every configuration in configs/ablations and for every seed, several runs side by side (a network
as small as the stand-in's does not fill a GPU), and `band_limited`: the recipe, on the same speech by way of 16 kHz.
`--without` names some of them, which are trained beside the recipe alone. Then measures all, beside the withheld and
an untrained encoder, and prints a row for each wall: the mean over the seeds, and each seed; and what changes without
the part, paired by clip. A run that OUT holds already is not made again. OUT/figures.json has everything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from evaluation.judges.judge import Metric
from evaluation.statistics import Interval, difference
from evaluation.table import with_interval
from experiments.results_tables import markdown
from system.files import folder_written_whole

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs" / "ablations"
DEMO = ROOT / "data" / "demo"
RECIPE, BAND_LIMITED = "recipe", "band_limited"
ENDS = ("against", "untrained")


class Ablation(NamedTuple):
    """Two configurations that differ in one part of the recipe, and the metrics that show what the part is for."""

    title: str  # what goes wrong without the part, or what it is for
    metrics: tuple[str, ...]
    complete: str
    without: str


ABLATIONS = (
    Ablation("codebook collapse", ("sem_util", "distinct_codes"), RECIPE, "no_diversity"),
    Ablation(
        "codebook collapse from a random start",
        ("sem_util", "distinct_codes"),
        "random_start",
        "random_start_no_diversity",
    ),
    Ablation("acoustic saturation", ("acoustic_to_target", "at_ends"), RECIPE, "no_shaping"),
    Ablation("speaker lost", ("speaker_resemblyzer",), RECIPE, "no_speaker"),
    Ablation("band-limited data", ("band_level",), RECIPE, BAND_LIMITED),
    Ablation("hand-set weights", ("mel",), RECIPE, "fixed_weights"),
    Ablation("words", ("wer", "cer"), RECIPE, "no_asr"),
    Ablation("start at the decoder's inverse", ("mel", "wer"), RECIPE, "random_start"),
    Ablation("codes by shaping", ("embedding_agreement", "equal_acoustic", "equal_semantic"), RECIPE, "no_shaping"),
    Ablation("codes by diversity", ("embedding_agreement", "equal_acoustic", "equal_semantic"), RECIPE, "no_diversity"),
    Ablation("quantization noise", ("mel",), RECIPE, "all_quantized"),
    Ablation("Adam's beta", ("mel",), RECIPE, "adam_09"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", required=True, type=Path, help="a folder of audio files to train on")
    parser.add_argument("--unseen", required=True, nargs="+", help="speech of other speakers: files or folders")
    parser.add_argument("--whisper", required=True, help="name or file: the teacher, and the judge of words")
    parser.add_argument("--clips", type=int, default=24, help="of the unseen speech (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2)
    every = [*sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {RECIPE}), BAND_LIMITED]
    parser.add_argument("--without", nargs="+", choices=every, default=every, metavar="NAME", help="default: all")
    parser.add_argument("--side-by-side", type=int, default=8, help="runs at a time (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=8, help="judges at a time (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run, such as steps=500")
    options = parser.parse_intermixed_args()

    names = [RECIPE, *options.without]
    lowered = options.out / "by_way_of_16_khz"
    if BAND_LIMITED in names and not lowered.is_dir():
        by_way_of_16_khz(options.speech, lowered)

    def train(run: tuple[int, str]) -> None:
        seed, name = run
        speech, config = (lowered, RECIPE) if name == BAND_LIMITED else (options.speech, name)
        folder = options.out / f"{name}_{seed}"
        if (folder / "encoder.safetensors").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        settings = (f"output_dir={folder}", f"data.train={speech}", f"seed={seed}", *options.overrides)
        teacher = f"losses.asr_teacher={options.whisper}"
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            command = ("train_encoder.py", "--config", str(CONFIGS / f"{config}.yaml"), *settings, teacher)
            ended = subprocess.run([sys.executable, *command], stdout=log, stderr=log, cwd=ROOT, env=share, check=False)
        print(f"{folder.name}: status {ended.returncode}", flush=True)

    # each with all cores, they would wait for one another; and one that tries cuDNN's algorithms takes all memory
    memory = f"per_process_memory_fraction:{0.95 / options.side_by_side:.3f}"
    share = os.environ | {"OMP_NUM_THREADS": "1", "PYTORCH_CUDA_ALLOC_CONF": memory}
    runs = [(seed, name) for seed in range(options.seeds) for name in names]
    with ThreadPoolExecutor(options.side_by_side) as slots:
        list(slots.map(train, runs))
    found = evaluated(options, [f"{name}_{seed}" for name in names for seed in range(options.seeds)])
    print(table(found, options.seeds))
    return 0


def by_way_of_16_khz(speech: Path, lowered: Path) -> None:
    """The same clips, with nothing left above 8 kHz."""

    def lower(path: Path, folder: Path) -> None:
        samples, rate = soundfile.read(path, dtype="float32")
        target = folder / path.relative_to(speech).with_suffix(".wav")
        target.parent.mkdir(parents=True, exist_ok=True)
        narrow = soxr.resample(soxr.resample(samples, rate, 16000), 16000, rate)
        soundfile.write(target, narrow.clip(-1, 1), rate, subtype="PCM_16")

    with folder_written_whole(lowered) as partial, ThreadPoolExecutor(8) as threads:  # soxr lets go of the interpreter
        list(threads.map(lambda path: lower(path, partial), sorted(p for p in speech.rglob("*") if p.is_file())))


def evaluated(options: argparse.Namespace, runs: Sequence[str]) -> dict[str, Any]:
    """The evaluation's totals by run."""
    encoders = [f"{run}={options.out / run / 'encoder.safetensors'}" for run in runs]
    figures = options.out / "figures.json"
    judges = ("--without", "wavlm", "quality", "speed", "--speaker-model", str(DEMO / "speaker"))
    sides = ("--model-dir", str(DEMO / "release"), "--against", str(DEMO / "withheld_encoder.safetensors"))
    speech = ("--data", *options.unseen, "--clips", str(options.clips), "--whisper", options.whisper)
    more = ("--jobs", str(options.jobs), "--json", str(figures))
    command = ("evaluate_encoder.py", "--encoder", *encoders, *sides, *judges, *speech, *more)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return json.loads(figures.read_text(encoding="utf-8"))


def table(found: dict[str, Any], seeds: int) -> str:
    """A row for each ablation and metric, in Markdown."""
    metrics = {name: Metric(**each) for name, each in found["metrics"].items()}
    totals = found["totals"]
    rows = []
    for ablation in ABLATIONS:
        runs = (ablation.complete, ablation.without)
        if not {f"{run}_0" for run in runs} <= totals.keys():
            continue
        for name in ablation.metrics:
            metric = metrics[name]
            cells = [f"{of_seeds(totals, run, metric, seeds)}, `{run}`" for run in runs]
            change = with_interval(metric, paired(found, ablation, name, seeds), signed=True)
            ends = [metric.show(totals[end][name]["value"]) if name in totals[end] else "–" for end in ENDS]
            rows.append([ablation.title, metric.title, *cells, change, *ends])
    return markdown(["ablation", "metric", "with the part", "without", "without − with", "withheld", "untrained"], rows)


def of_seeds(totals: dict[str, Any], run: str, metric: Metric, seeds: int) -> str:
    """`mean (each seed)`."""
    values = [totals[f"{run}_{seed}"][metric.name]["value"] for seed in range(seeds)]
    return f"{metric.show(mean(values))} ({', '.join(map(metric.show, values))})"


def paired(found: dict[str, Any], ablation: Ablation, metric: str, seeds: int) -> Interval | None:
    """How the metric changes without the part, paired by clip and averaged over the seeds.

    None where the metric has no score per clip (it counts over all clips at once)."""
    runs = (ablation.without, ablation.complete)
    values, weights, speakers = [], [], []
    for clip in found["clips"]:
        scores = [[clip["scores"][f"{each}_{seed}"].get(metric) for seed in range(seeds)] for each in runs]
        if None not in scores[0] + scores[1]:
            values.append([mean(each) for each in scores])
            weights.append(clip["weights"].get(metric, 1))
            speakers.append(clip["speaker"])
    if not values:
        return None
    without, complete = np.array(values).T
    return difference(without, complete, np.array(weights), 0, speakers)


if __name__ == "__main__":
    sys.exit(main())
