"""Measures: against scikit-image, by hand, and whether they notice what they are there to notice."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.files.photos import list_images, read_image
from bfr_core.metrics import measures as metrics


def leaves(count: int, seed: int, size: int = 64) -> Tensor:
    """Pictures of overlapping shaded discs: edges, flat parts and texture of every scale, as photographs have."""
    draw = np.random.RandomState(seed)
    y, x = np.mgrid[:size, :size]
    pictures = []
    for _ in range(count):
        picture = np.full((3, size, size), 0.5)
        for _ in range(60):
            radius = 2 + 16 * draw.rand() ** 3
            inside = np.hypot(x - draw.rand() * size, y - draw.rand() * size) < radius
            shade = draw.rand(3, 1) + 0.1 * draw.randn() * np.sin(x[inside] * draw.rand() * 2)
            picture[:, inside] = shade
        pictures.append(picture)
    images = torch.from_numpy(np.stack(pictures)).float().clamp(0, 1)
    return blurred(images, 0.6)


def blurred(images: Tensor, sigma: float) -> Tensor:
    return images - metrics.high_band(images, sigma)


def over_smoothed(images: Tensor, share: float) -> Tensor:
    """A share of the high band taken away, as a network that was tuned on averages does."""
    return images - share * metrics.high_band(images)


def noisy(images: Tensor, sigma: float) -> Tensor:
    return (images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)


def screened(images: Tensor, share: float) -> Tensor:
    """A share of a 45 degree halftone screen."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in images.shape[-2:]), indexing="ij")
    screen = (torch.cos(2 * math.pi * (x + y) / 6) + torch.cos(2 * math.pi * (x - y) / 6)) / 4 + 0.5
    return images + share * ((images > screen).float() - images)


WORSE_AND_WORSE = {
    "blurred": (blurred, (0.7, 1.0, 1.5, 2.5)),
    "over-smoothed": (over_smoothed, (0.3, 0.5, 0.75, 1.0)),
    "noisy": (noisy, (0.06, 0.12, 0.2)),
    "screened": (screened, (0.15, 0.3, 0.6)),
}


def test_psnr_by_hand():
    hq = torch.full((2, 3, 8, 8), 0.5)
    restored = hq.clone()
    restored[0] += 0.1
    assert metrics.psnr(restored, hq).tolist() == pytest.approx([20.0, metrics.PSNR_CAP], abs=1e-5)


def test_psnr_after_affine_fit_forgives_tone_and_nothing_else():
    hq = leaves(3, seed=6) * 0.5 + 0.2
    faded = hq * torch.tensor([0.6, 0.7, 0.8]).view(3, 1, 1) + 0.1
    assert (metrics.psnr_after_affine_fit(faded, hq) > 90).all() and (metrics.psnr(faded, hq) < 27).all()
    rough = noisy(hq, 0.02)
    gained = metrics.psnr_after_affine_fit(rough, hq) - metrics.psnr(rough, hq)
    assert (gained >= 0).all() and (gained < 0.5).all()
    flat = torch.full_like(hq, 0.5)
    assert torch.isfinite(metrics.psnr_after_affine_fit(flat, hq)).all()


def test_values_outside_the_range_count_as_a_file_would_hold_them():
    hq = torch.ones(1, 3, 16, 16)
    assert metrics.psnr(hq + 0.3, hq).item() == metrics.PSNR_CAP


@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_ssim_and_psnr_are_those_of_scikit_image(size):
    reference = pytest.importorskip("skimage.metrics")
    hq = leaves(3, seed=0)[..., : size[0], : size[1]]
    restored = noisy(blurred(hq, 1.2), 0.05)
    ours, our_psnr = metrics.ssim(restored, hq), metrics.psnr(restored, hq)
    for i in range(3):
        a, b = (x[i].permute(1, 2, 0).double().numpy() for x in (restored, hq))
        theirs = reference.structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ours[i].item() == pytest.approx(theirs, abs=1e-6)
        assert our_psnr[i].item() == pytest.approx(reference.peak_signal_noise_ratio(b, a, data_range=1), abs=1e-6)


def test_high_band_is_that_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    image = leaves(1, seed=1)
    theirs = image[0].numpy() - ndimage.gaussian_filter(image[0].numpy(), (0, 1.5, 1.5), mode="nearest", truncate=4)
    assert np.abs(metrics.high_band(image)[0].numpy() - theirs).max() < 1e-5


