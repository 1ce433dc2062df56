"""The listener hears voices in the codes it knows, in unseen speakers too, and its error rate is what the name says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.listener import Trials, equal_error_rate, hear, train
from tests.language_models import CODEC


def clips(speakers: range, seed: int, each: int = 6) -> tuple[list[Tensor], list[str]]:
    """A speaker's acoustic codes lie around levels of its own; semantic codes are noise."""
    generator = torch.Generator().manual_seed(seed)
    codes, names = [], []
    for speaker in speakers:
        levels = torch.rand(CODEC.acoustic_dim, 1, generator=torch.Generator().manual_seed(100 + speaker))
        for _ in range(each):
            frames = int(torch.randint(10, 40, (), generator=generator))
            spread = torch.randn(CODEC.acoustic_dim, frames, generator=generator) * 0.7
            top = CODEC.acoustic_codebook_size - 1
            acoustic = (levels * top + spread).round().clamp(0, top).long()
            semantic = torch.randint(CODEC.semantic_codebook_size, (1, frames), generator=generator)
            codes.append(torch.cat([semantic, acoustic]))
            names.append(f"speaker {speaker}")
    return codes, names


def test_unseen_speakers_are_told_apart_by_the_known_codes_and_not_by_others() -> None:
    codes, speakers = clips(range(40), seed=0)
    listener = train(codes, speakers, CODEC, seed=0, steps=50, batch=24)
    known, of_clip = clips(range(40, 50), seed=1)
    turned = [torch.cat([each[:1], each[1:].flip(0)]) for each in known]  # the same voices, in other dimensions
    rate, draws = equal_error_rate([hear(listener, known, known, of_clip)])
    of_turned, of_turned_draws = equal_error_rate([hear(listener, known, turned, of_clip)])
    assert rate.value < 0.2 < 0.3 < of_turned.value
    assert rate.low is not None
    assert rate.low <= rate.value
    assert np.quantile(of_turned_draws - draws, 0.025) > 0  # paired


def test_a_clip_is_not_compared_with_itself() -> None:
    codes, speakers = clips(range(2), seed=0, each=2)
    listener = train(codes, speakers, CODEC, seed=0, steps=1, batch=4)
    trials = hear(listener, codes, codes, speakers, batch=3)
    assert trials.own[0] == pytest.approx(trials.own[1])  # each with the other one
    assert (trials.own < 0.9999).all()
    assert trials.others.shape == (4, 1)


def test_the_error_rate_is_where_as_many_are_refused_as_accepted() -> None:
    own, others = np.array([0.9, 0.8, 0.7, 0.2]), np.array([[0.1], [0.3], [0.5], [0.75]])
    trials = Trials(own, others, ("a", "b", "c", "d"))
    assert equal_error_rate([trials])[0].value == pytest.approx(0.25)
    assert trials.nearest.tolist() == [1, 1, 1, 0]
    perfect = Trials(own, others - 1, trials.speakers)
    assert equal_error_rate([trials, perfect])[0].value == pytest.approx(0.125)  # mean over listeners
