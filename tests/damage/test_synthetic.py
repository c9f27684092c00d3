import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bfr_core.damage.synthetic import (
    CAMERA_TO_SRGB,
    DAMAGES,
    _bayer,
    _demosaic,
    _gaussian_kernel,
    _to_display,
    _to_linear,
    convolved,
    degrade,
    disc_kernel,
    motion_kernel,
)

KINDS = list(DAMAGES)
# Lowest and highest PSNR (dB) that a single 128-pixel face may come to; a batch's mean lies well inside.
PSNR = {
    "blind": (21, 38),
    "sensor": (17.5, 27),
    "motion_jpeg": (21, 34),
    "soft_focus": (20, 36),
    "heavy_jpeg": (20, 34),
    "halftone": (15.5, 26),
    "film_grain": (17.5, 27),
    "camera_x4": (14, 27),
    "camera_x8": (11, 22),
    "camera_x4_iso1500": (13, 25),
    "camera_x4_iso3000": (13, 23),
    "camera_x8_iso1500": (11, 23),
    "camera_x8_iso3000": (11, 22),
    "camera_x4_iso1500_pixels": (17, 28),
    "camera_x4_iso3000_pixels": (15, 24),
    "camera_x8_iso1500_pixels": (16, 26),
    "camera_x8_iso3000_pixels": (14, 23),
    "blind_twice": (18, 34),
    "shared_online": (17, 32),
    "video": (22, 38),
    "faded": (14, 33),
    "smeared": (21, 36),
    "tape": (17, 30),
    "screen": (17, 30),
}
WHOLE = ("quality", "shift", "factor", "crf", "down", "right")  # drawn as whole numbers, or not drawn


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_face(size: int = 128) -> Tensor:
    """A face of ellipses on a shaded ground, with eyes, mouth and hair texture: (1, 3, size, size)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")

    def disc(cx: float, cy: float, rx: float, ry: float) -> Tensor:
        return torch.sigmoid((1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2) * 12)

    picture = torch.stack([0.35 + 0.1 * x, 0.45 + 0.1 * y, 0.55 - 0.05 * x])
    for mask, colour in (
        (disc(0, -0.1, 0.7, 0.9) * (0.8 + 0.2 * torch.sin(x * 60 + y * 9)), (0.25, 0.17, 0.12)),
        (disc(0, 0.05, 0.5, 0.68), (0.85, 0.66, 0.55)),
        (disc(-0.2, -0.08, 0.1, 0.05) + disc(0.2, -0.08, 0.1, 0.05), (0.95, 0.95, 0.93)),
        (disc(-0.2, -0.08, 0.04, 0.05) + disc(0.2, -0.08, 0.04, 0.05), (0.1, 0.08, 0.07)),
        (disc(0, 0.4, 0.2, 0.05), (0.7, 0.3, 0.3)),
    ):
        mask = mask.clamp(0, 1)
        picture = picture * (1 - mask) + mask * torch.tensor(colour)[:, None, None]
    return picture[None].clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_shape_range_and_type(kind: str):
    hq = drawn_face().expand(2, -1, -1, -1)
    before = hq.clone()
    result = degrade(hq, kind, seeded(0))
    assert result.lq.shape == hq.shape and result.lq.dtype == torch.float32 and len(result.parameters) == 2
    assert result.lq.min() >= 0 and result.lq.max() <= 1 and torch.equal(hq, before)
    assert degrade(hq.double(), kind, seeded(0)).lq.dtype == torch.float64
    assert json.loads(json.dumps(result.parameters)) == result.parameters
    assert all(math.isfinite(value) for drawn in result.parameters for value in drawn.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_every_pixel(kind: str):
    hq = drawn_face()
    first, again, other = (degrade(hq, kind, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.lq, again.lq) and first.parameters == again.parameters
    assert not torch.equal(first.lq, other.lq) and first.parameters != other.parameters


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_drawn_from_the_global_generator(kind: str):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    degrade(drawn_face(), kind, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_are_damaged_each_in_its_own_way(kind: str):
    hq = drawn_face().expand(3, -1, -1, -1)
    result = degrade(hq, kind, seeded(2))
    assert not torch.equal(result.lq[0], result.lq[1])
    assert all(
        result.parameters[0][name] != result.parameters[1][name]
        for name in result.parameters[0]
        if not name.startswith(WHOLE) and not ("_iso" in kind and name == "iso")
    )
    # One generator is used in order: the batch equals its images one by one, and later ones do not change earlier.
    generator = seeded(2)
    one_by_one = [degrade(hq[i : i + 1], kind, generator).lq for i in range(3)]
    assert torch.equal(torch.cat(one_by_one), result.lq)


def test_the_iso_of_a_set_is_kept_and_makes_the_noise():
    hq = drawn_face()
    made = {iso: degrade(hq, f"camera_x4_iso{iso}", seeded(5)) for iso in (1500, 3000)}
    assert {iso: d.parameters[0]["iso"] for iso, d in made.items()} == {1500: 1500, 3000: 3000}
    assert psnr(made[1500].lq, hq) > psnr(made[3000].lq, hq) + 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_clear_and_leaves_the_face(kind: str):
    hq = drawn_face().expand(12, -1, -1, -1)
    values = psnr(degrade(hq, kind, seeded(3)).lq, hq)
    low, high = PSNR[kind]
    assert low < values.min() and values.max() < high, values


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_real_faces(shared: Path, kind: str):
    from bfr_core.faces.align import Face, crop_face
    from bfr_core.files.photos import read_image

    landmarks = json.loads((shared / "portraits" / "landmarks.json").read_text())
    names = sorted(landmarks)[::60]
    hq = torch.stack(
        [
            crop_face(read_image(shared / "portraits" / name), Face(np.array(landmarks[name]["landmarks"])), 128)
            for name in names
        ]
    )
    lq = degrade(hq, kind, seeded(4)).lq
    values = psnr(lq, hq)
    low, high = PSNR[kind]
    assert low < values.min() and values.max() < high, values
    # No other damage makes the faces lighter or darker as a whole.
    assert kind in ("faded", "screen") or (lq - hq).mean().abs() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_strength_orders_the_damage(kind: str):
    hq = drawn_face()
    none, half, usual, double = (psnr(degrade(hq, kind, seeded(7), s).lq, hq).item() for s in (0, 0.5, 1, 2))
    assert none > half > usual > double
    assert none > 28


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 8), (33, 70), (256, 256)])
def test_any_size(kind: str, shape: tuple[int, int]):
    hq = torch.rand(1, 3, *shape, generator=seeded(0))
    assert degrade(hq, kind, seeded(0)).lq.shape == hq.shape
    assert degrade(hq[:0], kind, seeded(0)).lq.shape == (0, 3, *shape)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_picture_of_a_few_pixels_can_be_passed_around(side: int):
    hq = torch.rand(1, 3, 8, side, generator=seeded(0))
    for strength in (1.0, 1.5):
        assert degrade(hq, "shared_online", seeded(0), strength).lq.shape == hq.shape


@pytest.mark.parametrize("kind", ["blind", "motion_jpeg", "halftone", "film_grain"])
def test_damage_grows_with_the_picture(kind: str):
    at_128 = psnr(degrade(drawn_face(128).expand(6, -1, -1, -1), kind, seeded(8)).lq, drawn_face(128)).mean()
    at_256 = psnr(degrade(drawn_face(256).expand(6, -1, -1, -1), kind, seeded(8)).lq, drawn_face(256)).mean()
    assert abs(at_128 - at_256) < 3.5


def test_errors():
    with pytest.raises(ValueError, match="unknown damage 'rain'; use one of blind, sensor, motion_jpeg, soft_focus"):
        degrade(drawn_face(), "rain", seeded(0))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\), not \(3, 8, 8\)"):
        degrade(torch.zeros(3, 8, 8), "blind", seeded(0))
    for strength in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="strength"):
            degrade(drawn_face(), "blind", seeded(0), strength)


# ---------------------------------------------------------------- the parts


def test_light_and_display_are_inverse():
    values = torch.linspace(0, 1, 256)
    torch.testing.assert_close(_to_display(_to_linear(values)), values, atol=1e-5, rtol=0)
    assert _to_linear(torch.tensor(0.5)).item() == pytest.approx(0.21404, abs=1e-4)
    torch.testing.assert_close(CAMERA_TO_SRGB.sum(1), torch.ones(3))


def test_demosaic_keeps_a_flat_colour_and_a_ramp():
    flat = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 9, 10)
    torch.testing.assert_close(_demosaic(flat * _bayer(flat)), flat)
    ramp = torch.linspace(0, 1, 12)[None, None].expand(3, 10, 12)
    torch.testing.assert_close(_demosaic(ramp * _bayer(ramp))[:, 1:-1, 1:-1], ramp[:, 1:-1, 1:-1])


def test_sensor_noise_is_coloured_wide_and_stronger_in_the_dark():
    hq = torch.cat([torch.full((1, 3, 128, 64), 0.15), torch.full((1, 3, 128, 64), 0.85)], 3)
    error = degrade(hq, "sensor", seeded(1)).lq[0] - hq[0]
    dark, light = error[:, :, 4:60], error[:, :, 68:124]
    assert dark.std() > 1.2 * light.std()
    middle = light - light.mean((1, 2), keepdim=True)
    neighbours = (middle[:, :, 1:] * middle[:, :, :-1]).mean() / middle.square().mean()
    assert neighbours > 0.2  # demosaicing spreads the noise
    assert (middle[0] - middle[1]).std() > 0.5 * middle[1].std()  # it is not grey


def test_a_disc_has_its_radius():
    line = torch.arange(-6.0, 7)
    for radius in (1.5, 3.0, 4.5):
        kernel = disc_kernel(radius)
        offsets = line[(13 - len(kernel)) // 2 :][: len(kernel)]
        mean_square = (kernel * (offsets[:, None] ** 2 + offsets**2)).sum()
        assert mean_square == pytest.approx(radius**2 / 2, rel=0.12)  # of a disc, and what its soft rim adds
        assert kernel.sum() == pytest.approx(1) and kernel[len(kernel) // 2, 0] == kernel[0, len(kernel) // 2]


def test_motion_kernel_is_as_long_as_asked_and_points_where_asked():
    kernel = motion_kernel(9.0, math.pi / 4, 0.0)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5)
    line = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    assert (kernel * x).sum().abs() < 0.05 and (kernel * y).sum().abs() < 0.05
    assert (kernel * x * y).sum() > 0.9 * (kernel * x * x).sum() - 0.5  # along the diagonal
    spread = (kernel * (x**2 + y**2)).sum()
    assert spread.item() == pytest.approx(81 / 12, abs=0.8)  # variance of a line of length 9, plus the tent's


def test_gaussian_kernel_has_its_sigmas():
    kernel = _gaussian_kernel(2.0, 1.0, 0.0)
    line = torch.arange(kernel.shape[0]) - kernel.shape[0] // 2
    assert (kernel.sum(0) * line**2).sum().sqrt().item() == pytest.approx(2, abs=0.1)
    assert (kernel.sum(1) * line**2).sum().sqrt().item() == pytest.approx(1, abs=0.05)
    flat = torch.full((3, 5, 6), 0.3)
    torch.testing.assert_close(convolved(flat, kernel), flat)


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_halftone_dots_cover_what_the_tone_asks_for(level: float):
    hq = torch.full((1, 3, 96, 96), level)
    result = degrade(hq, "halftone", seeded(0))
    paper = torch.tensor([0.3, 0.6, 1.0]) * result.parameters[0]["paper"]
    tone = (result.lq[0].mean((1, 2)) / (1 - paper)).mean().item()
    assert tone == pytest.approx(level, abs=0.06)
    if 0.2 < level < 0.8:
        assert result.lq[0].std() > 0.05  # and it is dots, not a flat tone


def test_grain_is_strongest_in_the_mid_tones():
    hq = torch.cat([torch.full((1, 3, 96, 48), value) for value in (0.08, 0.5)], 3)
    error = degrade(hq, "film_grain", seeded(0)).lq[0] - hq[0]
    assert error[:, :, 52:].std() > 1.15 * error[:, :, :44].std()


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_pictures_of_one_row_or_column_get_numbers(shape):
    for kind in DAMAGES:
        made = degrade(torch.rand(1, 3, *shape), kind, torch.Generator().manual_seed(0)).lq
        assert torch.isfinite(made).all(), kind
