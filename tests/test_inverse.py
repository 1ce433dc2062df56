"""An encoder that starts as the decoder's inverse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from codec import load_release
from codec.inverse import linear_inverse
from codec.layers import CausalConv1d, CausalConvTranspose1d
from examples.demo import unseen_clips
from losses.mel import MelDistance

DEMO = Path("data/demo/release")


def _frames(channels: int, count: int = 4000) -> torch.Tensor:
    return torch.randn(1, channels, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_convolution_that_loses_nothing_is_undone_exactly() -> None:
    """No overlap, as many samples behind it as channels before it: the newest frame is all that they hold."""
    torch.manual_seed(0)
    square = nn.init.orthogonal_(torch.empty(6, 6, dtype=torch.float64))
    one = linear_inverse(square[None], kernel=1, stride=1, ridge=1e-9)
    assert torch.allclose(one[..., 0], square.T, atol=1e-6)
    up = CausalConvTranspose1d(6, 3, kernel=2, stride=2).double()
    down = CausalConv1d(3, 6, kernel=2, stride=2, pad_mode="replicate", normed=False).double()
    with torch.no_grad():
        down.conv.weight.copy_(linear_inverse(up.conv.weight.permute(2, 1, 0), kernel=2, stride=2, ridge=1e-12))
        frames = _frames(6, 50)
        assert torch.allclose(down(up(frames)), frames, atol=1e-6)


@pytest.mark.parametrize("transposed", [True, False], ids=["strided", "plain"])
def test_it_is_the_best_guess_at_white_frames_through_noise(transposed: bool) -> None:
    """No other weight is nearer, by least squares on frames that it has not seen. Edges are left out."""
    torch.manual_seed(0)
    kernel, stride = (4, 2) if transposed else (3, 1)
    first: nn.Module
    if transposed:
        first = CausalConvTranspose1d(5, 4, kernel, stride).double()
        response = first.conv.weight.permute(2, 1, 0)
    else:
        first = CausalConv1d(5, 4, kernel, stride, "replicate", normed=False).double()
        response = first.conv.weight.flip(2).permute(2, 0, 1)
    with torch.no_grad():
        weight = linear_inverse(response, kernel, stride, ridge=0.5)
        frames = _frames(5, 60000)
        sounds = first(frames)
        noise = torch.randn(sounds.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        sounds = sounds + (0.5 * sounds[..., 100:].square().mean()).sqrt() * noise
        seen = sounds[0].unfold(1, kernel, stride)[:, 50:-50]  # [out, frames, kernel]
        known = frames[0, :, 50 + (kernel - stride) // stride :][:, : seen.shape[1]]
        rows = seen.permute(1, 2, 0).flatten(1)
        fitted = torch.linalg.lstsq(rows, known.T).solution.T.unflatten(1, (kernel, -1)).transpose(1, 2)
    assert torch.allclose(weight, fitted, atol=0.05 * float(fitted.abs().max()))


def test_layers_come_in_reverse_and_take_away_what_the_decoders_add() -> None:
    codec = load_release(DEMO, torch.float32).with_new_encoder("inverse")
    assert codec.encoder is not None
    own, other = codec.encoder.encoder_blocks[0].layers, codec.decoder.decoder_blocks[7].layers
    x = torch.randn(2, 20, codec.config.dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, theirs in zip(own, reversed(other), strict=True):
            assert torch.equal(mine.attention_scale, -theirs.attention_scale)
            assert torch.equal(mine.attention.wq.weight, theirs.attention.wq.weight)
        there = other[1](other[0](x))
        back = own[1](own[0](there))
    assert (back - x).norm() < 0.8 * (there - x).norm()


def test_on_speech_it_is_far_nearer_than_mirrored_layers_before_any_training() -> None:
    clips, mel = unseen_clips()[::6], MelDistance(24000)

    def distance(start: str) -> float:
        torch.manual_seed(0)
        codec = load_release(DEMO, torch.float32).with_new_encoder(start)
        sounds = [codec.decode(codec.encode(clip))[..., : clip.shape[-1]] for clip in clips]
        return sum(float(mel(sound, clip)) for sound, clip in zip(sounds, clips, strict=True)) / len(clips)

    assert distance("inverse") < 0.5 * distance("mirror")


def test_it_draws_nothing() -> None:
    first, second = (load_release(DEMO, torch.float32).with_new_encoder("inverse").encoder for _ in range(2))
    assert first is not None
    assert second is not None
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
