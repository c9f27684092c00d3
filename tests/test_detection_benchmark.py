"""The benchmark of finding faces: who counts as found, and where faces lie in a photo that was turned."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bfr_core.faces.align import Face, template

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "detection.py"


@pytest.fixture
def detection(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("detection_benchmark", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "detection_benchmark", module)
    spec.loader.exec_module(module)
    return module


def test_found_missed_and_false(detection: Any) -> None:
    truth = template(100)
    count = detection.Count()
    count.add("a", [Face(truth + 5), Face(truth + 300, 0.7)], [truth])
    count.add("b", [Face(truth * 2)], [truth])
    count.add("c", [Face(truth), Face(truth + 1)], [truth])
    count.add("d", [], [])
    assert (count.faces, count.found, count.photos, count.false) == (3, 2, 4, 3)
    assert count.missed == ["b"] and count.false_ones[0].startswith("a at 3")
    assert len((count + count).errors) == 4 and (count + count).found == 4
    upside_down = np.array([[99.0, 99.0]]) - truth
    assert not detection.agrees(Face(upside_down + truth.mean(0) - upside_down.mean(0)), truth)


def test_rows_give_both_shares_with_their_intervals(detection: Any) -> None:
    truth = template(100)
    count = detection.Count()
    for i in range(10):
        count.add(f"{i}", [] if i == 0 else [Face(truth)] + [Face(truth + 500)] * 2 * (i == 1), [truth])
    rows = detection.count_rows("photos", {"diverse": count})
    assert "9 of 10: 90.0 % (59.6 to 98.2)" in rows[0] and "2 on 1 of 10: 10.0 %" in rows[0]
    assert detection.count_rows("turned", {"diverse": detection.Count()}) == []


def test_a_photo_is_turned_with_its_landmarks(detection: Any) -> None:
    photo = torch.zeros(3, 20, 30)
    photo[:, 4, 7] = 1
    for quarters in (1, 2, 3):
        other, points = detection.turned(photo, np.array([[7.0, 4.0]]), quarters)
        x, y = points[0].astype(int)
        assert other[0, y, x] == 1


def test_photos_are_scattered_where_it_is_said(detection: Any) -> None:
    canvas = torch.zeros(3, 600, 900)
    photos = []
    for i in range(6):
        photo = torch.full((3, 50, 40), (i + 1) / 10)
        photos.append((photo, np.array([[20.0, 25.0]])))
    for i, points in enumerate(detection.scattered(canvas, photos)):
        x, y = points[0].astype(int)
        assert canvas[0, y, x] == pytest.approx((i + 1) / 10)
    assert len({float(value) for value in canvas.unique()}) == 7


def test_canvases_are_of_the_size_that_is_said(detection: Any) -> None:
    for megapixels, (width, height) in detection.MEGAPIXELS.items():
        assert width * height / 1e6 == pytest.approx(megapixels, rel=0.01)
    background: Tensor = detection.clouds(300, 200)
    assert background.shape == (3, 200, 300) and background.std() > 0.02


def test_the_group_photo_is_counted_wherever_it_lies(detection: Any) -> None:
    faces = [Face(template(1) * 1.8 * w + (x, y) - 1.8 * w * template(1).mean(0)) for x, y, w in detection.SOLVAY]
    assert detection.solvay_count(faces, 1, (0, 0)) == (29, 0)
    moved = [Face(face.landmarks * 3 + (50, 70)) for face in faces]
    assert detection.solvay_count(moved, 3, (50, 70)) == (29, 0)
    assert detection.solvay_count([*faces[:3], Face(template(60) + 3000)], 1, (0, 0)) == (3, 1)
