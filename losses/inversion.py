"""Inversion: the encoder finds again the codes c from which the frozen decoder made a sound D(c).

The decoder makes nearly the same sound of many codes. The language model knows one way of using them, and what it
speaks shows that way. So the codes of its speech are a target that the sound alone does not give. With z the semantic
latent of a frame, a its acoustic latents, e_k the K entries of the codebook and s its spacing
(`losses.codebook.codebook_spacing`), the loss of a frame is

    −log softmax_k(−|z − e_k|² / (T s))[c]  +  PULL |z − e_c|² / s  +  mean over the 36 of (½ (L − 1) (tanh a − level))²

The first part chooses the entry, the second draws the latent to it, and the third is the squared distance to each
acoustic level, in units of the distance between two levels. Frames that do not count add nothing; the sum is divided by
the number of all frames, so that two ranks compute what one computes on the whole batch.

The loss `second_pass` is the same on speech x, with the codes that the encoder finds in the reconstruction, E(D(E(x))).
The encoder codes what the decoder plays as the language model does, and the loss draws x there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from codec.quantizer import Quantizer
from losses.codebook import CodebookLoss, as_frames, squared_distances

PULL = 0.3  # weight of the distance to the right entry, as in the trial that showed the effect


class Inversion(CodebookLoss):
    """Takes latents [B, semantic + acoustic, F], the codes [B, 37, F] that were decoded, and which frames [B, F] count.
    Acoustic codes that are no whole numbers ask for values between levels.
    Returns the loss, and the shares of codes that the latents find again in these frames: semantic, acoustic, and
    acoustic up to one level. `temperature` is T. Only the latents get a gradient."""

    def __init__(self, quantizer: Quantizer, temperature: float = 0.5):
        super().__init__(quantizer, temperature)
        self.split_sizes, self.levels = quantizer.split_sizes, quantizer.acoustic_codebook.levels

    def forward(self, latent: Tensor, codes: Tensor, counted: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        semantic, acoustic = latent.float().split(self.split_sizes, dim=1)
        wanted, wanted_levels = codes[:, 0].reshape(-1).long(), codes[:, 1:]
        frames = as_frames(semantic)
        squared = squared_distances(frames, self.entries)
        choice = F.cross_entropy(self.scores(squared), wanted, reduction="none")
        pull = (frames - self.entries[wanted]).square().sum(dim=1) / self.spacing
        steps = (torch.tanh(acoustic) + 1) * ((self.levels - 1) / 2)  # 0 to L − 1
        of_levels = (steps - wanted_levels).square().mean(dim=1)
        loss = ((choice + PULL * pull).view_as(of_levels) + of_levels) * counted  # [B, F]

        def share(found: Tensor) -> Tensor:
            return (found * counted).sum() / counted.sum().clamp(min=1)

        distance = (steps.detach().round() - wanted_levels.round()).abs()
        found = {
            "found/semantic": share((squared.detach().argmin(dim=1) == wanted).view_as(of_levels)),
            "found/acoustic": share((distance == 0).float().mean(dim=1)),
            "found/acoustic_within_one": share((distance <= 1).float().mean(dim=1)),
        }
        return loss.mean(), found
