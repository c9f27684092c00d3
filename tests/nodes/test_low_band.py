"""Hold Low Band and Low Band Fix, on latent models whose score is known exactly, sampled as ComfyUI samples."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.diffusion.low_pass import low_pass

SCALE, SHIFT = 0.3611, 0.1159  # of a latent format; that of Flux
SHAPES = {"SD 1.5": (4, 8), "Flux": (16, 8), "Flux 2, packed": (128, 16), "Qwen Image, 5-D": (16, 8)}


class Eps:
    """Noise prediction, x = x0 + sigma n, with SD 1.5's noise levels. percent_to_sigma: as ComfyUI computes it."""

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    levels = (1 / torch.cumprod(1 - betas, 0) - 1).sqrt()

    def sigmas(self, denoise: float) -> Tensor:
        first = round(denoise * 999)
        return torch.cat([self.levels[torch.linspace(first, 0, 12).round().long()], torch.zeros(1)])

    def percent_to_sigma(self, percent: float) -> float:
        if percent <= 0:
            return 999999999.9
        return 0.0 if percent >= 1 else float(self.levels[round((1 - percent) * 999)])

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return x0 + sigma * noise

    def prediction(self, x: Tensor, sigma: Tensor, mean: float, deviation: float) -> Tensor:
        """The best estimate of the noise for latents N(mean, deviation^2)."""
        return sigma * (x - mean) / (deviation**2 + sigma**2)


class Flow(Eps):
    """Velocity prediction, x = (1 - sigma) x0 + sigma n, with a shifted schedule."""

    def shifted(self, t: Tensor) -> Tensor:
        return 3 * t / (1 + 2 * t)

    def sigmas(self, denoise: float) -> Tensor:
        return self.shifted(torch.linspace(denoise, 0, 13, dtype=torch.float64))

    def percent_to_sigma(self, percent: float) -> float:
        return float(self.shifted(torch.tensor(min(1, max(0, 1 - percent)))))

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        return (1 - sigma) * x0 + sigma * noise

    def prediction(self, x: Tensor, sigma: Tensor, mean: float, deviation: float) -> Tensor:
        signal = 1 - sigma
        gain = signal * deviation**2 / (signal**2 * deviation**2 + sigma**2)
        x0_hat = mean + gain * (x - signal * mean)
        return (x - x0_hat) / sigma


class Model:
    """A MODEL: latents whose numbers are independent N(0.2, 0.5^2), so that the best estimate is linear and exact."""

    def __init__(self, kind: Any, hooks: tuple = ()) -> None:
        self.model_sampling, self.hooks = kind, hooks

    def clone(self) -> Model:
        return Model(self.model_sampling, self.hooks)

    def set_model_sampler_post_cfg_function(self, hook: Callable) -> None:
        self.hooks += (hook,)

    def process_latent_in(self, latents: Tensor) -> Tensor:
        return (latents - SHIFT) * SCALE

    def predicted(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latent as ComfyUI's cfg_function gives it."""
        x0_hat = x - sigma * self.model_sampling.prediction(x, sigma, 0.2, 0.5).float()
        for hook in self.hooks:
            x0_hat = hook({"denoised": x0_hat, "sigma": sigma.expand(len(x)), "model": self, "input": x})
        return x0_hat

    def sample(self, latents: Tensor, denoise: float = 0.6, ancestral: bool = False) -> Tensor:
        """Euler's method, or with fresh noise at each step; both end at the last predicted clean latent."""
        generator = torch.Generator().manual_seed(0)
        sigmas = self.model_sampling.sigmas(denoise).float()
        x = self.model_sampling.noised(latents, torch.randn(latents.shape, generator=generator), sigmas[0])
        for now, after in pairwise(sigmas):
            x0_hat = self.predicted(x, now)
            if ancestral:
                x = self.model_sampling.noised(x0_hat, torch.randn(x.shape, generator=generator), after)
            else:
                x = x + (x - x0_hat) / now * (after - now)
        return x


class Vae:
    """Shrinks by `shrinks` to `channels`; as ComfyUI's VAEs for video, it takes a batch for frames where it is one."""

    def __init__(self, channels: int = 4, shrinks: int = 8, video: bool = False) -> None:
        self.channels, self.shrinks, self.video = channels, shrinks, video
        self.weights = torch.randn(channels, 3, generator=torch.Generator().manual_seed(5))

    def encode(self, pictures: Tensor) -> Tensor:
        assert pictures.ndim == 4 and pictures.shape[-1] == 3 and torch.is_inference_mode_enabled()
        small = F.avg_pool2d(pictures.movedim(-1, 1), self.shrinks)
        latents = torch.einsum("bchw,dc->bdhw", small, self.weights)
        return latents.movedim(1, 0)[None] if self.video else latents


def plain(vae: Vae, picture: Tensor) -> Tensor:
    with torch.inference_mode():
        latents = vae.encode(picture[None])
    return (latents[:, :, 0] if vae.video else latents).clone()


def pictures(count: int = 2, side: int = 128, seed: int = 1) -> Tensor:
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1).movedim(1, -1)


