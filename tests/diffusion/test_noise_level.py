"""The noise level of faces, with a prior whose answer is known: every face is flat grey, the rest is noise."""

import pytest
import torch

from bfr_core.diffusion.noise_level import estimate_noise_level, noise_ratio
from bfr_core.diffusion.schedule import respace

STEPS = 250


class FlatFaces:
    """Knows that clean images have one colour everywhere; its denoiser is the mean of each channel."""

    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)

    def __call__(self, x_t, t):
        alpha_bar = self.alpha_bar[t].float().view(-1, 1, 1, 1)
        x0 = x_t.mean((2, 3), keepdim=True) / alpha_bar.sqrt()
        return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt(), None


def sigma_of(index):
    alpha_bar = float(respace(FlatFaces.alpha_bar, STEPS).alpha_bar[index])
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


def noisy(sigma, colourless=False):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 1 if colourless else 3, 64, 64, generator=generator)
    return 0.1 + sigma * noise.expand(3, 3, 64, 64)


def test_the_ratio_is_one_at_the_level_of_the_noise():
    assert noise_ratio(FlatFaces(), noisy(sigma_of(20)), STEPS, 20) == pytest.approx(1, abs=0.05)
    assert (noise_ratio(FlatFaces(), noisy(sigma_of(20)), STEPS, 30) < 0.75).all()


def test_colourless_noise_is_not_diluted_by_the_colours():
    ratio = noise_ratio(FlatFaces(), noisy(sigma_of(20), colourless=True), STEPS, 20)
    assert ratio == pytest.approx(3**0.5, abs=0.05)


def test_clumped_grain_counts_as_the_stronger_noise_that_it_is():
    fine = 0.1 + 0.2 * torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).expand(3, 3, 32, 32)
    clumped = torch.nn.functional.interpolate(fine, scale_factor=2, mode="nearest")
    ratio = noise_ratio(FlatFaces(), clumped, STEPS, 20) / noise_ratio(FlatFaces(), fine, STEPS, 20)
    assert ratio == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("index", [5, 20, 45])
def test_the_level_is_the_highest_that_the_faces_have(index):
    found = estimate_noise_level(FlatFaces(), noisy(sigma_of(index)), STEPS)
    assert sigma_of(found) * 1.1 <= sigma_of(index) * 1.02 and sigma_of(found + 1) * 1.1 > sigma_of(index) * 0.98


def test_faces_without_noise_have_level_0():
    assert estimate_noise_level(FlatFaces(), noisy(0.0), STEPS) == 0
    assert estimate_noise_level(FlatFaces(), noisy(0.3 * sigma_of(2)), STEPS) == 0


def test_most_of_the_faces_decide():
    one_bad = noisy(sigma_of(20))
    one_bad[0] = noisy(sigma_of(60))[0]
    found = estimate_noise_level(FlatFaces(), one_bad, STEPS)
    assert found == estimate_noise_level(FlatFaces(), noisy(sigma_of(20)), STEPS)


def test_network_calls_are_counted_and_may_be_cancelled():
    seen = []
    estimate_noise_level(FlatFaces(), noisy(sigma_of(20)), STEPS, lambda call, most: seen.append((call, most)))
    assert [call for call, _ in seen] == list(range(1, len(seen) + 1)) and len(seen) <= seen[0][1]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_noise_level(FlatFaces(), noisy(0.1), STEPS, stop)


@pytest.mark.parametrize("steps", [4, 10, 1000])
def test_any_number_of_steps(steps):
    assert 0 <= estimate_noise_level(FlatFaces(), noisy(0.5), steps) < steps