def test_high_band_measures_know_less_more_and_other_detail():
    hq = leaves(4, seed=2) * 0.5 + 0.25
    energy, correlation = metrics.high_band_energy_ratio, metrics.high_band_correlation
    for gain in (0.5, 1.2):
        restored = 0.5 + gain * (hq.double() - 0.5)
        assert energy(restored, hq).tolist() == pytest.approx([gain**2] * 4)
        assert correlation(restored, hq).tolist() == pytest.approx([1] * 4)
    assert correlation(1 - hq, hq).tolist() == pytest.approx([-1] * 4)
    blur, noise = blurred(hq, 3), noisy(torch.full_like(hq, 0.5), 0.03) - 0.5
    assert energy(blur, hq).max() < 0.1
    assert energy(blur + noise, hq).min() > 0.5  # noise passes for detail in energy alone
    assert (correlation(blur + noise, hq) < correlation(blur, hq)).all()  # and not in correlation


def test_flat_images_do_not_pass_for_detail():
    hq, flat = leaves(1, seed=0), torch.full((1, 3, 64, 64), 0.3)
    assert metrics.high_band_correlation(flat, hq).item() == 0
    assert metrics.high_band_energy_ratio(flat, hq).item() < 1e-20
    assert math.isnan(metrics.high_band_correlation(hq, flat).item())
    assert math.isnan(metrics.high_band_energy_ratio(hq, flat).item())
    assert math.isnan(metrics.high_band_correlation(hq * torch.nan, hq).item())


def test_low_band_consistency_sees_the_low_band_only():
    lq = leaves(2, seed=4) * 0.8 + 0.1
    assert metrics.low_band_consistency(lq + 0.05, lq, 8).tolist() == pytest.approx([0.05] * 2, abs=1e-3)
    fine = 0.05 * (-1.0) ** torch.arange(64).view(1, 1, 1, 64)
    assert metrics.low_band_consistency(lq + fine, lq, 8).max() < 0.05 / 20


def test_gmsd_and_vif_have_their_fixed_points_and_directions():
    pytest.importorskip("piq")
    hq = leaves(3, seed=5)
    assert metrics.gmsd(hq, hq).abs().max() < 1e-6
    assert metrics.vif(hq, hq).sub(1).abs().max() < 1e-4
    assert metrics.fsim(hq, hq).sub(1).abs().max() < 1e-5
    for damage in (partial(blurred, sigma=1.0), partial(noisy, sigma=0.05)):
        little = damage(hq)
        much = damage(damage(little))
        assert (metrics.gmsd(much, hq) > metrics.gmsd(little, hq)).all()
        assert (metrics.fsim(much, hq) < metrics.fsim(little, hq)).all()
    assert (metrics.vif(noisy(hq, 0.1), hq) < metrics.vif(noisy(hq, 0.03), hq)).all()
    assert (metrics.vif(noisy(hq, 0.03), hq) < 1).all()


def test_without_piq_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "piq", None)
    with pytest.raises(ImportError, match="pip install piq"):
        metrics.gmsd(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim, metrics.high_band_correlation])
def test_shapes_that_do_not_fit_are_refused_by_name(measure):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 18\)"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 18))
    with pytest.raises(ValueError, match="needed"):
        measure(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))


def test_too_small_images_are_refused():
    tiny = torch.zeros(1, 3, 8, 8)
    for measure in (metrics.ssim, lambda a, _: metrics.kid_features(a)):
        with pytest.raises(ValueError, match="8 x 8 pixels are too small"):
            measure(tiny, tiny)


# ---------------------------------------------------------------- KID


def test_kid_by_hand():
    """k(x, y) = (x.y / 2 + 1)^3 on two points a set."""
    a, b = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    # within a: 1; within b: 1; between: (2^3 + 2^3 + 2^3 + 0^3) / 4 = 6
    assert metrics.kid(a, b) == pytest.approx(1 + 1 - 12)


def test_kid_is_unbiased():
    draw = torch.Generator().manual_seed(0)
    values = [metrics.kid(*torch.randn(2, 10, 6, generator=draw)) for _ in range(400)]
    interval = metrics.bootstrap_interval(values)
    assert interval.low < 0 < interval.high
    shifted = metrics.kid(torch.randn(200, 6, generator=draw), torch.randn(200, 6, generator=draw) + 0.5)
    assert shifted > 5 * np.std(values) / 20


