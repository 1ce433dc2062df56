"""Both losses of the discriminator and all their gradients, for a training step.

`Discriminator`, `hinge_loss` and `feature_matching` say what is computed. Autograd gets the same gradients from them
(`tests/test_discriminator_gradients.py`), but needs twice the time and three times the memory on a GPU. Here

- each resolution frees its features before the next one starts;
- originals and reconstructions pass the convolutions as one batch of 2B. Three gradients come back as one batch of 3B:
  those of the hinge loss at originals and at reconstructions, and that of feature matching at reconstructions;
- all that happens between two convolutions is one pass over memory (`losses/discriminator_passes.py`);
- neighbouring frequencies count as channels (`GroupedConv`), which suits a GPU's matrix units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from losses.discriminator import Discriminator, STFTDiscriminator
from losses.discriminator_passes import activate_and_compare, through_activation

FIRST_GROUP = 4  # outputs of the first layer that are computed as channels of one
WHOLE = 8  # spectra get a whole multiple of so many bins: three layers halve them


class DiscriminatorGradients(NamedTuple):
    matching: Tensor  # feature matching: a scalar
    at_reconstruction: Tensor  # its gradient there, [B, 1, T]
    hinge: Tensor  # the hinge loss: a scalar
    of_parameters: list[Tensor]  # its gradients, in the order of `discriminator.parameters()`


@torch.no_grad()
def discriminator_gradients(
    discriminator: Discriminator, original: Tensor, reconstruction: Tensor
) -> DiscriminatorGradients:
    """For two waveforms [B, 1, T]. Convolutions run in autocast's dtype. Raises ValueError for too short waveforms."""
    discriminator.check_length(original)
    device = original.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    with torch.autocast(device, enabled=False):
        share = 1 / len(discriminator.scales)
        # the longer the window, the smaller the tensors: from the shortest on, each resolution fits into the memory of
        # the one before it, which a step that is being recorded cannot give back to the GPU
        scales = reversed(list(discriminator.scales))
        found = [_of_scale(scale, share, original, reconstruction, dtype) for scale in scales][::-1]
    return DiscriminatorGradients(
        torch.stack([one.matching for one in found]).sum(),
        torch.stack([one.at_reconstruction for one in found]).sum(dim=0),
        torch.stack([one.hinge for one in found]).sum(),
        [gradient for one in found for gradient in one.of_parameters],
    )


