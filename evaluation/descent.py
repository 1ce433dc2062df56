"""Codes without any encoder: gradient descent on one clip's latent, through the frozen decoder. It is the way around
the missing encoder that needs no training, and seconds of work a second of speech."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from codec import Codec
from losses import Balancer, MelDistance, STFTDistance
from losses.speaker import SpeakerDistance

WEIGHTS = {"mel": 4.0, "stft": 1.0, "speaker": 1.0}  # as in configs/v3.yaml, of what one clip can be asked
STEPS, RATE = 300, 0.05  # the rate is in units of the latent: of the codebook's spread, and before the tanh


class Descent:
    """Encodes a waveform [1, 1, T] to the hard codes [1, 37, F] that `steps` of Adam find for it, straight-through over
    the quantizer, by the training's own losses, balanced as there. `speaker` adds the speaker's. In float32; `seed` is
    that of the first semantic entries, which are drawn."""

    def __init__(self, codec: Codec, speaker: SpeakerDistance | None = None, steps: int = STEPS, seed: int = 0):
        self.codec = copy.deepcopy(codec).float().requires_grad_(False)
        self.steps, self.seed = steps, seed
        device = codec.decoder.output_proj.conv.weight.device
        rate = codec.sample_rate
        self.losses = {"mel": MelDistance(rate, offset=0.01).to(device), "stft": STFTDistance().to(device)}
        if speaker is not None:
            self.losses["speaker"] = speaker.to(device)
        entries = self.codec.quantizer.semantic_codebook.embedding
        self.entries, self.spread = entries, entries.std()

    def __call__(self, waveform: Tensor) -> Tensor:
        config, samples = self.codec.config, waveform.shape[-1]
        frames = -(-samples // self.codec.frame_size)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(len(self.entries), (frames,), generator=generator).to(waveform.device)
        semantic = (self.entries[drawn].T[None] / self.spread).clone().requires_grad_()
        acoustic = torch.zeros(1, config.acoustic_dim, frames, device=waveform.device, requires_grad=True)
        optimizer = torch.optim.Adam([semantic, acoustic], RATE, (0.5, 0.9))
        balancer = Balancer({name: WEIGHTS[name] for name in self.losses}, decay=0.99)
        for step in range(self.steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / self.steps)
            decoded = self.codec.decoder(self.codec.quantizer(self._latent(semantic, acoustic)).latent)
            sound = decoded.detach()[..., :samples].requires_grad_()
            gradients = {
                name: torch.autograd.grad(loss(sound, waveform), sound)[0] for name, loss in self.losses.items()
            }
            optimizer.zero_grad(set_to_none=True)
            decoded[..., :samples].backward(balancer.combine(gradients))
            optimizer.step()
        return self.codec.quantizer.encode(self._latent(semantic, acoustic).detach())

    def _latent(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        return torch.cat([semantic * self.spread, acoustic], dim=1)