def test_features_are_the_same_everywhere():
    features = metrics.kid_features(leaves(2, seed=0))
    assert features.shape == (2, 1792)
    again = metrics.kid_features(leaves(2, seed=0)[1:])
    assert (again - features[1:]).abs().max() < 1e-4
    chirp = (0.5 + 0.5 * torch.cos(torch.arange(64.0).square() / 40)).expand(1, 3, 64, 64)
    recorded = torch.tensor([3.0678, 1.7337, 1.4545, 0.9967, 1.2348, 0.8627, 1.0981])
    assert (metrics.kid_features(chirp)[0, ::256] - recorded).abs().max() < 1e-3


def test_kid_grows_with_every_damage_and_sees_slight_over_smoothing():
    clean = metrics.kid_features(leaves(40, seed=10))
    others = leaves(40, seed=11)
    assert_separates(clean, others)


def test_kid_separates_damaged_faces_from_clean_ones(shared):
    paths = list_images(shared / "faces256")[:100]
    pixels = torch.stack([read_image(path) for path in paths])
    faces = torch.nn.functional.avg_pool2d(pixels, 4)
    assert_separates(metrics.kid_features(faces[::2]), faces[1::2])


def assert_separates(clean: Tensor, others: Tensor) -> None:
    features = metrics.kid_features(others)
    both = torch.cat([clean, features])
    shuffles = [torch.randperm(len(both), generator=torch.Generator().manual_seed(i)) for i in range(20)]
    null = np.std([metrics.kid(both[order[: len(clean)]], both[order[len(clean) :]]) for order in shuffles])
    start = metrics.kid(clean, features)
    assert abs(start) < 5 * null
    for name, (damage, strengths) in WORSE_AND_WORSE.items():
        values = [metrics.kid(clean, metrics.kid_features(damage(others, strength))) for strength in strengths]
        assert all(a < b for a, b in zip([start, *values], values, strict=False)), (name, values)
        assert values[0] > start + 3 * null, (name, values[0] / null)


def test_paired_kid_of_equal_sets_is_zero_and_agrees_with_kid_else():
    hq = leaves(40, seed=10)
    features = metrics.kid_features(hq)
    assert metrics.paired_kid(features, features) == pytest.approx((0, 0, 0), abs=1e-9)
    damaged = metrics.kid_features(noisy(hq, 0.1))
    paired = metrics.paired_kid(damaged, features)
    assert paired.low < paired.mean < paired.high
    unpaired = metrics.kid(damaged[:20], features[20:])
    assert paired.mean == pytest.approx(unpaired, rel=0.25)


def test_kid_refuses_sets_it_cannot_compare():
    with pytest.raises(ValueError, match="at least 2"):
        metrics.kid(torch.zeros(1, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="do not pair up"):
        metrics.paired_kid(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="are needed"):
        metrics.kid(torch.zeros(2, 4), torch.zeros(3, 5))


# ---------------------------------------------------------------- intervals


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = metrics.bootstrap_interval(draw.normal(3, 1, 60), samples=400)
        hits += low <= 3 <= high
    assert 0.89 <= hits / 200 <= 0.98


def test_bootstrap_is_repeatable_and_narrows_with_faces_and_level():
    values = np.random.default_rng(1).normal(size=50)
    full = metrics.bootstrap_interval(values)
    assert full == metrics.bootstrap_interval(torch.from_numpy(values))
    assert full.mean == pytest.approx(values.mean())
    assert full != metrics.bootstrap_interval(values, seed=1)
    narrow = metrics.bootstrap_interval(values, level=0.5)
    assert full.low < narrow.low < narrow.high < full.high


def test_pairing_takes_away_what_the_faces_have_in_common():
    faces = np.random.default_rng(2).normal(25, 4, 60)
    better = faces + np.random.default_rng(3).normal(0.3, 0.2, 60)
    difference = metrics.bootstrap_difference(better, faces)
    assert 0.2 < difference.low < difference.mean < difference.high < 0.4
    assert metrics.bootstrap_interval(better).low < faces.mean()  # unpaired, the gain drowns in the faces' spread


def test_one_face_has_a_mean_and_no_interval():
    mean, low, high = metrics.bootstrap_interval([2.5])
    assert mean == 2.5 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize(
    ("values", "message"), [([], "one number per face"), ([[1.0]], "one number per face"), ([1.0, math.nan], "1 of 2")]
)
def test_values_without_a_mean_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(values)
    with pytest.raises(ValueError, match="pair up"):
        metrics.bootstrap_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("size", [128, 256])
def test_sharpness_tells_clean_faces_from_blurred_and_from_noisy_ones(shared, size):
    files = sorted((shared / "portraits").glob("*.jpg"))[:20]
    clean = torch.stack([F.interpolate(read_image(f)[None, :, :225], (size, size), mode="bicubic")[0] for f in files])
    half = F.interpolate(clean, (size // 3, size // 3), mode="bicubic", antialias=True)
    blurred = F.interpolate(half, (size, size), mode="bicubic")
    noisy = blurred + 0.08 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    scores = [float(metrics.sharpness(images.clamp(0, 1)).median()) for images in (clean, blurred, noisy)]
    assert scores[0] > 1.5 * scores[1], scores
    assert scores[2] < 0.5, scores


def test_a_flat_picture_is_not_sharp():
    assert metrics.sharpness(torch.full((2, 3, 33, 33), 0.5)).tolist() == [0, 0]


def test_fid_of_normal_sets_is_known(monkeypatch):
    monkeypatch.setattr(metrics, "FID_LEAST", 2000)
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40_000, 2, generator=draw, dtype=torch.float64) for _ in "ab")
    mixed = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    # Means 3 apart on one axis; for commuting covariances the spread is the sum of squared differences of deviations.
    assert metrics.fid(a, b * torch.tensor([2.0, 1.0]) + torch.tensor([3.0, 0.0])) == pytest.approx(9 + 1, rel=0.03)
    assert metrics.fid(a @ mixed, a @ mixed) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"1999 and 40000 faces; FID needs 2000"):
        metrics.fid(a[:1999], b)


