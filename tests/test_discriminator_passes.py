"""The discriminator's passes between convolutions: a GPU's kernels against the code that a CPU runs."""

from __future__ import annotations

import pytest
import torch

from losses import discriminator_passes as plain

kernels = pytest.importorskip("losses.discriminator_kernels", reason="needs Triton", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where conftest.py lets Triton interpret the kernels
FRAMES, WIDTH, BINS = 5, 24, 21  # of 2 clips; what is behind the first BINS does not count


@pytest.fixture(
    params=[(torch.float32, 4), (torch.bfloat16, 5)], ids=["float32", "bfloat16, an odd number of channels"]
)
def outputs(request: pytest.FixtureRequest) -> torch.Tensor:
    """A convolution's output for originals and reconstructions."""
    dtype, channels = request.param
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2 * 2 * FRAMES, WIDTH, channels, generator=generator).to(DEVICE, dtype)


def test_a_kernel_activates_and_compares_as_the_plain_code(outputs: torch.Tensor) -> None:
    bias = torch.linspace(-0.5, 0.5, outputs.shape[-1], device=DEVICE)
    expected, found = outputs.clone(), outputs.clone()
    with plain.unfused():
        expected_sums = plain.activate_and_compare(expected, bias, BINS)
    found_sums = kernels.activate_and_compare(found, bias, BINS)
    rounding = torch.finfo(outputs.dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * rounding, atol=rounding)
    assert not found[:, BINS:].any()
    torch.testing.assert_close(torch.stack(found_sums), torch.stack(expected_sums), rtol=2 * rounding, atol=0)


def test_a_kernel_takes_gradients_through_the_activation_as_the_plain_code(outputs: torch.Tensor) -> None:
    features = outputs.clone()
    features[: len(features) // 4] = features[len(features) // 2 : -len(features) // 4]  # the first clips are equal
    coefficient = torch.tensor(0.1, device=DEVICE)
    gradient = torch.randn(3 * 2 * FRAMES, *features.shape[1:], generator=torch.Generator().manual_seed(1))
    expected, found = (gradient.to(features).clone() for _ in range(2))
    with plain.unfused():
        expected_bias = plain.through_activation(expected, features, coefficient, BINS)
    found_bias = kernels.through_activation(found, features, coefficient, BINS)
    rounding = torch.finfo(features.dtype).eps
    torch.testing.assert_close(found, expected, rtol=2 * rounding, atol=0)
    assert not found[:, BINS:].any()
    torch.testing.assert_close(found_bias, expected_bias, rtol=1e-5, atol=1e-5)


def test_without_a_compiler_a_warning_says_so_and_the_plain_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(kernels, "prepare", refuse)
    plain.fast_kernels.cache_clear()
    try:
        with pytest.warns(UserWarning, match="slower here: Failed to find C compiler"):
            assert plain.fast_kernels() is None
    finally:
        plain.fast_kernels.cache_clear()
