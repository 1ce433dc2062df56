"""Whatever is in the files of a release, in a name or in a server's answer: a sentence, and no traceback. Nothing
outside of the release changes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import random
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codec.config import CodecConfig, ReleaseError, read_params_file
from codec.files import INDEX_NAME
from codec.tensors import expected_codec, expected_encoder
from codec.voices import load_voice
from data.speech_server import SpeechError, _samples, base_url
from experiments.random_release import REAL, TINY, linked_copy, params_json
from language_model.config import LanguageModelConfig
from patch_tokenizer import named_clips
from release import changes
from release.changes import ADDED, EMBEDDINGS, PARAMS, STATE, TEKKEN, is_target
from release.named_voices import NamedVoices, read_named_voices, restored, steps
from tests.fuzzing import ODD, bounded, cases, mutated, refused_or_taken
from tests.injecting import inject
from tests.patching import PRESET, make_release, patch

NUMBERS = [0, -1, 1, 2, 1.0, 0.5, 2**31, 2**63, 10**30, 10**4000, float("nan"), float("inf"), True, None]
LISTS = ["2,2,2,2", "1000000000,2,2,2", "2," * 5000 + "2", "9" * 5000, "0,0,0,0", "-1,2,2,2", "1_0,2,2,2", "", ","]


def odd_value(dice: random.Random, depth: int = 0) -> Any:
    """Anything that JSON can hold."""
    kind = dice.randrange(6 if depth < 3 else 3)
    if kind == 3:
        return [odd_value(dice, depth + 1) for _ in range(dice.randrange(3))]
    if kind == 4:
        return {dice.choice(ODD): odd_value(dice, depth + 1) for _ in range(dice.randrange(3))}
    if kind == 5:
        nested: Any = 1
        for _ in range(dice.choice([1, 50, 99, 100, 101, 500])):
            nested = [nested] if dice.random() < 0.5 else {"a": nested}
        return nested
    return dice.choice([NUMBERS, LISTS, ODD][kind])


def with_odd_values(content: Any, dice: random.Random) -> Any:
    """The content with some of its values replaced, deleted or added to, anywhere in it."""
    copy = json.loads(json.dumps(content))
    for _ in range(dice.randint(1, 3)):
        place = copy
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = dice.choice(keys) if keys else "new"
            inner = place[key] if keys else None
            if isinstance(inner, dict | list) and inner and dice.random() < 0.8:
                place = inner
                continue
            break
        if isinstance(place, dict) and dice.random() < 0.2:
            place[dice.choice(ODD)] = odd_value(dice)
        elif isinstance(place, dict) and keys and dice.random() < 0.2:
            del place[key]
        elif keys or isinstance(place, dict):
            place[key] = odd_value(dice)
    return copy


def odd_json(content: Any, dice: random.Random) -> bytes:
    """JSON that may be valid, and may be what is expected."""
    if dice.random() < 0.1:
        return dice.choice(ODD).encode("utf-8", "surrogatepass")
    if dice.random() < 0.3:
        return mutated(json.dumps(content).encode(), dice)
    return json.dumps(with_odd_values(content, dice)).encode()


def replace(path: Path, content: bytes) -> None:
    """Writes a new file, because the old one may be a hard link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_a_params_json_is_taken_with_sizes_that_can_be_served_or_refused_in_a_sentence(tmp_path: Path) -> None:
    path, real = tmp_path / PARAMS, params_json(REAL)
    for dice in cases():
        path.write_bytes(odd_json(real, dice))
        params = refused_or_taken(lambda: read_params_file(path), ReleaseError)
        if not isinstance(params, dict):
            continue
        config = refused_or_taken(lambda: CodecConfig.from_params(params), ReleaseError)  # noqa: B023
        refused_or_taken(lambda: LanguageModelConfig.from_params(params), ReleaseError)  # noqa: B023
        if isinstance(config, CodecConfig):
            with bounded():
                assert len(expected_codec(config) | expected_encoder(config)) < 10_000
                assert len(config.codebook_sizes) < 2000
                assert config.frame_rate > 0


TARGETS = [PARAMS, TEKKEN, ADDED, f"{EMBEDDINGS}/x.pt", f"{EMBEDDINGS}/{PRESET}.pt"]
ELSEWHERE = [
    "../outside/mine",
    "OUTSIDE/mine",
    f"{EMBEDDINGS}/../../outside/mine",
    f"{EMBEDDINGS}/../README.md",
    "README.md",
]


