"""What a run's settings ask of the codec: the losses on the reconstruction, and the balancers of both places."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from losses import Balancer, FixedWeights, MelDistance, STFTDistance
from losses.speaker import SpeakerDistance
from training.adversary import Adversary
from training.config import Config
from training.distributed import Ranks

WaveformLoss = Callable[[Tensor, Tensor], Tensor]  # reconstruction and original [B, 1, T] to a scalar
ON_LATENT = ("commitment", "asr", "diversity", "shaping")


def waveform_losses(
    config: Config, ranks: Ranks, sample_rate: int, adversary: Adversary | None
) -> dict[str, WaveformLoss]:
    """The losses on the reconstruction that have a weight, by name."""

    def compiled(loss: nn.Module) -> WaveformLoss:
        on_device = loss.to(ranks.device)
        return torch.compile(on_device) if config.compile else on_device

    weights, found = config.losses, dict[str, WaveformLoss]()
    if weights.mel:
        found["mel"] = compiled(MelDistance(sample_rate, weights.mel_offset))
    if weights.l1:
        found["l1"] = nn.functional.l1_loss
    if weights.stft:
        found["stft"] = compiled(STFTDistance())
    if adversary:
        found["feature_matching"] = adversary.match
    if weights.speaker:
        found["speaker"] = SpeakerDistance(weights.speaker_model, sample_rate, config.hf_cache).to(ranks.device)
    return found


def balancers(config: Config, on_waveform: Iterable[str]) -> tuple[Balancer, Balancer]:
    """The balancer at the reconstruction and the one at the latent, where all that the decoder sends counts as one."""
    weights = config.losses
    at_waveform = {name: getattr(weights, name) for name in on_waveform}
    at_latent = {name: getattr(weights, name) for name in ON_LATENT if getattr(weights, name)}
    kind = Balancer if weights.balanced else FixedWeights
    # under fixed weights it is weighed already, and only its parts are undone: see the division by the batch
    at_latent["reconstruction"] = sum(at_waveform.values()) if weights.balanced else config.accumulate
    return kind(at_waveform, decay=weights.balancer_decay), kind(at_latent, decay=weights.balancer_decay)
