"""The damage of one face put on the pseudo target of another.

A pseudo target is never quite the face under the damage, and a restorer tuned on (lq, pseudo target) learns that error,
too. Damage that is put on another face's target has a known answer: the restorer learns to undo the damage, not to copy
the teacher. Damage is decomposed as lq = filter * target + rest: the filter is what blurred the face; the rest is
noise, dots, blocks, and what the donor's target got wrong, which on another face is one more disturbance. The ridge
makes the filter somewhat too sharp. Blur wider than the filter is not carried over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works

SUPPORT = 15  # pixels, of a face 128 pixels wide; in proportion for larger ones, at most MAX_SUPPORT
MAX_SUPPORT = 31
DIRECT = 15  # widest filter that is applied directly; wider ones go through spectra, ten times as fast at 512 x 512
RIDGE = 1e-3  # weight of "the filter changes nothing", relative to the target's own energy


def transplanted(target: Tensor, donor_lq: Tensor, donor_target: Tensor, damage: Tensor | None = None) -> Tensor:
    """`target` with the donor's damage: all (3, S, S) RGB in [0, 1]. On the donor's own target the result is donor_lq.

    damage: the donor's `damage_filter`, if it is known already.
    """
    damage = damage_filter(donor_target, donor_lq) if damage is None else damage
    rest = donor_lq - filtered(donor_target, damage)
    return (filtered(target, damage) + rest).clamp(0, 1)


def damage_filter(target: Tensor, lq: Tensor) -> Tensor:
    """The (K, K) filter, one for all channels, that takes `target` as close to `lq` as a filter can.

    target, lq: (3, S, S) in [0, 1]. Least squares with a ridge towards the identity, so that what the pictures do not
    determine stays unchanged. Solved through the correlations of the windowed pictures: K^2 unknowns, in float64. K is
    odd; the filter has the dtype and device of `target`.
    """
    given, target, lq = target, where_all_works(target), where_all_works(lq)
    side = target.shape[-1]
    radius = min(MAX_SUPPORT, SUPPORT * side // 128) // 2
    window = torch.hann_window(side, periodic=False, dtype=torch.float64, device=target.device)
    window = (window[:, None] * window).sqrt()
    plain = (target - target.mean((1, 2), keepdim=True)).double()
    change = (lq - lq.mean((1, 2), keepdim=True)).double() - plain
    x, d = torch.fft.rfft2(plain * window), torch.fft.rfft2(change * window)
    own = torch.fft.irfft2((x.abs() ** 2).sum(0), s=(side, side))
    cross = torch.fft.irfft2((x.conj() * d).sum(0), s=(side, side))
    offsets = torch.cartesian_prod(*[torch.arange(-radius, radius + 1, device=target.device)] * 2)
    apart = (offsets[:, None] - offsets) % side
    normal = own[apart[..., 0], apart[..., 1]]
    ridge = RIDGE * own[0, 0].clamp_min(1e-12) * torch.eye(len(offsets), dtype=own.dtype, device=own.device)
    wanted = cross[offsets[:, 0] % side, offsets[:, 1] % side]
    found = torch.linalg.solve(normal + ridge, wanted).view(2 * radius + 1, -1)
    found = found.to(target.dtype)
    found[radius, radius] += 1
    return found.to(given.device)


def without_sharpening(kernel: Tensor) -> Tensor:
    """The filter (K, K), K odd, with its gain limited to 1 at the K frequencies of each axis that its size tells apart.

    Between these it may amplify a little.
    """
    spectrum = torch.fft.fft2(torch.fft.ifftshift(where_all_works(kernel).double()))
    limited = torch.fft.ifft2(spectrum / spectrum.abs().clamp_min(1)).real
    return torch.fft.fftshift(limited).to(kernel.dtype).to(kernel.device)


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolution of each channel of `image` (C, H, W) with `kernel` (K, K), K odd; edges are repeated outwards."""
    return _by_spectrum(_padded(image, kernel), kernel) if kernel.shape[-1] > DIRECT else convolved(image, kernel)


def convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """The same as `filtered`, but always directly: slower where `kernel` is wide, and without a spectrum's rounding."""
    return F.conv2d(_padded(image, kernel)[:, None], kernel.flip(0, 1)[None, None])[:, 0]


def _padded(image: Tensor, kernel: Tensor) -> Tensor:
    return F.pad(image[:, None], (kernel.shape[-1] // 2,) * 4, mode="replicate")[:, 0]


def _by_spectrum(padded: Tensor, kernel: Tensor) -> Tensor:
    """The same through spectra, for an image that is padded already; what wraps around falls on the padding."""
    device, padded, kernel = padded.device, where_all_works(padded), where_all_works(kernel)
    height, width = padded.shape[-2:]
    size = [-(-n // 32) * 32 for n in (height, width)]  # a prime number of pixels would take several times as long
    product = torch.fft.rfft2(padded, s=size) * torch.fft.rfft2(kernel, s=size)
    around = kernel.shape[-1] - 1
    return torch.fft.irfft2(product, s=size)[..., around:height, around:width].contiguous().to(device)
