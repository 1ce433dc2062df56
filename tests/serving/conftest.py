"""Three servers, one after the other: the release without an encoder, with one in its own file, with one merged.

For each, a fixture starts the server, sends every request that the tests need, records the answers in a Scene and stops
the server. A start takes one to two minutes on two cores, so these tests are not part of `make test`."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from data import decode, open_clips
from experiments.random_release import linked_copy
from tests.patching import edit, rows, save
from tests.serving.release import DEMO, inject, patch, write_served_release
from tests.serving.scene import Scene
from tests.serving.server import Server, data_url

PRESETS = ("preset_1", "preset_2")
LONG_TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."
FORMATS = ("wav", "pcm", "flac", "mp3", "opus")
SENTENCES = (DEMO / "sentences.txt").read_text(encoding="utf-8").splitlines()[:5]
KINDS = {"wav": "wav", "flac": "flac", "mp3": "mpeg"}


@pytest.fixture(scope="session")
def environment() -> Path:
    if "SERVER_VENV" not in os.environ:
        pytest.fail("SERVER_VENV names no environment with the server in it: run these tests with `make test-server`")
    return Path(os.environ["SERVER_VENV"]).resolve()


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="session")
def plain(work: Path) -> Path:
    """The release as it is published: without an encoder."""
    return write_served_release(work / "plain")


def ask_presets(scene: Scene, server: Server) -> None:
    """Comes first: the server draws its noise from one generator, seeded at its start."""
    for name in PRESETS:
        scene.ask(server, name, voice=name)


def ask_sentences(scene: Scene, server: Server, what: str, **voice: str) -> None:
    """Whole sentences: until the model says the end of audio."""
    for number, sentence in enumerate(SENTENCES):
        scene.ask(server, f"{what} says {number}", input=sentence, max_new_tokens=150, **voice)


def encoded(samples: np.ndarray, rate: int = 24000, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="session")
def clips(work: Path) -> dict[str, Path]:
    """Speech of people and of voices that the codec was not trained on, each in another format."""
    unseen = open_clips([str(DEMO / "unseen.parquet")])
    speech = [decode(unseen.read(i), 24000)[0].numpy() for i in range(8)]
    content = {
        "16_bits.wav": encoded(speech[0], subtype="PCM_16"),
        "floats.wav": encoded(speech[1], subtype="FLOAT"),
        "compressed.flac": encoded(speech[2], form="FLAC"),
        "lossy.mp3": encoded(speech[3], form="MP3"),
        "16_khz.wav": encoded(soxr.resample(speech[4], 24000, 16000), 16000),
        "48_khz.wav": encoded(soxr.resample(speech[5], 24000, 48000), 48000),
        "stereo.wav": encoded(np.stack([speech[6], np.roll(speech[6], 240)], 1), subtype="FLOAT"),
        "anna.wav": encoded(speech[7], subtype="PCM_16"),
    }
    folder = work / "clips"
    folder.mkdir()
    for name, audio in content.items():
        (folder / name).write_bytes(audio)
    return {name: folder / name for name in content}


def sent(path: Path) -> str:
    return data_url(path.read_bytes(), KINDS[path.suffix[1:]])


@pytest.fixture(scope="session")
def without_encoder(environment: Path, plain: Path, clips: dict[str, Path], work: Path) -> Scene:
    scene, folder = Scene(), linked_copy(plain, work / "without_encoder")
    embedding = rows(folder, PRESETS[0])
    save(folder / "voice_embedding" / "broken.pt", embedding)
    edit(folder / "params.json", lambda p: p["multimodal"]["audio_tokenizer_args"]["voice"].update(broken=9))
    edit(folder / "tekken.json", lambda t: t["audio"]["voice_num_audio_tokens"].update(broken=len(embedding) + 1))
    with Server(environment, folder, work / "server without encoder") as server:
        ask_presets(scene, server)
        scene.ask(server, "long text", voice=PRESETS[0], input=LONG_TEXT, max_new_tokens=40)
        scene.ask(server, "ref_audio", ref_audio=sent(clips["16_bits.wav"]))
        scene.ask(server, "nobody", voice="nobody")
        scene.ask(server, "preset again", voice=PRESETS[0])
        scene.use_client(server, clips["16_bits.wav"].parent, "16_bits.wav")
        scene.kill(server, "a voice whose count is off by one", voice="broken")
        scene.use_client(server, work, "--voice=broken")
    return scene


@pytest.fixture(scope="session")
def cloning(plain: Path, clips: dict[str, Path], work: Path) -> Path:
    """The release with an encoder in its own file, and with the added voice anna."""
    folder = linked_copy(plain, work / "cloning")
    inject(folder)
    assert patch(folder, "--voice", f"anna={clips['anna.wav']}") == 0
    return folder


@pytest.fixture(scope="session")
def own_file(environment: Path, cloning: Path, clips: dict[str, Path], work: Path) -> Scene:
    """The answers of a server whose release has an encoder in its own file."""
    scene, folder = Scene(), linked_copy(cloning, work / "own_file")
    # a voice that somebody added by hand, in two of the three places
    save(folder / "voice_embedding" / "halfway.pt", rows(folder, "anna"))
    edit(folder / "params.json", lambda p: p["multimodal"]["audio_tokenizer_args"]["voice"].update(halfway=9))
    # what patch_tokenizer.py leaves if it is killed before its last step (test_patch_killed.py)
    save(folder / "voice_embedding" / "killed.pt", rows(folder, "anna"))
    count = len(rows(folder, "anna"))
    edit(folder / "tekken.json", lambda t: t["audio"]["voice_num_audio_tokens"].update(killed=count))
    desk = work / "desk"  # the working folder of the clients
    desk.mkdir()
    (desk / "examples").symlink_to(Path("examples").resolve())
    (desk / "anna.wav").write_bytes(clips["anna.wav"].read_bytes())
    (desk / "stereo.wav").write_bytes(clips["stereo.wav"].read_bytes())
    (desk / "empty.wav").write_bytes(encoded(np.zeros(0)))
    (desk / "nan.wav").write_bytes(encoded(np.full(48000, np.nan), subtype="FLOAT"))
    with Server(environment, folder, work / "server with own file") as server:
        ask_presets(scene, server)
        for name, path in clips.items():
            scene.ask(server, name, ref_audio=sent(path))
        scene.ask(server, "voice anna", voice="anna")
        scene.ask(server, "voice ANNA", voice="ANNA")
        ask_sentences(scene, server, "preset", voice=PRESETS[0])
        ask_sentences(scene, server, "anna", voice="anna")
        ask_sentences(scene, server, "clip", ref_audio=sent(clips["16_bits.wav"]))
        scene.ask(server, "voice and clip", voice="anna", ref_audio=sent(clips["compressed.flac"]))
        scene.ask(server, "http URL", ref_audio="http://127.0.0.1:9/a.wav")
        scene.ask(server, "file URL", ref_audio=clips["anna.wav"].as_uri())
        scene.ask(server, "bare base64", ref_audio=sent(clips["anna.wav"]).partition(",")[2])
        scene.ask(server, "one sample", ref_audio=data_url(encoded(np.ones(1))))
        scene.ask(server, "silence", ref_audio=data_url(encoded(np.zeros(24000))))
        scene.ask(server, "60 s", ref_audio=data_url(encoded(0.1 * np.sin(np.arange(60 * 24000) / 30))))
        scene.ask(server, "400 s", ref_audio=data_url(encoded(0.1 * np.sin(np.arange(400 * 24000) / 30))))
        scene.ask(server, "13440 samples", ref_audio=data_url(encoded(0.1 * np.sin(np.arange(13440) / 30))))
        scene.ask(server, "13439 samples", ref_audio=data_url(encoded(0.1 * np.sin(np.arange(13439) / 30))))
        scene.ask(server, "voice halfway", voice="halfway")
        scene.ask(server, "voice killed", voice="killed")
        for form in FORMATS:
            scene.ask(server, f"as {form}", voice="anna", response_format=form)
        scene.ask(server, "streamed pcm", voice="anna", response_format="pcm", stream_format="audio")
        scene.ask(server, "streamed wav", voice="anna", response_format="wav", stream_format="audio")
        for given in ("anna.wav", "stereo.wav", "empty.wav", "nan.wav"):
            scene.use_client(server, desk, given)
        for name in ("anna", "nobody", "halfway"):
            scene.use_client(server, desk, f"--voice={name}")
        scene.follow_page(server, desk, "docs/clients.md", environment / "bin" / "python")
        scene.kill(server, "an empty clip", ref_audio=data_url(encoded(np.zeros(0))))
    return scene


@pytest.fixture(scope="session")
def merged(environment: Path, cloning: Path, clips: dict[str, Path], work: Path) -> Scene:
    """The answers of a server whose release has the encoder merged into the checkpoint's file."""
    scene, folder = Scene(), linked_copy(cloning, work / "merged")
    inject(folder, "--merge")
    with Server(environment, folder, work / "server merged") as server:
        ask_presets(scene, server)
        for name in ("16_bits.wav", "anna.wav"):
            scene.ask(server, name, ref_audio=sent(clips[name]))
        scene.ask(server, "voice anna", voice="anna")
        scene.kill(server, "NaN", ref_audio=data_url(encoded(np.full(48000, np.nan), subtype="FLOAT")))
    return scene
