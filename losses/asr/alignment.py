"""Which codec frames a token was spoken in, from the cross-attention heads of Whisper that track the timing of words
(openai-whisper, `timing.py`; Voxtral TTS, arXiv 2603.25551, the codec's ASR distillation)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MEDIAN_WIDTH = 7  # frames of 20 ms, as in timing.py
FRAMES_A_CODEC_FRAME = 4  # 50 Hz to 12.5 Hz


def align(scores: Tensor, positions: Tensor) -> Tensor:
    """Attention scores before their softmax, [B, heads, N, frames] at 50 Hz, of the alignment heads; `positions`
    [B, N] is True for the tokens of a clip, the special ones among them, and False for padding. Returns weights
    [B, N, ceil(frames / 4)] at 12.5 Hz, not negative, each row summing to 1, or to 0 where no frame stands out for
    the token.

    The scores have to be cut to the frames of the clip: softmax runs over what is given, so Whisper's 30 s of padding
    take no part. Then, as in timing.py, every frame is standardised over the clip's tokens, a median filter runs along
    the frames, and the heads are averaged. What is left is positive where a token attends to a frame more than the
    clip's other tokens do. The paper leaves open how this becomes weights; here the negative part is cut off, because
    it says that a frame is another token's. (A softmax would give every frame a share: over the standardised values,
    of about -1 to 5, most of a row's weight would lie outside of its word.) The mean of the four frames in a codec
    frame, taken before each row is divided by its sum, keeps every frame's part, where reading the curve at single
    points would skip frames.
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
    """The median of `width` neighbours along the last dimension, mirrored at the ends; `width` is odd. As whisper's
    own, which on a GPU would compile a kernel of its own. Raises ValueError where there are too few values to mirror.
    """
    half = width // 2
    if values.shape[-1] <= half:
        raise ValueError(f"{values.shape[-1]} frames are too few for a median of {width}, expected {half + 1} or more")
    mirrored = F.pad(values.flatten(0, -2), (half, half), mode="reflect")
    return mirrored.unfold(-1, width, 1).median(dim=-1).values.view_as(values)
