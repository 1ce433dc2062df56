"""Finds the encoder of a release, and plans the steps that inject or remove it.

The encoder is either merged into the checkpoint's own file, or in `consolidated_encoder.safetensors` beside it. The
steps have this order, so that between any two of them the release can be served, with the old encoder or the new one:

1. New and rewritten tensor files are renamed into place. The server does not open a file that the index does not list.
   If a tensor is in two files, it takes the one in the encoder's own file. The index may list a tensor too few or too
   many.
2. Then the index, because it must never list a file that does not exist.
3. Then the encoder's own file is deleted: the index no longer lists it.

One rename cannot replace two files. So if several files change (the codec is spread over shards), the encoder first
gets its own file, by steps 1 and 2, and is served from there meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from codec.config import CodecConfig, ReleaseError, read_params
from codec.files import CHECKPOINT_NAME, INDEX_NAME, held_twice, listed, read_index, served_files
from codec.tensors import ENCODER_PREFIXES, LAST_PROJECTION, expected_codec, expected_encoder
from release.splice import CHUNK, Delete, Step, Stored, TensorFile, Write, index_text, read_tensor_file

OWN_NAME = (
    "consolidated_encoder.safetensors"  # its name sorts behind the checkpoint's files, so the server reads it last
)

T = TypeVar("T")


@dataclass(frozen=True)
class Release:
    """The checkpoint's files as the server reads them, and the encoder's own file separately."""

    folder: Path
    config: CodecConfig
    index: dict[str, Any] | None
    files: dict[Path, TensorFile]  # without the encoder's own file
    own: TensorFile | None  # with no tensors if the file is damaged
    own_damage: str = ""

    @property
    def own_path(self) -> Path:
        return self.folder / OWN_NAME

    @property
    def own_is_served(self) -> bool:
        return self.own is not None and (self.index is None or OWN_NAME in self.index["weight_map"].values())

    @property
    def codec_files(self) -> list[Path]:
        """The files that hold one and the same tensor of the codec's last projection: several if there are copies."""
        every = (name for file in self.files.values() for name in file.tensors)
        last = next(name for name in every if name.startswith(LAST_PROJECTION))
        return [path for path, file in self.files.items() if last in file.tensors]

    @property
    def home(self) -> Path:
        """The file that a merged encoder is written into: consolidated.safetensors, or the shard with the codec's last
        projection. Raises ReleaseError if it is unclear which file that is."""
        found = self.codec_files
        if self.folder / CHECKPOINT_NAME in found:
            return self.folder / CHECKPOINT_NAME
        if len(found) > 1:
            names = listed(path.name for path in found)
            raise ReleaseError(
                f"{names} all hold the codec: move all but one out of {self.folder}; nothing was changed"
            )
        return found[0]

    @property
    def copies(self) -> str:
        """A sentence about tensors that two of the checkpoint's files hold, empty if there are none. An encoder's
        tensors do not count: they are in two files while shards are rewritten."""
        rest = {path: file.tensors.keys() - encoder_part(file.tensors) for path, file in self.files.items()}
        return held_twice({path: sorted(names) for path, names in rest.items()})

    @property
    def merged(self) -> dict[Path, dict[str, Stored]]:
        """The encoder's tensors in the checkpoint's own files."""
        found = {path: encoder_part(file.tensors) for path, file in self.files.items()}
        return {path: tensors for path, tensors in found.items() if tensors}

    @property
    def foreign(self) -> str:
        """A sentence about files with an encoder and nothing else that are not the encoder's own file, empty if there
        are none. An index that lists such a file makes it a part of the checkpoint."""
        alone = [path.name for path, tensors in self.merged.items() if len(tensors) == len(self.files[path].tensors)]
        if not alone or self.index is not None:
            return ""
        return f"{listed(alone)} holds an encoder, and the server reads it: move it out of the folder"


def encoder_part(by_name: Mapping[str, T]) -> dict[str, T]:
    """The items whose name is that of an encoder's tensor."""
    return {name: value for name, value in by_name.items() if name.startswith(ENCODER_PREFIXES)}


def read_release(folder: Path) -> Release:
    """Reads headers only. Raises ReleaseError if the folder is no release or does not fit its params.json."""
    config = CodecConfig.from_params(read_params(folder))
    files = {path: read_tensor_file(path) for path in served_files(folder, apart_from=OWN_NAME)}
    expected = expected_codec(config)
    held = {name: tensor for file in files.values() for name, tensor in file.tensors.items() if name in expected}
    wrong = misfits(held, expected, values=False)
    if wrong:
        raise ReleaseError(
            f"{folder}: the codec does not fit params.json: download both again from one source: {wrong}"
        )
    own, damage = None, ""
    if (folder / OWN_NAME).exists():
        try:
            own = read_tensor_file(folder / OWN_NAME)
        except ReleaseError as error:  # injecting replaces the file and removing deletes it: neither has to read it
            own, damage = TensorFile({}), str(error)
        foreign = sorted(set(own.tensors) - set(encoder_part(own.tensors)))
        if foreign:
            raise ReleaseError(
                f"{folder / OWN_NAME} holds tensors that are no encoder's ({listed(foreign)}): move this file away"
            )
    return Release(folder, config, read_index(folder), files, own, damage)


