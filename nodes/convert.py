"""ComfyUI's pictures and ours: IMAGE is (B, H, W, C), MASK is (B, H, W), ours are (B, 3, H, W); all in [0, 1]."""

from __future__ import annotations

import logging
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..bfr_core.pixels import as_bytes, resized

log = logging.getLogger(__name__)


def to_photos(image: Tensor, name: str = "images") -> Tensor:
    """IMAGE with 1, 3 or 4 channels -> a copy (B, 3, H, W) float32 RGB on the CPU, usable in training.

    name: of the input. Raises ValueError, which names it, for another shape, or where there is no picture. Pixels that
    are not a number, as a VAE in half precision gives them, become black, with a warning.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{name} has the shape {tuple(image.shape)}; it must be pictures of 1, 3 or 4 channels")
    if not image.numel():
        raise ValueError(f"{name} is empty; connect a node that gives at least one picture")
    photos = image.detach().to("cpu", torch.float32, copy=True).movedim(-1, 1)[:, :3]
    unknown = int(photos.isnan().any(1).sum())
    if unknown:
        log.warning("%s: NaN at %d of the pixels, which are taken as black", name, unknown)
        photos = photos.nan_to_num(0.0)
    return photos.expand(-1, 3, -1, -1).clamp(0, 1).contiguous()


def to_image(photos: Tensor) -> Tensor:
    """(B, 3, H, W) or one (3, H, W) -> IMAGE."""
    photos = photos if photos.ndim == 4 else photos[None]
    return photos.detach().float().cpu().movedim(1, -1).contiguous()


def with_alpha(image: Tensor, source: Tensor) -> Tensor:
    """`image`, an IMAGE made from the IMAGE `source`, with the alpha that `source` has, if it has one."""
    if source.shape[-1] != 4:
        return image
    alpha = source.detach().to("cpu", torch.float32, copy=True)[..., 3]
    if alpha.shape[1:] != image.shape[1:3]:
        alpha = resized(alpha[:, None], image.shape[1:3], "bilinear")[:, 0]
    return torch.cat([image, alpha[..., None].clamp(0, 1)], -1)


def to_mask(mask: Tensor) -> Tensor:
    """(B, 1, H, W) -> MASK."""
    return mask.detach().float().cpu()[:, 0].contiguous()


def to_pillow(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an 8-bit RGB picture."""
    return Image.fromarray(as_bytes(picture.cpu()).permute(1, 2, 0).contiguous().numpy())


def boxes_of(segs: tuple, height: int, width: int) -> Tensor:
    """Boxes (N, 4), left, top, right, bottom, of the Impact Pack's SEGS, moved to a photo of this size.

    segs: (shape of the picture they were found in, list of objects with a `bbox`); an empty one may have any shape.
    Raises ValueError if it is not that.
    """
    try:
        (found_height, found_width), found = map(float, segs[0][:2]), segs[1]
        boxes = [tuple(float(value) for value in seg.bbox) for seg in found]
    except (TypeError, ValueError, AttributeError, LookupError):
        raise ValueError("segs is not what the Impact Pack's detectors give; connect a SEGS output") from None
    if not boxes:
        return torch.empty(0, 4)
    if not (found_height > 0 and found_width > 0):
        raise ValueError(
            f"segs is of a picture of {found_width:g} x {found_height:g} pixels; connect the SEGS output of a "
            "detector that got the picture"
        )
    scale = torch.tensor([width / found_width, height / found_height] * 2)
    moved = torch.tensor(boxes).reshape(-1, 4) * scale
    return moved[moved.isfinite().all(1)]


def segs_list(segs: Any) -> list[Any]:
    """SEGS, or a list of them, as a list. Raises ValueError if it is neither."""
    try:
        if isinstance(segs, tuple | list):
            return [segs] if isinstance(segs[0][0], int | float) else list(segs)
    except (TypeError, IndexError, KeyError):
        pass
    raise ValueError("segs is not what the Impact Pack's detectors give; connect a SEGS output")


def box_lists(boxes: Any) -> list[Tensor]:
    """Boxes (N, 4), left, top, right, bottom, of each picture, from ComfyUI's BOUNDING_BOX.

    boxes: one box, a list of boxes, or a list of such lists, one for each picture; a box is a table of x, y, width and
    height. Raises ValueError if it is not that.
    """
    whole = [boxes] if isinstance(boxes, dict) else boxes
    try:
        lists = whole if whole and not isinstance(whole[0], dict) else [whole]
        found = [[[float(box[name]) for name in ("x", "y", "width", "height")] for box in one] for one in lists]
    except (TypeError, KeyError, ValueError):
        raise ValueError("bboxes is not what ComfyUI's detectors give; connect a BOUNDING_BOX output") from None
    tables = [torch.tensor(one, dtype=torch.float32).reshape(-1, 4) for one in found]
    tables = [torch.cat([table[:, :2], table[:, :2] + table[:, 2:]], 1) for table in tables]
    return [table[table.isfinite().all(1)] for table in tables]
