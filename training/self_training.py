"""What a step's speech is taught. Nobody knows its right codes. So they come from a second pass of the encoder, or from
the labeller, which learns from pairs (losses/pseudo_labels.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from codec.codec import Codec
from losses import PseudoLabels
from losses.asr.teacher import Teacher
from losses.pseudo_labels import Labeller, label_weight
from training.auxiliary import AuxiliaryNetwork
from training.distributed import Ranks
from training.pairs import DecodedPairs, settled


class SecondPass:
    """Encodes reconstructions without a gradient. `autocast` makes the context of the arithmetic."""

    def __init__(self, codec: Codec, autocast: Callable[[], AbstractContextManager[None]]):
        self.encoder, self.quantizer = codec.get_submodule("encoder"), codec.quantizer
        self.frame_size, self.autocast = codec.frame_size, autocast

    @torch.no_grad()
    def __call__(self, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """For reconstructions [B, 1, T]: the codes [B, 37, F] of the frames that lie wholly inside, and which of these
        frames [B, F] count."""
        with self.autocast():
            encoded = self.encoder(reconstruction)
        codes = self.quantizer.encode(encoded.float()[..., : reconstruction.shape[-1] // self.frame_size])
        return codes, settled(len(codes), codes.shape[-1], codes.device)


class Labels(NamedTuple):
    of_speech: Tensor
    """[B, D, F], the labeller's semantic latents."""
    weight: Tensor
    """Scalar in [0, 1], by which the labels' weight is multiplied."""
    found: Tensor
    """Scalar, the share of all ranks' pairs' codes that the labeller finds."""
    learned: Tensor
    """Scalar, the loss by which the labeller learns from the pairs."""


class Labelling:
    """The labeller's part of a step."""

    def __init__(self, teacher: Teacher, labeller: AuxiliaryNetwork[Labeller], loss: PseudoLabels, ranks: Ranks):
        self.teacher, self.labeller, self.loss, self.ranks = teacher, labeller.network, loss, ranks

    def __call__(self, sound: Tensor, pairs: DecodedPairs, by_encoder: Tensor, draw: Tensor) -> Labels:
        """Takes a part's sound [B + P, 1, T], speech and pairs; the share of the pairs' semantic codes that the encoder
        finds in the frames that count; and the draws of the labeller's dropout."""
        states, (pair_count, _, frames) = self.teacher.states(sound[:, 0]), pairs.codes.shape
        batch, codes = len(sound) - pair_count, pairs.codes[:, 0]
        with torch.no_grad():
            latents = self.labeller(states)
            counted = pairs.counted.sum()
            right = self.loss.found(latents[batch:, :, :frames], codes, pairs.counted)
            *both, of_all = self.ranks.sum(torch.stack([right, by_encoder * counted, counted]))
            labeller, encoder = (count / of_all.clamp(min=1) for count in both)
        learning = self.labeller(states[batch:], draw)[..., :frames]
        learned = self.loss.labelling(learning, codes, pairs.counted)
        return Labels(latents[:batch], label_weight(labeller, encoder), labeller, learned)