def misfits(tensors: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], values: bool) -> str:
    """Everything that is wrong with tensors that should be BF16 with these names and shapes, and, if `values` is true,
    finite. Empty if nothing is wrong."""
    known = {name: tensor for name, tensor in tensors.items() if name in expected}
    bf16 = {name: tensor for name, tensor in known.items() if tensor.dtype == "BF16"}
    buffer = bytearray(CHUNK)
    found = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} {list(tensor.shape)} instead of {list(expected[name])}"
            for name, tensor in known.items()
            if tensor.shape != expected[name]
        ],
        "not BF16": [f"{name} {tensor.dtype}" for name, tensor in known.items() if name not in bf16],
        "NaN or infinite": [name for name, tensor in bf16.items() if values and not tensor.is_finite(buffer)],
    }
    return "; ".join(f"{len(names)} {what}: {listed(names, 3)}" for what, names in found.items() if names)


def beside(release: Release, encoder: TensorFile) -> list[Step]:
    """The steps that write the encoder to its own file. Raises ReleaseError if an encoder is merged already."""
    _refuse_foreign(release)
    if release.merged:
        there = listed(path.name for path in release.merged)
        raise ReleaseError(f"{there} already holds an encoder: replace it with --merge, or remove it with --remove")
    return list(_changing(_own_steps(release, encoder)))


def merged(release: Release, encoder: TensorFile) -> list[Step]:
    """The steps that write the encoder into the file with the codec's last projection and remove it elsewhere."""
    rewritten = {}
    for path, file in release.files.items():
        add = encoder.tensors if path == release.home else {}
        leave_out = [name for name in release.merged.get(path, {}) if name not in add]
        if add or leave_out:
            rewritten[path] = file.spliced(add, leave_out)
    return _exchange(release, rewritten, encoder, release.home.name)


def removal(release: Release) -> list[Step]:
    """The steps that remove the encoder from every file, and delete its own file."""
    rewritten = {path: release.files[path].spliced({}, tensors) for path, tensors in release.merged.items()}
    served = {name: tensor for tensors in release.merged.values() for name, tensor in tensors.items()}
    if release.own and release.own_is_served:
        served |= release.own.tensors
    return _exchange(release, rewritten, TensorFile(served, {"format": "pt"}), None)


def _refuse_foreign(release: Release) -> None:
    if release.foreign:
        raise ReleaseError(f"{release.foreign}; nothing was changed")


def _exchange(
    release: Release, rewritten: Mapping[Path, TensorFile], meanwhile: TensorFile, home: str | None
) -> list[Step]:
    """The steps that rewrite files of the checkpoint and delete the encoder's own file. `home` is the name of the file
    that has the encoder then, None for none. `meanwhile` is served while several files change. Raises
    ReleaseError if a copy would be rewritten: nobody wants a backup changed."""
    _refuse_foreign(release)
    if release.copies and set(rewritten) - {release.home}:
        raise ReleaseError(f"{release.copies}: move the copy out of the folder; nothing was changed")
    steps = _own_steps(release, meanwhile) if len(rewritten) > 1 else []
    steps += [Write(path, content, like=path) for path, content in rewritten.items()]
    steps += _index_steps(release, home)
    if release.own or len(rewritten) > 1:
        steps.append(Delete(release.own_path))
    return list(_changing(steps))


def _own_steps(release: Release, encoder: TensorFile) -> list[Step]:
    return [Write(release.own_path, encoder, like=release.codec_files[0]), *_index_steps(release, OWN_NAME)]


def _index_steps(release: Release, home: str | None) -> list[Step]:
    """Lets the index, where there is one, name `home` as the file of every encoder tensor, or none of them."""
    if release.index is None:
        return []
    sizes = {name: 2 * math.prod(shape) for name, shape in expected_encoder(release.config).items()}
    before = release.index["weight_map"]
    after = {name: file for name, file in before.items() if not name.startswith(ENCODER_PREFIXES)}
    was_sorted = list(after) == sorted(after)
    after |= dict.fromkeys(sizes, home) if home else {}
    index = release.index | {"weight_map": dict(sorted(after.items())) if was_sorted else after}
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        change = sum(sizes.get(name, 0) for name in after) - sum(sizes.get(name, 0) for name in before)
        index["metadata"] = metadata | {"total_size": metadata["total_size"] + change}
    path = release.folder / INDEX_NAME
    return [Write(path, index_text(path.read_text(encoding="utf-8"), index), like=path)]


def _changing(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps without those that would write an index that is already there."""
    there: dict[Path, bytes] = {}
    for step in steps:
        if isinstance(step, Write) and isinstance(step.content, bytes):
            if there.get(step.target, step.target.read_bytes()) == step.content:
                continue
            there[step.target] = step.content
        yield step
