"""Whether a checkpoint is of the run that is started now: the same settings, whatever way their paths are spelt. And
whether all ranks have the same settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from training.config import REMOVED, RENAMED, Config, ConfigError, defaults
from training.distributed import Ranks
from training.setting_values import shown
from training.settings_file import parse_yaml

# a resumed run may change how long it runs, where, on how many GPUs, and what it reports
FREE_TO_CHANGE = (
    *("steps", "output_dir", "hf_cache", "log_every", "validate_every", "save_every", "keep", "cuda_graph", *REMOVED),
    *("batch_size", "accumulate", "activation_checkpointing", "data.workers", "losses.asr_cache", "moved"),
)
OF_CODEC = ("model_dir", "params")  # a checkpoint may know its codec by content
FILES = (*OF_CODEC, "start_from", "losses.speaker_model", "losses.asr_teacher")
SOURCES = ("data.train", "data.validation", "data.pairs")
OF_HOST = ("output_dir", "hf_cache", "losses.asr_cache", "data.workers", *FILES, *SOURCES)  # may differ between hosts
NAMED = 8  # settings at most in a message


def check_same_run(before: str, now: str, folder: str = "", knows_codec: bool = False) -> None:
    """Raises ConfigError that names the settings in which a checkpoint's configuration and this run's differ, both
    YAML. Settings in FREE_TO_CHANGE may differ. The checkpoint may have the names of an earlier version; a setting that
    it lacks counts as its default.

    Paths are the same if they lead to the same file; the checkpoint's start in `folder`. With `moved: true` now, all
    paths are. If the checkpoint knows its codec, OF_CODEC are not compared."""
    old, new = (
        {RENAMED.get(key, key): value for key, value in _flat(parse_yaml(text, "a checkpoint's configuration")).items()}
        for text in (before, now)
    )
    old = parse_yaml(yaml.safe_dump(defaults()), "the defaults") | old
    moved, free = new.get("moved") == "true", (*FREE_TO_CHANGE, *(OF_CODEC if knows_codec else ()))
    differing = [
        key
        for key in sorted(old.keys() | new.keys())
        if key not in free and not _is_same(key, old.get(key), new.get(key), folder, moved)
    ]
    if differing:
        named = [f"{key[:50]} ({shown(old.get(key))} there, {shown(new.get(key))} now)" for key in differing[:NAMED]]
        more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        way = "; if the files are the same and were only moved, add moved=true"
        raise ConfigError(
            f"output_dir {new.get('output_dir')} has checkpoints of another configuration: {', '.join(named)}{more}; "
            f"choose another output_dir, or the same values{way if set(differing) & {*FILES, *SOURCES} else ''}"
        )


def check_same_settings(config: Config, ranks: Ranks) -> None:
    """Raises ConfigError that names the first setting that differs between two ranks. Each host may have its own paths
    and number of loader workers."""
    everyones = ranks.gather_objects({key: str(value) for key, value in _flat(asdict(config)).items()})
    for key, value in everyones[0].items():
        for rank, settings in enumerate(everyones):
            if settings[key] != value and key not in OF_HOST:
                raise ConfigError(
                    f"{key} is {value} on rank 0 and {settings[key]} on rank {rank}: give every host the same command"
                )


def _is_same(key: str, old: Any, new: Any, folder: str, moved: bool) -> bool:
    if old == new:
        return True
    if key in FILES:
        return moved or _is_same_file(old, new, folder)
    if key not in SOURCES or not isinstance(old, list) or not isinstance(new, list) or len(old) != len(new):
        return False
    pairs = [(_section(one), _section(other)) for one, other in zip(old, new, strict=True)]
    return all(
        one.keys() == other.keys()
        and all(one[name] == other[name] for name in one if name != "path")
        and (moved or _is_same_file(one.get("path"), other.get("path"), folder))
        for one, other in pairs
    )


def _section(source: Any) -> Mapping[str, Any]:
    return source if isinstance(source, Mapping) else {"path": source}


def _is_same_file(old: Any, new: Any, folder: str) -> bool:
    if not isinstance(old, str) or not isinstance(new, str) or not old or not new:
        return False
    one, other = Path(folder, old), Path(new)
    try:
        return os.path.realpath(one) == os.path.realpath(other) or one.samefile(other)
    except (OSError, ValueError):  # one is not there, or nothing can be there
        return False


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, Mapping) else ():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
