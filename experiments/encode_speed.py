"""How long does speech take to codes: a prompt, beside the server's own class; a batch; a file of 10 minutes?

    python -m experiments.encode_speed [--device cuda]

On noise, with random weights at the release's dimensions. Medians of repeated runs with their range; memory is the most
that PyTorch held at once, with the codec itself. The server's class needs `pip install --no-deps vllm-omni==0.30.0`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch
from torch import Tensor

from codec import load_release
from evaluation.server_codec import load_server_codec
from evaluation.speed import PROMPT_SECONDS, timed
from experiments.random_release import REAL, random_codec, write_release
from experiments.runs import experiment_status, spread
from system.device import open_device

BATCH = 32  # clips of 10 s
LONG_SECONDS = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="", help="such as cpu; a GPU by default if there is one")
    options = parser.parse_args()

    def measure_all() -> int:
        device = open_device(options.device)
        print(
            torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", f"{torch.get_num_threads()} threads"
        )
        with tempfile.TemporaryDirectory() as folder:
            measure(write_release(Path(folder), random_codec(REAL)), device)
        return 0

    return experiment_status(measure_all)


def measure(release: Path, device: torch.device) -> None:
    def noise(clips: int, seconds: float) -> Tensor:
        return 0.1 * torch.randn(clips, 1, round(seconds * REAL.sampling_rate), device=device)

    def show(what: str, work: Callable[[], Tensor], audio_seconds: float) -> None:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        taken, _ = timed(work, device)
        hours = spread([audio_seconds / 3600 / (seconds / 60) for seconds in taken], "hours of audio a minute", 1)
        memory = f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""
        print(f"{what}: {spread([1e3 * seconds for seconds in taken], 'ms', 1)}, {hours}{memory}", flush=True)

    codec = load_release(release).to(device)
    prompt, batch, long = noise(1, PROMPT_SECONDS), noise(BATCH, PROMPT_SECONDS), noise(1, LONG_SECONDS)
    show("a prompt of 10 s", lambda: codec.encode(prompt), PROMPT_SECONDS)
    try:
        server = load_server_codec(release, device=device.type)
    except PackageNotFoundError:
        print("the same by the server's class: vllm-omni is not installed")
    else:
        with torch.no_grad():
            show("the same by the server's class", lambda: server._tokenize_audio(prompt.bfloat16()), PROMPT_SECONDS)
        del server
    show("10 minutes", lambda: codec.encode(long), LONG_SECONDS)
    show(f"{BATCH} clips of 10 s, one by one in bf16", lambda: codec.encode(batch), BATCH * PROMPT_SECONDS)
    show(
        f"{BATCH} clips of 10 s at once in bf16",
        lambda: codec.quantizer.encode(codec.latent(batch)),
        BATCH * PROMPT_SECONDS,
    )
    whole = load_release(release, torch.float32).to(device)
    show(f"{BATCH} clips of 10 s at once in float32", lambda: whole.encode(batch), BATCH * PROMPT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
