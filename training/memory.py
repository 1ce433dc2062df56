"""Memory: activation checkpointing to save it, and what to change when a GPU's or the machine's is full."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from codec.layers import Transformer
from data import DataError
from system.command import UserError
from system.memory import full_memory
from training.config import Config
from training.distributed import Ranks


class MemoryFullError(UserError):
    """A step does not fit into the memory. The message names settings that fit, or that need less."""


def checkpoint_activations(network: nn.Module) -> None:
    """Makes the transformers in `network` keep only their inputs, and compute their activations again in the backward
    pass. Results stay bit-identical."""
    for module in network.modules():
        if isinstance(module, Transformer):
            _checkpoint(module)


def _checkpoint(module: nn.Module) -> None:
    forward = module.forward

    def checkpointed(*inputs: Any) -> Any:
        # these networks draw no random numbers, so there is no state to keep
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    module.forward = checkpointed


@contextmanager
def explain_full_memory(config: Config, ranks: Ranks, trial: Callable[[Config], object]) -> Iterator[None]:
    """Turns errors of full memory into sentences: MemoryFullError for the GPU's or the machine's, DataError for a
    loader worker's, which may have died of it. On one GPU, `trial` makes steps with smaller batches until one fits.
    With several ranks a trial would need them all, so the next smaller settings are named untried."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        sentence = _full(config)
        traceback.clear_frames(error.__traceback__)  # the frames hold the networks, and those the memory
        found = _find_fitting(config, trial) if ranks.world_size == 1 else None
        raise MemoryFullError(sentence + _advice(config, found)) from error
    except ConnectionError as error:  # a worker died while it handed over a batch
        raise DataError(f"a loader worker died ({error.strerror}). {_worker_advice(config)}") from error
    except (RuntimeError, MemoryError) as error:
        first, reason = next(iter(str(error).strip().splitlines()), "").rstrip(". "), full_memory(error)
        if re.match(r"DataLoader worker .*(killed|exited)", first):
            raise DataError(f"{first}. {_worker_advice(config)}") from error
        # any other error of a worker carries the worker's own traceback, which says more: leave it
        if not reason:
            raise
        if "DataLoader worker" in first:
            raise DataError(f"the memory is full in a loader worker. {_worker_advice(config)}") from error
        sentence = f"the machine's memory is full ({reason}) at {_sizes(config)}: "
        raise MemoryFullError(sentence + _advice(config, None)) from error


def _worker_advice(config: Config) -> str:
    return f"The usual reason is full memory: set data.workers lower than {config.data.workers}"


def _full(config: Config) -> str:
    free, total = (number / 1e9 for number in torch.cuda.mem_get_info())
    ours = torch.cuda.memory_reserved() / 1e9
    return (
        f"the GPU's memory is full ({ours:.1f} of {total:.1f} GB ours, {total - free - ours:.1f} GB others') at "
        f"{_sizes(config)}: "
    )


def _sizes(config: Config) -> str:
    return f"batch_size={config.batch_size} data.crop_seconds={config.data.crop_seconds:g}"


def _find_fitting(config: Config, trial: Callable[[Config], object]) -> Config | None:
    """The same crops a step, or a few more, in the largest parts whose trial succeeds."""
    size, least = config.batch_size, 2 if config.losses.inversion else 1
    while size // 2 >= least:
        size //= 2
        smaller = replace(config, batch_size=size, accumulate=-(-config.batch_size * config.accumulate // size))
        gc.collect()
        torch.cuda.empty_cache()
        try:
            trial(replace(smaller, accumulate=2))  # two parts need as much memory as more do
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            continue
        return smaller
    return None


def _advice(config: Config, found: Config | None) -> str:
    if found:
        crops = found.batch_size * found.accumulate
        return f"batch_size={found.batch_size} accumulate={found.accumulate} fits (tried), {crops} crops a step"
    ways = [] if config.activation_checkpointing else ["activation_checkpointing=true"]
    if config.batch_size > 1:
        ways.append(f"batch_size={config.batch_size // 2} accumulate={config.accumulate * 2}")
    ways.append(f"data.crop_seconds={config.data.crop_seconds / 2:g}")
    return f"set {' or '.join(ways)}, which need less"
