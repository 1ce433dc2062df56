"""Trains the stand-in's codec from scratch, encoder, decoder and codebook, on speech whose phonemes are known.

    python -m experiments.stand_in.train_codec SPEECH OUT                        # 17 minutes on one H100
    python -m experiments.stand_in.train_codec SPEECH OUT steps=2000 batch_size=16

SPEECH is a folder as labelled_speech.py describes it. OUT gets `release/` (decoder, codebook, embedding table),
`encoder.safetensors` (the encoder to withhold) and `log.json`.

It differs from `train_encoder.py` with `train: codec` in five things:

- The semantic codes learn phonemes. A linear layer predicts, from a frame's codebook entry alone, the phonemes of the
  frame's four quarters. It stands in place of ASR distillation and is thrown away afterwards.
- The semantic part gets no gradient from the sound. So its codes hardly depend on the voice, and a language model can
  predict them. All samples quantize it.
- Late in the training the acoustic part is quantized in all samples, too.
- The discriminator has four resolutions, sees a short piece of some of the crops, and learns in every second step. The
  codec also learns to make its logits high (hinge), beside feature matching.
- All speech lies in the GPU's memory, and steps are captured in CUDA graphs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.checkpoint import save_encoder, save_release
from codec.codec import Codec
from codec.config import CodecConfig, read_params_file
from experiments.stand_in.codec_settings import Settings, learning_rate
from experiments.stand_in.codec_validation import QUARTERS, VALIDATION_FRAMES, quarter_offsets, validate
from experiments.stand_in.labelled_speech import NO_CLASS, UNIT, LabelledSpeech
from experiments.stand_in.settings import read_settings
from losses import Balancer, MelDistance, STFTDistance, commitment
from losses.discriminator import STFTDiscriminator, feature_matching, hinge_loss
from system.device import open_device

WARM_UP = 4  # steps of a kind before one is captured
BALANCER_DECAY = 0.99


@dataclass
class Inputs:
    """What is random or scheduled in a step, on the device. A captured step reads it from the same memory again."""

    starts: Tensor  # [B], the crops' first samples
    path: Tensor  # [B, 1, 1] in [0, 1): whether a sample's acoustic part is quantized, gets noise, or passes
    noise: Tensor  # [B, acoustic, frames] in [-1, 1)
    seeds: Tensor  # [entries] in [0, 1), for the codebook's dead entries
    pieces: Tensor  # [discriminator_crops], the first sample of each piece within its crop
    quantized_share: Tensor
    fade: Tensor
    lr: Tensor

    def to(self, device: torch.device) -> Inputs:
        return Inputs(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class Trainer:
    def __init__(self, settings: Settings, config: CodecConfig, speech: LabelledSpeech, device: torch.device):
        self.settings, self.speech, self.device = settings, speech, device
        self.on_gpu = device.type == "cuda"
        self.random = np.random.default_rng(settings.seed)
        self.samples = settings.frames * config.frame_size
        self.long_enough = speech.longer_than(self.samples)
        self.quarters = quarter_offsets(settings.frames, config.frame_size, device)

        torch.manual_seed(settings.seed)
        self.codec = Codec(config).to(device).requires_grad_(False)
        assert self.codec.encoder is not None
        assert self.codec.embedding_table is not None
        nn.init.normal_(self.codec.embedding_table, std=0.6 * config.embedding_dim**-0.5)
        self.encoder, self.decoder = self.codec.encoder.requires_grad_(True), self.codec.decoder.requires_grad_(True)
        self.quantizer, self.config = self.codec.quantizer, config
        self.phonemes = nn.Linear(config.semantic_dim, QUARTERS * speech.number_of_classes).to(device)
        sizes = [int(size) for size in settings.discriminator_sizes.split(",")]
        channels = settings.discriminator_channels
        self.discriminator = nn.ModuleList(STFTDiscriminator(size, channels) for size in sizes).to(device)
        self.lr = torch.full((), settings.lr, device=device)
        rate = self.lr if self.on_gpu else settings.lr
        self.codec_optimizers = [self.adam(network, rate) for network in (self.encoder, self.decoder)]
        self.phoneme_optimizer = self.adam(self.phonemes, 1e-3)
        self.discriminator_optimizer = self.adam(self.discriminator, settings.discriminator_lr)

        self.mel, self.stft = MelDistance(self.codec.sample_rate, 0.01).to(device), STFTDistance().to(device)
        at_waveform = ("mel", "l1", "stft", "feature_matching", "adversarial")
        weights = {name: getattr(settings, name) for name in at_waveform}
        self.waveform_balancer = Balancer(weights, decay=BALANCER_DECAY)
        latent_weights = {"sound": 1.0, "phonemes": settings.phonemes, "commitment": settings.commitment}
        self.latent_balancer = Balancer(latent_weights, decay=BALANCER_DECAY)

        networks = {"encoder": self.encoder, "decoder": self.decoder}
        self.live = [tensor for network in networks.values() for tensor in network.state_dict().values()]
        self.averages = [tensor.clone() for tensor in self.live]
        self.graphs: dict[bool, tuple[torch.cuda.CUDAGraph, Inputs, dict[str, Tensor]]] = {}
        self.made = {False: 0, True: 0}

    def adam(self, network: nn.Module, lr: float | Tensor) -> torch.optim.Adam:
        return torch.optim.Adam(network.parameters(), lr, (0.5, 0.9), fused=self.on_gpu, capturable=self.on_gpu)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu)

    # ---- one step
    def train_step(self, step: int) -> dict[str, Tensor]:
        """Returns metrics on the device; the next step may overwrite them."""
        settings = self.settings
        progress = step / settings.steps
        adversarial = progress >= settings.discriminator_from and step % settings.discriminator_every == 0
        inputs = self.inputs(step).to(self.device)
        self.made[adversarial] += 1
        if not self.on_gpu or self.made[adversarial] <= WARM_UP:
            return self.compute(inputs, adversarial)
        if adversarial not in self.graphs:
            torch.cuda.synchronize()
            graph, kept = (
                torch.cuda.CUDAGraph(),
                Inputs(**{name: value.clone() for name, value in vars(inputs).items()}),
            )
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                metrics = self.compute(kept, adversarial)
            self.graphs[adversarial] = graph, kept, metrics
        graph, kept, metrics = self.graphs[adversarial]
        for name, value in vars(inputs).items():
            getattr(kept, name).copy_(value)
        graph.replay()
        return metrics

    def inputs(self, step: int) -> Inputs:
        settings, batch = self.settings, self.settings.batch_size
        progress = step / settings.steps
        chosen = self.long_enough[self.random.integers(len(self.long_enough), size=batch)]
        room = self.speech.units[chosen] * UNIT - self.samples + 1
        offset = (self.random.random(batch) * room).astype(np.int64)
        piece = settings.discriminator_frames * self.config.frame_size
        return Inputs(
            starts=torch.from_numpy(self.speech.starts[chosen] * UNIT + offset),
            path=torch.rand(batch, 1, 1),
            noise=torch.rand(batch, self.config.acoustic_dim, settings.frames) * 2 - 1,
            seeds=torch.rand(self.config.semantic_codebook_size),
            pieces=torch.from_numpy(
                self.random.integers(0, self.samples - piece + 1, size=settings.discriminator_crops)
            ),
            quantized_share=torch.tensor(1.0 if progress >= settings.all_quantized_from else settings.quantized_share),
            fade=torch.tensor(max(settings.fading_floor, settings.fading**step)),
            lr=torch.tensor(learning_rate(step, settings)),
        )

    def compute(self, inputs: Inputs, adversarial: bool) -> dict[str, Tensor]:
        """All of a step that runs on the device."""
        settings, semantic_dim = self.settings, self.config.semantic_dim
        optimizers = [*self.codec_optimizers, self.phoneme_optimizer, self.discriminator_optimizer]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.lr.copy_(inputs.lr)
        waveform = self.speech.crops(inputs.starts, self.samples)
        labels = self.speech.labels(inputs.starts, self.quarters)
        batch = len(waveform)

        with self.autocast():
            encoded = self.encoder(waveform)
        latent = encoded.detach().float().requires_grad_()
        semantic, acoustic = latent[:, :semantic_dim], latent[:, semantic_dim:]
        codes = self.quantizer.encode(latent.detach())
        entry = self.quantizer.semantic_codebook.decode(codes[:, :1])
        mixed = self.mixed_acoustic(acoustic, codes[:, 1:], inputs)
        with self.autocast():
            decoded = self.decoder(torch.cat([entry, mixed], dim=1))
        reconstruction = decoded.detach().float().requires_grad_()

        # losses on the reconstruction, each differentiated there
        losses = {
            "mel": self.mel(reconstruction, waveform),
            "l1": F.l1_loss(reconstruction, waveform),
            "stft": self.stft(reconstruction, waveform),
        }
        gradients = {name: torch.autograd.grad(loss, reconstruction)[0] for name, loss in losses.items()}
        if adversarial:
            losses |= self.discriminate(waveform, reconstruction, inputs.pieces)
            for name in ("feature_matching", "adversarial"):
                (found,) = torch.autograd.grad(losses[name], reconstruction, retain_graph=True)
                # a mean over discriminator_crops: the others have a gradient of zero
                gradients[name] = found * (batch / settings.discriminator_crops)
            losses["discriminator"].backward(inputs=list(self.discriminator.parameters()))
        balanced = self.waveform_balancer.combine(gradients, {"l1": inputs.fade, "stft": inputs.fade})
        decoded.backward((balanced / batch).to(decoded.dtype))

        # losses on the latent, beside what the decoder sends; straight through the quantizer to the semantic part
        losses["phonemes"] = self.phoneme_loss(semantic + (entry - semantic).detach(), labels)
        losses["commitment"] = commitment(semantic, entry)
        at_latent = {
            name: torch.autograd.grad(losses[name], latent, retain_graph=True)[0] for name in ("phonemes", "commitment")
        }
        losses["phonemes"].backward(inputs=list(self.phonemes.parameters()))
        assert latent.grad is not None
        combined = self.latent_balancer.combine({**at_latent, "sound": latent.grad})
        combined[:, :semantic_dim] += settings.ball * beyond_unit_ball(semantic.detach())
        encoded.backward((combined / batch).to(encoded.dtype))

        for network in (self.encoder, self.decoder):
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if adversarial:
            nn.utils.clip_grad_norm_(self.discriminator.parameters(), 10.0)
        for optimizer in optimizers if adversarial else optimizers[:-1]:
            optimizer.step()
        reseeded = self.quantizer.semantic_codebook.learn(semantic.detach(), codes[:, :1], inputs.seeds)
        torch._foreach_lerp_(self.averages, self.live, 1 - settings.ema_decay)
        size = semantic.detach().square().mean(dim=1).sqrt().mean()
        return {name: loss.detach() for name, loss in losses.items()} | {"semantic_rms": size, "reseeded": reseeded}

    def mixed_acoustic(self, acoustic: Tensor, codes: Tensor, inputs: Inputs) -> Tensor:
        """What the decoder gets [B, acoustic, F]: a share of the samples is quantized, half of the others get noise of
        magnitude 1/L, and the rest passes."""
        book = self.quantizer.acoustic_codebook
        bounded = torch.tanh(acoustic)
        level = bounded + (book.decode(codes) - bounded).detach()
        share = inputs.quantized_share
        noisy = torch.where(inputs.path < share + 0.5 * (1 - share), bounded + inputs.noise / book.levels, bounded)
        return torch.where(inputs.path < share, level, noisy)

    def discriminate(self, waveform: Tensor, reconstruction: Tensor, pieces: Tensor) -> dict[str, Tensor]:
        """The discriminator's losses on a piece of some of the crops. Its own is in `discriminator`."""
        count, length = len(pieces), self.settings.discriminator_frames * self.config.frame_size
        index = pieces[:, None] + torch.arange(length, device=self.device)
        real, fake = (sound[:count, 0].gather(1, index)[:, None] for sound in (waveform, reconstruction))
        with self.autocast():
            (real_logits, real_features), (fake_logits, fake_features) = (
                tuple(zip(*(scale(sound) for scale in self.discriminator), strict=True)) for sound in (real, fake)
            )
        return {
            "feature_matching": feature_matching(list(real_features), list(fake_features)),
            "adversarial": torch.stack([-logits.float().mean() for logits in fake_logits]).mean(),
            "discriminator": hinge_loss(list(real_logits), list(fake_logits)),
        }

    def phoneme_loss(self, entries: Tensor, labels: Tensor) -> Tensor:
        """Entries [B, semantic, F] and classes [B, 4 F] to the mean cross entropy, in nats."""
        logits = self.phonemes(entries.transpose(1, 2)).reshape(-1, self.speech.number_of_classes)
        return F.cross_entropy(logits, labels.reshape(-1), ignore_index=NO_CLASS)

    # ---- what a run leaves
    def averaged(self) -> Codec:
        """A codec with the averaged weights."""
        codec = Codec(self.config).to(self.device).requires_grad_(False).eval()
        assert codec.encoder is not None
        values = iter(self.averages)
        for network in (codec.encoder, codec.decoder):
            network.load_state_dict({name: next(values) for name in network.state_dict()})
        codec.quantizer.load_state_dict(self.quantizer.state_dict())
        codec.embedding_table = self.codec.embedding_table
        return codec

    def validate(self, speech: LabelledSpeech, frames: int = VALIDATION_FRAMES) -> dict[str, float]:
        """The averaged codec's metrics."""
        return validate(self.averaged(), self.phonemes, speech, self.autocast, frames)

    def save(self, folder: Path, params: Path, step: int) -> None:
        codec = self.averaged()
        seconds = step * self.settings.batch_size * self.samples / codec.sample_rate
        save_release(folder / "release", codec, params)
        stated = {"step": step, "audio_seconds": seconds, "averaged_weights": True}
        save_encoder(folder / "encoder.safetensors", codec, stated)


