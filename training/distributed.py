"""One process or many: the same code under `python` and under `torchrun`."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

# A rank that died is noticed by its closed connections, at once, once it had any: until then by not being there, when
# torchrun has started all of them together. The other limits are for the living: one that hangs, or that compiles for
# minutes; and one that waits for another's download, or for what the first does alone.
START_LIMIT = timedelta(seconds=45)
STEP_LIMIT = timedelta(minutes=10)
WAIT_LIMIT = timedelta(days=7)
LIFE_LIMIT = timedelta(days=3650)  # of a run
GRACE = timedelta(seconds=5)  # to end in the ordinary way, after another rank has
LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|timed out", re.IGNORECASE)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of an element, bytes


class RanksError(Exception):
    """The ranks cannot go on together. The message says why."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of them. `control` and `patient` are the groups for what has nothing to do with the GPUs,
    the second for long waits."""

    rank: int
    count: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """The one that prints and writes."""
        return self.rank == 0

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module, as it is on the first rank, with its gradients averaged over the ranks."""
        if self.count == 1:
            return module
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

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

    def collect(self, value: T) -> list[T]:
        """All ranks' values: anything small that can be pickled."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Until all ranks are here, however long one of them takes."""
        if self.count > 1:
            dist.barrier(group=self.patient)

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers. Nothing waits for a GPU."""
        if self.count == 1:
            return number
        shared = torch.tensor(number)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.control)
        return int(shared)

    def from_main(self, state: T) -> T:
        """The first rank's nested tensors and numbers, on the CPU; what the others give is not looked at."""
        if self.count == 1:
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
        """Compares checksums of every tensor in `state` over the ranks. Raises RanksError with the first that differs.
        A checksum is the sum of the values' bits as whole numbers: no rounding, whatever the order."""
        if self.count == 1:
            return
        named = dict(_tensors(state))
        sums = torch.stack([_checksum(tensor) for tensor in named.values()]).cpu()
        found = torch.tensor(self.collect(sums.tolist()))
        differing = (found != found[0]).nonzero()
        if len(differing):
            rank, place = min(differing.tolist(), key=lambda where: where[1])
            raise RanksError(
                f"{list(named)[place]} differs between rank 0 and rank {rank}: they no longer train one model; nothing "
                "was saved, go on from the last checkpoint"
            )

    @contextmanager
    def unsynchronised(self, *networks: nn.Module) -> Iterator[None]:
        """Backward passes in here leave gradients on their rank, for a later one to average with its own."""
        with ExitStack() as stack:
            for network in networks:
                without = getattr(network, "no_sync", None)  # compiled networks have it too, frozen ones do not
                if without:
                    stack.enter_context(without())
            yield


@contextmanager
def start_ranks() -> Iterator[Ranks]:
    """Joins the ranks torchrun started, if it did, each with a GPU of its own where there are GPUs. Raises RanksError
    where another rank dies meanwhile."""
    started = dist.is_torchelastic_launched()
    local = int(os.environ["LOCAL_RANK"]) if started else 0
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # every step has the same shapes
        # what is not in bf16 needs all of fp32: in TF32 the speaker loss's gradient is 3 % off, up to 11 % of a clip's
        torch.backends.cudnn.allow_tf32 = False
    if not started:
        yield Ranks(0, 1, device)
        return
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=START_LIMIT))
        backend = "nccl" if device.type == "cuda" else "gloo"
        fresh = _fresh(store, rank, count)
        fresh.set_timeout(STEP_LIMIT)
        # a group's limit is also that of its connecting, where a death is not seen yet
        connecting = threading.Timer(START_LIMIT.total_seconds(), _end, ["not all ranks have connected"])
        connecting.daemon = True
        connecting.start()
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=count, timeout=STEP_LIMIT)
        limits = (STEP_LIMIT, WAIT_LIMIT, LIFE_LIMIT)
        control, patient, guard = (dist.new_group(backend="gloo", timeout=limit) for limit in limits)
        connecting.cancel()
        ended = threading.Event()
        if count > 1:
            threading.Thread(target=_guard, args=(guard, (rank + 1) % count, ended), daemon=True).start()
        try:
            yield Ranks(rank, count, device, control, patient)
            dist.barrier()
        finally:
            ended.set()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not LOST.search(str(error)):
            raise
        raise RanksError(_lost(str(error))) from error
    dist.destroy_process_group()  # not after a failure: it could wait for ranks that are gone


def _lost(reason: str) -> str:
    return (
        f"another rank died or stopped answering, this one ends too ({reason.strip().splitlines()[0]}): the log of the "
        "one that ended first says why, and the same command goes on from the last checkpoint"
    )


def _end(reason: str) -> NoReturn:
    """From another thread than the one that waits."""
    print(f"error: {_lost(reason)}", file=sys.stderr, flush=True)
    os._exit(2)


def _guard(group: dist.ProcessGroup, other: int, ended: threading.Event) -> None:
    """Waits for a word from another rank that never comes. What comes is the end of the connection, and then this
    process ends, which else would wait for its GPU, and that for the other's, until the limit of a step."""
    try:
        dist.recv(torch.zeros(1), src=other, group=group)
    except RuntimeError as error:
        if not ended.wait(GRACE.total_seconds()):
            _end(str(error))


def _fresh(store: dist.Store, rank: int, count: int) -> dist.Store:
    """A part of the ranks' store that none has written to. Where torchrun restarts a run, the store still holds the
    addresses of ranks that are gone. So the first rank names a new part, and only who gets an answer there from it
    has not read the name of an old one. Raises DistStoreError where a rank does not come within `START_LIMIT`."""
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("part", me)
        for other in range(1, count):
            store.set(f"{me}/{other}/seen", store.get(f"{me}/{other}/here").decode())
        return dist.PrefixStore(me, store)
    until = time.monotonic() + START_LIMIT.total_seconds()
    while time.monotonic() < until:
        part = store.get("part").decode()
        store.set(f"{part}/{rank}/here", me)
        if store.check([f"{part}/{rank}/seen"]) and store.get(f"{part}/{rank}/seen").decode() == me:
            return dist.PrefixStore(part, store)
        time.sleep(0.05)
    raise dist.DistStoreError("the first rank has not answered since the restart")


def leave(status: int) -> NoReturn:
    """Ends the process, under torchrun without taking the interpreter down: threads of the exchanges that are still
    there then abort it, now and then, and with it a run that is done."""
    if not dist.is_torchelastic_launched():
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _tensors(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{key}", value


def _checksum(tensor: Tensor) -> Tensor:
    bits = tensor.detach().contiguous().view(BITS[tensor.element_size()])
    return bits.sum(dtype=torch.int64).cpu()
