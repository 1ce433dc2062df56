"""How fast: what a client waits for the codes of a reference clip, and audio seconds a second."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from codec import Codec
from evaluation.speech import Speech

PROMPT_SECONDS = 10.0
RUNS = 5


def measure_speed(codec: Codec, clip: Speech, device: torch.device) -> dict[str, float]:
    """Median, fastest and slowest of some encodings of a 10 s prompt (the clip, repeated), after one that is not
    counted, and the same prompt decoded. Real-time factors are seconds of work for a second of audio. Raises
    RuntimeError where the device's memory is too small for one more codec."""
    samples = round(PROMPT_SECONDS * codec.sample_rate)
    prompt = clip.waveform.repeat(-(-samples // clip.waveform.shape[-1]))[None, None, :samples].to(device)
    codec = copy.deepcopy(codec).to(device)
    encoding, codes = timed(lambda: codec.encode(prompt), device)
    decoding, _ = timed(lambda: codec.decode(codes), device)
    return {
        "latency": statistics.median(encoding),
        "latency_min": min(encoding),
        "latency_max": max(encoding),
        "encode_rtf": statistics.median(encoding) / PROMPT_SECONDS,
        "decode_rtf": statistics.median(decoding) / PROMPT_SECONDS,
    }


def timed(work: Callable[[], Tensor], device: torch.device) -> tuple[list[float], Tensor]:
    """Seconds that each of the runs takes, and what the work gives. The first run is not counted, and has ended before
    the second begins."""
    taken = []
    for _ in range(1 + RUNS):
        started = time.perf_counter()
        found = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken[1:], found
