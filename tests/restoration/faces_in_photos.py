"""Photos for the tests of how a pasted face is finished: one face in the middle, with fine detail or without it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr_core.faces.align import Face, template
from bfr_core.pixels import gaussian_blur
from bfr_core.restorers.base import Restorer

SIDE, WIDTH, SIZE = 320, 200, 64  # of the photo, of the face in it, of the restorer


class Answer(nn.Module):
    """Gives every face back as it is, blurred by `sigma` pixels; 0 changes nothing."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.weight, self.sigma = nn.Parameter(torch.ones(1)), sigma

    def forward(self, lq: Tensor) -> Tensor:
        return gaussian_blur(lq, self.sigma) if self.sigma else lq * self.weight


def restorer(sigma: float = 0.0, size: int = SIZE) -> Restorer:
    return Restorer(Answer(sigma).eval(), "fake", size, "fake")


def a_face(width: float = WIDTH, side: int = SIDE) -> Face:
    return Face(template(1) * width + side / 2 + np.array([0.0, 0.1 * width]))


def soft(side: int = SIDE, seed: int = 0) -> Tensor:
    """(3, side, side) without any fine detail, in colour, from 0.2 to 0.8."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0.2, 0.8)[0]


def sharp(side: int = SIDE, seed: int = 0, contrast: float = 1.0) -> Tensor:
    """The same with fine lines, as of hair, on a third of it, and smooth skin elsewhere."""
    ys, xs = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    lines = 0.12 * torch.sin(2.1 * xs + 0.7 * ys) + 0.08 * torch.sin(0.9 * xs - 1.3 * ys)
    return (soft(side, seed) + contrast * lines * (((xs + ys) // 40) % 3 == 0)).clamp(0, 1)


def noise(like: Tensor, sigma: float, seed: int = 0) -> Tensor:
    return sigma * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def within(photo: Tensor, face: Face, share: float = 0.3) -> tuple[slice, slice, slice]:
    """Index of the middle of the face, where all of it is pasted."""
    x, y = face.landmarks.mean(0).round().astype(int)
    reach = int(share * face.width)
    return slice(None), slice(y - reach, y + reach), slice(x - reach, x + reach)
