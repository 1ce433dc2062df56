"""Trains the stand-in's language model and acoustic transformer on the codes of its codec.

    python -m experiments.stand_in.train_language_model OUT --codes CODES --codec data/stand_in/release   # one H100
    python -m experiments.stand_in.train_language_model OUT --codes CODES --codes MORE --codec RELEASE minutes=12

CODES are folders that code_statistics.py wrote; the dev split is the first folder's. OUT gets `release/`, which the
server can serve (language_model_release.py). `log.json` holds the curves, `said_STEP.npz` what the model said then. The
training ends after `minutes`.

An example is a voice (1.6 to 5.6 s of the speaker's other speech), a text and its speech. language_model_losses.py says
what is learned from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.config import read_params
from experiments.stand_in.language_model_losses import Losses, Student, frame_tables
from experiments.stand_in.language_model_release import write_language_model_release
from experiments.stand_in.language_model_settings import Settings, model_params
from experiments.stand_in.language_model_validation import VOICE_FRAMES, Held, hold, speak, validate
from experiments.stand_in.packed_model import PackedModel
from experiments.stand_in.reading import PhonemeReader, error_rate
from experiments.stand_in.settings import read_settings
from experiments.stand_in.spoken_codes import Batches, Inputs, SpokenCodes, endless_batches
from language_model import LanguageModelConfig
from system.device import open_device

WARM_UP = 4  # steps before one is captured in a CUDA graph


class Trainer:
    def __init__(self, settings: Settings, params: dict[str, Any], speech: SpokenCodes, device: torch.device):
        self.settings, self.params, self.speech, self.device = settings, params, speech, device
        self.on_gpu = device.type == "cuda"
        self.config = LanguageModelConfig.from_params(params)
        torch.manual_seed(settings.seed)
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        student = Student(self.config, speech.number_of_classes).to(device)
        self.masters = [parameter.detach().clone() for parameter in student.parameters()]
        self.averages = [master.clone() for master in self.masters]
        self.student = student.to(dtype).train()
        self.averaged = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.packed = PackedModel(self.student.model, settings.dropout, bool(self.on_gpu and settings.compile))
        self.packed_average = PackedModel(self.averaged.model)
        decayed = [i for i, (name, _) in enumerate(student.named_parameters()) if is_matrix(name)]
        groups = [
            {"params": [self.masters[i] for i in decayed], "weight_decay": settings.weight_decay},
            {"params": [m for i, m in enumerate(self.masters) if i not in set(decayed)], "weight_decay": 0.0},
        ]
        self.lr = torch.full((), settings.lr, device=device)
        self.help = torch.ones((), device=device)
        rate = self.lr if self.on_gpu else settings.lr
        self.optimizer = torch.optim.AdamW(groups, rate, (0.9, 0.95), fused=self.on_gpu, capturable=self.on_gpu)
        self.losses, (self.codes, self.labels) = Losses(settings, self.config), frame_tables(speech, device)
        self.reader = PhonemeReader(speech.semantic, speech.quarters, self.config.semantic_codebook_size)
        batches = Batches(
            speech,
            self.config,
            settings.seed,
            rows=settings.rows,
            length=settings.length,
            corruption=settings.corruption,
            varied=True,
        )
        self.batches = endless_batches(batches, settings.workers if self.on_gpu else 0, self.on_gpu)
        self.graph: tuple[torch.cuda.CUDAGraph, Inputs, dict[str, Tensor]] | None = None

    def train_step(self, inputs: Inputs, progress: float, step: int) -> dict[str, Tensor]:
        """Returns metrics on the device; the next step may overwrite them."""
        rate = learning_rate(progress, step, self.settings)
        self.lr.fill_(rate)
        self.help.fill_(1 if progress < 0.5 else 1 - 1.6 * (progress - 0.5))
        if not self.on_gpu:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        inputs = inputs.to(self.device)
        if not self.on_gpu or not self.settings.cuda_graph or step < WARM_UP:
            return self.compute(inputs)
        if self.graph is None:
            torch.cuda.synchronize()
            graph, kept = torch.cuda.CUDAGraph(), Inputs(*(tensor.clone() for tensor in inputs))
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                metrics = self.compute(kept)
            self.graph = graph, kept, metrics
        graph, kept, metrics = self.graph
        for place, given in zip(kept, inputs, strict=True):
            place.copy_(given)
        graph.replay()
        return metrics

    def compute(self, inputs: Inputs) -> dict[str, Tensor]:
        """All of a step that runs on the device. The model is in bf16 on a GPU, the optimizer's weights in float32."""
        losses = self.losses(self.student, self.packed, inputs, self.codes, self.labels, noisy=True)
        settings, shares = self.settings, self.help
        loss = losses["semantic"] + settings.acoustic * losses["acoustic"]
        for name in ("attention", "phonemes", "spelling"):
            loss = loss + getattr(settings, name) * shares * losses[name]
        parameters: list[Tensor] = list(self.student.parameters())
        gradients = [gradient.float() for gradient in torch.autograd.grad(loss, parameters)]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, (1 / norm.clamp(min=1)).clamp(max=1))
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(parameters, self.masters)
            torch._foreach_lerp_(self.averages, self.masters, 1 - self.settings.ema_decay)
        return {name: value.detach() for name, value in losses.items()} | {"norm": norm}

    def validate(self, held: Held, tables: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Losses of the averaged weights."""
        self.average()
        return validate(self.averaged, self.packed_average, self.losses, held, tables)

    def speak(self, held: Held, path: Path) -> dict[str, float]:
        """Speaks with the averaged weights."""
        self.average()
        return speak(self.packed_average, held, self.reader, path)

    def average(self) -> None:
        torch._foreach_copy_(list(self.averaged.parameters()), self.averages)

    def save(self, folder: Path, codec: Path) -> None:
        """Writes a release that can be served. Its preset voices are clips of some speakers of the training, of about
        VOICE_FRAMES frames."""
        self.average()
        speakers = sorted(set(self.speech.speakers))
        count = min(self.settings.voices, len(speakers))
        voices = {}
        for number in range(count):
            speaker = speakers[number * len(speakers) // count]
            own = [i for i, other in enumerate(self.speech.speakers) if other == speaker]
            clip = min(own, key=lambda i: abs(int(self.speech.lengths[i]) - VOICE_FRAMES))
            voices[f"preset_{number + 1}"] = self.speech.codes(self.speech.speech(clip))
        write_language_model_release(folder, codec, self.averaged.model, self.params, voices)


def learning_rate(progress: float, step: int, settings: Settings) -> float:
    """`progress` in [0, 1] is the part of the time that is over."""
    return settings.lr * min(1.0, (step + 1) / settings.warmup_steps) * max(0.01, 1 - progress)


def is_matrix(name: str) -> bool:
    """Whether a parameter is a matrix that multiplies activations, which weight decay is for."""
    return not ("embed" in name or "norm" in name or name.endswith("bias"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--codes", type=Path, action="append", required=True, help="may be given several times")
    parser.add_argument("--codec", type=Path, required=True, help="release of the codec that made the codes")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args(argv)
    try:
        settings = read_settings(Settings, arguments.overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    speech = SpokenCodes(arguments.codes, "train", clips=settings.clips)
    held_out = SpokenCodes(arguments.codes[:1], "dev", speech.class_of)
    device = open_device()
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # CUDA graphs cannot be captured on the default one
        torch._dynamo.config.recompile_limit = 64
    trainer = Trainer(settings, model_params(read_params(arguments.codec), settings), speech, device)
    size = sum(parameter.numel() for parameter in trainer.student.model.parameters()) / 1e6
    print(f"{speech.hours:.1f} hours, {len(speech)} clips, {size:.1f} million parameters", flush=True)
    print(asdict(settings), flush=True)
    return train(
        trainer,
        hold(held_out, trainer.config, settings),
        frame_tables(held_out, device),
        arguments.out,
        arguments.codec,
    )


def train(trainer: Trainer, held: Held, tables: tuple[Tensor, Tensor], out: Path, codec: Path) -> int:
    settings = trainer.settings
    out.mkdir(parents=True, exist_ok=True)
    floor = error_rate([trainer.reader.read(semantic) for semantic in held.semantic], held.expected)
    print(f"phoneme errors of the original codes: {floor:.3f}", flush=True)
    log: list[dict[str, float]] = []
    began, step, inputs = time.time(), 0, next(trainer.batches)
    done = False
    while not done:
        progress = min(1.0, max((time.time() - began) / 60 / settings.minutes, step / settings.steps))
        metrics = trainer.train_step(inputs, progress, step)
        inputs, step = next(trainer.batches), step + 1  # while the GPU computes
        if trainer.on_gpu:
            torch.cuda.current_stream().synchronize()
        if step in (10, 30, 100, 300, 1000):  # the average forgets the beginning
            torch._foreach_copy_(trainer.averages, trainer.masters)
        done = step >= settings.steps or time.time() - began >= 60 * settings.minutes
        entry: dict[str, float] = {"step": step, "seconds": round(time.time() - began, 1)}
        if step % settings.log_every == 0 or done:
            entry |= {name: round(float(value), 4) for name, value in metrics.items()}
            if not math.isfinite(entry["semantic"]):
                print(f"error: the cross entropy of step {step} is {entry['semantic']}", file=sys.stderr)
                return 1
        if step % settings.validate_every == 0 or done:
            entry |= {f"dev/{name}": round(v, 4) for name, v in trainer.validate(held, tables).items()}
        if step % settings.speak_every == 0 or done:
            entry |= {f"said/{name}": round(v, 4) for name, v in trainer.speak(held, out / f"said_{step}.npz").items()}
            trainer.save(out / "release", codec)
        if len(entry) > 2:
            log.append(entry)
            print(json.dumps(entry), flush=True)
            (out / "log.json").write_text(json.dumps(log), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
