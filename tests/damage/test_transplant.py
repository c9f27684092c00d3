"""Damage taken from one face and put on another."""

import pytest
import torch

from bfr_core.damage.transplant import damage_filter, filtered, transplanted, without_sharpening


def picture(seed, side=64):
    """Something with content at every scale."""
    generator = torch.Generator().manual_seed(seed)
    scales = [torch.rand(1, 3, side // n, side // n, generator=generator) for n in (1, 2, 4, 16)]
    return sum(torch.nn.functional.interpolate(x, (side, side), mode="bilinear")[0] for x in scales) / 4


def blur(length):
    kernel = torch.zeros(7, 7)
    kernel[3, 3 - length // 2 : 3 + length // 2 + 1] = 1
    return kernel / kernel.sum()


def test_a_filter_is_found_again():
    target = picture(0, 128)
    found = damage_filter(target, filtered(target, blur(5)))
    assert found.shape == (15, 15) and found.sum() == pytest.approx(1, abs=0.05)
    assert (found[4:11, 4:11] - blur(5)).abs().max() < 0.05


def test_what_sharpens_is_taken_out_of_a_filter():
    soft, nothing = blur(5), blur(1)
    assert (without_sharpening(soft) - soft).abs().max() < 1e-6
    assert (without_sharpening(2 * nothing - soft) - nothing).abs().max() < 0.1  # at no frequency below 1
    assert torch.fft.fft2(without_sharpening(3 * nothing - 2 * soft)).abs().max() < 1 + 1e-6


def test_a_filter_goes_one_way():
    """Convolution, not correlation: a picture moved to the right is moved to the right again."""
    target = picture(0, 128)
    found = damage_filter(target, target.roll(2, 2))
    moved = filtered(picture(1, 128), found)
    assert (moved - picture(1, 128).roll(2, 2))[:, 10:-10, 10:-10].abs().mean() < 0.02


def test_noise_leaves_the_filter_alone():
    target = picture(0, 128)
    noise = 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    found = damage_filter(target, target + noise)
    assert found[7, 7] == pytest.approx(1, abs=0.1)


def test_put_back_on_its_own_target_the_damage_is_what_it_was():
    lq, target = picture(1), picture(0)
    assert torch.allclose(transplanted(target, lq, target), lq, atol=1e-5)


def test_what_was_done_to_one_face_is_done_to_the_other():
    target, other = picture(0, 128), picture(1, 128)
    noise = 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    wanted = (filtered(other, blur(5)) + noise).clamp(0, 1)
    got = transplanted(other, filtered(target, blur(5)) + noise, target)
    assert (got - wanted).abs().mean() < 0.01 < 0.3 * (other - wanted).abs().mean()


def test_wide_filters_go_through_their_spectra_with_the_same_result():
    kernel = torch.rand(31, 31, generator=torch.Generator().manual_seed(3))
    kernel /= kernel.sum()
    for height, width in ((100, 77), (512, 512)):
        image = picture(0, 512)[:, :height, :width]
        padded = torch.nn.functional.pad(image[:, None], (15,) * 4, mode="replicate")
        direct = torch.nn.functional.conv2d(padded, kernel.flip(0, 1)[None, None])[:, 0]
        assert (filtered(image, kernel) - direct).abs().max() < 1e-5


def test_narrow_filters_are_applied_pixel_by_pixel():
    """At 128 x 128, where figures were measured, nothing may change by a bit."""
    image, kernel = picture(0, 128), damage_filter(picture(0, 128), picture(1, 128))
    padded = torch.nn.functional.pad(image[:, None], (7,) * 4, mode="replicate")
    assert torch.equal(filtered(image, kernel), torch.nn.functional.conv2d(padded, kernel.flip(0, 1)[None, None])[:, 0])


def test_a_filter_that_is_known_need_not_be_found_again():
    target, lq, clean = (picture(i, 128) for i in range(3))
    assert torch.equal(transplanted(target, lq, clean, damage_filter(clean, lq)), transplanted(target, lq, clean))
    assert not torch.equal(transplanted(target, lq, clean, blur(5)), transplanted(target, lq, clean))


def test_flat_pictures_are_no_error():
    flat = torch.full((3, 64, 64), 0.5)
    assert torch.isfinite(transplanted(picture(0), flat, flat)).all()
