from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.faces import detect
from bfr_core.faces.align import Face, crop_face, template
from bfr_core.faces.detect import (
    EmbeddedDetector,
    detector_named,
    distinct,
    faces_in_boxes,
    load_detector,
    load_embedded_detector,
)
from bfr_core.faces.landmarks import SCAN_CROP, ScanNet, load_landmark_net
from bfr_core.faces.second_look import load_second_look
from bfr_core.files.photos import read_image

# Middle of the face and width of its head, in pixels.
SOLVAY = np.array([
    [82, 175, 51], [124, 219, 46], [200, 202, 56], [229, 57, 52], [263, 232, 54], [324, 86, 42],
    [337, 181, 48], [390, 113, 45], [399, 226, 46], [484, 181, 55], [502, 108, 47], [548, 232, 57],
    [621, 117, 47], [642, 171, 43], [721, 93, 43], [724, 221, 50], [760, 176, 48], [835, 97, 50],
    [842, 223, 56], [880, 185, 52], [939, 94, 51], [955, 225, 56], [1027, 188, 50], [1032, 90, 38],
    [1105, 50, 46], [1105, 229, 57], [1159, 194, 50], [1164, 91, 44], [1207, 247, 49],
], float)  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> EmbeddedDetector:
    return load_embedded_detector()


@pytest.fixture(scope="module")
def portraits(shared: Path) -> list[tuple[Tensor, np.ndarray]]:
    """Portraits that no training has seen, and their landmarks."""
    every = json.loads((shared / "portraits" / "landmarks.json").read_text())
    names = sorted(every)[::5][::25]
    return [(read_image(shared / "portraits" / name), np.array(every[name]["landmarks"])) for name in names]


def matched(faces: list[Face], truth: np.ndarray) -> tuple[int, int]:
    """How many of `truth` are found, and how many faces are none of them."""
    found, false = set(), 0
    for face in faces:
        distance = np.linalg.norm(truth[:, :2] - face.landmarks.mean(0), axis=1) / truth[:, 2]
        nearest = int(distance.argmin())
        if distance[nearest] < 0.35 and 1 < face.width / truth[nearest, 2] < 2.6:
            found.add(nearest)
        else:
            false += 1
    return len(found), false


def error(face: Face, truth: np.ndarray) -> float:
    """Mean distance of the landmarks, in eye distances."""
    return float(np.linalg.norm(face.landmarks - truth, axis=1).mean() / np.linalg.norm(truth[0] - truth[1]))


def test_a_group_photo_of_1927(detector: EmbeddedDetector, shared: Path) -> None:
    found, false = matched(detector(read_image(shared / "photos" / "solvay_conference_1927.png")), SOLVAY)
    assert found >= 26 and false <= 2


def test_large_faces_side_by_side(detector: EmbeddedDetector, shared: Path) -> None:
    photo = read_image(shared / "photos" / "eight_synthetic_faces.jpg")
    faces = detector(F.interpolate(photo[None], scale_factor=0.5, mode="bilinear", antialias=True)[0])
    assert len(faces) == 8
    assert [f.width for f in faces] == sorted((f.width for f in faces), reverse=True)


def test_the_portraits_that_packages_bring_along(detector: EmbeddedDetector) -> None:
    data = pytest.importorskip("skimage.data")
    cbook = pytest.importorskip("matplotlib.cbook")
    astronaut = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 255
    hopper = read_image(Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))))
    assert matched(detector(astronaut), np.array([[219.0, 118, 90]])) == (1, 0)
    assert matched(detector(hopper), np.array([[268.0, 234, 190]])) == (1, 0)


@pytest.mark.parametrize(("damage", "limit"), [("none", 0.08), ("noise", 0.1), ("blur", 0.1)])
def test_landmarks_of_unseen_portraits(
    detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]], damage: str, limit: float
) -> None:
    errors = []
    for photo, truth in portraits:
        if damage == "noise":
            photo = (photo + 0.15 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
        if damage == "blur":
            small = F.interpolate(photo[None], scale_factor=0.2, mode="bilinear", antialias=True)
            photo = F.interpolate(small, photo.shape[-2:], mode="bicubic")[0].clamp(0, 1)
        (face,) = detector(photo)
        errors.append(error(face, truth))
    assert np.mean(errors) < limit


def test_a_grey_photo(detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]]) -> None:
    assert len(detector(portraits[0][0].mean(0, keepdim=True).expand(3, -1, -1))) == 1


