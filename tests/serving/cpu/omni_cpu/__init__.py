"""A platform for vllm-omni that has no GPU. vllm-omni brings platforms for accelerators only; this one joins what vLLM
has for CPUs with vllm-omni's own workers. Neither package is changed."""

from __future__ import annotations


def platform() -> str:
    """What the entry point `vllm_omni.platform_plugins` gives: the name of the platform's class."""
    return "omni_cpu.platform.CpuPlatform"
