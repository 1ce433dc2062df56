"""Codes are recovered from voices, and the shaping loss moves codes to their distribution."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from codec import Codec, ReleaseError
from codec.voices import recover_codes
from experiments.random_release import SMALL, random_codec
from losses.shaping import Shaping, Target, target_as_json, voices_target

WIDE = replace(SMALL, embedding_dim=512)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return random_codec(WIDE).to(torch.bfloat16)


def _codes(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    acoustic = torch.randint(4, 17, (1, 36, frames), generator=generator)
    return torch.cat([torch.randint(8192, (1, 1, frames), generator=generator), acoustic], dim=1)


def test_codes_are_recovered_exactly_from_a_voice(codec: Codec) -> None:
    codes = _codes(40)
    embedding = codec.embed(codes)[0]
    recovered = recover_codes(embedding[:-1], codec.embedding_table, WIDE.codebook_sizes)
    assert torch.equal(recovered.codes, codes[0].T)
    assert torch.equal(codec.embed(recovered.codes.T[None])[0], embedding)
    assert recovered.residual.max() < 0.01


def test_rows_that_converge_to_other_codes_are_restarted(codec: Codec) -> None:
    """With fewer embedding dimensions some rows need restarts."""
    narrow = random_codec(replace(SMALL, embedding_dim=224)).to(torch.bfloat16)
    codes = _codes(300)
    once, again = (
        recover_codes(narrow.embed(codes)[0, :-1], narrow.embedding_table, SMALL.codebook_sizes, restarts=restarts)
        for restarts in (0, 20)
    )
    assert not torch.equal(once.codes, codes[0].T)
    assert torch.equal(again.codes, codes[0].T)
    assert again.residual.max() < 0.01


def test_an_embedding_of_another_table_has_a_large_residual(codec: Codec) -> None:
    foreign = torch.randn(5, 512, generator=torch.Generator().manual_seed(9)) * 1.8
    assert recover_codes(foreign, codec.embedding_table, WIDE.codebook_sizes).residual.min() > 0.2


def test_the_target_is_the_voices_histogram(codec: Codec, tmp_path: Path) -> None:
    codes = [_codes(30, seed) for seed in range(3)]
    for i, code in enumerate(codes):
        torch.save(codec.embed(code)[0], tmp_path / f"voice_{i}.pt")
    target = voices_target(codec, tmp_path)
    together = torch.cat(codes, dim=-1)[0, 1:].float()
    assert target.frames == 90
    assert torch.allclose(target.mean, together.mean(dim=1), atol=1e-4)
    assert torch.allclose(target.spread, together.std(dim=1, correction=0), atol=1e-3)
    assert json.loads(target_as_json(target))["frames"] == 90


@pytest.mark.parametrize("voice", [{"embedding": torch.zeros(3, 512)}, torch.zeros(3, 300), torch.zeros(512), None])
def test_a_file_that_is_not_a_voice_is_named(codec: Codec, tmp_path: Path, voice: object) -> None:
    torch.save(voice, tmp_path / "odd.pt")
    if voice is None:
        (tmp_path / "odd.pt").write_bytes(b"cut off")
    with pytest.raises(ReleaseError, match=r"odd\.pt (holds a dict|has the shape|cannot be read)"):
        voices_target(codec, tmp_path)


def test_a_voice_of_another_release_is_refused(codec: Codec, tmp_path: Path) -> None:
    torch.save(torch.randn(5, 512).bfloat16(), tmp_path / "foreign.pt")
    with pytest.raises(ReleaseError, match="no codes explain"):
        voices_target(codec, tmp_path)


def test_without_voices_the_target_is_the_documented_default(codec: Codec, tmp_path: Path) -> None:
    target = voices_target(codec, tmp_path)
    assert target.frames == 0
    assert torch.allclose(target.mean, torch.full((36,), 10.0))
    assert target.spread.mean().item() == pytest.approx(4, abs=0.2)


@pytest.fixture(scope="module")
def target() -> Target:
    levels = torch.arange(21.0)
    centres = torch.linspace(6, 14, 36)[:, None]
    return Target(torch.softmax(-0.5 * ((levels - centres) / 2) ** 2, dim=1), 1, 0.0)


def test_values_with_the_targets_distribution_have_zero_loss_in_any_order(target: Target) -> None:
    shaping = Shaping(target)
    values = shaping.quantiles(200)[:, torch.randperm(200)]
    assert shaping(values.view(36, 4, 50).transpose(0, 1)) == 0
    codes = ((torch.tanh(shaping.quantiles(5000)) + 1) / 2 * 20).round()
    assert torch.allclose(codes.mean(dim=1), target.mean, atol=0.1)


def test_saturated_values_are_pulled_back_to_the_targets_distribution(target: Target) -> None:
    shaping = Shaping(target)
    generator = torch.Generator().manual_seed(0)
    latent = (8 + torch.randn(4, 36, 50, generator=generator)).requires_grad_()  # every code is 20
    optimizer = torch.optim.Adam([latent], 0.2)
    for _ in range(150):
        optimizer.zero_grad()
        shaping(latent).backward()
        optimizer.step()
    codes = ((torch.tanh(latent.detach()) + 1) / 2 * 20).round().transpose(0, 1).flatten(1)
    assert (codes.mean(dim=1) - target.mean).abs().max() < 0.3
    assert (codes.std(dim=1) - target.spread).abs().max() < 0.5


def test_each_dimension_is_shaped_independently(target: Target) -> None:
    shaping = Shaping(target)
    latent = shaping.quantiles(200).view(36, 4, 50).transpose(0, 1).clone()
    latent[:, 3] += 1
    latent.requires_grad_()
    shaping(latent).backward()
    assert latent.grad is not None
    assert latent.grad[:, 3].abs().min() > 0
    assert latent.grad[:, [0, 1, 2, *range(4, 36)]].abs().max() == 0
