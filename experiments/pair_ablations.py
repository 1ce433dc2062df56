"""What do pairs teach an encoder, and how many are enough, of which voices? Trains encoders with and without them.

    python -m experiments.pair_ablations OUT --speech SPEECH --wavs WAVS --unseen synthetic=TEST people=REAL

SPEECH is labelled speech (stand_in/speak.py), WAVS its train split as files (stand_in/export_speech.py). The program
lets the stand-in's language model speak pairs in the voices of presets and of clips, trains every configuration with
every seed, several at a time on each GPU, and measures all encoders:

- OUT/codes.json: agreement with the withheld encoder, the language model's losses, the listener
  (stand_in/measure_codes.py)
- OUT/synthetic.json and so on: the sound (evaluate_encoder.py)
- OUT/results.md: the tables

Steps are as in configs/ablations/recipe.yaml. There is no ASR distillation, because its effect there was too small to
measure. `--only` trains some of the configurations. Repeat the command to continue: what is finished is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from evaluation.judges.judge import Metric
from evaluation.statistics import LEVEL, Interval, difference, mean
from evaluation.table import ARROWS, with_interval
from experiments.ablations import CONFIGS, Run, raise_failures, train
from experiments.results_tables import markdown
from experiments.runs import DEMO, ExperimentError, experiment_status, named, on_gpus, only, run_shown, training_program
from experiments.stand_in.measure_codes import METRICS, OTHER_SPEAKER, SECOND_PASS, UNTRAINED, WITHHELD, averaged

CONFIG = CONFIGS / "no_asr.yaml"
BASE, SECOND_ROUND = "pairs", "second_round"  # the configuration that others are compared with
VOICES, ALL = "voices_20", "all_speakers"
STATISTICS = ("commitment", "diversity", "shaping")  # losses that pull toward statistics of the codes
# Half of 48 crops are pairs, so the crops of speech are as many as without. The inversion weighs as much as the losses
# on the reconstruction together.
WITH_PAIRS = ("batch_size=48", "losses.inversion=7.5", *(f"losses.{name}=0" for name in STATISTICS))


class SpokenSet(NamedTuple):
    """Pairs to speak: how many hours (of `--hours`), and the options of stand_in/generate_pairs.py."""

    share: float
    prompts: bool
    options: tuple[str, ...] = ()


SETS = {
    VOICES: SpokenSet(1, True, ("--speakers", "20", "--clips", "1")),  # as many voices as a release has presets
    ALL: SpokenSet(1, True),
    "presets": SpokenSet(1, False),  # the release's own
    "voices_5": SpokenSet(1, True, ("--speakers", "5", "--clips", "1")),
    "speakers_5": SpokenSet(1, True, ("--speakers", "5")),
    "tenth": SpokenSet(0.1, True, ("--speakers", "20", "--clips", "1")),
    "hundredth": SpokenSet(0.01, True, ("--speakers", "20", "--clips", "1")),
}


class Configuration(NamedTuple):
    """`pairs` names a set, "" for none. `settings` are added to those of WITH_PAIRS or of the recipe."""

    title: str
    pairs: str = VOICES
    settings: tuple[str, ...] = ()
    length: int = 1  # times as many steps
    trial: str = ""  # of trial_trainers.py


def without(*losses: str) -> tuple[str, ...]:
    return tuple(f"losses.{name}=0" for name in losses)


def with_statistics(*losses: str) -> tuple[str, ...]:
    weights = {"commitment": 0.1, "diversity": 0.3, "shaping": 0.3}  # as in the recipe
    return tuple(f"losses.{name}={weights[name]}" for name in losses)


PSEUDO_LABELS = (*with_statistics(*STATISTICS), "losses.pseudo_labels=2.5")
CONFIGURATIONS = {
    BASE: Configuration("pairs of 20 voices"),
    "sound": Configuration("sound alone", ""),
    SECOND_ROUND: Configuration("the same and pairs of a second round"),
    "all_speakers": Configuration("pairs of all speakers' clips", ALL),
    "presets": Configuration("of the release's presets", "presets"),
    "voices_5": Configuration("of 5 voices", "voices_5"),
    "speakers_5": Configuration("of all clips of 5 speakers", "speakers_5"),
    "tenth": Configuration("a tenth of the hours", "tenth"),
    "hundredth": Configuration("a hundredth of the hours", "hundredth"),
    "statistics": Configuration("with commitment, diversity, shaping", settings=with_statistics(*STATISTICS)),
    "sound_without_statistics": Configuration("sound alone, without these three", "", without(*STATISTICS)),
    "long": Configuration("twice the steps", length=2),
    "sound_long": Configuration("sound alone, twice the steps", "", length=2),
    "quarter": Configuration("a quarter of the batch", settings=("data.pairs_share=0.25",)),
    "three_quarters": Configuration("three quarters of the batch", settings=("data.pairs_share=0.75",)),
    "weaker": Configuration("a third of the inversion's weight", settings=("losses.inversion=2.5",)),
    "stronger": Configuration("three times the inversion's weight", settings=("losses.inversion=22.5",)),
    "pseudo_labels": Configuration("with commitment, diversity, shaping, pseudo-labels", settings=PSEUDO_LABELS),
    "strong_pseudo_labels": Configuration(
        "the same with three times the weight", settings=(*PSEUDO_LABELS, "losses.pseudo_labels=7.5")
    ),
    "with_second_pass": Configuration(
        "with commitment, diversity, shaping, second pass",
        settings=(*with_statistics(*STATISTICS), "losses.second_pass=5"),
    ),
    "second_pass_labels": Configuration(
        "with these, second pass, pseudo-labels",
        settings=(*PSEUDO_LABELS, "losses.pseudo_labels=7.5", "losses.second_pass=5"),
    ),
    "bridge": Configuration(
        "with commitment, diversity, shaping, a bridge", settings=with_statistics(*STATISTICS), trial="bridge"
    ),
    "asked": Configuration(
        "the withheld encoder's codes of the speech itself", settings=with_statistics(*STATISTICS), trial="asked"
    ),
    "commitment": Configuration("with commitment", settings=with_statistics("commitment")),
    "diversity": Configuration("with diversity", settings=with_statistics("diversity")),
    "shaping": Configuration("with shaping", settings=with_statistics("shaping")),
}
SOUND = ("mel", "estoi", "speaker_resemblyzer", "speaker_ecapa")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for pairs, runs, figures and tables")
    parser.add_argument("--speech", required=True, type=Path, help="labelled speech")
    parser.add_argument("--wavs", required=True, type=Path, help="its train split as files")
    parser.add_argument("--unseen", required=True, nargs="+", type=named, metavar="NAME=PATH", help="to measure with")
    parser.add_argument("--model-dir", type=Path, default=DEMO / "release", help="default: the demo's release")
    parser.add_argument(
        "--withheld", type=Path, default=DEMO / "withheld_encoder.safetensors", help="default: the demo's"
    )
    parser.add_argument("--hours", type=float, default=10.0, help="of pairs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="of a run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each configuration (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=CONFIGURATIONS, default=[*CONFIGURATIONS], metavar="NAME", help="default: all"
    )
    parser.add_argument("--side-by-side", type=int, default=5, help="runs at a time on a GPU (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=48, help="of each set, to judge the sound (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=12, help="judges at a time for each set (default: %(default)s)")
    parser.add_argument("--generate", default="", metavar="OPTIONS", help="more for stand_in/generate_pairs.py")
    parser.add_argument("--measure", default="", metavar="OPTIONS", help="more for stand_in/measure_codes.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run, such as batch_size=4")
    options = parser.parse_intermixed_args(argv)
    return experiment_status(lambda: compare(options), f"repeat the command to continue {options.out}")


def compare(options: argparse.Namespace) -> int:
    for name in ("out", "speech", "wavs", "model_dir", "withheld"):
        setattr(options, name, getattr(options, name).resolve())
    options.only = [name for name in CONFIGURATIONS if name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    codes = encode_speech(options, "withheld", options.withheld)
    speak_all(options, codes)
    train_all(options)
    found = measure(options, codes)
    tables = described(options, *found)
    (options.out / "results.md").write_text(tables, encoding="utf-8")
    print(tables)
    return 0


def encode_speech(options: argparse.Namespace, name: str, encoder: Path, gpu: str = "") -> Path:
    """The codes of all speech by an encoder: a folder of stand_in/code_statistics.py."""
    run, codes = options.out / f"by_{name}", options.out / f"codes_{name}"
    if not (codes / "predictability.json").exists():
        run.mkdir(exist_ok=True)
        for link, target in (("release", options.model_dir), ("encoder.safetensors", encoder)):
            (run / link).unlink(missing_ok=True)
            (run / link).symlink_to(target)
        command = ("-m", "experiments.stand_in.code_statistics", str(options.speech), str(run), str(codes))
        run_shown(*command, log=options.out / f"{codes.name}.txt", environment=only(gpu))
    return codes


def speak_all(options: argparse.Namespace, codes: Path) -> None:
    wanted = {CONFIGURATIONS[name].pairs for name in options.only} - {""}

    def speak(name: str, gpu: str) -> None:
        generate(options, name, SETS[name], codes, gpu)

    on_gpus(speak, sorted(wanted, key=list(SETS).index), at_once=2)


def generate(options: argparse.Namespace, name: str, spoken: SpokenSet, codes: Path, gpu: str, seed: int = 0) -> None:
    """Speaks a set of pairs, unless it is there."""
    folder = options.out / "spoken" / name
    done = folder.with_suffix(".done")
    if done.exists():
        return
    for shard in folder.glob("*.safetensors"):  # of a run that was stopped
        shard.unlink()
    prompts = ("--prompts", str(codes)) if spoken.prompts else ()
    how = ("--hours", str(options.hours * spoken.share), "--seed", str(seed), *options.generate.split())
    release = ("--model-dir", str(options.model_dir))
    command = ("-m", "experiments.stand_in.generate_pairs", str(folder), *release, *prompts, *spoken.options, *how)
    folder.parent.mkdir(exist_ok=True)
    run_shown(*command, log=folder.with_suffix(".txt"), environment=only(gpu))
    done.touch()
    print(f"{name}: spoken", flush=True)


def train_all(options: argparse.Namespace) -> None:
    """Trains every configuration with every seed. A second round begins when the first one's encoder is there."""
    runs = [(name, seed) for name in options.only for seed in range(options.seeds) if name != SECOND_ROUND]
    if SECOND_ROUND in options.only:
        if BASE not in options.only:
            raise ExperimentError(f"--only {SECOND_ROUND} needs {BASE} too: its encoder makes the prompts")
        # behind the base, which are the first runs, and not last: it speaks before it trains
        place = max(options.seeds, len(runs) // 2)
        runs[place:place] = [(SECOND_ROUND, seed) for seed in range(options.seeds)]
    ended = {each: Event() for each in runs}

    def train_one(each: tuple[str, int], gpu: str) -> str:
        name, seed = each
        try:
            pairs = [CONFIGURATIONS[name].pairs]
            if name == SECOND_ROUND:
                ended[BASE, seed].wait()
                pairs.append(speak_again(options, seed, gpu))
            return train(described_run(options, name, seed, pairs), gpu, options.side_by_side + 1)
        except ExperimentError as error:
            return str(error)
        finally:
            ended[each].set()

    raise_failures(on_gpus(train_one, runs, options.side_by_side))


def speak_again(options: argparse.Namespace, seed: int, gpu: str) -> str:
    """Pairs of all speakers in a second round, whose prompts are by the first round's encoder. Returns their name."""
    name = f"second_round_{seed}"
    codes = encode_speech(options, name, options.out / f"{BASE}_{seed}" / "encoder.safetensors", gpu)
    generate(options, name, SETS[ALL], codes, gpu, seed=1 + seed)
    return name


def described_run(options: argparse.Namespace, name: str, seed: int, pairs: Sequence[str]) -> Run:
    configuration = CONFIGURATIONS[name]
    steps = configuration.length * options.steps
    common = (f"model_dir={options.model_dir}", f"data.train={options.wavs}", f"seed={seed}", f"steps={steps}")
    once = (f"validate_every={steps}", f"save_every={steps}", "keep=1")
    spoken = ", ".join(str(options.out / "spoken" / each) for each in pairs)
    with_pairs = (*WITH_PAIRS, f"data.pairs=[{spoken}]") if any(pairs) else ()
    settings = (*common, *once, *with_pairs, *configuration.settings, *options.overrides)
    program = training_program(configuration.trial, options.withheld)
    return Run(options.out / f"{name}_{seed}", CONFIG, settings, program)


def measure(options: argparse.Namespace, codes: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What measure_codes.py found, and by name of a set what evaluate_encoder.py found."""
    runs = [f"{name}_{seed}" for name in options.only for seed in range(options.seeds)]
    encoders = [f"{name}={options.out / name / 'encoder.safetensors'}" for name in runs]
    release, figures = ("--model-dir", str(options.model_dir)), options.out / "codes.json"
    sides = (*release, "--against", str(options.withheld), "--encoder", *encoders)
    of_codes = ("-m", "experiments.stand_in.measure_codes", str(figures), *sides, "--codes", str(codes))
    sets = ("--unseen", *(f"{name}={path}" for name, path in options.unseen), *options.measure.split())
    commands = [(of_codes + sets, figures)]
    judges = ("--without", "pesq", "words", "wavlm", "quality", "speed", "--speaker-model", str(DEMO / "speaker"))
    for name, path in options.unseen:
        into = options.out / f"{name}.json"
        how = ("--data", path, "--clips", str(options.clips), "--jobs", str(options.jobs), "--json", str(into))
        commands.append((("evaluate_encoder.py", *sides, *judges, *how), into))

    def run_one(each: tuple[tuple[str, ...], Path], gpu: str) -> None:
        command, into = each
        if not into.exists():
            run_shown(*command, log=into.with_suffix(".txt"), environment=only(gpu) | {"OMP_NUM_THREADS": "2"})

    on_gpus(run_one, commands, at_once=len(commands))
    read = [json.loads(into.read_text(encoding="utf-8")) for _, into in commands]
    return read[0], {name: figures for (name, _), figures in zip(options.unseen, read[1:], strict=True)}


def described(options: argparse.Namespace, codes: dict[str, Any], sound: dict[str, dict[str, Any]]) -> str:
    """All tables, in Markdown."""
    parts = []
    for name, found in codes.items():
        parts.append(f"{name}: {len(found['speakers'])} clips of {len(set(found['speakers']))} speakers.")
        parts.append(codes_table(options, found))
    for name, figures in sound.items():
        speakers = len({clip["speaker"] for clip in figures["clips"]})
        parts.append(f"{name}, sound: {len(figures['clips'])} clips of {speakers} speakers.")
        parts.append(sound_table(options, figures))
    parts.append(
        "The first row has 95 % intervals over speakers; every other one its difference from the first, paired by "
        "clip, with the interval. Each configuration is the mean of its seeds."
    )
    return "\n\n".join(parts) + "\n"


def seeds_of(options: argparse.Namespace, name: str) -> list[str]:
    return [f"{name}_{seed}" for seed in range(options.seeds)]


def codes_table(options: argparse.Namespace, found: dict[str, Any]) -> str:
    systems = {name: (CONFIGURATIONS[name].title, seeds_of(options, name)) for name in options.only}
    systems |= {
        WITHHELD: ("the withheld encoder", [WITHHELD]),
        SECOND_PASS: ("the same, of its own decoded sound", [SECOND_PASS]),
        UNTRAINED: ("untrained", [UNTRAINED]),
        OTHER_SPEAKER: ("another speaker's clip, by the withheld encoder", [OTHER_SPEAKER]),
    }
    base, speakers = next(iter(systems)), found["speakers"]
    shown = [metric for metric in METRICS if averaged(found, systems[base][1], metric.name) is not None]
    rows = []
    for name, (title, runs) in systems.items():
        cells = []
        for metric in shown:
            of_base, own = (averaged(found, each, metric.name) for each in (systems[base][1], runs))
            cells.append(cell(metric, own, None if name == base else of_base, found["frames"], speakers))
        if set(cells) != {"–"}:
            rows.append([title, *cells])
    return markdown(["training", *(f"{metric.title} {ARROWS[metric.better]}" for metric in shown)], rows)


def cell(
    metric: Metric, own: np.ndarray | None, base: np.ndarray | None, frames: Sequence[int], speakers: Sequence[str]
) -> str:
    """`value [interval]`, or `value, difference [interval]` where there is a base."""
    if own is None:
        return "–"
    if metric.name == "error_rate":  # the value, and the draws of the bootstrap
        return shown(metric, own[0], of_draws(own if base is None else own - base), base is not None)
    weights = np.ones(len(own)) if metric.name == "nearest" else np.array(frames, float)
    value = mean(own, weights, 0, speakers)
    changed = value if base is None else difference(own, base, weights, 0, speakers)
    return shown(metric, value.value, changed, base is not None)


def of_draws(values: np.ndarray) -> Interval:
    low, high = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values[0]), float(low), float(high))


def shown(metric: Metric, value: float, interval: Interval, compared: bool) -> str:
    if not compared:
        return with_interval(metric, interval)
    return f"{metric.show(value)}, {with_interval(metric, interval, signed=True)}"


def sound_table(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    systems = {name: (CONFIGURATIONS[name].title, seeds_of(options, name)) for name in options.only}
    systems |= {"against": ("the withheld encoder", ["against"]), "untrained": ("untrained", ["untrained"])}
    base = next(iter(systems))
    metrics = [Metric(**figures["metrics"][name]) for name in SOUND if name in figures["metrics"]]
    rows = []
    for name, (title, runs) in systems.items():
        cells = []
        for metric in metrics:
            own, of_base, weights, speakers = common_clips(figures, runs, systems[base][1], metric.name)
            if not len(own):
                cells.append("–")
                continue
            value = mean(own, weights, 0, speakers)
            changed = value if name == base else difference(own, of_base, weights, 0, speakers)
            cells.append(shown(metric, value.value, changed, name != base))
        rows.append([title, *cells])
    return markdown(["training", *(f"{metric.title} {ARROWS[metric.better]}" for metric in metrics)], rows)


def common_clips(
    figures: dict[str, Any], runs: Sequence[str], base: Sequence[str], metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Scores of two configurations, each the mean of its seeds, of the clips that all have a score of; the clips'
    weights and speakers."""
    own, of_base, weights, speakers = [], [], [], []
    for clip in figures["clips"]:
        scores = [[clip["scores"].get(run, {}).get(metric) for run in each] for each in (runs, base)]
        if None not in scores[0] + scores[1]:
            own.append(np.mean(scores[0]))
            of_base.append(np.mean(scores[1]))
            weights.append(clip["weights"].get(metric, 1))
            speakers.append(clip["speaker"])
    return np.array(own), np.array(of_base), np.array(weights, float), speakers


if __name__ == "__main__":
    sys.exit(main())
