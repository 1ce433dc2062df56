"""Opens the judges that are available here, and gives the reason for each that is not."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from evaluation.judges.judge import Judge, MissingJudgeError
from evaluation.judges.quality import Distances, DistillMOS, Estoi, Pesq
from evaluation.judges.speakers import Ecapa, Resemblyzer, WavLM
from evaluation.judges.words import Words
from system.device import open_device

NAMES = ("distances", "pesq", "estoi", "words", "resemblyzer", "ecapa", "wavlm", "quality")


def open_judges(
    names: Collection[str] = NAMES,
    *,
    whisper: str = "base",
    language: str = "en",
    speaker_model: str = "",
    cache: str = "",
    device: str | torch.device = "cpu",
) -> tuple[list[Judge], dict[str, str]]:
    """Opens the judges of `names`. Returns them, and by name the reason for each whose library or weights are missing.
    `whisper` is a published model's name or a file. `speaker_model` is a hub name or a folder; empty means the
    published ECAPA-TDNN. `cache` is the hub's cache folder; empty means the hub's default."""
    device = open_device(device)
    known: dict[str, Callable[[], Judge]] = {
        "distances": Distances,
        "pesq": Pesq,
        "estoi": Estoi,
        "words": lambda: Words(whisper, language, device),
        "resemblyzer": lambda: Resemblyzer(device),
        "ecapa": lambda: Ecapa(speaker_model, cache, device),
        "wavlm": lambda: WavLM(cache, device),
        "quality": lambda: DistillMOS(device),
    }
    judges, missing = [], {}
    for name in NAMES:
        if name in names:
            try:
                judges.append(known[name]())
            except MissingJudgeError as error:
                missing[name] = str(error)
    return judges, missing
