"""What does the Whisper teacher cost on a CPU, and what does a window shorter than its 30 s do to its transcripts?

    python -m experiments.teacher_window CROPS SECONDS          # such as 16 1.28

Takes random crops of the demo's unseen clips and prints the CPU seconds of one thread. "similarity" is the mean
similarity (difflib's ratio) to the transcripts with the window of 30 s.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
import time

import torch
from torch import Tensor

from codec.config import SAMPLE_RATE
from data import decode, open_clips
from experiments.runs import DEMO, ExperimentError, experiment_status
from losses.asr.teacher import Teacher
from losses.asr.whisper_weights import CACHE, fetch

WINDOWS = (30.0, 15.0, 8.0, 6.0)  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=int, help="how many crops")
    parser.add_argument("seconds", type=float, help="of each crop")
    options = parser.parse_args()
    return experiment_status(lambda: measure(options.crops, options.seconds))


def measure(count: int, seconds: float) -> int:
    torch.set_num_threads(1)
    waveform = random_crops(count, round(seconds * SAMPLE_RATE))
    samples = waveform.shape[-1]
    model = Teacher.load(str(fetch(CACHE))).model
    expected: list[str] = []
    for window in WINDOWS:
        teacher = Teacher(model, context_seconds=window)
        begin = time.process_time()
        with torch.no_grad():
            audio = teacher._encode(waveform, teacher.context)
            encoded = time.process_time()
            prompts = teacher.prompt.expand(len(audio), -1)
            transcripts = teacher._generate(audio, samples, prompts)
            generated = time.process_time()
            teacher._read(audio, transcripts, samples, prompts)
        read = time.process_time()
        tokens = transcripts.rows()
        texts = [teacher.tokenizer.decode(row) for row in tokens]
        expected = expected or texts
        pairs = list(zip(expected, texts, strict=True))
        similarity = sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / len(pairs)
        print(
            f"{len(waveform)} x {samples / SAMPLE_RATE} s, window {window:4.1f} s: encode {encoded - begin:5.2f} s, "
            f"generate {generated - encoded:5.2f} s, align {read - generated:5.2f} s; similarity {similarity:.3f}, "
            f"without a transcript {sum(not row for row in tokens)}",
            flush=True,
        )
    return 0


def random_crops(count: int, samples: int) -> Tensor:
    """One crop [samples] of each of the first clips that are long enough: [count or fewer, samples]."""
    generator = torch.Generator().manual_seed(0)
    found: list[Tensor] = []
    with tempfile.TemporaryDirectory() as cache:
        clips = open_clips([str(DEMO / "unseen.parquet")], cache)
        for index in range(len(clips)):
            clip = decode(clips.read(index), SAMPLE_RATE)[0]
            if len(clip) >= samples and len(found) < count:
                start = int(torch.randint(len(clip) - samples + 1, (), generator=generator))
                found.append(clip[start : start + samples])
    if not found:
        raise ExperimentError(f"no clip of the demo has {samples / SAMPLE_RATE} s: give a shorter crop")
    return torch.stack(found)


if __name__ == "__main__":
    sys.exit(main())
