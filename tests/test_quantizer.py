"""The quantizer's two paths, and the learning of its codebook."""

from __future__ import annotations

import pytest
import torch

from codec.codec import Codec
from codec.quantizer import Draw, Quantizer, SemanticCodebook
from experiments.random_release import TINY, random_codec

BATCH, FRAMES = 400, 3


@pytest.fixture(scope="module")
def codec() -> Codec:
    return random_codec(TINY)


@pytest.fixture(scope="module")
def latent() -> torch.Tensor:
    return torch.randn(BATCH, TINY.latent_dim, FRAMES, generator=torch.Generator().manual_seed(0))


def _draw(quantizer: Quantizer, seed: int = 1) -> Draw:
    return quantizer.draw(BATCH, FRAMES, torch.Generator().manual_seed(seed))


def test_there_is_one_tanh_and_codes_are_its_nearest_levels(codec: Codec) -> None:
    quantizer = codec.quantizer
    levels = torch.arange(21)
    latent = torch.zeros(1, TINY.latent_dim, 21)
    latent[0, TINY.semantic_dim] = torch.atanh((levels / 10 - 1).clamp(-0.999999, 0.999999))
    assert torch.equal(quantizer.encode(latent)[0, 1], levels)
    assert torch.allclose(quantizer.decode(quantizer.encode(latent))[0, TINY.semantic_dim], levels / 10 - 1)


def test_the_semantic_code_is_the_nearest_entry(codec: Codec, latent: torch.Tensor) -> None:
    entries = codec.quantizer.semantic_codebook.embedding.double()
    frames = latent[:, : TINY.semantic_dim].transpose(1, 2).double()
    nearest = (frames[:, :, None] - entries).norm(dim=-1).argmin(dim=-1)
    assert torch.equal(codec.quantizer.encode(latent)[:, 0], nearest)


def test_without_a_draw_everything_is_quantized(codec: Codec, latent: torch.Tensor) -> None:
    quantized = codec.quantizer(latent)
    assert torch.equal(quantized.codes, codec.quantizer.encode(latent))
    assert torch.allclose(quantized.latent, codec.quantizer.decode(quantized.codes), atol=1e-6)


def test_samples_take_the_papers_shares_and_one_way_each(codec: Codec, latent: torch.Tensor) -> None:
    quantized = codec.quantizer(latent, _draw(codec.quantizer))
    hard = codec.quantizer.decode(quantized.codes)
    semantic, acoustic = quantized.latent.split(codec.quantizer.split_sizes, 1)
    was_quantized = torch.isclose(semantic, hard[:, : TINY.semantic_dim], atol=1e-6).flatten(1)
    passed = (semantic == latent[:, : TINY.semantic_dim]).flatten(1)
    assert bool((was_quantized.all(1) ^ passed.all(1)).all())
    assert was_quantized.all(1).float().mean() == pytest.approx(0.5, abs=0.08)

    bounded = torch.tanh(latent[:, TINY.semantic_dim :])
    snapped = torch.isclose(acoustic, hard[:, TINY.semantic_dim :], atol=1e-6).flatten(1).all(1)
    untouched = (acoustic == bounded).flatten(1).all(1)
    noisy = ~snapped & ~untouched
    shares = [group.float().mean().item() for group in (snapped, noisy, untouched)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    noise = (acoustic - bounded)[noisy]
    assert noise.abs().max() <= 1 / 21 + 1e-6
    assert noise.abs().max() > 0.95 / 21
    assert noise.mean().abs() < 0.002


def test_a_draw_repeats_and_is_shared_by_ranks(codec: Codec) -> None:
    whole = _draw(codec.quantizer)
    assert all(torch.equal(a, b) for a, b in zip(whole, _draw(codec.quantizer), strict=True))
    parts = [whole.part(rank, 2) for rank in range(2)]
    assert all(torch.equal(torch.cat(pair), part) for pair, part in zip(zip(*parts, strict=True), whole, strict=True))


def test_the_gradient_passes_straight_through(codec: Codec, latent: torch.Tensor) -> None:
    latent = latent.clone().requires_grad_()
    codec.quantizer(latent, _draw(codec.quantizer)).latent.sum().backward()
    assert latent.grad is not None
    semantic, acoustic = latent.grad.split(codec.quantizer.split_sizes, 1)
    assert torch.allclose(semantic, torch.ones_like(semantic))
    assert torch.allclose(acoustic, 1 - torch.tanh(latent[:, TINY.semantic_dim :]) ** 2, atol=1e-6)


def _clusters(count: int) -> torch.Tensor:
    """Latents [count, 4, 10] around eight centres."""
    generator = torch.Generator().manual_seed(7)
    centres = 10 * torch.randn(8, 4, generator=generator)
    which = torch.randint(8, (count, 10), generator=generator)
    return (centres[which] + 0.1 * torch.randn(count, 10, 4, generator=generator)).transpose(1, 2)


def test_an_untrained_codebook_learns_clusters_and_leaves_no_entry_dead() -> None:
    codebook, generator = SemanticCodebook(16, 4), torch.Generator().manual_seed(0)
    latents = _clusters(64)
    for _ in range(200):
        codebook.learn(latents, codebook.encode(latents), codebook.draw(generator), decay=0.9)
    codes = codebook.encode(latents)
    assert (codebook.decode(codes) - latents).norm(dim=1).max() < 0.6
    assert codes.unique().numel() == 16
    # at rest an entry is the mean of the latents that choose it
    frames, flat = latents.transpose(1, 2).reshape(-1, 4), codes.flatten()
    code = int(flat.mode().values)
    assert torch.allclose(codebook.embedding[code], frames[flat == code].mean(0), atol=0.05)


def test_a_dead_entry_is_seeded_from_the_batch() -> None:
    codebook, generator = SemanticCodebook(16, 4), torch.Generator().manual_seed(0)
    latents = _clusters(64)
    codebook.learn(latents, codebook.encode(latents), codebook.draw(generator))
    codebook.embedding_sum[3] = 1000.0
    codebook.cluster_usage[3] = 1e-9
    assert codebook.learn(latents, codebook.encode(latents), codebook.draw(generator)) >= 1
    frames = latents.transpose(1, 2).reshape(-1, 4)
    assert (frames - codebook.embedding[3]).norm(dim=1).min() < 1e-4
