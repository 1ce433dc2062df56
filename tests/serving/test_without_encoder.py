"""The release as it is published speaks with its presets and refuses ref_audio."""

from __future__ import annotations

import pytest

from tests.serving.conftest import PRESETS
from tests.serving.scene import Scene

pytestmark = pytest.mark.served


def test_ref_audio_gets_status_400_and_the_server_lives(without_encoder: Scene) -> None:
    assert without_encoder.answers["ref_audio"].status == 400
    assert "requires the full Voxtral checkpoint with encoder weights" in without_encoder.answers["ref_audio"].text
    assert without_encoder.answers["preset again"].status == 200
    assert without_encoder.alive_before_the_last


def test_the_client_says_what_the_release_lacks(without_encoder: Scene) -> None:
    client = without_encoder.programs["client 16_bits.wav"]
    assert client.returncode == 2
    assert "has no encoder: inject one with inject_encoder.py" in client.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_presets_speak(without_encoder: Scene, name: str) -> None:
    answer = without_encoder.answers[name]
    assert (answer.status, answer.body[:4]) == (200, b"RIFF")
    assert len(answer.spoken) >= 5


def test_a_voice_that_params_json_does_not_name_gets_status_400(without_encoder: Scene) -> None:
    assert without_encoder.answers["nobody"].status == 400
    assert "Invalid speaker 'nobody'" in without_encoder.answers["nobody"].text


def test_a_voice_whose_count_is_off_by_one_kills_the_engine(without_encoder: Scene) -> None:
    """patch_tokenizer.py --check says so of such a release (tests/test_voice_checks.py)."""
    assert without_encoder.answers["a voice whose count is off by one"].status != 200
    assert without_encoder.died_of_the_last
    assert without_encoder.programs["client --voice=broken"].returncode == 2
