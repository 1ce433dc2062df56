"""One process or many: the same code under `python` and under `torchrun`."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from system.command import UserError
from system.device import open_device
from training.connections import choose_interface, notice_lost_hosts

T = TypeVar("T")

# A dead rank's connections close, and the others notice at once. Before the ranks have connected, only START_LIMIT
# tells: torchrun starts all of them together. The other limits are for ranks that live.
START_LIMIT = timedelta(seconds=45)
STEP_LIMIT = timedelta(minutes=10)  # a rank that hangs, or that compiles for minutes
WAIT_LIMIT = timedelta(days=7)  # another rank's download, or what rank 0 does alone
LIFE_LIMIT = timedelta(days=3650)  # of a run
GRACE = timedelta(seconds=5)  # for an ordinary end after another rank has ended
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|timed out", re.IGNORECASE)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of an element, bytes


class RanksError(UserError):
    """The ranks cannot go on together. The message says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of them. Messages that have nothing to do with the GPUs go through the CPU group
    `control`, long waits through `patient`."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0, the only one that prints and writes."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients of float32 parameters by their means over the ranks, in one all-reduce. DDP would do
        part of it during the backward pass. It would save a hundredth of a step, and cannot be recorded as simply."""
        if self.world_size == 1:
            return
        having = [parameter for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in having if parameter.grad is not None])
        dist.all_reduce(flat)
        parts = (flat / self.world_size).split([parameter.numel() for parameter in having])
        for parameter, part in zip(having, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, on the device and without waiting for it."""
        if self.world_size == 1:
            return tensor
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    def gather(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors, which have one shape, concatenated along the first dimension."""
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def gather_objects(self, value: T) -> list[T]:
        """All ranks' values, by rank: anything small that can be pickled."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Waits until all ranks are here, however long one of them takes."""
        if self.world_size > 1:
            dist.barrier(group=self.patient)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block first, such as a download; the others follow when it is done."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers. Does not wait for a GPU."""
        if self.world_size == 1:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.control)
        return int(shared)

    def broadcast(self, state: T) -> T:
        """Rank 0's nested tensors and numbers, on the CPU. What the other ranks pass is ignored."""
        if self.world_size == 1:
            return state
        buffer = io.BytesIO()
        if self.main:
            torch.save(state, buffer)
        size = torch.tensor(self.largest(buffer.tell()))
        content = torch.frombuffer(bytearray(buffer.getvalue() or int(size)), dtype=torch.uint8)
        dist.broadcast(content, src=0, group=self.control)
        if self.main:
            return state
        return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)

    def check_same(self, state: Mapping[str, Any]) -> None:
        """Compares a checksum of every tensor in `state` over the ranks. Raises RanksError that names the first tensor
        that differs. A checksum adds up the values' bits as integers, so it does not depend on the order."""
        if self.world_size == 1:
            return
        named = dict(_tensors(state))
        sums = torch.stack([_checksum(tensor) for tensor in named.values()]).cpu()
        found = torch.tensor(self.gather_objects(sums.tolist()))
        differing = (found != found[0]).nonzero()
        if len(differing):
            rank, index = min(differing.tolist(), key=lambda where: where[1])
            raise RanksError(
                f"{list(named)[index]} differs between rank 0 and rank {rank}: they no longer train the same model; "
                "nothing was saved, resume from the last checkpoint"
            )


