"""Data sets of the hub: a split's parquet files, downloaded once into a cache."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from filelock import FileLock

from data.clips import DataError
from system.files import write_whole

SPACE = 2.1  # times the download: the parquet files and their memory-mapped copy
LOCAL_FORMS = (
    "data.train and data.validation also take local data: the corpus's own folders (speaker/chapter/*.wav with "
    "*.normalized.txt), any folder of audio files, parquet files in its schema"
)


def download(name: str, split: str, cache: str, endpoint: str | None = None) -> list[Path]:
    """The parquet files of a data set's split, sorted by name. `split` is one split (`train.clean.100`), the beginning
    of several splits' names (`train`), or empty for all. If all files are in `cache`, the hub is not asked; an
    interrupted download continues with the missing files. Of several processes on a machine one downloads and the
    others wait. Raises DataError if the hub cannot be reached or does not have the data set, or if the cache is too
    small."""
    from huggingface_hub import constants, snapshot_download  # slow to import, and only needed here
    from huggingface_hub.errors import DryRunError, HTTPError  # HTTPError is that of its HTTP client

    root = Path(cache or constants.HF_HUB_CACHE)
    listing = root / f"{name.replace('/', '--')}.{split or 'all'}.json"  # written when all of its files are there
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(listing.with_suffix(".lock")):
            if listing.exists():
                paths = [root / path for path in json.loads(listing.read_text(encoding="utf-8"))]
                if all(path.exists() for path in paths):
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
        raise DataError(
            f"{name} cannot be had from the hub ({_reason(error.__cause__ or error)}). {LOCAL_FORMS}"
        ) from error
    except (OSError, HTTPError, RuntimeError) as error:  # RuntimeError comes from the hub's own transfer library
        raise DataError(
            f"{name} was not downloaded into {root} ({_reason(error)}); repeat the command to download the rest. "
            f"{LOCAL_FORMS}"
        ) from error


def of_split(file: str, split: str) -> bool:
    """Whether a parquet file belongs to a split, by its name: `data/dev.clean/dev.clean-00000-of-00004.parquet`. The
    corpus itself writes splits with dashes."""
    spelled = [re.sub(r"[-_]", ".", text) for text in (Path(file).stem, split)]
    return not split or spelled[0] == spelled[1] or spelled[0].startswith(spelled[1] + ".")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
