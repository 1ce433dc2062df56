"""Clips in tables: parquet files, folders of `datasets` (save_to_disk), and lists of audio files (.tsv, .csv)."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.audio import BadClipError, Clip
from data.clips import DataError
from system.names import printable
from system.untrusted import parse_json, read_file, require_regular

if TYPE_CHECKING:
    from pyarrow import DataType, Schema

LISTS = {".tsv": "\t", ".csv": ","}
TABLES = (".parquet", ".arrow", *LISTS)
STATE = "state.json"  # of a folder that `Dataset.save_to_disk` wrote
MAX_STATE = 16 << 20  # bytes of it
SPLITS = "dataset_dict.json"  # of one that `DatasetDict.save_to_disk` wrote
PATTERN = re.compile(r"[*?\[\]]|::|://|[\udc80-\udcff]")  # `datasets` takes such a path for a pattern or a URL
USUAL = {"audio": "audio", "text": "text_normalized", "speaker": "speaker_id", "id": "id"}  # columns, LibriTTS-R's
OF_A_CLIP = ("speaker", "text", "language")
LONGEST = 300  # characters of a name; one of Common Voice's speakers has 128
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Columns:
    """The columns of a table: their names if the source gives any, else LibriTTS-R's. `a.b` is the part `b` of the
    column `a`. Only the audio has to be there, and what the source names."""

    audio: str = ""
    text: str = ""
    speaker: str = ""
    id: str = ""
    language: str = ""

    def found_in(self, path: Path, schema: Schema) -> dict[str, str]:
        """The columns that a table has, by what they mean. Raises DataError if one that has to be there is not."""
        found = {}
        for meaning, given in asdict(self).items():
            name = given or USUAL.get(meaning, "")
            if name and _has(schema, name):
                found[meaning] = name
            elif given or meaning == "audio":
                raise DataError(
                    f"{printable(path)} lacks the column {shown(name)}; it has {_listed(schema.names)}. "
                    f"Name the column in the source's section, as in {meaning}: NAME (docs/data.md)"
                )
        kind = _type_of(schema, found["audio"])
        if not _can_be_audio(kind):
            raise DataError(
                f"{printable(path)} has audio of type {str(kind)[:100]}, expected the bytes of a file, its path, or a "
                "struct of bytes and path"
            )
        return found


class TableClips:
    """The rows of tables, memory-mapped; a parquet file from an Arrow copy in the cache. Tables may differ in their
    types. `language` is that of clips whose row names none."""

    def __init__(self, paths: Sequence[Path], cache: str = "", columns: Columns | None = None, language: str = ""):
        self.language = language
        self.paths, self.tables, self.columns = [], [], []
        for path in paths:
            table, found = _open_table(path, cache, columns or Columns())
            if len(table):
                self.paths.append(path)
                self.tables.append(table)
                self.columns.append(found)
        self.ends = np.cumsum([len(table) for table in self.tables])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.tables else 0

    def read(self, index: int) -> Clip:
        part = int(np.searchsorted(self.ends, index, side="right"))
        row = index - int(self.ends[part - 1] if part else 0)
        path, columns = self.paths[part], self.columns[part]
        name = f"row {row} of {path.name}"
        try:
            values = _row(self.tables[part], row, columns)
        except (ValueError, OSError, OverflowError) as error:  # damaged, or text that is no UTF-8
            raise BadClipError(printable(name), "cannot be read", printable(str(error))[:200]) from error
        audio = values["audio"]
        stored = audio if isinstance(audio, dict) else {"path" if isinstance(audio, str) else "bytes": audio}
        content, place = stored.get("bytes"), stored.get("path")
        name = shown(str(values.get("id") or place or name))
        if not content and place:
            content = _beside(path, place)
            if content is None:
                detail = f"no bytes, and its path {shown(place)} does not exist: embed the sound, or copy the file"
                raise BadClipError(name, "holds no audio", detail)
        if not content:
            raise BadClipError(name, "holds no audio")
        speaker, text, language = (str(values[key]) if values.get(key) is not None else "" for key in OF_A_CLIP)
        return Clip(name, content, shown(speaker), text, language or self.language)

    def speakers(self) -> np.ndarray:
        """Rows of all tables with the same name are of one speaker, also if one table has numbers and another texts.
        Rows without a speaker are of one, too."""
        known: dict[str, int] = {}
        numbers = []
        for path, table, columns in zip(self.paths, self.tables, self.columns, strict=True):
            if "speaker" not in columns:
                numbers.append(np.full(len(table), known.setdefault("None", len(known))))
                continue
            for chunk in _column(table, columns["speaker"]).chunks:
                try:
                    encoded = chunk.dictionary_encode("encode")
                except (ValueError, NotImplementedError) as error:
                    raise DataError(
                        f"{printable(path)} has speakers of type {str(chunk.type)[:100]} in the column "
                        f"{columns['speaker']}, expected texts or numbers"
                    ) from error
                names = [str(name) for name in encoded.dictionary.to_pylist()]
                numbered = np.array([known.setdefault(name, len(known)) for name in names], dtype=np.int32)
                numbers.append(numbered[encoded.indices.to_numpy(zero_copy_only=False)])
        places = np.empty(len(known), dtype=np.int32)  # numbers follow the sorted names
        places[[known[name] for name in sorted(known)]] = np.arange(len(known), dtype=np.int32)
        return places[np.concatenate(numbers)]

    def texts(self) -> list[str]:
        """Each row's transcript. Raises DataError for a column of texts that are no UTF-8."""
        found: list[str] = []
        for path, table, columns in zip(self.paths, self.tables, self.columns, strict=True):
            try:
                values = _column(table, columns["text"]).to_pylist() if "text" in columns else [None] * len(table)
            except ValueError as error:
                raise DataError(f"{printable(path)} has transcripts that cannot be read: {error}") from error
            found += ["" if value is None else str(value) for value in values]
        return found


