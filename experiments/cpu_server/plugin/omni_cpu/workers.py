"""The workers of the two stages: vllm-omni's model runners, based on vLLM's CPU runner instead of the GPU runner that
they extend."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from vllm.v1.worker import cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm_omni.worker.base import OmniGPUWorkerBase
from vllm_omni.worker.gpu_ar_model_runner import GPUARModelRunner
from vllm_omni.worker.gpu_generation_model_runner import GPUGenerationModelRunner
from vllm_omni.worker.mixins import OmniWorkerMixin

from omni_cpu import recorder


class LanguageModelRunner(GPUARModelRunner, CPUModelRunner):
    """Prompt -> codes. Because of the order of the bases, `super()` in vllm-omni's class is vLLM's CPU runner."""

    def capture_model(self) -> int:
        return 0  # bytes of CUDA graphs


class DecoderRunner(GPUGenerationModelRunner, CPUModelRunner):
    """Codes -> audio."""

    def capture_model(self) -> int:
        return 0


class _Worker(OmniWorkerMixin, cpu_worker.CPUWorker):
    model_runner_cls: type[CPUModelRunner]  # vllm-omni reads it before it starts a stage
    encoder_loaded = OmniGPUWorkerBase.encoder_loaded  # the server calls it before it accepts a ref_audio

    def init_device(self) -> None:
        self.use_v2_model_runner = False
        with patch.object(cpu_worker, "CPUModelRunner", self.model_runner_cls):
            super().init_device()


class LanguageModelWorker(_Worker):
    model_runner_cls = LanguageModelRunner

    def load_model(self, *arguments: Any, **named: Any) -> None:
        super().load_model(*arguments, **named)
        recorder.record(self.model_runner.model)


class DecoderWorker(_Worker):
    model_runner_cls = DecoderRunner
