import pytest
import torch

from bfr_core.diffusion.low_pass import low_pass, with_low_band


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


@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (2, 4, 32, 32), (1, 16, 24, 32), (2, 16, 1, 16, 16), (1, 128, 8, 8)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_held_low_band_is_the_references_and_the_rest_stays(shape, factor):
    generator = torch.Generator().manual_seed(0)
    image, reference = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    held = with_low_band(image, reference, factor)
    assert (low_pass(held, factor) - low_pass(reference, factor)).abs().max() < 1e-5
    assert (with_low_band(held, reference, factor) - held).abs().max() < 1e-5, "it is a projection"
    assert (with_low_band(held, image, factor) - image).abs().max() < 1e-5, "only the low band was changed"


def test_holding_is_the_papers_step_repeated():
    generator = torch.Generator().manual_seed(0)
    image, reference = (torch.randn(1, 3, 32, 32, generator=generator) for _ in range(2))
    once = image - low_pass(image, 4) + low_pass(reference, 4)
    repeated = once
    for _ in range(100):
        repeated = repeated - low_pass(repeated, 4) + low_pass(reference, 4)
    held = with_low_band(image, reference, 4)
    assert (repeated - held).abs().max() < 1e-5
    assert (low_pass(once, 4) - low_pass(reference, 4)).abs().max() > 1e-2, "one step leaves a part"


def test_any_size_can_be_held_and_half_precision_stays_half():
    generator = torch.Generator().manual_seed(0)
    image, reference = (torch.randn(1, 4, 93, 125, generator=generator) for _ in range(2))
    held = with_low_band(image, reference, 2)
    assert held.shape == image.shape and (with_low_band(held, reference, 2) - held).abs().max() < 1e-5
    assert (held.mean() - reference.mean()).abs() < (held.mean() - image.mean()).abs()
    half = with_low_band(image.half(), reference, 2)
    assert half.dtype == torch.float16 and (half.float() - held).abs().max() < 0.02
    with pytest.raises(ValueError, match="factor is 0"):
        with_low_band(image, reference, 0)
