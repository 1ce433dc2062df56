"""What is each part of the recipe for? Trains encoders with and without it, everything else equal, and compares them.

    python -m experiments.ablations OUT --speech SPEECH --unseen PATH ... --whisper MODEL [key=value ...]

Every configuration in configs/ablations is trained with every seed. `band_limited` is one more: the recipe on the same
speech, resampled to 16 kHz and back. `--without` selects some of them, which are trained beside the recipe alone.
Several runs share the GPU, because a network as small as the stand-in's does not fill it.

Then all encoders are measured beside the withheld and an untrained one. The table has a row for each ablation and
metric: the mean over the seeds and each seed's value, and how the metric changes without the part, paired by clip.
OUT/figures.json holds everything. Repeat the command to continue: runs that are finished in OUT are not repeated.
"""

from __future__ import annotations

import argparse
import json
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
from experiments.runs import DEMO, ROOT, TRAIN, ExperimentError, experiment_status, on_gpus, only, run_shown
from system.files import folder_written_whole

CONFIGS = ROOT / "configs" / "ablations"
RECIPE, BAND_LIMITED = "recipe", "band_limited"
NARROW = 16000  # Hz; half of it is the band that is left
ENDS = ("against", "untrained")


class Ablation(NamedTuple):
    """Two configurations that differ in one part of the recipe, and the metrics that show what the part is for."""

    title: str  # what goes wrong without the part, or what it is for
    metrics: tuple[str, ...]
    complete: str
    without: str


