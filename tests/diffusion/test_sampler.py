"""The sampler against recorded numbers of the authors' code, and against a prior whose score is known exactly."""

import json
from dataclasses import replace

import pytest
import torch

from bfr_core.diffusion.low_pass import low_pass
from bfr_core.diffusion.prior import load_prior
from bfr_core.diffusion.sampler import SamplerConfig, denoise_once, sample_constrained
from bfr_core.diffusion.schedule import linear_alpha_bar, respace
from bfr_core.faces.sharp_faces import SharpFaces


class GaussianPrior:
    """Images whose pixels are independent N(mean, deviation^2): the best noise estimate is linear and exact.

    With x_t = sqrt(a) x0 + sqrt(1 - a) eps, E[eps | x_t] = sqrt(1 - a) (x_t - sqrt(a) mean) / (a deviation^2 + 1 - a).
    """

    def __init__(self, mean: float, deviation: float) -> None:
        self.mean, self.deviation = mean, deviation
        self.alpha_bar = linear_alpha_bar()
        self.calls = 0

    def __call__(self, x_t, t):
        self.calls += 1
        a = self.alpha_bar[t].float().view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * self.mean) / (a * self.deviation**2 + 1 - a), None


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


PAPER = SamplerConfig("paper", 250, 240, 0, 8)
FAST = SamplerConfig("fast", 250, 240, 0, 8, calls=24)


@pytest.fixture(scope="module")
def recorded(shared):
    from safetensors import safe_open

    path = shared / "reference" / "constrained_sampling_a.safetensors"
    if not path.exists():
        pytest.skip("no recorded numbers")
    return path, safe_open(path, "pt")


def test_unet_reproduces_the_authors_numbers(recorded):
    path, file = recorded
    out = load_prior(path).network(file.get_tensor("forward.x"), file.get_tensor("forward.t"))
    assert (out - file.get_tensor("forward.out")).abs().max() < 1e-4


def test_low_pass_reproduces_the_authors_numbers(recorded):
    _, file = recorded
    factor = json.loads(file.metadata()["sample"])["N"]
    out = low_pass(file.get_tensor("forward.x"), factor)
    assert (out - file.get_tensor("lowpass.out")).abs().max() < 1e-4


def test_sampling_reproduces_the_authors_numbers(recorded):
    path, file = recorded
    given = json.loads(file.metadata()["sample"])
    config = SamplerConfig(
        "paper", int(given["timestep_respacing"]), given["start"], given["constraint_end"], given["N"]
    )
    noise = iter(file.get_tensor("sample.noise"))
    out = sample_constrained(load_prior(path), file.get_tensor("sample.reference"), config, lambda shape: next(noise))
    assert (out - file.get_tensor("sample.out")).abs().max() < 1e-4
    assert next(noise, None) is None, "every recorded draw is used, in order"


@pytest.mark.parametrize("config", [PAPER, FAST], ids=["paper", "fast"])
def test_low_band_is_the_references(config):
    reference = low_pass(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5, 8)
    out = sample_constrained(GaussianPrior(0.2, 0.1), reference, config, draws())
    assert (low_pass(out, 8) - low_pass(reference, 8)).abs().max() < 0.02


@pytest.mark.parametrize("config", [PAPER, FAST], ids=["paper", "fast"])
def test_high_band_has_the_priors_spread(config):
    # A spread that is large beside the steps of the schedule; a small one is lost in few steps by any sampler.
    reference = torch.zeros(4, 3, 32, 32)
    config = replace(config, calls=120)
    out = sample_constrained(GaussianPrior(0.0, 0.3), reference, config, draws())
    # Of independent pixels the high band keeps all but about 1/64 of the variance at factor 8.
    assert (out - low_pass(out, 8)).std().item() == pytest.approx(0.3, rel=0.1)


def test_unconstrained_sampling_forgets_the_reference():
    config = SamplerConfig("paper", 250, 249, 250, 8)
    out = sample_constrained(GaussianPrior(0.2, 0.1), torch.full((2, 3, 32, 32), -0.8), config, draws())
    assert out.mean().item() == pytest.approx(0.2, abs=0.03)


def test_a_truncated_start_without_the_hold_adds_detail_to_a_face():
    """DiffBFR's last stage as a setting of the sampler: unconditional steps of the prior from a noised face."""
    prior = load_prior()
    soft = low_pass(SharpFaces(prior.size)[0][None] * 2 - 1, 4)
    free = SamplerConfig("fast", 250, 12, 250, 4, calls=3)
    made = sample_constrained(prior, soft, free, draws())
    other = sample_constrained(prior, soft, replace(free, factor=2), draws())
    assert torch.equal(made, other), "nothing is held"
    assert (made - low_pass(made, 4)).std() > 1.2 * (soft - low_pass(soft, 4)).std(), "detail came"
    assert (low_pass(made, 8) - low_pass(soft, 8)).abs().mean() < 0.05, "and the face stayed"


def test_network_calls_and_callbacks_are_as_announced():
    for config in (PAPER, FAST):
        prior = GaussianPrior(0.0, 0.2)
        seen: list[tuple[int, int]] = []
        sample_constrained(prior, torch.zeros(1, 3, 16, 16), config, draws(), lambda *a, seen=seen: seen.append(a[:2]))
        assert prior.calls == config.network_calls == len(seen)
        assert seen[-1] == (config.network_calls, config.network_calls)


def test_denoising_once_is_the_posterior_mean():
    """Pixels N(0.1, 0.2^2) seen under noise of variance (1 - a) / a: Wiener's estimate, in closed form."""
    prior, image = GaussianPrior(0.1, 0.2), torch.rand(2, 3, 8, 8) - 0.5
    index = 12
    alpha_bar = float(respace(prior.alpha_bar, 250).alpha_bar[index])
    gain = 0.2**2 / (0.2**2 + (1 - alpha_bar) / alpha_bar)
    assert torch.allclose(denoise_once(prior, image, 250, index), 0.1 + gain * (image - 0.1), atol=1e-5)
    assert prior.calls == 1


def test_cancelling_ends_within_one_network_call():
    prior = GaussianPrior(0.0, 0.2)

    def cancel(step, total, preview):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_constrained(prior, torch.zeros(1, 3, 16, 16), PAPER, draws(), cancel)
    assert prior.calls == 1


def test_fast_sampler_without_eta_draws_noise_once():
    shapes = []

    def noise(shape):
        shapes.append(shape)
        return torch.zeros(shape)

    sample_constrained(GaussianPrior(0.0, 0.2), torch.zeros(1, 3, 16, 16), SamplerConfig(calls=5, eta=0.0), noise)
    # eta 0 multiplies later noise by zero; it is still taken, so that eta does not shift the order of random numbers.
    assert len(shapes) == 5


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "slow"}, {"t_start": 250}, {"t_start": 0}, {"t_constrain_end": -1}, {"calls": 0}, {"eta": 1.5}],
    ids=str,
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match="sampler" if "kind" in wrong else next(iter(wrong))):
        SamplerConfig(**wrong)
