"""What each statement of a training step costs: `train_encoder.py --profile N`.

The functions of the step are compiled again from their source, with a call before every statement that reads the clock.
So the step itself has nothing of it, and a loss that somebody adds has a line in the table.

Operations and bytes are counted in one more step, in which nothing is fused: bytes are what each operation reads and
writes. On a GPU, steps are timed kernel by kernel, not as CUDA graphs. With several ranks, a second table shows what
their collectives exchange in a step.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import sys
import textwrap
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from losses.discriminator_passes import unfused
from training.config import Config
from training.step_inputs import noise_for

FUNCTIONS = ("step", "compute", "backward")  # of the trainer
SHOWN = 0.002  # of the step's time: statements below are added up
WARM_UP = 3  # steps


class Costs:
    """Of one statement, for one step on average."""

    def __init__(self) -> None:
        self.seconds = self.operations = self.bytes = self.peak = self.collectives = self.exchanged = 0.0


class Marks:
    """Reads clock, counters and memory before every statement, and gives what came since to the statement before."""

    def __init__(self, device: torch.device):
        self.device, self.current = device, ""
        self.costs: defaultdict[str, Costs] = defaultdict(Costs)
        self.times: list[tuple[str, Any]] = []
        self.counter: Counter | None = None

    def __call__(self, statement: str, item: Any = None) -> None:
        statement += f"  [{item}]" if isinstance(item, str) else ""
        if self.counter:
            cost = self.costs[self.current]
            cost.operations += self.counter.operations
            cost.bytes += self.counter.bytes
            cost.collectives += self.counter.collectives
            cost.exchanged += self.counter.exchanged
            self.counter.reset()
        else:
            cost = self.costs[self.current]
            cost.peak = max(cost.peak, peak_memory(self.device))
            self.times.append((self.current, clock(self.device)))
        self.current = statement

    def end_of_step(self, share: float) -> None:
        """Adds the times of the marks since the last call, which count by `share`."""
        for (_, before), (statement, now) in zip(self.times, self.times[1:], strict=False):
            taken = before.elapsed_time(now) / 1e3 if self.device.type == "cuda" else now - before
            self.costs[statement].seconds += share * taken
        self.times = []


class Counter(TorchDispatchMode):
    """Counts floating-point operations, and the bytes that operations read and write. Views cost nothing. It counts
    collectives too, and the bytes of their results on one rank.

    PyTorch's own FlopCounterMode does not work with `torch.autograd.grad`; its formulas do."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.operations = self.bytes = self.collectives = self.exchanged = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":  # their first argument takes the result
            self.collectives += 1
            self.exchanged += sum(each.numel() * each.element_size() for each in tensors(args[0]))
            return out
        if formula := flop_registry.get(func._overloadpacket):
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            self.bytes += sum(each.numel() * each.element_size() for each in tensors((args, kwargs, out)))
        return out


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def first_full_step(config: Config) -> int:
    """The first step with every loss."""
    return -(-config.discriminator.start_step // config.cycle) * config.cycle


def profile(trainer: Any, steps: int) -> str:
    """A table of what each statement costs on average, over so many steps on noise, of a train_encoder.Trainer. Steps
    of each kind, such as those with the teacher, are timed apart, and count as often as they come."""
    config, first = trainer.config, first_full_step(trainer.config)
    numbers: defaultdict[frozenset[str], list[int]] = defaultdict(list)
    for number in range(first, first + config.cycle):
        numbers[trainer.losses_of(number)].append(number)
    kinds = {alike[0]: len(alike) / config.cycle for alike in numbers.values()}  # a step of each kind, and its share
    waveform, pairs = noise_for(config, trainer.codec)
    device, marks = waveform.device, Marks(waveform.device)
    with marked(trainer, marks):
        for number in kinds:
            for _ in range(WARM_UP):
                trainer.step(waveform, number, pairs)
        marks.times, marks.costs = [], defaultdict(Costs)
        for number, share in kinds.items():
            for _ in range(steps):
                marks("")
                trainer.step(waveform, number, pairs)
                marks("")
                synchronize(device)
                marks.end_of_step(share / steps)
        for number, share in kinds.items():
            counted: defaultdict[str, Costs] = defaultdict(Costs)
            marks.costs, kept = counted, marks.costs
            with unfused(), Counter() as marks.counter:
                marks("")
                trainer.step(waveform, number, pairs)
                marks("")
            marks.costs, marks.counter = kept, None
            for statement, cost in counted.items():
                marks.costs[statement].operations += share * cost.operations
                marks.costs[statement].bytes += share * cost.bytes
                marks.costs[statement].collectives += share * cost.collectives
                marks.costs[statement].exchanged += share * cost.exchanged
    return "\n".join([table(marks.costs), *collectives(marks.costs)])


def table(costs: dict[str, Costs]) -> str:
    costs = {statement: cost for statement, cost in costs.items() if statement}
    total = sum(cost.seconds for cost in costs.values())
    rows = ["      ms   share  TFLOP/s     GB/s   GB at most  statement"]
    small = Costs()
    for statement, cost in sorted(costs.items(), key=lambda item: -item[1].seconds):
        if cost.seconds < SHOWN * total:
            for name in vars(small):
                setattr(small, name, getattr(small, name) + getattr(cost, name))
            small.peak = 0
        else:
            rows.append(row(statement, cost, total))
    rows.append(row("all others", small, total))
    whole = Costs()
    whole.seconds = total
    whole.operations, whole.bytes = (
        sum(getattr(cost, name) for cost in costs.values()) for name in ("operations", "bytes")
    )
    whole.peak = max(cost.peak for cost in costs.values())
    return "\n".join([*rows, row("the step", whole, total)])


def row(name: str, cost: Costs, total: float) -> str:
    seconds = max(cost.seconds, 1e-9)
    peak = f"{cost.peak / 1e9:12.2f}" if cost.peak else f"{'':12}"
    return (
        f"{1e3 * cost.seconds:8.2f} {cost.seconds / total:7.1%} {cost.operations / seconds / 1e12:8.2f} "
        f"{cost.bytes / seconds / 1e9:8.0f} {peak}  {name}"
    )


def collectives(costs: dict[str, Costs]) -> list[str]:
    """The lines of a table of what the ranks exchange in a step, none if there is one rank."""
    having = {statement: cost for statement, cost in costs.items() if cost.collectives}
    calls, size = (sum(getattr(cost, name) for cost in having.values()) for name in ("collectives", "exchanged"))
    rows = [(cost.collectives, cost.exchanged, statement) for statement, cost in having.items()]
    rows += [(calls, size, "the step")] if rows else []
    head = ["", "collectives       bytes  statement"] if rows else []
    return head + [f"{calls:11.6g} {size:11.0f}  {statement}" for calls, size, statement in rows]


@contextlib.contextmanager
def marked(trainer: Any, mark: Callable[[str], None]) -> Iterator[None]:
    """The trainer's step with marks before its statements, and not as a CUDA graph."""
    kind = type(trainer)
    module = inspect.getmodule(kind)
    names = {**vars(module), "mark": mark}
    names["gradients"] = with_marks(names["gradients"], names)
    kept = trainer.graphed_compute
    for name in FUNCTIONS:
        setattr(trainer, name, types.MethodType(with_marks(getattr(kind, name), names), trainer))
    trainer.graphed_compute = trainer.compute
    try:
        yield
    finally:
        for name in FUNCTIONS:
            delattr(trainer, name)
        trainer.graphed_compute = kept


def with_marks(function: Callable[..., Any], names: dict[str, Any]) -> Callable[..., Any]:
    """The function compiled again, with a mark before every statement: its line and its text, and inside a loop the
    loop's variable."""
    lines, first = inspect.getsourcelines(function)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    file = Path(inspect.getfile(function)).name

    def marked(body: list[ast.stmt], loop: str) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in body:
            line = first + statement.lineno - 1
            text = lines[statement.lineno - 1].split("#")[0].strip()
            label = f"{file}:{line}  {text[:90]}"
            call = f"mark({label!r}, {loop})" if loop else f"mark({label!r})"
            if isinstance(statement, ast.For):
                statement.body = marked(
                    statement.body, ast.unparse(next(ast.walk(statement.target))).split(",")[0].strip("(")
                )
            elif isinstance(statement, ast.If | ast.With):
                statement.body = marked(statement.body, loop)
            found += [*ast.parse(call).body, statement]
        return found

    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.body = marked(definition.body, "")
    ast.increment_lineno(ast.fix_missing_locations(tree), first - 1)
    exec(compile(tree, inspect.getfile(function), "exec"), names)
    return names.pop(function.__name__)


def clock(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """The most memory since the last call, in bytes: of a GPU what tensors take; of a CPU what the process takes, which
    only Linux tells (`man 5 proc`), elsewhere 0."""
    if device.type == "cuda":
        found = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return found
    if sys.platform != "linux":
        return 0
    kilobytes = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    return 1024 * int(kilobytes[1]) if kilobytes else 0
