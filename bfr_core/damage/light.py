"""How light a face is, coarsely: what a photo tells of it in spite of damage, and what people differ in.

Two uses. Sharp faces of other people, by which a folder's damage is found, are first given the folder's brightness and
contrast: otherwise people who are lit more softly than they are taken for blurred ones. And a sharp face that was given
the damage is made as light and as dark again as it was: a model of damage that darkens faces by a trifle too much would
teach a restorer to lighten all of them.
"""

from __future__ import annotations

from torch import Tensor

from ..pixels import gaussian_blur, luma
from .grey import grey_like
from .synthetic import DESIGN_SIZE

KEPT = 3.0  # pixels of a face 128 wide: the light of a place is the mean around it, by a Gaussian of this sigma
FINE, COARSE = 4.0, 8.0  # the same, of the band whose strength is the contrast; damage leaves it nearly as it was
SHARE = 2 / 3  # of the ratio of contrasts that fine detail has, too, as an exponent
MAX_CONTRAST = 2.0  # times that of the sharp faces, or a share of it
MAX_SPREAD = 1.5


def with_light_of(made: Tensor, face: Tensor) -> Tensor:
    """`made`, damaged faces (B, 3, S, S) in [0, 1], each place as light as in `face`, the same without the damage."""
    sigma = KEPT * made.shape[-1] / DESIGN_SIZE
    return (made + _smoothed(luma(face) - luma(made), sigma)).clamp(0, 1)


def lit_like(faces: Tensor, others: Tensor) -> Tensor:
    """`faces` (M, 3, S, S) with the brightness, how it varies, and the contrast of `others` (N, 3, S, S), in [0, 1],
    and as many of them grey.

    The contrast is that of details of a twentieth to a tenth of the face; faces that differ in it differ less in finer
    detail, see `SHARE`. Colours stay.
    """
    others = others.to(faces)
    own, wanted = luma(faces), luma(others)
    contrast = (_contrast(wanted) / _contrast(own)).clamp(1 / MAX_CONTRAST, MAX_CONTRAST) ** SHARE
    mean, wanted_mean = (light.mean((1, 2, 3), keepdim=True) for light in (own, wanted))
    spread = (wanted_mean.std(correction=0) / mean.std(correction=0).clamp_min(1e-6)).clamp_max(MAX_SPREAD)
    brightness = wanted_mean.mean() + spread * (mean - mean.mean())
    return grey_like((faces + contrast * (own - mean) + brightness - own).clamp(0, 1), others)


def _contrast(light: Tensor) -> Tensor:
    """The strength of the coarse band of `light` (B, 1, S, S), of the face that has the median."""
    edge, scale = light.shape[-1] // 8, light.shape[-1] / DESIGN_SIZE
    smooth = _smoothed(light, FINE * scale)
    band = (smooth - _smoothed(smooth, COARSE * scale))[..., edge:-edge, edge:-edge]
    return band.square().mean((1, 2, 3)).median().clamp_min(1e-10).sqrt()


def _smoothed(light: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(light, sigma, round(3 * sigma), "replicate")
