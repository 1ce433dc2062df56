"""Data sets of the hub: a split's parquet files, downloaded once into a cache."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections import defaultdict
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from filelock import FileLock

from data.clips import DataError
from system.files import write_whole
from system.untrusted import parse_json, read_file
from system.yaml_text import parse_yaml_text

SPACE = 2.1  # times the download: the parquet files and their memory-mapped copy
LOCAL_FORMS = (
    "A source can also be local data: the corpus's own folders (speaker/chapter/*.wav with "
    "*.normalized.txt), any folder of audio files, parquet files"
)
CARD, CARD_HEAD = "README.md", re.compile(r"---\s*\n(.*?)\n---\s*\n", re.S)  # its head says which files each split has
MAX_CARD, MAX_CARD_HEAD, CARD_LEVELS = 4 << 20, 100_000, 30  # bytes, characters, levels of YAML
MAX_LISTING = 16 << 20  # bytes
NUMBERED = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")  # a parquet file's name, without suffix


def download(name: str, split: str, cache: str, endpoint: str | None = None) -> list[Path]:
    """The parquet files of a data set's split, sorted by name. `split` is one split (`train.clean.100`), the beginning
    of several splits' names (`train`), or empty for all. If all files are in `cache`, the hub is not asked; an
    interrupted download continues with the missing files. If the hub cannot be reached, the hub's own snapshot in
    `cache` is used, with a warning, if no file and no split is missing. Of several processes on a machine one downloads
    and the others wait. Raises DataError if the data set can be had from neither, or if the cache is too small."""
    from huggingface_hub import constants, snapshot_download  # slow to import, and only needed here
    from huggingface_hub.errors import DryRunError, HTTPError  # HTTPError is that of its HTTP client

    root = Path(cache or constants.HF_HUB_CACHE)
    part = split.replace("/", "--") or "all"
    listing = root / f"{name.replace('/', '--')}.{part}.json"  # written when all of its files are there
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(listing.with_suffix(".lock")):
            paths = _listed(listing, root)
            if paths and all(path.exists() for path in paths):
                return paths
            found = snapshot_download(
                name, repo_type="dataset", cache_dir=root, allow_patterns="*.parquet", endpoint=endpoint, dry_run=True
            )
            files = {info.filename: info for info in found if of_split(info.filename, split)}
            if not files:
                splits = sorted({Path(info.filename).name.split("-0")[0] for info in found})
                raise DataError(f"{name} on the hub has no split {split!r}; it has {', '.join(splits) or 'no parquet'}")
            missing = sum(info.file_size or 0 for info in files.values() if info.will_download)
            free = shutil.disk_usage(root).free
            if missing * SPACE > free:
                raise DataError(
                    f"{root} has {free / 1e9:.1f} GB free, {name}:{split} needs {missing * SPACE / 1e9:.1f} GB: set "
                    "HF_CACHE to a folder with room"
                )
            folder = snapshot_download(
                name, repo_type="dataset", cache_dir=root, allow_patterns=sorted(files), endpoint=endpoint
            )
            paths = [Path(folder) / file for file in sorted(files)]
            write_whole(listing, json.dumps([str(path.relative_to(root.resolve())) for path in paths]))
            return paths
    except DryRunError as error:
        return _from_snapshot(name, split, root, _reason(error.__cause__ or error))
    except (OSError, HTTPError, RuntimeError) as error:  # RuntimeError comes from the hub's own transfer library
        raise DataError(
            f"{name} was not downloaded into {root} ({_reason(error)}); repeat the command to download the rest. "
            f"{LOCAL_FORMS}"
        ) from error


def _listed(listing: Path, root: Path) -> list[Path]:
    """The files that an earlier run noted, none if its note is missing or damaged."""
    with suppress(OSError, ValueError, TypeError):
        return [root / path for path in parse_json(read_file(listing, MAX_LISTING))]
    return []


def of_split(file: str, split: str) -> bool:
    """Whether a parquet file belongs to a split, by its name: `data/dev.clean/dev.clean-00000-of-00004.parquet`. The
    corpus itself writes splits with dashes. `german/train` only takes files in a folder `german`."""
    folder, _, name = split.rpartition("/")
    if folder and not f"/{Path(file).parent.as_posix()}".endswith(f"/{folder}"):
        return False
    stem, wanted = _spelled(Path(file).stem), _spelled(name)
    return not name or stem == wanted or stem.startswith(wanted + ".")


def _spelled(name: str) -> str:
    return re.sub(r"[-_]", ".", name)


def _from_snapshot(name: str, split: str, root: Path, reason: str) -> list[Path]:
    """The split's files in the snapshot that the hub's own programs left in the cache. Raises DataError if there is no
    snapshot; if it lacks files, by their numbers or by the data set's card; and if `split` may mean several splits and
    nothing says which. The message names the snapshot's folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    unreachable = f"{name} cannot be had from the hub ({reason})"
    snapshots = root / f"datasets--{name.replace('/', '--')}" / "snapshots"
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", cache_dir=root, local_files_only=True))
    except LocalEntryNotFoundError as error:
        others = ", ".join(str(path) for path in sorted(snapshots.glob("*")))
        cached = f" The cache has {others}: name the folder in it that has the split's files." if others else ""
        raise DataError(f"{unreachable}. {LOCAL_FORMS}.{cached}") from error
    every = sorted(path for path in folder.rglob("*.parquet") if of_split(path.relative_to(folder).as_posix(), split))
    paths = [path for path in every if path.exists()]  # a link may lead nowhere
    names = [path.relative_to(folder).as_posix() for path in paths]
    declared = [pattern for pattern in _declared(folder) if of_split(_before_wildcards(pattern), split)]
    absent = [pattern for pattern in declared if not any(fnmatch(name, pattern) for name in names)]
    gone = {path.name for path in every} - {path.name for path in paths}
    missing = sorted(gone | {*_missing_numbers(paths), *absent})
    if not paths or missing:
        lacks = f"{len(missing)} files of it, such as {missing[0]}" if missing else "all files of it"
        raise DataError(
            f"{unreachable}, and its snapshot in the cache, {folder}, is not complete for {split or 'all splits'!r}: "
            f"it lacks {lacks}. Download them, or name the folders in it to use"
        )
    splits = sorted({match["split"] if (match := NUMBERED.fullmatch(path.stem)) else path.stem for path in paths})
    if not declared and {_spelled(each) for each in splits} != {_spelled(split.rpartition("/")[2])}:
        raise DataError(
            f"{unreachable}. Its snapshot in the cache, {folder}, has {', '.join(splits)}, and no {CARD} that says "
            f"whether {split or 'the whole data set'!r} means more: name the splits to use, as in {name}:{splits[0]}"
        )
    warnings.warn(f"{unreachable}: using {len(paths)} files of {', '.join(splits)} in {folder}", stacklevel=3)
    return paths


