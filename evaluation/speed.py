"""Speed: how long a client waits for the codes of a reference clip, and the real-time factors."""

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
    """Encodes and decodes a 10 s prompt, made by repeating the clip, RUNS times each after a warm-up. `latency` is the
    median encoding time in seconds, with its minimum and maximum; the real-time factors are seconds of computation per
    second of audio. Raises RuntimeError if the device's memory is too small for another copy of the codec."""
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
    """The seconds that each of RUNS runs takes, and the result. A warm-up run comes first and is not counted; on a GPU
    it ends before the first counted run starts."""
    taken = []
    for _ in range(1 + RUNS):
        started = time.perf_counter()
        found = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return taken[1:], found
