"""Restore the faces of a video, frame after frame: each face is followed, keeps its settings and does not flicker.

A restorer answers to the noise of a frame with other detail than in the next. Faces are followed by their place
(`faces.track`). What is decided of a face (whether it is restored, by which restorer, how much of it is shown) is
decided where it is first seen and holds until it is gone. In the crop, which moves with the face, let y_t be the
frame, r_t what the restorer makes of it, and m_t in [0, 1] how much a pixel has moved. Then

    a_t = 1 - s (1 - m_t),    out_t = out_(t-1) + a_t (r_t - out_(t-1)),    ref_t = ref_(t-1) + a_t (y_t - ref_(t-1))

holds still parts still, and m_t is read off y_t - ref_(t-1): slow motion adds up in it until it is seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..faces.align import Face, crop_face
from ..faces.detect import load_detector
from ..faces.track import FollowedFrame, followed
from ..files.ownership import delete, is_own
from ..files.stages import stage_folder
from ..files.tensors import load_tensors, save_tensors
from ..pixels import gaussian_blur, luma, resized
from ..restorers.base import Restorer
from ..settings import check_settings, setting
from .background import Background, load_background
from .restore import (
    ONE_FACE,
    ORDERS,
    FindFaces,
    Parser,
    RestoreConfig,
    RestoredPhoto,
    hardly_changed,
    leave_sharp,
    load_parser,
    no_such_faces,
    numbers_in,
    paste_faces,
    put_together,
    restoration_step,
    restore_crops,
    with_known_mask,
)
from .same_person import FaceLikeness, LikenessCheck, load_check, with_left_alone

log = logging.getLogger(__name__)

VIDEO_TEXT = (
    "Whether the pictures are frames of a video: faces are followed, keep their settings, and do not flicker. Off, "
    "every picture is restored by itself."
)
MOTION_SIDE = 128  # pixels of the copy in which motion is read
MOTION_BLUR = (1.0, 6.0)  # its blur, at least and at most: noise of single pixels is no motion
PHOTO_PIXELS = 2.5  # of the frame, that the blur spans in between
NOISE_MEDIANS = 4.5  # of the change of all pixels: above it one has moved
NO_CHANGE = 1e-8  # of squares: a thousandth of what whole numbers can show
MIN_CHANGE, MAX_CHANGE = 0.006, 0.04  # of luma: what changes less has not moved, what changes more has


@dataclass(frozen=True)
class VideoConfig:
    """How the faces of a video are followed and held still."""

    smooth: float = setting(
        0.8,
        "How strongly restored faces are held still from frame to frame where the video is still: 0 takes every frame "
        "as it is, and what moves is never held.",
        low=0,
        high=0.95,
        label="Hold still",
    )
    patience: int = setting(
        15,
        "How long a face may be out of sight and still be taken for the same.",
        unit="frames",
        low=0,
        label="Patience",
    )

    def __post_init__(self) -> None:
        check_settings(self)


# ---------------------------------------------------------------- what is kept on disk


class FrameStore:
    """Faces and restored crops of a video on disk, so that a job that was stopped goes on where it was.

    folder: of this job alone. made_with: a fingerprint of the frames and of all that the results depend on; what was
    made with another one is deleted. Crops are kept in half precision.
    """

    def __init__(self, folder: Path, made_with: str) -> None:
        self.folder = Path(folder)
        stage_folder(self.folder, made_with)

    def _tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        path = self.folder / name
        try:
            return load_tensors(path) if path.is_file() else None
        except ValueError as error:
            log.warning("%s; the frame is restored again", error)
            return None

    def faces(self, number: int) -> list[Face] | None:
        """The faces that were found in the frame of this number; None if it was not searched yet."""
        kept = self._tensors(f"faces_{number:06}.safetensors")
        if kept is None:
            return None
        landmarks, scores = kept[0]["landmarks"].numpy(), kept[0]["scores"].tolist()
        return [Face(points, score) for points, score in zip(landmarks, scores, strict=True)]

    def keep_faces(self, number: int, faces: Sequence[Face]) -> None:
        """Keep the faces of a frame."""
        points = [torch.from_numpy(face.landmarks) for face in faces]
        landmarks = torch.stack(points).double() if faces else torch.zeros(0, 5, 2, dtype=torch.float64)
        scores = torch.tensor([face.score for face in faces], dtype=torch.float64)
        self._keep(f"faces_{number:06}.safetensors", {"landmarks": landmarks, "scores": scores}, {})

    def restored(self, number: int) -> dict[int, tuple[Tensor, str]]:
        """Restored crops of a frame by track, (3, S, S) each, and what restored them."""
        kept = self._tensors(f"restored_{number:06}.safetensors")
        if kept is None:
            return {}
        served = json.loads(kept[1]["served"])
        return {int(track): (crop.float(), served[track]) for track, crop in kept[0].items()}

    def keep_restored(self, number: int, crops: dict[int, tuple[Tensor, str]]) -> None:
        """Keep the restored crops of a frame."""
        served = {str(track): by for track, (_, by) in crops.items()}
        tensors = {str(track): crop.half() for track, (crop, _) in crops.items()}
        self._keep(f"restored_{number:06}.safetensors", tensors, {"served": json.dumps(served)})

    def _keep(self, name: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write a file; one that was changed since it was written, or is damaged, stays as it is and is not used."""
        path = self.folder / name
        if not path.exists() or is_own(path):
            save_tensors(path, tensors, metadata)

    def done(self) -> None:
        """Delete everything: the job has come to its end."""
        delete(self.folder)


