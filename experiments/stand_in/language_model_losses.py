"""What the stand-in's language model is trained by.

Beside the release's own two losses, which language_model/ has, there are three that only the training sees, because
they make words come early:

- Single heads are taught to attend to the letters of the frame that was read last (a lower layer) and of the frame
  that comes next (two higher layers): minus the logarithm of their attention on those letters.
- The phonemes of the next two frames are predicted from the hidden state.
- A word's phonemes are predicted at the letter behind it, half-way up.

The frames that the model reads get noise, so that it goes on after its own mistakes: other semantic codes, jittered
acoustic ones, rows of zeros.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import SPECIAL_TOKENS
from codec.voices import END_OF_AUDIO
from experiments.stand_in.alignment import WORD_PHONEMES
from experiments.stand_in.labelled_speech import NO_CLASS
from experiments.stand_in.language_model_settings import Settings
from experiments.stand_in.packed_model import PackedModel, rms_norm
from experiments.stand_in.spoken_codes import QUARTERS, Inputs, SpokenCodes
from language_model import LanguageModel, LanguageModelConfig
from language_model.losses import flow_matching_loss


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


class Losses:
    """The losses of a batch."""

    def __init__(self, settings: Settings, config: LanguageModelConfig):
        self.settings, self.config = settings, config

    def __call__(
        self, student: Student, packed: PackedModel, inputs: Inputs, codes: Tensor, labels: Tensor, noisy: bool
    ) -> dict[str, Tensor]:
        """Means over the batch, each loss and `semantic_right`, `phonemes_right`, `attention_next`."""
        settings, model = self.settings, student.model
        frames, kept = self.corrupted(codes[inputs.frames].long(), inputs.corruption if noisy else None, model.dtype)
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

    def corrupted(self, frames: Tensor, corruption: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | float]:
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
        return torch.cat([semantic[..., None], acoustic], dim=-1), kept[..., None].float().to(dtype)

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


def frame_tables(speech: SpokenCodes, device: torch.device) -> tuple[Tensor, Tensor]:
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
    return torch.from_numpy(frames).to(device), torch.from_numpy(labels).to(device)


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
