"""The small server in plain PyTorch: the project's own clients ask it as they ask the real one."""

from __future__ import annotations

import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import inject_encoder
from data.reference import Reference
from data.speech_server import SpeechError, healthy, request_by_clip, request_by_name, speak
from examples.speech_server import Speaker, SpeechServer
from tests.language_models import write_tiny_release

FRAME = 1920
CLIP = Reference(0.1 * torch.sin(torch.arange(8 * FRAME) / 20)[None], ())
LONGEST = 0.32  # seconds: random weights do not end


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("speaking")
    release = write_tiny_release(folder)
    assert inject_encoder.main(["--model-dir", str(release), "--encoder", str(folder / "encoder.safetensors")]) == 0
    with SpeechServer(Speaker(release, torch.device("cpu")), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [request_by_name("Hello.", "anna", LONGEST), request_by_clip("Hello.", CLIP, LONGEST)])
def test_it_speaks_in_a_named_voice_and_in_that_of_a_clip(url: str, body: dict[str, Any], tmp_path: Path) -> None:
    assert healthy(url)
    first, again = tmp_path / "first.wav", tmp_path / "again.wav"
    timing = speak(url, body, first)
    speak(url, body, again)
    with wave.open(str(first)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (24000, 1, 4 * FRAME)
        assert any(file.readframes(4 * FRAME))
    assert timing.speech == LONGEST
    assert first.read_bytes() == again.read_bytes(), "the noise depends on the text alone"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"voice": "nobody"}, "the server has no voice 'nobody', only anna, ben"),
        ({"voice": None}, "expected a voice, or a ref_audio"),
        ({"input": " "}, "input is empty"),
        ({"voice": None, "ref_audio": "data:audio/wav;base64,UklGRg=="}, "ref_audio cannot be used"),
    ],
)
def test_it_says_what_is_wrong_with_a_request(url: str, change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SpeechError, match=sentence):
        speak(url, request_by_name("Hello.", "anna", LONGEST) | change, tmp_path / "none.wav")
    assert healthy(url)
