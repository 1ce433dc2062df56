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
    """A discriminator with its optimizer. `autocast` makes the context its convolutions run in."""

    def __init__(self, config: Config, ranks: Ranks, autocast: Callable[[], AbstractContextManager[Any]]):
        self.network = Discriminator(config.discriminator.channels).to(ranks.device)
        self.parallel, self.autocast = ranks.parallel(self.network), autocast
        self.accumulate = config.accumulate
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        self.optimizer = torch.optim.Adam(self.network.parameters(), config.discriminator.lr, betas)

    def match(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Feature matching, a loss of the codec: nothing of it reaches the discriminator's parameters."""
        with self.autocast():
            with torch.no_grad():
                _, real = self.network(original)
            _, fake = self.network(reconstruction)
        return feature_matching(real, fake)

    def learn(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        """Adds the gradient of the discriminator's hinge loss. Returns the loss."""
        with self.autocast():  # one pass over both: ranks average the gradients of one backward
            logits, _ = self.parallel(torch.cat([original, reconstruction.detach()]))
        real, fake = zip(*(scale.chunk(2) for scale in logits), strict=True)
        loss = hinge_loss(list(real), list(fake))
        (loss / self.accumulate).backward()
        return loss.detach()

    def update(self) -> None:
        """One step along the gradients that were added."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
