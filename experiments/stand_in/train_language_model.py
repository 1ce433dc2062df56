"""Trains the stand-in's language model and acoustic transformer on the codes of its codec.

    python -m experiments.stand_in.train_language_model OUT --codes CODES --codec data/stand_in/release   # one H100
    python -m experiments.stand_in.train_language_model OUT --codes CODES --codes MORE --codec RELEASE minutes=12

CODES are folders that code_statistics.py wrote; the dev split is the first folder's. OUT gets `release/`, which the
server can serve (language_model_release.py). `log.json` holds the curves, `said_STEP.npz` what the model said then. The
training ends after `minutes`.

An example is a voice (1.6 to 5.6 s of the speaker's other speech), a text and its speech. Beside the release's own two
losses, which language_model/ has, there are three that only the training sees, because they make words come early:

- Single heads are taught to attend to the letters of the frame that was read last (a lower layer) and of the frame
  that comes next (two higher layers): minus the logarithm of their attention on those letters.
- The phonemes of the next two frames are predicted from the hidden state.
- A word's phonemes are predicted at the letter behind it, half-way up.

The frames that the model reads get noise, so that it goes on after its own mistakes: other semantic codes, jittered
acoustic ones, rows of zeros.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import SPECIAL_TOKENS, read_params
from codec.voices import END_OF_AUDIO
from experiments.stand_in.alignment import WORD_PHONEMES
from experiments.stand_in.labelled_speech import NO_CLASS
from experiments.stand_in.language_model_release import write_language_model_release
from experiments.stand_in.letters import VOCABULARY, letter_ids, text_of
from experiments.stand_in.packed_model import PackedModel, rms_norm, say
from experiments.stand_in.reading import PhonemeReader, error_rate, phonemes
from experiments.stand_in.settings import read_settings
from experiments.stand_in.spoken_codes import QUARTERS, Batches, Inputs, Packer, SpokenCodes, endless_batches
from language_model import LanguageModel, LanguageModelConfig, Prompt
from language_model.losses import flow_matching_loss
from system.device import open_device

WARM_UP = 4  # steps before one is captured in a CUDA graph
SPOKEN_FRAMES = 60  # frames that a spoken sentence may take beyond the original's
VOICE_FRAMES = 50  # of the prompts that are spoken, and of the preset voices


@dataclass(frozen=True)
class Settings:
    minutes: float = 13.0
    steps: int = 10**9  # or so many, if they come first
    # dimensions: 19 million parameters
    dim: int = 384
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    hidden_dim: int = 1024
    acoustic_layers: int = 3
    # a batch: rows of packed examples, and their length. About 130 examples
    rows: int = 48
    length: int = 384
    lr: float = 1e-3  # linear warm-up, then linear down to a hundredth
    warmup_steps: int = 300
    weight_decay: float = 0.05
    dropout: float = 0.1
    corruption: float = 0.4
    draws: int = 4  # of noise and time a frame
    condition_dropout: float = 0.1
    ema_decay: float = 0.999
    # weights of the losses that only the training sees; from half of the time on they fall to a fifth
    attention: float = 0.3
    phonemes: float = 0.3
    spelling: float = 0.3
    acoustic: float = 1.0
    seed: int = 0
    clips: int = 0  # train on so few only, to try it
    compile: int = 1  # on a GPU; 0 to do without
    cuda_graph: int = 1  # likewise
    workers: int = 6  # processes that make batches, on a GPU
    log_every: int = 200
    validate_every: int = 1000
    speak_every: int = 5000
    sentences: int = 48  # spoken at each of these
    voices: int = 4  # presets in the release


class Student(nn.Module):
    """The language model, and the layers that only the training sees."""

    def __init__(self, config: LanguageModelConfig, classes: int):
        super().__init__()
        self.model = LanguageModel(config)
        self.phonemes = nn.Linear(config.dim, 2 * QUARTERS * classes)  # of the next frame and the one behind it
        self.spelling = nn.Linear(config.dim, WORD_PHONEMES * classes)
        half = config.n_layers // 2
        self.spelled_from = half
        # (layer, head, whether of the frame that comes next)
        self.taught = [(half // 2, 0, False), (half, 0, True), (min(half + 2, config.n_layers - 1), 1, True)]


@dataclass(frozen=True)
class Held:
    """What a trained model is measured by: batches of the dev split with their own texts and with others, and sentences
    to speak."""

    right: list[Inputs]
    wrong: list[Inputs]
    prompts: list[Prompt]
    expected: list[list[int]]  # phonemes
    semantic: list[np.ndarray]  # codes of the original speech

    @property
    def frames(self) -> list[int]:
        return [len(codes) for codes in self.semantic]


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
        self.codes, self.labels = self.tables(speech)
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

    def tables(self, speech: SpokenCodes) -> tuple[Tensor, Tensor]:
        """Coded frames [all + 1, 37], the end of audio last, and the phonemes [all + 1, 8] of a frame and of the one
        behind it."""
        codes = np.concatenate([speech.semantic[:, None], speech.acoustic], axis=1).astype(np.int16) + SPECIAL_TOKENS
        end = np.zeros((1, codes.shape[1]), np.int16)
        end[0, 0] = END_OF_AUDIO
        nothing = np.full((1, QUARTERS), NO_CLASS)
        own = np.concatenate([speech.quarters, nothing])
        behind = np.concatenate([own[1:], nothing])
        behind[speech.starts + speech.lengths - 1] = NO_CLASS
        labels = np.concatenate([own, behind], axis=1).astype(np.int16)
        frames = np.concatenate([codes, end])
        return torch.from_numpy(frames).to(self.device), torch.from_numpy(labels).to(self.device)

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

    def losses(
        self, student: Student, packed: PackedModel, inputs: Inputs, codes: Tensor, labels: Tensor, noisy: bool
    ) -> dict[str, Tensor]:
        """Means over the batch, each loss and `semantic_right`, `phonemes_right`, `attention_next`."""
        settings, model = self.settings, student.model
        frames, kept = self.corrupted(codes[inputs.frames].long(), inputs.corruption if noisy else None)
        rows = one_hot(inputs.tokens, self.config.vocab_size, model.dtype) @ model.backbone.embed_tokens.weight
        is_frame = (inputs.tokens == self.config.audio_token_id)[..., None]
        rows = torch.where(is_frame, self.frame_rows(model, frames) * kept, rows)
        states, layer_inputs = packed.states(rows, inputs.positions, inputs.document)
        hidden = states.flatten(0, 1).index_select(0, inputs.at)
        target, valid = codes[inputs.targets].long(), inputs.valid
        spoken = valid * (target[:, 0] != END_OF_AUDIO)

        logits = model.acoustic_transformer.semantic_logits(hidden)
        semantic = F.cross_entropy(logits, target[:, 0], reduction="none")
        acoustic_codes = (target[:, 1:] - SPECIAL_TOKENS).clamp(min=0)
        dropout = settings.condition_dropout if student.training else 0.0
        acoustic = flow_matching_loss(model.acoustic_transformer, hidden, acoustic_codes, settings.draws, dropout)
        found = {
            "semantic": mean(semantic, valid),
            "acoustic": mean(acoustic, spoken),
            "semantic_right": mean((logits.argmax(dim=-1) == target[:, 0]).float(), valid),
        }
        wanted = labels[inputs.targets].long()
        guesses = student.phonemes(hidden).float().unflatten(-1, (2 * QUARTERS, -1))
        known = (wanted != NO_CLASS).float() * valid[:, None]
        found["phonemes"] = mean(classify(guesses, wanted), known)
        right = (guesses[:, :QUARTERS].argmax(dim=-1) == wanted[:, :QUARTERS]).float()
        found["phonemes_right"] = mean(right, known[:, :QUARTERS])
        found["spelling"] = self.spelling_loss(student, layer_inputs[student.spelled_from], inputs)
        lost = [
            attention_loss(
                packed.attention_scores(number, head, layer_inputs[number], inputs.positions, inputs.document),
                inputs.at,
                inputs.next_letters if of_next else inputs.last_letters,
            )
            for number, head, of_next in student.taught
        ]
        found["attention"] = torch.stack(lost).mean()
        found["attention_next"] = (-lost[1]).exp()  # geometric mean of the attention on the right letters
        return found

    def corrupted(self, frames: Tensor, corruption: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Coded frames [R, T, 37] with noise, and what their rows are multiplied by [R, T, 1]. With corruption c, c / 2
        of the semantic codes are drawn anew, acoustic codes get noise of 4 c levels, c / 2 of the rows are zero. The
        end of audio stays."""
        if corruption is None:
            return frames, 1.0
        semantic, acoustic = frames[..., 0], frames[..., 1:]
        real, size = semantic != END_OF_AUDIO, self.config.codebook_sizes[:2]
        drawn = torch.randint_like(semantic, SPECIAL_TOKENS, size[0])
        semantic = torch.where(real & (torch.rand_like(corruption) < corruption / 2), drawn, semantic)
        shift = (torch.randn(acoustic.shape, device=acoustic.device) * 4 * corruption[..., None]).round().long()
        noisy = (acoustic + shift).clamp(SPECIAL_TOKENS, size[1] - 1)
        acoustic = torch.where(real[..., None], noisy, acoustic)
        kept = ~real | (torch.rand_like(corruption) >= corruption / 2)
        return torch.cat([semantic[..., None], acoustic], dim=-1), kept[..., None].float().to(self.student.model.dtype)

    def frame_rows(self, model: LanguageModel, frames: Tensor) -> Tensor:
        """`embed_frames` as one product with a matrix of ones and zeros: the gradient of a lookup is slower."""
        first, second = self.config.codebook_sizes[:2]
        ones = torch.cat(
            [
                one_hot(frames[..., 0], first, model.dtype),
                one_hot(frames[..., 1:], second, model.dtype).flatten(-2),
            ],
            dim=-1,
        )
        return ones @ model.audio_embeddings.weight[: ones.shape[-1]]

    def spelling_loss(self, student: Student, rows: Tensor, inputs: Inputs) -> Tensor:
        norm = rms_norm(rows, rows.new_ones(rows.shape[-1]), self.config.norm_eps)
        behind = norm.flatten(0, 1).index_select(0, inputs.word_at)
        guesses = student.spelling(behind).float().unflatten(-1, (WORD_PHONEMES, -1))
        return mean(classify(guesses, inputs.words), (inputs.words != NO_CLASS).float())

    def hold(self, speech: SpokenCodes) -> Held:
        settings = self.settings
        by_length = np.argsort([len(letters) for letters in speech.letters], kind="stable")
        others = np.empty(len(speech), int)
        others[by_length] = np.roll(by_length, 1)
        rows = min(24, settings.rows)
        right, wrong = (
            [Packer(speech, self.config, rows, settings.length, seed, texts=texts).batch() for seed in (1, 2)]
            for texts in (None, others.tolist())
        )
        rng = np.random.default_rng(3)
        closed = [i for i in range(len(speech)) if speech.kinds[i] == "closed"] or list(range(len(speech)))
        chosen = rng.permutation(closed)[: settings.sentences].tolist()
        return Held(
            right,
            wrong,
            prompts=[
                Prompt(speech.codes(speech.voice(i, VOICE_FRAMES, rng)), letter_ids(speech.texts[i])) for i in chosen
            ],
            expected=[phonemes(speech.quarters[speech.speech(i)]) for i in chosen],
            semantic=[speech.semantic[speech.speech(i)] for i in chosen],
        )

    @torch.no_grad()
    def validate(self, held: Held, tables: tuple[Tensor, Tensor]) -> dict[str, float]:
        """Losses of the averaged weights on the dev split. `*_wrong_text` are of the same speech with another text."""
        self.average()
        found: dict[str, float] = {}
        for suffix, batches in (("", held.right), ("_wrong_text", held.wrong)):
            scores = [
                self.losses(self.averaged, self.packed_average, batch.to(self.device), *tables, noisy=False)
                for batch in batches
            ]
            names = scores[0] if not suffix else ("semantic", "semantic_right", "acoustic")
            found |= {name + suffix: float(np.mean([float(score[name]) for score in scores])) for name in names}
        return found

    @torch.no_grad()
    def speak(self, held: Held, path: Path) -> dict[str, float]:
        """Speaks the sentences with the averaged weights, and writes the codes to `path`."""
        self.average()
        most = max(held.frames) + SPOKEN_FRAMES
        said = say(self.packed_average, held.prompts, most, list(range(len(held.prompts))))
        codes = [speech.codes.numpy().astype(np.int16) for speech in said]
        np.savez_compressed(
            path,
            codes=np.concatenate(codes, axis=1),
            lengths=[part.shape[1] for part in codes],
            texts=[text_of(prompt.text) for prompt in held.prompts],
        )
        lengths = np.array([part.shape[1] for part in codes]) / np.array(held.frames)
        return {
            "phoneme_errors": error_rate([self.reader.read(part[0]) for part in codes], held.expected),
            "ended": float(np.mean([speech.ended for speech in said])),
            "length": float(np.median(lengths)),
            "length_off": float(np.mean(np.abs(lengths - 1))),
        }

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


