import pytest
import torch

from bfr_core.diffusion.schedule import linear_alpha_bar, q_sample, respace


def test_linear_table_starts_and_ends_as_published():
    alpha_bar = linear_alpha_bar()
    assert alpha_bar[0].item() == pytest.approx(1 - 1e-4)
    assert alpha_bar[-1].item() == pytest.approx(4.0358e-05, rel=1e-3)


def test_respacing_250_keeps_both_ends_and_rounds_the_running_sum():
    schedule = respace(linear_alpha_bar(), 250)
    steps = schedule.timesteps.tolist()
    assert steps[:6] == [0, 4, 8, 12, 16, 20]
    assert steps[-1] == 999 and len(set(steps)) == 250


def test_betas_are_rederived():
    schedule = respace(linear_alpha_bar(), 50)
    assert torch.allclose(torch.cumprod(1 - schedule.beta, 0), schedule.alpha_bar)


def test_posterior_variance_is_zero_at_the_clean_end():
    assert respace(linear_alpha_bar(), 50).posterior_variance[0] == 0


def test_exact_noise_recovers_the_image():
    x0, noise = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x_t = q_sample(x0, 0.3, noise)
    assert ((x_t - 0.7**0.5 * noise) / 0.3**0.5 - x0).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_number_of_steps(steps):
    with pytest.raises(ValueError, match="num_steps"):
        respace(linear_alpha_bar(), steps)
