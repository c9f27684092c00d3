"""Noise levels of a diffusion: the table of alpha_bar, its respacing, and the forward noising."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """A chain of noise levels, from nearly clean (index 0) to nearly pure noise.

    timesteps: (S,) long, the base index of each level, as the prior expects it.
    alpha_bar: (S,) float64 in (0, 1), the share of signal power at each level.
    """

    timesteps: Tensor
    alpha_bar: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def alpha_bar_prev(self) -> Tensor:
        """(S,) alpha_bar of the level below each one; 1 (a clean image) below the lowest."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @property
    def beta(self) -> Tensor:
        """(S,) variance added between neighbouring levels, re-derived from the kept alpha_bars."""
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @property
    def posterior_variance(self) -> Tensor:
        """(S,) variance of q(x_{t-1} | x_t, x_0). Source: arXiv:2006.11239, eq. 7."""
        return self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)


def linear_alpha_bar(num_steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """alpha_bar of linearly growing betas, (num_steps,) float64. Source: arXiv:2006.11239, section 4."""
    return torch.cumprod(1 - torch.linspace(first, last, num_steps, dtype=torch.float64), 0)


def respace(alpha_bar: Tensor, num_steps: int) -> Schedule:
    """Keep `num_steps` levels of a base table, evenly spread as guided-diffusion spreads them.

    alpha_bar: (T,) float64. Raises ValueError if num_steps is not between 1 and T.
    """
    total = len(alpha_bar)
    if not 1 <= num_steps <= total:
        raise ValueError(f"num_steps is {num_steps}; the prior has {total} steps, so it must be 1 to {total}")
    stride = (total - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    position, kept = 0.0, []
    for _ in range(num_steps):  # added up, not multiplied: rounding must fall as in guided-diffusion
        kept.append(round(position))
        position += stride
    timesteps = torch.tensor(kept)
    return Schedule(timesteps, alpha_bar[timesteps])


def q_sample(x0: Tensor, alpha_bar: float, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0): the image noised to the level `alpha_bar`. Source: arXiv:2006.11239, eq. 4."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
