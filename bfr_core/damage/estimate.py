"""The damage of a folder, estimated over all of its faces: what its photos lost, and what they gained.

A damaged face is taken for lq = h * clean + rest: the filter h took detail away, the rest is noise and pattern. Of one
face alone neither is known, because its clean copy is not. But aligned faces have nearly the same mean power spectrum,
so that of other, sharp faces stands for the missing copies.

At each frequency, with means over faces and directions, S_lq the power of the damaged faces, S_y that of what the base
restorer makes of them, C their cross-power, and S_x the power of sharp faces:

    signal = |C|^2 / S_y             the part of S_lq that belongs to the face, because the restored face shows it too
    |H|^2  = signal / S_x            what is left of the power of a sharp face
    noise  = S_lq - signal           what H leaves unexplained

The first line is the coherent power of two pictures of one thing (Bendat and Piersol, "Random Data", chapter 6). It
holds whatever filter the restorer itself amounts to, as long as the noise that it lets through is small. |H| has no
phase: a blur that moves or doubles edges, as motion does, is put back as one of the same strength that does neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..device import where_all_works

MAX_RINGS = 48  # of spatial frequency; fewer for small faces, so that none is empty
PLAIN_BELOW = 0.02  # cycles a pixel of a face 128 pixels wide: below, a face is kept whole and gives H its scale
FLOOR = 1e-12
MIN_SIZE = 16  # pixels a side; of smaller faces there is no spectrum to speak of


@dataclass(frozen=True, eq=False)
class FolderDamage:
    """What a folder's faces lost and gained, over spatial frequency; float64 on the CPU.

    frequency: (R,) cycles a pixel at the middle of each ring, rising. transfer: (R,) |H| in [0, 1]. noise: (R,) power
    of what H leaves unexplained, a pixel, of grey values in [0, 1]; its mean over all frequencies is a variance. size:
    side of the faces in pixels.
    """

    frequency: Tensor
    transfer: Tensor
    noise: Tensor
    size: int

    def transfer_at(self, radius: Tensor) -> Tensor:
        """|H| at frequencies `radius` (any shape), in cycles a pixel."""
        return _interpolated(radius, self.frequency, self.transfer)

    def as_json(self) -> dict[str, Any]:
        """What JSON can hold of it, rounded to six digits."""
        values = {name: getattr(self, name).tolist() for name in ("frequency", "transfer", "noise")}
        return {name: [float(f"{v:.6g}") for v in found] for name, found in values.items()} | {"size": self.size}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FolderDamage:
        """The inverse of `as_json`. Raises ValueError if `values` are not of one."""
        try:
            parts = [torch.tensor(values[n], dtype=torch.float64) for n in ("frequency", "transfer", "noise")]
            size = int(values["size"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            parts, size = [], 0
        rings = len(_edges(size)) - 1 if size >= MIN_SIZE else 0
        if not parts or not rings or any(p.shape != (rings,) or not p.isfinite().all() for p in parts):
            raise ValueError("holds no estimate of a folder's damage")
        return cls(*parts, size=size)

    @property
    def noise_level(self) -> float:
        """Standard deviation of the grey noise."""
        radius = _radius(self.size)
        return float(_interpolated(radius, self.frequency, self.noise).mean().clamp_min(0).sqrt())

    def kept_to(self, share: float = 0.5) -> float:
        """The frequency, in cycles a pixel, from which on less than `share` of a sharp face's amplitude is left."""
        low = (self.transfer < share).nonzero()
        return float(self.frequency[low[0, 0]]) if len(low) else 0.5


