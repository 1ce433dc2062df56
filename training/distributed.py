"""One process or many: the same code under `python` and under `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """The one that prints and writes."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the ranks."""
        if self.count == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def broadcast(self, module: nn.Module) -> None:
        """Gives every rank the first one's parameters and buffers."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def average(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of the ranks' tensors, one by one, in a single exchange. All of one type."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = (flat / self.count).split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors of one shape, along the first dimension."""
        if self.count == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)


@contextmanager
def start_ranks() -> Iterator[Ranks]:
    """Joins the ranks torchrun started, if it did, each with a GPU of its own where there are GPUs."""
    started = dist.is_torchelastic_launched()
    local = int(os.environ["LOCAL_RANK"]) if started else 0
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    if started:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank() if started else 0, dist.get_world_size() if started else 1, device)
    finally:
        if started:
            dist.destroy_process_group()
