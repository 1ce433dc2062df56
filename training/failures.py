"""What torch says of a dead loader worker or of full GPU memory, in words of the configuration."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from data import DataError
from training.config import Config
from training.distributed import Ranks


class MemoryFullError(Exception):
    """The GPU's memory does not hold a step. The message names settings that do."""


@contextmanager
def explained(config: Config, ranks: Ranks, trial: Callable[[Config], object]) -> Iterator[None]:
    """Raises DataError for a loader worker that died, MemoryFullError for full GPU memory. `trial` makes steps with
    other settings, to find some that fit; with several ranks, which it would need all, the next smaller ones are named
    untried."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        sentence = _full(config)
        traceback.clear_frames(error.__traceback__)  # they hold the networks, and these the memory
        found = _fitting(config, trial) if ranks.count == 1 else None
        raise MemoryFullError(sentence + _advice(config, found)) from error
    except ConnectionError as error:  # a worker's, that died while it handed over a batch
        raise DataError(f"a loader's worker died ({error.strerror}). {_killed(config)}") from error
    except RuntimeError as error:
        # what a worker raised itself comes with "Caught ... in DataLoader worker": its own traceback says more
        if not re.match(r"DataLoader worker .*(killed|exited)", str(error)):
            raise
        raise DataError(f"{str(error).strip().splitlines()[0]} {_killed(config)}") from error


def _killed(config: Config) -> str:
    return f"A worker that is killed was most often out of memory: set data.workers lower than {config.data.workers}"


def _full(config: Config) -> str:
    free, total = (number / 1e9 for number in torch.cuda.mem_get_info())
    ours = torch.cuda.memory_reserved() / 1e9
    return (
        f"the GPU's memory is full ({ours:.1f} of {total:.1f} GB ours, {total - free - ours:.1f} GB others') at "
        f"batch_size={config.batch_size} data.crop_seconds={config.data.crop_seconds:g}: "
    )


def _fitting(config: Config, trial: Callable[[Config], object]) -> Config | None:
    """As many crops a step, or a few more, in parts of the largest size that a trial gets through with."""
    size = config.batch_size
    while size > 1:
        size //= 2
        smaller = replace(config, batch_size=size, accumulate=-(-config.batch_size * config.accumulate // size))
        gc.collect()
        torch.cuda.empty_cache()
        try:
            trial(replace(smaller, compile=False, accumulate=2))  # two parts show what more would take
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            continue
        return smaller
    return None


def _advice(config: Config, found: Config | None) -> str:
    if found:
        crops = found.batch_size * found.accumulate
        return f"batch_size={found.batch_size} accumulate={found.accumulate} fits (tried), {crops} crops a step"
    ways = [] if config.recompute else ["recompute=true"]
    if config.batch_size > 1:
        ways.append(f"batch_size={config.batch_size // 2} accumulate={config.accumulate * 2}")
    ways.append(f"data.crop_seconds={config.data.crop_seconds / 2:g}")
    return f"set {' or '.join(ways)}, which take less"
