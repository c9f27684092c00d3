"""Where a face is, and the similarity that moves it to the standard crop and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works
from ..pixels import resized

# Left eye, right eye, nose, left and right mouth corner (as seen in the picture) in a 512 x 512 crop:
# the FFHQ-style template of facexlib, on which CodeFormer, GFPGAN and RestoreFormer were trained.
TEMPLATE_512 = np.array(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)


@dataclass(frozen=True)
class Face:
    """A face found in a photo.

    landmarks: (5, 2) float64, x and y in photo pixels, an integer being a pixel's centre; order of `TEMPLATE_512`.
    score: detector's confidence in [0, 1].
    """

    landmarks: np.ndarray
    score: float = 1.0

    @property
    def width(self) -> float:
        """Side, in photo pixels, of the square that becomes the standard crop."""
        return 1.0 / similarity_scale(similarity(self.landmarks, template(1)))


def template(size: int) -> np.ndarray:
    """Landmarks of the standard crop of `size` x `size` pixels, (5, 2) float64."""
    return (TEMPLATE_512 + 0.5) * (size / 512) - 0.5


def similarity(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    """Least-squares rotation, uniform scale and shift that moves `src` onto `dst`.

    src, dst: (K, 2), K >= 2 points. Returns (2, 3) float64: dst = M[:, :2] @ src + M[:, 2].
    Raises ValueError if the points of `src` coincide.
    """
    src, dst = np.asarray(src, np.float64), np.asarray(dst, np.float64)
    s, d = src - src.mean(0), dst - dst.mean(0)
    spread = (s**2).sum()
    if not spread > 1e-9:
        raise ValueError("the face landmarks coincide; no crop can be made from them")
    a = (s * d).sum() / spread
    b = (s[:, 0] * d[:, 1] - s[:, 1] * d[:, 0]).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    return np.concatenate([linear, (dst.mean(0) - linear @ src.mean(0))[:, None]], 1)


def similarity_scale(matrix: np.ndarray) -> float:
    """Enlargement of a (2, 3) similarity."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a (2, 3) affine map."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -(linear @ matrix[:, 2])[:, None]], 1)


def warp(image: Tensor, matrix: np.ndarray, height: int, width: int, padding_mode: str = "reflection") -> Tensor:
    """Resample `image` so that photo point p lands on M p, without aliasing when M shrinks.

    image: (B, C, H, W) float, any range. matrix: (2, 3), source to result, in pixel-centre coordinates.
    padding_mode: as in torch's grid_sample. Returns (B, C, height, width), clipped to the range of `image`. The grid is
    computed in float64 on the CPU.
    """
    device, image = image.device, where_all_works(image)
    scale = similarity_scale(matrix)
    if scale < 0.9:
        new_h, new_w = (max(1, round(n * scale)) for n in image.shape[-2:])
        shrink = np.array([new_w / image.shape[-1], new_h / image.shape[-2]])
        small = resized(image, (new_h, new_w))
        # small_xy = (xy + 0.5) * shrink - 0.5, so M is composed with the inverse of that.
        linear = matrix[:, :2] / shrink
        matrix = np.concatenate([linear, (matrix[:, 2] + linear @ (0.5 - 0.5 * shrink))[:, None]], 1)
    else:
        small = image
    inverse = torch.from_numpy(invert(matrix))
    ys, xs = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    source = torch.stack([xs, ys, torch.ones_like(xs)], -1) @ inverse.T  # (height, width, 2)
    size = torch.tensor([small.shape[-1], small.shape[-2]], dtype=torch.float64)
    grid = ((source + 0.5) * 2 / size - 1).to(small).expand(len(image), -1, -1, -1)
    out = F.grid_sample(small, grid, mode="bicubic", padding_mode=padding_mode, align_corners=False)
    return out.clamp(image.amin(), image.amax()).to(device)


def warp_region(photo: Tensor, matrix: np.ndarray, height: int, width: int) -> Tensor:
    """`warp` of one (C, H, W) photo that reads only the part that is seen, however large the photo is.

    Returns (C, height, width), clipped to the range of that part.
    """
    part, local = part_seen(photo, matrix, height, width)
    return warp(part[None], local, height, width)[0]


def part_seen(photo: Tensor, matrix: np.ndarray, height: int, width: int) -> tuple[Tensor, np.ndarray]:
    """The part of a (C, H, W) photo that `warp_region` needs, and the matrix in coordinates of that part."""
    corners = np.array([[-1, -1], [width, -1], [-1, height], [width, height]], np.float64)
    inverse = invert(matrix)
    box = corners @ inverse[:, :2].T + inverse[:, 2]
    margin = max(8, int(2 / similarity_scale(matrix)))
    extent = np.array(photo.shape[:0:-1])
    x0, y0 = np.clip(np.floor(box.min(0)) - margin, 0, extent - 1).astype(int)
    x1, y1 = np.clip(np.ceil(box.max(0)) + margin, (x0 + 1, y0 + 1), extent).astype(int)
    local = matrix.copy()
    local[:, 2] += matrix[:, :2] @ np.array([x0, y0])
    return photo[:, y0:y1, x0:x1], local


def crop_face(photo: Tensor, face: Face, size: int) -> Tensor:
    """The standard crop of `face`: (3, H, W) photo -> (3, size, size), same range."""
    return warp_region(photo, similarity(face.landmarks, template(size)), size, size)
