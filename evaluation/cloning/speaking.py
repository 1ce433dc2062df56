"""Asks servers to speak prompts, one request at a time, and keeps what they speak: a stopped run resumes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from data import DataError
from data.reference import Reference, read_clip
from data.speech_server import (
    NoServerError,
    SpeechError,
    Timing,
    base_url,
    healthy,
    request_by_clip,
    request_by_name,
    speak,
)
from evaluation.cloning.prompts import Prompt
from evaluation.provenance import fingerprint, sha256
from evaluation.scoring import Progress
from evaluation.speech import Speech, prepared_clip
from system.environment import expand_home
from system.files import write_whole

DEFAULT_URL = "http://127.0.0.1:8000"
CLIP = "clip"  # the results' name for the reference clips themselves
LONGEST_NAME = 60  # characters of a file's name


@dataclass(frozen=True)
class System:
    """A server that speaks in the prompts' voices, or in its named `voice`. `reference` is the clip that a named voice
    is compared with, if it was given."""

    name: str
    url: str
    voice: str = ""
    reference: Speech | None = None
    longest: float | None = None  # seconds of speech at which the server is to stop

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """The request's body. The prompt needs a clip if the system has no voice."""
        if self.voice:
            return request_by_name(prompt.text, self.voice, self.longest)
        assert prompt.clip is not None
        return request_by_clip(prompt.text, Reference(prompt.clip.waveform[None], ()), self.longest)


@dataclass(frozen=True)
class Utterance:
    """What a system made of a prompt: a wav file with its SHA-256 and timing, or `failed`, the reason for none."""

    wav: Path
    sha256: str = ""
    timing: Timing | None = None
    failed: str = ""

    def waveform(self) -> Tensor:
        """The speech [T] at 24 kHz, float32."""
        return torch.from_numpy(soundfile.read(self.wav, dtype="float32")[0])


@dataclass
class Spoken:
    """The utterances of a system in the order of the prompts; None for a prompt that it was not asked, because the
    server was gone. `kept` counts those of an earlier run."""

    utterances: list[Utterance | None] = field(default_factory=list)
    kept: int = 0
    gone: str = ""  # why the server was gone

    @property
    def asked(self) -> int:
        return sum(utterance is not None for utterance in self.utterances)


def read_systems(
    servers: Sequence[str], voices: Sequence[str], with_clips: bool, longest: float | None = None
) -> list[System]:
    """The systems of `--server [NAME=]URL ...` and `--voice NAME[=CLIP] ...`: of each server first the one that speaks
    in the clips' voices, if there are clips, then its named voices. Raises DataError for a bad name, SpeechError for a
    bad URL, and BadClipError for a bad clip."""
    named: dict[str, str] = {}
    for text in servers or [DEFAULT_URL]:
        match = re.fullmatch(r"(?:([\w.-]+)=)?(https?://.*)", text)
        if not match:
            raise DataError(f"--server {text}: expected NAME=URL or a URL such as {DEFAULT_URL}")
        base_url(match[2])
        name = match[1] or re.sub(r"https?://|/.*", "", match[2])
        if name in named or name == CLIP:
            raise DataError(f"--server {text}: the name {name!r} is taken: give another one, NAME=URL")
        named[name] = match[2]
    spoken = [_voice(text) for text in voices]
    systems = []
    for name, url in named.items():
        if with_clips:
            systems.append(System(name, url, longest=longest))
        for voice, reference in spoken:
            systems.append(System(voice if len(named) == 1 else f"{name}:{voice}", url, voice, reference, longest))
    names = [system.name for system in systems]
    if len({*names, CLIP}) <= len(names):
        raise DataError(f"two systems have the same name, or one is called {CLIP!r}: {', '.join(names)}")
    if not systems:
        raise DataError("nothing speaks: give reference clips with --data or --list, or names with --voice")
    return systems


def _voice(text: str) -> tuple[str, Speech | None]:
    voice, _, clip = text.partition("=")
    clip = expand_home(clip)
    if not voice:
        raise DataError(f"--voice {text}: expected NAME or NAME=CLIP")
    return voice, replace(prepared_clip(read_clip(clip), clip)[0], speaker=voice) if clip else None


def speak_all(
    systems: Sequence[System], prompts: Sequence[Prompt], folder: Path, progress: Progress
) -> dict[str, Spoken]:
    """Lets each system speak all prompts into `folder`/SYSTEM/PROMPT.wav. What an earlier run left is kept if the same
    was asked and the file is undamaged; prompts that failed are asked again. Raises NoServerError, before anything is
    asked, if a server that is needed does not answer; a server that is gone later is noted, and the next one asked."""
    found = {}
    for system in systems:
        (folder / file_name(system.name)).mkdir(parents=True, exist_ok=True)
        found[system.name] = Spoken([_kept(system, prompt, folder) for prompt in prompts])
        found[system.name].kept = found[system.name].asked
    for system in systems:
        if found[system.name].kept < len(prompts) and not healthy(system.url):
            start = "start one with `vllm serve $MODEL_DIR --omni`, or give another address with --server"
            raise NoServerError(f"{system.name}: no server answers at {system.url}: {start}")
    for system in systems:
        spoken = found[system.name]
        for i, prompt in enumerate(progress(prompts, system.name, len(prompts))):
            if spoken.utterances[i] is None and not spoken.gone:
                spoken.utterances[i] = utterance = _speak(system, prompt, folder)
                if utterance.failed and not healthy(system.url):
                    spoken.gone = utterance.failed
    return found


def _place(system: System, prompt: Prompt, folder: Path) -> Path:
    return folder / file_name(system.name) / f"{file_name(prompt.name)}.wav"


def _speak(system: System, prompt: Prompt, folder: Path) -> Utterance:
    wav, body = _place(system, prompt, folder), system.request(prompt)
    record = wav.with_suffix(".json")
    record.unlink(missing_ok=True)
    try:
        timing = speak(system.url, body, wav)
    except SpeechError as error:
        return Utterance(wav, failed=str(error))
    utterance = Utterance(wav, sha256(wav), timing)
    about = {"request": _asked(system, prompt), "text": prompt.text, "sha256": utterance.sha256, **asdict(timing)}
    write_whole(record, json.dumps(about, indent=1) + "\n")  # last: without it the file does not count
    return utterance


def _kept(system: System, prompt: Prompt, folder: Path) -> Utterance | None:
    """What an earlier run left for the same request; None if it is missing, damaged or of another request."""
    wav = _place(system, prompt, folder)
    try:
        about = json.loads(wav.with_suffix(".json").read_text(encoding="utf-8"))
        timing = Timing(*(float(about[name]) for name in ("speech", "first", "took")))
        valid = about["request"] == _asked(system, prompt) and about["sha256"] == sha256(wav)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return Utterance(wav, about["sha256"], timing) if valid else None


def _asked(system: System, prompt: Prompt) -> str:
    """A fingerprint of the request. Of a clip it has the samples, because its WAV file also has the time in it."""
    body = system.request(prompt)
    if not system.voice and prompt.clip:
        body["ref_audio"] = fingerprint(prompt.clip.waveform)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def file_name(name: str) -> str:
    """A file's name for any name: letters, digits, `_`, `-` and dots, and a fingerprint where something was changed, so
    that different names stay different."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip(".")[:LONGEST_NAME]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
