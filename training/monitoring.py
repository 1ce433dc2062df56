"""What a loss curve does not show: gradients that are not finite, a loss that owns the gradient, a network that stands
still."""

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


class NonFinite(NamedTuple):
    """The first step with a gradient that is NaN or infinite: in which losses, for which clips."""

    step: int
    losses: tuple[str, ...]
    clips: tuple[str, ...]

    @property
    def only_downstream(self) -> bool:
        """Whether this rank saw it only after the losses were combined: the loss may be another rank's."""
        return all(_downstream(name) for name in self.losses)

    def __str__(self) -> str:
        more = f" and {len(self.clips) - NAMED} others" if len(self.clips) > NAMED else ""
        return f"step {self.step}: {', '.join(self.losses)} not finite, in {', '.join(self.clips[:NAMED])}{more}"


class NonFiniteMonitor:
    """Checks every step's gradients without waiting for the device, and remembers the first step with one that is not
    finite. It keeps the clip names of the last `steps` steps."""

    def __init__(self, steps: int):
        self.names: deque[tuple[int, Sequence[str]]] = deque(maxlen=steps)
        self.flags: dict[str, Tensor] = {}  # [B], True for clips with a gradient that is not finite, of that step
        self.step: Tensor | None = None  # -1 as long as all are finite

    def note_clips(self, step: int, names: Sequence[str]) -> None:
        self.names.append((step, names))

    def observe(self, step: int, flags: Mapping[str, Tensor]) -> None:
        """Takes a step's flags [B] by loss and by network, from `not_finite`."""
        now = torch.stack(list(flags.values())).any()
        if self.step is None:
            self.step = torch.full((), -1, device=now.device)
        first = now & (self.step < 0)
        self.step = torch.where(first, step, self.step)
        for name, flag in flags.items():
            self.flags[name] = torch.where(first, flag, self.flags.get(name, torch.zeros_like(flag)))

    def found(self) -> NonFinite | None:
        """What this rank has found. Waits for the device."""
        if self.step is None or int(self.step) < 0:
            return None
        step = int(self.step)
        flagged = {name: flags for name, flags in self.flags.items() if bool(flags.any())}
        causes = {name: flags for name, flags in flagged.items() if not _downstream(name)} or flagged
        names = dict(self.names).get(step, ())
        # one bad clip breaks a loss over the whole batch for all clips; the smallest set of flags names it
        indices = min(causes.values(), key=lambda flags: int(flags.sum())).nonzero().flatten().tolist()
        return NonFinite(step + 1, tuple(causes), tuple(names[index] for index in indices if index < len(names)))


class TrainingWarnings:
    """Warns once of each problem that does not stop a run. It looks at the logged metrics, on rank 0."""

    def __init__(self) -> None:
        self.since: dict[str, int] = {}
        self.sums: dict[str, float] = {}
        self.updates: dict[str, int] = {}
        self.given: set[str] = set()

    def after(
        self, step: int, metrics: Mapping[str, float], networks: Mapping[str, tuple[nn.Module, int]]
    ) -> list[str]:
        """The new warnings after a step, from its metrics and the learning networks with their numbers of updates."""
        still = [text for name, (one, updates) in networks.items() for text in self.of_standstill(name, one, updates)]
        return self.of_shares(step, metrics) + still

    def of_shares(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Warns of a loss that has had more than nine tenths of the gradient for 500 steps, if there are others."""
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
        """Warns of a network that made updates since the last look, but whose parameters are the same."""
        if self.updates.get(name) == updates:
            return []
        total = math.fsum(float(parameter.detach().double().sum()) for parameter in network.parameters())
        still = self.sums.get(name) == total
        self.sums[name], self.updates[name] = total, updates
        return self._once(name, f"the {name} has stopped moving: it no longer learns") if still else []

    def _once(self, key: str, text: str) -> list[str]:
        if key in self.given:
            return []
        self.given.add(key)
        return [f"warning: {text}"]


def _downstream(name: str) -> bool:
    """Whether a gradient is computed from all losses together: the decoder's, or a network's own. One bad clip in any
    loss breaks it for all clips."""
    return name == "reconstruction" or name.startswith("gradient_norm/")


def not_finite(gradients: Mapping[str, Tensor], items: int = 0) -> dict[str, Tensor]:
    """For each gradient [B, ...], True [B] for the items with a NaN or an infinity. A gradient of fewer than `items` is
    one of the first of them; the others get False."""
    flags = {name: ~gradient.flatten(1).isfinite().all(dim=1) for name, gradient in gradients.items()}
    return {name: nn.functional.pad(flag, (0, max(0, items - len(flag)))) for name, flag in flags.items()}


def in_parts(clips: Sequence[str], pairs: Sequence[str], parts: int) -> list[str]:
    """The names of a step's clips and pairs in the order in which the parts of a step compute them."""
    named: list[str] = []
    for part in range(parts):
        for names in (clips, pairs):
            size = len(names) // parts
            named += names[part * size : (part + 1) * size]
    return named
