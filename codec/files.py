"""The files of a release: which of them the server reads, and what lies in each. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from codec.config import ReleaseError
from system.names import printable
from system.untrusted import parse_json, read_file, require_regular

CHECKPOINT_NAME = "consolidated.safetensors"
INDEX_NAME = "consolidated.safetensors.index.json"
MAX_INDEX = 16 << 20  # bytes; an index of 386 tensors has 40 kB
MAX_HEADER = 16 << 20  # bytes of a safetensors file's header; that of 386 tensors has 60 kB
MAX_TOKENIZER = 24 << 20  # bytes of tekken.json; the release has 15 MB, others 19 MB


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it, over the files the server reads, a later one winning."""
    return {name: path for path in served_files(folder) for name in tensor_names(path)}


def served_files(folder: Path, apart_from: str = "") -> list[Path]:
    """The checkpoint's files as the server reads them: every `consolidated*.safetensors` in the order of their names,
    or those of them that the index file lists, where there is one."""
    paths = [path for path in sorted(folder.glob("consolidated*.safetensors")) if path.name != apart_from]
    index = read_index(folder)
    if index is not None:
        names = set(index["weight_map"].values()) - {apart_from}
        missing = sorted(names - {path.name for path in paths})
        if missing:
            todo = "get them again (an encoder's own is taken off the list by inject_encoder.py --remove)"
            raise ReleaseError(f"{folder / INDEX_NAME} lists files that are not there: {listed(missing)}: {todo}")
        paths = [path for path in paths if path.name in names]
    if not paths:
        raise ReleaseError(
            f"{folder} holds no consolidated*.safetensors: it is not the folder of a Voxtral TTS release"
        )
    return paths


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a checkpoint in several files, None where there is none. Its `weight_map` names each tensor's file,
    its `metadata` the `total_size` in bytes."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        index = parse_json(read_file(path, MAX_INDEX))
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ReleaseError(f"{path} is not valid JSON ({error}): download it again") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ReleaseError(f"{path} holds no weight_map, which names the file of every tensor: download it again")
    return index


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file. Raises ReleaseError where it is truncated or none."""
    with open_tensors(path) as file:
        return list(file.keys())


def open_tensors(path: Path, framework: str = "np") -> Any:
    """A safetensors file opened by the library: a context. Raises ReleaseError where it is truncated or none."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ReleaseError(f"{path} is truncated or no safetensors file (a header of {length} bytes): get it again")
        return safe_open(path, framework=framework)
    except FileNotFoundError:
        raise ReleaseError(f"{path} does not exist") from None
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ReleaseError(f"{path} is truncated or no safetensors file ({error}): get it again") from error


def held_twice(files: Mapping[Path, Iterable[str]]) -> str:
    """A sentence about tensors that several files hold, empty if there are none. `files`: the names in each file, in
    the order in which the server reads them."""
    holders: dict[str, list[str]] = {}
    for path, names in files.items():
        for name in names:
            holders.setdefault(name, []).append(shortened(path.name))
    twice = [tuple(paths) for paths in holders.values() if len(paths) > 1]
    if not twice:
        return ""
    paths = twice[0]
    return f"{' and '.join(paths)} hold the same {twice.count(paths)} tensors, and the server uses those of {paths[-1]}"


def listed(items: Iterable[str], limit: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    items = list(items)
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(shortened(item) for item in items[:limit]) + more


def shortened(text: str, limit: int = 200) -> str:
    """The text to be printed, or its beginning if it is long: names in a release may have any length, and hold
    characters that would control a terminal."""
    shown = printable(text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