def one_hot(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    return (index[..., None] == torch.arange(size, device=index.device)).to(dtype)


def mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def classify(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy [N, K] of logits [N, K, classes]; 0 where the label is NO_CLASS."""
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=NO_CLASS, reduction="none")


def attention_loss(scores: Tensor, at: Tensor, letters: Tensor) -> Tensor:
    """Mean of minus log of the attention that positions `at` [N] pay to their letters [N, 2], one letter more allowed
    on both sides. Scores [R, T, T] are those of one head before the softmax."""
    chosen = scores.flatten(0, 1).index_select(0, at)
    column = torch.arange(scores.shape[-1], device=scores.device)
    known = letters[:, 0] >= 0
    inside = (column >= letters[:, :1] - 1) & (column <= letters[:, 1:] + 1) | ~known[:, None]
    attended = chosen.masked_fill(~inside, -math.inf).logsumexp(dim=-1) - chosen.logsumexp(dim=-1)
    return mean(-attended, known.float())


def model_params(codec: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The codec's `params.json` with the language model's dimensions."""
    params = copy.deepcopy(codec)
    sizes = {
        "head_dim": settings.dim // settings.heads,
        "hidden_dim": settings.hidden_dim,
        "n_heads": settings.heads,
        "n_kv_heads": settings.kv_heads,
        "dim": settings.dim,
    }
    params |= sizes | {"n_layers": settings.layers, "vocab_size": VOCABULARY}
    acoustic = params["multimodal"]["audio_model_args"]["acoustic_transformer_args"]
    acoustic |= sizes | {"n_layers": settings.acoustic_layers, "input_dim": settings.dim}
    return params


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
    return train(trainer, trainer.hold(held_out), trainer.tables(held_out), arguments.out, arguments.codec)


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
