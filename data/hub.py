"""Data sets of the hub: a split's parquet files, downloaded once into a cache."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from filelock import FileLock

from data.clips import DataError
from system.files import write_whole

SPACE = 2.1  # times the download: the parquet files, and their memory-mapped copy beside them
LOCAL_FORMS = (
    "data.train and data.validation also take local forms: the corpus's own folders (speaker/chapter/*.wav with "
    "*.normalized.txt), any folder of audio files, parquet files in its schema"
)


def download(name: str, split: str, cache: str, endpoint: str | None = None) -> list[Path]:
    """The parquet files of a data set's split (`train.clean.100`, or the beginning of several's names, `train`; empty
    for all), in the order of their names. What is whole in `cache` is used without asking the hub; an interrupted
    download goes on with the files that are missing. Of several processes on a machine one downloads and the others
    wait. Raises DataError where the hub cannot be reached, does not have it, or the cache has no room."""
    from huggingface_hub import constants, snapshot_download  # takes a while to import, for the hub alone
    from huggingface_hub.errors import DryRunError, HTTPError  # HTTPError: of whichever client it is built on

    root = Path(cache or constants.HF_HUB_CACHE)
    listing = root / f"{name.replace('/', '--')}.{split or 'all'}.json"  # written when everything in it is there
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
    except (OSError, HTTPError, RuntimeError) as error:  # the last is what the hub's own transfer library raises
        raise DataError(
            f"{name} was not downloaded into {root} ({_reason(error)}); the same command goes on with what is missing. "
            f"{LOCAL_FORMS}"
        ) from error


def of_split(file: str, split: str) -> bool:
    """Whether a parquet file's name begins with the split's, as in `data/dev.clean/dev.clean-00000-of-00004.parquet`;
    the corpus writes its own splits with dashes."""
    spelled = [re.sub(r"[-_]", ".", text) for text in (Path(file).stem, split)]
    return not split or spelled[0] == spelled[1] or spelled[0].startswith(spelled[1] + ".")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
