"""Metrics of a step's parts as those of the whole step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train_encoder
from tests.one_step import ALONE, CROPS, EVERY_PART
from tests.random_teacher import use_random_teacher
from training.config import load_config
from training.metrics import combine, combine_over_ranks


def test_extremes_stay_extremes_counts_add_up_and_the_rest_is_a_mean() -> None:
    parts = [
        {"acoustic_min": 3, "acoustic_max": 20, "asr_silent_clips": 2, "mel": 1.0},
        {"acoustic_min": 0, "acoustic_max": 18, "asr_silent_clips": 1, "mel": 2.0},
    ]
    found = combine([{name: torch.tensor(value) for name, value in part.items()} for part in parts])
    expected = {"acoustic_min": 0, "acoustic_max": 20, "asr_silent_clips": 3, "mel": 1.5}
    assert {name: value.item() for name, value in found.items()} == expected


def test_a_step_in_parts_has_the_extremes_of_all_its_crops(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_random_teacher(monkeypatch)
    settings_of_parts = ("batch_size=1", "accumulate=4", "stochastic=false")
    training = train_encoder.Trainer(load_config(settings, (*EVERY_PART, *settings_of_parts)), ALONE)
    codes = training.codec.encode(CROPS)[:, 1:]
    metrics = combine_over_ranks(training.step(CROPS, 0), ALONE)
    assert metrics["acoustic_min"] == codes.min()
    assert metrics["acoustic_max"] == codes.max()
    assert len({int(one.min()) for one in codes}) + len({int(one.max()) for one in codes}) > 2
