"""The rest of a photo, around its faces: what restores it, and at which scale.

The adapted network is made for faces of one size. So it sees the rest of a photo at the scale at which it sees the
photo's faces, in tiles of its own size: networks such as NAFNet take means over all that they are given, and know them
from such pictures only. Source of that observation: arXiv:2112.04491.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..damage.grey import given_to_restorer, is_nearly_grey, tinted
from ..damage.tone import with_tone
from ..faces.align import Face, crop_face
from ..faces.paste import face_patches
from ..files.photos import printable
from ..files.tensors import sha256_of
from ..files.weights import folders_named_by, licence_of, search_folders, weights_folder
from ..pixels import resized
from ..restorers import Restorer
from ..restorers.load import load_general
from .blocks import read_jpeg, within_steps
from .even_tone import tone_for_network, with_own_tone
from .finest_band import levels_for
from .finishing import NEAR, with_detail
from .tiles import SMALLEST, in_tiles

OFF, ADAPTED = "off", "adapted"
BACKGROUND_TEXT = (
    "What restores the rest of the photo, around its faces: off leaves it as it is; adapted is the adapted restorer, "
    "in tiles and at the scale of the photo's faces; a file is that of any general restorer that spandrel opens, a "
    "denoiser or Real-ESRGAN, whose result gets the photo's size."
)
GENERAL_FOLDERS = ("upscale_models", "ESRGAN", "RealESRGAN")  # as hosts name theirs
ALSO_GENERAL = "BFR_UPSCALERS_ALSO"  # the variable that names more such folders, as PATH does
SUFFIXES = (".safetensors", ".pth")
LARGEST_SCALE = 4.0  # a photo is not enlarged more than so for the sake of tiny faces
SHARE = 3 / 8  # of the adapted network's size: what its tiles have in common
GENERAL_TILE, GENERAL_OVERLAP = 512, 64  # pixels, for the network of a file
RIM_SIDE = 64  # pixels of the crop of a face that stays as it is
TONE_SIDE = 512  # pixels to which a photo is shrunk to read its range of tones
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Background:
    """A network for the rest of photos.

    name, sha256, licence: of its file, for the record. general: (B, 3, h, w) -> (B, 3, n h, n w) in [0, 1], of a file,
    and its enlargement. adapted: the restorer of the faces; one of the two is None.
    """

    name: str
    sha256: str
    licence: str
    general: Network | None = None
    enlarges: int = 1
    adapted: Restorer | None = None


def offered_backgrounds() -> dict[str, str]:
    """What pages and hosts offer for `RestoreConfig.background`, by the name that is shown: no other file may be named.

    The files are those of the folders of general restorers among `weights.search_folders`, and of those that
    $BFR_UPSCALERS_ALSO names, whatever they are called.
    """
    own: list[Path] = []
    with contextlib.suppress(ValueError):  # a computer that has no such folder
        own = [weights_folder() / GENERAL_FOLDERS[0]]
    known = [folder for folder in search_folders() if folder.name in GENERAL_FOLDERS]
    folders = [*own, *folders_named_by(ALSO_GENERAL), *known]
    files = [file for folder in folders for file in sorted(folder.glob("*")) if file.suffix.lower() in SUFFIXES]
    return {OFF: OFF, ADAPTED: ADAPTED} | {file.name: str(file) for file in reversed(files)}


def offered_background(name: str) -> str:
    """The value of `RestoreConfig.background` for a name of `offered_backgrounds`. Raises ValueError for another."""
    offered = offered_backgrounds()
    if name not in offered:
        raise ValueError(f"background is {printable(str(name))!r}; it must be {' or '.join(map(printable, offered))}")
    return offered[name]


def load_background(choice: str, restorer: Restorer) -> Background | None:
    """What `RestoreConfig.background` asks for, on the restorer's device; None if that is off.

    Raises ValueError if the restorer can make faces only, or the file is not that of a general restorer, and
    FileNotFoundError if it is not there.
    """
    if choice == OFF:
        return None
    if choice == ADAPTED:
        if restorer.for_background(()).makes_faces_only:
            raise ValueError(
                f"background is adapted, but {restorer.name} is a {restorer.architecture}, which makes faces only; "
                "set it to off, or to the file of a general restorer"
            )
        return Background(restorer.name, restorer.sha256, restorer.licence, adapted=restorer)
    descriptor, path = load_general(choice)
    descriptor.to(restorer.device)
    digest = sha256_of(path)
    return Background(path.name, digest, licence_of(digest), partial(_called, descriptor), descriptor.scale)


def _called(descriptor: object, tiles: Tensor) -> Tensor:
    """A descriptor's answer to tiles, in float32, one at a time as it wants them; raises ValueError if it is NaN."""
    made = torch.cat([descriptor(tile.to(descriptor.device)).float().cpu() for tile in tiles.split(1)])  # type: ignore
    if not torch.isfinite(made).all():
        raise ValueError("the network for the rest of the photo gave NaN; its weights are damaged")
    return made


