"""The codec here and the server's own class compute the same, at small and at the release's dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from codec import Codec, load_release
from codec.tensors import expected_encoder
from evaluation.server_codec import codec_class, load_server_codec
from experiments.random_release import REAL

SIZES = ["small_release", "real_release"]


@pytest.fixture(scope="module", params=SIZES)
def codecs(request: pytest.FixtureRequest) -> tuple[Any, Codec]:
    """The server's codec and ours, of one release, in bfloat16. Loaded once: it takes seconds at real dimensions."""
    release = request.getfixturevalue(request.param)
    return load_server_codec(release), load_release(release)


def test_the_server_class_is_the_installed_package_and_not_a_stand_in() -> None:
    assert codec_class().__name__ == "VoxtralTTSAudioTokenizer"
    assert "def _tokenize_audio" in Path(codec_class()._tokenize_audio.__code__.co_filename).read_text()  # type: ignore[attr-defined]


def test_the_encoder_has_the_servers_114_tensors_of_the_same_shapes(real_release: Path) -> None:
    server = load_server_codec(real_release)
    theirs = {
        f"audio_tokenizer.{name}": (tuple(parameter.shape), parameter.dtype)
        for name, parameter in server.named_parameters()
        if name.startswith(("input_proj.", "encoder_blocks."))
    }
    ours = {name: (shape, torch.bfloat16) for name, shape in expected_encoder(REAL).items()}
    assert ours == theirs
    assert len(ours) == 114
    assert sum(torch.Size(shape).numel() for shape, _ in ours.values()) == pytest.approx(149.5e6, rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_latents_and_decoded_audio_are_equal_in_float32(
    request: pytest.FixtureRequest, size: str, speech: Tensor
) -> None:
    release = request.getfixturevalue(size)
    server, codec = load_server_codec(release, torch.float32), load_release(release, torch.float32)
    padded = F.pad(speech, (0, -speech.shape[-1] % 240))
    theirs, ours = server._forward_encoder(padded), codec.latent(speech)
    assert (theirs - ours).abs().max() < 1e-4
    codes = codec.encode(speech)
    assert torch.equal(codes, server.quantizer.encode(theirs))
    assert (server.decode(codes) - codec.decode(codes)).abs().max() < 1e-4


@pytest.mark.parametrize("samples", [1, 500, 1920, 13440, 48077])
def test_codes_embeddings_and_audio_are_bit_equal_the_servers_way(
    codecs: tuple[Any, Codec], speech: Tensor, samples: int
) -> None:
    server, codec = codecs
    clip = speech[..., :samples]
    served = clip.to(torch.bfloat16)
    codes = server._tokenize_audio(served)
    assert torch.equal(codec.encode(clip), codes)
    assert torch.equal(codec.embed(codes)[0], server.encode_waveforms([served[0, 0]])[0])
    assert torch.equal(codec.decode(codes), server.decode(codes, dtype=torch.bfloat16).float())


def test_long_codes_are_decoded_in_the_servers_pieces(small_release: Path) -> None:
    server, codec = load_server_codec(small_release), load_release(small_release)
    generator = torch.Generator().manual_seed(0)
    codes = torch.cat(
        [torch.randint(8192, (1, 1, 800), generator=generator), torch.randint(21, (1, 36, 800), generator=generator)], 1
    )
    theirs = server.decode_helper_batch_async([codes[0].T + 2])[0]
    ours = codec.decode(codes)[0, 0]
    assert torch.equal(ours[: 375 * 1920], theirs[: 375 * 1920])
    # the last piece is padded in the server's batch: another kernel, the same values to a bf16 step
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_random_codes_use_the_codebooks_widely(small_release: Path, speech: Tensor) -> None:
    """Parity on codes that hardly vary would prove little."""
    codes = load_release(small_release).encode(speech)
    assert codes[:, 0].unique().numel() > 10
    assert codes[:, 1:].unique().numel() > 10
