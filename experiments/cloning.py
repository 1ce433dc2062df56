"""How well does the language model clone, with each of several encoders? Asks the unmodified server, on a CPU.

    python -m experiments.cloning OUT --encoder withheld=data/demo/withheld_encoder.safetensors v3=FILE
    python -m experiments.cloning OUT --data SPEECH --per-clip 2 --encoder ...        # other clips than the demo's

For each encoder the server gets a copy of the release with it, and speaks `--texts` in the voices of `--data`; all get
the same clips and texts. The release's preset voices speak them, too. Then evaluate_cloning.py judges: OUT/clones and
OUT/presets have its tables, figures and pages. The last lines compare the first encoder with what the stand-in is meant
to reach. Repeat the command to resume, also with more encoders.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from codec.config import read_params
from evaluation.cloning.measure import JUDGES
from experiments.cpu_server.environment import add_server_option, checked_environment
from experiments.cpu_server.server import CpuServer, ServerError
from experiments.random_release import linked_copy
from experiments.runs import DEMO, ExperimentError, experiment_status, named, run_shown

NOWHERE = "http://127.0.0.1:9"  # nobody answers: everything has been spoken
TARGETS = (  # folder, metric, limit, whether the metric is to be at most that
    ("presets", "wer", 0.15, True),
    ("clones", "wer", 0.25, True),
    ("clones", "nearest_resemblyzer", 0.70, False),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--encoder", nargs="+", type=named, required=True, metavar="NAME=FILE", help="the first one is the main one"
    )
    parser.add_argument(
        "--release", type=Path, default=DEMO / "release", help="without an encoder (default: the demo's)"
    )
    parser.add_argument("--data", nargs="+", default=[str(DEMO / "unseen.parquet")], help="default: the demo's")
    parser.add_argument("--texts", type=Path, default=DEMO / "sentences.txt", help="default: the demo's")
    parser.add_argument("--clips", type=int, default=0, help="only so many clips (default: all)")
    parser.add_argument("--per-clip", type=int, default=2, help="texts for each clip (default: %(default)s)")
    parser.add_argument("--preset-texts", type=int, default=6, help="for each preset voice (default: %(default)s)")
    parser.add_argument("--presets", type=int, default=4, help="so many of the preset voices (default: %(default)s)")
    parser.add_argument("--whisper", default="base", help="name or file (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="judges at a time (default: %(default)s)")
    add_server_option(parser)
    options = parser.parse_args()
    return experiment_status(lambda: measure(options), f"repeat the command to resume {options.out}")


def measure(options: argparse.Namespace) -> int:
    encoders = {name: Path(file) for name, file in options.encoder}
    if missing := [str(file) for file in encoders.values() if not file.is_file()]:
        raise ExperimentError(f"--encoder: {missing[0]} is no file")
    voices = sorted(read_params(options.release)["multimodal"]["audio_tokenizer_args"].get("voice") or {})
    voices = [voices[i * len(voices) // options.presets] for i in range(min(options.presets, len(voices)))]
    for number, (name, file) in enumerate(encoders.items()):
        speak(options, name, file, voices if number == 0 else [])
    found = {"clones": judge(options, "clones", *_servers(encoders), *clips(options))}
    if voices:
        found["presets"] = judge(options, "presets", "--server", NOWHERE, *presets(options, voices))
    print_targets(found, next(iter(encoders)), voices)
    return 0


def _servers(encoders: dict[str, Path]) -> list[str]:
    return ["--server", *(f"{name}={NOWHERE}" for name in encoders)]


def clips(options: argparse.Namespace) -> list[str]:
    several = ["--clips", str(options.clips), "--per-clip", str(options.per_clip)]
    return ["--data", *options.data, "--texts", str(options.texts), *several]


def presets(options: argparse.Namespace, voices: list[str]) -> list[str]:
    return ["--voice", *voices, "--texts", str(options.texts), "--clips", str(options.preset_texts)]


def speak(options: argparse.Namespace, name: str, encoder: Path, voices: list[str]) -> None:
    """Lets the server speak with an encoder, and with the preset voices, unless that was finished before."""
    done = options.out / f"{name}.spoken"
    if done.exists():
        return
    folder = options.out / "releases" / name
    if not folder.exists():
        linked_copy(options.release, folder)
    run_shown("inject_encoder.py", "--model-dir", str(folder), "--encoder", str(encoder.resolve()))
    environment, log = checked_environment(options.venv), options.out / "logs" / name
    try:
        with CpuServer(environment, folder.resolve(), log.resolve()) as server:
            silent = ["--without", *JUDGES]
            if voices:
                spoken = ["--server", server.url, *presets(options, voices)]
                run_shown("evaluate_cloning.py", "--output", str(options.out / "presets"), *spoken, *silent)
            spoken = ["--server", f"{name}={server.url}", *clips(options)]
            run_shown("evaluate_cloning.py", "--output", str(options.out / "clones"), *spoken, *silent)
    except ServerError as error:
        raise ExperimentError(str(error)) from error
    done.touch()


def judge(options: argparse.Namespace, folder: str, *spoken: str) -> dict[str, Any]:
    """The figures.json of what was spoken into a folder."""
    output = options.out / folder
    judges = ("--whisper", options.whisper, "--jobs", str(options.jobs), "--without", "ecapa", "wavlm")
    run_shown("evaluate_cloning.py", "--output", str(output), *spoken, *judges)
    figures: dict[str, Any] = json.loads((output / "figures.json").read_text(encoding="utf-8"))
    return figures


def print_targets(found: dict[str, Any], main: str, voices: list[str]) -> None:
    for folder, metric, limit, at_most in TARGETS:
        if folder not in found:
            continue
        totals = found[folder]["totals"]
        systems = voices if folder == "presets" else [main]
        values = [totals[system][metric]["value"] for system in systems]
        value = sum(values) / len(values)  # every voice spoke the same texts
        met = value <= limit if at_most else value >= limit
        sign = "at most" if at_most else "at least"
        print(f"{folder}, {metric}: {value:.1%}; target {sign} {limit:.0%}: {'reached' if met else 'NOT reached'}")


if __name__ == "__main__":
    sys.exit(main())
