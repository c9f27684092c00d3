import pytest
import torch

from bfr_core.diffusion.low_pass import low_pass


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_keeps_a_constant(factor):
    image = torch.full((2, 3, 32, 48), 0.37)
    assert (low_pass(image, factor) - 0.37).abs().max() < 1e-6


def test_is_linear():
    a, b = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mixed = low_pass(2 * a - 3 * b, 4)
    assert (mixed - (2 * low_pass(a, 4) - 3 * low_pass(b, 4))).abs().max() < 1e-5


def test_removes_what_is_finer_than_the_factor():
    stripes = torch.tensor([0.0, 1.0]).repeat(32).expand(1, 3, 64, 64)
    low = low_pass(stripes, 8)
    assert (low[..., 16:-16] - 0.5).abs().max() < 0.01


def test_factor_one_is_the_image_itself():
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (low_pass(image, 1) - image).abs().max() < 1e-6


def test_size_must_be_a_multiple():
    with pytest.raises(ValueError, match="factor is 5"):
        low_pass(torch.zeros(1, 3, 32, 32), 5)
