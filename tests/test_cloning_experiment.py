"""The prompts of experiments/cloning.py that no encoder makes: what reaches the server in place of a clip."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from data.reference import Reference
from data.speech_server import SpeechError, healthy, request_by_clip, request_by_name, speak
from evaluation.provenance import fingerprint
from evaluation.speech import Speech
from experiments.cloning import clips_of_others
from experiments.cpu_server.environment import add_server_option
from experiments.prompt_exchange import PromptExchange
from experiments.runs import ROOT, ExperimentError
from tests.speaking_server import SpeakingServer


def clip(speaker: str, seed: int) -> Speech:
    noise = 0.1 * torch.randn(24_000, generator=torch.Generator().manual_seed(seed))
    return Speech(f"{speaker}_{seed}.wav", noise, speaker)


def request(speech: Speech) -> dict[str, object]:
    return request_by_clip("a text", Reference(speech.waveform[None], ()))


def test_a_clip_is_exchanged_for_a_voice_and_the_speech_comes_back(tmp_path: Path) -> None:
    known, unknown = clip("anna", 0), clip("bert", 1)
    samples = bytes(range(200)) * 100
    prompts = {fingerprint(known.waveform): {"voice": "clip_000"}}
    with SpeakingServer(samples) as server, PromptExchange(server.url, prompts) as between:
        assert healthy(between.url)
        speak(between.url, request(known), tmp_path / "known.wav")
        speak(between.url, request_by_name("a text", "preset"), tmp_path / "preset.wav")
        with pytest.raises(SpeechError, match="no prompt is known for this clip"):
            speak(between.url, request(unknown), tmp_path / "unknown.wav")
    assert server.posted == [request_by_name("a text", voice) for voice in ("clip_000", "preset")]
    assert (tmp_path / "known.wav").read_bytes().endswith(samples)


def test_each_clip_is_exchanged_for_the_next_one_of_another_speaker() -> None:
    clips = [clip("anna", 0), clip("anna", 1), clip("bert", 2)]
    prompts = clips_of_others(clips)
    for own, other in zip(clips, (clips[2], clips[2], clips[0]), strict=True):
        assert prompts[fingerprint(own.waveform)] == {"ref_audio": request(other)["ref_audio"]}
    with pytest.raises(ExperimentError, match="only one speaker"):
        clips_of_others(clips[:2])


def test_the_server_is_looked_for_where_make_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERVER_VENV", raising=False)
    parser = argparse.ArgumentParser()
    add_server_option(parser)
    made = dict(line.split(" ?= ") for line in (ROOT / "Makefile").read_text().splitlines() if " ?= " in line)
    assert parser.parse_args([]).venv == ROOT / made["SERVER_VENV"].replace("$(VENV)", made["VENV"])
