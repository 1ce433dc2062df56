"""Training steps of EnCodec and descript-audio-codec, with which this repository's speed is compared."""

from __future__ import annotations

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from experiments.codec_training_speed import CODECS, SAMPLE_RATE

INSTALL = "is not installed: pip install encodec==0.1.1 descript-audio-codec==1.0.0"


@pytest.mark.parametrize("name", CODECS)
def test_a_step_of_another_codec_trains_codec_and_discriminator(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} {INSTALL}")
    norms: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        given = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(given)))

    torch.manual_seed(0)
    handle = register_optimizer_step_pre_hook(note)
    try:
        CODECS[name](torch.device("cpu"), 2)(0.1 * torch.randn(1, 1, SAMPLE_RATE // 8))
    finally:
        handle.remove()
    assert len(norms) == 2
    assert all(0 < norm < 1e6 for norm in norms)
