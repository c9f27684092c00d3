"""The damage of one face, measured so that it can be put on a face anew: lq = filter * restored + noise.

The filter is that of `transplant`. Of the noise only the strength at each frequency is kept, as most of the picture has
it, and drawn anew it brings nothing of the photo along. It is measured with the help of a restored face that is not the
one that is judged: what a restorer invents would count as noise, and excuse itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works
from .transplant import damage_filter, filtered, without_sharpening

PATCH = 16  # pixels a side of the parts that the noise is looked at in
MEDIAN_POWER = math.log(2)  # of noise whose mean power is 1: powers of noise are exponentially distributed
# To brightness and two colours, which are independent in most noise, and keep its strength.
COLOURS = ((3**-0.5,) * 3, (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))


@dataclass(frozen=True, eq=False)
class FaceDamage:
    """kernel: (K, K), what blurred the face. spectrum: (3, PATCH, PATCH), power of the noise, frequencies as fft2's."""

    kernel: Tensor
    spectrum: Tensor

    def on(self, face: Tensor, generator: torch.Generator, times: int) -> Tensor:
        """`face` (3, S, S) RGB in [0, 1] with this damage, `times` draws of it: (times, 3, S, S), on the CPU.

        S is that of the face it was measured on. generator: on the CPU.
        """
        blurred = filtered(face.cpu(), self.kernel)
        size = blurred.shape[-2:]
        white = torch.randn(times, 3, *size, generator=generator)
        noise = torch.fft.irfft2(torch.fft.rfft2(white) * stretched(self.spectrum, size).sqrt(), s=size)
        return (blurred + torch.einsum("ij,bihw->bjhw", torch.tensor(COLOURS), noise)).clamp(0, 1)


def blur_between(lq: Tensor, restored: Tensor) -> Tensor:
    """The filter (K, K) that makes of `restored` the most of `lq` without making any frequency stronger.

    lq, restored: (3, S, S) RGB in [0, 1], on the CPU.
    """
    return without_sharpening(damage_filter(restored, lq))


def noise_between(lq: Tensor, restored: Tensor) -> Tensor:
    """The spectrum of what no filter of `restored` explains of `lq`, and never more than `lq` has: see `FaceDamage`."""
    lq, restored = (where_all_works(image).float() for image in (lq, restored))
    rest = lq - filtered(restored, blur_between(lq, restored))
    return torch.minimum(usual_power(rest), usual_power(lq))


def usual_power(image: Tensor) -> Tensor:
    """Power by frequency of what most parts of `image` (3, H, W) hold besides their mean: (3, PATCH, PATCH)."""
    window = torch.hann_window(PATCH, periodic=True)
    window = window[:, None] * window
    rotated = torch.einsum("ij,jhw->ihw", torch.tensor(COLOURS), image)
    parts = rotated.unfold(1, PATCH, PATCH // 2).unfold(2, PATCH, PATCH // 2).flatten(1, 2)
    parts = (parts - (parts * window).sum((-2, -1), keepdim=True) / window.sum()) * window
    power = torch.fft.fft2(parts).abs().square() / window.square().sum()
    return power.median(1).values / MEDIAN_POWER


def stretched(spectrum: Tensor, size: torch.Size) -> Tensor:
    """A spectrum of `PATCH` frequencies at those of a larger picture (H, W), of which rfft2 keeps half: (3, H, W/2+1).

    Frequency k of n lies at k / n; between two of them it is interpolated.
    """
    centred = torch.fft.fftshift(spectrum, (-2, -1))
    around = F.pad(centred[None], (0, 1, 0, 1), mode="circular")  # from -1/2 to 1/2, which are one
    fine = F.interpolate(around, (size[0] + 1, size[1] + 1), mode="bilinear", align_corners=True)[0, :, :-1, :-1]
    return torch.fft.ifftshift(fine, (-2, -1))[..., : size[1] // 2 + 1]