@torch.no_grad()
def estimate_damage(lq: Tensor, restored: Tensor, sharp: Tensor) -> FolderDamage:
    """The damage of the faces `lq`, by what the base makes of them and by what sharp faces are like.

    lq, restored: (N, 3, S, S) RGB in [0, 1], the same faces. sharp: (M, 3, S, S), clean faces of any people, aligned
    alike. A dozen of each are enough for a rough answer, some fifty for a good one. Raises ValueError below 16 pixels.
    """
    size = lq.shape[-1]
    if size < MIN_SIZE:
        raise ValueError(f"faces of {size} pixels are too small to estimate their damage; {MIN_SIZE} are needed")
    seen, made, clean = (_spectra(faces) for faces in (lq, restored, sharp))
    rings = _rings(size)
    s_lq, s_y, s_x = (_ring_means(s.abs().square().mean(0), rings) for s in (seen, made, clean))
    cross = _ring_means((seen * made.conj()).mean(0).real, rings)
    signal = torch.minimum(cross.clamp_min(0).square() / s_y.clamp_min(FLOOR), s_lq)
    power = signal / s_x.clamp_min(FLOOR)
    frequency = torch.tensor([(a + b) / 2 for a, b in pairwise(_edges(size).tolist())], dtype=torch.float64)
    plain = frequency * size / 128 < PLAIN_BELOW
    plain[:2] = True
    scale = (signal[plain].sum() / s_x[plain].sum().clamp_min(FLOOR)).clamp_min(FLOOR)  # contrast, which is not blur
    transfer = _falling((power / scale).sqrt().clamp(0, 1))
    return FolderDamage(frequency, transfer, (s_lq - signal).clamp_min(0), size)


def filter_of(damage: FolderDamage) -> Tensor:
    """The filter (K, K), K odd, without phase, whose transfer is the folder's; for `transplant.filtered`."""
    size = damage.size
    radius = max(1, size // 4 - 1)
    response = damage.transfer_at(_radius(size))
    kernel = torch.fft.fftshift(torch.fft.ifft2(response).real)
    middle = size // 2
    kernel = kernel[middle - radius : middle + radius + 1, middle - radius : middle + radius + 1]
    return (kernel / kernel.sum()).float()


def _spectra(faces: Tensor) -> Tensor:
    """Fourier transforms (N, S, S) of the grey faces under a window that ends at 0, scaled so that white noise of
    variance v has the power v at every frequency."""
    grey = where_all_works(faces).double().mean(1)
    size = grey.shape[-1]
    window = torch.hann_window(size, periodic=False, dtype=torch.float64, device=grey.device)
    window = window[:, None] * window
    mean = (grey * window).sum((1, 2), keepdim=True) / window.sum()
    return (torch.fft.fft2((grey - mean) * window) / window.square().sum().sqrt()).cpu()


def _radius(size: int) -> Tensor:
    f = torch.fft.fftfreq(size, dtype=torch.float64)
    return (f[:, None].square() + f.square()).sqrt()


def _edges(size: int) -> Tensor:
    """(R + 1,): where the rings of spatial frequency begin and end, in cycles a pixel."""
    return torch.linspace(0.0, 0.5, min(MAX_RINGS, 3 * size // 8) + 1, dtype=torch.float64)


def _rings(size: int) -> Tensor:
    """(S, S): the ring of each frequency; the corners beyond half a cycle a pixel are in one more, not used."""
    return torch.bucketize(_radius(size), _edges(size)[1:], right=False)


def _ring_means(power: Tensor, rings: Tensor) -> Tensor:
    """(R,): means of `power` (S, S) over each ring."""
    count = torch.bincount(rings.flatten())
    total = torch.zeros(len(count), dtype=torch.float64).index_add_(0, rings.flatten(), power.flatten())
    return (total / count)[:-1]


def _falling(transfer: Tensor) -> Tensor:
    """Smoothed over neighbouring rings; what grows again far out is noise that was taken for a face."""
    padded = torch.cat([transfer[:1], transfer, transfer[-1:]])
    smooth = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return torch.cummin(smooth, 0).values


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Piecewise linear through (x, y), constant beyond the ends."""
    right = torch.searchsorted(x, at.double().contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = ((at - x[left]) / (x[right] - x[left])).clamp(0, 1)
    return torch.lerp(y[left], y[right], share)
