"""The whole way, small: trains the stand-in's missing encoder, injects it, and compares it with the withheld one.

    python -m data.demo.run [OUTPUT_DIR]

Every step is the command a user runs on the real release. Exit status 1 if the new encoder does not come half of the
way from the untrained encoder to the withheld one, or if the server's own class computes other codes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from codec import Codec, load_release
from data import decode, open_clips
from data.demo.build import with_encoder
from losses.mel import MelDistance
from tests.server import load_server_codec

HERE = Path(__file__).parent
WAV_FILES = 6
REPORT_CLIPS = 12


def main() -> int:
    started = time.monotonic()
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    shutil.rmtree(output, ignore_errors=True)
    release = output / "release"
    shutil.copytree(HERE / "release", release)

    print("1. Training an encoder against the frozen decoder (configs/demo.yaml)", flush=True)
    paths = (f"model_dir={release}", f"output_dir={output}", f"hf_cache={output / 'cache'}")
    command("train_encoder.py", "--config", "configs/demo.yaml", *paths)
    print("\n2. Injecting it into the release", flush=True)
    command("inject_encoder.py", "--model-dir", str(release), "--encoder", str(output / "encoder.safetensors"))

    print("\n3. On speakers no encoder was trained on, computed as the server does (bf16, one clip at a time)")
    clips = unseen_clips()
    torch.manual_seed(0)
    untrained = load_release(HERE / "release", torch.float32).with_new_encoder().to(torch.bfloat16)
    trained = load_release(release)
    withheld = with_encoder(load_release(HERE / "release"), HERE / "withheld_encoder.safetensors")
    codes = {
        name: [c.encode(clip) for clip in clips]
        for name, c in [("untrained", untrained), ("trained", trained), ("withheld", withheld)]
    }
    mel = {name: mel_distance(trained, clips, found) for name, found in codes.items()}
    recovered = {name: (mel["untrained"] - value) / (mel["untrained"] - mel["withheld"]) for name, value in mel.items()}
    print(
        f"   {'encoder':<12}{'mel':>8}{'recovered':>12}{'sem_util':>10}   of {withheld.config.semantic_codebook_size}"
    )
    for name, found in codes.items():
        used = torch.cat([code[:, 0] for code in found], -1).unique().numel()
        print(f"   {name:<12}{mel[name]:>8.3f}{recovered[name]:>11.0%} {used:>10}")

    folder = output / "wav"
    folder.mkdir()
    for i in range(0, len(clips), max(1, len(clips) // WAV_FILES)):
        soundfile.write(folder / f"{i:02}_original.wav", clips[i][0, 0], trained.sample_rate)
        for name in ("trained", "withheld"):
            audio = trained.decode(codes[name][i])[0, 0].clamp(-1, 1)
            soundfile.write(folder / f"{i:02}_{name}.wav", audio[: clips[i].shape[-1]], trained.sample_rate)

    print("\n4. The server's own class (vllm-omni), loaded from the injected release")
    server = load_server_codec(release)
    same = [
        torch.equal(server._tokenize_audio(c.bfloat16()), code) for c, code in zip(clips, codes["trained"], strict=True)
    ]
    total = sum(code.numel() for code in codes["trained"])
    print(
        f"   {total} codes of {len(clips)} clips: {'all equal' if all(same) else f'{same.count(False)} clips differ'}"
    )
    print("\n5. Measured by judges of its own, on some of the clips, beside the withheld encoder", flush=True)
    sides = ("--model-dir", str(release), "--against", str(HERE / "withheld_encoder.safetensors"))
    judges = ("--speaker-model", str(HERE / "speaker"), "--without", "words", "wavlm")  # these two are downloads
    pages = ("--report", str(output / "report"), "--metrics", str(output / "metrics.jsonl"))
    command("evaluate_encoder.py", *sides, *judges, "--clips", str(REPORT_CLIPS), *pages)
    print(f"\nOriginals and reconstructions: {folder}\nInjected release: {release}")
    print(f"A page to listen to: {output / 'report' / 'index.html'}")
    print(f"The demo took {(time.monotonic() - started) / 60:.1f} minutes.")
    if recovered["trained"] < 0.5:
        print("The new encoder recovered less than half of the withheld one's mel distance.", file=sys.stderr)
    return 0 if all(same) and recovered["trained"] >= 0.5 else 1


def unseen_clips() -> list[Tensor]:
    """Whole clips [1, 1, T] of unseen speakers, synthetic ones and people."""
    clips = open_clips([str(HERE / "unseen.parquet")])
    return [decode(clips.read(i), 24000)[None] for i in range(len(clips))]


def mel_distance(codec: Codec, clips: list[Tensor], codes: list[Tensor]) -> float:
    """Mean over the clips of the distance between a clip and what is decoded from its codes."""
    mel = MelDistance(codec.sample_rate)
    distances = [mel(codec.decode(code)[..., : clip.shape[-1]], clip) for clip, code in zip(clips, codes, strict=True)]
    return float(torch.stack(distances).mean())


def command(*arguments: str) -> None:
    print(f"   $ python {' '.join(arguments)}", flush=True)
    result = subprocess.run([sys.executable, *arguments], check=False)
    if result.returncode:
        sys.exit(f"{arguments[0]} ended with status {result.returncode}")


if __name__ == "__main__":
    sys.exit(main())
