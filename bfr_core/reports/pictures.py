"""Small pictures that show how a run is going: faces side by side, and a curve. No plotting package is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

MARGIN = 26  # pixels around a curve, for the figures at its ends
INK, PAPER, LINE = (40, 40, 40), (255, 255, 255), (32, 96, 192)


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Pictures (3, H, W) in [0, 1] in a row, all at the height of the tallest: (3, H, W1 + W2 + ...)."""
    height = max(image.shape[-2] for image in images)
    return torch.cat([_at_height(image.float().cpu(), height) for image in images], -1).clamp(0, 1)


def sheet(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Rows of pictures, each as `side_by_side` gives it, one below the other; shorter rows are filled with white."""
    made = [side_by_side(row) for row in rows]
    width = max(row.shape[-1] for row in made)
    return torch.cat([F.pad(row, (0, width - row.shape[-1]), value=1.0) for row in made], -2)


def draw_curve(points: Sequence[tuple[int, float]], title: str, width: int = 512, height: int = 256) -> Tensor:
    """A curve over steps, smoothed, with its least and greatest value: (3, height, width) in [0, 1].

    points: (step, value); with fewer than two, or none that is finite, only the title is drawn.
    """
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 6), title.encode("latin-1", "replace").decode("latin-1"), INK)
    points = [(step, value) for step, value in points if math.isfinite(value)]
    if len(points) > 1:
        steps, values = (np.array(column, float) for column in zip(*points, strict=True))
        window = max(1, len(values) // 25)
        smooth = np.convolve(
            np.pad(values, (window // 2, window - 1 - window // 2), "edge"), np.ones(window) / window, "valid"
        )
        low, high = float(smooth.min()), float(smooth.max())
        x = MARGIN + (steps - steps[0]) / (steps[-1] - steps[0]) * (width - 2 * MARGIN)
        y = height - MARGIN - (smooth - low) / max(high - low, 1e-12) * (height - 2 * MARGIN)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), LINE, 2)
        draw.text((4, MARGIN - 4), f"{high:.4g}", INK)
        draw.text((4, height - MARGIN - 6), f"{low:.4g}", INK)
        draw.text((MARGIN, height - 16), f"step {steps[0]:.0f} to {steps[-1]:.0f}", INK)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _at_height(image: Tensor, height: int) -> Tensor:
    if image.shape[-2] == height:
        return image
    width = max(1, round(image.shape[-1] * height / image.shape[-2]))
    return F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
