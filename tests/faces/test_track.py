"""Faces of a video followed by their place, with frames and faces that are made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bfr_core.faces.align import Face, template
from bfr_core.faces.track import REACH, FaceTracker, followed


def face_at(x: float, y: float, width: float = 60, score: float = 1.0) -> Face:
    return Face(template(1) * width + [x + width / 2, y + width / 2], score)


def grey(value: float = 0.5) -> Tensor:
    return torch.full((3, 80, 300), value)


def test_two_who_pass_each_other_keep_their_numbers() -> None:
    tracker = FaceTracker(patience=5)
    for step in range(21):
        there, back = face_at(10 * step, 0), face_at(200 - 10 * step, 25)
        found = sorted([there, back], key=lambda face: face.landmarks[:, 0].mean())  # as a detector may list them
        ids = dict(zip(tracker(found), found, strict=True))
        assert sorted(ids) == [0, 1] and ids[0] is there and ids[1] is back, step


@pytest.mark.parametrize(("away", "same"), [(3, True), (5, True), (6, False)])
def test_a_face_out_of_sight_is_the_same_for_a_while(away: int, same: bool) -> None:
    tracker = FaceTracker(patience=5)
    assert tracker([face_at(10, 0)]) == [0]
    for _ in range(away):
        assert tracker([]) == []
    assert tracker([face_at(12, 0)]) == [0 if same else 1]


def test_a_face_elsewhere_or_of_another_size_is_another() -> None:
    tracker = FaceTracker(patience=5)
    assert tracker([face_at(10, 0)]) == [0]
    assert tracker([face_at(120, 0)]) == [1]
    assert tracker([face_at(0, 0, 200)]) == [2]


def test_landmarks_that_tremble_are_held_still_and_moving_ones_do_not_lag() -> None:
    generator = np.random.default_rng(0)
    jitter = [generator.normal(0, 0.4, (5, 2)) for _ in range(40)]
    still = list(followed([grey()] * 40, lambda i, _: [Face(face_at(50, 5).landmarks + jitter[i])], 5))
    before = np.std(jitter, 0).mean()
    after = np.std([frame.faces[0].landmarks for frame in still], 0).mean()
    assert after < 0.6 * before, (before, after)
    moving = list(followed([grey()] * 40, lambda i, _: [face_at(5 * i, 5)], 5))
    for i, frame in enumerate(moving):
        assert np.abs(frame.faces[0].landmarks - face_at(5 * i, 5).landmarks).max() < 0.5, i


def test_a_face_missed_for_a_moment_is_put_between() -> None:
    seen = followed([grey()] * 9, lambda i, _: [] if i in (3, 4) else [face_at(6 * i, 5)], 5)
    for frame in seen:
        assert np.allclose(frame.faces[0].landmarks, face_at(6 * frame.number, 5).landmarks, atol=0.6)
    lost = list(followed([grey()] * 12, lambda i, _: [] if 3 <= i <= 8 else [face_at(6 * i, 5)], 9))
    assert [len(frame.faces) for frame in lost] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1], "for longer it is not there"


def test_another_scene_has_other_faces() -> None:
    frames = [grey(0.2)] * 4 + [grey(0.8)] * 4
    seen = list(followed(frames, lambda i, _: [face_at(50, 5)], 5))
    assert [frame.scene for frame in seen] == [0] * 4 + [1] * 4
    assert [list(frame.faces) for frame in seen] == [[0]] * 4 + [[1]] * 4


def test_every_frame_comes_once_in_order_and_few_are_held() -> None:
    for count in range(2 * REACH + 3):
        assert [f.number for f in followed([grey()] * count, lambda i, _: [], 5)] == list(range(count))
    taken = 0

    def frames() -> object:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield grey()

    for done, _ in enumerate(followed(frames(), lambda i, _: [], 5), 1):  # type: ignore[arg-type]
        assert taken - done <= REACH
