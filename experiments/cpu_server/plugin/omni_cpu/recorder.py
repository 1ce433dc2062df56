"""Records what the model in the running server computes, so that a test can compare it with the codec here.

Each event is a file in the folder named by SERVER_RECORDS. The files are numbered in the order of the events:

    {"waveform": [T], "codes": [37, F + 1]}   the encoder's input, a ref_audio, and its output: codes + 2, with the
                                              end-of-audio frame last
    {"prompt": [N, dim], "tokens": []}        the embeddings of the prompt's audio tokens, and how many tokens there are
    {"hidden": [B, dim], "noise": [B, 36], "said": [B, 37]}
                                              the language model's hidden states, the noise drawn for their frames, and
                                              the frames' codes + 2
    {"frame": [37]}                           a generated frame's codes + 2, as they are fed back
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def record(model: Any) -> None:
    """Wraps the model's methods, if SERVER_RECORDS is set."""
    if "SERVER_RECORDS" not in os.environ:
        return
    folder, numbers = Path(os.environ["SERVER_RECORDS"]), count()
    codec = model.model.audio_tokenizer
    encode_waveforms, encode_tokens, embed_input_ids = (
        codec.encode_waveforms,
        codec.encode_tokens,
        model.embed_input_ids,
    )
    acoustic = model.model.acoustic_transformer
    forward = acoustic.forward
    clips: list[Tensor] = []  # the ones that are being encoded now

    def write(event: dict[str, Tensor]) -> None:
        path = folder / f"{next(numbers):06}"
        torch.save({name: tensor.detach().clone() for name, tensor in event.items()}, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path.with_suffix(".pt"))

    def waveforms(given: list[Tensor]) -> list[Tensor]:
        clips.extend(given)
        try:
            return encode_waveforms(given)
        finally:
            clips.clear()

    def encode(codes: list[Tensor]) -> list[Tensor]:
        if clips:
            for clip, code in zip(clips, codes, strict=True):
                write({"waveform": clip, "codes": code[0]})
        else:
            for code in codes:
                write({"frame": code.flatten()})
        return encode_tokens(codes)

    def embed(input_ids: Tensor, multimodal_embeddings: Any = None, is_multimodal: Tensor | None = None) -> Tensor:
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            parts = [multimodal_embeddings] if isinstance(multimodal_embeddings, Tensor) else multimodal_embeddings
            tokens = (input_ids == model._audio_token_id).sum()
            write({"prompt": torch.cat([part.flatten(0, -2) for part in parts]), "tokens": tokens})
        return embed_input_ids(
            input_ids=input_ids, multimodal_embeddings=multimodal_embeddings, is_multimodal=is_multimodal
        )

    def say(llm_hidden: Tensor, cfg_alpha: Tensor) -> Tensor:
        size = len(llm_hidden), acoustic.model_args.n_acoustic_codebook
        state = torch.get_rng_state()
        noise = torch.randn(*size, dtype=llm_hidden.dtype)  # what the model will draw
        torch.set_rng_state(state)
        said = forward(llm_hidden=llm_hidden, cfg_alpha=cfg_alpha)
        write({"hidden": llm_hidden, "noise": noise, "said": said})
        return said

    codec.encode_waveforms, codec.encode_tokens, model.embed_input_ids = waveforms, encode, embed
    acoustic.forward = say
