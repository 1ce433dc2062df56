"""Pseudo-labels: the encoder learns semantic codes of speech from a network that learned them from pairs.

From pairs alone the encoder learns the codes of the decoder's sound. Recordings sound different, and it codes them
otherwise than the original encoder. A speech recogniser depends less on that difference. So a small network, the
labeller, gets Whisper's states of a sound. Of the decoder's sound the codes are known, and the labeller learns them. Of
speech it gives a probability for each entry, and the encoder learns these (pseudo-labels: Lee 2013; soft labels: Hinton
et al. 2015).

With p_fk the labeller's probability of entry e_k in frame f, z_f the semantic latent, s the codebook's spacing and T a
temperature, the loss of a frame is

    −Σ_k p_fk log softmax_k(−|z_f − e_k|² / (T s))
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from losses.codebook import CodebookLoss, as_frames, squared_distances

STATES = 4  # of Whisper's encoder, 50 a second, in a frame of the codec
HIDDEN, KERNEL, BLOCKS = 384, 5, 2  # a frame's label comes from the states of 0.7 s around it


class Labeller(nn.Module):
    """Takes the states [B, 4·F, width] of Whisper's encoder, returns logits [B, entries, F] of the semantic codes."""

    def __init__(self, width: int, entries: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(STATES * width, HIDDEN)
        self.blocks = nn.ModuleList(nn.Conv1d(HIDDEN, HIDDEN, KERNEL, padding=KERNEL // 2) for _ in range(BLOCKS))
        self.last = nn.Linear(HIDDEN, entries)

    def forward(self, states: Tensor) -> Tensor:
        frames = self.norm(states).unflatten(1, (-1, STATES)).flatten(2)  # [B, F, 4·width]
        x = F.gelu(self.first(frames)).transpose(1, 2)
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return self.last(x.transpose(1, 2)).transpose(1, 2)


def labelling_loss(logits: Tensor, codes: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """What the labeller learns by: the cross entropy of its logits [P, entries, F] for pairs, whose semantic codes
    [P, F] are known. Frames that do not count [P, F] add nothing. Returns the loss, and the share of codes that it
    finds in those that count."""
    loss = (F.cross_entropy(logits, codes, reduction="none") * counted).mean()
    found = (logits.detach().argmax(dim=1) == codes) & counted
    return loss, found.sum() / counted.sum().clamp(min=1)


class PseudoLabels(CodebookLoss):
    """Takes semantic latents [B, D, F] of speech and the labeller's logits [B, entries, F]. Returns a scalar. Only the
    latents get a gradient. `temperature` is T."""

    def forward(self, semantic: Tensor, logits: Tensor) -> Tensor:
        scores = self.scores(squared_distances(as_frames(semantic), self.entries))  # [B·F, K]
        labels = logits.detach().float().softmax(dim=1).transpose(1, 2).flatten(0, 1)
        return F.cross_entropy(scores, labels)