# ---------------------------------------------------------------- one face


@dataclass(eq=False)
class _Held:
    """What holds for a face until it is gone, and its state.

    served: what restores it. share: of the restored face that is shown. left: why it is left alone, or "". decided:
    whether that is known; it is not while the restorer fails on it.
    reference, shown: `ref` and `out` of the module's text; None at first. last: number of the frame they are of.
    """

    served: str = ""
    share: float = 1.0
    left: str = ""
    decided: bool = False
    reference: Tensor | None = None
    shown: Tensor | None = None
    last: int = -1

    def steadied(self, number: int, crop: Tensor, new: Tensor, smooth: float, width: float) -> Tensor:
        """What is shown of the restored crop `new` of this frame; crop, new: (3, S, S)."""
        if self.reference is None or self.shown is None or number != self.last + 1:
            self.reference, self.shown = crop, new
        else:
            share = 1 - smooth * (1 - motion(crop, self.reference, width))
            self.reference = torch.lerp(self.reference, crop, share)
            self.shown = torch.lerp(self.shown, new, share)
        self.last = number
        return self.shown


def motion(crop: Tensor, reference: Tensor, width: float) -> Tensor:
    """How much each pixel of a crop (3, S, S) has moved since `reference`, 0 to 1: (1, S, S).

    width: of the face in the frame's pixels. The noise is taken for what the luma of most pixels changes by.
    """
    side = min(MOTION_SIDE, crop.shape[-1])
    change = resized((luma(crop) - luma(reference))[None], side, "area")
    sigma = min(max(PHOTO_PIXELS * side / max(width, 1.0), MOTION_BLUR[0]), MOTION_BLUR[1])
    change = gaussian_blur(change, sigma, edges="replicate").abs()
    limit = min(max(NOISE_MEDIANS * float(change.median()), MIN_CHANGE), MAX_CHANGE)
    moved = (change / limit - 1).clamp(0, 1)
    moved = F.max_pool2d(moved, 5, 1, 2)  # what has moved takes its rim along
    return resized(moved, crop.shape[-2:], "bilinear")[0].clamp(0, 1)


@dataclass(eq=False)
class _GrainLimit:
    """Lets the grain of pasted faces change from frame to frame no more than the input does.

    Each frame gets grain of its own, see `finishing`, beside what the restored face itself still changes by. Let x, b
    and g be the input, the faces without grain, and the grain. The grain is multiplied by
    k = sqrt((m(dx) - m(db)) / m(dg)), at most 1, where d is the change since the frame before, and m the median of its
    squares in the faces, so that what moves does not count. before: x, b and g of the frame `last`. blend: as in
    `RestoreConfig`, which a face's mask is multiplied by.
    """

    blend: float = 1.0
    before: tuple[Tensor, Tensor, Tensor] | None = None
    last: int = -1

    def __call__(self, number: int, photo: Tensor, plain: RestoredPhoto, grainy: RestoredPhoto) -> Tensor:
        """The pixels of `grainy` with less grain; plain: the same without grain."""
        now = (photo, plain.pixels, grainy.pixels - plain.pixels)
        where, limited = plain.mask > 0.5 * self.blend, grainy.pixels
        if self.before and number == self.last + 1 and photo.shape == self.before[0].shape and where.any():
            changed = [(new - old)[where.expand_as(new)].square() for new, old in zip(now, self.before, strict=True)]
            still, own, grain = (float(change.median()) for change in changed)
            share = min(1.0, max(0.0, still - own) / grain) ** 0.5 if grain > NO_CHANGE else 1.0
            limited = plain.pixels + share * now[2]
        self.before, self.last = now, number
        return limited


