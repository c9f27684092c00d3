"""Power spectra of faces over rings of spatial frequency, and filters that are given by their response on those rings.

Faces are taken apart into lightness and two chromas, because cameras, film and JPEG treat colour worse than lightness.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_RINGS = 48  # of spatial frequency; fewer for small faces, so that none is empty
MIN_SIZE = 16  # pixels a side; of smaller faces there is no spectrum to speak of
OPPONENT = ((1 / 3, 1 / 3, 1 / 3), (0.5, 0.0, -0.5), (0.25, -0.5, 0.25))  # RGB to lightness and two chromas


def to_opponent(image: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, 3, H, W) RGB as lightness and two chromas, on the CPU."""
    return torch.einsum("ij,bjhw->bihw", torch.tensor(OPPONENT, dtype=dtype), image.to("cpu", dtype))


def to_rgb(channels: Tensor) -> Tensor:
    """The inverse of `to_opponent`."""
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(torch.tensor(OPPONENT, dtype=torch.float64)), channels)


def ring_edges(size: int) -> Tensor:
    """(R + 1,): where the rings begin and end, in cycles a pixel, from 0 to 0.5."""
    return torch.linspace(0.0, 0.5, min(MAX_RINGS, 3 * size // 8) + 1, dtype=torch.float64)


def ring_middles(size: int) -> Tensor:
    """(R,): the frequency, in cycles a pixel, in the middle of each ring."""
    edges = ring_edges(size)
    return (edges[:-1] + edges[1:]) / 2


def spectra(channels: Tensor) -> Tensor:
    """(B, C, S, S): Fourier transforms of (B, C, S, S) under a window that ends at 0.

    They are scaled so that white noise of variance v has the power v at every frequency.
    """
    window = torch.hann_window(channels.shape[-1], periodic=False, dtype=torch.float64)
    window = window[:, None] * window
    mean = (channels * window).sum((2, 3), keepdim=True) / window.sum()
    return torch.fft.fft2((channels - mean) * window) / window.square().sum().sqrt()


def over_rings(power: Tensor) -> Tensor:
    """(C, R): means of `power` (B, C, S, S) over the pictures and over each ring. The corners are in no ring."""
    size = power.shape[-1]
    rings = torch.bucketize(radius(size), ring_edges(size)[1:]).flatten()
    count = torch.bincount(rings)
    mean = power.mean(0).flatten(1)
    total = torch.zeros(len(mean), len(count), dtype=mean.dtype).index_add_(1, rings, mean)
    return (total / count)[:, :-1]


def at_frequencies(where: Tensor, response: Tensor, size: int) -> Tensor:
    """Values of `response` (C, R), of faces S = size, at the frequencies `where` (any shape): (C, *where.shape).

    Linear between the middles of the rings, constant beyond them.
    """
    x, at = ring_middles(size), where.double().contiguous()
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    share = ((at - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return torch.lerp(response[:, right - 1], response[:, right], share)


def with_response(channels: Tensor, response: Tensor) -> Tensor:
    """`channels` (B, C, S, S) through the filters without phase whose responses on the rings are `response` (C, R)."""
    size = channels.shape[-1]
    edge = size // 4
    padded = F.pad(channels, (edge,) * 4, mode="replicate")
    grid = at_frequencies(radius(size + 2 * edge), response, size).to(channels.dtype)
    found = torch.fft.ifft2(torch.fft.fft2(padded) * grid).real
    return found[..., edge:-edge, edge:-edge].contiguous()


def radius(size: int) -> Tensor:
    """(size, size): the frequency, in cycles a pixel, of each value of fft2."""
    f = torch.fft.fftfreq(size, dtype=torch.float64)
    return (f[:, None].square() + f.square()).sqrt()
