"""The diversity loss distinguishes collapsed from used codebooks, and its gradient spreads frames over entries."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from codec import load_release
from codec.checkpoint import with_encoder
from data import decode, open_clips
from losses.codebook import codebook_spacing
from losses.diversity import Diversity

K, D = 8192, 256  # the release's codebook
DEMO = Path("data/demo")


@pytest.fixture(scope="module")
def entries() -> torch.Tensor:
    return 0.3 * torch.randn(K, D, generator=torch.Generator().manual_seed(0))


def _latents(entries: torch.Tensor, indices: torch.Tensor, noise: float) -> torch.Tensor:
    """Frames near the given entries, [4, D, F]."""
    generator = torch.Generator().manual_seed(1)
    frames = entries[indices] + noise * torch.randn(len(indices), D, generator=generator)
    return frames.view(4, -1, D).transpose(1, 2)


def _used(entries: torch.Tensor, noise: float = 0.05) -> torch.Tensor:
    return _latents(entries, torch.randperm(K, generator=torch.Generator().manual_seed(2))[:400], noise)


def _collapsed(entries: torch.Tensor, noise: float = 0.05) -> torch.Tensor:
    return _latents(entries, torch.zeros(400, dtype=torch.long), noise)


def test_collapsed_and_used_codebooks_have_different_losses_at_the_default_temperature(entries: torch.Tensor) -> None:
    loss = Diversity()
    assert loss(_collapsed(entries), entries) > 0.99
    # 400 frames can choose 400 entries at most
    assert loss(_used(entries), entries).item() == pytest.approx(1 - math.log(400) / math.log(K), abs=0.02)


@pytest.mark.parametrize("temperature", [0.1, 0.3])  # of configs/v3.yaml (the default) and of configs/demo.yaml
def test_they_have_different_losses_on_a_trained_codebook_and_speech(temperature: float, tmp_path: Path) -> None:
    codec = with_encoder(load_release(DEMO / "release", torch.float32), DEMO / "withheld_encoder.safetensors")
    clips = open_clips([str(DEMO / "unseen.parquet")], str(tmp_path))
    encoder, dim = codec.get_submodule("encoder"), codec.config.semantic_dim
    with torch.no_grad():
        parts = [encoder(decode(clips.read(i), codec.sample_rate)[None])[:, :dim] for i in range(3)]
    speech = torch.cat(parts, dim=-1)
    torch.manual_seed(0)
    collapsed = speech.mean(dim=-1, keepdim=True) + 0.05 * speech.std() * torch.randn_like(speech)
    book, loss = codec.quantizer.semantic_codebook.embedding, Diversity(temperature)
    assert loss(collapsed, book) > 0.99
    assert loss(speech, book) < 0.7


def test_at_a_temperature_too_high_they_have_the_same_loss(entries: torch.Tensor) -> None:
    """This shows why the temperature is relative to the spacing: if it is too high, the loss gives no gradient."""
    soft = Diversity(temperature=100.0)
    assert abs(soft(_collapsed(entries), entries) - soft(_used(entries), entries)) < 0.01


def test_it_does_not_depend_on_the_codebooks_scale(entries: torch.Tensor) -> None:
    loss = Diversity()
    assert torch.isclose(loss(10 * _used(entries), 10 * entries), loss(_used(entries), entries), atol=1e-3)


def test_its_gradient_spreads_collapsed_frames_over_more_entries(entries: torch.Tensor) -> None:
    few = entries[:64]
    latents = (
        (few.mean(0) + 0.02 * torch.randn(200, D, generator=torch.Generator().manual_seed(3))).T[None].contiguous()
    )
    before = torch.cdist(latents[0].T, few).argmin(1).unique().numel()
    latents.requires_grad_()
    optimizer = torch.optim.Adam([latents], 0.02)
    loss = Diversity(temperature=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss(latents, few).backward()
        optimizer.step()
    after = torch.cdist(latents.detach()[0].T, few).argmin(1).unique().numel()
    assert after > 1.5 * before


def test_the_gradient_goes_to_latents_and_not_to_entries(entries: torch.Tensor) -> None:
    latents, book = _used(entries).requires_grad_(), entries[:100].clone().requires_grad_()
    Diversity()(latents, book).backward()
    assert latents.grad is not None
    assert book.grad is None


def test_spacing_ignores_an_entrys_distance_to_itself(entries: torch.Tensor) -> None:
    """With matrix products, this distance is a rounding error: not 0, but smaller than that of any neighbour."""
    sample = entries[::16].double()
    squared = sample.square().sum(1, keepdim=True) - 2 * sample @ entries.double().T + entries.double().square().sum(1)
    nearest = squared.sort(dim=1).values[:, 1]  # the first is the entry itself
    assert codebook_spacing(entries).item() == pytest.approx(nearest.mean().item(), rel=1e-4)


def test_spacing_is_the_mean_squared_distance_to_the_nearest_neighbour() -> None:
    grid = torch.stack([torch.arange(10.0) * 3, torch.zeros(10)], dim=1)
    assert codebook_spacing(grid).item() == pytest.approx(9.0)
    assert codebook_spacing(torch.cat([grid, grid])).item() == pytest.approx(9.0)
    assert codebook_spacing(torch.zeros(5, 2)).item() == 1, "all entries of a fresh codebook coincide"


def test_a_spacing_computed_before_gives_the_same_loss(entries: torch.Tensor) -> None:
    latents, loss = _used(entries), Diversity(0.2)
    assert torch.equal(loss(latents, entries, codebook_spacing(entries)), loss(latents, entries))
    assert loss(latents, entries, 100 * codebook_spacing(entries)) > loss(latents, entries), (
        "the given spacing is not used"
    )
