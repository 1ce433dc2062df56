"""What a Whisper teacher costs on the CPU, and what a shorter window than its 30 s does to its transcripts.

    python -m experiments.teacher_window CLIPS SECONDS          # such as 16 1.28

Random crops of the demo's unseen clips, CPU seconds of one thread; "alike" is the mean similarity (difflib's ratio) to
the transcripts of the window of 30 s.
"""

from __future__ import annotations

import difflib
import sys
import tempfile
import time
from pathlib import Path

import torch

from data import decode, open_clips
from losses.asr.teacher import Teacher
from losses.asr.whisper_weights import CACHE, fetch

UNSEEN = Path(__file__).parents[1] / "data" / "demo" / "unseen.parquet"
RATE = 24000
WINDOWS = (30.0, 15.0, 8.0, 6.0)


def main() -> None:
    count, samples = int(sys.argv[1]), round(float(sys.argv[2]) * RATE)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    crops: list[torch.Tensor] = []
    with tempfile.TemporaryDirectory() as cache:
        clips = open_clips([str(UNSEEN)], cache)
        for index in range(len(clips)):
            clip = decode(clips.read(index), RATE)[0]
            if len(clip) >= samples and len(crops) < count:
                start = int(torch.randint(len(clip) - samples + 1, (), generator=generator))
                crops.append(clip[start : start + samples])
    waveform = torch.stack(crops)
    model = Teacher.load(str(fetch(CACHE))).model
    expected: list[str] = []
    for window in WINDOWS:
        teacher = Teacher(model, context_seconds=window)
        begin = time.process_time()
        with torch.no_grad():
            audio = teacher._encode(waveform)
            encoded = time.process_time()
            tokens = teacher._generate(audio, samples)
            generated = time.process_time()
            teacher._read(audio, tokens, samples)
        read = time.process_time()
        texts = [teacher.tokenizer.decode(row) for row in tokens]
        expected = expected or texts
        pairs = list(zip(expected, texts, strict=True))
        alike = sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / len(pairs)
        print(
            f"{len(waveform)} x {samples / RATE} s, window {window:4.1f} s: encode {encoded - begin:5.2f} s, "
            f"generate {generated - encoded:5.2f} s, align {read - generated:5.2f} s; alike {alike:.3f}, "
            f"without a transcript {sum(not row for row in tokens)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
