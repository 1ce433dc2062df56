"""How good a clip sounds, without looking at its original: DistillMOS (Stahl and Gamper 2025)."""

from __future__ import annotations

import contextlib
import io

import torch
from torch import Tensor

from evaluation.judges.fidelity import refuse_short, refuse_silence
from evaluation.judges.judge import Metric, Verdict, library
from evaluation.speech import Speech, at_rate

RATE = 16000  # Hz

DISTILLMOS = Metric(
    "distillmos", "DistillMOS", "higher", "predicted mean opinion score, 1 to 5, no reference (package distillmos)", 2
)


class Quality:
    """The network's weights come with its package."""

    name = "quality"
    metrics = (DISTILLMOS,)
    absolute = True

    def __init__(self, device: torch.device):
        self.device = device
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights lie
            self.network = library("distillmos").ConvTransformerSQAModel().eval().to(device)

    @torch.no_grad()
    def score(self, clip: Speech, audio: Tensor) -> Verdict:
        verdict = Verdict()
        refuse_short(audio)
        refuse_silence(audio)
        verdict.set("distillmos", float(self.network(torch.from_numpy(at_rate(audio, RATE))[None].to(self.device))))
        return verdict
