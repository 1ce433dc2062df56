"""Finds the codec frames in which each token was spoken, from those cross-attention heads of Whisper that follow the
timing of words (openai-whisper, `timing.py`; Voxtral TTS, arXiv 2603.25551, the codec's ASR distillation)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MEDIAN_WIDTH = 7  # frames of 20 ms, as in timing.py
FRAMES_A_CODEC_FRAME = 4  # 50 Hz to 12.5 Hz


def align(scores: Tensor, positions: Tensor) -> Tensor:
    """Turns attention scores into alignment weights.

    `scores` [B, heads, N, frames] are those of the alignment heads before the softmax, at 50 Hz. `positions` [B, N] is
    True for the tokens of a clip, with the special tokens, and False for padding. Returns weights
    [B, N, ceil(frames / 4)] at 12.5 Hz. They are not negative. Each row sums to 1, or to 0 if no frame stands out for
    the token.

    The caller cuts the scores to the frames of the clip, so that the softmax does not include Whisper's padding to
    30 s. Then, as in timing.py, each frame is standardised over the clip's tokens, a median filter runs along the
    frames, and the heads are averaged. The result is positive where a token attends to a frame more than the clip's
    other tokens do. The paper does not say how this becomes weights. We cut off the negative part, because a negative
    value means that the frame belongs to another token. (A softmax would give every frame a share. The standardised
    values are about -1 to 5, so most of a row's weight would lie outside its word.) Each codec frame takes the mean of
    its four frames, before each row is divided by its sum. So every frame counts; sampling the curve at single points
    would skip frames.
    """
    weights = scores.float().softmax(dim=-1)
    kept = positions[:, None, :, None]
    count = kept.sum(dim=2, keepdim=True)
    mean = (weights * kept).sum(dim=2, keepdim=True) / count
    centred = (weights - mean) * kept
    deviation = (centred.square().sum(dim=2, keepdim=True) / count).sqrt()
    smooth = median_filter(centred / deviation.clamp(min=torch.finfo(torch.float32).tiny)).mean(dim=1)
    positive = smooth.clamp(min=0) * positions[..., None]
    whole = F.pad(positive, (0, -positive.shape[-1] % FRAMES_A_CODEC_FRAME))
    pooled = whole.unflatten(-1, (-1, FRAMES_A_CODEC_FRAME)).mean(dim=-1)
    total = pooled.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, pooled / total.clamp(min=torch.finfo(torch.float32).tiny), 0)


def median_filter(values: Tensor, width: int = MEDIAN_WIDTH) -> Tensor:
    """The median of `width` neighbours (odd) along the last dimension, mirrored at the ends. The result equals that of
    Whisper's own filter, which compiles an extra kernel on a GPU. Raises ValueError for too few values to mirror.
    """
    half = width // 2
    if values.shape[-1] <= half:
        raise ValueError(f"{values.shape[-1]} frames are too few for a median of {width}, expected {half + 1} or more")
    mirrored = F.pad(values.flatten(0, -2), (half, half), mode="reflect")
    return mirrored.unfold(-1, width, 1).median(dim=-1).values.view_as(values)
