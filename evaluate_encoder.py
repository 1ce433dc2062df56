"""Measures an encoder on speech, computed as the server computes it, and writes a report one can listen to.

    python evaluate_encoder.py                                    # the encoder of $MODEL_DIR, on the demo's speech
    python evaluate_encoder.py --encoder FILE --data SPEECH       # another one, on a folder or parquet files
    python evaluate_encoder.py --encoder FILE --against FILE      # and how much of another one's quality it has
    python evaluate_encoder.py --encoder new=FILE old=FILE --against FILE                         # both, side by side
    python evaluate_encoder.py --report DIR --json FILE           # DIR/index.html, and every figure
    python evaluate_encoder.py --require 'pesq>=2.5' --require 'recovered.mel>=0.95'

Every clip is encoded to hard codes and decoded in bf16, one at a time. Exit status 0; 1 where a requirement does not
hold; 2 for an error. A measure whose library or weights are not there is named and left out; a clip that one of them
cannot score is named, and scored by the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from codec import Codec, ReleaseError, load_release
from codec.checkpoint import read_training, with_encoder
from data import DataError
from data.reference import SAMPLE_RATE
from evaluation import add_agreement, compare, read_speech
from evaluation.codes import read_presets
from evaluation.descent import Descent
from evaluation.judges.available import NAMES
from evaluation.judges.judge import first_line
from evaluation.judges.pool import open_jury
from evaluation.provenance import machine, release_files, sha256, versions
from evaluation.report.charts import Chart
from evaluation.report.training_curves import read_curves
from evaluation.requirement import read_requirement
from evaluation.result import Evaluation
from evaluation.scoring import ORIGINAL, Scores, add_verdicts, score_encoding, unscored_originals
from evaluation.speech import RESAMPLER, Problem, Speech, spread
from evaluation.speed import measure_speed
from evaluation.statistics import DRAWS, resampled
from evaluation.table import as_text, speed_lines
from losses.mel import RESOLUTIONS
from losses.shaping import voices_target
from losses.speaker import PUBLISHED, SpeakerDistance, SpeakerModelError
from system.command import exit_status, model_folder
from system.environment import from_environment

UNNAMED = "encoder"
RESERVED = (ORIGINAL, "against", "untrained", "descent", "target")  # what else a table or a histogram is about
MOST_JOBS = 16  # by default
DEMO_SPEECH = Path(__file__).parent / "data" / "demo" / "unseen.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    return exit_status(lambda: run(arguments), "nothing was written", "the evaluation is not complete")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument(
        "--encoder",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="one encoder.safetensors or several; requirements and the report are about the first (default: the "
        "release's own encoder)",
    )
    parser.add_argument("--against", metavar="FILE", help="the encoder to compare with, such as a withheld one")
    parser.add_argument(
        "--data", nargs="+", default=[str(DEMO_SPEECH)], metavar="PATH", help="folders of audio, parquet files"
    )
    parser.add_argument("--clips", type=count, default=0, metavar="N", help="only N clips, spread over all")
    parser.add_argument(
        "--jobs", type=jobs, default=default_jobs(), metavar="N", help="processes of judges (default: %(default)s here)"
    )
    parser.add_argument("--json", metavar="FILE", help="write every figure here")
    parser.add_argument("--report", metavar="DIR", help="write a page to listen to here")
    parser.add_argument("--shown", type=count, default=6, metavar="N", help="clips to hear in the report (default: 6)")
    parser.add_argument("--metrics", metavar="FILE", help="a run's metrics.jsonl: its curves go into the report")
    parser.add_argument("--require", action="append", default=[], metavar="METRIC>=VALUE", help="what has to hold")
    leave = (*NAMES, "speed")
    parser.add_argument("--without", nargs="+", default=[], choices=leave, metavar="JUDGE", help=", ".join(leave))
    parser.add_argument("--whisper", default="base", metavar="MODEL", help="name or file (default: base)")
    parser.add_argument("--language", default="en", help="what is spoken (default: en)")
    parser.add_argument("--speaker-model", default="", metavar="SOURCE", help="ECAPA-TDNN: hub name or folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--descent",
        type=count,
        default=0,
        metavar="STEPS",
        help="also codes found by gradient descent, without an encoder",
    )
    parser.add_argument(
        "--descent-clips", type=count, default=0, metavar="N", help="only of N clips, spread over all (default: of all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of intervals and of the untrained encoder (default: 0)")
    return parser.parse_args(argv)


def count(text: str) -> int:
    """A whole number of clips, 0 or more."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def jobs(text: str) -> int:
    """A number of processes, 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def default_jobs() -> int:
    """One for every second core that this process may use, up to MOST_JOBS: each has the judges' networks in memory,
    about 1 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_JOBS, max(1, cores // 2))


def run(arguments: argparse.Namespace) -> int:
    requirements = [read_requirement(text) for text in arguments.require]
    check_outputs(arguments)
    write_report = report_writer() if arguments.report else None
    curves = read_curves(Path(arguments.metrics)) if arguments.metrics else []
    result, codec = measure(arguments)
    print("\n".join([as_text(result), *speed_lines(result.speed)]))
    if arguments.json:
        path = Path(arguments.json)
        path.write_text(json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        print(f"figures: {path}")
    if write_report:
        print(f"report: {write_report(Path(arguments.report), result, codec, arguments.shown, curves)}")
    unmet = [reason for reason in (each.unmet(result.figures()) for each in requirements) if reason]
    for reason in unmet:
        print(f"required {reason}", file=sys.stderr)
    return 1 if unmet else 0


def check_outputs(arguments: argparse.Namespace) -> None:
    """Raises DataError for paths that could not be written to when all is measured."""
    if arguments.json and not Path(arguments.json).parent.is_dir():
        raise DataError(f"--json: {Path(arguments.json).parent} is not a folder: make it first")
    if arguments.json and Path(arguments.json).is_dir():
        raise DataError(f"--json: {arguments.json} is a folder: name a file in it")
    for folder in (Path(arguments.report), *Path(arguments.report).parents) if arguments.report else ():
        if folder.exists() and not folder.is_dir():
            raise DataError(f"--report: {folder} is not a folder: name one, which is made where it is missing")


def report_writer() -> Callable[[Path, Evaluation, Codec, int, Sequence[Chart]], Path]:
    """The report needs matplotlib, which measuring does not. Raises DataError before anything is measured."""
    try:
        from evaluation.report.page import write_report
    except ImportError as error:
        raise DataError(f"--report: {error.msg}: pip install -r requirements-eval.txt") from error
    return write_report


def measure(arguments: argparse.Namespace) -> tuple[Evaluation, Codec]:
    """The evaluation, and the codec that was evaluated."""
    folder, cache = model_folder(arguments.model_dir), from_environment("HF_CACHE")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    files = named_encoders(arguments.encoder)
    codecs = {name: given_encoder(folder, file, device) for name, file in files.items()}
    codec = next(iter(codecs.values()))
    other = given_encoder(folder, arguments.against, device) if arguments.against else None
    about = {
        name: {"file": file, "sha256": sha256(Path(file)), **read_training(Path(file))}
        for name, file in {**files, "against": arguments.against}.items()
        if file
    }
    speech, unreadable, notes = read_speech(arguments.data, cache, arguments.clips)
    voices = folder / "voice_embedding"
    presets, target = read_presets(voices), voices_target(codec, voices)
    descend = descent(codec, arguments, cache) if arguments.descent else None  # first, as it may lack its network

    def encoded(codec: Codec, name: str, codes: Sequence[Tensor | None] | None = None) -> Scores:
        return score_encoding(codec, speech, name=name, presets=presets, target=target, codes=codes, progress=progress)

    with open_jury(
        [name for name in NAMES if name not in arguments.without],
        arguments.jobs,
        whisper=arguments.whisper,
        language=arguments.language,
        speaker_model=arguments.speaker_model,
        cache=cache,
        device=device,
    ) as jury:
        result = Evaluation(
            settings=settings(arguments, folder, files, device, speech),
            speech=speech,
            encoders=[encoded(each, name) for name, each in codecs.items()],
            originals=unscored_originals(speech),
            target=target,
            presets=presets,
            levels=codec.config.acoustic_codebook_size,
            missing=dict(jury.missing),
            problems=unreadable,
            notes=notes,
            about=about,
        )
        if descend:
            codes, without = descended(descend, speech, arguments.descent_clips)
            result.problems += without
            if any(found is not None for found in codes):
                result.descent = encoded(codec, "descent", codes)
        if other is not None:
            result.other = encoded(other, "against")
            result.untrained = encoded(untrained_encoder(folder, device, arguments.seed), "untrained")
        add_verdicts(codec, [*result.systems, result.originals], jury, progress)
    if result.other is not None and result.untrained is not None:
        for scores in result.systems:
            add_agreement(codec, scores, result.other)
        for scores in result.judged:
            compared = compare(scores, result.other, result.untrained, arguments.seed)
            result.comparisons[scores.name] = compared
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for kind in devices if "speed" not in arguments.without else ():
        try:
            result.speed[kind] = measure_speed(codec, speech[0], torch.device(kind))
        except RuntimeError as error:  # too little memory for another codec beside the judges
            result.missing[f"speed on {kind}"] = first_line(error)
    return result, codec


def progress(clips: Iterable[Any], work: str, count: int) -> Iterable[Any]:
    return tqdm(clips, desc=work, total=count, disable=not sys.stderr.isatty())


def named_encoders(given: Sequence[str]) -> dict[str, str | None]:
    """Name -> file, of NAME=FILE or FILE alone; None for the release's own encoder."""
    named: dict[str, str | None] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or Path(text).exists():
            name, file = UNNAMED, text
        if not re.fullmatch(r"[\w.-]+", name) or name in RESERVED:
            raise DataError(f"--encoder {text}: {name!r} cannot be an encoder's name: give another one, NAME=FILE")
        if name in named:
            raise DataError(f"--encoder {text}: another one is called {name!r} too: give each a name, NAME=FILE")
        named[name] = file
    return named or {UNNAMED: None}


def given_encoder(folder: Path, file: str | None, device: torch.device) -> Codec:
    """The release with the encoder of a file, or with its own."""
    codec = load_release(folder, device=device)
    if file:
        return with_encoder(codec, Path(file))
    if not codec.has_encoder:
        raise ReleaseError(f"{folder} has no encoder: give one with --encoder, or inject it (inject_encoder.py)")
    return codec


def untrained_encoder(folder: Path, device: torch.device, seed: int) -> Codec:
    """The release with an encoder that knows nothing of speech, the 0 of what is recovered: its layers mirror the
    decoder's, or are random. Training starts nearer, as the decoder's inverse (`init`)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codec = load_release(folder, torch.float32).with_new_encoder("mirror")
    return codec.to(device, torch.bfloat16).requires_grad_(False)


def descent(codec: Codec, arguments: argparse.Namespace, cache: str) -> Descent:
    """With the speaker's loss where the network that judges it can be had."""
    if "ecapa" in arguments.without:
        return Descent(codec, steps=arguments.descent, seed=arguments.seed)
    try:
        speaker = SpeakerDistance(arguments.speaker_model or PUBLISHED, codec.sample_rate, cache)
    except SpeakerModelError as error:
        raise DataError(f"--descent: {error}; --without ecapa descends without it") from error
    return Descent(codec, speaker, arguments.descent, arguments.seed)


def descended(descent: Descent, speech: Sequence[Speech], limit: int) -> tuple[list[Tensor | None], list[Problem]]:
    """Codes by clip, None for those that have none, and of those within the limit why."""
    chosen = spread(limit or len(speech), len(speech))
    short = [i for i in chosen if len(speech[i].waveform) < descent.shortest]
    reason = f"too short for its losses, expected {descent.shortest} samples or more"
    problems = [Problem(speech[i].name, "clip", reason, "descent") for i in short]
    chosen = [i for i in chosen if i not in short]
    found, failed = descent.find([speech[i].waveform for i in chosen], progress)
    problems += [Problem(speech[chosen[k]].name, "clip", reason, "descent") for k, reason in failed.items()]
    by_clip = {chosen[k]: codes for k, codes in found.items()}
    return [by_clip.get(i) for i in range(len(speech))], problems


def settings(
    arguments: argparse.Namespace,
    folder: Path,
    files: Mapping[str, str | None],
    device: torch.device,
    speech: Sequence[Speech],
) -> dict[str, Any]:
    """What changes scores."""
    return {
        "release": str(folder),
        "release_files": release_files(folder),
        "encoder": next(iter(files.values())) or f"the encoder of {folder}",
        "encoders": [name if file is None else f"{name}: {file}" for name, file in files.items()],
        "against": str(arguments.against or ""),
        "data": list(arguments.data),
        "clips": arguments.clips or "all",
        "without": list(arguments.without),
        "descent_steps": arguments.descent,
        "descent_clips": arguments.descent_clips or "all",
        "arithmetic": f"bf16 on {device.type}, one clip at a time, hard codes",
        "machine": machine(device),
        "seed": arguments.seed,
        "bootstrap_draws": DRAWS,
        "bootstrap_over": resampled([clip.speaker for clip in speech]),
        "resampler": f"{RESAMPLER}, to {SAMPLE_RATE} Hz and from it; for ECAPA torchaudio's, for ESTOI pystoi's",
        "mel_resolutions": [list(resolution) for resolution in RESOLUTIONS],
        "whisper": arguments.whisper,
        "speaker_model": arguments.speaker_model or PUBLISHED,
        "language": arguments.language,
        "versions": versions(),
    }


if __name__ == "__main__":
    sys.exit(main())