def beyond_unit_ball(semantic: Tensor) -> Tensor:
    """Latents [B, D, F] to a gradient that shortens those whose root mean square is above 1, by the excess."""
    size = semantic.square().mean(dim=1, keepdim=True).sqrt()
    return F.relu(size - 1) * semantic / (size * semantic.shape[1] ** 0.5 + 1e-6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--params", type=Path, default=Path("configs/params/stand_in_512.json"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    try:
        settings = read_settings(Settings, arguments.overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    device = open_device()
    if device.type == "cuda":
        # the one program that rounds to TF32, as the codec of `data/stand_in` was trained
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.cuda.set_stream(torch.cuda.Stream())  # CUDA graphs cannot be captured on the default one
    speech = LabelledSpeech(arguments.speech, "train", device)
    held_out = LabelledSpeech(arguments.speech, "dev", device, speech.class_of)
    trainer = Trainer(settings, CodecConfig.from_params(read_params_file(arguments.params)), speech, device)
    print(f"{speech.hours:.1f} hours, {speech.number_of_classes} classes of phonemes, {asdict(settings)}", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    log: list[dict[str, float]] = []
    began = time.time()
    for step in range(settings.steps):
        metrics, done = trainer.train_step(step), step + 1
        entry: dict[str, float] = {"step": done, "seconds": round(time.time() - began, 1)}
        if done % settings.log_every == 0:
            entry |= {name: round(float(value), 4) for name, value in metrics.items()}
            if not math.isfinite(entry["mel"]):
                print(f"error: the mel distance of step {done} is {entry['mel']}", file=sys.stderr)
                return 1
        if done % settings.validate_every == 0 or done == settings.steps:
            found = trainer.validate(held_out)
            entry |= {f"validation/{name}": round(value, 4) for name, value in found.items()}
            trainer.save(arguments.out, arguments.params, done)
        if len(entry) > 2:
            log.append(entry)
            print(json.dumps(entry), flush=True)
            (arguments.out / "log.json").write_text(json.dumps(log), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