@contextmanager
def start_ranks(saved_step: int = 0) -> Iterator[Ranks]:
    """Joins the ranks that torchrun started, or makes a single one. Each rank has its own GPU where there are GPUs.
    Rank 0 is on the host with the newest checkpoint, if the hosts have different ones: `saved_step` is this host's
    newest. Raises RanksError when another rank dies. A program that calls it must end by `exit_process`: the ranks'
    process groups stay until then."""
    started = dist.is_torchelastic_launched()
    device = open_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if started else 0)
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
    if not started:
        yield Ranks(0, 1, device)
        return
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=START_LIMIT))
        backend = "nccl" if device.type == "cuda" else "gloo"
        fresh = _fresh_store(store, rank, world_size)
        fresh.set_timeout(STEP_LIMIT)
        choose_interface(fresh, rank, world_size)
        rank = _counted_from_newest(fresh, rank, world_size, saved_step)
        # while a group connects, nobody can see a rank die; this timer ends the wait earlier than the group's limit
        connecting = threading.Timer(START_LIMIT.total_seconds(), _exit_now, ["not all ranks have connected"])
        connecting.daemon = True
        connecting.start()
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=world_size, timeout=STEP_LIMIT)
        sys.excepthook = _exit_after_traceback
        limits = (STEP_LIMIT, WAIT_LIMIT, LIFE_LIMIT)
        control, patient, guard = (dist.new_group(backend="gloo", timeout=limit) for limit in limits)
        connecting.cancel()
        notice_lost_hosts()
        ended = threading.Event()
        if world_size > 1:
            threading.Thread(target=_watch_neighbour, args=(guard, (rank + 1) % world_size, ended), daemon=True).start()
        try:
            yield Ranks(rank, world_size, device, control, patient)
            dist.barrier(group=control)
        finally:
            ended.set()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not LOST.search(str(error)):
            raise
        raise RanksError(_lost(str(error))) from error


def _lost(reason: str) -> str:
    return (
        f"another rank died or stopped answering, so this one ends too ({reason.strip().splitlines()[0]}): the log "
        "of the rank that ended first says why; repeat the command to resume from the last checkpoint"
    )


def _exit_now(reason: str) -> NoReturn:
    """Ends the process from a thread, while the main thread hangs."""
    print(f"error: {_lost(reason)}", file=sys.stderr, flush=True)
    os._exit(2)


def _watch_neighbour(group: dist.ProcessGroup, other: int, ended: threading.Event) -> None:
    """Waits for a message from rank `other` that never comes. If that rank dies, the connection closes and this process
    exits, even while its GPU hangs in a collective with the dead rank's."""
    try:
        dist.recv(torch.zeros(1), src=other, group=group)
    except RuntimeError as error:
        if not ended.wait(GRACE.total_seconds()):
            _exit_now(str(error))


def _fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """The ranks' store under a new prefix. After a restart by torchrun the old store still holds dead ranks' addresses,
    so rank 0 names a new prefix. A rank may read the old name first; only rank 0's answer under the prefix confirms
    it. Raises DistStoreError if a rank does not answer within `START_LIMIT`."""
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("prefix", me)
        for other in range(1, world_size):
            store.set(f"{me}/{other}/seen", store.get(f"{me}/{other}/here").decode())
        return dist.PrefixStore(me, store)
    until = time.monotonic() + START_LIMIT.total_seconds()
    while time.monotonic() < until:
        prefix = store.get("prefix").decode()
        store.set(f"{prefix}/{rank}/here", me)
        if store.check([f"{prefix}/{rank}/seen"]) and store.get(f"{prefix}/{rank}/seen").decode() == me:
            return dist.PrefixStore(prefix, store)
        time.sleep(0.05)
    raise dist.DistStoreError("rank 0 has not answered since the restart")


def _counted_from_newest(store: dist.Store, rank: int, world_size: int, saved_step: int) -> int:
    """This rank's number, counted from the first rank with the newest checkpoint. torchrun numbers the hosts anew each
    time, but only one of them may have the run's checkpoints."""
    store.set(f"saved/{rank}", str(saved_step))
    saved = [int(store.get(f"saved/{other}")) for other in range(world_size)]
    return (rank - saved.index(max(saved))) % world_size


def exit_process(status: int) -> NoReturn:
    """Ends the process. Under torchrun it skips the interpreter's shutdown, which destroys the process groups. To do so
    NCCL waits for ever for CUDA graphs that recorded its collectives, and may wait for ranks that died. Threads of gloo
    that still run sometimes abort a shutdown, and then a finished run would fail."""
    if not dist.is_torchelastic_launched():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit_after_traceback(*exception: Any) -> NoReturn:
    """Instead of `sys.excepthook`: an exception that nobody catches ends the process without a shutdown, too."""
    sys.__excepthook__(*exception)
    exit_process(1)


def _tensors(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def _checksum(tensor: Tensor) -> Tensor:
    bits = tensor.detach().contiguous().view(BITS[tensor.element_size()])
    return bits.sum(dtype=torch.int64).cpu()
