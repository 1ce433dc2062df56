"""Reading a release: the codec's tensors out of an 8 GB checkpoint without touching the language model.

The codec's modules carry the checkpoint's names, so a name is a prefix and a `state_dict` key:

    audio_tokenizer.{input_proj,encoder_blocks}.*            codec.encoder
    audio_tokenizer.{decoder_blocks,output_proj}.*           codec.decoder
    audio_tokenizer.quantizer.*                              codec.quantizer
    mm_audio_embeddings.audio_codebook_embeddings.…weight    codec.embedding_table
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codec.codec import Codec
from codec.config import CodecConfig, ReleaseError, read_params
from codec.encoder import Encoder

CODEC_PREFIX = "audio_tokenizer."
ENCODER_PREFIXES = (CODEC_PREFIX + "input_proj.", CODEC_PREFIX + "encoder_blocks.")
QUANTIZER_PREFIX = CODEC_PREFIX + "quantizer."
INDEX_NAME = "consolidated.safetensors.index.json"
EMBEDDING_NAME = "mm_audio_embeddings.audio_codebook_embeddings.embeddings.weight"


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
    with shapes_only():
        codec = Codec(config, has_encoder=has_encoder)
    expected = expected_tensors(codec)
    missing = sorted(set(expected) - set(names))
    if missing:
        raise ReleaseError(f"{folder} lacks {len(missing)} tensors of the codec, among them {listed(missing)}")
    tensors = read_tensors({name: files[name] for name in expected})
    wrong = wrong_shapes(tensors, expected)
    if wrong:
        raise ReleaseError(f"{folder}: tensors do not have the shapes params.json gives: {listed(wrong)}")
    for prefix, module in _modules(codec):
        state = {key: tensors.pop(prefix + key).to(device, dtype) for key in module.state_dict()}
        module.load_state_dict(state, assign=True)
    codec.embedding_table = tensors.pop(EMBEDDING_NAME).to(device, dtype)
    return codec.eval().requires_grad_(False)


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


def expected_tensors(codec: Codec) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of everything this codec holds."""
    shapes = {
        prefix + key: tuple(tensor.shape)
        for prefix, module in _modules(codec)
        for key, tensor in module.state_dict().items()
    }
    if codec.embedding_table is not None:
        shapes[EMBEDDING_NAME] = tuple(codec.embedding_table.shape)
    return shapes


def expected_encoder(config: CodecConfig) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of the encoder's tensors: 114 of them at the release's dimensions."""
    with shapes_only():
        encoder = Encoder(config)
    return {CODEC_PREFIX + key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it, over the files the server reads, a later one winning."""
    return {name: path for path in served_files(folder) for name in tensor_names(path)}


def served_files(folder: Path, apart_from: str = "") -> list[Path]:
    """The checkpoint's files as the server reads them: every `consolidated*.safetensors` in the order of their names,
    or those of them that the index file lists, where there is one."""
    paths = [path for path in sorted(folder.glob("consolidated*.safetensors")) if path.name != apart_from]
    index = read_index(folder)
    if index is not None:
        names = set(index["weight_map"].values()) - {apart_from}
        missing = sorted(names - {path.name for path in paths})
        if missing:
            todo = "get them again (an encoder's own is taken off the list by inject_encoder.py --remove)"
            raise ReleaseError(f"{folder / INDEX_NAME} lists files that are not there: {listed(missing)}: {todo}")
        paths = [path for path in paths if path.name in names]
    if not paths:
        raise ReleaseError(
            f"{folder} holds no consolidated*.safetensors: it is not the folder of a Voxtral TTS release"
        )
    return paths


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a checkpoint in several files, None where there is none. Its `weight_map` names each tensor's file,
    its `metadata` the `total_size` in bytes."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path} is not valid JSON ({error}): download it again") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ReleaseError(f"{path} holds no weight_map, which names the file of every tensor: download it again")
    return index


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file. Raises ReleaseError where it is truncated or none."""
    with _open(path) as file:
        return list(file.keys())


def read_tensors(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Reads tensor `name` from `files[name]`, every file opened once."""
    tensors = {}
    for path in sorted(set(files.values())):
        with _open(path) as file:
            for name in (name for name, where in files.items() if where == path):
                tensors[name] = file.get_tensor(name)
    return tensors


def wrong_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> list[str]:
    """A line for each tensor whose shape is not the expected one."""
    return [
        f"{name} is {list(tensors[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]


def codec_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of what an encoder was trained against: the quantizer and the decoder's last projection, given by
    checkpoint name, as bf16. Tells two codecs of the same dimensions apart."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith((QUANTIZER_PREFIX, CODEC_PREFIX + "output_proj.")):
            digest.update(name.encode())
            digest.update(tensors[name].to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def checkpoint_tensors(codec: Codec) -> dict[str, Tensor]:
    """Everything the codec holds by its checkpoint name, bf16 on the CPU, as a release stores it."""
    tensors = {
        prefix + key: tensor for prefix, module in _modules(codec) for key, tensor in module.state_dict().items()
    }
    if codec.embedding_table is not None:
        tensors[EMBEDDING_NAME] = codec.embedding_table
    return {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def save_encoder(path: Path, codec: Codec, metadata: Mapping[str, Any]) -> None:
    """Writes the codec's encoder: its tensors, BF16, named as in the checkpoint. The file's metadata holds the codec's
    configuration and fingerprint beside what is given."""
    everything = checkpoint_tensors(codec)
    tensors = {name: tensor for name, tensor in everything.items() if name.startswith(ENCODER_PREFIXES)}
    stated = {
        "format": "pt",
        "codec_config": json.dumps(asdict(codec.config)),
        "codec_fingerprint": codec_fingerprint(everything),
        **{key: json.dumps(value) for key, value in metadata.items()},
    }
    _write(path, tensors, stated)


def save_release(folder: Path, codec: Codec, params: Path) -> None:
    """Writes the codec as a release without encoder: `params.json`, a copy of `params`, and what of
    `consolidated.safetensors` is the codec's. There is no language model in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t for name, t in checkpoint_tensors(codec).items() if not name.startswith(ENCODER_PREFIXES)}
    _write(folder / "consolidated.safetensors", tensors, {"format": "pt"})
    shutil.copyfile(params, folder / "params.json")


def read_encoder(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """An encoder file's tensors and metadata. Raises ReleaseError where it is no safetensors file."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def listed(items: Iterable[str], limit: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    items = list(items)
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def _modules(codec: Codec) -> list[tuple[str, nn.Module]]:
    """Prefix and module: together they make the checkpoint's names."""
    modules = [(CODEC_PREFIX, codec.encoder), (CODEC_PREFIX, codec.decoder), (QUANTIZER_PREFIX, codec.quantizer)]
    return [(prefix, module) for prefix, module in modules if module is not None]


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()  # with the mode any new file gets: safetensors would make it readable for its owner alone
        mode = partial.stat().st_mode
        save_file(tensors, partial, metadata=metadata)
        partial.chmod(mode)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ReleaseError(f"{path} cannot be written ({error}): see to the disk; what was there is kept") from error


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ReleaseError(f"{path} does not exist") from None
    except SafetensorError as error:
        raise ReleaseError(f"{path} is truncated or no safetensors file ({error}): get it again") from error