def restore_background(
    photo: Tensor,
    background: Background,
    widths: Sequence[float] = (),
    *,
    served: Sequence[str] = (),
    at_once: int = 8,
    even_tone: bool = True,
    keep_detail: bool = True,
    check: Callable[[], None] | None = None,
) -> Tensor:
    """`photo` (3, H, W) RGB in [0, 1], restored all over, of the same shape, on its device; grey if it was.

    widths: of the photo's faces in pixels, whose median says at which scale the adapted network sees the photo; it is
    the photo's own where there are none. served: what restored the faces, see `Restorer.restore_and_tell`. at_once:
    tiles in the adapted network. even_tone, keep_detail: as for faces, see `RestoreConfig`; of the adapted network
    only. check: called after every call of the network; what it raises ends the work.
    """
    pixels = photo.detach().cpu().float()
    lq = given_to_restorer(pixels)
    if background.adapted:
        net = background.adapted.for_background(served)
        width = statistics.median(widths) if widths else float(net.size)
        new = _by_adapted(lq, net, min(net.size / width, LARGEST_SCALE), at_once, even_tone, check)
        jpeg = read_jpeg(lq) if keep_detail else None
        if keep_detail and width >= NEAR * net.size:
            new = with_detail(lq, new, levels_for(width, net.size), jpeg)
        if jpeg:
            new = within_steps(lq, new, jpeg)
    else:
        new = _by_general(lq, background, check)
    new = new.clamp(0, 1)
    return (tinted(new, pixels) if is_nearly_grey(pixels) else new).to(photo)


def _by_adapted(
    photo: Tensor, net: Restorer, scale: float, at_once: int, even_tone: bool, check: Callable[[], None] | None
) -> Tensor:
    """The photo through the network of the faces, which sees it enlarged by `scale` in tiles of its own size."""
    side = max(1, round(net.size / scale))
    tone = tone_for_network(_small(photo)) if even_tone else None

    def network(tiles: Tensor) -> Tensor:
        height, width = tiles.shape[-2:]
        square = F.pad(tiles, (0, side - width, 0, side - height), mode="replicate")
        made = net.restore(resized(square, net.size).clamp(0, 1)).cpu()
        if check:
            check()
        return resized(made, side).clamp(0, 1)[..., :height, :width]

    # The network knows no other size, so that its tiles are never halved.
    tiles = in_tiles(
        with_tone(photo, tone) if tone else photo, network, side, round(SHARE * side), at_once=at_once, smallest=side
    )
    return with_own_tone(tiles, photo, tone) if tone else tiles


def _by_general(photo: Tensor, background: Background, check: Callable[[], None] | None) -> Tensor:
    """The photo through a file's network, at its own scale; what the network enlarges is brought back to size."""
    general = background.general
    assert general is not None

    def network(tiles: Tensor) -> Tensor:
        made = general(tiles)
        if check:
            check()
        return resized(made, tuple(tiles.shape[-2:])).clamp(0, 1)

    # Tiles of a network that enlarges are smaller, because its own pictures are so much larger.
    side = max(SMALLEST, GENERAL_TILE // background.enlarges)
    return in_tiles(photo, network, side, min(GENERAL_OVERLAP, side // 4))


def _small(photo: Tensor) -> Tensor:
    """`photo`, no longer than `TONE_SIDE` pixels: torch.quantile refuses more than 16 million values."""
    shrink = min(1.0, TONE_SIDE / max(photo.shape[-2:]))
    return resized(photo[None], [max(1, int(n * shrink)) for n in photo.shape[-2:]], "area")[0]


def with_faces_of(photo: Tensor, ground: Tensor, faces: Sequence[Face]) -> Tensor:
    """`ground` (3, H, W) with `faces` as `photo` has them, each in a square with a soft rim.

    These are the faces that were found and are not restored.
    """
    result = ground.clone()
    for face in faces:
        crop = crop_face(photo, face, RIM_SIDE)  # it changes nothing; the rim is what is wanted
        for patch in face_patches(photo, crop, face, crop):
            result[patch.place] = torch.lerp(result[patch.place], patch.pixels, patch.mask)
    return result
