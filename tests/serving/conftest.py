"""Three servers, one after the other: the release without an encoder, with one in a file of its own, with one merged.
Each is a scene, played once: everything is asked that the tests want to know, and the server is stopped. A start takes
one to two minutes of two cores, which is why these tests are not part of `make test`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

import inject_encoder
import patch_tokenizer
from data import decode, open_clips
from release.changes import STATE
from tests.patching import edit, rows, save
from tests.releases import linked_copy
from tests.serving.release import DEMO, WITHHELD_ENCODER, write_served_release
from tests.serving.server import Answer, Server, data_url, said

PRESETS = ("preset_1", "preset_2")
KINDS = {"wav": "wav", "flac": "flac", "mp3": "mpeg"}


@dataclass
class Scene:
    """What a server answered, by the name of the request, and what programs printed that asked it."""

    answers: dict[str, Answer] = field(default_factory=dict)
    programs: dict[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)
    alive_before_the_last: bool = False
    died_of_the_last: bool = False

    def ask(self, server: Server, what: str, **request: object) -> Answer:
        self.answers[what] = server.ask(what, **request)
        return self.answers[what]

    def ask_presets(self, server: Server) -> None:
        """First of all, because the server draws its noise from one generator, seeded at its start."""
        for name in PRESETS:
            self.ask(server, name, voice=name)

    def found(self, folder: Path, what: str, server: Server) -> None:
        """What a program left in `folder`, and what the model computed for it."""
        for wav in sorted(folder.glob("hello*.wav")):
            self.answers[what] = Answer(200, wav.read_bytes(), [])
            wav.unlink()
        self.answers[what] = replace(self.answers.get(what, Answer(0, b"", [])), events=server.take())

    def kill(self, server: Server, what: str, **request: object) -> None:
        """The last request: one that the engine does not survive."""
        self.alive_before_the_last = server.healthy()
        self.ask(server, what, **request)
        self.died_of_the_last = server.dies()
        said(f"  the engine {'is dead' if self.died_of_the_last else 'lives'}")


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


def encoded(samples: np.ndarray, rate: int = 24000, form: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="session")
def clips(work: Path) -> dict[str, Path]:
    """Speech of people and of voices that the codec was not trained on, each in another form."""
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


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file of the release by its content, but for what the tools remember of their own changes."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: sha256(path.read_bytes()).hexdigest() for name, path in files.items() if not name.startswith(STATE)}


def inject(folder: Path, *arguments: str) -> None:
    assert inject_encoder.main(["--model-dir", str(folder), "--encoder", str(WITHHELD_ENCODER), *arguments]) == 0


def patch(folder: Path, *arguments: str) -> int:
    return patch_tokenizer.main(["--model-dir", str(folder), *arguments])


@pytest.fixture(scope="session")
def without_encoder(environment: Path, plain: Path, clips: dict[str, Path], work: Path) -> Scene:
    scene, folder = Scene(), linked_copy(plain, work / "without_encoder")
    embedding = rows(folder, PRESETS[0])
    save(folder / "voice_embedding" / "broken.pt", embedding)
    edit(folder / "params.json", lambda p: p["multimodal"]["audio_tokenizer_args"]["voice"].update(broken=9))
    edit(folder / "tekken.json", lambda t: t["audio"]["voice_num_audio_tokens"].update(broken=len(embedding) + 1))
    with Server(environment, folder, work / "server without encoder") as server:
        scene.ask_presets(server)
        scene.ask(server, "ref_audio", ref_audio=sent(clips["16_bits.wav"]))
        scene.ask(server, "nobody", voice="nobody")
        scene.ask(server, "preset again", voice=PRESETS[0])
        scene.programs["client"] = client(server, work, str(clips["16_bits.wav"]), "Hello.", "never.wav")
        scene.kill(server, "a voice whose count is off by one", voice="broken")
        scene.programs["client to the dead"] = client(server, work, "--voice", "broken", "Hello.", "never.wav")
    return scene


@pytest.fixture(scope="session")
def cloning(plain: Path, clips: dict[str, Path], work: Path) -> Path:
    """The release with an encoder in a file of its own, and a voice of its own."""
    folder = linked_copy(plain, work / "cloning")
    inject(folder)
    assert patch(folder, "--voice", f"anna={clips['anna.wav']}") == 0
    return folder


def client(server: Server, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """examples/clone_voice.py, run in `folder`."""
    program = Path("examples/clone_voice.py").resolve()
    command = [sys.executable, str(program), *arguments, "--url", server.url]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    said(
        f"  clone_voice.py {' '.join(arguments)}: exit status {done.returncode}, {(done.stdout + done.stderr).strip()}"
    )
    return done


def snippets(heading: str) -> Iterator[tuple[str, str]]:
    """The blocks of code in a section of the README, each with its language."""
    section = Path("README.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    for block in section.split("```")[1::2]:
        language, _, code = block.partition("\n")
        if language:
            yield language, code


def follow(
    server: Server, environment: Path, folder: Path, language: str, code: str
) -> subprocess.CompletedProcess[str]:
    """Runs a block of the README in `folder`, with the server's address in the place of the usual one."""
    code = code.replace("http://localhost:8000", server.url)
    command = ["bash", "-euc", code] if language == "bash" else [str(environment / "bin" / "python"), "-c", code]
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "REPO": str(Path.cwd())}
    done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False)
    said(f"  README, {language}: exit status {done.returncode} {(done.stdout + done.stderr).strip()[-300:]}")
    return done


