"""Draw a clean face that agrees with a reference face in its low band.

`sample_paper` is exactly the method of arXiv:2410.04618; `sample_fast` needs about a tenth of its network calls.
Both are loops over (prior, reference, schedule, noise source, callback) and hold no state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..settings import check_settings, setting
from .low_pass import low_pass_operator, with_low_band
from .schedule import Schedule, q_sample, respace

Noise = Callable[[torch.Size], Tensor]
Callback = Callable[[int, int, Tensor], None]


class NoisePredictor(Protocol):
    """What the sampler needs of a prior; see `prior.Prior`."""

    alpha_bar: Tensor

    def __call__(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class LatentNoisePredictor(NoisePredictor, Protocol):
    """A prior whose noise is that of latents; see `latent_prior.LatentPrior`."""

    shrinks: int

    def encode(self, image: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SamplerConfig:
    """How pseudo targets are drawn; indices count the `num_steps` that are kept of the prior's noise levels."""

    kind: Literal["paper", "fast"] = setting(
        "fast",
        "The sampler that draws the pseudo targets: fast makes a few network calls for each face, paper makes one for "
        "every noise level.",
        choices=("fast", "paper"),
        label="Sampler",
    )
    num_steps: int = setting(
        250, "How many of the prior's noise levels are kept; levels in other settings are counted among these.", low=2
    )
    t_start: int = setting(
        150,
        "Noise level K from which the sampler starts. A higher level invents more of the face.",
        low=1,
        label="Freedom",
    )
    t_constrain_end: int = setting(
        90,
        "Noise level L down to which the low band of the target is held to that of the reference.",
        low=0,
        label="Last constrained noise level",
    )
    factor: int = setting(
        8,
        "Factor N of the low band, which is what survives shrinking by N. A higher factor trusts the photo less.",
        low=1,
        label="Coarseness",
    )
    calls: int = setting(
        10, "How many network calls the fast sampler makes for each face.", low=1, label="Network calls"
    )
    eta: float = setting(
        1.0,
        "How much fresh noise the fast sampler draws at each step, from none at 0 to all of it at 1.",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check_settings(self, "sampler")
        if self.t_start >= self.num_steps:
            raise ValueError(f"sampler.t_start is {self.t_start}; it must be 1 to num_steps - 1 = {self.num_steps - 1}")
        if self.calls > self.t_start:
            raise ValueError(f"sampler.calls is {self.calls}; it must be 1 to t_start = {self.t_start}")

    @property
    def network_calls(self) -> int:
        """Network evaluations that one sample takes."""
        return self.t_start if self.kind == "paper" else self.calls


@torch.no_grad()
def sample_constrained(
    prior: NoisePredictor,
    reference: Tensor,
    config: SamplerConfig,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """A sample of the prior whose low band is the reference's.

    reference: (B, 3, H, W) float32 RGB in [-1, 1], y0 in the paper. Returns the same shape, in [-1, 1].
    noise: called with the shape of each noise sample, in order; unseeded Gaussian noise if left out.
    callback: (step, total, x0_hat), after every network call; what it raises ends the sampling.
    A latent prior samples in the latents of `reference`; `config.factor` stays in pixels, and the low band is put back
    once more after decoding.
    Raises ValueError if `config` does not fit the number of the prior's noise levels or the size of `reference`.
    Source: arXiv:2410.04618, section 3 and algorithm 1.
    """
    if isinstance(prior, LatentNoisePredictor):
        return sample_in_latents(prior, reference, config, noise, callback)
    draw = noise or (lambda shape: torch.randn(shape, device=reference.device))
    schedule = respace(prior.alpha_bar, config.num_steps)
    sample = sample_paper if config.kind == "paper" else sample_fast
    return sample(prior, reference, schedule, config, draw, callback)


def sample_in_latents(
    prior: LatentNoisePredictor,
    reference: Tensor,
    config: SamplerConfig,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """`sample_constrained` in the latents of a prior; images as there, noise in the shape of latents.

    Raises ValueError if the factor, in pixels, is no multiple of what the prior shrinks by, or less than twice that.
    """
    if config.factor % prior.shrinks or config.factor < 2 * prior.shrinks:
        raise ValueError(
            f"sampler.factor is {config.factor}; this prior's latents are {prior.shrinks} times smaller than its "
            f"images, so it must be a multiple of {prior.shrinks} from {2 * prior.shrinks} up"
        )
    latents = prior.encode(reference)
    draw = noise or (lambda shape: torch.randn(shape, device=reference.device))
    schedule = respace(prior.alpha_bar, config.num_steps)
    inside = replace(config, factor=config.factor // prior.shrinks)
    shown = preview_of(latents, reference)

    def step(done: int, total: int, x0_hat: Tensor) -> None:
        if callback:
            callback(done, total, shown(x0_hat))

    sample = sample_paper if config.kind == "paper" else sample_fast
    made = prior.decode(sample(prior, latents, schedule, inside, draw, step, math.inf))
    return with_low_band(made, reference, config.factor).clamp(-1, 1)


def preview_of(latents: Tensor, image: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from latents (B, C, h, w) to images (B, 3, H, W) in [-1, 1], without detail and without a network: the
    linear map that fits these latents and this image best."""
    small = F.interpolate(image, latents.shape[-2:], mode="area").movedim(1, -1).flatten(0, -2).cpu()
    seen = F.pad(latents.movedim(1, -1).flatten(0, -2).float().cpu(), (0, 1), value=1.0)
    ridge = 1e-3 * torch.eye(seen.shape[-1])
    weights = torch.linalg.solve(seen.T @ seen / len(seen) + ridge, seen.T @ small / len(seen))

    def show(x0_hat: Tensor) -> Tensor:
        given = F.pad(x0_hat.movedim(1, -1).float().cpu(), (0, 1), value=1.0)
        return F.interpolate((given @ weights).movedim(-1, 1), image.shape[-2:], mode="bilinear").clamp(-1, 1)

    return show


def sample_paper(
    prior: NoisePredictor,
    reference: Tensor,
    schedule: Schedule,
    config: SamplerConfig,
    noise: Noise,
    callback: Callback | None = None,
    bound: float = 1.0,
) -> Tensor:
    """The paper's sampler: DDPM ancestral steps, the low band of x_t replaced while the index is at least L.

    bound: of the values that a clean image can have, on both sides.
    """
    phi = low_pass_operator(reference, config.factor)
    x = q_sample(reference, float(schedule.alpha_bar[config.t_start]), noise(reference.shape))
    for i in range(config.t_start - 1, -1, -1):
        x, x0_hat = ancestral_step(prior, x, schedule, i, noise, bound)
        if i >= config.t_constrain_end:
            # q(y0, i - 1); the level below index 0 is the clean image itself.
            y = q_sample(reference, float(schedule.alpha_bar_prev[i]), noise(x.shape))
            x = x - phi(x) + phi(y)
        if callback:
            callback(config.t_start - i, config.t_start, x0_hat)
    return x


def ancestral_step(
    prior: NoisePredictor, x: Tensor, schedule: Schedule, i: int, noise: Noise, bound: float = 1.0
) -> tuple[Tensor, Tensor]:
    """x_{t-1} ~ p(x_{t-1} | x_t) and the clean image it aims at; noise is drawn, not added, at i = 0.

    Source: arXiv:2006.11239, eq. 7 (mean); arXiv:2102.09672, eq. 15 (learned variance).
    """
    alpha_bar, alpha_bar_prev = float(schedule.alpha_bar[i]), float(schedule.alpha_bar_prev[i])
    beta, posterior = float(schedule.beta[i]), float(schedule.posterior_variance[i])
    eps, v = prior(x, schedule.timesteps[i].to(x.device).expand(len(x)))
    x0_hat = predict_x0(x, eps, alpha_bar).clamp(-bound, bound)
    mean = (beta * alpha_bar_prev**0.5 * x0_hat + (1 - alpha_bar_prev) * (1 - beta) ** 0.5 * x) / (1 - alpha_bar)
    z = noise(x.shape)
    if i == 0:
        return mean, x0_hat
    log_low, log_high = torch.tensor([posterior, beta], dtype=torch.float64).log().tolist()
    log_variance = log_low if v is None else (v + 1) / 2 * log_high + (1 - v) / 2 * log_low
    deviation = torch.exp(0.5 * torch.as_tensor(log_variance, dtype=x.dtype, device=x.device))
    return mean + deviation * z, x0_hat


def sample_fast(
    prior: NoisePredictor,
    reference: Tensor,
    schedule: Schedule,
    config: SamplerConfig,
    noise: Noise,
    callback: Callback | None = None,
    bound: float = 1.0,
) -> Tensor:
    """Few DDIM steps at indices from K - 1 to 0, the low band of x0_hat replaced while the index is at least L.

    bound: as for `sample_paper`.
    Source: arXiv:2010.02502, eq. 12 and 16; the constraint acts on the predicted clean image.
    """
    phi = low_pass_operator(reference, config.factor)
    low = phi(reference)
    # Evenly spaced indices K-1 ... 0, each with its own noise level.
    indices = torch.linspace(config.t_start - 1, 0, config.calls, dtype=torch.float64).round().long().tolist()
    x = q_sample(reference, float(schedule.alpha_bar[indices[0]]), noise(reference.shape))
    for step, i in enumerate(indices):
        alpha_bar = float(schedule.alpha_bar[i])
        alpha_bar_next = float(schedule.alpha_bar[indices[step + 1]]) if step + 1 < len(indices) else 1.0
        eps, _ = prior(x, schedule.timesteps[i].to(x.device).expand(len(x)))
        x0_hat = predict_x0(x, eps, alpha_bar).clamp(-bound, bound)
        if i >= config.t_constrain_end:
            x0_hat = x0_hat - phi(x0_hat) + low
        eps = (x - alpha_bar**0.5 * x0_hat) / (1 - alpha_bar) ** 0.5
        sigma = config.eta * ((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next)) ** 0.5
        x = alpha_bar_next**0.5 * x0_hat + (1 - alpha_bar_next - sigma**2) ** 0.5 * eps
        if alpha_bar_next < 1:
            x = x + sigma * noise(x.shape)
        if callback:
            callback(step + 1, len(indices), x0_hat)
    return x.clamp(-bound, bound)


@torch.no_grad()
def denoise_once(prior: NoisePredictor, image: Tensor, num_steps: int, index: int) -> Tensor:
    """The prior's estimate of the clean image when it takes the damage of `image` for noise of level `index`.

    image: (B, 3, H, W) float32 RGB in [-1, 1]; returns the same. One network call. index: 0 ... num_steps - 1.
    """
    schedule = respace(prior.alpha_bar, num_steps)
    alpha_bar = float(schedule.alpha_bar[index])
    x = alpha_bar**0.5 * (prior.encode(image) if isinstance(prior, LatentNoisePredictor) else image)
    eps, _ = prior(x, schedule.timesteps[index].to(x.device).expand(len(x)))
    x0_hat = predict_x0(x, eps, alpha_bar)
    return (prior.decode(x0_hat) if isinstance(prior, LatentNoisePredictor) else x0_hat).clamp(-1, 1)


def predict_x0(x_t: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """The clean image that x_t and its noise imply. Source: arXiv:2006.11239, eq. 4 solved for x_0."""
    return (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
