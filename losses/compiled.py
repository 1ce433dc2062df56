"""Elementwise functions as single passes over a GPU's memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled_on_gpu(function: Function) -> Function:
    """`function`, compiled by torch.compile where its first argument is on a GPU. It may change tensors in place."""

    @functools.wraps(function)
    def call(first: Tensor, *rest: Any) -> Any:
        return (_compiled(function) if first.is_cuda else function)(first, *rest)

    return cast(Function, call)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo.config as options  # takes a second, and a CPU does not need it

    # where it cannot compile, for want of a C compiler, PyTorch warns and runs the function as it is
    options.suppress_errors = True
    return torch.compile(function)