@pytest.fixture(scope="session")
def own_file(environment: Path, cloning: Path, clips: dict[str, Path], work: Path) -> Scene:
    """The encoder in a file of its own."""
    scene, folder = Scene(), linked_copy(cloning, work / "own_file")
    # what a hand that knows two of the three places leaves behind
    save(folder / "voice_embedding" / "halfway.pt", rows(folder, "anna"))
    edit(folder / "params.json", lambda p: p["multimodal"]["audio_tokenizer_args"]["voice"].update(halfway=9))
    desk = work / "desk"  # where a user of the clients sits
    desk.mkdir()
    (desk / "anna.wav").write_bytes(clips["anna.wav"].read_bytes())
    (desk / "stereo.wav").write_bytes(clips["stereo.wav"].read_bytes())
    (desk / "empty.wav").write_bytes(encoded(np.zeros(0)))
    (desk / "nan.wav").write_bytes(encoded(np.full(48000, np.nan), subtype="FLOAT"))
    with Server(environment, folder, work / "server with own file") as server:
        scene.ask_presets(server)
        for name, path in clips.items():
            scene.ask(server, name, ref_audio=sent(path))
        scene.ask(server, "voice anna", voice="anna")
        scene.ask(server, "voice ANNA", voice="ANNA")
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
        for given in (
            "anna.wav",
            "stereo.wav",
            "empty.wav",
            "nan.wav",
            "--voice=anna",
            "--voice=nobody",
            "--voice=halfway",
        ):
            scene.programs[given] = client(server, desk, given, "Hello there.", "hello.wav")
            scene.found(desk, f"client {given}", server)
        for i, (language, code) in enumerate(snippets("From a client")):
            scene.programs[f"README {i}"] = follow(server, environment, desk, language, code)
            scene.found(desk, f"README {i}", server)
        scene.kill(server, "an empty clip", ref_audio=data_url(encoded(np.zeros(0))))
    return scene


@pytest.fixture(scope="session")
def merged(environment: Path, cloning: Path, clips: dict[str, Path], work: Path) -> Scene:
    """The encoder in the checkpoint's own file."""
    scene, folder = Scene(), linked_copy(cloning, work / "merged")
    inject(folder, "--merge")
    with Server(environment, folder, work / "server merged") as server:
        scene.ask_presets(server)
        for name in ("16_bits.wav", "anna.wav"):
            scene.ask(server, name, ref_audio=sent(clips[name]))
        scene.ask(server, "voice anna", voice="anna")
        scene.kill(server, "NaN", ref_audio=data_url(encoded(np.full(48000, np.nan), subtype="FLOAT")))
    return scene


torch.set_num_threads(2)
