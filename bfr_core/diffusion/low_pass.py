"""The low band of an image, in which the restored face is reliable and which the sampler must keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..device import full_precision


def low_pass(image: Tensor, factor: int) -> Tensor:
    """Coarse content of `image`: shrink by `factor`, enlarge back to the same size.

    image: (B, 3, H, W) float, RGB; any range, [-1, 1] inside the sampler.
    Returns the same shape, dtype, device and range (may overshoot slightly).
    Raises ValueError if H or W is not a multiple of `factor`, or `factor` is below 1.
    Source: arXiv:2410.04618 (constraint); arXiv:2108.02938 (operator).
    """
    return low_pass_operator(image, factor)(image)


def low_pass_operator(like: Tensor, factor: int) -> Callable[[Tensor], Tensor]:
    """`low_pass` with its matrices built once, for images of the size, dtype and device of `like`; raises as it does.

    It computes in that dtype even under autocast: in bfloat16 one application would be off by up to 2 of 255 levels.
    """
    height, width = like.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"factor is {factor}; it must divide the image's height {height} and width {width}")
    shrink_h, enlarge_h = (m.to(like) for m in _resize_pair(height, factor))
    shrink_w, enlarge_w = (m.to(like) for m in _resize_pair(width, factor))

    def apply(image: Tensor) -> Tensor:
        with full_precision(like.device):
            small = shrink_h @ image.to(like) @ shrink_w.T
            return enlarge_h @ small @ enlarge_w.T

    return apply


def with_low_band(image: Tensor, reference: Tensor, factor: int) -> Tensor:
    """`image` with the low band of `reference`: `low_pass` of the two is then the same, but for rounding.

    image: (..., H, W) float in any range, images or latents. reference: the same shape, or one that broadcasts to it.
    Returns the shape, dtype and device of `image`. One step x - low_pass(x) + low_pass(y) of arXiv:2410.04618 leaves a
    part of the difference, because low_pass is no projection; this is what the step becomes when it is repeated until
    nothing changes, in closed form: x - E (S E)^-1 S (x - y), S the shrinking and E the enlargement. Sides need not be
    multiples of `factor`; the low band then has the nearest whole number of pixels.
    """
    (fit_h, enlarge_h), (fit_w, enlarge_w) = (_projection(length, factor) for length in image.shape[-2:])
    like = torch.empty(0, dtype=torch.float32, device=image.device)
    with full_precision(image.device):
        change = reference.to(like) - image.to(like)
        small = fit_h.to(like) @ change @ fit_w.to(like).T
        return image + (enlarge_h.to(like) @ small @ enlarge_w.to(like).T).to(image)


def _projection(length: int, factor: int) -> tuple[Tensor, Tensor]:
    """Matrices (n, length) and (length, n), float64, whose product keeps what the bicubic enlargement can make and sees
    only what the bicubic shrinking sees; n: length / factor, rounded."""
    if factor < 1:
        raise ValueError(f"factor is {factor}; it must be at least 1")
    small = max(1, round(length / factor))
    shrink, enlarge = _bicubic_matrix(length, small, small / length), _bicubic_matrix(small, length, length / small)
    return torch.linalg.solve(shrink @ enlarge, shrink), enlarge


def _resize_pair(length: int, factor: int) -> tuple[Tensor, Tensor]:
    """Matrices (length / factor, length) and (length, length / factor) of the bicubic shrink and enlargement."""
    small = length // factor
    return _bicubic_matrix(length, small, 1 / factor), _bicubic_matrix(small, length, factor)


def _bicubic_matrix(source: int, target: int, scale: float) -> Tensor:
    """Bicubic resampling (a = -0.5) of a row as a (target, source) float64 matrix.

    The kernel widens when shrinking (anti-aliasing); samples outside are mirrored, the edge pixel repeated.
    """
    stretch = max(1.0, 1 / scale)
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) / scale - 0.5
    taps = int(4 * stretch) + 2
    first = torch.ceil(centre - 2 * stretch - 1e-9).long()
    position = first[:, None] + torch.arange(taps)
    weight = _cubic((centre[:, None] - position) / stretch)
    weight = weight / weight.sum(1, keepdim=True)
    mirrored = position % (2 * source)
    mirrored = torch.where(mirrored < source, mirrored, 2 * source - 1 - mirrored)
    return torch.zeros(target, source, dtype=torch.float64).scatter_add_(1, mirrored, weight)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, a = -0.5."""
    x = x.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
