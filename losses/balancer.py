"""Gradient balancer (EnCodec, Défossez et al. 2022, section 3.4): a weight is a share of the gradient.

Each loss is differentiated on its own at the tensor where the losses meet. With g_i the gradient of loss i there,
n_i the bias-corrected moving average of its norm, and w_i its weight, the balanced gradient is

    g = Σ_i  N · w_i / Σ_j w_j · g_i / n_i

Each loss gets the share that its weight sets, whatever the scale of the loss. N is the total norm.

If every loss is present in every step, the results equal those of EnCodec's own balancer (audiocraft 1.3.0) with its
average of per-item norms. There are four differences:

- The sum Σ_j covers all configured losses, also those absent in a step. The other losses keep their size, and the
  absent loss keeps its moving average. EnCodec's balancer needs every loss in every step.
- A gradient of exactly zero also counts as absent. The ASR loss has one when no clip of the batch contains speech.
- Norms are averaged over the ranks before they enter the moving average, not after. With equal batches the result is
  the same.
- The logged share of a loss is its part of this step's gradient, after scaling. EnCodec's ratio compares the averaged
  norms before scaling, so it does not show whether the weights are kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class Balancer:
    """Balances gradients [B, ...]. Norms are computed per item and averaged over the batch and over all ranks. They
    stay on the device, so balancing never waits for the GPU.

    weights: the weight of each configured loss, positive. Only their ratios matter.
    total_norm: N, the norm per item of the balanced gradient.
    decay: of the moving averages. They start at zero, and this bias is corrected.
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
        """Returns the balanced gradient [B, ...]. `gradients` may hold only some of the configured losses. `factors`
        scale single losses in this step, for weights that fade. Sets `shares` to each loss's actual share of this step:
        its scaled norm over the sum of all. Raises KeyError for an unknown loss."""
        unknown = set(gradients) - set(self.weights)
        if unknown:
            raise KeyError(f"{sorted(unknown)} are not among the configured losses {sorted(self.weights)}")
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
            # in place: a replayed CUDA graph reads and writes the same memory
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
    """Fixed weights without balancing, g = Σ_i w_i g_i, to compare the balancer with."""

    def combine(self, gradients: Mapping[str, Tensor], factors: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """As `Balancer.combine` and in its units: gradients per item, so each gradient of a mean over B items is
        multiplied by B."""
        scaled = {
            name: gradient.float() * (self.weights[name] * (factors or {}).get(name, 1.0) * len(gradient))
            for name, gradient in gradients.items()
        }
        norms = {name: gradient.flatten(1).norm(dim=1).mean() for name, gradient in scaled.items()}
        whole = torch.stack(list(norms.values())).sum()
        self.shares = {name: norm / (whole + 1e-12) for name, norm in norms.items()}
        return torch.stack(list(scaled.values())).sum(dim=0)
