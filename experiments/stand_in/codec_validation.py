"""What the stand-in's codec is measured by while it is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from codec.codec import Codec
from experiments.stand_in.labelled_speech import NO_CLASS, UNIT, LabelledSpeech
from losses import MelDistance

QUARTERS = 4  # of a frame, 20 ms each, whose phonemes are predicted
VALIDATION_CLIPS, VALIDATION_FRAMES = 96, 36


@torch.no_grad()
def validate(
    codec: Codec,
    phonemes: nn.Linear,
    speech: LabelledSpeech,
    autocast: Callable[[], torch.autocast],
    frames: int = VALIDATION_FRAMES,
) -> dict[str, float]:
    """A codec on the beginnings of clips, with hard codes: the mel distance; the share of codes that its
    encoder finds again in the decoded sound; how many quarters' phonemes the entries tell; the entropy of the
    semantic codes in bits."""
    samples, device = frames * codec.frame_size, codec.device
    assert codec.encoder is not None
    distance = MelDistance(codec.sample_rate).to(device)
    offsets = quarter_offsets(frames, codec.frame_size, device)
    chosen = speech.longer_than(samples)[:VALIDATION_CLIPS]
    starts = torch.from_numpy(speech.starts[chosen] * UNIT).to(device)
    scores: list[list[float]] = []
    used: list[Tensor] = []
    for part in starts.split(32):
        waveform, labels = speech.crops(part, samples), speech.labels(part, offsets).reshape(-1)
        with autocast():
            codes = codec.quantizer.encode(codec.encoder(waveform).float())
            decoded = codec.decoder(codec.quantizer.decode(codes)).float()
            again = codec.quantizer.encode(codec.encoder(decoded).float())
        entries = codec.quantizer.semantic_codebook.decode(codes[:, :1])
        guess = phonemes(entries.transpose(1, 2)).reshape(-1, phonemes.out_features // QUARTERS).argmax(dim=1)
        same = codes == again
        right = (guess == labels)[labels != NO_CLASS]
        found = (distance(decoded, waveform), *(part.float().mean() for part in (same[:, 0], same[:, 1:], right)))
        scores.append([float(value) for value in found])
        used.append(codes[:, 0].flatten())
    share = torch.bincount(torch.cat(used), minlength=codec.config.semantic_codebook_size).float()
    share = share / share.sum()
    names = ("mel", "semantic_found_again", "acoustic_found_again", "phonemes_right")
    metrics = dict(zip(names, np.mean(scores, axis=0).tolist(), strict=True))
    return metrics | {"entropy": float(-(share * share.clamp(min=1e-12).log2()).sum())}


def quarter_offsets(frames: int, frame_size: int, device: torch.device) -> Tensor:
    """[4 · frames], the middle of every quarter of a frame, in samples."""
    return ((torch.arange(frames * QUARTERS, device=device) + 0.5) * (frame_size / QUARTERS)).long()
