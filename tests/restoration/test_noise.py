from __future__ import annotations

import pytest
import torch

from bfr_core.damage.jpeg import through_jpeg
from bfr_core.damage.synthetic import degrade
from bfr_core.restoration.noise import (
    ALL_PATTERN,
    NO_PATTERN,
    read_coarse_grain,
    read_noise,
    share_without_blocks,
    share_without_pattern,
    tone_shares,
)
from bfr_core.restoration.pyramid import joined, padded, split
from tests.restoration.faces_in_photos import noise, sharp, soft


def test_bands_and_what_is_coarser_make_the_picture_again() -> None:
    image = sharp(64)
    bands = split(image, 3)
    assert [band.shape[-1] for band in bands] == [64, 32, 16]
    step = torch.zeros(1, 64, 64)
    step[:, 32, 32] = 1
    assert abs(float(joined(split(step, 3)).sum())) < 1e-4  # no band has a mean
    assert joined(split(torch.full((3, 64, 64), 0.4), 3)).abs().max() < 1e-6
    stripes = (torch.arange(64) % 2 - 0.5).expand(3, 64, 64)
    assert torch.allclose(split(stripes, 1)[0][..., 4:-4], stripes[..., 4:-4], atol=1e-6)  # all of it is in the finest
    assert padded(torch.rand(3, 61, 50), 3).shape == (3, 64, 56)


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_noise_is_read_off_and_detail_is_not_taken_for_it(sigma: float) -> None:
    white = split(noise(torch.zeros(3, 256, 256), sigma, 5), 3)
    found, with_detail = (read_noise((clean + noise(clean, sigma)).clamp(0, 1), 3) for clean in (soft(), sharp()))
    for band in range(3):
        expected = float(white[band].std())
        assert found.deviation(band) == pytest.approx(expected, rel=0.2, abs=0.001)
        assert expected * 0.8 < with_detail.deviation(band) < expected * 1.6 + 0.001
    assert read_noise(sharp(), 3).deviation(0) < 0.001 < sharp().sub(soft()).std()


def test_noise_has_the_colours_of_the_photo() -> None:
    grey = noise(torch.zeros(1, 320, 320), 0.04).expand(3, -1, -1)
    covariance = read_noise((soft() + grey).clamp(0, 1), 2).covariances[0].median(0).values
    correlation = covariance / covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
    assert correlation.min() > 0.95
    apart = read_noise((soft() + noise(soft(), 0.04)).clamp(0, 1), 2).covariances[0].median(0).values
    assert (apart - torch.diag(apart.diagonal())).abs().max() < 0.15 * apart.diagonal().max()


def test_noise_is_known_for_each_tone() -> None:
    """The lights twice as noisy as the shadows."""
    ramp = torch.linspace(0.1, 0.9, 320).expand(3, 320, 320)
    found = read_noise(ramp + noise(ramp, 0.02) * (0.5 + ramp), 1).variances(0)
    assert found[-1] / found[0] == pytest.approx((1.4 / 0.6) ** 2, rel=0.4)
    shares = tone_shares(torch.tensor([[[0.0, 0.1, 0.2, 0.55, 1.0]]]))
    assert torch.allclose(shares.sum(0), torch.ones(1, 5))
    assert torch.allclose(shares[:, 0, 3], torch.tensor([0, 0, 0.75, 0.25, 0]), atol=1e-5)


def test_blocks_are_told_from_detail() -> None:
    photo = sharp()
    assert read_noise(photo, 1).blocks < 0.2
    blocks = [read_noise(through_jpeg(photo[None], quality)[0], 1).blocks for quality in (95, 50, 10)]
    assert blocks == sorted(blocks) and blocks[0] < 0.5 < blocks[2]
    assert share_without_blocks(0.2) == 1 and 0 < share_without_blocks(0.8) < 1 and share_without_blocks(1.5) == 0
    assert read_noise(photo[:, :20, :20], 1).blocks == 0


def test_a_halftone_is_told_from_grain() -> None:
    photo = soft()
    assert read_noise((photo + noise(photo, 0.05)).clamp(0, 1), 1).pattern < NO_PATTERN
    assert read_noise(photo, 1).pattern < NO_PATTERN
    dots = degrade(photo[None], "halftone", torch.Generator().manual_seed(3)).lq[0]
    assert read_noise(dots, 1).pattern > ALL_PATTERN
    assert share_without_pattern(0.1) == 1 and share_without_pattern(0.5) == 0


def test_a_photo_too_small_or_flat_has_no_noise() -> None:
    assert read_noise(torch.rand(3, 6, 6), 2).deviation(0) == 0
    for side in (20, 38, 59, 61):
        assert read_noise(torch.rand(3, side, 2 * side), 3).pattern < NO_PATTERN
    assert read_noise(torch.zeros(3, 100, 100), 2).deviation(0) == 0
    assert read_coarse_grain(torch.rand(3, 32, 32), 400.0) == (0.0, 0.0, 0.0)