def _declared(folder: Path) -> list[str]:
    """The patterns of all files, such as `data/train-*`, by the card of a data set; none if the card does not say."""
    try:
        head = CARD_HEAD.match(read_file(folder / CARD, MAX_CARD).decode("utf-8-sig"))
        about = parse_yaml_text(head[1], CARD_LEVELS) if head and len(head[1]) <= MAX_CARD_HEAD else {}
        files = [each["path"] for config in about["configs"] for each in config["data_files"]]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    patterns = [pattern for each in files for pattern in (each if isinstance(each, list) else [each])]
    return [pattern for pattern in patterns if isinstance(pattern, str) and PurePosixPath(pattern).name]


def _before_wildcards(pattern: str) -> str:
    """A pattern as the name of a file of its split: `data/train-*.parquet` as `data/train.parquet`."""
    path = PurePosixPath(pattern)
    return str(path.with_name(re.sub(r"[-_.]?[*?\[].*|\.parquet$", "", path.name) + ".parquet"))


def _missing_numbers(paths: list[Path]) -> list[str]:
    """The names of parquet files that are missing between others: `train-00001-of-00003` names how many there are."""
    numbers: dict[tuple[Path, str, str], set[int]] = defaultdict(set)
    for path in paths:
        match = NUMBERED.fullmatch(path.stem)
        if match:
            numbers[path.parent, match["split"], match["count"]].add(int(match["number"]))
    return [
        f"{split}-{number:05}-of-{count}.parquet"
        for (_, split, count), found in numbers.items()
        for number in range(int(count))
        if number not in found
    ]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