@pytest.mark.slow
def test_a_photo_12000_pixels_wide(detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]]) -> None:
    """The face is found on a shrunk copy, and measured on the full one as well as on its own."""
    photo = F.interpolate(portraits[1][0][None], scale_factor=4, mode="bicubic", align_corners=False)[0].clamp(0, 1)
    wide = torch.full((3, 1400, 12000), 0.5)
    wide[:, 100 : 100 + photo.shape[1], 10000 : 10000 + photo.shape[2]] = photo
    (face,), (alone,) = detector(wide), detector(photo)
    assert error(face, alone.landmarks + np.array([10000, 100])) < 0.03


@pytest.mark.slow
def test_faces_of_forty_pixels_on_24_megapixels(detector: EmbeddedDetector, shared: Path) -> None:
    """The group photo of 1927 as it is, in a corner and in the middle, where seams of tiles run through it."""
    photo = read_image(shared / "photos" / "solvay_conference_1927.png")
    alone, _ = matched(detector(photo), SOLVAY)
    canvas = torch.full((3, 4000, 6000), 0.6)
    corners = [(0, 0), (2400, 1800)]
    for left, top in corners:
        canvas[:, top : top + photo.shape[1], left : left + photo.shape[2]] = photo
    faces = detector(canvas)
    truth = np.concatenate([SOLVAY + np.array([left, top, 0]) for left, top in corners])
    found, false = matched(faces, truth)
    assert found >= 2 * alone - 3 and false <= 4


def test_a_scan_in_tiles_sees_what_a_scan_in_one_sees(
    detector: EmbeddedDetector, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = detect.copies_of(read_image(shared / "photos" / "solvay_conference_1927.png"))
    assert [tuple(copy.shape) for copy in copies[:3]] == [(3, 568, 1328), (1, 142, 332), (1, 36, 83)]

    def seen(tile: int) -> list[Face]:
        monkeypatch.setattr(detect, "TILE", tile)
        with torch.inference_mode():
            return detect.scan(detector.scan_net, copies)

    whole, parts = [face for face in seen(10_000) if face.score > 0.8], seen(230)
    assert len(list(detect.tiles(1328, 568))) == 10 and len(whole) > 15
    for a in whole:  # a level of a tile may be a fraction of a pixel off
        assert min(np.linalg.norm(a.landmarks.mean(0) - b.landmarks.mean(0)) / a.width for b in parts) < 0.2


def test_tiles_cover_a_picture_once() -> None:
    for width, height in ((1, 1), (900, 40), (5000, 3333)):
        count = np.zeros((height, width), int)
        for left, top, right, bottom in detect.tiles(width, height):
            count[top:bottom, left:right] += 1
        assert (count == 1).all()


class Blind(ScanNet):
    """Sees no face anywhere, and notes how many pixels it was given in one go."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        self.largest = max(self.largest, grey.numel())
        rows, columns = ((n - self.crop) // self.stride + 1 for n in grey.shape[-2:])
        return torch.full((1, rows, columns), -9.0), torch.zeros(1, rows, columns, 5, 2)


@pytest.mark.slow
def test_what_is_looked_at_in_one_go_does_not_grow_with_the_photo() -> None:
    """A tile is at most a quarter wider than `TILE`; its rim, and the border of the network's cells, come to it."""
    most = (1.25 * detect.TILE + 2 * detect.RIM + 2 * SCAN_CROP) ** 2
    for width, height in ((1199, 1199), (1210, 1210), (12000, 2500)):
        blind = Blind()
        photo = torch.full((1, 1, 1), 0.5).expand(3, height, width)
        assert EmbeddedDetector(load_landmark_net(), blind, load_second_look())(photo) == []
        assert 0 < blind.largest <= most < 0.64 * 12000 * 2500 / 10


def test_a_face_that_fills_the_frame(detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]]) -> None:
    for size in (40, 128, 500):
        for photo, truth in portraits:
            (face,) = detector(crop_face(photo, Face(truth), size).clamp(0, 1))
            assert error(face, template(size)) < 0.2


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_face_that_lies_or_stands_on_its_head_is_found_where_it_is(
    detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]], quarters: int
) -> None:
    for photo, truth in portraits:
        turned = photo.rot90(quarters, (1, 2))
        (face,) = detector(turned)
        back = detect.turned_back(truth, photo.shape[-1], photo.shape[-2], 4 - quarters)
        assert error(face, back) < 0.15
        upright = crop_face(photo, Face(truth), 64)
        assert (crop_face(turned, Face(back), 64) - upright).abs().mean() < 0.01


