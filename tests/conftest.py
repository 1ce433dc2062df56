"""Releases and clips that many tests share, made once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.releases import REAL, SMALL, TINY, random_codec, write_release

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def small_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("small"), random_codec(SMALL))


@pytest.fixture(scope="session")
def tiny_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("tiny"), random_codec(TINY))


@pytest.fixture(scope="session")
def real_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("real"), random_codec(REAL))


@pytest.fixture(scope="session")
def speech() -> Tensor:
    """A clip [1, 1, T] with the level and the slope of speech, of a length that is no whole number of patches."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 1, 48077, generator=generator).cumsum(-1)
    smooth = noise - torch.nn.functional.avg_pool1d(noise, 801, 1, 400, count_include_pad=False)
    return 0.1 * smooth / smooth.std()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small pieces of work are done sooner by one thread than handed out to several, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
