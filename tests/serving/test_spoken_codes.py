"""The language model and the acoustic transformer here compute what the running server computes: hidden states,
semantic codes by teacher forcing, and acoustic codes from the same noise."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from language_model import LanguageModel, Prompt, load_language_model, text_tokenizer
from language_model.generation import prompt_rows
from tests.patching import rows
from tests.serving.conftest import LONG_TEXT, PRESETS
from tests.serving.scene import Scene
from tests.serving.server import TEXT, said

pytestmark = pytest.mark.served

SPOKEN = {PRESETS[0]: (PRESETS[0], TEXT), PRESETS[1]: (PRESETS[1], TEXT), "long text": (PRESETS[0], LONG_TEXT)}


class Steps(NamedTuple):
    """What was computed for each frame of an answer."""

    hidden: Tensor
    """[F, dim], the server's."""
    here: Tensor
    """[F, dim], from the server's frames before."""
    noise: Tensor
    """[F, 36]"""
    frames: Tensor
    """[F, 37], coded."""


@pytest.fixture(scope="module")
def model(plain: Path) -> LanguageModel:
    return load_language_model(plain)


@pytest.fixture(scope="module", params=SPOKEN)
def steps(request: pytest.FixtureRequest, without_encoder: Scene, plain: Path, model: LanguageModel) -> Steps:
    answer, (voice, text) = without_encoder.answers[request.param], SPOKEN[request.param]
    assert answer.status == 200
    hidden, noise, frames = (torch.cat(answer.seen(name)) for name in ("hidden", "noise", "said"))
    ids = text_tokenizer(plain).encode(text, bos=False, eos=False)
    prompt = prompt_rows(model, Prompt(rows(plain, voice), ids))
    with torch.inference_mode():
        given = torch.cat([prompt, model.embed_frames(frames[:-1])])
        here = model.states(given[None])[0, len(prompt) - 1 :]
    return Steps(hidden, here, noise, frames)


def test_hidden_states_point_where_the_servers_do(steps: Steps) -> None:
    cosine = F.cosine_similarity(steps.here.float(), steps.hidden.float(), dim=-1)
    said(
        f"  hidden states of {len(cosine)} frames: cosine {float(cosine[0]):.6f} first, {float(cosine.min()):.6f} least"
    )
    assert cosine[0] > 0.999, "at the last token of the prompt"
    assert cosine.min() > 0.999


def test_the_servers_own_codes_fed_back_give_its_semantic_codes(model: LanguageModel, steps: Steps) -> None:
    """With random weights, two logits are often within bfloat16's rounding; then the other one may be the greatest."""
    with torch.inference_mode():
        logits = model.acoustic_transformer.semantic_logits(steps.here)
    greatest, found = logits.max(dim=-1)
    short = greatest - logits.gather(1, steps.frames[:, :1])[:, 0]
    equal = (found == steps.frames[:, 0]).float().mean()
    said(
        f"  semantic codes of {len(found)} frames: {100 * float(equal):.0f} % equal, the others' logits at most "
        f"{float(short.max()):.3f} below the greatest, of {float(greatest.mean()):.1f}"
    )
    assert short.max() <= 2**-4 * greatest.mean()


def test_the_same_noise_gives_the_servers_acoustic_codes(model: LanguageModel, steps: Steps) -> None:
    """From the server's hidden states; from our own, some codes are a level off."""
    with torch.inference_mode():
        exact, own = (
            model.acoustic_transformer.next_frame(hidden, steps.noise) for hidden in (steps.hidden, steps.here)
        )
    equal = [float((found == steps.frames).float().mean()) for found in (exact, own)]
    said(f"  codes of {len(exact)} frames: {100 * equal[0]:.1f} % equal, {100 * equal[1]:.1f} % from our hidden states")
    assert equal[0] >= 0.99
    assert equal[1] >= 0.9
