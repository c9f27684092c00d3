"""Peak signal-to-noise ratio: as it is, after an affine fit of the tones, and with matched colours."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import checked_pair
from .colour import colour_matched

PSNR_CAP = 100.0


def psnr(restored: Tensor, hq: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over all channels, in dB. Higher is better; 100 (the cap) for equal images."""
    restored, hq = checked_pair(restored, hq)
    error = (restored - hq).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).clamp(max=PSNR_CAP)


def psnr_after_affine_fit(restored: Tensor, hq: Tensor) -> Tensor:
    """PSNR after each channel's gain and offset were fitted to `hq` by least squares, in dB; never below `psnr`'s.

    Tone and fading, which restoring leaves as they are, no longer count. 100 (the cap) for equal images.
    """
    restored, hq = checked_pair(restored, hq)
    centred_r = restored - restored.mean((2, 3), keepdim=True)
    mean_h = hq.mean((2, 3), keepdim=True)
    spread = centred_r.square().sum((2, 3), keepdim=True)
    gain = (centred_r * (hq - mean_h)).sum((2, 3), keepdim=True) / spread.clamp_min(1e-12)
    error = (gain * centred_r + mean_h - hq).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).clamp(max=PSNR_CAP)


def psnr_matched(restored: Tensor, hq: Tensor) -> Tensor:
    """PSNR of `colour_matched`, in dB, as published; 100 (the cap) for equal images.

    Mostly up to about 2 dB above `psnr`, and below it where the two hardly correlate.
    """
    error = (colour_matched(restored, hq) - checked_pair(hq, hq)[0]).square().mean((1, 2, 3))
    return (-10 * torch.log10(error)).clamp(max=PSNR_CAP)
