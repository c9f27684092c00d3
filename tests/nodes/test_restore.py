"""Restore Faces, Compare and Degrade on pictures."""

from __future__ import annotations

import sys
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bfr_core.faces.align import Face, template
from bfr_core.restoration.restore import NO_WORSE
from tests.onnx_files import write_onnx

Run = Callable[..., tuple]
FACES = [Face(template(32) + 8), Face(template(24) + np.array([60, 20]), 0.9)]  # the larger one on the left


@pytest.fixture
def found(pack: Any, monkeypatch: pytest.MonkeyPatch) -> list[Face]:
    """The faces that every photo has."""
    module = sys.modules["any-name.nodes.restore"]
    monkeypatch.setattr(module, "load_detector", lambda *_: lambda photo: list(FACES))
    return FACES


def photo(batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 64, 96, 3, generator=torch.Generator().manual_seed(0)) * 0.5


def test_a_batch_comes_back_with_its_mask_and_crops(run: Run, models: tuple[Any, Any], found: list[Face]) -> None:
    images = photo(2)
    made, mask, crops, report, *counts, said, others = run("BFR_RestoreFaces", restorer=models[0], images=images)
    seen, restored, skipped = counts
    assert made.shape == images.shape and mask.shape == (2, 64, 96) and crops.shape == (4, 32, 32, 3)
    assert (seen, restored, skipped) == (4, 4, 0) and report == "4 faces found, 4 restored, 0 skipped"
    assert said.splitlines() == [f"photo {i}: likeness: cannot tell" for i in (1, 1, 2, 2)] and others == 0
    outside = mask == 0
    assert torch.equal(made[outside], images[outside]) and 0 < mask.mean() < 1 and not made.is_inference()


@pytest.mark.parametrize(("faces", "restored"), [("all", 2), ("largest", 1), ("rightmost", 1), ("numbered", 1)])
def test_which_faces(run: Run, models: tuple[Any, Any], found: list[Face], faces: str, restored: int) -> None:
    _, mask, *_, done, _, _, _ = run("BFR_RestoreFaces", restorer=models[0], images=photo(), faces=faces, numbers="2")
    assert done == restored
    assert (mask[0, 24, 24] > 0) == (faces in ("all", "largest"))


