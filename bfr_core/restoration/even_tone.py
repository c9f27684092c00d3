"""Faded and very dark faces are given a healthy range of tones for the network, and get their own back after it.

A restorer takes the low contrast of such a face for blur, and draws outlines round hair and eyes. The same straight
line for all three colours, taken back afterwards, changes nothing else: colours, and what is faded about them, stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..damage.tone import Tone, read_tone, with_tone
from ..pixels import luma

# Of luma, which is in [0, 1], without its tails: the faces of 400 photographs have more than the first. Between the two
# the line is mixed with none, so that a video's face does not jump where its range crosses a limit.
MIN_RANGE, FADED_RANGE = 0.45, 0.35
NOTHING = 0.04  # of luma: in less there is no face to be seen
TAIL = 0.005  # share of the pixels beyond each end of the range


def tone_for_network(face: Tensor) -> Tone | None:
    """The line that gives `face`, (3, H, W) RGB in [0, 1], its range; None if it has a range that networks know."""
    grey = luma(face)
    low, high = torch.quantile(grey.flatten().float(), torch.tensor([TAIL, 1 - TAIL], device=face.device)).tolist()
    if not NOTHING <= high - low < MIN_RANGE:
        return None
    return read_tone(grey.expand(3, -1, -1), min(1.0, (MIN_RANGE - (high - low)) / (MIN_RANGE - FADED_RANGE)))


def with_own_tone(restored: Tensor, face: Tensor, tone: Tone) -> Tensor:
    """`restored`, of `with_tone(face, tone)`, back in the tones of `face`: all (3, H, W), in [0, 1].

    What the line pushed out of the range, such as the lights in the eyes of a dark face, comes back as it was.
    """
    gain, offset = (restored.new_tensor(values).view(3, 1, 1) for values in tone)
    cut_off = face - (with_tone(face, tone) - offset) / gain
    return ((restored - offset) / gain + cut_off).clamp(0, 1)
