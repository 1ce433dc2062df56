"""What the language model is trained by: cross entropy of the semantic code, flow matching of the acoustic ones.

Both give one value a frame. The recipe is the paper's (arXiv 2603.25551).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.voices import END_OF_AUDIO
from language_model.acoustic_transformer import AcousticTransformer


def semantic_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy [N] in nats of coded classes `targets` [N] under masked logits [N, rows]: a guess costs
    ln 8193 = 9.01 in the release, over 8192 codes and the end of audio."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def flow_matching_loss(
    transformer: AcousticTransformer,
    hidden: Tensor,
    codes: Tensor,
    draws: int,
    condition_dropout: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Squared error [N] of the velocity, averaged over `draws` and the 36 values, for hidden states [N, dim] and
    acoustic codes [N, 36] of 0 to 20 (Lipman et al. 2023, eq. 23, with the data x₁ in [−1, 1] and time running to it):

        x_t = (1 − (1 − σ) t) x₀ + t x₁,   loss = mean ‖v(x_t, t, h) − (x₁ − (1 − σ) x₀)‖²

    Each draw has an x₀ ~ N(0, I), a t ~ U(0, 1), and with probability `condition_dropout` no hidden state: guidance
    needs the unconditional velocity. `generator` is on the CPU, or on the device of `hidden`.
    """
    config = transformer.config
    data = codes.float() * 2 / (config.acoustic_codebook_size - 1) - 1
    shape = (draws, *data.shape)
    device = hidden.device if generator is None else generator.device
    noise = torch.randn(shape, generator=generator, device=device).to(hidden.device)
    time = torch.rand(draws, len(data), generator=generator, device=device).to(hidden.device)
    kept = (torch.rand(draws, len(data), generator=generator, device=device) >= condition_dropout).to(hidden.device)
    left = 1 - config.acoustic.sigma
    noisy = (1 - left * time[..., None]) * noise + time[..., None] * data
    # projected once a frame; without a bias a dropped state projects to zeros, too
    condition = transformer.llm_projection(hidden) * kept[..., None]
    velocity = transformer.velocity(
        noisy.flatten(0, 1).to(hidden.dtype), transformer.project_time(time.flatten()), condition.flatten(0, 1)
    )
    return (velocity.float().view(shape) - (data - left * noise)).square().mean(dim=(0, 2))


def is_end(targets: Tensor) -> Tensor:
    """Where coded semantic targets are the end of audio, which has no acoustic codes."""
    return targets == END_OF_AUDIO


def mean_by_sequence(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Mean of `values` [N] over those of each sequence, given its number [N]: [sequences], NaN where there are none."""
    total = values.new_zeros(sequences).index_add(0, sequence, values)
    return total / torch.bincount(sequence, minlength=sequences)
