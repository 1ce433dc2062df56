"""How fast do EnCodec and descript-audio-codec train, in how much memory, on the crops of `configs/v3.yaml`?

    pip install encodec==0.1.1 descript-audio-codec==1.0.0
    python -m experiments.codec_training_speed encodec dac [--batch 24] [--seconds 3] [--autocast]

Codecs and discriminators are those of the packages, for 24 kHz. Steps are on noise. Both papers train in float32, where
PyTorch lets cuDNN round to TF32; `--autocast` runs the networks in bf16, as this repository does.
`experiments.step_speed` measures this repository in the same way.

- EnCodec: causal 24 kHz model at 6 kbit/s, five STFT discriminators of 32 channels. The package has no losses, so they
  are written here and in `losses/` from the paper (section 3.4), with its weights and balancer. The discriminator
  learns in every step; the paper leaves out every third.
- DAC: `conf/final/24khz.yml` of its repository, with losses, weights and optimizers of its `scripts/train.py`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.runs import experiment_status, require_gpu
from experiments.step_speed import Measured
from losses import Balancer
from losses.discriminator import feature_matching, hinge_loss

SAMPLE_RATE = 24_000
WARM_UP, ROUNDS, STEPS = 3, 5, 4
Step = Callable[[Tensor], None]  # takes a batch [B, 1, T]


def encodec_step(device: torch.device, filters: int = 32, autocast: bool = False) -> Step:
    """A training step of EnCodec. `filters` is the width of codec and discriminator; the published ones have 32."""
    from encodec.model import EncodecModel
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from encodec.msstftd import MultiScaleSTFTDiscriminator
    from encodec.quantization import ResidualVectorQuantizer

    networks = (
        network(n_filters=filters, norm="weight_norm", causal=True) for network in (SEANetEncoder, SEANetDecoder)
    )
    quantizer = ResidualVectorQuantizer(dimension=128, n_q=32, bins=1024)
    codec = EncodecModel(*networks, quantizer, [1.5, 3.0, 6.0, 12.0, 24.0], SAMPLE_RATE, 1).to(device).train()
    sizes = [2048, 1024, 512, 256, 128]
    discriminator = MultiScaleSTFTDiscriminator(
        filters, n_ffts=sizes, hop_lengths=[size // 4 for size in sizes], win_lengths=sizes
    )
    discriminator.to(device)
    mels = nn.ModuleList(
        torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, 2**i, hop_length=2**i // 4, n_mels=64, power=1)
        for i in range(5, 12)
    ).to(device)
    balancer = Balancer({"l1": 0.1, "mel": 1.0, "adversarial": 3.0, "matching": 3.0})
    of_codec, of_discriminator = (
        torch.optim.Adam(each.parameters(), 3e-4, (0.5, 0.9)) for each in (codec, discriminator)
    )

    def step(original: Tensor) -> None:
        with mixed(device, autocast):
            quantized = codec.quantizer(codec.encoder(original), codec.frame_rate, 6.0)
            decoded = codec.decoder(quantized.quantized)[..., : original.shape[-1]]
        sound = decoded.detach().float().requires_grad_()
        with mixed(device, autocast):
            hinge = hinge_loss(discriminator(original)[0], discriminator(sound.detach())[0])
        of_discriminator.zero_grad()
        hinge.backward()
        of_discriminator.step()
        with mixed(device, autocast):
            (_, real), (logits, fake) = discriminator(original), discriminator(sound)
        losses = {
            "l1": F.l1_loss(sound, original),
            "mel": sum((mel_distance(mel, sound, original) for mel in mels), start=sound.new_zeros(())),
            "adversarial": torch.stack([F.relu(1 - each.float()).mean() for each in logits]).mean(),
            "matching": feature_matching(real, fake),
        }
        found = {name: torch.autograd.grad(loss, sound, retain_graph=True)[0] for name, loss in losses.items()}
        of_codec.zero_grad()
        quantized.penalty.mean().backward(retain_graph=True)  # the commitment loss is not balanced
        decoded.backward(balancer.combine(found).to(decoded.dtype))
        of_codec.step()

    return step


def mel_distance(mel: nn.Module, sound: Tensor, original: Tensor) -> Tensor:
    """EnCodec, eq. 1: the L1 and L2 distance of mel spectrograms."""
    found, expected = mel(sound), mel(original)
    return F.l1_loss(found, expected) + F.mse_loss(found, expected)


def dac_step(device: torch.device, width: int = 64, autocast: bool = False) -> Step:
    """A training step of DAC. `width` is the encoder's first, 64 as published; the decoder's is 24 times it."""
    from audiotools import AudioSignal
    from dac.model import DAC, Discriminator
    from dac.nn.loss import GANLoss, L1Loss, MelSpectrogramLoss, MultiScaleSTFTLoss

    codec = DAC(
        width,
        [2, 4, 5, 8],
        None,
        24 * width,
        [8, 5, 4, 2],
        n_codebooks=32,
        quantizer_dropout=True,
        sample_rate=SAMPLE_RATE,
    )
    discriminator = Discriminator(sample_rate=SAMPLE_RATE)
    codec.to(device).train()
    discriminator.to(device)
    adversarial = GANLoss(discriminator)
    windows = [32, 64, 128, 256, 512, 1024, 2048]
    mel = MelSpectrogramLoss(
        [5, 10, 20, 40, 80, 160, 320], windows, mag_weight=0.0, pow=1.0, mel_fmin=[0] * 7, mel_fmax=[None] * 7
    )
    stft, l1 = MultiScaleSTFTLoss(), L1Loss()  # which its trainer computes to log them
    of_codec, of_discriminator = (
        torch.optim.AdamW(each.parameters(), 1e-4, (0.8, 0.99)) for each in (codec, discriminator)
    )

    def step(original: Tensor) -> None:
        signal = AudioSignal(original, SAMPLE_RATE)
        with mixed(device, autocast):
            found = codec(signal.audio_data)
            reconstruction = AudioSignal(found["audio"], SAMPLE_RATE)
            signal = AudioSignal(original[..., : found["audio"].shape[-1]], SAMPLE_RATE)  # a stride of 5 loses samples
            discriminated = adversarial.discriminator_loss(reconstruction, signal)
        of_discriminator.zero_grad()
        discriminated.backward()
        nn.utils.clip_grad_norm_(discriminator.parameters(), 10.0)
        of_discriminator.step()
        with mixed(device, autocast):
            fooled, matching = adversarial.generator_loss(reconstruction, signal)
        reconstruction.audio_data = reconstruction.audio_data.float()
        stft(reconstruction, signal), l1(reconstruction, signal)
        loss = 15 * mel(reconstruction, signal) + 2 * matching + fooled
        loss = loss + 0.25 * found["vq/commitment_loss"] + found["vq/codebook_loss"]
        of_codec.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 1e3)
        of_codec.step()

    return step


def mixed(device: torch.device, autocast: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext()


CODECS = {"encodec": encodec_step, "dac": dac_step}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="+", choices=CODECS)
    parser.add_argument("--batch", type=int, default=24, help="crops a step; halved until they fit")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each crop")
    parser.add_argument("--autocast", action="store_true", help="networks in bf16")
    options = parser.parse_args()

    def measure_all() -> int:
        require_gpu()
        print(torch.cuda.get_device_name(), flush=True)
        for name in options.codecs:
            measure(name, options.batch, options.seconds, options.autocast)
        return 0

    return experiment_status(measure_all)


def measure(name: str, batch: int, seconds: float, autocast: bool) -> Measured:
    """Times the largest batch that fits, of `batch`, a half of it and so on, and prints a line. Raises OutOfMemoryError
    where not even one crop does."""
    torch.backends.cudnn.benchmark = True
    described = f"{name}, {'bf16' if autocast else 'TF32'}, crops of {seconds:g} s"
    while True:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            at_first, taken = milliseconds(CODECS[name](torch.device("cuda"), autocast=autocast), batch, seconds)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            print(f"{described}: {batch} do not fit", flush=True)
            batch //= 2
            continue
        found = Measured(taken, batch * seconds, torch.cuda.max_memory_reserved() / 1e9, at_first)
        print(f"{described}, {batch} a step: {found}", flush=True)
        return found


def milliseconds(step: Step, batch: int, seconds: float) -> tuple[float, list[float]]:
    """The memory of the first steps in GB, and what a step takes in each of ROUNDS of STEPS."""
    original = 0.1 * torch.randn(batch, 1, round(seconds * SAMPLE_RATE), device="cuda")
    for _ in range(WARM_UP):
        step(original)
    at_first = torch.cuda.max_memory_reserved() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(STEPS):
            step(original)
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - began) / STEPS)
    return at_first, found


if __name__ == "__main__":
    sys.exit(main())
