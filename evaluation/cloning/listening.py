"""What the judges find in recordings: their words, their quality, embeddings of their speakers. It is kept on disk, and
counts as long as the recording and the judges stay the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluation.judges.judge import Measurement, Measurements
from evaluation.judges.pool import JudgePool
from evaluation.scoring import Progress
from system.files import write_whole


def listen(
    recordings: Mapping[str, Callable[[], Tensor]],
    judges: JudgePool,
    about_judges: Mapping[str, Any],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Measurements], int]:
    """What the judges find in each recording, by the recording's name, and how many of them an earlier run had judged.
    A name is a fingerprint; the function beside it reads the waveform [T]. `folder` keeps a file for each recording,
    as soon as it is judged. `about_judges` is everything that their findings depend on."""
    folder.mkdir(parents=True, exist_ok=True)
    about = json.loads(json.dumps(about_judges))  # as it is read back
    found = {name: kept for name in recordings if (kept := _kept(folder / f"{name}.json", about)) is not None}
    earlier = len(found)
    missing = [name for name in recordings if name not in found]
    measurements = judges.listen(recordings[name]() for name in missing)
    for name, measured in zip(missing, progress(measurements, "judges", len(missing)), strict=True):
        content = {"judges": about, "found": asdict(measured)}
        write_whole(folder / f"{name}.json", json.dumps(content) + "\n")
        found[name] = measured
    return found, earlier


def _kept(path: Path, about: Any) -> Measurements | None:
    """What an earlier run found with the same judges; None if there is nothing, or it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["judges"] != about:
            return None
        measured = Measurements(**content["found"])
        measured.values = {name: Measurement(*pair) for name, pair in measured.values.items()}
        return measured
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