def _of_scale(
    scale: nn.Module, share: float, original: Tensor, reconstruction: Tensor, dtype: torch.dtype
) -> DiscriminatorGradients:
    """The same of one resolution, whose losses count by `share`."""
    assert isinstance(scale, STFTDiscriminator)
    batch = len(original)
    with torch.enable_grad():
        sound = reconstruction.detach().requires_grad_()
        spectrum = scale.spectrum(sound)
        first, *others = scale.layers
        layers = [
            GroupedConv(first, FIRST_GROUP, dtype),
            *(GroupedConv(conv, 1, dtype) for conv in (*others, scale.last)),
        ]

    # forward: features[i] [2B, T, F, C] is what layer i gets
    both = torch.cat([scale.spectrum(original), spectrum.detach()]).permute(0, 2, 3, 1)
    bins = both.shape[2]
    features = [F.pad(both, (0, 0, 0, -bins % WHOLE)).to(dtype)]
    del both
    counts, distances, coefficients = [bins], [], []  # counts: bins of features[i], of which it may have more
    for layer in layers[:-1]:
        x = layer(features[-1])
        counts.append(-(-counts[-1] // layer.stride))
        difference, size = activate_and_compare(x.flatten(0, 1), layer.bias, counts[-1])
        count = x[:batch, :, : counts[-1]].numel()
        size = (size / count).clamp(min=1e-8)
        distances.append(difference / count / size)
        coefficients.append(share / len(scale.layers) / count / size)
        features.append(x)
    logits = layers[-1](features[-1]).float() + layers[-1].bias
    real, fake = logits.chunk(2)
    hinge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    # back, from the last layer to the first
    at_logits = torch.cat([-(real < 1).float(), (fake > -1).float(), torch.zeros_like(fake)]) * (share / real.numel())
    gradient, of_bias, of_weight = at_logits.to(dtype), [at_logits.sum(dim=(0, 1, 2))], []
    for i in reversed(range(len(layers))):
        if i < len(layers) - 1:
            of_bias.append(
                through_activation(gradient.flatten(0, 1), features.pop().flatten(0, 1), coefficients[i], counts[i + 1])
            )
        of_weight.append(layers[i].weight_gradient(gradient[: 2 * batch], features[i]))
        # the waveform gets feature matching's gradient only
        gradient = layers[i].input_gradient(gradient if i else gradient[2 * batch :])

    at_spectrum = gradient[:, :, :bins].permute(0, 3, 1, 2).float()
    graphs = [layer.graph for layer in reversed(layers)] + [layer.bias for layer in reversed(layers)]
    return DiscriminatorGradients(
        torch.stack(distances).mean() * share,
        torch.autograd.grad(spectrum, sound, at_spectrum)[0],
        hinge * share,
        list(torch.autograd.grad(graphs, list(scale.parameters()), [*of_weight, *of_bias])),
    )


class GroupedConv:
    """A convolution over [N, T, F, C] whose frequencies lie in groups, as channels of one frequency: `outputs`
    neighbouring outputs, and the `outputs` x stride inputs below them. F is a whole number of groups.

    It has stride 1 and more channels than the convolution itself, and computes the same. Some of the enlarged weights
    are zero: a tenth where a stride of 2 makes pairs. cuDNN's gradients of strided convolutions, and all of two-channel
    ones, are slower by more.

    `graph` is the enlarged weight with its graph to the convolution's parameters.
    """

    def __init__(self, conv: nn.Module, outputs: int, dtype: torch.dtype):
        assert isinstance(conv, nn.Conv2d)
        self.stride, self.outputs, self.inputs = conv.stride[1], outputs, outputs * conv.stride[1]
        assert conv.bias is not None
        self.bias = conv.bias
        self.graph = grouped_weight(conv.weight, self.stride, outputs)
        self.weight = self.graph.detach().to(dtype, memory_format=torch.channels_last)
        self.padding = (conv.dilation[0] * (self.weight.shape[2] // 2), self.weight.shape[3] // 2)
        self.dilation = (conv.dilation[0], 1)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, T, F, C] -> [N, T, F / stride, C'], without the bias."""
        x = as_channels(x, self.inputs)
        return as_frequencies(F.conv2d(x, self.weight, None, 1, self.padding, self.dilation), self.outputs)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        # not torch.nn.grad.conv2d_input, which makes cuDNN copy every gradient into another memory layout and back
        gradient = as_channels(gradient, self.outputs)
        found = F.conv_transpose2d(gradient, self.weight, None, 1, self.padding, dilation=self.dilation)
        return as_frequencies(found, self.inputs)

    def weight_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """At `graph`, in its dtype."""
        gradient, x = as_channels(gradient, self.outputs), as_channels(x, self.inputs)
        return conv2d_weight(x, self.weight.shape, gradient, 1, self.padding, self.dilation).to(self.graph.dtype)


def as_channels(x: Tensor, group: int) -> Tensor:
    """[N, T, F, C] -> [N, group · C, T, F / group], the same memory."""
    return x.unflatten(2, (-1, group)).flatten(3).permute(0, 3, 1, 2)


def as_frequencies(x: Tensor, group: int) -> Tensor:
    """[N, group · C, T, F] -> [N, T, F · group, C], the same memory if that is channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().unflatten(3, (group, -1)).flatten(2, 3)


def grouped_weight(weight: Tensor, stride: int, outputs: int) -> Tensor:
    """The weight [outputs · C', inputs · C, time, groups] of a convolution over groups, from that of a convolution with
    this stride over frequencies [C', C, time, taps] which is padded by half of its taps."""
    taps, inputs = weight.shape[3], outputs * stride
    half = taps // 2
    reach = max(-(-half // inputs), (half + (outputs - 1) * stride) // inputs)  # groups to either side
    group, source, target = (
        torch.arange(low, high, device=weight.device) for low, high in ((-reach, reach + 1), (0, inputs), (0, outputs))
    )
    tap = inputs * group + source[:, None] - stride * target[:, None, None] + half  # [outputs, inputs, groups]
    tap = torch.where((tap >= 0) & (tap < taps), tap, taps)  # where there is none, the zero behind the last
    enlarged = F.pad(weight, (0, 1))[..., tap]  # [C', C, time, outputs, inputs, groups]
    return enlarged.permute(3, 0, 4, 1, 2, 5).flatten(2, 3).flatten(0, 1)
