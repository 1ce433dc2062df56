"""The benchmark at the release's dimensions: a codec is trained whole, its encoder withheld, and new ones are trained
against the rest and measured beside it.

    python -m experiments.benchmark OUT --speech SPEECH --validation SPEECH --unseen NAME=PATH ... --whisper MODEL
        --speaker-model FOLDER --codec-minutes 7 --encoder-minutes 4

Steps are chosen to fill the minutes, by a short run that measures a step; OUT/codec_steps.txt and
OUT/encoders_steps.txt keep their numbers. The new encoders are the recipe, which starts as the decoder's inverse, and
the same from layers that mirror the decoder's, and from random ones; of the first, those in between are kept, for the
curve of what is recovered over hours of audio. Each set of unseen speech becomes OUT/NAME.json, and all of them
OUT/results.md, the tables of RESULTS.md. What OUT holds already is not made again. Of several GPUs each trains an
encoder, and measures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import torch
import yaml

from codec import load_release
from codec.checkpoint import read_training, with_encoder
from data import open_clips
from data.clips import Clip
from experiments.stand_in.build import add_voices

ROOT = Path(__file__).parent.parent
BENCHMARK = ROOT / "configs" / "benchmark"
ENCODERS = {"recipe": "inverse", "mirror_start": "mirror", "random_start": "random"}  # and how they start
MEASURED, LINE = 200, 50  # steps of the short run, and steps a line of its metrics
WITH_DISCRIMINATOR = 0.05  # of the steps, the last ones, which take several times as long
KEPT = 5  # encoders of the curve, the last one among them
VOICES = 8
Given = TypeVar("Given")
Made = TypeVar("Made")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", required=True, help="to train on: folder or parquet files")
    parser.add_argument("--validation", required=True)
    parser.add_argument("--unseen", required=True, nargs="+", type=named, metavar="NAME=PATH", help="to measure with")
    parser.add_argument("--whisper", required=True)
    parser.add_argument("--speaker-model", required=True)
    parser.add_argument("--codec-minutes", type=float, default=7)
    parser.add_argument("--encoder-minutes", type=float, default=4, help="for each")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=[*ENCODERS], help="default: all of them")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--descent", type=int, default=300, help="steps (default: %(default)s)")
    parser.add_argument("--descent-clips", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")
    options = parser.parse_intermixed_args()
    options.out.mkdir(parents=True, exist_ok=True)

    common = [f"data.train={options.speech}", f"data.validation={options.validation}", *options.overrides]
    common += [f"losses.asr_teacher={options.whisper}"]
    codec = options.out / "codec"
    steps = fitting(BENCHMARK / "codec.yaml", codec, common, options.codec_minutes)
    train(BENCHMARK / "codec.yaml", codec, common, steps, 2)
    release, withheld = codec / "release", codec / "encoder.safetensors"
    if not (release / "voice_embedding").exists():
        add_voices(release, with_encoder(load_release(release), withheld), one_a_speaker(options.speech))
    common += [f"model_dir={release}", f"losses.speaker_model={options.speaker_model}"]
    steps = fitting(BENCHMARK / "encoder.yaml", options.out / "encoders", common, options.encoder_minutes)

    def train_encoder(name: str, gpu: str) -> None:
        start = f"init={ENCODERS[name]}"
        train(BENCHMARK / "encoder.yaml", options.out / name, [*common, start], steps, KEPT, gpu)

    on_gpus(train_encoder, options.encoders)

    # side by side, also on one: a GPU waits for the judges
    def measure(unseen: tuple[str, str], gpu: str) -> Path:
        name, path = unseen
        return evaluate(options, release, withheld, name, path, gpu)

    figures = on_gpus(measure, options.unseen, at_once=2)
    tables = run("-m", "experiments.results_tables", *map(str, figures), "--curve", "step_*", options.encoders[0])
    (options.out / "results.md").write_text(tables, encoding="utf-8")
    print(tables)
    return 0


def fitting(config: Path, folder: Path, settings: list[str], minutes: float) -> int:
    """How many steps the minutes hold: a short run measures them. The number is kept beside `folder`."""
    known = folder.with_name(f"{folder.name}_steps.txt")
    if not known.exists():
        short = folder.with_name(f"{folder.name}_short")
        quick = (f"steps={MEASURED}", f"log_every={LINE}", f"validate_every={MEASURED}", f"save_every={MEASURED}")
        until = f"discriminator.from_step={MEASURED // 2}"
        command = ("train_encoder.py", "--config", str(config), *settings, *quick, until, f"output_dir={short}")
        run(*command, "optimizer.warmup_steps=9")
        plain, whole = seconds_a_step(short)
        steps = int(60 * minutes / ((1 - WITH_DISCRIMINATOR) * plain + WITH_DISCRIMINATOR * whole))
        print(f"{folder.name}: {plain:.4f} s a step, {whole:.4f} with the discriminator: {steps} steps", flush=True)
        shutil.rmtree(short)
        known.write_text(f"{steps}\n", encoding="utf-8")
    return int(known.read_text(encoding="utf-8"))


def train(config: Path, folder: Path, settings: list[str], steps: int, times: int, gpu: str = "") -> None:
    """A run that saves so many times, since a checkpoint has 5 GB; the encoders in between are kept beside its last."""
    encoder = folder / "encoder.safetensors"
    if encoder.exists() and int(read_training(encoder)["step"]) == steps:
        return
    ended = threading.Event()
    keeper = threading.Thread(target=keep_encoders, args=(folder, ended))
    keeper.start()
    length = (f"steps={steps}", f"discriminator.from_step={round((1 - WITH_DISCRIMINATOR) * steps)}")
    every = -(-steps // times)
    often = (f"save_every={every}", f"validate_every={every}")
    try:
        run("train_encoder.py", "--config", str(config), *settings, *length, *often, f"output_dir={folder}", gpu=gpu)
    finally:
        ended.set()
        keeper.join()
    for left in ("newest", f"{step_name(steps)}.safetensors"):  # the last one is the run's encoder itself
        (folder / "kept" / left).unlink(missing_ok=True)


def step_name(step: int) -> str:
    return f"step_{step:06}"


def seconds_a_step(short: Path) -> tuple[float, float]:
    """Of a short run: without the discriminator, and with it. The lines before either are its warm-up."""
    settings = yaml.safe_load((short / "config.yaml").read_text(encoding="utf-8"))
    audio = settings["batch_size"] * settings["accumulate"] * settings["data"]["crop_seconds"]
    lines = [json.loads(line) for line in (short / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = {line["step"]: line["audio_seconds_per_second"] for line in lines if "mel" in line}
    return audio / speeds[MEASURED // 2], audio / speeds[MEASURED]


def keep_encoders(folder: Path, ended: threading.Event) -> None:
    """Copies each encoder that a run leaves on its way to `kept/step_*.safetensors`."""
    kept, last = folder / "kept", 0.0
    kept.mkdir(parents=True, exist_ok=True)
    while not ended.wait(0.5):
        try:
            written = (folder / "encoder.safetensors").stat().st_mtime
            if written == last:
                continue
            copied = shutil.copyfile(folder / "encoder.safetensors", kept / "newest")
        except FileNotFoundError:  # not written yet
            continue
        last = written
        copied.rename(kept / f"{step_name(int(read_training(copied)['step']))}.safetensors")


def one_a_speaker(speech: str) -> list[Clip]:
    """A clip each of some speakers."""
    clips, found = open_clips([speech]), dict[str, Clip]()
    for index in range(len(clips)):
        clip = clips.read(index)
        found.setdefault(clip.speaker, clip)
        if len(found) == VOICES:
            break
    return list(found.values())


def named(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    return name, path


def evaluate(options: argparse.Namespace, release: Path, withheld: Path, name: str, speech: str, gpu: str) -> Path:
    """The figures of a set of unseen speech."""
    figures = options.out / f"{name}.json"
    if figures.exists():
        return figures
    encoders = [f"{each}={options.out / each / 'encoder.safetensors'}" for each in options.encoders]
    first = options.out / options.encoders[0]
    encoders += [f"{path.stem}={path}" for path in sorted(first.glob("kept/step_*.safetensors"))]
    sides = ("--model-dir", str(release), "--against", str(withheld), "--data", speech, "--clips", str(options.clips))
    descent = ("--descent-steps", str(options.descent), "--descent-clips", str(options.descent_clips))
    judges = ("--whisper", options.whisper, "--speaker-model", options.speaker_model, "--without", "wavlm")
    report = ("--report", str(options.out / f"report_{name}"), "--metrics", str(first / "metrics.jsonl"))
    more = ("--jobs", str(max(1, options.jobs // len(options.unseen))), "--json", str(figures), *report)
    program = ("-m", "experiments.evaluate_with_descent")
    print(run(*program, "--encoder", *encoders, *sides, *descent, *judges, *more, gpu=gpu), flush=True)
    return figures


def on_gpus(task: Callable[[Given, str], Made], given: Sequence[Given], at_once: int = 1) -> list[Made]:
    """`task(each, gpu)` for each of what is given, side by side: so many at once on every GPU. A GPU is named as
    CUDA_VISIBLE_DEVICES names it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    free = SimpleQueue[str]()
    for gpu in visible.split(",") * at_once:
        free.put(gpu)

    def done(each: Given) -> Made:
        gpu = free.get()
        try:
            return task(each, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(free.qsize()) as threads:
        return list(threads.map(done, given))


def run(*arguments: str, gpu: str = "") -> str:
    """A command of this repository, on one GPU or on all. Ends this one with its last words where it fails."""
    alone = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | alone, check=False, text=True, capture_output=True
    )
    if ended.returncode:
        sys.exit(f"{' '.join(arguments)}\nended with status {ended.returncode}:\n{ended.stderr[-3000:]}")
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main())