# ---------------------------------------------------------------- which faces


class _Choice:
    """Which tracks are restored: numbers, and the one face of such a choice, stay with a face until it is gone."""

    def __init__(self, config: RestoreConfig) -> None:
        self.config = config
        self.scene = -1
        self.numbers: dict[int, int] = {}
        self.seen: set[int] = set()
        self.large_enough: set[int] = set()
        self.one: int | None = None

    def __call__(self, frame: FollowedFrame) -> tuple[list[int], list[str]]:
        """Tracks of this frame that are restored, and why others are not, where they are first seen."""
        if frame.scene != self.scene:
            self.scene, self.numbers, self.large_enough, self.one = frame.scene, {}, set(), None
            self.seen = set()
        skipped = []
        for track, face in frame.faces.items():
            if face.width >= self.config.min_face:
                self.large_enough.add(track)  # and stays so: a face at the limit would come and go
            elif track not in self.seen:
                skipped.append(
                    f"a face {face.width:.0f} pixels wide is narrower than min_face ({self.config.min_face})"
                )
        self.seen.update(frame.faces)
        new = [track for track in frame.faces if track in self.large_enough and track not in self.numbers]
        for track in sorted(new, key=lambda track: ORDERS[self.config.order](frame.faces[track])):
            self.numbers[track] = 1 + len(self.numbers)  # as `choose_faces` counts: narrower ones have no number
        tracks = [track for track in frame.faces if track in self.large_enough]
        if self.config.faces == "numbered":
            wanted = numbers_in(self.config.numbers)
            if new and len(self.numbers) == len(new):  # the scene's first faces
                missing = no_such_faces(self.config.numbers, len(self.numbers))
                skipped += [f"{said} here: the scene begins with {len(self.numbers)}" for said in missing]
            tracks = [track for track in tracks if wanted(self.numbers[track])]
        elif self.config.faces in ONE_FACE:
            if self.one not in frame.alive and tracks:
                self.one = min(tracks, key=lambda track: ONE_FACE[self.config.faces](frame.faces[track]))
            tracks = [track for track in tracks if track == self.one]
        return sorted(tracks, key=lambda track: -frame.faces[track].width), skipped


# ---------------------------------------------------------------- the video