def test_what_keeps_a_face_no_worse_can_be_switched_off(
    run: Run, models: tuple[Any, Any], found: list[Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, asked = sys.modules["any-name.nodes.restore"], []

    def restore_photo(pixels: torch.Tensor, restorer: Any, config: Any, *_: Any, **__: Any) -> Any:
        asked.append([getattr(config, name) for name in NO_WORSE])
        return module.RestoredPhoto(pixels, [], [], pixels[:1])

    monkeypatch.setattr(module, "restore_photo", restore_photo)
    run("BFR_RestoreFaces", restorer=models[0], images=photo())
    run("BFR_RestoreFaces", restorer=models[0], images=photo(), **dict.fromkeys(NO_WORSE, False))
    assert asked == [[True] * 3, [False] * 3]


def test_no_face_blocks_the_crops(run: Run, models: tuple[Any, Any], found: list[Face]) -> None:
    made, mask, crops, report, *_ = run("BFR_RestoreFaces", restorer=models[0], images=photo(), min_face=40)
    assert type(crops).__name__ == "Blocker" and not mask.any() and torch.equal(made, photo())
    assert "narrower than min_face" in report


def test_transparency_stays_and_grey_and_empty_inputs_are_met(
    run: Run, models: tuple[Any, Any], found: list[Face]
) -> None:
    alpha = torch.rand(2, 64, 96, 1)
    made, _, crops, *_ = run("BFR_RestoreFaces", restorer=models[0], images=torch.cat([photo(2), alpha], -1))
    assert made.shape == (2, 64, 96, 4) and torch.equal(made[..., 3:], alpha) and crops.shape[-1] == 3
    assert torch.equal(made[..., :3], run("BFR_RestoreFaces", restorer=models[0], images=photo(2))[0])
    larger = torch.cat([photo(), alpha[:1]], -1)[:, :16, :16]
    made = run("BFR_RestoreFaces", restorer=models[0], images=larger, aligned=True)[0]
    assert made.shape == (1, 32, 32, 4), "alpha takes the size of the result"
    made = run("BFR_RestoreFaces", restorer=models[0], images=photo()[..., :1])[0]
    assert made.shape == (1, 64, 96, 3) and torch.equal(made[..., 0], made[..., 1])
    for wrong in (photo()[:0], photo()[:, :0], photo()[..., :2], photo()[0]):
        with pytest.raises(ValueError, match="^images "):
            run("BFR_RestoreFaces", restorer=models[0], images=wrong)


def test_grey_stays_grey(run: Run, models: tuple[Any, Any], found: list[Face]) -> None:
    grey = photo()[..., :1].expand(-1, -1, -1, 3)
    made, mask, *_ = run("BFR_RestoreFaces", restorer=models[0], images=grey)
    assert mask.any() and torch.equal(made[..., 0], made[..., 1]) and torch.equal(made[..., 0], made[..., 2])


def test_background_is_enlarged(run: Run, models: tuple[Any, Any], found: list[Face], host: Any) -> None:
    class Twice:
        scale, model = 2, None

        def to(self, device: Any) -> None: ...

        def __call__(self, part: torch.Tensor) -> torch.Tensor:
            return part.repeat_interleave(2, -1).repeat_interleave(2, -2)

    images = photo()
    made, mask, *_ = run("BFR_RestoreFaces", restorer=models[0], images=images, upscale_model=Twice())
    assert made.shape == (1, 128, 192, 3) and mask.shape == (1, 128, 192)
    expected = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(made[mask == 0], expected[mask == 0]) and mask[0, 48, 48] > 0


def test_the_rest_of_the_photo_is_restored_where_it_is_asked_for(
    run: Run, models: tuple[Any, Any], found: list[Face]
) -> None:
    images = photo()
    off, mask, *_ = run("BFR_RestoreFaces", restorer=models[0], images=images)
    adapted, everywhere, *_ = run("BFR_RestoreFaces", restorer=models[0], images=images, background="adapted")
    outside = mask == 0
    assert torch.equal(off[outside], images[outside]) and not torch.equal(adapted[outside], images[outside])
    assert (everywhere == 1).all()
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: is not in ComfyUI's folder upscale_models"):
        run("BFR_RestoreFaces", restorer=models[0], images=images, background="gone.pth")
    with pytest.raises(ValueError, match=r"\.\./gone\.pth"):
        run("BFR_RestoreFaces", restorer=models[0], images=images, background="../gone.pth")


# What the Impact Pack passes: SEGS is (height and width, list of these); its detectors have `detect` as below.
SEG = namedtuple(
    "SEG",
    ["cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label", "control_net_wrapper"],
    defaults=[None],
)


def detect_nothing(image: Any, threshold: Any, dilation: Any, crop_factor: Any, drop_size: int = 1, hook: Any = None):
    assert image.shape[0] == 1 and image.shape[-1] == 3, "one picture at a time, as an IMAGE"
    return (image.shape[1], image.shape[2]), []


def test_boxes_of_the_impact_pack(
    run: Run, models: tuple[Any, Any], pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["any-name.nodes.restore"]
    boxes = []

    def look(net: Any, picture: torch.Tensor, found: torch.Tensor) -> list[Face | None]:
        boxes.append(found.tolist())
        return [*FACES[:1], *[None] * len(found)][: len(found)]

    monkeypatch.setattr(module, "faces_in_boxes", look)
    box = np.array([10, 20, 50, 60], dtype=np.float32)  # left, top, right, bottom, as its detectors have them
    seg = SEG(torch.rand(1, 40, 40, 3), np.ones((40, 40)), np.float32(0.9), [10, 20, 50, 60], box, "face")
    segs = ((128, 192), [seg])
    assert run("BFR_RestoreFaces", restorer=models[0], images=photo(), segs=segs)[5] == 1
    assert boxes == [[[5.0, 10.0, 25.0, 30.0]]], "boxes of a picture of another size are moved"
    detector = SimpleNamespace(detect=detect_nothing)
    assert run("BFR_RestoreFaces", restorer=models[0], images=photo(2), bbox_detector=detector)[4] == 0
    with pytest.raises(ValueError, match="boxes of 2 pictures, but 3 came"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(3), segs=[segs, segs])
    boxes.clear()
    assert run("BFR_RestoreFaces", restorer=models[0], images=photo(2), segs=segs)[5] == 2
    assert boxes == [[[5.0, 10.0, 25.0, 30.0]]] * 2, "those of one picture are for all"
    run("BFR_RestoreFaces", restorer=models[0], images=photo(2), segs=[segs, ((64, 96), [])])
    assert boxes[2:] == [[[5.0, 10.0, 25.0, 30.0]], []]
    for wrong in ("nonsense", ((0,), [seg]), ((), [seg]), ((64, 96),)):
        with pytest.raises(ValueError, match="connect a SEGS output"):
            run("BFR_RestoreFaces", restorer=models[0], images=photo(), segs=wrong)
    boxes.clear()
    run("BFR_RestoreFaces", restorer=models[0], images=photo(), segs=((0, 0), []))  # as the Impact Pack's empty SEGS
    assert boxes == [[]]
    with pytest.raises(ValueError, match="^segs is of a picture of 0 x 0 pixels; connect"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(), segs=((0, 0), [seg]))


def test_a_given_box_without_a_face_is_told_of_and_counts_as_skipped(
    run: Run, models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["any-name.nodes.restore"], "faces_in_boxes", lambda *_: [None, FACES[0]])
    given = [[ONE, OTHER], [OTHER, ONE]]
    *_, report, found, restored, skipped, _, _ = run(
        "BFR_RestoreFaces", restorer=models[0], images=photo(2), bboxes=given
    )
    assert (found, restored, skipped) == (4, 2, 2)
    assert report.splitlines() == [
        "4 faces found, 2 restored, 2 skipped",
        "photo 1: a box at 10, 20: no face could be aligned in it",
        "photo 2: a box at 2, 2: no face could be aligned in it",
    ]


def test_all_lines_come_out_and_the_first_are_shown(
    run: Run, models: tuple[Any, Any], found: list[Face], host: Any
) -> None:
    out = run("BFR_RestoreFaces", restorer=models[0], images=photo(24), min_face=28)
    report, likeness = out[3].splitlines(), out[7].splitlines()
    assert len(report) == 1 + 24 and report[-1].startswith("photo 24: ") and len(likeness) == 24
    assert "... and 5 more" in host.texts[-1].splitlines()


def test_a_video_of_one_picture_is_cautioned_of(run: Run, models: tuple[Any, Any], found: list[Face]) -> None:
    report = run("BFR_RestoreFaces", restorer=models[0], images=photo(), video=True)[3]
    assert "video is on, but one picture came" in report and "give all frames as one batch" in report
    for how in ({"images": photo(2), "video": True}, {"images": photo()}):
        assert "video is on" not in run("BFR_RestoreFaces", restorer=models[0], **how)[3]


def test_a_photo_of_nobody_is_named_by_its_input(run: Run, models: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="^only_like: no face found in it; give a photo of the person"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(), only_like=torch.full((1, 64, 96, 3), 0.5))
    with pytest.raises(ValueError, match="^only_like is empty; connect"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(), only_like=photo(0))


ONE = {"x": 10, "y": 20, "width": 30, "height": 40}
OTHER = {"x": 1.5, "y": 2, "width": 3, "height": 4, "label": "face", "score": 0.9}


@pytest.mark.parametrize(
    ("given", "each"),
    [
        (ONE, [[[10, 20, 40, 60]]] * 2),
        ([ONE, OTHER], [[[10, 20, 40, 60], [1.5, 2, 4.5, 6]]] * 2),
        ([[ONE], [OTHER]], [[[10, 20, 40, 60]], [[1.5, 2, 4.5, 6]]]),
        ([[ONE], []], [[[10, 20, 40, 60]], []]),
        ([], [[], []]),
    ],
)
def test_boxes_of_comfyuis_own_detectors(
    run: Run, models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, given: Any, each: list
) -> None:
    boxes = []

    def look(net: Any, picture: torch.Tensor, found: torch.Tensor) -> list[Face | None]:
        boxes.append(found.tolist())
        return [*FACES[:1], *[None] * len(found)][: len(found)]

    monkeypatch.setattr(sys.modules["any-name.nodes.restore"], "faces_in_boxes", look)
    assert run("BFR_RestoreFaces", restorer=models[0], images=photo(2), bboxes=given)[5] == sum(map(bool, each))
    assert boxes == each


@pytest.mark.parametrize(
    "given", ["nonsense", [{"x": 1}], [[ONE, 3]], 7, [ONE, {"x": "a", "y": 1, "width": 1, "height": 1}]]
)
def test_what_are_no_boxes_is_said_in_one_line(run: Run, models: tuple[Any, Any], given: Any) -> None:
    with pytest.raises(ValueError, match="connect a BOUNDING_BOX output"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(), bboxes=given)
    with pytest.raises(ValueError, match="boxes of 3 pictures, but 2 came"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(2), bboxes=[[ONE]] * 3)


def test_video_frames_are_followed_and_leave_nothing_behind(
    run: Run, models: tuple[Any, Any], found: list[Face], host: Any
) -> None:
    images = photo().repeat(12, 1, 1, 1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    frames = (images + 0.02 * noise).clamp(0, 1)
    how = {"restorer": models[0], "images": frames, "match_grain": False, "preview": False}
    alone, mask, *_ = run("BFR_RestoreFaces", **how)
    held, held_mask, crops, report, seen, restored, *_ = run("BFR_RestoreFaces", **how, video=True)
    assert (seen, restored) == (24, 24) and report == "24 faces found, 24 restored, 0 skipped"
    assert held.shape == frames.shape and crops.shape == (24, 32, 32, 3)

    def change(some: torch.Tensor) -> float:
        inside = (mask[:1] > 0.5)[..., None].expand_as(some[1:])
        return float((some[1:] - some[:-1])[inside].square().mean())

    assert change(held) < 0.3 * change(alone)
    assert torch.equal(held[held_mask == 0], frames[held_mask == 0])
    assert list((host.root / "temp/bfr_frames").iterdir()) == [], "what was kept to go on with is gone"
    assert torch.allclose(run("BFR_RestoreFaces", **how, video=True, smooth=0.0)[0], alone, atol=2e-3)


def test_a_cancelled_video_goes_on(
    run: Run, models: tuple[Any, Any], found: list[Face], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def find(picture: torch.Tensor) -> list[Face]:
        searched.append(picture.shape)
        return list(FACES)

    monkeypatch.setattr(sys.modules["any-name.nodes.restore"], "load_detector", lambda *_: find)
    how = {"restorer": models[0], "images": photo(12), "preview": False, "video": True, "batch_size": 2}
    host.looks, host.cancel_at = 0, 40
    with pytest.raises(Exception, match="^$"):
        run("BFR_RestoreFaces", **how)
    before = len(searched)
    assert 0 < before < 12
    host.cancel_at = 0
    gone_on = run("BFR_RestoreFaces", **how)[0]
    assert len(searched) == 12, "no frame was searched twice"
    assert torch.equal(gone_on, run("BFR_RestoreFaces", **how)[0]) and len(searched) == 24


class Upscaler:
    """An UPSCALE_MODEL that doubles."""

    scale, model = 2, None

    def __init__(self) -> None:
        self.moved: list[Any] = []

    def to(self, device: Any) -> None:
        self.moved.append(device)

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        return part.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("with_patcher", [True, False])
def test_a_newer_comfyui_loads_the_upscaler_itself(
    run: Run, models: tuple[Any, Any], found: list[Face], host: Any, with_patcher: bool
) -> None:
    upscaler = Upscaler()
    if with_patcher:
        upscaler.patcher = SimpleNamespace(load_device=torch.device("cpu"))  # type: ignore[attr-defined]
    host.asked.clear()
    made, *_ = run("BFR_RestoreFaces", restorer=models[0], images=photo(), upscale_model=upscaler)
    assert made.shape == (1, 128, 192, 3)
    if with_patcher:
        assert upscaler.moved == [] and host.asked.count("load 1") == 3, "the restorer, the upscaler, and that again"
    else:
        assert len(upscaler.moved) == 2 and "free True" in host.asked


@pytest.mark.parametrize("way", ["upscaler", "newer upscaler", "file"])
def test_where_memory_is_short_the_restorer_is_brought_back_for_every_photo(
    run: Run, models: tuple[Any, Any], found: list[Face], host: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI takes a model apart, layer by layer, wherever another asks for room."""
    restorer = models[0]
    host.short = True
    there = []
    restorer.network.module.register_forward_pre_hook(lambda *_: there.append(restorer.patcher in host.loaded))
    given: dict[str, Any] = {}
    if way == "file":
        (host.root / "models/upscale_models/any.pth").write_bytes(b"weights")
        module = sys.modules["any-name.nodes.host"]
        by_itself = partial(module.load_background, "adapted")
        monkeypatch.setattr(module, "load_background", lambda _, network: by_itself(network))
        given["background"] = "any.pth"
    else:
        given["upscale_model"] = Upscaler()
        if way == "newer upscaler":
            given["upscale_model"].patcher = SimpleNamespace(load_device=torch.device("cpu"))
    run("BFR_RestoreFaces", restorer=restorer, images=photo(3), **given)
    assert len(there) >= 3 and all(there)


def test_cancelled_between_photos(run: Run, models: tuple[Any, Any], found: list[Face], host: Any) -> None:
    host.looks, host.cancel_at = 0, 3
    with pytest.raises(Exception, match="^$"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(8))
    assert host.looks == 3


def test_a_restorer_judged_no_better_than_its_base_is_named(
    run: Run, models: tuple[Any, Any], found: list[Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = models[0].network
    monkeypatch.setattr(network, "metadata", {**network.metadata, "verdict": "keep_base", "base": "b.pth"})
    report = run("BFR_RestoreFaces", restorer=models[0], images=photo())[3].splitlines()
    assert len(report) == 2 and "keep the base" in report[0] and "b.pth" in report[0]


def test_compare_and_degrade(run: Run, host: Any) -> None:
    clean = photo(3)
    (lq,) = run("BFR_Degrade", images=clean, kind="sensor", seed=5)
    assert torch.equal(lq, run("BFR_Degrade", images=clean, kind="sensor", seed=5)[0])
    assert not torch.equal(lq, run("BFR_Degrade", images=clean, kind="sensor", seed=6)[0])
    grid, figures = run("BFR_Compare", restored=lq, damaged=lq, clean=clean, rows=2)
    assert grid.shape == (1, 2 * 64, 3 * 96, 3) and "PSNR (dB)" in figures
    _, figures = run("BFR_Compare", restored=lq)
    assert figures == "columns: restored; no clean pictures to measure by"
    named = {"name_of_restored": "mine", "name_of_other": "GFPGAN 1.4"}
    _, figures = run("BFR_Compare", restored=lq, other=clean, clean=clean, **named)
    assert all("mine " in line and "GFPGAN 1.4 " in line and "other" not in line for line in figures.splitlines())
    _, figures = run("BFR_Compare", restored=lq, other=lq, damaged=lq, name_of_restored=" ", name_of_other="base")
    assert figures.startswith("columns: damaged, restored, base;")
    for same in ({"name_of_restored": "other"}, {"name_of_other": "clean"}):
        with pytest.raises(ValueError, match="each set of pictures needs a name of its own: "):
            run("BFR_Compare", restored=lq, other=lq, clean=clean, **same)
        assert run("BFR_Compare", restored=lq, **same)[1].startswith("columns: "), "nothing else is called so"
    with pytest.raises(ValueError, match="differ in number"):
        run("BFR_Compare", restored=lq, clean=clean[:2])


def test_a_restorer_that_is_gone(run: Run, host: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="refresh the list"):
        run("BFR_LoadRestorer", restorer="gone.pth")


def test_aligned_pictures_are_restored_whole_and_no_face_is_sought(
    run: Run, models: tuple[Any, Any], pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["any-name.nodes.restore"]
    monkeypatch.setattr(module, "load_detector", lambda *_: pytest.fail("a detector was loaded"))
    images = photo(2)[:, :32, :32]
    made, mask, crops, _, *counts, _, _ = run("BFR_RestoreFaces", restorer=models[0], images=images, aligned=True)
    assert made.shape == images.shape and mask.min() == 1 and crops.shape == (2, 32, 32, 3)
    assert counts == [2, 2, 0] and torch.equal(made, crops) and not torch.equal(made, images)
    with pytest.raises(ValueError, match="an aligned face is square"):
        run("BFR_RestoreFaces", restorer=models[0], images=photo(), aligned=True)


def test_drawn_faces(run: Run, models: tuple[Any, Any], host: Any) -> None:
    (drawn,) = run("BFR_DrawFaces", prior=models[1], count=5, seed=3)
    assert drawn.shape == (5, 32, 32, 3) and host.previews
    assert host.texts[-1] == "5 faces are drawn", "the node does not go on saying that it is at work"
    host.texts.clear()
    assert run("BFR_DrawFaces", prior=models[1], count=2, source="shipped")[0].shape == (2, 32, 32, 3)
    assert not host.texts, "they are there at once"
    (fewer,) = run("BFR_DrawFaces", prior=models[1], count=2, seed=3)
    assert (drawn[:2] - fewer).abs().max() < 0.02 < (drawn[0] - drawn[1]).abs().mean()
    assert not torch.equal(fewer, run("BFR_DrawFaces", prior=models[1], count=2, seed=4)[0])
    host.looks, host.cancel_at = 0, 3
    with pytest.raises(Exception, match="^$"):
        run("BFR_DrawFaces", prior=models[1], count=5)
    assert host.looks == 3, "answered after one network call"


def test_the_last_live_picture_is_the_result_and_texts_come_before_pictures(
    run: Run, models: tuple[Any, Any], found: list[Face], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.texts.clear()
    made, *_, report, _, _, _, _, _ = run("BFR_RestoreFaces", restorer=models[0], images=photo(3))
    assert host.texts == ["restoring ...", f"{report}\n6 faces: cannot tell"]
    kind, picture, pixels = host.previews[-1]
    assert (kind, picture.size, pixels) == ("JPEG", (2 * 96, 2 * 64), 1024)
    corner = torch.from_numpy(np.array(picture.crop((0, 0, 96, 64)))) / 255
    assert (corner - made[0]).abs().max() < 1.01 / 255
    host.previews.clear()
    monkeypatch.setattr(sys.modules["any-name.nodes.host"], "RESULT_PIXELS", 48)
    run("BFR_RestoreFaces", restorer=models[0], images=photo())
    assert host.previews[-1][1].size == (48, 32)


def test_texts_come_plain_for_the_extension_and_escaped_for_pages(nodes: dict[str, type], host: Any) -> None:
    node: Any = nodes["BFR_Compare"]
    shown = node.execute(restored=photo(), rows=1, name_of_restored="a < b & c").ui
    assert shown["bfr_text"] == ["columns: a < b & c; no clean pictures to measure by"]
    assert shown["text"] == ["columns: a &lt; b &amp; c; no clean pictures to measure by"] == host.texts[-1:]
    script = (Path(__file__).parents[2] / "web/bfr_adapt.js").read_text(encoding="utf-8")
    assert f'const KEY = "{sys.modules["any-name.nodes.host"].TEXT_KEY}";' in script


@pytest.mark.parametrize("preview", [True, False])
def test_no_picture_is_written_where_the_preview_is_off(
    nodes: dict[str, type], models: tuple[Any, Any], found: list[Face], preview: bool
) -> None:
    restorer, prior = models
    for name, inputs in {
        "BFR_RestoreFaces": {"restorer": restorer, "images": photo(3)},
        "BFR_Degrade": {"images": photo(3), "seed": 0},
        "BFR_DrawFaces": {"prior": prior, "count": 2, "seed": 0},
    }.items():
        node: Any = nodes[name]
        sockets = node.define_schema().inputs
        names = {"preview", "likeness", "only_like", "person_limit", "order", *NO_WORSE, "background"}
        names |= {"video", "smooth", "source"}
        later = [s for s in sockets if s.id in names]
        assert sockets[-len(later) :] == later and later[0].id == "preview", "old workflows have no value for them"
        assert all(s.options["optional"] for s in later)
        defaults = {s.id: s.options["default"] for s in sockets if "default" in s.options}
        assert ("images" in node.execute(**(defaults | inputs | {"preview": preview})).ui) is preview
        assert "images" in node.execute(**({k: v for k, v in defaults.items() if k != "preview"} | inputs)).ui


def test_live_pictures_are_rounded(pack: Any) -> None:
    to_pillow = sys.modules["any-name.nodes.convert"].to_pillow
    levels = torch.arange(256).div(255).sub(1e-4).clamp(0).expand(3, 4, 256)
    assert np.array_equal(np.array(to_pillow(levels))[0, :, 0], np.arange(256))


def test_pixels_that_are_no_number_do_not_take_a_picture_along(
    run: Run, models: tuple[Any, Any], found: list[Face], caplog: pytest.LogCaptureFixture
) -> None:
    images = photo(2)
    images[1, 2, 90, 0] = torch.nan  # outside the faces
    made, *_, restored, skipped, _, _ = run("BFR_RestoreFaces", restorer=models[0], images=images, background="adapted")
    assert (restored, skipped) == (4, 0) and made.isfinite().all()
    assert "images: NaN at 1 of the pixels" in caplog.text


def test_onnx_restorers_are_listed_and_restore_but_cannot_be_tuned(
    run: Callable[..., tuple],
    nodes: dict[str, type],
    models: tuple[Any, Any],
    host: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    names = sys.modules["any-name.nodes.host"].folder_paths  # ReActor sets the kind's suffixes to some without .onnx
    monkeypatch.setattr(names, "get_filename_list", lambda kind: ["tiny.safetensors"])
    write_onnx(host.root / "models/facerestore_models/GPEN-BFR-64.onnx", side=64)
    (host.root / "models/upscale_models/other.onnx").write_bytes(b"\x08\x06")
    options = {s.id: s.options.get("options") for s in nodes["BFR_LoadRestorer"].define_schema().inputs}  # type: ignore[attr-defined]
    assert options["restorer"] == ["embedded", "embedded128", "GPEN-BFR-64.onnx", "tiny.safetensors"]
    gpen, about = run("BFR_LoadRestorer", restorer="GPEN-BFR-64.onnx")
    assert about == "GPEN-BFR-64.onnx: ONNX, 64 x 64 pixels, licence: unknown"
    grey = torch.full((2, 64, 64, 3), 0.5)
    restored = run("BFR_RestoreFaces", restorer=gpen, images=grey, aligned=True)
    assert restored[5] == 2 and torch.allclose(restored[0], grey + 0.125, atol=0.01)
    faces = run("BFR_FacesFromImages", restorer=gpen, images=torch.rand(3, 64, 64, 3), run="onnx", aligned=True)[0]
    with pytest.raises(ValueError, match=r"GPEN-BFR-64.onnx: is an ONNX file, which restores and cannot be tuned"):
        run("BFR_MakePseudoTargets", faces=faces, restorer=gpen, prior=models[1])
    with pytest.raises(ValueError, match=r"GPEN-BFR-64.onnx: is an ONNX file, which restores and cannot be tuned"):
        run("BFR_SaveRestorer", restorer=gpen)


def test_likeness_and_one_person_alone(
    run: Run, models: tuple[Any, Any], found: list[Face], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the larger of the two faces became somebody else, and the picture given shows the person of the smaller."""
    module = sys.modules["any-name.nodes.restore"]
    words = sys.modules["any-name.bfr_core.restoration.same_person"]
    asked: list[Any] = []

    def load_check(action: str, restorer: Any, person: Any, limit: float, name: str) -> Any:
        assert name == "only_like"
        asked.append((action, None if person is None else person.shape, limit))

        def check(crops: list[Any], restored: list[Any], widths: list[float]) -> Any:
            said = (words.FaceLikeness(words.OTHER, 0.7, 0.4, 0.45, 0.02, 0.05), words.FaceLikeness(words.SAME))
            kept = [0, 1] if person is None else [1]
            reasons = [] if person is None else ["a face is not like the person"]
            return words.Acted(kept, list(restored), said, [0, 1], reasons)

        return check

    monkeypatch.setattr(module, "load_check", load_check)
    *_, report, seen, restored, skipped, said, others = run("BFR_RestoreFaces", restorer=models[0], images=photo())
    assert (seen, restored, skipped, others) == (2, 2, 0, 1) and "photo 1: likeness: no longer looks like" in report
    assert said.splitlines()[1] == "photo 1: likeness: looks like the same person"
    how = {"only_like": photo(2), "likeness": "keep", "person_limit": 0.5}
    *_, report, seen, restored, _, _, _ = run("BFR_RestoreFaces", restorer=models[0], images=photo(), **how)
    assert (seen, restored) == (2, 1) and "not like the person" in report
    assert asked == [("warn", None, 0.55), ("keep", (3, 64, 96), 0.5)]


def test_what_restores_is_looked_at_again(
    nodes: dict[str, Any], host: Any, models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, file = nodes["BFR_RestoreFaces"], host.root / "models/upscale_models/rest.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"one")
    given = {"background": "rest.safetensors", "detector": "auto", "mask": "auto"}
    seen = [node.fingerprint_inputs(**given)]
    file.write_bytes(b"another")
    seen.append(node.fingerprint_inputs(**given))
    monkeypatch.setattr("any-name.nodes.restore.has_parser", lambda: "now it is here")
    seen.append(node.fingerprint_inputs(**given))
    assert len(set(seen)) == 3 and node.fingerprint_inputs(**given) == seen[-1]
    assert node.fingerprint_inputs(background="gone.pth") == node.fingerprint_inputs(background="../gone.pth")


def test_the_settings_beside_a_prior_count(nodes: dict[str, Any], host: Any) -> None:
    (host.root / "models/bfr_priors/mine.pth").write_bytes(b"")
    before = nodes["BFR_LoadPrior"].fingerprint_inputs(prior="mine.pth")
    assert before == nodes["BFR_LoadPrior"].fingerprint_inputs(prior="mine.pth")
    (host.root / "models/bfr_priors/mine.json").write_text("{}")
    assert nodes["BFR_LoadPrior"].fingerprint_inputs(prior="mine.pth") != before