COLLAPSE = ("sem_util", "distinct_codes")
CODES = ("embedding_agreement", "equal_acoustic", "equal_semantic")
ABLATIONS = (
    Ablation("codebook collapse", COLLAPSE, RECIPE, "no_diversity"),
    Ablation("codebook collapse from a random start", COLLAPSE, "random_start", "random_start_no_diversity"),
    Ablation("acoustic saturation", ("acoustic_to_target", "at_ends"), RECIPE, "no_shaping"),
    Ablation("speaker lost", ("speaker_resemblyzer",), RECIPE, "no_speaker"),
    Ablation("band-limited data", ("band_level",), RECIPE, BAND_LIMITED),
    Ablation("hand-set weights", ("mel",), RECIPE, "fixed_weights"),
    Ablation("words", ("wer", "cer"), RECIPE, "no_asr"),
    Ablation("start at the decoder's inverse", ("mel", "wer"), RECIPE, "random_start"),
    Ablation("codes by shaping", CODES, RECIPE, "no_shaping"),
    Ablation("codes by diversity", CODES, RECIPE, "no_diversity"),
    Ablation("quantization noise", ("mel",), RECIPE, "all_quantized"),
    Ablation("Adam's beta", ("mel",), RECIPE, "adam_09"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the runs and figures.json")
    parser.add_argument("--speech", required=True, type=Path, help="a folder of audio files to train on")
    parser.add_argument("--unseen", required=True, nargs="+", help="speech of other speakers: files or folders")
    parser.add_argument("--whisper", required=True, help="name or file of the teacher, which also judges the words")
    parser.add_argument("--clips", type=int, default=24, help="of the unseen speech (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each configuration (default: %(default)s)")
    every = [*sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {RECIPE}), BAND_LIMITED]
    parser.add_argument(
        "--without",
        nargs="+",
        choices=every,
        default=every,
        metavar="NAME",
        help=f"of {', '.join(every)}; default: all",
    )
    parser.add_argument("--side-by-side", type=int, default=8, help="runs at a time on a GPU (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=8, help="judges at a time (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run, such as steps=500")
    options = parser.parse_intermixed_args()

    def compare() -> int:
        names = [RECIPE, *options.without]
        train_all(options, names)
        found = evaluate(options, [f"{name}_{seed}" for name in names for seed in range(options.seeds)])
        print(table(found, options.seeds))
        return 0

    return experiment_status(compare, f"repeat the command to continue {options.out}")


def train_all(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Trains every configuration with every seed. Raises ExperimentError if a run fails, after the others ended."""
    lowered = options.out / "by_way_of_16_khz"
    if BAND_LIMITED in names and not lowered.is_dir():
        by_way_of_16_khz(options.speech, lowered)
    runs = []
    for seed in range(options.seeds):
        for name in names:
            speech, config = (lowered, RECIPE) if name == BAND_LIMITED else (options.speech, name)
            settings = (f"data.train={speech}", f"seed={seed}", *options.overrides)
            teacher = f"losses.asr_teacher={options.whisper}"
            runs.append(Run(options.out / f"{name}_{seed}", CONFIGS / f"{config}.yaml", (*settings, teacher)))
    train_side_by_side(runs, options.side_by_side)


class Run(NamedTuple):
    """A training: `PROGRAM --config CONFIG SETTINGS`, whose `output_dir` is the folder."""

    folder: Path
    config: Path
    settings: Sequence[str]
    program: Sequence[str] = TRAIN


def train_side_by_side(runs: Sequence[Run], at_once: int) -> None:
    """Trains `at_once` runs at a time on each GPU. Those that are finished are not repeated. Raises ExperimentError if
    one fails, after the others ended."""
    raise_failures(on_gpus(lambda run, gpu: train(run, gpu, at_once), runs, at_once))


def train(run: Run, gpu: str, at_once: int) -> str:
    """Trains one of `at_once` runs on a GPU, unless it is finished. Returns why it failed, or an empty string."""
    if (run.folder / "encoder.safetensors").exists():
        return ""
    run.folder.mkdir(parents=True, exist_ok=True)
    # One thread for each run, because runs that all use every core wait for one another. And a share of the GPU's
    # memory, because cuDNN takes all that it can get when it tries its algorithms.
    memory = f"per_process_memory_fraction:{0.95 / at_once:.3f}"
    share = {"OMP_NUM_THREADS": "1", "PYTORCH_CUDA_ALLOC_CONF": memory}
    command = (*run.program, "--config", str(run.config), f"output_dir={run.folder}", *run.settings)
    try:
        run_shown(*command, log=run.folder / "log.txt", environment=share | only(gpu))
    except ExperimentError as error:
        return str(error)
    print(f"{run.folder.name}: trained", flush=True)
    return ""


def raise_failures(outcomes: Sequence[str]) -> None:
    failures = [outcome for outcome in outcomes if outcome]
    if failures:
        raise ExperimentError(f"{len(failures)} of {len(outcomes)} runs failed; the first: {failures[0]}")


def by_way_of_16_khz(speech: Path, lowered: Path) -> None:
    """Writes the clips of `speech` to `lowered`, with nothing left above 8 kHz."""

    def lower(path: Path, folder: Path) -> None:
        samples, rate = soundfile.read(path, dtype="float32")
        target = folder / path.relative_to(speech).with_suffix(".wav")
        target.parent.mkdir(parents=True, exist_ok=True)
        narrow = soxr.resample(soxr.resample(samples, rate, NARROW), NARROW, rate)
        soundfile.write(target, narrow.clip(-1, 1), rate, subtype="PCM_16")

    files = sorted(path for path in speech.rglob("*") if path.is_file())
    with folder_written_whole(lowered) as partial, ThreadPoolExecutor(8) as threads:  # soxr releases the GIL
        list(threads.map(lower, files, [partial] * len(files)))


def evaluate(options: argparse.Namespace, runs: Sequence[str]) -> dict[str, Any]:
    """Measures all encoders and returns what evaluate_encoder.py wrote to figures.json."""
    encoders = [f"{name}={options.out / name / 'encoder.safetensors'}" for name in runs]
    figures = options.out / "figures.json"
    judges = ("--without", "wavlm", "quality", "speed", "--speaker-model", str(DEMO / "speaker"))
    sides = ("--model-dir", str(DEMO / "release"), "--against", str(DEMO / "withheld_encoder.safetensors"))
    speech = ("--data", *options.unseen, "--clips", str(options.clips), "--whisper", options.whisper)
    more = ("--jobs", str(options.jobs), "--json", str(figures))
    command = ("evaluate_encoder.py", "--encoder", *encoders, *sides, *judges, *speech, *more)
    run_shown(*command, log=options.out / "evaluation.txt")
    return json.loads(figures.read_text(encoding="utf-8"))


def table(found: dict[str, Any], seeds: int) -> str:
    """A row for each ablation and metric, in Markdown."""
    metrics = {name: Metric(**each) for name, each in found["metrics"].items()}
    totals = found["totals"]
    rows = []
    for ablation in ABLATIONS:
        configurations = (ablation.complete, ablation.without)
        if not {f"{name}_0" for name in configurations} <= totals.keys():
            continue
        for metric in (metrics[name] for name in ablation.metrics):
            cells = [f"{of_seeds(totals, name, metric, seeds)}, `{name}`" for name in configurations]
            change = with_interval(metric, paired(found, ablation, metric.name, seeds), signed=True)
            ends = [totals[end].get(metric.name) for end in ENDS]
            cells_of_ends = [metric.show(total["value"]) if total else "–" for total in ends]
            rows.append([ablation.title, metric.title, *cells, change, *cells_of_ends])
    return markdown(["ablation", "metric", "with the part", "without", "without − with", "withheld", "untrained"], rows)


def of_seeds(totals: dict[str, Any], name: str, metric: Metric, seeds: int) -> str:
    """`mean (each seed)`."""
    values = [totals[f"{name}_{seed}"][metric.name]["value"] for seed in range(seeds)]
    return f"{metric.show(mean(values))} ({', '.join(map(metric.show, values))})"


def paired(found: dict[str, Any], ablation: Ablation, metric: str, seeds: int) -> Interval | None:
    """How the metric changes without the part: mean difference over the clips, each clip averaged over the seeds first.

    Only clips that every run has a score of count. None if there is none, as for metrics over all clips at once.
    """
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
