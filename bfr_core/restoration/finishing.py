"""What is done to a pasted face so that it is no worse than its photo: lost detail and grain are put back.

A face that is less sharp even so stays as the photo has it if that is clean, and loses only its blocks if it is a JPEG
without other damage. Aligned faces, from edge to edge, are never finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..damage.grey import is_grey
from ..device import where_all_works
from ..faces.align import Face, crop_face
from ..faces.paste import STRIP_PIXELS, Patch
from ..metrics.detail import sharpness
from ..pixels import as_bytes, luma
from .blocks import BLOCK, Jpeg, read_jpeg, unblocked, within_steps
from .finest_band import levels_for, weights
from .grain import ALL_COARSE_GRAIN, grain_bands, grain_strength, white_rows
from .noise import ALL_PATTERN, NO_BLOCKS, Noise, read_noise, tone_maps
from .pyramid import joined, padded, split

NEAR = 0.5  # of the restorer's size: of a narrower face in a JPEG too little is left without the blocks
FINEST = 85  # quality of a JPEG from which on its blocks are too faint to be mistaken for the detail of a narrow face
READ = 256  # pixels of a side of what a photo's JPEG is read off, at least
AROUND = 0.25  # of the pasted square's side: how far around it the photo's noise is read
GRAIN_LEVELS = 3  # bands that grain is put back in, at least
REACH = 8  # pixels of the coarsest band that a result may depend on, to each side
CLEAN = 4.5 / 255  # deviation of the finest band up to which a photo is nearly free of noise
COARSEST = 20  # quality of a JPEG: below it more is lost than a restorer gets wrong
AS_SHARP, MUCH_SHARPER = 0.995, 2.5  # of the photo's sharpness: less than the first is worse
SHARP = 0.8  # of a clean face, see `sharpness`: in a JPEG, noise that was stored makes a blurred face pass for sharper
INSIDE = 0.6  # of a face's width: all of it is pasted in full
WIDEST = 1024  # pixels of a face at which sharpness is measured, at most


def finished(
    photo: Tensor,
    patches: list[Patch],
    face: Face,
    size: int,
    *,
    keep_detail: bool,
    match_grain: bool,
    may_leave_alone: bool = True,
) -> tuple[list[Patch], str]:
    """`patches` with what they lack of the photo's detail and grain; and why, if `face` is not restored.

    It is then left alone, without patches, or only the blocks of its JPEG are taken out.

    photo: (3, H, W) RGB in [0, 1], before the patches of `face` are put on it. patches: as `paste.face_patches` gives
    them. size: of the restorer. Outside the patches' masks nothing changes, a grey photo stays grey, and one photo
    always gets the same grain. In a JPEG with blocks, faces narrower than `NEAR` times the restorer's size keep no more
    than the steps that it was stored in. may_leave_alone: if not, the face is restored in any case.
    """
    stored = _read_jpeg_around(photo, patches) if keep_detail and patches else None
    if stored:
        patches = _within_steps(photo, patches, stored)
    if not patches or not (keep_detail or match_grain):
        return patches, ""
    levels = max(GRAIN_LEVELS, levels_for(face.width, size))
    noise = read_noise(_around(photo, patches), levels, face.width)
    blocks_are_seen = noise.blocks > NO_BLOCKS or (stored is not None and stored.quality < FINEST)
    keep_detail = keep_detail and (face.width >= NEAR * size or not blocks_are_seen)
    match_grain = match_grain and grain_strength(noise) > 0
    old = where_all_works(_covered(photo, patches))
    jpeg = stored if keep_detail and noise.blocks > NO_BLOCKS else None
    source = torch.lerp(old, unblocked(old.cpu(), jpeg).to(old), _mask(patches)) if jpeg else old
    if keep_detail or match_grain:
        error = old - source if jpeg else None
        patches = list(_finished_strips(old, source, error, patches, noise, levels, keep_detail, match_grain))
    if not keep_detail or not may_leave_alone or not _is_clean(noise):
        return patches, ""
    if jpeg and jpeg.quality >= COARSEST and (softer := _softer(source, patches, face, SHARP)):
        return [_in_place_of(patch, source, patches[0].top) for patch in patches], _unblocked(face, size, *softer)
    softer = _softer(old, patches, face) if noise.blocks <= NO_BLOCKS else None
    return ([], _left_alone(face, size, *softer)) if softer else (patches, "")


def with_detail(photo: Tensor, new: Tensor, levels: int, jpeg: Jpeg | None) -> Tensor:
    """`new` with the detail of `photo` that it lacks, as far as it is neither noise nor a JPEG's blocks and error.

    photo, new: (3, H, W) in [0, 1], whole pictures on the CPU; so is the result. levels: how many bands may hold such
    detail, see `finest_band.levels_for`. jpeg: what `photo` comes from, if that can be read.
    """
    patches = [Patch(0, 0, new, new.new_ones(1, *new.shape[-2:]))]
    noise = read_noise(photo, levels)
    jpeg = jpeg if noise.blocks > NO_BLOCKS else None
    source = unblocked(photo, jpeg) if jpeg else photo
    error = photo - source if jpeg else None
    strips = _finished_strips(photo, source, error, patches, noise, levels, keep_detail=True, match_grain=False)
    return _pasted(list(strips))


def finished_on(
    ground: Tensor,
    photo: Tensor,
    patches: list[Patch],
    face: Face,
    size: int,
    *,
    keep_detail: bool,
    match_grain: bool,
    may_leave_alone: bool = True,
) -> tuple[list[Patch], str]:
    """As `finished`, for `patches` that lie on another `ground` than the photo whose detail is kept.

    ground, photo: (3, H, W) in [0, 1] both. Grain is matched to that of `ground`.
    """
    detail = {"keep_detail": keep_detail, "may_leave_alone": may_leave_alone}
    kept, not_restored = finished(photo, patches, face, size, match_grain=False, **detail)
    if not kept:
        return [], not_restored
    first, mask, plain = patches[0], torch.cat([p.mask for p in patches], 1), _pasted(patches)
    # By the mask, because outside the patches `finished` gives the photo, and the ground is another picture.
    whole = Patch(first.top, first.left, torch.lerp(plain, _pasted(kept).to(plain), mask), mask)
    return finished(ground, [whole], face, size, keep_detail=False, match_grain=match_grain)[0], not_restored


def _read_jpeg_around(photo: Tensor, patches: list[Patch]) -> Jpeg | None:
    """The JPEG that `photo` is, with the first corner in the patches' box: read off more of it where that is small."""
    (height, width), top, left = _covered(photo, patches).shape[-2:], patches[0].top, patches[0].left
    more = max(0, (READ - min(height, width)) // 2)
    first_row, first_column = max(0, top - more), max(0, left - more)
    around = photo[:, first_row : top + height + more, first_column : left + width + more]
    jpeg = read_jpeg(around.detach().cpu().float())
    if not jpeg:
        return None
    return jpeg._replace(top=(jpeg.top + first_row - top) % BLOCK, left=(jpeg.left + first_column - left) % BLOCK)


def _within_steps(photo: Tensor, patches: list[Patch], jpeg: Jpeg) -> list[Patch]:
    """`patches` as `blocks.within_steps` gives them. jpeg: its first corner is counted from the patches' box."""
    old, mask = _covered(photo, patches).detach().cpu().float(), _mask(patches).cpu()
    new = _pasted(patches).cpu().float()
    pixels = torch.where(mask > 0, within_steps(old, new, jpeg, mask), new)  # blocks reach beyond the mask
    parts = pixels.split([patch.pixels.shape[-2] for patch in patches], 1)
    return [replace(patch, pixels=part.to(patch.pixels)) for patch, part in zip(patches, parts, strict=True)]


def _is_clean(noise: Noise) -> bool:
    """Whether the photo is nearly free of noise and dots; coarse grain is not seen in the finest band."""
    is_grainy = noise.deviation(0) > CLEAN or max(noise.coarse, default=0.0) >= ALL_COARSE_GRAIN
    return not is_grainy and noise.pattern < ALL_PATTERN


def _softer(source: Tensor, patches: list[Patch], face: Face, least: float = 0.0) -> tuple[float, float] | None:
    """The sharpness of `face` in `source` and in `patches` if they make it less sharp; None if they do not.

    source: (3, h, w), the patches' box as the photo has it. The face and its middle are measured; where the middle
    becomes much sharper, it may cost sharpness around it. least: None if it is not even as sharp as this in `source`.
    """
    moved = replace(face, landmarks=face.landmarks - [patches[0].left, patches[0].top])
    whole, inside = zip(*(_sharpness(part, moved) for part in (source, _pasted(patches))), strict=True)
    gained = [after / max(before, 1e-6) for before, after in (whole, inside)]
    if whole[0] < least or min(gained) >= AS_SHARP or gained[1] >= MUCH_SHARPER:
        return None
    return whole if gained[0] < AS_SHARP else inside


def _in_place_of(patch: Patch, source: Tensor, top: int) -> Patch:
    """`patch` with `source`, of which `top` is the first row, in place of the restored face."""
    first = patch.top - top
    part = source[:, first : first + patch.pixels.shape[-2]].to(patch.pixels)
    return replace(patch, pixels=part)


def _left_alone(face: Face, size: int, before: float, after: float) -> str:
    return (
        f"a face {face.width:.0f} pixels wide is left alone: the photo is clean, and sharper there ({before:.2f}) than "
        f"the restorer of {size} pixels makes it ({after:.2f})"
    )


def _unblocked(face: Face, size: int, before: float, after: float) -> str:
    return (
        f"of a face {face.width:.0f} pixels wide only the blocks of the JPEG are taken out: it is sharper "
        f"({before:.2f}) than the restorer of {size} pixels makes it ({after:.2f})"
    )


def _sharpness(photo: Tensor, face: Face) -> tuple[float, float]:
    """Sharpness of a face in the photo's own pixels, and of its middle, away from the rim of what is pasted."""
    crop = crop_face(photo, face, min(round(face.width), WIDEST))
    rim = round((1 - INSIDE) / 2 * crop.shape[-1])
    middle = crop[:, rim : crop.shape[-1] - rim, rim : crop.shape[-1] - rim]
    return float(sharpness(crop[None])), float(sharpness(middle[None]))


def _finished_strips(
    old: Tensor,
    source: Tensor,
    error: Tensor | None,
    patches: list[Patch],
    noise: Noise,
    levels: int,
    keep_detail: bool,
    match_grain: bool,
) -> Iterator[Patch]:
    """The patches' box in strips again, finished; each is worked out with enough rows around it for strips to join.

    old: what the box covers of the photo, (3, h, w). source: the same, within the mask without the blocks of a JPEG.
    error: what that took out, if there were any.
    """
    new, device = where_all_works(_pasted(patches)), patches[0].pixels.device
    mask = _mask(patches)
    grey = is_grey(old)
    if grey:  # one channel throughout, so that rounding cannot tint it
        old, new, source = old[:1], new[:1] if is_grey(new) else luma(new), source[:1]
        error = None if error is None else error[:1]
    height, width = old.shape[-2:]
    step = 2**levels
    halo, rows = REACH * step, max(step, STRIP_PIXELS // width // step * step)
    place = (patches[0].left, patches[0].top, int(as_bytes(old).sum()))
    for top in range(0, height, rows):
        bottom, first, last = min(top + rows, height), max(0, top - halo), min(height, top + rows + halo)
        y, p, m = (padded(whole[:, first:last], levels) for whole in (source, new, mask))
        tones, photo_bands, bands = tone_maps(_as_colour(y), levels), split(y, levels), split(p, levels)
        lost = [theirs - ours for theirs, ours in zip(photo_bands, bands, strict=True)]
        kept = [torch.zeros_like(tone) for tone in tones]
        if keep_detail:
            stored = None if error is None else split(padded(error[:, first:last], levels), levels)
            kept = weights(photo_bands, bands, tones, noise, stored)
        added = [share * gone for share, gone in zip(kept, lost, strict=True)]
        if match_grain:
            lost = [gone - back for gone, back in zip(lost, added, strict=True)]
            newness = [F.avg_pool2d(m, 2**k) * (1 - share) for k, share in enumerate(kept)]
            white = split(padded(white_rows(first, last, width, *place).to(old), levels), levels)
            grain = grain_bands(lost, newness, white, tones, noise)
            added = [one + other for one, other in zip(added, grain, strict=True)]
        finer = (p + joined(added))[:, top - first : bottom - first, :width].clamp(0, 1)
        part = mask[:, top:bottom]
        pixels = torch.where(part > 0, finer, old[:, top:bottom]).expand(3, -1, -1)
        yield Patch(patches[0].top + top, patches[0].left, pixels.to(device), part.to(device))


def _covered(photo: Tensor, patches: list[Patch]) -> Tensor:
    """What of `photo` the patches' box covers, (3, h, w)."""
    first, last = patches[0], patches[-1]
    height, width = last.pixels.shape[-2:]
    return photo[:, first.top : last.top + height, first.left : first.left + width]


def _pasted(patches: list[Patch]) -> Tensor:
    """The patches in one piece: (3, h, w)."""
    return torch.cat([patch.pixels for patch in patches], 1)


def _around(photo: Tensor, patches: list[Patch]) -> Tensor:
    """What of `photo` lies in the patches' box and around it, (3, h, w) on the CPU."""
    height, width = _covered(photo, patches).shape[-2:]
    more = round(AROUND * max(height, width))
    top, left = patches[0].top, patches[0].left
    part = photo[:, max(0, top - more) : top + height + more, max(0, left - more) : left + width + more]
    return part.detach().cpu().float()


def _mask(patches: list[Patch]) -> Tensor:
    """The patches' masks in one piece: (1, h, w)."""
    return where_all_works(torch.cat([patch.mask for patch in patches], 1))


def _as_colour(image: Tensor) -> Tensor:
    return image.expand(3, -1, -1)
