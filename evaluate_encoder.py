"""Measures an encoder on speech, in the server's arithmetic, and writes a report to listen to.

    python evaluate_encoder.py                                    # the encoder of $MODEL_DIR, on the demo's speech
    python evaluate_encoder.py --encoder FILE --data SOURCE       # another encoder, on other speech (docs/data.md)
    python evaluate_encoder.py --encoder FILE --against FILE      # compared with another encoder
    python evaluate_encoder.py --encoder new=FILE old=FILE --against FILE    # two encoders, side by side
    python evaluate_encoder.py --encoder FILE --pairs PAIRS       # also on pairs that it was not trained on
    python evaluate_encoder.py --report DIR --json FILE           # also write DIR/index.html, and all figures
    python evaluate_encoder.py --require 'pesq>=2.5' --require 'recovered.mel>=0.95'

Every clip is encoded to hard codes and decoded in bf16, one at a time. Exit status: 0, or 1 if a requirement is not
met, or 2 for an error. If a judge's library or weights are missing, the judge is left out and the output says so. If a
judge cannot score a clip, the output names the clip, and the other judges score it.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from codec import Codec
from data import DataError
from evaluation.arguments import add_judge_options, judge_options
from evaluation.judges.available import NAMES
from evaluation.measure import ExtraSystem, Options, measure, named_encoders
from evaluation.report.charts import Chart
from evaluation.report.training_curves import read_curves
from evaluation.requirement import read_requirement, unmet
from evaluation.results import Results
from evaluation.table import as_text, speed_lines
from system.arguments import seed, whole_number
from system.command import exit_status, model_folder
from system.environment import expand_home

DEMO_SPEECH = Path(__file__).parent / "data" / "demo" / "unseen.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_parser(__doc__).parse_args(argv))


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line. Other programs may add options to it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument(
        "--encoder",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="one or several encoder.safetensors; requirements and the report are about the first one (default: the "
        "release's own encoder)",
    )
    parser.add_argument(
        "--against", type=expand_home, metavar="FILE", help="the encoder to compare with, such as a withheld one"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[str(DEMO_SPEECH)],
        metavar="SOURCE",
        help="speech: folders, tables or hub names, or '{path: TABLE, text: COLUMN}' (default: the demo's)",
    )
    parser.add_argument(
        "--pairs", nargs="+", default=[], metavar="PATH", help="files of speak_pairs.py that were not trained on"
    )
    parser.add_argument(
        "--clips", type=whole_number, default=0, metavar="N", help="only N clips, spread over all (default: all)"
    )
    parser.add_argument("--json", type=expand_home, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--report", type=expand_home, metavar="DIR", help="write a page to listen to into this folder")
    parser.add_argument("--shown", type=whole_number, default=6, metavar="N", help="clips in the report (default: 6)")
    parser.add_argument(
        "--metrics", type=expand_home, metavar="FILE", help="a run's metrics.jsonl; the report shows its curves"
    )
    add_judge_options(parser, (*NAMES, "speed"))
    parser.add_argument("--seed", type=seed, default=0, help="for intervals and the untrained encoder (default: 0)")
    return parser


def run(arguments: argparse.Namespace, extra: Sequence[ExtraSystem] = ()) -> int:
    """Measures, prints and writes what the arguments ask for. `extra` systems are measured beside the encoders. Returns
    the exit status."""
    return exit_status(
        lambda: measure_and_write(arguments, extra), "nothing was written", "the evaluation is not complete"
    )


def measure_and_write(arguments: argparse.Namespace, extra: Sequence[ExtraSystem]) -> int:
    requirements = [read_requirement(text) for text in arguments.require]
    check_outputs(arguments)
    write_report = report_writer() if arguments.report else None
    curves = read_curves(Path(arguments.metrics)) if arguments.metrics else []
    results, codec = measure(measure_options(arguments, extra), extra)
    print("\n".join([as_text(results), *speed_lines(results.speed)]))
    if arguments.json:
        results.write(Path(arguments.json))
    if write_report:
        print(f"report: {write_report(Path(arguments.report), results, codec, arguments.shown, curves)}")
    return unmet(requirements, results.figures())


def measure_options(arguments: argparse.Namespace, extra: Sequence[ExtraSystem]) -> Options:
    return Options(
        release=model_folder(arguments.model_dir),
        encoders=named_encoders(arguments.encoder, [system.name for system in extra]),
        data=arguments.data,
        against=arguments.against,
        clips=arguments.clips,
        **judge_options(arguments),
        pairs=arguments.pairs,
    )


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raises DataError if the outputs could not be written, before anything is measured."""
    if arguments.json and not Path(arguments.json).parent.is_dir():
        raise DataError(f"--json: {Path(arguments.json).parent} is not a folder: make it first")
    if arguments.json and Path(arguments.json).is_dir():
        raise DataError(f"--json: {arguments.json} is a folder: name a file in it")
    for folder in (Path(arguments.report), *Path(arguments.report).parents) if arguments.report else ():
        if folder.exists() and not folder.is_dir():
            raise DataError(f"--report: {folder} is not a folder: name a folder, which need not exist yet")


def report_writer() -> Callable[[Path, Results, Codec, int, Sequence[Chart]], Path]:
    """Imports the report, which needs matplotlib; measuring does not. Raises DataError before anything is measured."""
    try:
        from evaluation.report.page import write_report
    except ImportError as error:
        raise DataError(f"--report: {error.msg}: pip install -r requirements-eval.txt") from error
    return write_report


if __name__ == "__main__":
    sys.exit(main())
