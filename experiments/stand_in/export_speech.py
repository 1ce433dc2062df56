"""Writes labelled speech as WAV files with transcripts, for `data.train` and the evaluation.

    python -m experiments.stand_in.export_speech SPEECH FOLDER --split train

SPEECH is a folder as labelled_speech.py describes it. FOLDER gets LibriTTS-R's layout: `speaker/kind/number.wav` with
`number.normalized.txt`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import soundfile

from codec.config import SAMPLE_RATE
from data.clips import FolderClips
from experiments.runs import experiment_status
from experiments.stand_in.labelled_speech import UNIT, LabelledSpeech


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("speech", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--split", default="train", help="default: %(default)s")
    options = parser.parse_args()
    return experiment_status(lambda: export(options.speech, options.folder, options.split), "clips are missing")


def export(source: Path, folder: Path, split: str) -> int:
    speech = LabelledSpeech(source, split, "cpu")
    for number, (start, units) in enumerate(zip(speech.starts, speech.units, strict=True)):
        place = folder / speech.speakers[number] / speech.kinds[number]
        place.mkdir(parents=True, exist_ok=True)
        samples = speech.waveform[start * UNIT : (start + units) * UNIT].numpy()
        soundfile.write(place / f"{number:06}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
        (place / f"{number:06}{FolderClips.TRANSCRIPT}").write_text(speech.texts[number], encoding="utf-8")
    print(f"{len(speech.units)} clips, {speech.hours:.2f} hours: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
