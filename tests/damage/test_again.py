"""A damage that was measured on one face has, on another, the same blur and the same noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.damage.again import PATCH, FaceDamage, blur_between, noise_between, stretched, usual_power
from bfr_core.pixels import gaussian_blur


def picture(seed: int, size: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(1, 3, 16, 16, generator=generator), (size, size), mode="bicubic")
    fine = F.interpolate(torch.rand(1, 3, 64, 64, generator=generator), (size, size), mode="bicubic")
    return (0.2 + 0.6 * (0.7 * coarse + 0.3 * fine)).clamp(0, 1)[0]


def noise(sigma: float, blur: float = 0.0, seed: int = 9) -> Tensor:
    made = sigma * torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(seed))
    return gaussian_blur(made[None], blur)[0] if blur else made


@pytest.mark.parametrize("coarse", [0.0, 1.5], ids=["fine noise", "coarse noise"])
def test_noise_is_put_on_again_as_strong_and_as_coarse(coarse: float) -> None:
    clean, other = picture(0), picture(1)
    own = noise(0.2 if coarse else 0.06, coarse)
    lq = (clean + own).clamp(0, 1)
    damage = FaceDamage(torch.ones(1, 1), noise_between(lq, clean))
    drawn = damage.on(other, torch.Generator().manual_seed(0), 2) - other
    assert drawn.std() == pytest.approx(float(own.std()), rel=0.25)
    assert abs(float((drawn[0] * drawn[1]).mean()) / float(drawn.var())) < 0.1  # every draw is another
    assert abs(float((drawn[0] * own).mean()) / float(drawn.var())) < 0.1  # and none is the photo's own
    bands = [float(usual_power(x)[0, :4, :4].sum() / usual_power(x)[0].sum()) for x in (own, drawn[0])]
    assert bands[1] == pytest.approx(bands[0], rel=0.3)


def test_blur_is_put_on_again() -> None:
    clean, other = picture(0), picture(1)
    lq = gaussian_blur(clean[None], 2.0)[0]
    damage = FaceDamage(blur_between(lq, clean), noise_between(lq, clean))
    (again,) = damage.on(other, torch.Generator().manual_seed(0), 1)
    wanted = gaussian_blur(other[None], 2.0)[0]
    assert (again - wanted).abs().mean() < 0.3 * (other - wanted).abs().mean()


def test_without_damage_nothing_is_put_on() -> None:
    clean = picture(0)
    damage = FaceDamage(blur_between(clean, clean), noise_between(clean, clean))
    assert (damage.on(picture(1), torch.Generator().manual_seed(0), 1)[0] - picture(1)).abs().max() < 0.01


def test_what_differs_in_one_place_is_no_noise() -> None:
    """Another mouth is no damage: most of the picture has none of it."""
    clean = picture(0)
    other = clean.clone()
    other[:, 80:110, 40:90] = picture(5)[:, 80:110, 40:90]
    assert noise_between(clean, other).sum() < 0.05 * usual_power(clean).sum()


def test_a_spectrum_is_stretched_to_the_frequencies_of_rfft2() -> None:
    spectrum = torch.rand(3, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
    fine = stretched(spectrum, torch.Size((4 * PATCH, 4 * PATCH)))
    assert fine.shape == (3, 4 * PATCH, 2 * PATCH + 1)
    assert torch.allclose(fine[:, ::4, ::4][:, :, : PATCH // 2], spectrum[:, :, : PATCH // 2], atol=1e-5)
