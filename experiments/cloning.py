"""How well does the language model clone, with each of several encoders? Asks the unmodified server, on a CPU.

    python -m experiments.cloning OUT --encoder withheld=data/demo/withheld_encoder.safetensors v3=FILE
    python -m experiments.cloning OUT --data SPEECH --per-clip 2 --encoder ...        # other clips than the demo's

For each encoder the server gets a copy of the release with it, and speaks `--texts` in the voices of `--data`; all get
the same clips and texts. The release's preset voices speak them, too. Then evaluate_cloning.py judges: OUT/clones and
OUT/presets have its tables, figures and pages. The last lines compare the first encoder with what the stand-in is meant
to reach. Repeat the command to resume, also with more encoders.

Two kinds of prompts are made without an encoder of their own: `--codes` takes each clip's codes from a file, such as
descent_codes.py's, as a named voice of the server; `--other-speaker` gives the first encoder the clip of another
speaker instead of each clip, which is the worst that a clone can do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import patch_tokenizer
from codec import load_release
from codec.config import read_params
from codec.voices import read_voice
from data.reference import Reference
from data.speech_server import request_by_clip
from evaluation.cloning.measure import JUDGES
from evaluation.provenance import fingerprint
from evaluation.speech import Speech, read_speech
from experiments.cpu_server.environment import add_server_option, checked_environment
from experiments.cpu_server.server import CpuServer, ServerError
from experiments.prompt_exchange import PromptExchange
from experiments.random_release import linked_copy
from experiments.runs import DEMO, ExperimentError, experiment_status, named, run_shown

Exchange = Callable[[Path], dict[str, dict[str, Any]]] | None
NOWHERE = "http://127.0.0.1:9"  # nobody answers: everything has been spoken
OTHER = "other_speaker"
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
    parser.add_argument("--codes", nargs="+", type=named, default=[], metavar="NAME=FILE", help="codes of the clips")
    parser.add_argument("--other-speaker", action="store_true", help=f"also {OTHER}: with another speaker's clip")
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
    encoders, codes = ({name: Path(file) for name, file in given} for given in (options.encoder, options.codes))
    if missing := [str(file) for file in (*encoders.values(), *codes.values()) if not file.is_file()]:
        raise ExperimentError(f"{missing[0]} is no file")
    voices = sorted(read_params(options.release)["multimodal"]["audio_tokenizer_args"].get("voice") or {})
    voices = [voices[i * len(voices) // options.presets] for i in range(min(options.presets, len(voices)))]
    main = next(iter(encoders.values()))
    for number, (name, file) in enumerate(encoders.items()):
        speak(options, name, file, voices if number == 0 else [])
    for name, file in codes.items():
        speak(options, name, main, [], partial(voices_of_codes, options, file))
    others = [OTHER] if options.other_speaker else []
    for name in others:
        speak(options, name, main, [], lambda _: clips_of_others(speech(options)))
    found = {"clones": judge(options, "clones", *_servers([*encoders, *codes, *others]), *clips(options))}
    if voices:
        found["presets"] = judge(options, "presets", "--server", NOWHERE, *presets(options, voices))
    print_targets(found, next(iter(encoders)), voices)
    return 0


def _servers(names: Sequence[str]) -> list[str]:
    return ["--server", *(f"{name}={NOWHERE}" for name in names)]


def speech(options: argparse.Namespace) -> list[Speech]:
    return read_speech(options.data, limit=options.clips)[0]


def clips(options: argparse.Namespace) -> list[str]:
    several = ["--clips", str(options.clips), "--per-clip", str(options.per_clip)]
    return ["--data", *options.data, "--texts", str(options.texts), *several]


def presets(options: argparse.Namespace, voices: list[str]) -> list[str]:
    return ["--voice", *voices, "--texts", str(options.texts), "--clips", str(options.preset_texts)]


def speak(options: argparse.Namespace, name: str, encoder: Path, voices: list[str], exchange: Exchange = None) -> None:
    """Lets the server speak with an encoder, and with the preset voices, unless that was finished before. `exchange`
    takes the release's folder, and returns the prompts for PromptExchange."""
    done = options.out / f"{name}.spoken"
    if done.exists():
        return
    folder = options.out / "releases" / name
    if not folder.exists():
        linked_copy(options.release, folder)
    run_shown("inject_encoder.py", "--model-dir", str(folder), "--encoder", str(encoder.resolve()))
    prompts = exchange(folder) if exchange else {}
    environment, log = checked_environment(options.venv), options.out / "logs" / name
    try:
        with CpuServer(environment, folder.resolve(), log.resolve()) as server, ExitStack() as before:
            silent = ["--without", *JUDGES]
            if voices:
                spoken = ["--server", server.url, *presets(options, voices)]
                run_shown("evaluate_cloning.py", "--output", str(options.out / "presets"), *spoken, *silent)
            url = before.enter_context(PromptExchange(server.url, prompts)).url if prompts else server.url
            spoken = ["--server", f"{name}={url}", *clips(options)]
            run_shown("evaluate_cloning.py", "--output", str(options.out / "clones"), *spoken, *silent)
    except ServerError as error:
        raise ExperimentError(str(error)) from error
    done.touch()


def voices_of_codes(options: argparse.Namespace, file: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Gives the release in `folder` a named voice for each clip, of the codes in `file`."""
    codec, codes = load_release(folder), load_file(file)
    prompts = {}
    for number, clip in enumerate(speech(options)):
        if clip.name not in codes:
            raise ExperimentError(f"{file} has no codes of {clip.name}")
        voice, wav = f"clip_{number:03}", options.out / f"{clip.name}.wav"
        wav.write_bytes(Reference(clip.waveform[None], ()).wav())
        if patch_tokenizer.main(["--model-dir", str(folder), "--voice", f"{voice}={wav}"]):
            raise ExperimentError(f"{folder}: the voice {voice} could not be added")
        wav.unlink()
        embedding = folder / "voice_embedding" / f"{voice}.pt"
        by_codes = codec.embed(codes[clip.name][None])[0].clone()
        if by_codes.shape != read_voice(embedding, by_codes.shape[-1]).shape:
            raise ExperimentError(
                f"{file}: {clip.name} has {codes[clip.name].shape[-1]} frames, which is another length"
            )
        torch.save(by_codes, embedding)
        prompts[fingerprint(clip.waveform)] = {"voice": voice}
    return prompts


def clips_of_others(clips: Sequence[Speech]) -> dict[str, dict[str, Any]]:
    """For each clip the next one of another speaker."""
    prompts = {}
    for number, clip in enumerate(clips):
        following = [*clips[number + 1 :], *clips[:number]]
        other = next((each for each in following if each.speaker != clip.speaker), None)
        if other is None:
            raise ExperimentError("--other-speaker: the clips have only one speaker")
        body = request_by_clip("", Reference(other.waveform[None], ()))
        prompts[fingerprint(clip.waveform)] = {"ref_audio": body["ref_audio"]}
    return prompts


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
