"""A network that learns beside the codec with its own loss and optimizer: the discriminator, the projection of the
semantic embeddings to Whisper's width, and the labeller. The last two use Whisper, which is loaded here, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

from losses.asr.distillation import ASRDistillation
from losses.discriminator import Discriminator
from losses.pseudo_labels import Labeller
from training.config import Config, ConfigError
from training.distributed import Ranks
from training.optimization import adam, load_optimizer

if TYPE_CHECKING:
    from losses.asr.teacher import Teacher


Network = TypeVar("Network", bound=nn.Module)


class AuxiliaryNetwork(Generic[Network]):
    """`network` with an Adam of its own. A training step calls `backward` or `add_gradients` once for each of its
    `accumulate` parts and `update` once at its end; gradients are averaged over the parts and over all ranks."""

    def __init__(self, network: Network, lr: float, config: Config, ranks: Ranks):
        self.network, self.ranks, self.accumulate = network.to(ranks.device), ranks, config.accumulate
        self.parameters = list(network.parameters())
        betas = (config.optimizer.beta1, config.optimizer.beta2)
        self.optimizer = adam(self.parameters, lr, betas, ranks.device)

    @property
    def updates(self) -> int:
        """The number of optimizer steps so far. Waits for the device."""
        state = self.optimizer.state.get(self.parameters[0])
        return int(state["step"]) if state else 0

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss` to this network's parameters, and to nothing else. Frees the loss's graph."""
        (loss / self.accumulate).backward(inputs=self.parameters)

    def add_gradients(self, gradients: Sequence[Tensor]) -> None:
        """The same with the loss's gradients, in the order of `parameters`."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            part = gradient / self.accumulate if self.accumulate > 1 else gradient
            parameter.grad = part if parameter.grad is None else parameter.grad + part

    def update(self) -> Tensor | None:
        """One optimizer step with the gradients added since `optimizer.zero_grad`. Returns their norm, or None where
        there are none."""
        if all(parameter.grad is None for parameter in self.parameters):
            return None
        self.ranks.average_gradients(self.parameters)
        self.optimizer.step()
        return nn.utils.get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])


def build_discriminator(config: Config, ranks: Ranks) -> AuxiliaryNetwork[Discriminator]:
    return AuxiliaryNetwork(Discriminator(config.discriminator.channels), config.discriminator.lr, config, ranks)


def build_asr_projection(
    config: Config, ranks: Ranks, semantic_dim: int, width: int
) -> AuxiliaryNetwork[ASRDistillation]:
    return AuxiliaryNetwork(ASRDistillation(semantic_dim, width), config.optimizer.lr, config, ranks)


def build_labeller(config: Config, ranks: Ranks, width: int, semantic_dim: int) -> AuxiliaryNetwork[Labeller]:
    return AuxiliaryNetwork(Labeller(width, semantic_dim), config.optimizer.lr, config, ranks)


def load_teacher(config: Config, ranks: Ranks) -> Teacher:
    """The frozen Whisper, which rank 0 downloads first."""
    from losses.asr.languages import whisper_language  # importing Whisper takes seconds
    from losses.asr.teacher import Teacher

    for source in config.data.train:
        if source.asr_language and not whisper_language(source.asr_language):
            raise ConfigError(
                f"asr_language of {source.name} in data.train is {source.asr_language!r}, expected a language that "
                "Whisper knows, such as de or German"
            )
    options, cache = config.losses, Path(config.hf_cache) if config.hf_cache else None
    with ranks.main_first():
        return Teacher.load(
            options.asr_teacher,
            ranks.device,
            cache / "whisper" if cache else None,
            language=options.asr_language,
            context_seconds=options.asr_context_seconds,
            cache=Path(options.asr_cache) if options.asr_cache else None,
        )
