"""The named voices of a release. Three places have to agree on each:

    params.json     multimodal.audio_tokenizer_args.voice[NAME]   an index
    tekken.json     audio.voice_num_audio_tokens[NAME]            N, the number of audio tokens in the prompt
    voice_embedding/NAME.pt                                       a tensor [N, dim], the end-of-audio row last

The server looks the name up in params.json, takes the count from tekken.json and then reads the file. A file without
a name is harmless. A count without a name gives status 400, a name without a count status 500. A name whose file is
missing or has another length kills the engine. So `steps` writes the name last when it adds a voice, and deletes the
name first when it removes or replaces one: at worst, the voice is missing for a moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from codec.config import CodecConfig, ReleaseError
from codec.files import MAX_TOKENIZER, shortened
from release.changes import (
    ADDED,
    EMBEDDINGS,
    PARAMS,
    TEKKEN,
    Content,
    Replacement,
    embedding_path,
    is_file_name,
    read,
)
from release.json_text import with_entry, without_entry
from system.untrusted import parse_json

INDEX = ("multimodal", "audio_tokenizer_args", "voice")
COUNT = ("audio", "voice_num_audio_tokens")
MAX_INDEX = 1 << 31  # of a voice; indices from here on are not counted further


@dataclass(frozen=True)
class NamedVoices:
    """The texts of params.json and tekken.json. `added`: the voices that patch_tokenizer.py added (all others are
    presets), and the names of their clips. `embeddings`: files in `voice_embedding/` to write or delete."""

    params: str
    tekken: str
    added: dict[str, list[str]]
    embeddings: dict[str, Content] = field(default_factory=dict)

    @cached_property
    def indices(self) -> dict[str, Any]:
        """Name -> index in params.json."""
        return dict(_section(json.loads(self.params), INDEX))

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """The part of tekken.json that concerns speech: without its vocabulary."""
        return {key: value for key, value in json.loads(self.tekken).items() if key == "audio"}

    @property
    def counts(self) -> dict[str, Any]:
        """Name -> number of tokens in tekken.json."""
        return dict(_section(self.tokenizer, COUNT))

    def with_voice(self, name: str, rows: int, file: bytes, clips: list[str]) -> NamedVoices:
        """With a new voice, or with another one under the same name."""
        numbers = [index for index in self.indices.values() if isinstance(index, int) and 0 <= index < MAX_INDEX]
        index = self.indices.get(name, max(numbers, default=-1) + 1)
        return replace(
            self,
            params=with_entry(self.params, (*INDEX, name), index),
            tekken=with_entry(self.tekken, (*COUNT, name), rows),
            added=self.added | {name: clips},
            embeddings=self.embeddings | {embedding_path(name): file},
        )

    def without_voice(self, name: str) -> NamedVoices:
        """Without the voice, in all places that name it."""
        own_file: dict[str, Content] = {embedding_path(name): None} if is_file_name(name) else {}
        return replace(
            self,
            params=without_entry(self.params, (*INDEX, name)) if name in self.indices else self.params,
            tekken=without_entry(self.tekken, (*COUNT, name)) if name in self.counts else self.tekken,
            added={key: clips for key, clips in self.added.items() if key != name},
            embeddings=self.embeddings | own_file,
        )

    def missing_keys(self, config: CodecConfig) -> list[tuple[tuple[str, ...], Any]]:
        """The keys that a speech request needs and that tekken.json lacks, with their values."""
        # The spectrogram's values are for transcription: no speech request uses them.
        spectrogram = {"num_mel_bins": 128, "hop_length": 160, "window_size": 400}
        needed: list[tuple[tuple[str, ...], Any]] = [
            (("audio",), {}),
            (("audio", "sampling_rate"), config.sampling_rate),
            (("audio", "frame_rate"), config.frame_rate),
            (("audio", "audio_encoding_config"), {}),
            *((("audio", "audio_encoding_config", key), value) for key, value in spectrogram.items()),
            (COUNT, {}),
        ]
        return [(path, value) for path, value in needed if _lacks(self.tokenizer, path)]

    def repaired(self, config: CodecConfig, rows: Mapping[str, int]) -> tuple[NamedVoices, list[str]]:
        """With missing keys added and wrong counts corrected, and a line for each correction. `rows`: name -> number of
        rows of every embedding without faults."""
        params, tekken, done = self.params, self.tekken, []
        if _lacks(json.loads(params), INDEX):
            params = with_entry(params, INDEX, {})
            done.append(f"{PARAMS}: {'.'.join(INDEX)}")
        for path, value in self.missing_keys(config):
            tekken = with_entry(tekken, path, value)
            done.append(f"{TEKKEN}: {'.'.join(path)}")
        for name, count in rows.items():
            known = (
                name in self.indices | self.counts and name == name.lower()
            )  # the server lowers names: no request reaches another one
            if known and self.counts.get(name) != count:
                tekken = with_entry(tekken, (*COUNT, name), count)
                done.append(f"{TEKKEN}: {'.'.join(COUNT)}.{name} = {count}")
        return (replace(self, params=params, tekken=tekken) if done else self), done


def read_named_voices(folder: Path) -> NamedVoices:
    """Raises ReleaseError if a file is missing, unreadable or not the expected JSON."""
    added = _added(read(folder, ADDED), folder / ADDED)
    voices = NamedVoices(_text(folder, PARAMS), _text(folder, TEKKEN), added)
    _ = voices.indices, voices.counts
    return voices


def embedding_files(folder: Path) -> dict[str, Path]:
    """Name -> file of every embedding in the folder."""
    return {path.stem: path for path in sorted((folder / EMBEDDINGS).glob("*.pt"))}


def steps(now: NamedVoices, then: NamedVoices) -> list[Replacement]:
    """The steps from `now` to `then`, in an order in which the release can be served between any two of them."""
    hidden = now.params
    for name in now.indices:
        if embedding_path(name) in then.embeddings:
            hidden = without_entry(hidden, (*INDEX, name))
    wanted: list[tuple[str, Content, Content]] = [
        (ADDED, _record(now), _record(then)),
        (PARAMS, now.params.encode(), hidden.encode()),
        *((target, b"", content) for target, content in then.embeddings.items() if content is not None),
        (TEKKEN, now.tekken.encode(), then.tekken.encode()),
        (PARAMS, hidden.encode(), then.params.encode()),
        *((target, b"", content) for target, content in then.embeddings.items() if content is None),
    ]
    return [(target, after) for target, before, after in wanted if before != after]


def restored(now: NamedVoices, before: Mapping[str, Content]) -> NamedVoices:
    """The voices as they were when the files had the content `before`."""
    record = "the record of the last change"
    return NamedVoices(
        _object(before.get(PARAMS) or now.params.encode(), f"{PARAMS} in {record}"),
        _object(before.get(TEKKEN) or now.tekken.encode(), f"{TEKKEN} in {record}"),
        _added(before.get(ADDED, _record(now)), f"{ADDED} in {record}"),
        {target: content for target, content in before.items() if target.startswith(EMBEDDINGS)},
    )


def _record(voices: NamedVoices) -> Content:
    return json.dumps(voices.added, indent=1).encode() if voices.added else None


def _text(folder: Path, name: str) -> str:
    content = read(folder, name)
    if content is None:
        raise ReleaseError(
            f"{folder} holds no {name}: give the folder of a Voxtral TTS release, or download that file again"
        )
    return _object(content, folder / name)


def _object(content: bytes, where: str | Path) -> str:
    """The text of a JSON object. Raises ReleaseError for anything else."""
    if not isinstance(_parsed(content, where), dict):
        raise ReleaseError(f"{where} is no JSON object: download it again")
    return content.decode()


def _added(content: Content, where: str | Path) -> dict[str, list[str]]:
    """What `_record` wrote. Raises ReleaseError for anything else."""
    added = _parsed(content, where) if content is not None else {}
    if not isinstance(added, dict) or not all(
        isinstance(clips, list) and all(isinstance(clip, str) for clip in clips) for clips in added.values()
    ):
        raise ReleaseError(f"{where} does not name voices and their clips: delete it, then every voice is a preset")
    return added


def _parsed(content: bytes, where: str | Path) -> Any:
    if len(content) > MAX_TOKENIZER:
        raise ReleaseError(f"{where} has more than {MAX_TOKENIZER >> 20} MB: download it again")
    try:
        return parse_json(content)
    except ValueError as error:
        raise ReleaseError(f"{where} is not valid JSON ({error}): download it again") from error


def _section(parsed: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """The object at `path`, empty if there is none. Raises ReleaseError if something else is there."""
    for depth, key in enumerate(path, 1):
        parsed = parsed.get(key)
        if parsed is None:
            return {}
        if not isinstance(parsed, dict):
            where = ".".join(path[:depth])
            raise ReleaseError(f"{where} is {shortened(repr(parsed))}, expected an object: download that file again")
    return parsed


def _lacks(parsed: dict[str, Any], path: tuple[str, ...]) -> bool:
    return _section(parsed, path[:-1]).get(path[-1]) is None
