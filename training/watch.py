"""Watches a run for what a loss curve does not show: values that are not finite, one loss that owns the gradient, a
network that no longer moves."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

LARGEST_SHARE = 0.9
PATIENCE = 500  # steps
NAMED = 3  # clips, in a message


class Broken(NamedTuple):
    """The first step with a gradient that is not finite: of which losses, in which clips."""

    step: int
    losses: tuple[str, ...]
    clips: tuple[str, ...]

    @property
    def behind(self) -> bool:
        """Whether this rank saw only what comes behind a loss: the loss may be another rank's."""
        return all(_behind(name) for name in self.losses)

    def __str__(self) -> str:
        more = f" and {len(self.clips) - NAMED} others" if len(self.clips) > NAMED else ""
        return f"step {self.step}: {', '.join(self.losses)} not finite, in {', '.join(self.clips[:NAMED])}{more}"


class FiniteWatch:
    """Looks at every step without reading anything from the device, and remembers the first with a gradient that is not
    finite. The names of the last `steps` steps' clips are kept to say in which."""

    def __init__(self, steps: int):
        self.names: deque[tuple[int, Sequence[str]]] = deque(maxlen=steps)
        self.flags: dict[str, Tensor] = {}  # [B], True where a clip's gradient was not finite, of the first such step
        self.step: Tensor | None = None  # -1 until then

    def heard(self, step: int, names: Sequence[str]) -> None:
        self.names.append((step, names))

    def look(self, step: int, flags: Mapping[str, Tensor]) -> None:
        """By loss, and by what comes behind the losses, True [B] for the clips whose gradient is not finite in this
        step."""
        now = torch.stack(list(flags.values())).any()
        if self.step is None:
            self.step = torch.full((), -1, device=now.device)
        first = now & (self.step < 0)
        self.step = torch.where(first, step, self.step)
        for name, flag in flags.items():
            self.flags[name] = torch.where(first, flag, self.flags.get(name, torch.zeros_like(flag)))

    def broken(self) -> Broken | None:
        """What was found on this rank. Reads from the device."""
        if self.step is None or int(self.step) < 0:
            return None
        step = int(self.step)
        flagged = {name: flags for name, flags in self.flags.items() if bool(flags.any())}
        told = {name: flags for name, flags in flagged.items() if not _behind(name)} or flagged
        names = dict(self.names).get(step, ())
        # a loss over the whole batch is broken in all of its clips by one
        places = min(told.values(), key=lambda flags: int(flags.sum())).nonzero().flatten().tolist()
        return Broken(step + 1, tuple(told), tuple(names[place] for place in places if place < len(names)))


class Warnings:
    """Says once what is wrong with a run that goes on. Looks at what is logged, on the first rank."""

    def __init__(self) -> None:
        self.since: dict[str, int] = {}
        self.sums: dict[str, float] = {}
        self.updates: dict[str, int] = {}
        self.said: set[str] = set()

    def of(self, step: int, metrics: Mapping[str, float], learning: Mapping[str, tuple[nn.Module, int]]) -> list[str]:
        """What is to be said after a step, of its metrics and of the networks that learn, with their steps."""
        still = [text for name, (one, updates) in learning.items() for text in self.of_standstill(name, one, updates)]
        return self.of_shares(step, metrics) + still

    def of_shares(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """A loss that has had more than nine tenths of the gradient for 500 steps, among several."""
        found = []
        shares = {name: value for name, value in metrics.items() if name.startswith("share")}
        for name, share in shares.items():
            alone = sum(other.partition("/")[0] == name.partition("/")[0] for other in shares) == 1
            if alone or not share > LARGEST_SHARE or name == "share_latent/reconstruction":
                self.since.pop(name, None)
                continue
            if step - self.since.setdefault(name, step) >= PATIENCE:
                text = f"{name} has been above {LARGEST_SHARE:.0%} for {PATIENCE} steps: the other losses hardly count"
                found += self._once(name, text)
        return found

    def of_standstill(self, name: str, network: nn.Module, updates: int) -> list[str]:
        """A network whose parameters are what they were when it was last looked at, `updates` steps of its own ago."""
        if self.updates.get(name) == updates:
            return []
        total = math.fsum(float(parameter.detach().double().sum()) for parameter in network.parameters())
        still = self.sums.get(name) == total
        self.sums[name], self.updates[name] = total, updates
        return self._once(name, f"the {name} has stopped moving: it no longer learns") if still else []

    def _once(self, key: str, text: str) -> list[str]:
        if key in self.said:
            return []
        self.said.add(key)
        return [f"warning: {text}"]


def _behind(name: str) -> bool:
    """Whether it is what the decoder sends back, or a network's own: there the losses are balanced together, and one
    bad clip of any of them spoils it for all."""
    return name == "reconstruction" or name.startswith("gradient_norm/")


def not_finite(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By loss, True [B] for the items of gradients [B, ...] that hold anything else than numbers."""
    return {name: ~gradient.flatten(1).isfinite().all(dim=1) for name, gradient in gradients.items()}
