"""The server's own codec class, unmodified, from the installed package `vllm-omni`, without vLLM and a GPU.

Its two source files import names from vLLM (and, through their packages' `__init__`, all of vLLM) that computing codes
does not need. If vLLM is not installed, placeholder modules provide those names while the files are loaded under their
real module names. The files are not changed.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from codec.checkpoint import read_tensors
from codec.config import read_params
from codec.files import tensor_files
from codec.tensors import CODEC_PREFIX, EMBEDDING_NAME

PLATFORM = SimpleNamespace(device_type="cpu")  # stands in for what the server knows of its machine
PACKAGE = "vllm_omni.model_executor.models.voxtral_tts"


class _Anything(type):
    """The metaclass of a class that works as a base class, a decorator or an annotation."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: lambda target: target

    def __getitem__(cls, item: Any) -> Any:
        return cls


class _Placeholder(ModuleType):
    """A module that has a placeholder class for every name."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


def _copy_weight(parameter: Tensor, loaded: Tensor) -> None:
    """Does what vLLM's default weight loader does: checks the size and copies the values."""
    if parameter.size() != loaded.size():
        raise ValueError(f"{list(loaded.shape)} does not fit {list(parameter.shape)}")
    parameter.data.copy_(loaded)


def _add_placeholder(name: str, **attributes: Any) -> None:
    """Puts a placeholder module with these attributes into sys.modules."""
    module = _Placeholder(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


def codec_class() -> Any:
    """`VoxtralTTSAudioTokenizer` of the installed vllm-omni."""
    target = f"{PACKAGE}.voxtral_tts_audio_tokenizer"
    if target not in sys.modules:
        if importlib.util.find_spec("vllm") is None:
            for name in (
                "vllm",
                "vllm.config",
                "vllm.inputs",
                "vllm.model_executor",
                "vllm.model_executor.model_loader",
                "vllm.model_executor.models",
                "vllm.model_executor.models.interfaces",
                "vllm.model_executor.models.utils",
                "vllm.multimodal",
                "vllm.multimodal.inputs",
                "vllm.multimodal.parse",
                "vllm.multimodal.processing",
                "vllm.multimodal.processing.processor",
                "vllm.sequence",
                "vllm.tokenizers",
                "vllm.tokenizers.mistral",
            ):
                _add_placeholder(name)
            _add_placeholder("vllm.logger", init_logger=logging.getLogger)
            _add_placeholder("vllm.model_executor.model_loader.weight_utils", default_weight_loader=_copy_weight)
        parts = PACKAGE.split(".")
        for depth in range(1, len(parts) + 1):
            _add_placeholder(".".join(parts[:depth]))
        _add_placeholder("vllm_omni.quantization")
        _add_placeholder("vllm_omni.quantization.component_config")
        _add_placeholder("vllm_omni.platforms", current_omni_platform=PLATFORM)
        source = Path(str(distribution("vllm-omni").locate_file(PACKAGE.replace(".", "/"))))
        for leaf in ("voxtral_tts_audio_generation", "voxtral_tts_audio_tokenizer"):
            spec = importlib.util.spec_from_file_location(f"{PACKAGE}.{leaf}", source / f"{leaf}.py")
            if spec is None or spec.loader is None:
                raise ImportError(f"{source}/{leaf}.py cannot be loaded")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
    return sys.modules[target].VoxtralTTSAudioTokenizer


def load_server_codec(folder: Path, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Any:
    """The server's codec with the release's weights, built as the server builds it: with `dtype` as the default dtype,
    and every tensor passed to its own `load_weight`. The quantizer's buffers keep the file's dtype, bf16, unless
    `dtype` is float32. The server's class computes on one kind of device in a process: the last one loaded for."""
    PLATFORM.device_type = device
    params = read_params(folder)
    audio = {
        "codec_args": params["multimodal"]["audio_tokenizer_args"],
        "audio_model_args": params["multimodal"]["audio_model_args"],
    }
    hf_config = SimpleNamespace(audio_config=audio, text_config=SimpleNamespace(hidden_size=params["dim"]))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        codec = codec_class()(vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config)))
    finally:
        torch.set_default_dtype(before)
    files = tensor_files(folder)
    wanted = {name: path for name, path in files.items() if name.startswith(CODEC_PREFIX) or name == EMBEDDING_NAME}
    for name, tensor in read_tensors(wanted).items():
        if dtype == torch.float32 and "quantizer" in name:
            tensor = tensor.float()
        if name == EMBEDDING_NAME:
            name = "audio_token_embedding.embeddings.weight"
        codec.load_weight((name.removeprefix(CODEC_PREFIX), tensor))
    return codec.eval().requires_grad_(False).to(device)
