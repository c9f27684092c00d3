"""Faces of people who do not exist, drawn by a prior from pure noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..device import autocast
from ..files.photos import to_unit
from ..randomness import keyed_noise
from .prior import Prior
from .sampler import LatentNoisePredictor, predict_x0
from .schedule import respace

STEPS = 40


@torch.no_grad()
def draw_faces(
    prior: Prior, names: Sequence[str], seed: int, callback: Callable[[int, int, Tensor], None] | None = None
) -> Tensor:
    """One face for each name, (B, 3, S, S) RGB in [0, 1] on the CPU.

    Each face's random numbers are keyed by its name. callback: step, steps and what the faces
    look like so far, after every network call; what it raises ends the work. DDIM with eta 1 in `STEPS` steps.
    Source: arXiv:2010.02502, eq. 12.
    """
    schedule = respace(prior.alpha_bar, STEPS)
    noise = keyed_noise(seed, "demo", names, prior.device)
    sample = torch.zeros(1, 3, prior.size, prior.size, device=prior.device)
    bound = 1.0
    decode: Callable[[Tensor], Tensor] = torch.clone
    if isinstance(prior, LatentNoisePredictor):
        sample, bound, decode = prior.encode(sample), math.inf, prior.decode
    shape = torch.Size([len(names), *sample.shape[1:]])
    x = noise(shape)
    for i in range(STEPS - 1, -1, -1):
        alpha_bar, alpha_bar_prev = float(schedule.alpha_bar[i]), float(schedule.alpha_bar_prev[i])
        with autocast(x.device, "auto"):
            eps, _ = prior(x, schedule.timesteps[i].to(x.device).expand(len(x)))
        x0_hat = predict_x0(x, eps, alpha_bar).clamp(-bound, bound)
        eps = (x - alpha_bar**0.5 * x0_hat) / (1 - alpha_bar) ** 0.5
        sigma = ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)) ** 0.5
        x = alpha_bar_prev**0.5 * x0_hat + max(0.0, 1 - alpha_bar_prev - sigma**2) ** 0.5 * eps
        if i:
            x = x + sigma * noise(shape)
        if callback:
            callback(STEPS - i, STEPS, to_unit(decode(x0_hat)))
    return to_unit(decode(x)).cpu()
