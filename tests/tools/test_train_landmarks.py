"""What may not go wrong in training the face networks: held-out faces, where faces lie, and what is called none."""

import json

import numpy as np
import pytest
import torch
import train_landmarks as tool

from bfr_core.faces.align import Face, similarity, template, warp
from bfr_core.faces.landmarks import CROP, MARGIN, WINDOW
from bfr_core.files.photos import write_image

FACE = np.array([[40.0, 50.0], [80.0, 52.0], [60.0, 72.0], [45.0, 95.0], [75.0, 97.0]])


@pytest.fixture
def picture() -> tool.Picture:
    coarse = torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(1))
    grey = torch.nn.functional.interpolate(coarse, (200, 180), mode="bicubic").clamp(0, 1)[0]
    return tool.picture_of(grey, FACE)


def test_a_set_is_split_into_held_out_chosen_and_trained(tmp_path):
    names = [f"{i:03d}.png" for i in range(80)]
    marks = {f"clean/{name}": {"landmarks": FACE.tolist()} for name in names}
    (tmp_path / "clean").mkdir()
    (tmp_path / "landmarks.json").write_text(json.dumps(marks | {"damaged/1.png": {"landmarks": FACE.tolist()}}))
    folder = tmp_path / "clean"
    assert list(tool.listed(folder)) == names
    held_out = tool.held_out(folder.name, names)
    trained, chosen = tool.split(folder, held_out)
    assert sorted([*held_out, *trained, *chosen]) == names and len(held_out) == 8 and len(chosen) == 4
    for name in trained[:2]:
        write_image(folder / name, torch.full((3, 140, 120), 0.5))
    read = tool.read_pictures(folder, trained[:2])
    assert [level.shape for level in read[0].levels] == [(1, 140, 120), (1, 70, 60)]
    np.testing.assert_array_equal(read[1].landmarks, FACE)


def test_a_window_shows_what_warp_shows(picture):
    aligned = similarity(FACE, template(CROP) + MARGIN)
    ours = tool.window_of(picture, aligned, WINDOW, "reflection")
    theirs = warp(picture.levels[0][None].float() / 255, aligned, WINDOW, WINDOW)[0]
    assert (ours - theirs).abs().mean() < 0.02
    small = tool.window_of(
        picture, tool.after(tool.placed(0.25, 0, np.full(2, -0.5), np.full(2, -0.5)), aligned), 24, "border"
    )
    shrunk = torch.nn.functional.interpolate(ours[None], (24, 24), mode="bilinear", antialias=True)[0]
    assert (small - shrunk)[:, 2:-2, 2:-2].abs().mean() < 0.05
    beyond = tool.window_of(picture, aligned, WINDOW, "zeros", (30, 30, 90, 110))
    x, y = (tool.through(aligned, np.array([[60.0, 70.0]]))[0]).round().astype(int)
    assert beyond[0, y, x] == pytest.approx(float(ours[0, y, x]), abs=0.02) and beyond[0, 0, 0].isnan()


def test_a_face_is_never_called_none(picture):
    aligned = similarity(FACE, template(tool.WIDE_CROP) + (tool.WIDE - tool.WIDE_CROP) / 2)
    aside = aligned + np.array([[0, 0, 90.0], [0, 0, 0]])
    magnified = tool.after(tool.placed(4, 0, np.full(2, 72.0), np.full(2, 72.0)), aligned)
    nowhere = tool.Picture(picture.levels)
    free = tool.free_of_faces([picture, picture, picture, nowhere], [aligned, aside, magnified, aligned])
    assert free.tolist() == [False, True, True, True]
    rng = np.random.default_rng(0)
    picks, matrices = tool.stray_places([picture] * 3, 200, rng)
    assert 20 < len(picks) < 200
    assert tool.seen_wide(picks[:3], matrices[:3]).shape == (3, 1, tool.WIDE, tool.WIDE)


def test_hard_places_are_of_pictures_and_never_their_faces(picture, monkeypatch):
    asked = []
    free = tool.free_of_faces

    def noted(*given):
        asked.append(free(*given))
        return asked[-1]

    monkeypatch.setattr(tool, "free_of_faces", noted)
    torch.manual_seed(0)
    nets = tool.Nets()
    bank = tool.hard_places(nets, [picture] * 4, 12, np.random.default_rng(0), torch.Generator().manual_seed(0))
    assert bank.dtype == torch.uint8 and bank.shape[1:] == (1, tool.WIDE, tool.WIDE) and 0 < len(bank) <= 12
    assert len(asked) >= 2 and nets.training


def test_a_batch_marks_the_faces_that_it_shows(picture):
    bank = torch.zeros(40, 1, tool.WIDE, tool.WIDE, dtype=torch.uint8)
    windows, points, has_face = tool.make_batch([picture], bank, torch.Generator().manual_seed(0))
    assert windows.shape == (tool.BATCH, 1, WINDOW, WINDOW) and windows.min() >= 0 and windows.max() <= 1
    assert 10 < has_face.sum() < tool.BATCH and (points[~has_face] == 0).all()
    label, where = tool.targets(points, has_face)
    assert (label[~has_face] == 0).all() and (label[has_face] == 1).any()
    # The answer's landmarks, put at the cell's centre, are the face's.
    face, row, column = torch.nonzero(label == 1)[0].tolist()
    centre = MARGIN + (CROP - 1) / 2 + 16 * torch.tensor([column - 1.0, row - 1.0])
    torch.testing.assert_close(where[face, row, column] + centre, points[face])


def test_the_box_round_a_face_that_fills_the_frame_holds_its_landmarks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, top, right, bottom = tool.box_around(FACE, np.array([180, 200]), rng)
        assert left <= FACE[:, 0].min() and right >= FACE[:, 0].max()
        assert 0 <= top <= FACE[:, 1].min() and FACE[:, 1].max() <= bottom <= 200
        assert 0.6 < (right - left) / Face(FACE).width < 1.5


def test_layers_of_an_older_file_are_taken_in_order(tmp_path):
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(0)
    steps, before = [], 1
    for width, stride in ((24, 2), (48, 2), (64, 1), (96, 2), (96, 1), (128, 2)):
        steps += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
        before = width
    old = nn.ModuleDict({
        "features": nn.Sequential(*steps),
        "gather": nn.Sequential(nn.Conv2d(128, 96, 4), nn.SiLU()),
        "answer": nn.Conv2d(96, 11, 1),
    }).eval()  # fmt: skip
    save_file({k: v for k, v in old.state_dict().items() if "tracked" not in k}, tmp_path / "old.safetensors")
    net = tool.LandmarkNet().eval()
    tool.started_from(net, tmp_path / "old.safetensors")
    window = torch.rand(2, 1, WINDOW, WINDOW)
    with torch.no_grad():
        answer = old["answer"](old["gather"](old["features"](4 * window - 2)))
        torch.testing.assert_close(net(window)[0], answer[:, 0])
