"""Settings of the stand-in's codec's training, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    steps: int = 33_758
    batch_size: int = 64
    frames: int = 24  # of a crop, 80 ms each
    lr: float = 1e-3  # linear warm-up, then a cosine down to final_lr
    final_lr: float = 5e-5
    warmup_steps: int = 300
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 200
    validate_every: int = 4000
    # shares of the gradient at the reconstruction
    mel: float = 4.0
    l1: float = 0.5
    stft: float = 1.0
    feature_matching: float = 4.0
    adversarial: float = 1.0
    fading: float = 0.9999  # factor a step for l1 and stft, down to fading_floor
    fading_floor: float = 0.3
    # shares of the gradient at the latent, where the sound has 1
    phonemes: float = 1.0
    commitment: float = 0.5  # with 0.2, the phonemes' loss made latents and entries grow without end
    # a guard against the same: pull on a semantic latent whose root mean square is above 1
    ball: float = 1.0
    quantized_share: float = 0.5  # of samples with a quantized acoustic part; half of the others get noise
    all_quantized_from: float = 0.7  # part of the steps after which that share is 1
    discriminator_from: float = 0.15  # part of the steps after which there is a discriminator
    discriminator_every: int = 2
    discriminator_sizes: str = "2296,876,334,126"  # samples of its windows
    discriminator_channels: int = 32
    discriminator_lr: float = 3e-4
    discriminator_crops: int = 24  # how many of the batch it sees
    discriminator_frames: int = 8  # how much of each


def learning_rate(step: int, settings: Settings) -> float:
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return settings.final_lr + (settings.lr - settings.final_lr) * cosine