def odd_journal(folder: Path, outside: Path, dice: random.Random) -> dict[str, Any]:
    """A journal whose digests fit, with the new files beside it; some of its targets are none of a release's."""
    work = folder / STATE / dice.choice(["change", "change", "undo"])
    for part in ("new", "old"):
        (work / part).mkdir(parents=True)
    journal: dict[str, Any] = {"undoable": dice.random() < 0.5, "steps": [], "old": {}}
    for number in range(dice.randint(1, 4)):
        target = dice.choice(TARGETS if dice.random() < 0.6 else [*ELSEWHERE, *ODD])
        target = target.replace("OUTSIDE", str(outside))
        new = None if dice.random() < 0.3 else dice.choice([b"new", b"{}", b"null", b"[" * 1000])
        if new is not None and dice.random() < 0.9:
            (work / "new" / str(number)).write_bytes(new)
        there = None
        with contextlib.suppress(OSError, ValueError):
            there = (folder / target).read_bytes()
        if there is not None:
            (work / "old" / str(number)).write_bytes(there)
        digests = [None if content is None else hashlib.sha256(content).hexdigest() for content in (new, there)]
        journal["steps"].append({"target": target, "sha256": digests[0]})
        journal["old"][target] = digests[1]
    text = json.dumps(journal).encode() if dice.random() < 0.6 else odd_json(journal, dice)
    (work / "journal.json").write_bytes(text)
    if dice.random() < 0.3:
        path = dice.choice([path for path in (folder / STATE).rglob("*") if path != work / "journal.json"])
        path.rename(outside / "moved")
        path.symlink_to(outside / "moved")
    return journal


def test_a_planted_journal_changes_nothing_but_the_files_of_voices(tmp_path: Path) -> None:
    for dice in cases():
        place = tmp_path / str(dice.random())
        folder, outside = place / "release", place / "outside"
        (folder / EMBEDDINGS).mkdir(parents=True)
        outside.mkdir()
        for path in (*(folder / name for name in (PARAMS, TEKKEN, "README.md")), outside / "mine"):
            path.write_bytes(b"{}")
        (folder / EMBEDDINGS / f"{PRESET}.pt").write_bytes(b"voice")
        odd_journal(folder, outside, dice)
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        refused_or_taken(lambda: changes.last_change(folder), ReleaseError)  # noqa: B023
        refused_or_taken(lambda: changes.recover(folder), ReleaseError)  # noqa: B023
        after = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for path in before.keys() | after.keys():
            name = os.path.relpath(path, folder)
            if before.get(path) != after.get(path):
                assert is_target(name) or name.startswith(f"{STATE}/"), name


def test_voices_of_a_release_are_read_and_changed_or_refused_in_a_sentence(tmp_path: Path) -> None:
    release = make_release(tmp_path / "release")
    texts = {name: json.loads((release / name).read_text()) for name in (PARAMS, TEKKEN)}
    added = {PRESET: ["a.wav"], "anna": ["b.wav", "声.wav"]}
    (release / STATE).mkdir()
    embedding = (release / EMBEDDINGS / f"{PRESET}.pt").read_bytes()

    def changed(voices: NamedVoices, name: str) -> None:
        then = voices.with_voice(name, 5, b"x", [name]).without_voice(PRESET)
        assert all(is_target(target) for target, _ in steps(voices, then))
        back = restored(then, dict.fromkeys(TARGETS, b"{}"))
        assert all(is_target(target) for target, _ in steps(then, back))

    for dice in cases():
        for name, content in texts.items():
            smaller = content if name == PARAMS else content | {"vocab": content["vocab"][:2]}
            replace(release / name, odd_json(smaller, dice) if dice.random() < 0.6 else json.dumps(smaller).encode())
        replace(release / ADDED, odd_json(added, dice))
        voices = refused_or_taken(lambda: read_named_voices(release), ReleaseError)
        params = refused_or_taken(lambda: CodecConfig.from_params(read_params_file(release / PARAMS)), ReleaseError)
        if isinstance(voices, NamedVoices) and params is not None:
            rows = {PRESET: 5, dice.choice(ODD): 7}
            repaired = refused_or_taken(lambda: voices.repaired(TINY, rows)[0], ReleaseError)  # noqa: B023
            if isinstance(repaired, NamedVoices):
                refused_or_taken(lambda: changed(repaired, dice.choice(["anna", PRESET])), ReleaseError)  # noqa: B023
        (release / EMBEDDINGS / "x.pt").write_bytes(mutated(embedding, dice))
        refused_or_taken(lambda: load_voice(release / EMBEDDINGS / "x.pt", TINY.embedding_dim), ReleaseError)
        argument = "".join(dice.choice([*ODD, "anna", "=", ",", "a.wav"]) for _ in range(dice.randint(1, 4)))
        clips = refused_or_taken(lambda: named_clips([argument]), ReleaseError)  # noqa: B023
        assert all(is_target(f"{EMBEDDINGS}/{name}.pt") for name in (clips if isinstance(clips, dict) else {}))