@pytest.mark.parametrize("ancestral", [False, True], ids=["euler", "with fresh noise"])
@pytest.mark.parametrize("kind", [Eps(), Flow()], ids=["eps", "flow"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_low_band_of_what_is_sampled_is_the_references(
    run: Callable[..., tuple], kind: Any, name: str, ancestral: bool
) -> None:
    channels, shrinks = SHAPES[name]
    vae, video = Vae(channels, shrinks, "5-D" in name), "5-D" in name
    reference = pictures(side=256)
    model = Model(kind)
    (held,) = run("BFR_HoldLowBand", model=model, vae=vae, reference=reference, factor=4 * shrinks, until=1.0)
    wanted = model.process_latent_in(torch.cat([plain(vae, p) for p in reference]))
    started = torch.zeros(4, channels, *([1] if video else []), 256 // shrinks, 256 // shrinks)
    made = held.sample(started, ancestral=ancestral)
    low = low_pass(made.squeeze(2) if video else made, 4)
    assert (low - low_pass(wanted, 4).repeat(2, 1, 1, 1)).abs().max() < 1e-5, "the batch of two is repeated"
    free = model.sample(started, ancestral=ancestral)
    free = free.squeeze(2) if video else free
    assert (low_pass(free, 4) - low_pass(wanted, 4).repeat(2, 1, 1, 1)).abs().max() > 0.1, "the hook does it"


@pytest.mark.parametrize("kind", [Eps(), Flow()], ids=["eps", "flow"])
def test_without_the_hook_the_numbers_are_the_same_to_the_bit(run: Callable[..., tuple], kind: Any) -> None:
    model, started = Model(kind), torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    before = model.sample(started)
    (held,) = run("BFR_HoldLowBand", model=model, vae=Vae(), reference=pictures(), until=0.0)
    assert torch.equal(held.sample(started, 1.0), model.sample(started, 1.0)), "held for no step"
    assert torch.equal(model.sample(started), before) and not model.hooks, "the model that came in stays as it is"


@pytest.mark.parametrize("kind", [Eps(), Flow()], ids=["eps", "flow"])
def test_the_hold_ends_at_its_share_of_the_schedule(run: Callable[..., tuple], kind: Any) -> None:
    (held,) = run("BFR_HoldLowBand", model=Model(kind), vae=Vae(), reference=pictures(), until=0.7)
    x, changed = torch.randn(2, 4, 16, 16), {}
    for percent in (0.4, 0.69, 0.71, 0.9):
        sigma = torch.tensor(kind.percent_to_sigma(percent))
        changed[percent] = not torch.equal(held.predicted(x, sigma), Model(kind).predicted(x, sigma))
    assert changed == {0.4: True, 0.69: True, 0.71: False, 0.9: False}


def test_other_hooks_stay_and_run_before(run: Callable[..., tuple]) -> None:
    model = Model(Eps())
    model.set_model_sampler_post_cfg_function(lambda step: step["denoised"] + 1)
    (held,) = run("BFR_HoldLowBand", model=model, vae=Vae(), reference=pictures(), until=1.0)
    assert held.hooks[0] is model.hooks[0] and len(held.hooks) == 2


@pytest.mark.parametrize("factor", [8, 12, 20])
def test_a_factor_that_the_latents_cannot_hold_is_named(run: Callable[..., tuple], factor: int) -> None:
    with pytest.raises(ValueError, match=f"factor is {factor}.*multiple of 8 from 16 up"):
        run("BFR_HoldLowBand", model=Model(Eps()), vae=Vae(), reference=pictures(), factor=factor)


def test_pictures_that_do_not_belong_together_are_named(run: Callable[..., tuple]) -> None:
    (held,) = run("BFR_HoldLowBand", model=Model(Eps()), vae=Vae(), reference=pictures(), until=1.0)
    with pytest.raises(ValueError, match=r"\(4, 16, 16\).*\(4, 32, 32\)"):
        held.sample(torch.zeros(2, 4, 32, 32))
    with pytest.raises(ValueError, match=r"\(4, 16, 16\).*\(16, 16, 16\)"):
        held.sample(torch.zeros(2, 16, 16, 16))
    with pytest.raises(ValueError, match="has 2 pictures and the sampled batch 3"):
        held.sample(torch.zeros(3, 4, 16, 16))


def test_half_precision_stays_what_it_is(run: Callable[..., tuple]) -> None:
    (held,) = run("BFR_HoldLowBand", model=Model(Eps()), vae=Vae(), reference=pictures(), until=1.0)
    step = {"denoised": torch.randn(2, 4, 16, 16).half(), "sigma": torch.ones(2), "model": held}
    assert held.hooks[0](step).dtype == torch.float16


def test_the_low_band_is_put_back_in_pixels(run: Callable[..., tuple]) -> None:
    generator = torch.Generator().manual_seed(3)
    reference = 0.25 + 0.5 * pictures()
    detail = 0.05 * torch.randn(4, 128, 128, 3, generator=generator)
    tinted = reference.repeat(2, 1, 1, 1) * torch.tensor([1.1, 0.95, 0.9]) + detail
    (fixed,) = run("BFR_LowBandFix", images=tinted, reference=reference, factor=16)

    def low(image: Tensor) -> Tensor:
        return low_pass(image.movedim(-1, 1), 16)

    assert (low(fixed) - low(reference).repeat(2, 1, 1, 1)).abs().max() < 1e-5
    assert (low(tinted) - low(reference).repeat(2, 1, 1, 1)).abs().max() > 0.03
    change = (fixed - tinted).movedim(-1, 1)
    assert (change - low_pass(change, 4)).abs().max() < 0.02, "what was changed is coarse"


def test_the_fix_crops_as_a_vae_resizes_and_keeps_alpha(run: Callable[..., tuple]) -> None:
    reference = pictures(1, 136)[:, :134, :, :]
    cropped = reference[:, 3:131, 4:132]
    (same,) = run("BFR_LowBandFix", images=cropped, reference=reference)
    assert (same - cropped).abs().max() < 1e-5
    with_alpha = torch.cat([pictures(1, 64), torch.full((1, 64, 64, 1), 0.5)], -1)
    (fixed,) = run("BFR_LowBandFix", images=with_alpha, reference=pictures(1, 128))
    assert fixed.shape == (1, 64, 64, 4) and torch.equal(fixed[..., 3], with_alpha[..., 3])
    with pytest.raises(ValueError, match="reference has 2 pictures and images 3"):
        run("BFR_LowBandFix", images=pictures(3), reference=pictures(2))


@pytest.mark.parametrize(("height", "shrinks"), [(600, 32), (447, 16), (100, 8), (512, 8)])
def test_a_vae_that_crops_its_picture_shrinks_it_by_a_power_of_two(pack: Any, height: int, shrinks: int) -> None:
    module = sys.modules["any-name.nodes.low_band"]
    picture, latents = torch.zeros(1, height, height, 3), torch.zeros(1, 4, height // shrinks, height // shrinks)
    assert module.latent_factor(2 * shrinks, picture, latents) == 2
    with pytest.raises(ValueError, match=f"shrinks pictures by {shrinks};"):
        module.latent_factor(2 * shrinks + 1, picture, latents)