def test_faces_narrower_than_promised_are_named(
    detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]], caplog: pytest.LogCaptureFixture
) -> None:
    photo, truth = portraits[0]
    with caplog.at_level(logging.INFO):
        detector(photo)
        assert not caplog.records
        (face,) = detector(
            F.interpolate(photo[None], scale_factor=36 / Face(truth).width, antialias=True, mode="bicubic")[0]
        )
    assert face.width < 40 and "1 of 1 faces are narrower than 40 pixels" in caplog.text


def test_a_point_is_turned_back_with_its_picture() -> None:
    picture = torch.zeros(3, 5, 8)
    picture[:, 1, 6] = 1
    for quarters in (0, 1, 2, 3):
        turned = picture.rot90(quarters, (1, 2))
        (y,), (x,) = torch.nonzero(turned[0], as_tuple=True)
        back = detect.turned_back(np.array([[int(x), int(y)]]), turned.shape[-1], turned.shape[-2], quarters)
        assert back.tolist() == [[6, 1]]


def test_upright_faces_come_before_turned_ones(
    detector: EmbeddedDetector, portraits: list[tuple[Tensor, np.ndarray]]
) -> None:
    (photo, truth), (other, _) = portraits[0], portraits[1]
    both = torch.full((3, 300, 520), 0.5)
    both[:, : photo.shape[1], : photo.shape[2]] = photo
    lying = other.rot90(1, (1, 2))
    both[:, : lying.shape[1], 240 : 240 + lying.shape[2]] = lying
    (face,) = detector(both)
    assert error(face, truth) < 0.1


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (64, 64), (200, 333)])
def test_nothing_is_found_where_nothing_is(detector: EmbeddedDetector, size: tuple[int, int]) -> None:
    assert detector(torch.full((3, *size), 0.4)) == []
    ramp = torch.linspace(0, 1, size[1]).expand(3, *size)
    assert detector(ramp) == []


def test_of_two_answers_for_one_face_the_surer_is_kept() -> None:
    a, b, c = Face(template(100), 0.7), Face(template(100) + 5, 0.9), Face(template(100) + 200, 0.6)
    assert distinct([a, b, c], 0.4) == [b, c]
    assert distinct([], 0.4) == []


def test_without_weights_auto_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bfr_core.faces.detect.retinaface_folders", lambda weights=None: [tmp_path])
    with caplog.at_level(logging.INFO):
        assert load_detector("auto").name == "embedded"
    assert len(caplog.records) == 1 and "RetinaFace is not installed" in caplog.text
    with pytest.raises(FileNotFoundError, match="detection_Resnet50_Final.pth is not in") as error:
        load_detector("retinaface")
    assert str(tmp_path) in str(error.value)
    with pytest.raises(ValueError, match='"mtcnn"'):
        load_detector("mtcnn")
    with pytest.raises(ValueError, match="threshold"):
        load_detector("embedded", 1.5)


