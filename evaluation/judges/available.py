"""The judges that can be had here, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from evaluation.judges.fidelity import Distances, Estoi, Pesq
from evaluation.judges.judge import Judge, MissingJudgeError
from evaluation.judges.quality import Quality
from evaluation.judges.speakers import Ecapa, Resemblyzer, WavLM
from evaluation.judges.words import Words

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
    """The judges of `names`, and of those whose library or weights are not there, the reason. `whisper` is a published
    model's name or a file, `speaker_model` a hub name or a folder (empty: the published ECAPA-TDNN), `cache` the hub's
    cache folder (empty: its own default)."""
    device = torch.device(device)
    known: dict[str, Callable[[], Judge]] = {
        "distances": Distances,
        "pesq": Pesq,
        "estoi": Estoi,
        "words": lambda: Words(whisper, language, device),
        "resemblyzer": lambda: Resemblyzer(device),
        "ecapa": lambda: Ecapa(speaker_model, cache, device),
        "wavlm": lambda: WavLM(cache, device),
        "quality": lambda: Quality(device),
    }
    judges, missing = [], {}
    for name in NAMES:
        if name in names:
            try:
                judges.append(known[name]())
            except MissingJudgeError as error:
                missing[name] = str(error)
    return judges, missing
