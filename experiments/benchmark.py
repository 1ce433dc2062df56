"""How close does the recipe come, at the release's dimensions? Trains a whole codec, withholds its encoder, trains new
encoders against the rest, and measures them beside the withheld one.

    python -m experiments.benchmark OUT --speech SPEECH --validation SPEECH --unseen NAME=PATH ... --whisper MODEL
        --speaker-model FOLDER --codec-minutes 7 --encoder-minutes 4

The numbers of steps fill the given minutes: a short run measures how long a step takes. They are kept in
OUT/codec_steps.txt and OUT/encoders_steps.txt. `--encoders` chooses the new encoders of ENCODERS: the recipe, other
ways to start, less work for the discriminator, and pairs. No language model speaks this codec's codes, so pairs are
made from the withheld encoder's codes of the training speech. Of the first encoder, those on the way are kept too, for
the curve of what is recovered over hours of audio.

Each set of unseen speech becomes OUT/NAME.json; OUT/results.md has the tables of RESULTS.md. Repeat the command to
continue: what is finished in OUT is not repeated. With several GPUs, each trains and measures other encoders.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from codec import Codec, load_release
from codec.checkpoint import read_training, with_encoder
from data import open_clips
from data.audio import Clip, decode
from experiments.runs import (
    ROOT,
    TRAIN,
    experiment_status,
    named,
    on_gpus,
    only,
    run,
    training_metrics,
    training_program,
)
from experiments.trial_trainers import TRIALS
from system.files import folder_written_whole
from training.config import load_config

CONFIGS = ROOT / "configs" / "benchmark"
PAIRS = ("batch_size=32", "losses.inversion=10", "losses.inversion_temperature=0.5")
WITHOUT_STATISTICS = ("losses.commitment=0", "losses.diversity=0", "losses.shaping=0")
COMMITMENT = ("losses.diversity=0", "losses.shaping=0")  # of the three, only commitment
ENCODERS = {  # by name, the settings in which it differs from configs/benchmark/encoder.yaml
    "recipe": (),
    "second_seed": ("seed=1",),
    "mirror_start": ("init=mirror",),
    "random_start": ("init=random",),
    "every_second": ("discriminator.every=2",),
    "half_crops": ("discriminator.crop_seconds=1",),  # of two seconds
    "quarter_crops": ("discriminator.crop_seconds=0.5",),
    "both_halves": ("discriminator.every=2", "discriminator.crop_seconds=1"),
    "pairs": PAIRS,
    "pairs_without_statistics": (*PAIRS, *WITHOUT_STATISTICS),
    "pairs_commitment": (*PAIRS, *COMMITMENT),
    "strong_commitment": (*PAIRS, *COMMITMENT, "losses.commitment=1"),
    "always_quantized": (*PAIRS, *COMMITMENT, "stochastic=false"),
    "pseudo_labels": (*PAIRS, *WITHOUT_STATISTICS, "losses.pseudo_labels=10"),
    "second_pass": (*PAIRS, *COMMITMENT, "losses.second_pass=5"),
    "second_pass_statistics": (*PAIRS, "losses.second_pass=5"),
    "asked": (*PAIRS, *WITHOUT_STATISTICS),  # the withheld encoder, of the speech itself: trial_trainers.py
}
ENCODERS |= {
    f"{name}_second_seed": (*ENCODERS[name], "seed=1") for name in ("half_crops", "quarter_crops", "both_halves")
}
MEASURED_STEPS, LOG_EVERY = 200, 50  # of the short run
CURVE = 5  # encoders of the curve, the last one among them
VOICES = 8  # presets of the stand-in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the runs, the figures and the tables")
    parser.add_argument("--speech", required=True, help="to train on: folder or parquet files")
    parser.add_argument("--validation", required=True, help="speech of other speakers, for the runs' validation")
    parser.add_argument("--unseen", required=True, nargs="+", type=named, metavar="NAME=PATH", help="to measure with")
    parser.add_argument("--whisper", required=True, help="name or file of the teacher, which also judges the words")
    parser.add_argument("--speaker-model", required=True, help="network of the speaker loss: folder or hub name")
    parser.add_argument("--codec-minutes", type=float, default=7, help="(default: %(default)s)")
    parser.add_argument("--encoder-minutes", type=float, default=4, help="for each (default: %(default)s)")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=["recipe"], help="default: %(default)s")
    parser.add_argument(
        "--side-by-side", type=int, default=1, help="encoders at a time on a GPU (default: %(default)s)"
    )
    parser.add_argument(
        "--discriminator",
        nargs=2,
        type=float,
        default=(0.2, 0.5),
        metavar=("CODEC", "ENCODER"),
        help="the discriminator's share of the steps, the last ones (default: %(default)s)",
    )
    parser.add_argument("--pairs-hours", type=float, default=5, help="of speech, as pairs (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=32, help="of each set of unseen speech (default: %(default)s)")
    parser.add_argument("--descent", type=int, default=300, help="steps, 0 for none (default: %(default)s)")
    parser.add_argument("--descent-clips", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=12, help="judges at a time (default: %(default)s)")
    parser.add_argument("--train-only", action="store_true", help="leave the measurement to a later command")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")
    options = parser.parse_intermixed_args()
    return experiment_status(lambda: benchmark(options), f"repeat the command to continue {options.out}")


def benchmark(options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    common = [f"data.train={options.speech}", f"data.validation={options.validation}", *options.overrides]
    common += [f"losses.asr_teacher={options.whisper}"]

    # 1. The codec, whose encoder is withheld
    config, codec = CONFIGS / "codec.yaml", options.out / "codec"
    share, share_of_encoders = options.discriminator
    steps = steps_for(options.codec_minutes, share, config, codec, common)
    train(config, codec, common, steps, share, saves=2)
    release, withheld = codec / "release", codec / "encoder.safetensors"
    if not (release / "voice_embedding").exists():
        add_voices(release, with_encoder(load_release(release), withheld), one_clip_per_speaker(options.speech))

    # 2. New encoders against the rest of it
    common += [f"model_dir={release}", f"losses.speaker_model={options.speaker_model}"]
    config = CONFIGS / "encoder.yaml"
    steps = steps_for(options.encoder_minutes, share_of_encoders, config, options.out / "encoders", common)
    pairs, encoding = options.out / "spoken", threading.Lock()

    def train_encoder(name: str, gpu: str) -> None:
        settings = [*common, *ENCODERS[name]]
        if set(PAIRS) <= set(ENCODERS[name]):
            with encoding:
                encode_pairs(pairs, release, withheld, options, gpu)
            settings.append(f"data.pairs=[{pairs}]")
        program = training_program(name if name in TRIALS else "", withheld)
        train(config, options.out / name, settings, steps, share_of_encoders, saves=CURVE, gpu=gpu, program=program)

    on_gpus(train_encoder, options.encoders, options.side_by_side)
    if options.train_only:
        return 0

    # 3. The measurement, two sets of speech at a time on each GPU, which mostly waits for the judges
    def measure(unseen: tuple[str, str], gpu: str) -> Path:
        name, speech = unseen
        return evaluate(options, release, withheld, name, speech, gpu)

    figures = on_gpus(measure, options.unseen, at_once=2)
    tables = run("-m", "experiments.results_tables", *map(str, figures), "--curve", "step_*", options.encoders[0])
    (options.out / "results.md").write_text(tables, encoding="utf-8")
    print(tables)
    return 0


def encode_pairs(pairs: Path, release: Path, withheld: Path, options: argparse.Namespace, gpu: str) -> None:
    """Writes the folder of pairs, unless it is there."""
    if pairs.exists():
        return
    codec = ("--model-dir", str(release), "--encoder", str(withheld), "--hours", str(options.pairs_hours))
    with folder_written_whole(pairs) as partial:
        run("-m", "experiments.encode_pairs", str(partial), options.speech, *codec, environment=only(gpu))


def steps_for(minutes: float, share: float, config: Path, folder: Path, settings: list[str]) -> int:
    """How many steps fill the minutes, if a `share` of them has the discriminator. A short run measures a step; the
    number is kept in `folder`_steps.txt."""
    known = folder.with_name(f"{folder.name}_steps.txt")
    if not known.exists():
        short = folder.with_name(f"{folder.name}_short")
        measured = (
            *(f"steps={MEASURED_STEPS}", f"log_every={LOG_EVERY}", "optimizer.warmup_steps=9"),
            *(f"validate_every={MEASURED_STEPS}", f"save_every={MEASURED_STEPS}", f"output_dir={short}"),
            f"discriminator.start_step={MEASURED_STEPS // 2}",
        )
        run("train_encoder.py", "--config", str(config), *settings, *measured)
        without, with_discriminator = seconds_per_step(short)
        mean = (1 - share) * without + share * with_discriminator
        steps = int(60 * minutes / mean)
        print(
            f"{folder.name}: {without:.4f} s a step, {with_discriminator:.4f} with the discriminator: {steps} steps",
            flush=True,
        )
        shutil.rmtree(short)
        known.write_text(f"{steps}\n", encoding="utf-8")
    return int(known.read_text(encoding="utf-8"))


def seconds_per_step(short: Path) -> tuple[float, float]:
    """Of the short run: without the discriminator, and with it. The first lines of each half are its warm-up."""
    config = load_config(short / "config.yaml")
    audio = config.crops_a_batch * config.accumulate * config.data.crop_seconds
    speeds = {line["step"]: line["audio_seconds_per_second"] for line in training_metrics(short)}
    return audio / speeds[MEASURED_STEPS // 2], audio / speeds[MEASURED_STEPS]


def train(
    config: Path,
    folder: Path,
    settings: list[str],
    steps: int,
    share: float,
    saves: int,
    gpu: str = "",
    program: Sequence[str] = TRAIN,
) -> None:
    """Trains, unless `folder` holds the finished run. It saves only `saves` times, because a checkpoint has 5 GB; the
    encoder of each checkpoint but the last is kept in `folder`/kept."""
    encoder = folder / "encoder.safetensors"
    if encoder.exists() and int(read_training(encoder)["step"]) == steps:
        return
    ended = threading.Event()
    keeper = threading.Thread(target=keep_encoders, args=(folder, ended))
    keeper.start()
    every = -(-steps // saves)
    length = (f"steps={steps}", f"discriminator.start_step={round((1 - share) * steps)}")
    more = (*length, f"save_every={every}", f"validate_every={every}", f"output_dir={folder}")
    try:
        run(*program, "--config", str(config), *settings, *more, environment=only(gpu))
    finally:
        ended.set()
        keeper.join()
    for name in ("newest", kept_name(steps)):  # the last one is the run's encoder itself
        (folder / "kept" / name).unlink(missing_ok=True)


def keep_encoders(folder: Path, ended: threading.Event) -> None:
    """Copies each encoder that a run writes to `folder`/kept/step_*.safetensors, until `ended` is set."""
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
        copied.rename(kept / kept_name(int(read_training(copied)["step"])))


def kept_name(step: int) -> str:
    return f"step_{step:06}.safetensors"


def one_clip_per_speaker(speech: str) -> list[Clip]:
    """The first clip of each of the first VOICES speakers."""
    clips, found = open_clips([speech]), dict[str, Clip]()
    for index in range(len(clips)):
        clip = clips.read(index)
        found.setdefault(clip.speaker, clip)
        if len(found) == VOICES:
            break
    return list(found.values())


def evaluate(options: argparse.Namespace, release: Path, withheld: Path, name: str, speech: str, gpu: str) -> Path:
    """Measures all encoders with one set of unseen speech, and returns the path of its figures."""
    figures = options.out / f"{name}.json"
    if figures.exists():
        return figures
    encoders = [f"{each}={options.out / each / 'encoder.safetensors'}" for each in options.encoders]
    first = options.out / options.encoders[0]
    encoders += [f"{path.stem}={path}" for path in sorted(first.glob("kept/step_*.safetensors"))]
    sides = ("--model-dir", str(release), "--against", str(withheld), "--data", speech, "--clips", str(options.clips))
    program: tuple[str, ...] = ("evaluate_encoder.py",)
    if options.descent:
        descent = ("--descent-steps", str(options.descent), "--descent-clips", str(options.descent_clips))
        program = ("-m", "experiments.evaluate_with_descent", *descent)
    judges = ("--whisper", options.whisper, "--speaker-model", options.speaker_model, "--without", "wavlm")
    report = ("--report", str(options.out / f"report_{name}"), "--metrics", str(first / "metrics.jsonl"))
    more = ("--jobs", str(max(1, options.jobs // len(options.unseen))), "--json", str(figures), *report)
    command = (*program, "--encoder", *encoders, *sides, *judges, *more)
    print(run(*command, environment=only(gpu)), flush=True)
    return figures


def add_voices(release: Path, codec: Codec, clips: Sequence[Clip]) -> None:
    """Gives the release one preset voice for each clip: the embedding of its codes, and the name in params.json.

    `codec` must have the encoder. Raises BadClipError for a clip that cannot be decoded.
    """
    (release / "voice_embedding").mkdir()
    params = json.loads((release / "params.json").read_text(encoding="utf-8"))
    voices = params["multimodal"]["audio_tokenizer_args"]["voice"]
    for index, clip in enumerate(clips):
        waveform = decode(clip, codec.sample_rate)
        name = f"preset_{index + 1}"
        torch.save(codec.embed(codec.encode(waveform[None]))[0].clone(), release / "voice_embedding" / f"{name}.pt")
        voices[name] = index
    (release / "params.json").write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