@pytest.mark.parametrize("package", ["facexlib", "cv2"])
def test_without_a_package_that_retinaface_needs_auto_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (tmp_path / "detection_Resnet50_Final.pth").write_bytes(b"")
    monkeypatch.setattr("bfr_core.faces.detect.retinaface_folders", lambda weights=None: [tmp_path])
    monkeypatch.setattr("bfr_core.faces.detect.find_spec", lambda name: None if name == package else object())
    assert load_detector("auto").name == detector_named("auto") == "embedded"
    with pytest.raises(FileNotFoundError, match=f"the package {package} is not installed; add it"):
        load_detector("retinaface")
    monkeypatch.setattr("bfr_core.faces.detect.find_spec", lambda name: object())
    assert detector_named("auto") == "retinaface" and detector_named("embedded") == "embedded"


def test_retinaface_is_built_from_a_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    state = {
        f"module.{k}": v for k, v in retinaface.RetinaFace("resnet50", device=torch.device("cpu")).state_dict().items()
    }
    torch.save(state, tmp_path / "detection_Resnet50_Final.pth")
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    detector = load_detector("auto", threshold=1.0)
    assert detector.name == "retinaface"
    assert detector(torch.rand(3, 90, 120)) == []


def test_retinaface_boxes_become_faces_in_photo_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("facexlib.detection.retinaface")
    from bfr_core.faces.detect import RetinaFaceDetector

    seen = []

    class Fake:
        def detect_faces(self, image: np.ndarray, conf_threshold: float) -> np.ndarray:
            seen.append((image.shape, image[0, 0].tolist(), conf_threshold))
            small = (template(100) + 100.5) / 2 - 0.5
            large = (template(300) + 500.5) / 2 - 0.5
            return np.stack([np.r_[0, 0, 1, 1, 0.9, small.ravel()], np.r_[0, 0, 1, 1, 0.8, large.ravel()]])

    detector = RetinaFaceDetector.__new__(RetinaFaceDetector)
    detector.net, detector.threshold = Fake(), 0.4
    photo = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(3, 100, 4096)
    faces = detector(photo)
    assert seen == [((50, 2048, 3), [0.0, 127.5, 255.0], 0.4)]
    assert [f.score for f in faces] == [0.8, 0.9]
    np.testing.assert_allclose(faces[1].landmarks, template(100) + 100, atol=1e-9)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("facexlib.detection.retinaface")
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (touched,)

    torch.save({"a": Evil()}, tmp_path / "detection_Resnet50_Final.pth")
    with pytest.raises(ValueError, match="not RetinaFace weights") as error:
        load_detector("retinaface", weights=tmp_path)
    assert "\n" not in str(error.value) and not touched.exists()


def test_facexlib_is_imported_only_when_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facexlib.detection.retinaface", None)  # an import of it would fail
    monkeypatch.setattr("bfr_core.faces.detect.retinaface_folders", lambda weights=None: [tmp_path])
    assert load_detector("auto").name == "embedded"


def test_boxes_of_another_detector_become_aligned_faces(detector: EmbeddedDetector, shared: Path) -> None:
    photo = read_image(shared / "photos/eight_synthetic_faces.jpg")
    faces = detector(photo)
    eyes_to_mouth = [face.landmarks[3:].mean(0) - face.landmarks[:2].mean(0) for face in faces]
    boxes = []
    for face, down in zip(faces, eyes_to_mouth, strict=True):  # from hair line to chin, roughly
        top, bottom = face.landmarks[:2, 1].mean() - down[1], face.landmarks[3:, 1].mean() + 0.6 * down[1]
        x, half = face.landmarks[:, 0].mean(), 0.9 * down[1]
        boxes.append([x - half, top, x + half, bottom])
    empty = [[0.0, 0.0, 50.0, 70.0], [9.0, 9.0, 9.0, 5.0]]
    found = faces_in_boxes(detector.net, photo, torch.tensor([*boxes, *empty]))
    assert found[len(boxes) :] == [None, None], "an answer for each box"
    for a, b in zip(faces, found[: len(boxes)], strict=True):
        assert b is not None and np.linalg.norm(a.landmarks - b.landmarks, axis=1).mean() < 0.03 * a.width
