"""training/validation.py: what a run measures on its validation clips."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from experiments.random_release import TINY, random_codec
from training.validation import validate


def test_steady_codes_are_those_that_a_second_pass_finds_again() -> None:
    codec = random_codec(TINY).eval()
    clips = 0.1 * torch.randn(3, 1, 6 * codec.frame_size, generator=torch.Generator().manual_seed(0))
    found = validate(codec, clips, batch_size=2, autocast=nullcontext)
    with torch.no_grad():
        codes = codec.encode(clips)
        steady = codec.encode(codec.decode(codes)) == codes
    assert torch.equal(found.codes, codes)
    assert found.metrics["steady_semantic"] == pytest.approx(float(steady[:, 0].float().mean()))
    assert found.metrics["steady_acoustic"] == pytest.approx(float(steady[:, 1:].float().mean()))
    assert 0 < found.metrics["steady_acoustic"] < 1
