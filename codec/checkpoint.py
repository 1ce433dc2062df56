"""Reading a release: the codec's tensors out of an 8 GB checkpoint without touching the language model.

The codec's modules carry the checkpoint's names, so a name is a prefix and a `state_dict` key:

    audio_tokenizer.{input_proj,encoder_blocks}.*            codec.encoder
    audio_tokenizer.{decoder_blocks,output_proj}.*           codec.decoder
    audio_tokenizer.quantizer.*                              codec.quantizer
    mm_audio_embeddings.audio_codebook_embeddings.…weight    codec.embedding_table
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codec.codec import Codec
from codec.config import CodecConfig, ReleaseError, read_params
from codec.encoder import Encoder
from codec.files import listed, open_tensors, shortened, tensor_files
from codec.tensors import (
    CODEC_PREFIX,
    EMBEDDING_NAME,
    ENCODER_PREFIXES,
    FINGERPRINTED,
    QUANTIZER_PREFIX,
    Shapes,
    expected_codec,
    expected_encoder,
    fingerprint,
)
from system.files import written_whole


def load_release(folder: str | Path, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu") -> Codec:
    """The codec of the release in `folder`, in evaluation mode, with its encoder if the release has one.

    In bfloat16 it computes as the server does; float32 is for training and for comparing. Raises ReleaseError
    where the folder is no release, a file is truncated, or tensors are missing or have other shapes than
    `params.json` says.
    """
    folder = Path(folder)
    config = CodecConfig.from_params(read_params(folder))
    files = tensor_files(folder)
    names = [name for name in files if name.startswith(CODEC_PREFIX) or name == EMBEDDING_NAME]
    has_encoder = any(name.startswith(ENCODER_PREFIXES) for name in names)
    expected = expected_codec(config) | (expected_encoder(config) if has_encoder else {})
    tensors = read_expected(folder, files, expected, "the codec")
    with shapes_only():
        codec = Codec(config, has_encoder=has_encoder)
    for prefix, module in _modules(codec):
        state = {key: tensors.pop(prefix + key).to(device, dtype) for key in module.state_dict()}
        module.load_state_dict(state, assign=True)
    codec.embedding_table = tensors.pop(EMBEDDING_NAME).to(device, dtype)
    return codec.eval().requires_grad_(False)


def read_expected(folder: Path, files: Mapping[str, Path], expected: Shapes, part: str) -> dict[str, Tensor]:
    """The `expected` tensors of a release, memory-mapped. `files` says in which file each tensor of the release is,
    `part` to what they belong. Raises ReleaseError if one is missing or has another shape."""
    missing = sorted(set(expected) - set(files))
    if missing:
        raise ReleaseError(f"{folder} lacks {len(missing)} tensors of {part}, among them {listed(missing)}")
    needed = {name: files[name] for name in expected}
    wrong = wrong_shapes(tensor_shapes(needed), expected)
    if wrong:
        raise ReleaseError(f"{folder}: tensors do not have the shapes params.json gives: {listed(wrong)}")
    return read_tensors(needed)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules built in here have names and shapes but no values: no memory is taken, nothing is initialised."""
    with torch.device("meta"), _GainWithoutValue():
        yield


class _GainWithoutValue(TorchFunctionMode):
    """Weight norm takes its gain from the weight; on the meta device that would import torch's compiler (1 s)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.norm_except_dim:
            weight = args[0]
            return weight.new_empty(weight.shape[:1] + (1,) * (weight.ndim - 1))
        return func(*args, **(kwargs or {}))


def read_tensors(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Reads tensor `name` from `files[name]`, every file opened once. Raises ReleaseError for a dtype that torch has
    not."""
    tensors = {}
    for path in sorted(set(files.values())):
        with open_tensors(path, "pt") as file:
            for name in (name for name, where in files.items() if where == path):
                tensors[name] = _read_tensor(file, name, path)
    return tensors


def _read_tensor(file: Any, name: str, path: Path) -> Tensor:
    """A tensor of an open file. Raises ReleaseError for a dtype that torch has not."""
    try:
        return file.get_tensor(name)
    except (SafetensorError, RuntimeError) as error:
        raise ReleaseError(f"{path}: {shortened(name)} cannot be read ({error}): get this file again") from error


def tensor_shapes(files: Mapping[str, Path]) -> Shapes:
    """The shape of tensor `name` in `files[name]`, from the files' headers."""
    shapes = {}
    for path in sorted(set(files.values())):
        with open_tensors(path) as file:
            for name in (name for name, where in files.items() if where == path):
                shapes[name] = tuple(file.get_slice(name).get_shape())
    return shapes


