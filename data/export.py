"""Writes clips as WAV files. Reading WAV is forty times as fast as decoding Opus, so a fast GPU needs fewer workers.

    python -m data.export FOLDER SOURCE ...

SOURCE is anything that `data.train` takes. FOLDER gets `speaker/number.wav` in 16 bits at the clip's own sample rate. A
clip that cannot be read is named and left out. The exit status is 2 if none can be read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile

from data.clips import BadClipError, Clips, read_audio
from data.sources import open_clips
from system.command import exit_status
from system.environment import from_environment
from system.signals import children_without_ctrl_c


class _Writer:
    def __init__(self, clips: Clips, folder: Path):
        self.clips, self.folder = clips, folder

    def __call__(self, index: int) -> str:
        """Writes one clip. Returns why it cannot, or an empty string."""
        try:
            clip = self.clips.read(index)
            samples, rate = read_audio(clip)
        except BadClipError as error:
            return str(error)
        speaker = self.folder / (re.sub(r"[^\w.-]", "_", clip.speaker) or "unknown")
        speaker.mkdir(parents=True, exist_ok=True)
        soundfile.write(speaker / f"{index:07}.wav", samples.mean(axis=1).clip(-1, 1), rate, subtype="PCM_16")
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(argv)
    left = f"{options.folder} holds the clips written so far"
    return exit_status(lambda: export(options), left, left)


def export(options: argparse.Namespace) -> int:
    """Writes the clips. Returns the exit status."""
    clips = open_clips(options.sources, from_environment("HF_CACHE"))
    with children_without_ctrl_c():
        workers = multiprocessing.get_context("spawn").Pool(options.workers)
    with workers as pool:
        problems = [text for text in pool.imap(_Writer(clips, options.folder), range(len(clips)), chunksize=16) if text]
    for text in problems:
        print(f"left out: {text}", file=sys.stderr)
    print(f"{len(clips) - len(problems)} clips in {options.folder}")
    return 0 if len(problems) < len(clips) else 2


if __name__ == "__main__":
    sys.exit(main())
