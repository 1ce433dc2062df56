"""Speech as the server makes it: frame after frame, semantic codes by greatest logit, acoustic ones by Euler steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from codec.voices import END_OF_AUDIO, until_end_of_audio
from language_model.model import LanguageModel
from language_model.prompt import Prompt, coded_frames, prompt_ids

MAX_FRAMES = 2048  # the server's max_tokens: 163.84 s


class Speech(NamedTuple):
    codes: Tensor
    """[37, F] int64 on the CPU."""
    ended: bool
    """Whether the model said the end of audio. If not, it was cut off."""


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    max_frames: int = MAX_FRAMES,
    cfg_alpha: float = 1.2,
    steps: int | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Speech]:
    """Speaks all prompts at once. The model should be in evaluation mode; in bfloat16 it rounds as the server.

    Each prompt draws its noise from a generator of its own, seeded by `seeds`, or by its position where there are none:
    what it says does not depend on the others, but for the rounding of larger matrix products. `cfg_alpha` 1 turns
    guidance off; `steps` is the release's number of Euler steps unless given.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    noise = torch.stack([frame_noise(seed, max_frames, model) for seed in seeds])
    rows = [prompt_rows(model, prompt) for prompt in prompts]
    longest = max(len(row) for row in rows)
    padding = torch.tensor([longest - len(row) for row in rows], device=model.device)
    inputs = torch.stack([torch.cat([row.new_zeros(longest - len(row), row.shape[1]), row]) for row in rows])
    positions = (torch.arange(longest, device=model.device) - padding[:, None]).clamp(min=0)
    slots = torch.arange(longest + max_frames, device=model.device)
    mask = (slots >= padding[:, None]).long() if padding.any() else None

    cache, said = model.new_cache(), []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    for frame in range(max_frames):
        seen = None if mask is None else mask[:, : longest + frame]
        hidden = model.states(inputs, cache, seen, positions)[:, -1]
        said.append(model.acoustic_transformer.next_frame(hidden, noise[:, frame].to(hidden), cfg_alpha, steps))
        ended |= said[-1][:, 0] == END_OF_AUDIO
        if ended.all():
            break
        inputs, positions = model.embed_frames(said[-1])[:, None], positions[:, -1:] + 1
    return [Speech(*until_end_of_audio(frames)) for frames in torch.stack(said, dim=1).cpu()]


def prompt_rows(model: LanguageModel, prompt: Prompt) -> Tensor:
    """Input rows [T, dim] up to where speech begins."""
    voice = prompt.voice.to(model.device)
    rows = voice.to(model.dtype) if voice.is_floating_point() else model.embed_frames(coded_frames(voice))
    ids = torch.tensor(prompt_ids(prompt.text, len(rows), model.config), device=model.device)
    embedded = model.backbone.embed_tokens(ids).clone()
    embedded[ids == model.config.audio_token_id] = rows
    return embedded


def frame_noise(seed: int, frames: int, model: LanguageModel) -> Tensor:
    """x₀ of each frame [frames, 36]: standard normal, drawn on the CPU, in the model's dtype and on its device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(frames, model.config.n_acoustic_codebook, generator=generator)
    return noise.to(model.device, model.dtype)
