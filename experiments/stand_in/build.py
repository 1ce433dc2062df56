"""Puts data/demo together: the release that speaks, the encoder that is withheld from it, pairs and sentences.

    python -m experiments.stand_in.build CODEC_RUN LANGUAGE_MODEL_RUN PAIRS

CODEC_RUN is what train_codec.py wrote, LANGUAGE_MODEL_RUN what train_language_model.py wrote, PAIRS a folder of
generate_pairs.py. choose_speech.py writes the speech.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from experiments.runs import DEMO, ExperimentError, experiment_status
from experiments.stand_in.sentences import sentences

SENTENCES, SEED = 80, 11  # of the vocabulary; nobody spoke them in training


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("codec_run", "language_model_run", "pairs"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    return experiment_status(
        lambda: build(options.codec_run, options.language_model_run, options.pairs),
        f"repeat the command: {DEMO} may be incomplete",
    )


def build(codec_run: Path, language_model_run: Path, pairs: Path) -> int:
    needed = (codec_run / "encoder.safetensors", language_model_run / "release" / "tekken.json", pairs)
    missing = [str(path) for path in needed if not path.exists()]
    if missing:
        raise ExperimentError(f"{', '.join(missing)} missing: {DEMO} was not changed")
    for source, target in ((language_model_run / "release", DEMO / "release"), (pairs, DEMO / "pairs")):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.json") if source == pairs else None)
    shutil.copyfile(codec_run / "encoder.safetensors", DEMO / "withheld_encoder.safetensors")
    lines = sentences("test", SENTENCES, SEED)
    (DEMO / "sentences.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
