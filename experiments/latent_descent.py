"""Codes without an encoder: gradient descent on the latents of each clip, through the frozen decoder.

It needs no training, but on a CPU it takes seconds of computation per second of speech.
experiments/evaluate_with_descent.py measures it beside trained encoders.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from codec import Codec
from evaluation.judges.judge import first_line
from evaluation.scoring import Progress, no_progress
from losses import Balancer, MelDistance, STFTDistance
from losses.mel import RESOLUTIONS
from losses.speaker import SHORTEST, SpeakerDistance

WEIGHTS = {"mel": 4.0, "stft": 1.0, "speaker": 1.0}  # as in configs/v3.yaml, without the losses that need more clips
STEPS, LEARNING_RATE = 300, 0.05  # the rate is in units of the latent: the codebook's spread; before the tanh
BATCH_SECONDS = 200.0  # of speech in a batch on a GPU; on a CPU, batches gain nothing
SILENCE_AFTER = 1.0  # seconds of silence after each clip: more than the speaker network's receptive field, so that the
# rest of a batch's padding makes no difference


class LatentDescent:
    """Finds hard codes by `steps` of Adam, straight-through over the quantizer, with the losses of the training,
    balanced as there. `speaker` adds the speaker loss. Computes in float32, on a GPU with the decoder under bf16
    autocast, as in training. `seed` draws the first semantic entries. Up to rounding, a clip gives in a batch what it
    gives alone: padding has no gradient, and each clip has its own balancer."""

    def __init__(self, codec: Codec, speaker: SpeakerDistance | None = None, steps: int = STEPS, seed: int = 0):
        self.codec = copy.deepcopy(codec).float().requires_grad_(False)
        self.steps, self.seed = steps, seed
        self.device = codec.device
        rate = codec.sample_rate
        mel, stft = MelDistance(rate, offset=0.01).to(self.device), STFTDistance().to(self.device)
        self.losses = {"mel": mel.per_clip, "stft": stft.per_clip}
        self.shortest = RESOLUTIONS[0][0]  # samples
        self.speaker = speaker is not None
        if speaker is not None:
            self.losses["speaker"] = speaker.to(self.device).per_clip
            self.shortest = max(self.shortest, round(SHORTEST * rate))
        entries = self.codec.quantizer.semantic_codebook.embedding
        self.entries, self.spread = entries, entries.std()

    def __call__(self, waveforms: Sequence[Tensor], progress: Progress = no_progress) -> list[Tensor]:
        """Waveforms [T] to codes [37, F]. Raises ValueError if one has fewer than `shortest` samples, and RuntimeError
        if the memory is too small."""
        found, failed = self.find(waveforms, progress)
        if failed:
            raise RuntimeError(next(iter(failed.values())))
        return [found[i] for i in range(len(waveforms))]

    def find(
        self, waveforms: Sequence[Tensor], progress: Progress = no_progress
    ) -> tuple[dict[int, Tensor], dict[int, str]]:
        """The same by clip number. If a batch fails, for example because the memory is too small, its clips have a
        reason in the second dictionary instead."""
        found: dict[int, Tensor] = {}
        failed: dict[int, str] = {}
        batches = self._batches(waveforms)
        work = len(batches) * self.steps
        done = iter(progress(range(work), "descent, steps", work))
        for batch in batches:
            try:
                found |= zip(batch, self._optimize([waveforms[i] for i in batch], done), strict=True)
            except RuntimeError as error:
                failed |= dict.fromkeys(batch, first_line(error))
        return found, failed

    def _batches(self, waveforms: Sequence[Tensor]) -> list[list[int]]:
        """Clip numbers in batches of clips with similar lengths."""
        limit = BATCH_SECONDS * self.codec.sample_rate if self.device.type == "cuda" else 0
        batches: list[list[int]] = [[]]
        for i in sorted(range(len(waveforms)), key=lambda i: len(waveforms[i])):
            if batches[-1] and len(waveforms[i]) * (len(batches[-1]) + 1) > limit:
                batches.append([])
            batches[-1].append(i)
        return [batch for batch in batches if batch]

    def _optimize(self, waveforms: Sequence[Tensor], done: Iterator[Any]) -> list[Tensor]:
        """Codes of one batch; advances `done` by one at every step."""
        config, frame = self.codec.config, self.codec.frame_size
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        if int(lengths.min()) < self.shortest:
            raise ValueError(f"{int(lengths.min())} samples are too few, expected {self.shortest} or more")
        frames = [-(-len(waveform) // frame) for waveform in waveforms]
        total = max(frames) + (-(-round(SILENCE_AFTER * self.codec.sample_rate) // frame) if self.speaker else 0)
        original = torch.stack([F.pad(waveform, (0, total * frame - len(waveform))) for waveform in waveforms])
        original = original[:, None].to(self.device)
        inside = torch.arange(total * frame, device=self.device) < lengths.to(self.device)[:, None, None]

        semantic = torch.stack([self._random_entries(count, total) for count in frames]).to(self.device)
        semantic.requires_grad_()
        acoustic = torch.zeros(len(frames), config.acoustic_dim, total, device=self.device, requires_grad=True)
        optimizer = torch.optim.Adam([semantic, acoustic], LEARNING_RATE, (0.5, 0.9))
        weights = {name: WEIGHTS[name] for name in self.losses}
        balancers = [Balancer(weights, decay=0.99) for _ in waveforms]
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / self.steps)
            quantized = self.codec.quantizer(self._latent(semantic, acoustic)).latent
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                decoded = self.codec.decoder(quantized)
            audio = (decoded.detach().float() * inside).requires_grad_()
            gradients = {
                # the gradient of the sum over clips holds each clip's own gradient
                name: torch.autograd.grad(loss(audio, original, lengths=lengths).sum(), audio)[0] * inside
                for name, loss in self.losses.items()
            }
            balanced = [
                balancer.combine({name: gradient[i : i + 1] for name, gradient in gradients.items()})
                for i, balancer in enumerate(balancers)
            ]
            optimizer.zero_grad(set_to_none=True)
            decoded.backward(torch.cat(balanced).to(decoded.dtype))
            optimizer.step()
            next(done)
        codes = self.codec.quantizer.encode(self._latent(semantic, acoustic).detach()).cpu()
        return [codes[i, :, :count] for i, count in enumerate(frames)]

    def _random_entries(self, frames: int, total: int) -> Tensor:
        """The initial semantic latent [D, total]: random codebook entries for `frames` frames, then 0."""
        drawn = torch.randint(len(self.entries), (frames,), generator=torch.Generator().manual_seed(self.seed))
        return F.pad(self.entries[drawn.to(self.device)].T / self.spread, (0, total - frames))

    def _latent(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        return torch.cat([semantic * self.spread, acoustic], dim=1)
