"""An encoder's start as the decoder's inverse, as far as that can be written down without any training.

What is missing has to undo what is there. Two approximations make that a formula:

- A causal convolution of the decoder is a linear map from the frames before it to the samples behind it. The encoder's
  convolution sees only some of these samples, y = A x, and takes the best linear guess at the newest frame, for white
  frames and noise of `RIDGE` times the mean power of y (ridge regression, Hoerl and Kennard 1970):
  W = A_newᵀ (A Aᵀ + ridge · I)⁻¹, with A_new the columns of the newest frame.
- A residual branch x + f(x) is undone by x − f(x), to first order in f, which is small: one step of the fixed-point
  iteration that inverts a residual network (Behrmann et al. 2019). So the encoder's layers are the decoder's in reverse
  order, with the scales of their branches negated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codec.decoder import Decoder
from codec.encoder import Encoder
from codec.layers import CausalConv1d, CausalConvTranspose1d, Transformer

RIDGE = 1.0  # with less, the four inversions in a row blow up what the decoder hardly uses


@torch.no_grad()
def start_as_inverse(encoder: Encoder, decoder: Decoder) -> None:
    """Sets the encoder's weights. Raises ValueError where its stages are not the decoder's in reverse."""
    mine, theirs = list(encoder.encoder_blocks), list(decoder.decoder_blocks)[::-1]
    pairs = [(encoder.input_proj, decoder.output_proj), *zip(mine, theirs, strict=len(mine) == len(theirs))]
    for own, other in pairs:
        if isinstance(own, Transformer) and isinstance(other, Transformer):
            _invert_layers(own, other)
        elif isinstance(own, CausalConv1d) and isinstance(other, CausalConv1d | CausalConvTranspose1d):
            _invert_convolution(own, other)
        else:
            raise ValueError(f"a {type(own).__name__} of the encoder meets a {type(other).__name__} of the decoder")


def _invert_layers(own: Transformer, other: Transformer) -> None:
    for layer, source in zip(own.layers, list(other.layers)[::-1], strict=True):
        layer.load_state_dict(source.state_dict())
        for name, parameter in layer.named_parameters():
            if name.endswith("_scale"):
                parameter.neg_()


def _invert_convolution(own: CausalConv1d, other: CausalConv1d | CausalConvTranspose1d) -> None:
    weight = _weight(other).double()
    # what a frame gives to each sample, from its own on: of a plain convolution, the last tap is the frame's own sample
    transposed = isinstance(other, CausalConvTranspose1d)
    response = weight.permute(2, 1, 0) if transposed else weight.flip(2).permute(2, 0, 1)
    inverse = linear_inverse(response, own.kernel, own.stride)
    parts = dict(own.conv.named_parameters())
    if "weight" in parts:
        parts["weight"].copy_(inverse)
    else:  # weight norm: gain and direction
        parts["parametrizations.weight.original0"].copy_(inverse.flatten(1).norm(dim=1)[:, None, None])
        parts["parametrizations.weight.original1"].copy_(inverse)


def _weight(convolution: CausalConv1d | CausalConvTranspose1d) -> Tensor:
    weight = convolution.conv.weight
    assert isinstance(weight, Tensor)
    return weight


def linear_inverse(response: Tensor, kernel: int, stride: int, ridge: float = RIDGE) -> Tensor:
    """What undoes a convolution that gives y_p = Σ_t R_{p − stride·t} x_t, with R its `response` [delays, out, in]: the
    weight [in, out, kernel] of a causal convolution of that stride over y."""
    delays, out, width = response.shape
    seen = range(stride - kernel, stride)  # samples, relative to the first of the newest frame, which is frame 0
    frames = range((seen[0] - delays + 1) // stride, 1)
    a = response.new_zeros(kernel, out, len(frames), width)
    for row, sample in enumerate(seen):
        for column, frame in enumerate(frames):
            if 0 <= (delay := sample - stride * frame) < delays:
                a[row, :, column] = response[delay]
    newest = a[:, :, -1].flatten(0, 1)  # [kernel · out, in]
    a = a.flatten(2).flatten(0, 1)
    gram = a @ a.T
    noise = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weight = torch.linalg.solve(gram + noise, newest)  # both sides are symmetric: [kernel · out, in]
    return weight.T.unflatten(1, (kernel, out)).transpose(1, 2).contiguous()
