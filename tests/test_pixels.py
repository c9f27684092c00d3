"""Operations on pictures that every room needs: luma, resizing, blur, conversion to whole numbers."""

import pytest
import torch

from bfr_core.pixels import as_bytes, gaussian_blur, luma, resized, sampled_within
from tests.pretended_device import PretendedDevice


def test_luma_of_grey_is_itself_and_green_weighs_most():
    plane = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(luma(plane.expand(-1, 3, -1, -1)), plane, atol=1e-6)
    assert luma(torch.eye(3)[:, :, None, None]).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_whole_numbers_are_the_nearest_and_stay_within_a_byte():
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 1.2])
    assert as_bytes(values).tolist() == [0, 0, 0, 1, 128, 255, 255] and as_bytes(values).dtype == torch.uint8


@pytest.mark.parametrize(("edges", "of_scipy"), [("reflect", "mirror"), ("replicate", "nearest"), ("none", "mirror")])
def test_the_blur_is_that_of_scipy(edges, of_scipy):
    from scipy.ndimage import gaussian_filter

    image = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter(image.double().numpy(), (0, 0, 1.5, 1.5), mode=of_scipy, radius=(0, 0, 5, 5))
    expected = expected[:, :, 5:-5, 5:-5] if edges == "none" else expected
    assert abs(gaussian_blur(image, 1.5, 5, edges).numpy() - expected).max() < 1e-6
    assert torch.equal(gaussian_blur(image, 1.5), gaussian_blur(image, 1.5, 5)), "three sigma, rounded"


def test_a_picture_is_shrunk_without_aliasing_and_comes_back_itself_at_its_own_size():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 48, 64)
    assert resized(stripes, (48, 64)) is stripes
    small = resized(stripes, (12, 16))
    assert small.shape == (1, 3, 12, 16) and (small[..., 2:-2] - 0.5).abs().max() < 0.05
    assert resized(stripes, 32, "bilinear").shape == (1, 3, 32, 32)


def test_beyond_the_edge_lies_the_edge_on_apples_gpus_too():
    """PyTorch before 2.11 refuses padding by the border there."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 7, 5, generator=generator)
    grid = 3 * torch.rand(2, 9, 9, 2, generator=generator) - 1.5
    expected = sampled_within(image, grid)
    with PretendedDevice():
        found = sampled_within(image.to("mps"), grid.to("mps")).cpu()
    assert torch.allclose(found, expected, atol=1e-6)
