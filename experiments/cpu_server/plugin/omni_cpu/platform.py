"""The methods that vllm-omni needs of a platform and that vLLM's CPU platform lacks."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from vllm.platforms import cpu
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum


class CpuPlatform(OmniPlatform, cpu.CpuPlatform):
    _omni_enum = OmniPlatformEnum.OOT
    device_type = "cpu"

    @classmethod
    def get_omni_ar_worker_cls(cls) -> str:
        return "omni_cpu.workers.LanguageModelWorker"

    @classmethod
    def get_omni_generation_worker_cls(cls) -> str:
        return "omni_cpu.workers.DecoderWorker"

    @classmethod
    def get_default_stage_config_path(cls) -> str:
        return "vllm_omni/deploy"

    @classmethod
    def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def get_device_count(cls) -> int:
        return 1

    @classmethod
    def get_device_version(cls) -> str | None:
        return None

    @classmethod
    def get_free_memory(cls, device: Any = None) -> int:
        return psutil.virtual_memory().available

    @classmethod
    def get_device_memory(cls, device: Any = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        return False

    @classmethod
    def supports_talker_mtp_graph_capture(cls) -> bool:
        return False

    @classmethod
    def synchronize(cls) -> None:
        """On a CPU nothing runs asynchronously."""

    @classmethod
    def set_device_control_env_var(cls, devices: str | int | None) -> None:
        """All stages share the one device."""

    @classmethod
    def unset_device_control_env_var(cls) -> None:
        pass