def wrong_shapes(shapes: Shapes, expected: Shapes) -> list[str]:
    """A line for each tensor whose shape is not the expected one."""
    return [
        f"{name} is {list(shapes[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]


def codec_fingerprint(codec: Codec) -> str:
    """The `fingerprint` of a codec, which tells it from others of the same dimensions."""
    tensors = checkpoint_tensors(codec, FINGERPRINTED)
    return fingerprint({name: (tensor.view(torch.uint8).numpy().data,) for name, tensor in tensors.items()})


def checkpoint_tensors(codec: Codec, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """What the codec holds by its checkpoint name, bf16 on the CPU, as a release stores it: all of it, or what begins
    with one of the prefixes."""
    tensors = {
        prefix + key: tensor for prefix, module in _modules(codec) for key, tensor in module.state_dict().items()
    }
    tensors[EMBEDDING_NAME] = codec.embedding_table
    return {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in tensors.items()
        if name.startswith(prefixes)
    }


def save_encoder(path: Path, codec: Codec, metadata: Mapping[str, Any]) -> None:
    """Writes the codec's encoder: its tensors, BF16, named as in the checkpoint. The file's metadata holds the codec's
    configuration and fingerprint beside what is given."""
    tensors = checkpoint_tensors(codec, ENCODER_PREFIXES)
    stated = {
        "format": "pt",
        "codec_config": json.dumps(asdict(codec.config)),
        "codec_fingerprint": codec_fingerprint(codec),
        **{key: json.dumps(value) for key, value in metadata.items()},
    }
    write_tensors(path, tensors, stated)


def save_release(folder: Path, codec: Codec, params: Path) -> None:
    """Writes the codec as a release without encoder: `params.json`, a copy of `params`, and what of
    `consolidated.safetensors` is the codec's. There is no language model in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t for name, t in checkpoint_tensors(codec).items() if not name.startswith(ENCODER_PREFIXES)}
    write_tensors(folder / "consolidated.safetensors", tensors, {"format": "pt"})
    with written_whole(folder / "params.json") as partial:
        shutil.copyfile(params, partial)


def read_training(path: Path) -> dict[str, float]:
    """How long an encoder was trained, where its file says so: `step`, and `audio_seconds` of training audio. Raises
    ReleaseError where what it says is no number."""
    with open_tensors(path) as file:
        stated = file.metadata() or {}
    try:
        return {name: float(stated[name]) for name in ("step", "audio_seconds") if name in stated}
    except ValueError as error:
        raise ReleaseError(f"{path}: its metadata has a step or audio_seconds that is no number ({error})") from error


def with_encoder(codec: Codec, path: Path) -> Codec:
    """Gives a codec the encoder in a file, in the codec's dtype and on its device. Raises ReleaseError where the file
    holds none for these dimensions, or says that it was trained against another codec."""
    expected = expected_encoder(codec.config)
    with open_tensors(path, "pt") as file:
        missing = sorted(set(expected) - set(file.keys()))
        if missing:
            raise ReleaseError(f"{path} lacks {len(missing)} tensors of an encoder, among them {listed(missing)}")
        wrong = wrong_shapes({name: tuple(file.get_slice(name).get_shape()) for name in expected}, expected)
        if wrong:
            raise ReleaseError(f"{path} is no encoder for this release: {listed(wrong)}")
        stated, actual = (file.metadata() or {}).get("codec_fingerprint"), codec_fingerprint(codec)
        if stated is not None and stated != actual:
            raise ReleaseError(
                f"{path} was trained against another codec (fingerprint {stated}, the release's {actual})"
            )
        tensors = {name: _read_tensor(file, name, path) for name in expected}
    device = codec.device
    with shapes_only():
        codec.encoder = Encoder(codec.config)
    state = {name.removeprefix(CODEC_PREFIX): tensors[name].to(device, codec.dtype) for name in expected}
    codec.encoder.load_state_dict(state, assign=True)
    codec.encoder.eval().requires_grad_(False)
    return codec


def _modules(codec: Codec) -> list[tuple[str, nn.Module]]:
    """Prefix and module: together they make the checkpoint's names."""
    modules = [(CODEC_PREFIX, codec.encoder), (CODEC_PREFIX, codec.decoder), (QUANTIZER_PREFIX, codec.quantizer)]
    return [(prefix, module) for prefix, module in modules if module is not None]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all. Raises ReleaseError where it cannot be written."""
    try:
        with written_whole(path) as partial:
            partial.touch()  # with the mode any new file gets: safetensors would make it readable for its owner alone
            mode = partial.stat().st_mode
            save_file(tensors, partial, metadata=metadata)
            partial.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise ReleaseError(f"{path} cannot be written ({error}): see to the disk; what was there is kept") from error