def odd_file(release: Path, dice: random.Random) -> None:
    """Spoils one file of the release."""
    name = dice.choice([PARAMS, TEKKEN, INDEX_NAME, "consolidated.safetensors", f"{EMBEDDINGS}/{PRESET}.pt", ADDED])
    path = release / name
    path.parent.mkdir(exist_ok=True)
    if not all(each.is_file() for each in (release / "consolidated.safetensors", path) if os.path.lexists(each)):
        return  # it is spoilt already
    weights = (release / "consolidated.safetensors").read_bytes()
    header = int.from_bytes(weights[:8], "little")
    if name == "consolidated.safetensors" and dice.random() < 0.5:
        text = odd_json(json.loads(weights[8 : 8 + header]), dice)
        replace(path, len(text).to_bytes(8, "little") + text + weights[8 + header :])
    elif name == "consolidated.safetensors":
        replace(path, mutated(weights[: 8 + header], dice) + weights[8 + header :])
    elif name == f"{EMBEDDINGS}/{PRESET}.pt":
        replace(path, mutated(path.read_bytes(), dice))
    elif name == INDEX_NAME:
        names = json.loads(weights[8 : 8 + header])
        replace(path, odd_json({"weight_map": dict.fromkeys(names, "consolidated.safetensors")}, dice))
    elif name == ADDED:
        replace(path, odd_json({PRESET: ["a.wav"]}, dice))
    else:
        replace(path, odd_json(json.loads(path.read_text()), dice))
    if dice.random() < 0.1:
        path.unlink()
        dice.choice(
            [path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path), lambda: path.symlink_to("/dev/zero")]
        )()


COMMANDS: list[tuple[Callable[..., int], list[str]]] = [
    (patch, ["--check"]),
    (patch, ["--list"]),
    (patch, []),
    (patch, ["--remove", PRESET, "--force"]),
    (patch, ["--undo"]),
    (inject, ["--check"]),
    (inject, ["--remove"]),
]


def test_a_command_on_a_spoilt_release_ends_with_a_status_and_at_most_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    sound = make_release(tmp_path / "sound")
    for dice in cases():
        release = linked_copy(sound, tmp_path / str(dice.random()))
        for _ in range(dice.randint(1, 2)):
            with contextlib.suppress(ValueError):  # what was changed already is no JSON
                odd_file(release, dice)
        run, arguments = dice.choice(COMMANDS)
        with bounded():
            status = run(release, *arguments)
        said = capsys.readouterr()
        assert status in (0, 1, 2)
        assert said.err.count("\n") == (status == 2 and "error: " in said.err), said.err
        assert not any(ord(letter) < 32 for letter in said.out.replace("\n", ""))


def answer(content: bytes, kind: str, dice: random.Random) -> Any:
    """An answer as `_samples` reads it."""
    stream, headers = io.BytesIO(content), Message()
    with contextlib.suppress(ValueError):
        headers["Content-Type"] = kind.encode("utf-8", "surrogatepass").decode("latin-1")  # as http.client reads it
    return SimpleNamespace(headers=headers, read=stream.read, read1=stream.read1, length=dice.choice([None, 0]))


def test_an_answer_of_any_server_is_speech_or_refused_in_a_sentence() -> None:
    error = {"error": {"message": "no", "code": 400}}
    kinds = ["audio/pcm", "text/html", "application/json", "", *ODD]
    for dice in cases():
        content = dice.choice([odd_json(error, dice), mutated(b"\x01\x02" * 100, dice), mutated(b"<html>", dice)])
        got = answer(content, dice.choice(kinds), dice)
        with contextlib.suppress(http.client.IncompleteRead):  # half a sample
            refused_or_taken(lambda: list(_samples(got, "http://localhost")), SpeechError)  # noqa: B023
        url = "".join(
            dice.choice(["http://", "https://", "localhost", ":8000", "/v1", "[::1]", *ODD]) for _ in range(4)
        )
        base = refused_or_taken(lambda: base_url(url), SpeechError)  # noqa: B023
        assert base is None or str(base).lower().startswith("http")
