"""A platform for vllm-omni without a GPU. vllm-omni has platforms only for accelerators; this one combines vLLM's code
for CPUs with vllm-omni's workers. It changes neither package."""

from __future__ import annotations


def platform() -> str:
    """The name of the platform's class, for the entry point `vllm_omni.platform_plugins`."""
    return "omni_cpu.platform.CpuPlatform"
