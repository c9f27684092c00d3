"""Undo fading and yellowing: the range of each channel is stretched back, before and apart from restoring faces.

Restoring keeps the low band, and tone lies in it: a faded face comes out clean but still faded. So this is a step of
its own, whose result can be inspected. Nothing is invented: every pixel of a channel goes through the same linear map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TAIL = 0.005  # share of the pixels that may end as pure black, and as many as pure white
BLACK, WHITE = 0.02, 0.98  # where the ends of a healthy picture's range lie
MAX_GAIN = 4.0
STRENGTH_TEXT = (
    "How much of the fading is undone: 0 is nothing, 1 all of it; less suits colours that are partly intended."
)
SAMPLE = 1 << 20  # about how many pixels the range is measured on, at least, if the photo has as many


class Tone(NamedTuple):
    """The linear map of each channel, red, green, blue: out = gain * in + offset."""

    gain: tuple[float, float, float]
    offset: tuple[float, float, float]


def check_strength(strength: float) -> None:
    """Raise ValueError unless `strength` is 0 to 1."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must be 0 to 1")


def read_tone(photo: Tensor, strength: float = 1.0) -> Tone:
    """The map that undoes the fading of `photo`, (3, H, W) RGB in [0, 1]; the identity if no fading is found.

    strength: see `STRENGTH_TEXT`. A grey photo stays grey.
    Raises ValueError unless strength is 0 to 1.
    """
    check_strength(strength)
    pixels = photo.flatten(1)
    pixels = pixels[:, :: max(1, pixels.shape[1] // SAMPLE)]
    ends = torch.quantile(pixels.float(), torch.tensor([TAIL, 1 - TAIL], device=pixels.device), dim=1)
    low, high = ends.clamp(0, 1)
    gain = ((WHITE - BLACK) / (high - low).clamp_min(1e-3)).clamp(1.0, MAX_GAIN)
    # A range that is wide enough is left alone: the offset is 0 where the gain is 1.
    offset = torch.where(gain > 1, (WHITE + BLACK) / 2 - gain * (low + high) / 2, torch.zeros_like(gain))
    gain, offset = 1 + strength * (gain - 1), strength * offset
    gains, offsets = ([round(float(v), 4) for v in values] for values in (gain, offset))
    return Tone((gains[0], gains[1], gains[2]), (offsets[0], offsets[1], offsets[2]))


def with_tone(photo: Tensor, tone: Tone) -> Tensor:
    """`photo` (3, H, W) in [0, 1] mapped by `tone`, clamped to [0, 1]."""
    gain, offset = (torch.tensor(values, dtype=photo.dtype, device=photo.device)[:, None, None] for values in tone)
    return (gain * photo + offset).clamp(0, 1)