@dataclass(eq=False)
class _Work:
    """A frame on its way: its chosen tracks, largest first, their crops, what the restorer made of them, and words."""

    frame: FollowedFrame
    tracks: list[int]
    crops: dict[int, Tensor]
    kept: dict[int, tuple[Tensor, str]] = field(default_factory=dict)  # what the store has
    restored: dict[int, Tensor | str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    likeness: list[FaceLikeness] = field(default_factory=list)


def restore_frames(
    frames: Iterable[Tensor],
    restorer: Restorer,
    config: RestoreConfig | None = None,
    detector: FindFaces | None = None,
    video: VideoConfig | None = None,
    *,
    find: Callable[[int, Tensor], list[Face]] | None = None,
    check: Callable[[], None] | None = None,
    enlarge: Callable[[Tensor], Tensor] | None = None,
    likeness: LikenessCheck | None = None,
    background: Background | None = None,
    store: FrameStore | None = None,
) -> Iterator[RestoredPhoto]:
    """The frames of a video, (3, H, W) RGB in [0, 1] each, with their faces restored, in their order.

    Faces are numbered where they are first seen, by config.order, and keep their numbers; later ones get the next. With
    one chosen face (such as "largest") another is chosen when that one is gone. What is said of a face is said of the
    frame in which it is first seen. Memory does not grow with the number of frames: no more than about
    config.batch_size of them are held at once, and no result.

    find: the faces of the frame of this number, in place of `detector`. store: keeps what is made, so that a job that
    was stopped goes on; whoever takes the last frame ends it by `store.done()`. The other arguments, and the errors,
    are those of `restore_photo`.
    """
    config, video = with_known_mask(config or RestoreConfig()), video or VideoConfig()
    if getattr(likeness, "lender", None):
        raise ValueError("references lend their detail to photos, not to the frames of a video; give none")
    restorer = restorer.at_precision(config.precision)
    if find is None:
        seeing = detector or load_detector(config.detector, config.threshold, restorer.device)
        look_in: Callable[[int, Tensor], list[Face]] = lambda _, frame: seeing(frame)  # noqa: E731
    else:
        look_in = find
    job = _Job(
        restorer,
        config,
        video,
        load_parser(config, restorer),
        likeness or load_check(config.likeness, restorer),
        background or load_background(config.background, restorer),
        check,
        enlarge,
        store,
        detector,
        grain=_GrainLimit(config.blend),
    )
    choice, works = _Choice(config), []
    for frame in followed(frames, job.kept_or(look_in), video.patience):
        tracks, skipped = choice(frame)
        crops = {track: crop_face(frame.pixels, frame.faces[track], restorer.size) for track in tracks}
        works.append(_Work(frame, tracks, crops, store.restored(frame.number) if store else {}, skipped=skipped))
        if sum(max(1, len(work.tracks)) for work in works) >= config.batch_size:
            yield from job.done(works)
            works = []
    yield from job.done(works)


@dataclass(eq=False)
class _Job:
    """A video on its way through `restore_frames`: its settings, networks, and the faces that are followed now."""

    restorer: Restorer
    config: RestoreConfig
    video: VideoConfig
    parser: Parser | None
    look: LikenessCheck | None
    background: Background | None
    check: Callable[[], None] | None
    enlarge: Callable[[Tensor], Tensor] | None
    store: FrameStore | None
    detector: FindFaces | None
    held: dict[int, _Held] = field(default_factory=dict)
    grain: _GrainLimit = field(kw_only=True)

    def kept_or(self, find: Callable[[int, Tensor], list[Face]]) -> Callable[[int, Tensor], list[Face]]:
        """`find`, but faces that the store has are taken from there."""

        def faces_of(number: int, frame: Tensor) -> list[Face]:
            if self.check:
                self.check()
            kept = self.store.faces(number) if self.store else None
            if kept is None:
                kept = find(number, frame)
                if self.store:
                    self.store.keep_faces(number, kept)
            return kept

        return faces_of

    def done(self, works: list[_Work]) -> Iterator[RestoredPhoto]:
        """The results of some frames, one after the other; what is done with is let go."""
        self._decide(works)
        self._restore(works)
        for place, work in enumerate(works):
            works[place] = _Work(work.frame, [], {})
            yield self._finished(work)
            to_come = {track for later in works[place + 1 :] for track in later.tracks}
            alive = work.frame.alive | set(work.frame.faces) | to_come
            self.held = {track: one for track, one in self.held.items() if track in alive}

    def _decide(self, works: list[_Work]) -> None:
        """What holds for each face that is new, from the first frame in which it is seen and can be restored."""
        for work in works:
            for track in work.tracks:
                held = self.held.setdefault(track, _Held())
                if held.decided:
                    continue
                face, crop = work.frame.faces[track], work.crops[track]
                _, blurred, sharp = leave_sharp([face], [crop], [], self.config)
                if not blurred:
                    held.left, held.decided = sharp[0], True
                    work.skipped.append(held.left)
                    continue
                self._restore_some([(work, track)], self.restorer, new=True)
                self._judge(work, track, held)

    def _judge(self, work: _Work, track: int, held: _Held) -> None:
        """Whether a face is shown as it was restored, by its likeness and by what pasting says."""
        face, crop, new = work.frame.faces[track], work.crops[track], work.restored[track]
        if isinstance(new, str):
            return
        held.decided = True
        said: tuple[FaceLikeness, ...] = ()
        if self.look:
            acted = self.look([crop], [new], [face.width])
            said = acted.likeness
            held.share = said[0].share if said else 1.0
            if not acted.kept:
                held.left = acted.reasons[-1]  # before it may stand why nothing was lent
            elif isinstance(acted.restored[0], Tensor):
                new = acted.restored[0]
        if not held.left and self.config.keep_detail and not self.enlarge:
            alone = hardly_changed([crop], [new], self.restorer)
            pasted = paste_faces(
                work.frame.pixels, [face], [crop], [new], [], self.config, self.parser, may_be_left_alone=alone
            )
            # Frames would be freed of blocks by decisions of their own, which flicker: such a face is left alone.
            sharper = (
                f"a face {face.width:.0f} pixels wide is left alone: the first frame is sharper than its restored face"
            )
            held.left = sharper if pasted.unblocked else pasted.skipped[0] if pasted.skipped else ""
            said = with_left_alone(said, [face] * len(said), [] if held.left else [face])
        work.likeness += said
        if held.left:
            work.skipped.append(held.left)

    def _restore(self, works: list[_Work]) -> None:
        """Restore what is not restored yet: each face by what served it where it was first seen."""
        todo: dict[str, list[tuple[_Work, int]]] = {}
        for work in works:
            for track in work.tracks:
                held = self.held[track]
                if not held.left and track not in work.restored:
                    todo.setdefault(held.served, []).append((work, track))
        for served, some in todo.items():
            self._restore_some(some, self.restorer.that_served(served))
        if self.store:
            for work in works:
                fresh = {t: (new, self.held[t].served) for t, new in work.restored.items() if isinstance(new, Tensor)}
                if fresh.keys() - work.kept.keys():
                    self.store.keep_restored(work.frame.number, fresh)

    def _restore_some(self, some: list[tuple[_Work, int]], restorer: Restorer, new: bool = False) -> None:
        """Fill in restored crops: those that the store has, else by the network. new: note what served the face."""
        todo = []
        for work, track in some:
            if track not in work.kept:
                todo.append((work, track))
                continue
            work.restored[track], served = work.kept[track]
            if new:
                self.held[track].served = served
        told: list[str] = []
        crops = [work.crops[track] for work, track in todo]
        config = self.config
        restored = restore_crops(crops, restorer, config.batch_size, self.check, told, config.even_tone)
        for (work, track), one, by in zip(todo, restored, told, strict=True):
            if self.store and isinstance(one, Tensor):
                one = one.half().float()  # as it will be read again
            work.restored[track] = one
            if new:
                self.held[track].served = by

    def _finished(self, work: _Work) -> RestoredPhoto:
        """The frame with its faces held still and pasted."""
        failed = [track for track, new in work.restored.items() if isinstance(new, str)]  # before it was decided on
        tracks = [track for track in work.tracks if track in failed or not self.held[track].left]
        shown: list[Tensor | str] = []
        for track in tracks:
            held, crop, new = self.held[track], work.crops[track], work.restored[track]
            if isinstance(new, Tensor):
                new = new if held.share == 1 else torch.lerp(crop, new.to(crop), held.share)
                width = work.frame.faces[track].width
                new = held.steadied(work.frame.number, crop, new.to(crop), self.video.smooth, width)
            shown.append(new)
        found = list(work.frame.faces.values())
        served = [self.held[track].served for track in tracks]
        faces, crops = [work.frame.faces[track] for track in tracks], [work.crops[track] for track in tracks]

        def pasted(config: RestoreConfig) -> RestoredPhoto:
            return put_together(
                work.frame.pixels, found, faces, crops, shown, work.skipped, self.restorer, config, self.parser,
                check=self.check, enlarge=self.enlarge, background=self.background, served=served,
                may_leave_alone=False,
            )  # fmt: skip

        result = pasted(self.config)
        if self.config.match_grain and faces and not self.enlarge and not self.background:
            plain = pasted(replace(self.config, match_grain=False))
            pixels = self.grain(work.frame.number, work.frame.pixels, plain, result)
            result = replace(result, pixels=pixels)
        counts = (len(found), len(result.generated))
        step = restoration_step(
            self.restorer,
            self.config,
            self.detector or _given,
            *counts,
            served=[by for by in served if by],
            likeness=work.likeness,
            background=self.background,
        )
        return replace(result, found=len(found), step=step, likeness=tuple(work.likeness))


def _given(_: Tensor) -> list[Face]:
    """Stands in the record of a frame for whatever gave its faces."""
    return []
