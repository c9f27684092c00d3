from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bfr_core.faces.landmarks import (
    STRIDE,
    WINDOW,
    LandmarkNet,
    ResidualLayer,
    ScanNet,
    landmark_distance,
    load_landmark_net,
    load_scan_net,
    read_aligned,
)


def test_a_window_has_nine_cells_and_a_photo_one_every_sixteen_pixels() -> None:
    net = LandmarkNet().eval()
    logit, landmarks = net(torch.rand(2, 1, WINDOW, WINDOW))
    assert logit.shape == (2, 3, 3) and landmarks.shape == (2, 3, 3, 5, 2)
    logit, _ = net(torch.rand(1, 1, WINDOW + 2 * STRIDE, WINDOW + STRIDE))
    assert logit.shape == (1, 5, 4)
    small = ScanNet().eval()
    logit, landmarks = small(torch.rand(2, 1, WINDOW // 2, WINDOW // 2))
    assert small.stride == STRIDE // 2 and logit.shape == (2, 3, 3) and landmarks.shape == (2, 3, 3, 5, 2)


def test_a_further_layer_changes_nothing_before_it_is_trained() -> None:
    x = torch.rand(2, 8, 6, 6)
    assert torch.equal(ResidualLayer(8)(x), x)


def test_the_embedded_network_is_small_and_knows_where_it_comes_from() -> None:
    from safetensors import safe_open

    from bfr_core.faces.landmarks import EMBEDDED

    assert sum(p.numel() for p in load_landmark_net().parameters()) <= 900_000
    assert sum(p.numel() for p in load_scan_net().parameters()) <= 160_000
    with safe_open(EMBEDDED, "pt") as file:
        metadata = file.metadata()
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118
    assert metadata["licence"] == "Apache-2.0" and metadata["architecture"] == "LandmarkNet, ScanNet"


def test_a_missing_or_wrong_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing; reinstall"):
        load_landmark_net(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="missing; reinstall"):
        load_scan_net(tmp_path / "none.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"nonsense" * 10)
    with pytest.raises(ValueError, match="wrong.safetensors: not the embedded face network") as error:
        load_landmark_net(wrong)
    assert "\n" not in str(error.value)


def test_landmarks_of_aligned_crops_mirror_with_the_face_and_tell_people_apart(shared):
    import json

    import numpy as np

    from bfr_core.faces.align import Face, crop_face
    from bfr_core.files.photos import read_image

    landmarks = json.loads((shared / "portraits" / "landmarks.json").read_text())
    names = sorted(landmarks)[:80:5]  # no training has seen them
    faces = torch.stack(
        [crop_face(read_image(shared / "portraits" / n), Face(np.array(landmarks[n]["landmarks"])), 128) for n in names]
    )
    net = load_landmark_net()
    seen, mirrored = read_aligned(net, faces), read_aligned(net, faces.flip(-1))
    assert seen.score.min() > 0.2
    swapped = torch.stack([1 - mirrored.points[..., 0], mirrored.points[..., 1]], -1)[:, [1, 0, 2, 4, 3]]
    assert (swapped - seen.points).abs().max() < 1e-4
    softer = read_aligned(net, torch.nn.functional.avg_pool2d(faces, 2))
    same = landmark_distance(softer.points, seen.points)
    others = landmark_distance(seen.points.roll(1, 0), seen.points)
    assert same.mean() < 0.02 < 0.03 < others.mean()
    assert (read_aligned(net, torch.rand(4, 3, 128, 128)).score < 0.2).all()