def test_student_interval_is_that_of_a_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for count in (2, 3, 12, 31, 200):
        a, b = draw.normal(1, 1, count), draw.normal(0, 1, count)
        found = metrics.student_difference(a.tolist(), torch.from_numpy(b))
        expected = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert found == pytest.approx(((a - b).mean(), expected.low, expected.high), rel=2e-3, abs=2e-3)


def test_student_interval_of_one_face_has_no_ends_and_of_unequal_numbers_is_refused():
    found = metrics.student_difference([2.0], [1.5])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)
    for a, b in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="pair up"):
            metrics.student_difference(a, b)


def test_colour_matching_sets_mean_and_deviation_of_each_channel():
    draw = torch.Generator().manual_seed(3)
    hq = 0.3 + 0.4 * torch.rand(2, 3, 24, 24, generator=draw, dtype=torch.float64)
    gain, offset = torch.tensor([0.8, 1.1, 0.9]).view(3, 1, 1), torch.tensor([0.05, -0.02, 0.1]).view(3, 1, 1)
    shifted = hq * gain + offset  # stays inside [0, 1]
    assert torch.allclose(metrics.colour_matched(shifted, hq), hq, atol=1e-9)
    assert (metrics.psnr_matched(shifted, hq) == metrics.PSNR_CAP).all() and (metrics.psnr(shifted, hq) < 30).all()
    assert torch.allclose(metrics.ssim_matched(shifted, hq), torch.ones(2).double())
    noisy = (shifted + 0.05 * torch.randn(shifted.shape, generator=draw)).clamp(0, 1)
    made = metrics.colour_matched(noisy, hq)
    for statistic in (torch.mean, torch.std):
        assert torch.allclose(statistic(made, dim=(2, 3)), statistic(hq, dim=(2, 3)))
    wanted = -10 * torch.log10((made - hq).square().mean((1, 2, 3)))
    assert torch.allclose(metrics.psnr_matched(noisy, hq), wanted)
    flat = torch.full_like(hq, 0.9)
    assert torch.isfinite(metrics.psnr_matched(flat, hq)).all()


def test_colour_matched_ssim_is_scikit_images():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    draw = torch.Generator().manual_seed(4)
    hq, restored = torch.rand(2, 1, 3, 32, 32, generator=draw, dtype=torch.float64)
    made = metrics.colour_matched(restored, hq)[0].permute(1, 2, 0).numpy()
    wanted = structural_similarity(
        made, hq[0].permute(1, 2, 0).numpy(), data_range=1.0, channel_axis=-1, gaussian_weights=True,
        use_sample_covariance=False,
    )  # fmt: skip
    assert metrics.ssim_matched(restored, hq).item() == pytest.approx(wanted, abs=1e-6)


def test_statistics_of_different_networks_are_refused():
    a, b = (metrics.statistics_of(torch.rand(5, size)) for size in (2, 3))
    with pytest.raises(ValueError, match="statistics of 2 and of 3 features are not of one network"):
        metrics.frechet_distance(a, b)
    with pytest.raises(ValueError, match="N of 2 or more"):
        metrics.statistics_of(torch.rand(1, 2))
