"""A network that learns beside the codec, with a loss and an optimizer of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from training.distributed import Ranks
from training.optimizer import adam, restore


class Companion:
    """`loss` is what the network learns from in this pass, None where it had no part; it is set where the codec's loss
    is computed, from the same graph. Gradients of a step's `accumulate` parts and of all ranks are averaged."""

    def __init__(self, network: nn.Module, ranks: Ranks, lr: float, betas: tuple[float, float], accumulate: int):
        self.network, self.ranks, self.accumulate = network, ranks, accumulate
        self.parameters = list(network.parameters())
        self.optimizer = adam(self.parameters, lr, betas, ranks.device)
        self.loss: Tensor | None = None
        self.metrics: dict[str, Tensor] = {}  # of the last pass, on the device

    @property
    def updates(self) -> int:
        """How many steps it has made. Reads from the device."""
        made = self.optimizer.state.get(self.parameters[0])
        return int(made["step"]) if made else 0

    def learn(self) -> None:
        """Adds the gradient of the loss, where there is one."""
        if self.loss is not None:
            (self.loss / self.accumulate).backward(inputs=self.parameters)
            self.loss = None

    def update(self) -> Tensor | None:
        """One step along the gradients that were added, whose norm it returns; none where nothing was."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return None
        averages = self.ranks.average(gradients)
        for parameter, gradient in zip(self.parameters, averages, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return nn.utils.get_total_norm(averages)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        restore(self.optimizer, state["optimizer"])