def saved_tables(folder: Path) -> list[Path]:
    """The tables of a folder that `Dataset.save_to_disk` wrote, in their order; none for another folder. Raises
    DataError for a folder with several splits, which names them."""
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{STATE}"))
        raise DataError(f"{printable(folder)} holds several splits: name one of them, {_listed(splits, folder)}")
    if not (folder / STATE).is_file():
        return []
    try:
        state = parse_json(read_file(folder / STATE, MAX_STATE))
        # a file name may not lead out of the folder
        return [folder / Path(part["filename"]).name for part in state["_data_files"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{printable(folder / STATE)} names no tables ({error!r}): save the data set again") from error


def _open_table(path: Path, cache: str, columns: Columns) -> tuple[Any, dict[str, str]]:
    """A table and its columns by their meaning. Raises DataError if it cannot be read."""
    try:
        import pyarrow as pa  # takes seconds to import, and only tables need it
        from datasets import Dataset
        from datasets.table import InMemoryTable
        from pyarrow import csv
        from pyarrow.parquet import read_metadata
    except ModuleNotFoundError as error:  # a server's environment may lack them
        raise DataError(f"{printable(path)}: reading tables needs {error.name}: `pip install datasets`") from error

    kind = path.suffix.lower()
    try:
        require_regular(path)
        if kind == ".arrow":
            table = Dataset.from_file(str(path)).data
            return table, columns.found_in(path, table.schema)
        if kind in LISTS:
            with path.open("rb") as file:
                quoted = '"' if kind == ".csv" else False
                table = csv.read_csv(file, parse_options=csv.ParseOptions(delimiter=LISTS[kind], quote_char=quoted))
            found = columns.found_in(path, table.schema)
            return InMemoryTable(table.select(sorted({_top(table.schema, name) for name in found.values()}))), found
        with path.open("rb") as file:
            about = read_metadata(file)
            schema = about.schema.to_arrow_schema()
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, pa.ArrowException) as error:
        raise DataError(f"{printable(path)} cannot be read as {kind[1:]}: {printable(str(error))[:300]}") from error
    found = columns.found_in(path, schema)
    if not about.num_rows:
        return [], found
    return _cached(path, cache, list(dict.fromkeys(_top(schema, name) for name in found.values()))), found


def _cached(path: Path, cache: str, columns: list[str]) -> Any:
    """The columns of a parquet file, memory-mapped from an Arrow copy in the cache. Raises DataError."""
    import datasets
    import pyarrow as pa
    from datasets.exceptions import DatasetGenerationError

    if not sys.stderr.isatty():  # a log file needs no progress bar of the copy into the cache
        datasets.utils.logging.disable_progress_bar()
    try:
        plain = _plain_path(path, Path(cache or datasets.config.HF_DATASETS_CACHE))
        return datasets.Dataset.from_parquet(str(plain), cache_dir=cache or None, columns=columns).data
    except (
        *(OSError, ValueError, TypeError, KeyError, NotImplementedError),
        *(pa.ArrowException, DatasetGenerationError),
    ) as error:
        reason = error.__cause__ or error  # a damaged file, or a full cache
        advice = "copy the file again"
        if isinstance(reason, OSError) and reason.errno in NO_ROOM:
            advice = "HF_CACHE names a folder with room for it"
        raise DataError(
            f"{printable(path)} could not be copied into the cache of memory-mapped rows "
            f"({printable(str(reason))[:300]}): {advice}"
        ) from error


def _plain_path(path: Path, cache: Path) -> Path:
    """The absolute path, or in the cache a link to it, if `datasets` would take the path for a pattern or a URL. The
    link's name changes with the file, as the name of the copy does. Raises OSError."""
    if not PATTERN.search(str(path.absolute())):
        return path.absolute()
    about = path.stat()
    state = f"{about.st_size} {about.st_mtime_ns} {path.absolute()}"
    link = cache / "links" / f"{hashlib.sha256(os.fsencode(state)).hexdigest()[:32]}.parquet"
    if PATTERN.search(str(link.absolute())):
        raise DataError(
            f"{printable(path)} and the cache {printable(cache)} both have names that look like patterns: set HF_CACHE "
            "to a folder without brackets, * and ? in its name"
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        with suppress(FileExistsError):  # another process was faster
            link.symlink_to(path.absolute())
    return link.absolute()


def _row(table: Any, index: int, columns: dict[str, str]) -> dict[str, Any]:
    """A row's values by their meaning."""
    needed = {_top(table.schema, name) for name in columns.values()}
    (row,) = table.fast_slice(index, 1).select(list(needed)).to_pylist()
    found = {}
    for meaning, name in columns.items():
        value: Any = row
        for part in _parts(table.schema, name):
            value = value.get(part) if isinstance(value, dict) else None
        found[meaning] = value
    return found


def _column(table: Any, name: str) -> Any:
    from pyarrow.compute import struct_field

    first, *rest = _parts(table.schema, name)
    column = table.column(first)
    return struct_field(column, rest) if rest else column


def _parts(schema: Schema, name: str) -> list[str]:
    """`a.b` as [a, b], unless there is a column of the whole name."""
    return [name] if name in schema.names else name.split(".")


def _top(schema: Schema, name: str) -> str:
    return _parts(schema, name)[0]


def _has(schema: Schema, name: str) -> bool:
    return _type_of(schema, name) is not None


def _type_of(schema: Schema, name: str) -> DataType | None:
    """The type of a column or a part of one, None if there is none, or several of that name."""
    from pyarrow.types import is_struct

    first, *rest = _parts(schema, name)
    if schema.names.count(first) != 1:
        return None
    kind = schema.field(first).type
    for part in rest:
        if not is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = kind.field(part).type
    return kind


def _can_be_audio(kind: DataType) -> bool:
    from pyarrow import types

    def is_text(kind: DataType) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def is_bytes(kind: DataType) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    if not types.is_struct(kind):
        return is_text(kind) or is_bytes(kind)
    inside = {field.name: field.type for field in kind}
    return ("bytes" in inside and is_bytes(inside["bytes"])) or ("path" in inside and is_text(inside["path"]))


def _beside(table: Path, place: str) -> Path | None:
    """The file that a row names: by its path, or relative to the table's folder or to the folder `clips` in it, as in
    Common Voice. None if there is none."""
    place = place.removeprefix("file://")
    for folder in (table.parent, table.parent / "clips"):
        try:
            if (folder / place).exists():
                return folder / place
        except (OSError, ValueError):  # a name that no file can have
            return None
    return None


def shown(text: str, limit: int = LONGEST) -> str:
    """A name from a table, which may be of any length, for messages and lists."""
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def _listed(names: Sequence[str], folder: Path | None = None) -> str:
    listed = [shown(str(folder / name)) if folder else shown(name, 60) for name in names[:20]]
    return ", ".join(listed) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"
