"""A release's own language model speaks: pairs of codes and text, from which an encoder learns to use the codes as the
language model does.

    python speak_pairs.py --hours 10                           # LibriTTS-R's texts, the preset voices, into runs/pairs
    python speak_pairs.py --texts texts.txt --language fr --voices fr_female fr_male
    python speak_pairs.py --prompts SPEECH                     # voices of clips, once the release has an encoder
    python speak_pairs.py --hours 100 --gpus 0 1 --processes 2 # two processes on each of two GPUs

Run it in the server's environment (requirements-serve.txt). It runs the first stage of vllm-omni's model, the language
model, with the server's own code, and keeps the codes; nothing installed is changed. `data.pairs` of train_encoder.py
takes the folder. Every text gets other noise. What is no speech is left out and counted. Files appear whole: repeat a
command to go on after a kill. Exit status: 0, or 2 for an error, with one sentence.
"""

from __future__ import annotations

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from system.signals import end_on_signals

    end_on_signals()

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from codec.checkpoint import codec_fingerprint, load_release
from data.clips import DataError
from data.pairs import shard_frames
from data.sources import open_clips
from data.speaking.engine import STAGE
from data.speaking.faults import REASONS
from data.speaking.plan import Plan, Task
from data.speaking.processes import Report, speak_in_processes
from data.speaking.texts_and_voices import choose_voices, read_texts
from system.arguments import positive, positive_number, seed
from system.command import exit_status, model_folder
from system.environment import expand_home, from_environment
from system.files import write_whole

DEFAULT_TEXTS = "mythicinfinity/libritts_r:train"


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    left = "the files written so far are whole; repeat the command to go on"
    return exit_status(lambda: speak(options), left, left)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", metavar="DIR", help="the release's folder (default: MODEL_DIR)")
    parser.add_argument("--out", type=expand_home, default="runs/pairs", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--texts",
        default=DEFAULT_TEXTS,
        metavar="SOURCE",
        help="a text file, a text a line; or speech with transcripts, also a table: '{path: TABLE, text: COLUMN}' "
        "(default: %(default)s)",
    )
    parser.add_argument("--language", default="en", help="the texts' language, noted in the pairs (default: en)")
    parser.add_argument("--voices", nargs="+", default=[], metavar="NAME", help="default: all voices of the release")
    parser.add_argument("--prompts", nargs="+", default=[], metavar="SOURCE", help="speech whose voices speak instead")
    parser.add_argument(
        "--hours", type=positive_number, help="speak so much; texts come again (default: every text once)"
    )
    parser.add_argument(
        "--cfg-alpha",
        type=positive_number,
        nargs="+",
        default=[1.2],
        metavar="A",
        help="guidance, or its range (default: 1.2)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of voices, texts' order and noise (default: 0)")
    parser.add_argument(
        "--max-seconds", type=positive_number, default=60.0, metavar="S", help="of a text's speech (default: 60)"
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        choices=REASONS,
        metavar="REASON",
        help=f"keep it too: {', '.join(REASONS)}",
    )
    parser.add_argument(
        "--max-word-errors",
        type=float,
        metavar="RATE",
        help="leave out speech of which Whisper gets more words wrong",
    )
    parser.add_argument(
        "--whisper", type=expand_home, default="base", metavar="MODEL", help="name or file (default: base)"
    )
    parser.add_argument("--gpus", nargs="+", default=[], metavar="N", help="GPUs to use (default: the first one)")
    parser.add_argument("--processes", type=positive, default=1, metavar="N", help="for each GPU (default: 1)")
    parser.add_argument(
        "--shard-texts", type=positive, default=1000, metavar="N", help="texts of a file (default: 1000)"
    )
    parser.add_argument(
        "--engine",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of vllm-omni's stage: enforce_eager=true",
    )
    return parser


def speak(options: argparse.Namespace) -> int:
    task = read_task(options)
    task.out.mkdir(parents=True, exist_ok=True)
    check_plan(task)
    spoken = sum(shard_frames(path) for path in sorted(task.out.glob("pairs_*.safetensors")))
    report = Report(spoken / task.config.frame_rate, options.hours)
    speak_in_processes(task, options.gpus, report)
    report.show(final=True)
    print(f"pairs: {task.out}\nnext: python train_encoder.py --config configs/v4.yaml data.pairs={task.out}")
    return 0


def read_task(options: argparse.Namespace) -> Task:
    folder = model_folder(options.model_dir)
    cache = from_environment("HF_CACHE")
    if len(options.cfg_alpha) > 2:
        raise DataError(f"--cfg-alpha has {len(options.cfg_alpha)} numbers, expected one, or the ends of a range")
    codec = load_release(folder)
    if options.prompts and not codec.has_encoder:
        raise DataError(f"--prompts: {folder} has no encoder for them yet: inject one with inject_encoder.py")
    plan = Plan(
        texts=read_texts(options.texts, cache),
        voices=() if options.prompts else choose_voices(folder, options.voices),
        prompts=len(open_clips(options.prompts, cache)) if options.prompts else 0,
        cfg_alpha=(min(options.cfg_alpha), max(options.cfg_alpha)),
        seed=options.seed,
        shard_jobs=options.shard_texts,
        repeat=options.hours is not None,
    )
    share = {"gpu_memory_utilization": round(0.85 / options.processes, 2)}
    return Task(
        release=folder,
        out=Path(options.out),
        plan=plan,
        config=codec.config,
        codec_fingerprint=codec_fingerprint(codec),
        language=options.language,
        prompts=tuple(options.prompts),
        cache=cache,
        stage=STAGE | share | engine_settings(options.engine),
        max_tokens=round(options.max_seconds * codec.frame_rate),
        keep=tuple(options.keep),
        max_word_errors=options.max_word_errors,
        whisper=options.whisper,
        processes=options.processes * max(1, len(options.gpus)),
    )


def engine_settings(given: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"--engine {text!r}: expected KEY=VALUE")
        try:
            settings[key] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(f"--engine {text!r}: the value is not valid YAML") from error
    return settings


def check_plan(task: Task) -> None:
    """Writes the plan's fingerprint, or compares it with the one that is there. Raises DataError if they differ."""
    path = task.out / "plan.json"
    mine = json.dumps({"plan": task.plan.fingerprint(), "codec_fingerprint": task.codec_fingerprint}) + "\n"
    if path.exists() and path.read_bytes() != mine.encode():
        other = "of other texts, voices, numbers or another release"
        if not any(task.out.glob("pairs_*.safetensors")):
            raise DataError(f"{path} is {other}, and no pairs are there: delete it, or name another folder with --out")
        raise DataError(f"{task.out} has pairs {other}: name another folder with --out")
    write_whole(path, mine)


if __name__ == "__main__":
    sys.exit(main())
