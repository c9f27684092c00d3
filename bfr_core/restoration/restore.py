"""Restore the faces of a photo: find, align, restore, paste back."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..damage.grey import given_to_restorer, is_grey, is_nearly_grey, tinted
from ..damage.tone import with_tone
from ..device import PRECISIONS, Precision, in_batches, is_out_of_memory
from ..errors import first_line
from ..faces.align import Face, crop_face, template
from ..faces.detect import DETECTOR_TEXT, DETECTORS, THRESHOLD_TEXT, load_detector
from ..faces.parse import FaceParser, has_parser
from ..faces.paste import face_patches
from ..files.photos import printable
from ..files.provenance import Step
from ..metrics.detail import sharpness, sharpness_of_clean
from ..metrics.psnr import psnr
from ..pixels import luma, resized
from ..restorers.base import Restorer
from ..settings import check_settings, setting
from .background import BACKGROUND_TEXT, OFF, Background, load_background, restore_background, with_faces_of
from .even_tone import tone_for_network, with_own_tone
from .finishing import finished, finished_on
from .reference import LIMIT as REFERENCE_LIMIT
from .reference import STRENGTH
from .same_person import (
    ACTIONS,
    PERSON_LIMIT,
    Acted,
    FaceLikeness,
    LikenessCheck,
    counted,
    load_check,
    with_left_alone,
)

log = logging.getLogger(__name__)
RestoreCallback = Callable[[int, int, "Tensor | None"], None]
FindFaces = Callable[[Tensor], list[Face]]  # a FaceDetector, or anything else that answers for a photo
Parser = Callable[[Tensor], Tensor]  # a restored crop (3, S, S) -> the part of it that is pasted, (1, S, S)
# PSNR of a restored crop against what it was made of, in dB. The embedded restorer changes 31 of 32 clean faces by 34.8
# and more, and JPEGs from quality 20 on hardly otherwise; under film grain, camera noise and blur it is 33.4 at most,
# under grain of half the strength 30.8 to 34.7 (10 to 32 faces, 200 to 800 pixels wide). Smeared faces, heavy JPEG and
# some halftones it hardly changes either.
NEARLY_THE_SAME = 34.0
NEARLY_THE_SAME_FADED = 30.5  # of a faded or very dark one in even tones: clean ones have 30.9 and more, grainy ones 27
LARGER = 1.05  # times the restorer's size: above this a warning says that a face is too large
ONE_FACE: dict[str, Callable[[Face], float]] = {  # a choice of one face: the least by this
    "largest": lambda face: -face.width,
    "leftmost": lambda face: face.landmarks[:, 0].mean(),
    "rightmost": lambda face: -face.landmarks[:, 0].mean(),
    "topmost": lambda face: face.landmarks[:, 1].mean(),
    "bottommost": lambda face: -face.landmarks[:, 1].mean(),
}
CHOICES = ("all", *ONE_FACE, "numbered")
NO_WORSE = ("keep_detail", "even_tone", "match_grain")  # settings by which a restored face is no worse than its photo
ORDERS: dict[str, Callable[[Face], float]] = {  # in which faces are numbered: by this, ascending
    "left-right": ONE_FACE["leftmost"],
    "right-left": ONE_FACE["rightmost"],
    "top-bottom": ONE_FACE["topmost"],
    "bottom-top": ONE_FACE["bottommost"],
    "small-large": lambda face: face.width,
    "large-small": ONE_FACE["largest"],
    "sure-doubtful": lambda face: -face.score,
    "doubtful-sure": lambda face: face.score,
}
NUMBERS = re.compile(r"\s*[1-9]\d{0,5}\s*(-\s*([1-9]\d{0,5})?\s*)?")  # a face, or a range of them, which may be open


@dataclass(frozen=True)
class RestoreConfig:
    """How faces are restored."""

    detector: str = setting("auto", DETECTOR_TEXT, choices=DETECTORS, label="Face detector")
    threshold: float = setting(0.5, THRESHOLD_TEXT, low=0, high=1, label="Detector threshold")
    min_face: int = setting(
        16, "The narrowest face that is restored, measured in the photo.", unit="pixels", low=1, label="Smallest face"
    )
    batch_size: int = setting(
        8,
        "How many faces are in the restorer at once. Fewer need less memory.",
        unit="faces",
        low=1,
        label="Faces at once",
    )
    blend: float = setting(
        1.0,
        "How much of the restored face is put on the photo: 0 keeps the photo, 1 takes the restored face.",
        low=0,
        high=1,
        label="Visibility",
    )
    match_colour: bool = setting(True, "Whether the restored face takes the photo's colours.")
    keep_detail: bool = setting(
        True,
        "Whether a face keeps fine detail of the photo that its restoration lacks, as far as it is neither noise nor "
        "blocks, and in a JPEG what the file says of it; a clean face that is less sharp even so is left alone, and a "
        "large one of a JPEG loses only its blocks.",
        label="Keep the photo's detail",
    )
    match_grain: bool = setting(
        True, "Whether a face pasted into a grainy photo gets the grain of its surroundings.", label="Match grain"
    )
    even_tone: bool = setting(
        True,
        "Whether a face of a faded or very dark photo is given a healthy range of tones before the network and its own "
        "after it, so that no outlines are drawn; other faces, and aligned ones, are not touched by it.",
        label="Even tone",
    )
    faces: str = setting("all", "Which faces of each photo are restored.", choices=CHOICES, label="Which faces")
    numbers: str = setting(
        "1",
        "With faces = numbered: which faces, counted in the order, such as 1, 3 or 2-4; 2- is all from the second on.",
        label="Numbers",
    )
    order: str = setting(
        "left-right", "With faces = numbered: the order in which the faces are counted.", choices=tuple(ORDERS)
    )
    skip_sharp: float = setting(
        0.0,
        "A face that is at least this sharp already, at the restorer's size, is left alone: 1 is an average clean "
        "face, 0.8 suits clean photos, and 0 restores all.",
        low=0,
        label="Skip sharp faces",
    )
    mask: str = setting(
        "auto",
        "The part of a restored crop that is pasted: square is the face and what is around it, with a soft rim; face "
        "is face and hair only, which needs ParseNet's file; auto is face where that file is, and square elsewhere.",
        choices=("auto", "square", "face"),
        label="Pasted part",
    )
    likeness: str = setting(
        "warn",
        "What is done with a restored face that no longer looks like the same person: warn says so, keep leaves the "
        "photo as it is there, blend takes as much of the restored face as still looks like the person, at least half, "
        "and off does not look.",
        choices=ACTIONS,
        label="Likeness",
    )
    person_limit: float = setting(
        PERSON_LIMIT,
        "Where only one person's faces are restored: the largest distance of a restored face to that person's photo. "
        "Two photos of one person are about 0.35 apart, those of two people about 0.8.",
        above=0,
        label="Limit of the person",
    )
    reference_strength: float = setting(
        STRENGTH,
        "How strongly the detail of a reference, a good photo of the person, is mixed into the restored face where the "
        "two agree fully.",
        low=0,
        high=1,
        label="Strength of the reference",
    )
    reference_limit: float = setting(
        REFERENCE_LIMIT,
        "The largest distance of a restored face from a reference up to which it may be that person's; to other faces "
        "nothing is lent.",
        above=0,
        label="Limit of the reference",
    )
    precision: Precision = setting(
        "auto",
        "Number format in which photos are restored. auto chooses by the hardware and the kind of network, never by "
        "timing, so that one photo always gives the same pixels on one machine.",
        choices=PRECISIONS,
    )
    background: str = setting(OFF, BACKGROUND_TEXT, label="The rest of the photo")

    def __post_init__(self) -> None:
        check_settings(self)
        if not all(NUMBERS.fullmatch(part) for part in self.numbers.split(",")):
            raise ValueError(
                f'numbers is "{printable(self.numbers)}"; give faces by their numbers, such as "1, 3" or "2-4"'
            )


@dataclass(frozen=True, eq=False)
class RestoredPhoto:
    """A photo with its faces restored.

    pixels: (3, H, W) in [0, 1]. faces: those restored, where they are in it. skipped: why others were not.
    unblocked: those of `faces` of which only the blocks of a JPEG were taken out; why, is in `skipped`.
    mask: (1, H, W) in [0, 1], how new a pixel is. crops: the restored faces, (3, S, S) each. found: faces seen.
    step: for the record of the picture; None if nothing was generated. likeness: whether each restored face is still
    the person, largest first, also of those that were left alone; empty if it was not looked at.
    """

    pixels: Tensor
    faces: list[Face]
    skipped: list[str]
    mask: Tensor
    crops: list[Tensor] = field(default_factory=list)
    found: int = 0
    step: Step | None = None
    likeness: tuple[FaceLikeness, ...] = ()
    unblocked: list[Face] = field(default_factory=list)

    @property
    def generated(self) -> list[Face]:
        """The faces that the restorer made."""
        return others_of(self.faces, self.unblocked)


# ---------------------------------------------------------------- one photo


def restore_photo(
    photo: Tensor,
    restorer: Restorer,
    config: RestoreConfig | None = None,
    detector: FindFaces | None = None,
    *,
    check: Callable[[], None] | None = None,
    enlarge: Callable[[Tensor], Tensor] | None = None,
    name: str = "",
    likeness: LikenessCheck | None = None,
    background: Background | None = None,
    parser: Parser | None = None,
) -> RestoredPhoto:
    """`photo` (3, H, W) RGB in [0, 1] with its faces restored; without config.background all else is as it was.

    check: called after every call of the restorer; what it raises ends the work. enlarge: (3, H, W) -> (3, nH, nW), the
    background that the faces, restored from `photo` itself, are pasted into. name: of the photo, for the log.
    likeness: the check of config.likeness, where it is loaded already or looks for one person. background: the network
    of config.background, where it is loaded already; a face that is found and not restored stays as the photo has it.
    parser: that of config.mask, where it is loaded already.
    A face that fails does not stop the others: the reason is in `skipped`. A grey photo stays grey, and a face that is
    nearly grey keeps its tint and gets no other colours. Whoever writes the result as a file must record in it what it
    is: `replace(file, pixels=result.pixels, record=file.record.with_step(result.step))`, `file` being the
    `files.photos.Photo` that was read.
    Raises ValueError or FileNotFoundError if the photo's shape or the detector is wrong.
    """
    config = with_known_mask(config or RestoreConfig())
    if photo.ndim != 3 or photo.shape[0] != 3:
        raise ValueError(f"photo has the shape {tuple(photo.shape)}; it must be (3, H, W)")
    restorer = restorer.at_precision(config.precision)
    detector = detector or load_detector(config.detector, config.threshold, restorer.device)
    found = detector(photo)
    faces, skipped = choose_faces(found, restorer.size, config, name)
    crops = [crop_face(photo, face, restorer.size) for face in faces]
    faces, crops, skipped = leave_sharp(faces, crops, skipped, config)
    rest = background or load_background(config.background, restorer)
    served: list[str] = []
    restored = restore_crops(crops, restorer, config.batch_size, check, served, config.even_tone)
    look = likeness or load_check(config.likeness, restorer)
    acted = _acted(faces, crops, restored, look)
    judged = [faces[i] for i in acted.judged]
    faces, crops = [faces[i] for i in acted.kept], [crops[i] for i in acted.kept]
    restored = [acted.restored[i] for i in acted.kept]
    served = [served[i] for i in acted.kept]
    parser = parser or (load_parser(config, restorer) if crops else None)
    result = put_together(
        photo, found, faces, crops, restored, skipped + acted.reasons, restorer, config, parser,
        check=check, enlarge=enlarge, background=rest, served=served, likeness=acted.likeness, judged=judged,
    )  # fmt: skip
    counts = (len(found), len(result.generated))
    by = [by for by in served if by]
    step = restoration_step(restorer, config, detector, *counts, by, result.likeness, rest)
    return replace(result, found=len(found), step=step)


def put_together(
    photo: Tensor,
    found: Sequence[Face],
    faces: list[Face],
    crops: list[Tensor],
    restored: list[Tensor | str],
    skipped: list[str],
    restorer: Restorer,
    config: RestoreConfig,
    parser: Parser | None,
    *,
    check: Callable[[], None] | None = None,
    enlarge: Callable[[Tensor], Tensor] | None = None,
    background: Background | None = None,
    served: Sequence[str] = (),
    may_leave_alone: bool = True,
    likeness: Sequence[FaceLikeness] = (),
    judged: Sequence[Face] = (),
) -> RestoredPhoto:
    """`photo` with its restored crops pasted, on an enlarged or restored background where that is asked for.

    found: all faces of the photo. faces, crops, restored, skipped: as in `paste_faces`. served: what restored them, see
    `restore_crops`. check, enlarge, background: as in `restore_photo`. may_leave_alone: whether a face that would be
    less sharp than its photo may be left alone, see `finishing.finished`. likeness: of the faces `judged`.
    """
    ground = None
    if background:
        ground = restored_background(photo, background, found, served, config, check)
    alone = hardly_changed(crops, restored, restorer) if may_leave_alone else ()
    if enlarge and alone:
        photo, faces, crops, restored, skipped = without_left_alone(
            photo, faces, crops, restored, skipped, config, alone
        )
    made = faces
    if ground is not None:
        ground = with_faces_of(photo, ground, others_of(found, faces))
    if enlarge:
        config = replace(config, keep_detail=False, match_grain=False)  # an enlarged photo's detail is not its own
        width = photo.shape[-1]
        photo, ground = enlarged(photo if ground is None else ground, enlarge), None
        faces = [moved(face, photo.shape[-1] / width) for face in faces]
        crops = [crop_face(photo, face, restorer.size) for face in faces]
    result = paste_faces(photo, faces, crops, restored, skipped, config, parser, ground, () if enlarge else alone)
    said = with_left_alone(likeness, judged, made if enlarge else result.generated)
    mask = torch.ones_like(result.mask) if background else result.mask
    return replace(result, likeness=said, mask=mask)


def restored_background(
    photo: Tensor,
    background: Background,
    found: Sequence[Face],
    served: Sequence[str],
    config: RestoreConfig,
    check: Callable[[], None] | None = None,
) -> Tensor:
    """`photo` restored all over; `found`, the faces in it, say at which scale."""
    return restore_background(
        photo,
        background,
        [face.width for face in found if face.width >= config.min_face],
        served=served,
        at_once=config.batch_size,
        even_tone=config.even_tone,
        keep_detail=config.keep_detail,
        check=check,
    )


def others_of(found: Sequence[Face], faces: Sequence[Face]) -> list[Face]:
    """Those of `found` that are not among `faces`."""
    return [face for face in found if not any(face is other for other in faces)]


def restore_aligned(
    photo: Tensor,
    restorer: Restorer,
    config: RestoreConfig | None = None,
    *,
    check: Callable[[], None] | None = None,
    likeness: LikenessCheck | None = None,
) -> RestoredPhoto:
    """An aligned face (3, N, N), RGB in [0, 1], restored from edge to edge: no smaller than it was or the restorer is.

    Of `config` only `blend`, `precision` and `likeness` count. check, likeness: as in `restore_photo`. A grey face
    stays grey. If the restorer fails, or the photo is left alone for the sake of likeness, the reason is in `skipped`.
    Raises ValueError if the picture is not square.
    """
    config = config or RestoreConfig()
    restorer = restorer.at_precision(config.precision)
    size = max(restorer.size, photo.shape[-1])
    crop, large = square(photo, restorer.size), square(photo, size)
    served: list[str] = []
    restored = restore_crops([crop], restorer, 1, check, served)[0]
    if isinstance(restored, str):
        return RestoredPhoto(large, [], [f"the face failed: {restored}"], large.new_zeros(1, size, size), [], 1)
    look = likeness or load_check(config.likeness, restorer)
    acted = _acted([Face(template(size))], [crop], [restored], look)
    said = acted.likeness
    if not acted.kept:
        return RestoredPhoto(large, [], acted.reasons, large.new_zeros(1, size, size), [], 1, likeness=said)
    restored = acted.restored[0]
    assert isinstance(restored, Tensor)
    grey = is_grey(photo)
    pixels = whole(restored, large, size, grey, config)
    mask = large.new_full((1, size, size), config.blend)
    step = restoration_step(restorer, config, None, 1, 1, [by for by in served if by], said)
    return RestoredPhoto(pixels, [Face(template(size))], [], mask, [restored], 1, step, said)


def restoration_step(
    restorer: Restorer,
    config: RestoreConfig,
    detector: FindFaces | None,
    found: int,
    restored: int,
    served: Sequence[str] = (),
    likeness: Sequence[FaceLikeness] = (),
    background: Background | None = None,
) -> Step | None:
    """What a picture's record says of a restoration; None if nothing in the picture is generated.

    detector: None for aligned faces. found, restored: numbers of faces. served, likeness: see `FileResult`.
    background: what restored the rest of the photo.
    """
    from .. import __version__  # not known yet while the package is loading

    if (not restored or not config.blend) and not background:
        return None
    settings: dict[str, Any] = {"size": restorer.size, "precision": restorer.precision}
    if (fidelity_weight := getattr(restorer, "fidelity_weight", None)) is not None:
        settings["fidelity_weight"] = fidelity_weight
    if detector is None:
        settings |= {"aligned": True, "blend": config.blend}
    else:
        settings = asdict(config) | settings | {"detector": getattr(detector, "name", "own")}
        for name in ("batch_size", "person_limit", "reference_strength", "reference_limit"):
            del settings[name]  # which change no face that is restored, or are said below
        del settings["background"]  # which may be a path
    if background:
        settings |= {"background": background.name, "background_sha256": background.sha256}
        settings |= {"background_licence": background.licence}
    if served:
        settings["served_by"] = ", ".join(served)
    if likeness:
        settings["looks"] = counted(likeness)
    if lent := [one.lent for one in likeness if one.lent]:
        settings["detail_of_reference"] = max(lent)
    origin = ("base", "base_sha256", "base_licence", "prior", "prior_sha256", "prior_licence")
    return Step(
        software=f"BFR Adapt {__version__}",
        restorer=restorer.name,
        sha256=restorer.sha256,
        licence=restorer.licence,
        **{name: restorer.metadata[name] for name in origin if name in restorer.metadata},
        faces_found=found,
        faces_restored=restored,
        settings=settings,
    )


def choose_faces(found: list[Face], size: int, config: RestoreConfig, name: str = "") -> tuple[list[Face], list[str]]:
    """The faces to restore, largest first, and why the others are not; warns once of faces larger than `size`.

    name: of the photo, for the warning.
    """
    faces = [face for face in found if face.width >= config.min_face]
    skipped = [
        f"a face {face.width:.0f} pixels wide is left out: narrower than min_face ({config.min_face})"
        for face in found
        if face.width < config.min_face
    ]
    if config.faces in ONE_FACE:
        faces = sorted(faces, key=ONE_FACE[config.faces])[:1]
    if config.faces == "numbered":
        wanted = numbers_in(config.numbers)
        numbered = enumerate(sorted(faces, key=ORDERS[config.order]), 1)
        chosen = [face for number, face in numbered if wanted(number)]
        skipped += [f"{said}: the photo has {len(faces)}" for said in no_such_faces(config.numbers, len(faces))]
        faces = sorted(chosen, key=ONE_FACE["largest"])
    if larger := [face.width for face in faces if face.width > LARGER * size]:
        log.warning("%s: %s", printable(name or "the photo"), _too_large(larger, size))
    return faces, skipped


def numbers_in(text: str) -> Callable[[int], bool]:
    """Whether a face of this number, from 1, is among those of a text such as "1, 3-5, 8-"."""
    ranges = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ranges.append(sorted((int(first), int(last or 10**9) if dash else int(first))))
    return lambda number: any(first <= number <= last for first, last in ranges)


def no_such_faces(text: str, count: int) -> list[str]:
    """What is said of each number in such a text that is above `count`."""
    asked = {int(number) for number in re.findall(r"\d+", text)}
    return [f"there is no face {number}" for number in sorted(asked) if number > count]


def _too_large(widths: list[float], size: int) -> str:
    """What is said of faces, by their widths in pixels, that are larger than the restorer."""
    some = "a face is" if len(widths) == 1 else f"{len(widths)} faces are up to"
    width = max(widths)
    return (
        f"{some} {width:.0f} pixels wide, {width / size:.1f} times the {size} pixels of the restorer: "
        "no finer detail is made"
    )


def leave_sharp(
    faces: list[Face], crops: list[Tensor], skipped: list[str], config: RestoreConfig
) -> tuple[list[Face], list[Tensor], list[str]]:
    """`faces`, their `crops` and `skipped` without the faces that are sharp already, see `RestoreConfig.skip_sharp`."""
    if not config.skip_sharp or not crops:
        return faces, crops, skipped
    measured = (sharpness(torch.stack(crops)) / sharpness_of_clean(crops[0].shape[-1])).tolist()
    blurred = [i for i, value in enumerate(measured) if value < config.skip_sharp]
    sharp = [i for i in range(len(faces)) if i not in blurred]
    skipped = skipped + [
        f"a face {faces[i].width:.0f} pixels wide is left alone: already sharp ({measured[i]:.2f})" for i in sharp
    ]
    return [faces[i] for i in blurred], [crops[i] for i in blurred], skipped


def _acted(faces: list[Face], crops: list[Tensor], restored: list[Tensor | str], check: LikenessCheck | None) -> Acted:
    """What the check makes of the faces, see `RestoreConfig.likeness`; all are kept if there is no check."""
    if check is None or not crops:
        return Acted([*range(len(faces))], restored, (), [], [])
    return check(crops, restored, [face.width for face in faces])


def enlarged(photo: Tensor, enlarge: Callable[[Tensor], Tensor]) -> Tensor:
    """`enlarge(photo)` in [0, 1], grey if `photo` was. Raises ValueError if it has other proportions."""
    larger = enlarge(photo).clamp(0, 1)
    height, width = photo.shape[-2:]
    if larger.shape[-2] * width != larger.shape[-1] * height:
        raise ValueError(f"the enlarged background is {larger.shape[-1]} x {larger.shape[-2]} for {width} x {height}")
    grey = is_grey(photo)
    return luma(larger).expand(3, -1, -1) if grey else larger


def moved(face: Face, scale: float) -> Face:
    """`face` in the photo enlarged by `scale`."""
    return replace(face, landmarks=(face.landmarks + 0.5) * scale - 0.5)


def without_left_alone(
    photo: Tensor,
    faces: list[Face],
    crops: list[Tensor],
    restored: list[Tensor | str],
    skipped: list[str],
    config: RestoreConfig,
    may_be_left_alone: Sequence[bool],
) -> tuple[Tensor, list[Face], list[Tensor], list[Tensor | str], list[str]]:
    """The same without the faces that `paste_faces` would not put on `photo` as they were restored, and why.

    Where it would only take out the blocks of a JPEG, the photo is without them.
    """
    pasted = paste_faces(photo, faces, crops, restored, skipped, config, may_be_left_alone=may_be_left_alone)
    stay, unblocked = [], []
    for i, face in enumerate(faces):
        if any(face is other for other in pasted.unblocked):
            unblocked.append(i)
        elif any(face is other for other in pasted.faces):
            stay.append(i)
    if unblocked:
        theirs = [faces[i] for i in unblocked], [crops[i] for i in unblocked], [restored[i] for i in unblocked]
        photo = paste_faces(photo, *theirs, [], config, may_be_left_alone=[True] * len(unblocked)).pixels
    return photo, [faces[i] for i in stay], [crops[i] for i in stay], [restored[i] for i in stay], pasted.skipped


def with_known_mask(config: RestoreConfig) -> RestoreConfig:
    """The same settings with a mask that is not "auto"."""
    return replace(config, mask="face" if has_parser() else "square") if config.mask == "auto" else config


def load_parser(config: RestoreConfig, restorer: Restorer) -> Parser | None:
    """ParseNet, if the settings ask for it; "auto" does where its file is. Raises FileNotFoundError without it."""
    return FaceParser(restorer.device) if with_known_mask(config).mask == "face" else None


def restore_crops(
    crops: list[Tensor],
    restorer: Restorer,
    batch_size: int,
    check: Callable[[], None] | None = None,
    served: list[str] | None = None,
    even_tone: bool = False,
) -> list[Tensor | str]:
    """For each crop (3, S, S) the restored one, on the CPU, or the reason why there is none.

    check: called after every call of the restorer; what it raises ends the work. served: gets for each crop what
    restored it, see `Restorer.restore_and_tell`. even_tone: see `RestoreConfig`.
    """
    results: list[Tensor | str] = []

    def restore(part: slice) -> tuple[list[Tensor | str], list[str]]:
        return _restored_or_why_not(crops[part], restorer, check, even_tone)

    for restored, by in in_batches(restore, len(crops), batch_size):
        results += restored
        if served is not None:
            served += by
        if check:
            check()
    return results


def _restored_or_why_not(
    batch: list[Tensor], restorer: Restorer, check: Callable[[], None] | None, even_tone: bool
) -> tuple[list[Tensor | str], list[str]]:
    """The crops of one batch restored, or the reasons why not, and what restored them.

    Raises what says that the memory is too small for several; any other problem is perhaps of one face only, which is
    then looked for.
    """
    try:
        restored, by = _restored_batch(batch, restorer, even_tone)
        return [*restored], by
    except (ValueError, RuntimeError, MemoryError) as error:
        if len(batch) > 1 and is_out_of_memory(error):
            raise
        problem = first_line(error)
    if len(batch) == 1:
        return [problem], [""]
    by = []
    return restore_crops(batch, restorer, len(batch) // 2, check, by, even_tone), by


def _restored_batch(batch: list[Tensor], restorer: Restorer, even_tone: bool) -> tuple[list[Tensor], list[str]]:
    """The crops of one batch restored, on the CPU, and what restored them.

    Nearly grey ones are restored as such, see `grey`, and faded or very dark ones in even tones, see `even_tone`.
    """
    lq = [given_to_restorer(crop) for crop in batch]
    tones = [tone_for_network(face) if even_tone else None for face in lq]
    for_network = [with_tone(face, tone) if tone else face for face, tone in zip(lq, tones, strict=True)]
    restored, by = restorer.restore_and_tell(torch.stack(for_network))
    faces = [
        with_own_tone(new, face.to(new), tone) if tone else new
        for new, face, tone in zip(restored.cpu(), lq, tones, strict=True)
    ]
    return [
        tinted(face, crop.to(face)) if is_nearly_grey(crop) else face for face, crop in zip(faces, batch, strict=True)
    ], by


def paste_faces(
    photo: Tensor,
    faces: list[Face],
    crops: list[Tensor],
    restored: list[Tensor | str],
    skipped: list[str],
    config: RestoreConfig,
    parser: Parser | None = None,
    ground: Tensor | None = None,
    may_be_left_alone: Sequence[bool] = (),
) -> RestoredPhoto:
    """`photo` with every restored crop in its place. Where faces overlap, the smaller one is pasted last.

    parser: finds the part of a restored crop that is pasted; all of it if left out. ground: (3, H, W), the photo with
    its rest restored, on which the crops are pasted; faces that are not restored stay as `photo` has them.
    may_be_left_alone: of each face, whether it is left alone if it would be less sharp than its photo, see
    `hardly_changed` and `finishing.finished`; none is where this is empty.
    """
    failed = [face for face, new in zip(faces, restored, strict=True) if isinstance(new, str)]
    pixels = photo.clone() if ground is None else with_faces_of(photo, ground, failed)
    pasted = photo.new_zeros(1, *photo.shape[-2:])
    done, unblocked, new_crops, skipped = [], [], [], list(skipped)
    for face, crop, new, alone in zip(faces, crops, restored, may_be_left_alone or [False] * len(faces), strict=True):
        if isinstance(new, str):
            skipped.append(f"a face {face.width:.0f} pixels wide failed: {new}")
            continue
        # On a ground of its own a face is blended with the photo, not with the ground, see below.
        how: dict[str, Any] = {"blend": config.blend if ground is None else 1.0, "match_colour": config.match_colour}
        size, region = crop.shape[-1], parser(new) if parser else None
        under = crop if ground is None else crop_face(pixels, face, size)
        patches = face_patches(pixels, new, face, under, **how, region=region)
        if not patches:
            skipped.append(f"a face {face.width:.0f} pixels wide is left out: it lies outside the photo")
            continue
        better = {"keep_detail": config.keep_detail, "match_grain": config.match_grain}
        better["may_leave_alone"] = alone
        if ground is None:
            patches, not_restored = finished(pixels, patches, face, size, **better)
        else:
            patches, not_restored = finished_on(pixels, photo, patches, face, size, **better)
            if config.blend < 1:
                own = with_faces_of(photo, pixels, [face])
                patches = [replace(p, pixels=torch.lerp(own[p.place], p.pixels, config.blend)) for p in patches]
        if not_restored:
            skipped.append(not_restored)
        if not_restored and not patches:
            if ground is not None:  # it stays as the photo has it, but for what is pasted of its neighbours
                pixels = torch.lerp(with_faces_of(photo, pixels, [face]), pixels, pasted)
            continue
        for patch in patches:
            pixels[patch.place] = patch.pixels
            pasted[patch.place] = torch.maximum(pasted[patch.place], patch.mask)
        done.append(face)
        unblocked += [face] if not_restored else []
        new_crops.append(crop_face(pixels, face, crop.shape[-1]) if not_restored else new)
    mask = pasted if ground is None else torch.ones_like(pasted)
    return RestoredPhoto(pixels, done, skipped, mask, new_crops, unblocked=unblocked)


def hardly_changed(crops: Sequence[Tensor], restored: Sequence[Tensor | str], restorer: Restorer) -> list[bool]:
    """Of each restored crop, whether `restorer` finds so little to do that the photo may be clean: `NEARLY_THE_SAME`.

    Of a network that makes a face of whatever it is given, how much it changes says nothing: they are all true.
    """
    if restorer.for_background(()).makes_faces_only:
        return [True] * len(crops)

    def nearly_the_same(crop: Tensor, new: Tensor) -> bool:
        tone = tone_for_network(crop)  # of a faded face grain is as faint as the face
        pair = [(with_tone(face, tone) if tone else face)[None] for face in (new.to(crop), crop)]
        return float(psnr(*pair)) >= (NEARLY_THE_SAME_FADED if tone else NEARLY_THE_SAME)

    return [isinstance(new, Tensor) and nearly_the_same(crop, new) for crop, new in zip(crops, restored, strict=True)]


def whole(restored: Tensor, photo: Tensor, size: int, grey: bool, config: RestoreConfig) -> Tensor:
    """The restored face blended with the photo, (3, N, N) both, at `size`: (3, size, size)."""
    pixels = torch.lerp(square(photo, size), square(restored.to(photo), size), config.blend)
    return luma(pixels).expand(3, -1, -1) if grey else pixels


def square(image: Tensor, size: int) -> Tensor:
    """(C, N, N) at `size` x `size`. Raises ValueError if it is not square."""
    height, width = image.shape[-2:]
    if height != width:
        raise ValueError(f"is {width} x {height} pixels; an aligned face is square")
    if height == size:
        return image
    return resized(image[None], size)[0].clamp(0, 1)
