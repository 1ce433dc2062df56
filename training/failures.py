"""What torch says of a dead loader worker or of full GPU memory, in words of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data import DataError
from training.config import Config


class MemoryFullError(Exception):
    """The GPU's memory does not hold a step. The message names the settings that take less."""


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Raises DataError for a loader worker that died, MemoryFullError for full GPU memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryFullError(_less_memory(config)) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"{str(error).strip().splitlines()[0]} A worker that is killed was most often out of memory: set "
            f"data.workers lower than {config.data.workers}"
        ) from error


def _less_memory(config: Config) -> str:
    free, total = torch.cuda.mem_get_info()
    ours = torch.cuda.memory_reserved()
    others = total - free - ours
    ways = []
    if config.batch_size > 1:
        half = config.batch_size // 2
        ways.append(f"batch_size={half} accumulate={config.accumulate * 2} (as many crops a step, in half the memory)")
    ways.append(f"data.crop_seconds={config.data.crop_seconds / 2:g}")
    if not config.recompute:
        ways.append("recompute=true (slower)")
    if config.precision == "fp32":
        ways.append("precision=bf16")
    return (
        f"the GPU's memory is full ({ours / 1e9:.1f} of {total / 1e9:.1f} GB ours, {others / 1e9:.1f} GB others') at "
        f"batch_size={config.batch_size} data.crop_seconds={config.data.crop_seconds:g}: set {', or '.join(ways)}"
    )
