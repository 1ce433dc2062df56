"""The acoustic transformer and the server's own class compute the same; its masks and its training form."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.server_codec import PACKAGE, codec_class
from language_model.losses import flow_matching_loss, semantic_loss
from tests.language_models import tiny_model, tiny_params

END = 1


def server_transformer(ours: torch.nn.Module, dtype: torch.dtype) -> Any:
    """`FlowMatchingAudioTransformer` of the installed vllm-omni with these weights, built as the server builds it."""
    codec_class()  # loads the file that the class is in
    args = copy.deepcopy(tiny_params()["multimodal"]["audio_model_args"])
    args["acoustic_transformer_args"]["n_decoding_steps"] = 7  # what the server's parser puts in
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        server = sys.modules[f"{PACKAGE}.voxtral_tts_audio_generation"].FlowMatchingAudioTransformer(args)
    finally:
        torch.set_default_dtype(before)
    assert {name for name, _ in server.named_parameters()} == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        server.load_weight((name, parameter))
    return server.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_from_the_same_noise_are_those_of_the_servers_class(dtype: torch.dtype) -> None:
    """In bfloat16, processors with instructions for it sum in an order that depends on a tensor's layout: there a value
    that lies between two levels may become the other one (1 of 3600 was seen)."""
    ours = tiny_model().acoustic_transformer.to(dtype)
    ours.semantic_codebook_output.weight[END] *= 2  # so that some frames are the end of audio
    server = server_transformer(ours, dtype)
    hidden = torch.randn(200, 48).to(dtype)
    alpha = torch.tensor([1.0, 1.2, 3.0])
    for value in alpha:
        torch.manual_seed(7)
        theirs = server(hidden, value.expand(200))
        torch.manual_seed(7)
        noise = torch.randn(200, 6, dtype=dtype)  # the server's first draw
        codes = ours.next_frame(hidden, noise, float(value))
        distance = (codes - theirs).abs()
        assert not distance[:, 0].any()
        assert distance.max() <= 1
        assert distance.count_nonzero() <= (0 if dtype == torch.float32 else 6)  # of 1200
    assert 0 < (codes[:, 0] == END).sum() < 200
    assert (codes[codes[:, 0] == END, 1:] == 2).all()
    assert codes[:, 1:].unique().tolist() == [2, 3, 4, 5, 6]


def test_training_and_serving_compute_the_same_velocity() -> None:
    ours = tiny_model().acoustic_transformer
    x, time, condition = torch.randn(30, 6), torch.rand(30), torch.randn(30, 48)
    served = ours.velocity(x, ours.project_time(time), condition)
    trained = ours.train().velocity(x, ours.project_time(time), condition)
    torch.testing.assert_close(trained, served, atol=1e-5, rtol=1e-5)


def test_neither_the_empty_class_nor_the_padding_can_be_said() -> None:
    ours = tiny_model().acoustic_transformer
    hidden = torch.randn(5, 48)
    head, classes = ours.semantic_codebook_output.weight, ours.config.semantic_classes
    head[0], head[classes:] = 100 * hidden[0], 100 * hidden[0]
    logits = ours.semantic_logits(hidden)
    assert logits.dtype == torch.float32
    assert (logits[:, 0] == -math.inf).all()
    assert (logits[:, classes:] == -math.inf).all()
    assert logits[:, 1:classes].isfinite().all()
    assert torch.equal(ours.next_frame(hidden, torch.zeros(5, 6))[:, 0], logits.argmax(dim=1))


def test_a_uniform_guess_costs_the_logarithm_of_the_codes_and_the_end_of_audio() -> None:
    ours = tiny_model().acoustic_transformer
    loss = semantic_loss(ours.semantic_logits(torch.zeros(3, 48)), torch.tensor([END, 2, 65]))
    torch.testing.assert_close(loss, torch.full((3,), math.log(65)))


def flow(ours: Any, hidden: Tensor, codes: Tensor, dropout: float = 0.0, draws: int = 4) -> Tensor:
    return flow_matching_loss(ours, hidden, codes, draws, dropout, torch.Generator().manual_seed(0))


def test_a_velocity_of_zero_costs_the_power_of_codes_and_noise() -> None:
    ours = tiny_model().acoustic_transformer
    ours.acoustic_codebook_output.weight.zero_()
    codes = torch.tensor([[0] * 6, [2] * 6, [4] * 6])  # −1, 0 and 1
    loss = flow(ours, torch.randn(3, 48), codes, draws=4000)
    torch.testing.assert_close(loss, torch.tensor([2.0, 1.0, 2.0]), atol=0.05, rtol=0)


def test_without_the_condition_the_hidden_state_does_not_matter() -> None:
    ours, codes = tiny_model().acoustic_transformer, torch.randint(5, (20, 6))
    one, other = torch.randn(20, 48), torch.randn(20, 48)
    assert torch.equal(flow(ours, one, codes, dropout=1.0), flow(ours, other, codes, dropout=1.0))
    assert (flow(ours, one, codes) != flow(ours, other, codes)).all()
    dropped = flow(ours, one, codes, dropout=0.1, draws=1) != flow(ours, one, codes, draws=1)
    assert 0 < dropped.sum() < 10


def test_the_loss_is_the_least_where_the_velocity_is_right() -> None:
    """From a known noise to known codes the velocity is constant: what the steps of the server follow ends at them."""
    ours = tiny_model().acoustic_transformer
    codes, noise = torch.randint(5, (8, 6)), torch.randn(8, 6)
    target = codes / 2 - 1 - noise
    velocity = ours.velocity
    try:
        ours.velocity = lambda x, time, condition: torch.cat([target, target])  # type: ignore[method-assign]
        assert torch.equal(ours.decode(torch.randn(8, 48), noise), codes)
    finally:
        ours.velocity = velocity  # type: ignore[method-assign]
