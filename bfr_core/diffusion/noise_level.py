"""The noise level of damaged faces, estimated with the prior: without clean copies and without a model of the noise.

A prior that is told that the noise has standard deviation s removes what it takes for noise. If what it removes has
standard deviation s, the face had that much noise. The removed part is measured in grey and in colour separately,
because film grain has no colour and a sensor's noise is mostly colour: averaged over both, either would look weaker
than it is. Grain that clumps is looked for at half the size as well; colour noise is not, because the blotches of a
sensor are better removed gently (measured).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .sampler import NoisePredictor, denoise_once
from .schedule import respace

# Along with the noise the prior removes a little of the face's own detail, so that 1 would be too low a threshold.
LIKE_NOISE = 1.1


@torch.no_grad()
def noise_ratio(prior: NoisePredictor, image: Tensor, num_steps: int, index: int) -> Tensor:
    """Strength of what the prior removes from `image` at level `index`, over the noise of that level: (B,).

    image: (B, 3, H, W) float32 RGB in [-1, 1]. index: 0 ... num_steps - 1. One network call. The ratio falls with the
    level: above 1 the noise of the image is stronger than that of the level, below 1 it is weaker.
    """
    alpha_bar = float(respace(prior.alpha_bar, num_steps).alpha_bar[index])
    removed = image - denoise_once(prior, image, num_steps, index)
    grey = removed.mean(1, keepdim=True)
    # Independent noise of variance s^2 has s^2 along grey, 2 s^2 in the two directions of colour, and s^2 / 4 where two
    # by two pixels are averaged; grain that clumps has more there.
    along_grey = 3 * grey.square().mean((1, 2, 3))
    clumped = 3 * 4 * F.avg_pool2d(grey, 2).square().mean((1, 2, 3))
    along_colour = 1.5 * (removed - grey).square().mean((1, 2, 3))
    return (torch.stack([along_grey, clumped, along_colour]).amax(0) * alpha_bar / (1 - alpha_bar)).sqrt()


def estimate_noise_level(
    prior: NoisePredictor,
    image: Tensor,
    num_steps: int,
    callback: Callable[[int, int], None] | None = None,
) -> int:
    """The highest noise level, an index like `SamplerConfig.t_start`, that most faces reach; 0 if they have no noise.

    At most a quarter of `num_steps`, because a face under stronger noise is not seen any more. Blur, JPEG and clean
    faces give 0. image: (B, 3, H, W) float32 RGB in [-1, 1], faces with one kind of damage. callback: (round, rounds),
    the last when the answer is found. Each network call takes one face, so that it fits wherever one face does.
    """
    lowest, highest = max(1, num_steps // 125), max(2, num_steps // 4)
    calls, most = 0, 1 + (highest - lowest).bit_length()

    def noisy(index: int) -> bool:
        nonlocal calls
        ratios = torch.cat([noise_ratio(prior, some, num_steps, index) for some in image.split(1)])
        found = float(ratios.median()) >= LIKE_NOISE
        calls += 1
        if callback:
            callback(calls, most)
        return found

    if not noisy(lowest):
        lowest = highest = 0
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        lowest, highest = (middle, highest) if noisy(middle) else (lowest, middle)
    if callback and calls < most:
        callback(most, most)
    return lowest
