"""The discriminator beside the codec: it learns to tell reconstructions from originals; its features are matched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from losses.discriminator import Discriminator, feature_matching, hinge_loss
from training.config import Config
from training.distributed import Ranks


class Adversary:
    """A discriminator with its optimizer. `autocast` makes the context its convolutions run in.

    The discriminator is most of a step's cost, so it runs once over the originals and once over the reconstructions,
    and both losses come from there: the codec's, differentiated at the reconstruction, and its own, at its parameters.
    """

    def __init__(self, config: Config, ranks: Ranks, autocast: Callable[[], AbstractContextManager[Any]]):
        self.network = Discriminator(config.discriminator.channels).to(ranks.device)
        self.feature_matching = torch.compile(feature_matching) if config.compile else feature_matching
        self.ranks, self.autocast, self.accumulate = ranks, autocast, config.accumulate
        self.parameters = list(self.network.parameters())
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        self.optimizer = torch.optim.Adam(self.parameters, config.discriminator.lr, betas)
        self.loss: Tensor | None = None

    def match(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Feature matching, the codec's loss. Its graph holds what `learn` differentiates afterwards: keep it."""
        with self.autocast():
            real_logits, real_features = self.network(original)
            fake_logits, fake_features = self.network(reconstruction)
        self.loss = hinge_loss(real_logits, fake_logits)
        return self.feature_matching(real_features, fake_features)

    def learn(self) -> Tensor:
        """Adds the gradient of the discriminator's hinge loss of the last `match`. Returns the loss."""
        assert self.loss is not None, "nothing was matched"
        (self.loss / self.accumulate).backward(inputs=self.parameters)
        loss, self.loss = self.loss.detach(), None
        return loss

    def update(self) -> None:
        """One step along the gradients that were added, of all ranks; none where nothing was matched."""
        if self.parameters[0].grad is None:
            return
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        for parameter, gradient in zip(self.parameters, self.ranks.average(gradients), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
