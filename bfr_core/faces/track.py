"""Which face of one frame is which of the next: the faces of a video are followed by their place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..pixels import resized
from .align import Face

FAR = 0.6  # of a face's width: between two frames no face moves further from where it is expected
UNLIKE = 1.0  # in doublings of the width that count as a whole `FAR`
REACH = 2  # frames before and after one by which its faces are held still and gaps are filled
STILL = 0.03  # of a face's width: what moves by more is not averaged with where it was
CUT = 0.15  # mean change of a small copy of the frame, in [0, 1], from which on another scene begins
SMALL = 16  # pixels a side of that copy


@dataclass
class _Track:
    """A face that is followed: where it was seen last, how its middle moves in a frame, frames since it was seen."""

    face: Face
    motion: np.ndarray
    missed: int = 0

    @property
    def expected(self) -> np.ndarray:
        """Where the middle of the face is expected now."""
        return _middle(self.face) + self.motion * (self.missed + 1)


class FaceTracker:
    """Gives every face of a frame the number of the track that it belongs to; numbers are never used again.

    patience: frames that a face may be out of sight and still be taken for the same.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.tracks: dict[int, _Track] = {}
        self.next = 0

    def new_scene(self) -> None:
        """Forget all faces."""
        self.tracks = {}

    def __call__(self, found: Sequence[Face]) -> list[int]:
        """The track of each of `found`, the faces of the next frame; faces far from all tracks begin new ones."""
        numbers = list(self.tracks)
        matched = self._matched(numbers, found)
        for number in numbers:
            self.tracks[number].missed += 1
        ids = []
        for place, face in enumerate(found):
            if place in matched:
                number = matched[place]
                track = self.tracks[number]
                motion = (_middle(face) - _middle(track.face)) / track.missed
                self.tracks[number] = _Track(face, (track.motion + motion) / 2)
            else:
                number, self.next = self.next, self.next + 1
                self.tracks[number] = _Track(face, np.zeros(2))
            ids.append(number)
        self.tracks = {number: track for number, track in self.tracks.items() if track.missed <= self.patience}
        return ids

    def _matched(self, numbers: list[int], found: Sequence[Face]) -> dict[int, int]:
        """Place in `found` -> track, so that the distances are least in sum."""
        from scipy.optimize import linear_sum_assignment

        if not numbers or not found:
            return {}
        cost = np.array([[_distance(self.tracks[number], face) for face in found] for number in numbers])
        rows, columns = linear_sum_assignment(np.minimum(cost, 10.0))
        return {int(c): numbers[r] for r, c in zip(rows, columns, strict=True) if cost[r, c] < 1}


def _middle(face: Face) -> np.ndarray:
    return face.landmarks.mean(0)


def _distance(track: _Track, face: Face) -> float:
    """How far `face` is from what is expected of the track: from 1 on it is another face."""
    width = (track.face.width + face.width) / 2
    apart = float(np.linalg.norm(_middle(face) - track.expected)) / width
    return apart / FAR + abs(float(np.log2(face.width / track.face.width))) / UNLIKE


# ---------------------------------------------------------------- a video


@dataclass(frozen=True, eq=False)
class FollowedFrame:
    """A frame and its faces by track. number: of the frame, from 0. scene: of the video, from 0.

    pixels: (3, H, W) in [0, 1]. alive: tracks that are followed still, in sight or not.
    """

    number: int
    scene: int
    pixels: Tensor
    faces: dict[int, Face]
    alive: frozenset[int] = field(default_factory=frozenset)


def followed(
    frames: Iterable[Tensor], find: Callable[[int, Tensor], list[Face]], patience: int
) -> Iterator[FollowedFrame]:
    """The frames of a video, (3, H, W) in [0, 1] each, with their faces held still and followed by their place.

    find: the faces of the frame of this number. patience: see `FaceTracker`. The landmarks of a face that hardly moves
    are means over up to `REACH` frames before and after; where a face was missed for so few frames, it is put between
    where it was and will be. Of the frames, no more than `REACH` + 1 are held at once.
    """
    window: deque[FollowedFrame] = deque(maxlen=2 * REACH + 1)
    for frame in _seen(frames, find, patience):
        window.append(frame)
        if len(window) > REACH:
            yield _steady(window, len(window) - 1 - REACH)
    for place in range(max(0, len(window) - REACH), len(window)):
        yield _steady(window, place)


def _seen(
    frames: Iterable[Tensor], find: Callable[[int, Tensor], list[Face]], patience: int
) -> Iterator[FollowedFrame]:
    """The frames with their faces as they were found."""
    tracker, scene, before = FaceTracker(patience), 0, None
    for number, pixels in enumerate(frames):
        small = resized(pixels[None].float(), SMALL, "area")
        if before is not None and float((small - before).abs().mean()) > CUT:
            tracker.new_scene()
            scene += 1
        before = small
        found = find(number, pixels)
        faces = dict(zip(tracker(found), found, strict=True))
        yield FollowedFrame(number, scene, pixels, faces, frozenset(tracker.tracks))


def _steady(window: deque[FollowedFrame], place: int) -> FollowedFrame:
    """The frame at this place of the window with its faces held still; its pixels leave the window."""
    frame = window[place]
    near = {i - place: one.faces for i, one in enumerate(window) if one.scene == frame.scene}
    ids = sorted({track for faces in near.values() for track in faces})
    steady = {}
    for track in ids:
        face = frame.faces.get(track) or _between({at: faces[track] for at, faces in near.items() if track in faces})
        if face is not None:
            others = [faces[track] for at, faces in near.items() if at and track in faces]
            steady[track] = _held_still(face, [face, *others])
    window[place] = FollowedFrame(frame.number, frame.scene, torch.empty(0), frame.faces, frame.alive)
    return FollowedFrame(frame.number, frame.scene, frame.pixels, steady, frame.alive)


def _between(seen: dict[int, Face]) -> Face | None:
    """The face at time 0 between the nearest ones before and after, by times of frames; None if one is missing."""
    before, after = max((at for at in seen if at < 0), default=None), min((at for at in seen if at > 0), default=None)
    if before is None or after is None:
        return None
    share = -before / (after - before)
    landmarks = (1 - share) * seen[before].landmarks + share * seen[after].landmarks
    return Face(landmarks, min(seen[before].score, seen[after].score))


def _held_still(face: Face, near: list[Face]) -> Face:
    """`face` with the mean of the landmarks of `near`, itself before, now and after, each the less the further."""
    moved = [np.sqrt(((one.landmarks - face.landmarks) ** 2).sum(-1).mean()) / face.width for one in near]
    weights = np.exp(-((np.array(moved) / STILL) ** 2))
    landmarks = sum(w * one.landmarks for w, one in zip(weights, near, strict=True)) / weights.sum()
    return Face(landmarks, face.score)
