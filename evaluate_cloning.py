"""Measures cloning through a running server: new sentences in the voices of clips, judged, and a page to listen to.

    python evaluate_cloning.py --data SPEECH --output DIR                 # clips with transcripts; http://127.0.0.1:8000
    python evaluate_cloning.py --data SPEECH --texts FILE --output DIR    # the sentences of a file, one a line
    python evaluate_cloning.py --list meta.lst --output DIR               # a Seed-TTS-eval list
    python evaluate_cloning.py --list meta.lst --output DIR --server new=http://gpu1:8000 old=http://gpu2:8000
    python evaluate_cloning.py --list meta.lst --output DIR --voice neutral_male anna=anna.wav    # named voices, too
    python evaluate_cloning.py ... --require 'wer<=0.1' --require 'nearest_resemblyzer>=0.9'

The server holds the encoder: servers side by side compare encoders. DIR gets index.html, figures.json, and every
spoken text as a wav file. Repeat the command to resume: what was spoken and judged is kept. For another encoder, give
the server another NAME or name another DIR. Exit status: 0, or 1 if a requirement is not met, or 2 for an error.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data import DataError
from evaluation.arguments import add_judge_options, judge_options
from evaluation.cloning.measure import JUDGES, Options, measure_cloning
from evaluation.cloning.results import CloningResults, as_text
from evaluation.cloning.speaking import DEFAULT_URL
from evaluation.requirement import read_requirement, unmet
from system.arguments import positive, positive_number, seed, whole_number
from system.command import exit_status


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    kept = f"what was spoken and judged is in {arguments.output}: repeat the command to resume"
    return exit_status(lambda: run(arguments), kept, kept)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder for everything that is written")
    parser.add_argument(
        "--server",
        nargs="+",
        default=[DEFAULT_URL],
        metavar="[NAME=]URL",
        help=f"one or several servers; the others are compared with the first one (default: {DEFAULT_URL})",
    )
    parser.add_argument(
        "--voice",
        nargs="+",
        default=[],
        metavar="NAME[=CLIP]",
        help="named voices of each server, which speak the same texts; CLIP is what the voice is compared with",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--list", default="", metavar="FILE", help="lines of name|prompt text|prompt clip|text")
    prompts.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="reference clips: folders, tables or hub names, or '{path: TABLE, text: COLUMN}'",
    )
    parser.add_argument(
        "--texts",
        default="",
        metavar="FILE",
        help="sentences, one a line (default: what other clips of --data say)",
    )
    parser.add_argument(
        "--per-clip", type=positive, default=1, metavar="N", help="texts for each clip of --data (default: 1)"
    )
    parser.add_argument(
        "--clips",
        type=whole_number,
        default=0,
        metavar="N",
        help="only N clips or lines (default: all)",
    )
    parser.add_argument(
        "--longest",
        type=positive_number,
        metavar="SECONDS",
        help="where endless speech is cut (default: the server's)",
    )
    parser.add_argument("--shown", type=whole_number, default=12, metavar="N", help="texts on the page (default: 12)")
    add_judge_options(parser, JUDGES)
    parser.add_argument("--seed", type=seed, default=0, help="for intervals (default: 0)")
    arguments = parser.parse_args(argv)
    if arguments.list and (arguments.texts or arguments.per_clip > 1):
        parser.error("--list has the texts: leave out --texts and --per-clip")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    requirements = [read_requirement(text) for text in arguments.require]
    folder = Path(arguments.output)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--output: {folder} is not a folder: name a folder, which need not exist yet")
    write_page = page_writer()
    results = measure_cloning(options(arguments, folder))
    print(as_text(results))
    results.write(folder / "figures.json")
    if write_page:
        print(f"page: {write_page(folder, results, arguments.shown)}")
    for sentence in results.gone.values():
        print(f"error: {sentence}; what it spoke is kept: restart it and repeat the command", file=sys.stderr)
    status = unmet(requirements, results.figures())
    return 2 if results.gone else status


def options(arguments: argparse.Namespace, folder: Path) -> Options:
    return Options(
        servers=arguments.server,
        voices=arguments.voice,
        folder=folder,
        list_file=arguments.list,
        data=arguments.data,
        texts_file=arguments.texts,
        per_clip=arguments.per_clip,
        limit=arguments.clips,
        longest=arguments.longest,
        **judge_options(arguments),
    )


def page_writer() -> Callable[[Path, CloningResults, int], Path] | None:
    """Imports the page, which needs matplotlib; judging does not. None, with a sentence, if that is missing."""
    try:
        from evaluation.cloning.page import write_page_of
    except ImportError as error:
        print(f"note: no page to listen to: {error.msg}: pip install -r requirements-eval.txt")
        return None
    return write_page_of


if __name__ == "__main__":
    sys.exit(main())
