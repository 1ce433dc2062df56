"""Writes clips as WAV files. Reading WAV is forty times as fast as decoding Opus, so a fast GPU needs fewer workers.

    python -m data.export FOLDER SOURCE ...

SOURCE is anything that `data.train` takes: a folder, a table, a hub name, or a section with the names of a table's
columns, '{path: train.tsv, audio: path, speaker: client_id}'. FOLDER gets `speaker/number.wav` in 16 bits at the clip's
own sample rate. A clip that cannot be read is named and left out. The exit status is 2 if none can be read.
"""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import soundfile

from data.audio import AudioFile, BadClipError, check_level, open_audio, peak_of
from data.clips import Clips
from data.sources import open_clips
from system.arguments import positive
from system.command import exit_status
from system.environment import from_environment
from system.files import written_whole
from system.signals import children_without_ctrl_c

LONGEST_NAME = 200  # bytes of a folder's name


class Writer:
    def __init__(self, clips: Clips, folder: Path):
        self.clips, self.folder = clips, folder

    def __call__(self, index: int) -> str:
        """Writes one clip. Returns why it cannot, or an empty string."""
        try:
            clip = self.clips.read(index)
            with open_audio(clip) as audio:
                self._write(audio, self.folder / folder_name(clip.speaker) / f"{index:07}.wav")
        except BadClipError as error:
            return str(error)
        return ""

    def _write(self, audio: AudioFile, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        peak = 0.0
        with written_whole(path, durable=False) as partial:
            try:
                with soundfile.SoundFile(partial, "w", audio.rate, 1, "PCM_16", format="WAV") as file:
                    for channels in audio.blocks():
                        peak = max(peak, peak_of(audio.name, channels))
                        file.write(channels.mean(axis=1).clip(-1, 1))
            except soundfile.LibsndfileError as error:
                raise OSError(errno.EIO, f"cannot be written ({error.error_string})", str(path)) from error
            check_level(audio.name, peak)


def folder_name(speaker: str) -> str:
    """A speaker's name as that of a folder: a data set's speakers may be called `..` or have very long names."""
    name = re.sub(r"[^\w.-]", "_", speaker).encode()[:LONGEST_NAME].decode(errors="ignore")
    return name if name.strip(".") else "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the files are written")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="speech")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), metavar="N", help="processes, 1 or more")
    options = parser.parse_args(argv)
    left = f"{options.folder} holds the clips written so far"
    return exit_status(lambda: export(options), left, left)


def export(options: argparse.Namespace) -> int:
    """Writes the clips. Returns the exit status."""
    clips = open_clips(options.sources, from_environment("HF_CACHE"))
    with children_without_ctrl_c():
        workers = multiprocessing.get_context("spawn").Pool(options.workers)
    with workers as pool:
        problems = [text for text in pool.imap(Writer(clips, options.folder), range(len(clips)), chunksize=16) if text]
    for text in problems:
        print(f"left out: {text}", file=sys.stderr)
    print(f"{len(clips) - len(problems)} clips in {options.folder}")
    return 0 if len(problems) < len(clips) else 2


if __name__ == "__main__":
    sys.exit(main())
