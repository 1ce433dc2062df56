"""Gradient balancer (EnCodec, Défossez et al. 2022, section 3.4): weights become shares of the gradient.

Every loss is differentiated by itself at the tensor where the losses meet. With g_i the gradient of loss i there,
n_i the bias-corrected moving average of its norm, and w_i its weight, what flows on is

    g = Σ_i  N · w_i / Σ_j w_j · g_i / n_i

so a loss has the share its weight says, whatever its scale, and N is the norm of the whole.

Where every loss is there in every step the numbers are those of EnCodec's own balancer (audiocraft 1.3.0), with its
average of per-item norms. It goes another way in four things:

- The sum Σ_j runs over the configured losses, also over one that is absent in a step: the others keep their size, and
  the average of the absent one stays as it is. EnCodec's asks for every loss in every step.
- A gradient of exactly zero, such as the teacher's where nobody speaks, counts as absent, too.
- Norms are averaged over the ranks before they enter the moving average, not after: with equal batches the same number.
- A loss's logged share is its part of what flowed in this step, after scaling. EnCodec's ratio compares the averaged
  norms before, and so does not tell whether the weights are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class Balancer:
    """Balances gradients [B, ...]. Norms are taken per item, averaged over the batch and over all ranks, and stay on
    the device: balancing never waits for the GPU.

    weights: the configured losses and their shares, relative to one another, all positive.
    total_norm: N, the norm per item of the balanced gradient.
    decay: of the moving averages; they are corrected for their start at zero.
    """

    def __init__(self, weights: Mapping[str, float], total_norm: float = 1.0, decay: float = 0.999):
        if not weights or min(weights.values()) <= 0:
            raise ValueError(f"weights are {dict(weights)}, expected one or more positive numbers")
        self.weights = dict(weights)
        self.total_norm, self.decay = total_norm, decay
        self.sums: dict[str, Tensor] = {}  # decayed sums of norms, and of ones: their ratio is the average
        self.counts: dict[str, Tensor] = {}
        self.shares: dict[str, Tensor] = {}

    def combine(self, gradients: Mapping[str, Tensor], factors: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """The balanced gradient of those given, a part of the configured losses. `factors` scale a loss's part in this
        step, for weights that fade. Afterwards `shares` holds each one's real share of this step: its scaled norm
        over the sum of all. Raises KeyError for an unknown loss."""
        unknown = set(gradients) - set(self.weights)
        if unknown:
            raise KeyError(f"{sorted(unknown)} not among the configured losses {sorted(self.weights)}")
        names = list(gradients)
        norms = torch.stack([gradient.float().flatten(1).norm(dim=1).mean() for gradient in gradients.values()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(norms)
            norms = norms / dist.get_world_size()
        total_weight = sum(self.weights.values())
        scaled: dict[str, Tensor] = {}
        contributed = []
        for name, norm in zip(names, norms, strict=True):
            if name not in self.sums:
                self.sums[name], self.counts[name] = torch.zeros_like(norm), torch.zeros_like(norm)
            present = norm > 0
            decay = torch.where(present, self.decay, 1.0)
            # in place, so that a replayed step finds them where it left them
            average = self.sums[name].mul_(decay).add_(norm) / self.counts[name].mul_(decay).add_(present).clamp(min=1)
            weight = self.weights[name] * (factors or {}).get(name, 1.0)
            scale = weight / total_weight * self.total_norm / (average + 1e-12)
            scaled[name] = gradients[name].float() * scale
            contributed.append(norm * scale)
        whole = torch.stack(contributed).sum()
        self.shares = {name: part / (whole + 1e-12) for name, part in zip(names, contributed, strict=True)}
        return torch.stack(list(scaled.values())).sum(dim=0)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        kept = {"sums": self.sums, "counts": self.counts}
        return {part: {name: value.clone() for name, value in values.items()} for part, values in kept.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        self.sums = {name: value.to(device, copy=True) for name, value in state["sums"].items()}
        self.counts = {name: value.to(device, copy=True) for name, value in state["counts"].items()}


class FixedWeights(Balancer):
    """The same gradients under weights set by hand, g = Σ_i w_i g_i: what the balancer is compared with."""

    def combine(self, gradients: Mapping[str, Tensor], factors: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """As the balancer's, in its units: a loss that is a mean over the batch of B items counts B times."""
        scaled = {
            name: gradient.float() * (self.weights[name] * (factors or {}).get(name, 1.0) * len(gradient))
            for name, gradient in gradients.items()
        }
        norms = {name: gradient.flatten(1).norm(dim=1).mean() for name, gradient in scaled.items()}
        whole = torch.stack(list(norms.values())).sum()
        self.shares = {name: norm / (whole + 1e-12) for name, norm in norms.items()}
        return torch.stack(list(scaled.values())).sum(dim=0)
