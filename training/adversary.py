"""The discriminator beside the codec: it learns to tell reconstructions from originals; its features are matched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from losses.discriminator import Discriminator, feature_matching, hinge_loss
from training.companion import Companion
from training.config import Config
from training.distributed import Ranks


class Adversary(Companion):
    """`autocast` makes the context that the discriminator's convolutions run in.

    The discriminator is most of a step's cost, so it runs once over the originals and once over the reconstructions,
    and both losses come from there: the codec's, differentiated at the reconstruction, and its own, at its parameters.
    """

    def __init__(self, config: Config, ranks: Ranks, autocast: Callable[[], AbstractContextManager[Any]]):
        network = Discriminator(config.discriminator.channels).to(ranks.device)
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        super().__init__(network, ranks, config.discriminator.lr, betas, config.accumulate)
        self.autocast = autocast
        self.feature_matching = torch.compile(feature_matching) if config.compile else feature_matching

    def match(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Feature matching, the codec's loss. Its graph holds what `learn` differentiates afterwards: keep it."""
        with self.autocast():
            real_logits, real_features = self.network(original)
            fake_logits, fake_features = self.network(reconstruction)
        self.loss = hinge_loss(real_logits, fake_logits)
        self.metrics = {"discriminator": self.loss.detach()}
        return self.feature_matching(real_features, fake_features)
