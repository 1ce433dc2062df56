"""With the encoder merged into the checkpoint's own file, the server computes the same as with a file beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.serving.conftest import PRESETS
from tests.serving.release import fingerprints, inject, patch
from tests.serving.scene import Scene
from tests.serving.server import said

pytestmark = pytest.mark.served


@pytest.mark.parametrize("clip", ["16_bits.wav", "anna.wav"])
def test_ref_audio_gets_status_200_and_the_codes_of_the_other_form(merged: Scene, own_file: Scene, clip: str) -> None:
    here, beside = merged.answers[clip], own_file.answers[clip]
    assert here.status == 200
    assert torch.equal(here.codes, beside.codes)
    assert torch.equal(here.prompt, beside.prompt)
    said(f"  {clip}: {here.codes.numel()} codes equal those with the encoder in a file of its own")


def test_a_registered_voice_is_the_clip_sent_as_ref_audio(merged: Scene) -> None:
    assert torch.equal(merged.answers["voice anna"].prompt, merged.answers["anna.wav"].prompt)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_speak_as_they_did_without_an_encoder(without_encoder: Scene, merged: Scene, name: str) -> None:
    assert torch.equal(merged.answers[name].spoken, without_encoder.answers[name].spoken)
    said(f"  {name}: {merged.answers[name].spoken.numel()} spoken codes equal")


def test_samples_that_are_not_finite_kill_the_engine(merged: Scene) -> None:
    """So the client refuses them (test_own_file.py)."""
    assert merged.alive_before_the_last
    assert merged.died_of_the_last


def test_a_merged_encoder_is_taken_out_byte_for_byte(plain: Path, cloning: Path, merged: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    shutil.copytree(cloning, folder)
    before = fingerprints(folder)
    inject(folder, "--merge")
    assert fingerprints(folder).keys() == before.keys() - {"consolidated_encoder.safetensors"}
    assert patch(folder, "--remove", "anna") == 0
    inject(folder, "--remove")
    assert fingerprints(folder) == fingerprints(plain)
    said(f"  {len(fingerprints(plain))} files equal, byte for byte, after --merge and --remove")
