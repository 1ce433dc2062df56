"""Pseudo-labels: the encoder learns semantic codes of speech from a network that learned them from pairs.

From pairs alone the encoder learns the codes of the decoder's sound. Recordings sound different, and it codes them
otherwise than the original encoder. A speech recogniser depends less on that difference. So a small network, the
labeller, gets Whisper's states of a sound. Of the decoder's sound the codes are known, and the labeller learns them. Of
speech it gives a probability for each entry, and the encoder learns these (pseudo-labels: Lee 2013; soft labels: Hinton
et al. 2015).

The labeller makes a latent, as the encoder does, and both name entries of the codebook by their distances. So what it
learns of one entry holds for those around it, and an entry that is rare in the pairs needs few examples. With z_f the
encoder's latent of frame f, e_k the entries, s their spacing and T a temperature, a latent's scores are
−|z_f − e_k|² / (T s). With p_fk the softmax of the labeller's scores, the loss of a frame is

    −Σ_k p_fk log softmax_k(−|z_f − e_k|² / (T s))

A labeller that knows little, as at first, would pull the codes off. So in training the weight is multiplied by the
share of the pairs' codes that the labeller finds. And where the encoder finds more of them than the labeller does, the
weight is divided by how many times as many.

The labeller could learn all its pairs by heart. So while it learns, it loses half of its channels, others
in each crop (dropout: Srivastava et al. 2014; of whole channels: Tompson et al. 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.codebook import CodebookLoss, as_frames, squared_distances

STATES = 4  # of Whisper's encoder, 50 a second, in a frame of the codec
HIDDEN, KERNEL, BLOCKS = 384, 5, 2  # a frame's label comes from the states of 0.7 s around it
DROPPED = 0.5  # share of the channels that are lost


class Labeller(nn.Module):
    """Takes the states [B, 4·F, width] of Whisper's encoder, returns semantic latents [B, D, F]. `draw` [B, channels],
    uniform in [0, 1), chooses the channels that it loses; without it, it loses none."""

    def __init__(self, width: int, semantic_dim: int):
        super().__init__()
        self.sizes = [width, *(1 + BLOCKS) * [HIDDEN]]  # channels of each layer
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(STATES * width, HIDDEN)
        self.blocks = nn.ModuleList(nn.Conv1d(HIDDEN, HIDDEN, KERNEL, padding=KERNEL // 2) for _ in range(BLOCKS))
        self.last = nn.Linear(HIDDEN, semantic_dim)

    def forward(self, states: Tensor, draw: Tensor | None = None) -> Tensor:
        of_states, of_first, *of_blocks = [None] * len(self.sizes) if draw is None else draw.split(self.sizes, dim=1)
        kept = lose_channels(self.norm(states), of_states)
        frames = kept.unflatten(1, (-1, STATES)).flatten(2)  # [B, F, 4·width]
        x = lose_channels(F.gelu(self.first(frames)), of_first).transpose(1, 2)
        for block, numbers in zip(self.blocks, of_blocks, strict=True):
            x = x + lose_channels(F.gelu(block(x)).transpose(1, 2), numbers).transpose(1, 2)
        return self.last(x.transpose(1, 2)).transpose(1, 2)

    def draw(self, crops: int, generator: torch.Generator) -> Tensor:
        """The random numbers for so many crops, from a CPU generator."""
        return torch.rand(crops, sum(self.sizes), generator=generator)


def lose_channels(x: Tensor, draw: Tensor | None) -> Tensor:
    """Zeros the channels of [B, F, C] whose numbers [B, C] are below DROPPED, and scales the others up."""
    return x if draw is None else x * ((draw >= DROPPED) / (1 - DROPPED))[:, None]


class PseudoLabels(CodebookLoss):
    """Takes semantic latents [B, D, F] of speech and the labeller's. Returns a scalar. Only the first get a gradient.
    `temperature` is T."""

    def forward(self, semantic: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.scored(semantic), self.scored(labels.detach()).softmax(dim=1))

    def labelling(self, labels: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        """What the labeller learns by: the cross entropy of its latents [P, D, F] for pairs, whose semantic codes
        [P, F] are known. Frames that do not count [P, F] add nothing."""
        loss = F.cross_entropy(self.scored(labels), codes.flatten(), reduction="none")
        return (loss * counted.flatten()).mean()

    def found(self, labels: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        """From the labeller's latents of pairs [P, D, F]: a scalar, how many codes [P, F] it finds in the frames that
        count."""
        return ((self.scored(labels).argmax(dim=1) == codes.flatten()) & counted.flatten()).sum()

    def scored(self, latent: Tensor) -> Tensor:
        """Latents [B, D, F] to scores [B·F, K]."""
        return self.scores(squared_distances(as_frames(latent), self.entries))


def label_weight(labeller: Tensor, encoder: Tensor) -> Tensor:
    """By what the labels' weight is multiplied: a scalar in [0, 1], for the shares of the pairs' codes that the
    labeller and the encoder find."""
    return labeller * (labeller / encoder.clamp(min=1e-9)).clamp(max=1)
