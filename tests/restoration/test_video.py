"""The faces of a video: followed, held still, restored in little memory, and gone on with after a stop."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr_core.faces.align import Face, template
from bfr_core.faces.likeness import SAME
from bfr_core.faces.track import REACH
from bfr_core.pixels import gaussian_blur
from bfr_core.restoration.restore import RestoreConfig, RestoredPhoto, numbers_in, restore_photo
from bfr_core.restoration.same_person import LEFT_ALONE, Acted, FaceLikeness
from bfr_core.restoration.video import FrameStore, VideoConfig, motion, restore_frames
from bfr_core.restorers.base import Restorer

PLAIN = RestoreConfig(
    match_colour=False, keep_detail=False, match_grain=False, even_tone=False, likeness="off", batch_size=4
)


class Sharpener(nn.Module):
    """Makes fine detail twice as strong, noise too; counts the faces it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.faces = 0

    def forward(self, lq: Tensor) -> Tensor:
        self.faces += len(lq)
        return lq + self.one * (lq - gaussian_blur(lq, 1.5))


def sharpener(size: int = 64) -> Restorer:
    return Restorer(Sharpener().eval(), "fake", size, "fake")


def face_at(x: float, y: float, width: float = 64, score: float = 1.0) -> Face:
    return Face(template(1) * width + [x + width / 2, y + width / 2], score)


def scene(height: int = 100, width: int = 260, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 12, 24, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 1)


def filmed(count: int, noise: float = 0.02, picture: Tensor | None = None) -> list[Tensor]:
    """Frames of one still picture, each with noise of its own, in whole numbers."""
    picture = scene() if picture is None else picture
    draws = (torch.randn(picture.shape, generator=torch.Generator().manual_seed(i)) for i in range(count))
    return [((picture + noise * draw).clamp(0, 1) * 255).round() / 255 for draw in draws]


def change(frames: list[Tensor], part: Tensor) -> float:
    """Root mean square of what changes from frame to frame within `part`, a mask (1, H, W)."""
    where = part.expand_as(frames[0])
    steps = [(b - a)[where].square().mean() for a, b in pairwise(frames)]
    return float(torch.stack(steps).mean().sqrt())


@pytest.mark.parametrize("grain", [False, True])
def test_still_parts_change_no_more_than_the_input_does(grain: bool) -> None:
    frames, faces = filmed(12, 0.03), [face_at(20, 20), face_at(150, 15)]
    config, restorer = replace(PLAIN, match_grain=grain), sharpener()
    alone = [restore_photo(frame, restorer, config, lambda _: faces).pixels for frame in frames]
    results = list(restore_frames(iter(frames), restorer, config, lambda _: faces))
    part = results[0].mask > 0.5
    before, by_itself, held = (change(some, part) for some in (frames, alone, [result.pixels for result in results]))
    assert by_itself > 1.2 * before, "the restorer flickers"
    assert held < (1.0 if grain else 0.6) * before, (before, by_itself, held)
    assert all(torch.equal(r.pixels[:, :10], frame[:, :10]) for r, frame in zip(results, frames, strict=True))


def test_a_still_picture_keeps_its_grain() -> None:
    picture = filmed(1, 0.06)[0]
    config = replace(PLAIN, match_grain=True)
    results = list(restore_frames([picture] * 5, sharpener(), config, lambda _: [face_at(20.3, 20.4)]))
    assert all(torch.allclose(result.pixels, results[0].pixels, atol=1e-4) for result in results)
    without = restore_photo(picture, sharpener(), PLAIN, lambda _: [face_at(20.3, 20.4)]).pixels
    assert (results[-1].pixels - without).std() > 0.002, "there is grain"


def test_grain_is_held_still_at_any_visibility() -> None:
    still, faces, flicker = filmed(1, 0.06)[0], [face_at(20.3, 20.4)], []
    draws = [torch.randn(still.shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    frames = [(still + 0.002 * draw).clamp(0, 1) for draw in draws]  # grain that hardly moves
    for blend in (1.0, 0.4):
        config = replace(PLAIN, match_grain=True, blend=blend)
        results = list(restore_frames(iter(frames), sharpener(), config, lambda _: faces))
        part = results[0].mask > 0.5 * blend
        flicker.append(change([result.pixels for result in results], part))
    assert flicker[1] < flicker[0], "what is shown less flickers less"


def test_what_moves_is_not_held() -> None:
    frames = filmed(8)
    for frame in frames[4:]:
        frame[:, 45:60, 40:60] = 0.9  # a light on a cheek
    restorer, faces = sharpener(), [face_at(20, 20)]
    alone = restore_photo(frames[4], restorer, PLAIN, lambda _: faces).pixels
    result = list(restore_frames(iter(frames), restorer, PLAIN, lambda _: faces))[4].pixels
    inside = (slice(None), slice(47, 58), slice(42, 58))
    assert (result[inside] - alone[inside]).abs().max() < 0.02
    ghost = list(restore_frames(iter(frames), restorer, PLAIN, lambda _: faces, VideoConfig(smooth=0.0)))[4].pixels
    assert torch.allclose(ghost, alone, atol=1e-5), "without holding still every frame is restored by itself"


def test_slow_motion_is_seen_in_the_end() -> None:
    picture = scene()[:, :64, :64]
    assert motion(picture, picture, 64).max() == 0
    slow = picture.clone()
    slow[:, 20:40, 20:40] += 0.005
    assert motion(slow, picture, 64).max() == 0
    slow[:, 20:40, 20:40] += 0.05
    moved = motion(slow, picture, 64)[0]
    assert moved[22:38, 22:38].min() == 1 and moved[55:, 55:].max() == 0


def crossing(number: int) -> list[Face]:
    """Two faces that pass each other, as a detector lists them: by their size, which trembles."""
    one, other = face_at(10 + 8 * number, 18, 64), face_at(180 - 8 * number, 18, 64 + (-1) ** number)
    return sorted([one, other], key=lambda face: -face.width)


@pytest.mark.parametrize(("numbers", "at_first", "at_last"), [("1", 42, 212), ("2", 212, 42)])
def test_a_face_keeps_its_number_when_others_pass(numbers: str, at_first: float, at_last: float) -> None:
    config = replace(PLAIN, faces="numbered", numbers=numbers)

    results = list(restore_frames(filmed(22), sharpener(), config, find=lambda i, _: crossing(i)))
    assert all(len(result.faces) == 1 and result.found == 2 for result in results)
    middles = [float(result.faces[0].landmarks[:, 0].mean()) for result in results]
    assert middles[0] == pytest.approx(at_first, abs=4) and middles[-1] == pytest.approx(at_last, abs=8)


def test_a_number_that_no_face_has_is_said_once() -> None:
    config = replace(PLAIN, faces="numbered", numbers="1, 3")
    results = list(restore_frames(filmed(5), sharpener(), config, lambda _: [face_at(20, 20), face_at(150, 15)]))
    assert [len(result.faces) for result in results] == [1] * 5
    assert list(results[0].skipped) == ["there is no face 3 here: the scene begins with 2"]
    assert not any(result.skipped for result in results[1:])


@pytest.mark.parametrize(("numbers", "restored"), [("1", 1), ("2", 0)])
def test_faces_below_the_limit_of_size_have_no_number_as_in_photos(numbers: str, restored: int) -> None:
    config = replace(PLAIN, faces="numbered", numbers=numbers, min_face=50)
    faces = [face_at(10, 18, 30), face_at(100, 18, 80)]
    results = list(restore_frames(filmed(3), sharpener(), config, find=lambda i, _: faces))
    assert [len(result.faces) for result in results] == [restored] * 3
    assert len(restore_photo(filmed(1)[0], sharpener(), config, lambda _: faces).faces) == restored


def test_one_chosen_face_stays_the_one_until_it_is_gone() -> None:
    config = replace(PLAIN, faces="largest")

    def find(number: int, _: Tensor) -> list[Face]:
        first, second = face_at(10, 18, 60), face_at(160, 18, 50 + number)  # which grows larger
        return [first, second] if number < 15 else [second]

    results = list(restore_frames(filmed(40), sharpener(), config, find=find, video=VideoConfig(patience=3)))
    left = [bool(result.faces and result.faces[0].landmarks[:, 0].mean() < 100) for result in results]
    assert all(left[:15]) and not any(left[15:])
    assert [len(result.faces) for result in results[20:]] == [1] * 20


def test_a_face_at_the_limit_of_size_does_not_come_and_go() -> None:
    config = replace(PLAIN, min_face=60)
    results = list(restore_frames(filmed(12), sharpener(), config, find=lambda i, _: [face_at(20, 20, 60.5 - i % 2)]))
    assert [len(result.faces) for result in results] == [1] * 12
    small = list(restore_frames(filmed(4), sharpener(), config, find=lambda i, _: [face_at(20, 20, 40)]))
    assert [len(result.faces) for result in small] == [0] * 4
    assert [len(result.skipped) for result in small] == [1, 0, 0, 0], "said once"


@dataclass(eq=False)
class TwoInOne(Restorer):
    """Takes another network for every face it is asked for the first time."""

    asked: list[str] = field(default_factory=list)

    def restore_and_tell(self, lq: Tensor) -> tuple[Tensor, list[str]]:
        self.asked += ["any"] * len(lq)
        return self.restore(lq), [f"group {len(self.asked) - i}" for i in range(len(lq))]

    def that_served(self, name: str) -> Restorer:
        self.asked.append(name)
        return Restorer(self.module, "fake", self.size, name)


def test_a_face_is_restored_by_the_same_network_throughout() -> None:
    restorer = TwoInOne(Sharpener().eval(), "fake", 64, "two")
    faces = [face_at(20, 20), face_at(150, 15)]
    list(restore_frames(filmed(9), restorer, PLAIN, lambda _: faces))
    assert restorer.asked.count("any") == 2, "each face is routed once"
    assert set(restorer.asked) == {"any", "group 1", "group 2"}


def test_what_is_decided_of_a_face_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from bfr_core.restoration import restore as module

    values = iter([2.0] + [0.0] * 30)
    monkeypatch.setattr(module, "sharpness", lambda crops: torch.full((len(crops),), next(values)))
    restorer = sharpener()
    config = replace(PLAIN, skip_sharp=1.0)
    results = list(restore_frames(filmed(6), restorer, config, lambda _: [face_at(20, 20)]))
    assert [len(result.faces) for result in results] == [0] * 6 and restorer.module.faces == 0
    assert "already sharp" in results[0].skipped[0] and not any(result.skipped for result in results[1:])


class FailsFirst(Sharpener):
    """Fails on the first face it is given."""

    def forward(self, lq: Tensor) -> Tensor:
        if not self.faces:
            self.faces += len(lq)
            raise RuntimeError("no room")
        return super().forward(lq)


def test_a_face_that_fails_at_first_is_decided_on_when_it_can_be_restored() -> None:
    """Not put on the later frames without a look at it."""

    def another(crops: list[Tensor], restored: list[Any], widths: list[float]) -> Acted:
        return Acted([], [], (), [], ["it is another person"])

    restorer = Restorer(FailsFirst().eval(), "fake", 64, "fails first")
    faces = [face_at(20, 20)]
    results = list(restore_frames(filmed(4), restorer, PLAIN, lambda _: faces, likeness=cast(Any, another)))
    assert ["failed" in " ".join(one.skipped) for one in results] == [True, False, False, False]
    assert "it is another person" in results[1].skipped and not any(one.faces for one in results)


def test_a_face_of_which_only_the_blocks_would_go_is_said_to_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def freed(photo: Tensor, faces: list[Face], *_: Any, **__: Any) -> RestoredPhoto:
        return RestoredPhoto(photo, faces, ["only the blocks are out"], torch.zeros(1, 1, 1), [], 1, unblocked=faces)

    monkeypatch.setattr("bfr_core.restoration.video.paste_faces", freed)
    frames, config = filmed(2), replace(PLAIN, keep_detail=True)
    results = list(restore_frames(frames, sharpener(), config, lambda _: [face_at(20, 20)]))
    assert "left alone" in results[0].skipped[0] and "blocks" not in results[0].skipped[0]
    assert torch.equal(results[0].pixels, frames[0])


def test_references_are_not_for_videos() -> None:
    lending = cast(Any, SimpleNamespace(lender=object()))
    with pytest.raises(ValueError, match="references lend their detail to photos"):
        next(restore_frames(filmed(1), sharpener(), PLAIN, lambda _: [], likeness=lending))


def test_a_face_that_pasting_leaves_alone_is_told_of_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def same(crops: list[Tensor], restored: list[Any], widths: list[float]) -> Acted:
        return Acted([0], restored, (FaceLikeness(SAME, 0.1, 0.4, 0.5),), [0], ["nothing is lent"])

    def left(photo: Tensor, *_: Any, **__: Any) -> RestoredPhoto:
        return RestoredPhoto(photo, [], ["it is sharper"], torch.zeros(1, *photo.shape[1:]), [], 1)

    config, faces = replace(PLAIN, keep_detail=True), [face_at(20, 20)]

    def words() -> list[list[str]]:
        results = restore_frames(filmed(3), sharpener(), config, lambda _: faces, likeness=cast(Any, same))
        return [[one.word for one in result.likeness] for result in results]

    assert words() == [[SAME], [], []]
    monkeypatch.setattr("bfr_core.restoration.video.paste_faces", left)
    assert words() == [[LEFT_ALONE], [], []]


def test_three_hundred_frames_take_the_memory_of_a_few() -> None:
    alive: set[int] = set()
    most = 0

    def frames() -> Iterator[Tensor]:
        nonlocal most
        for i in range(300):
            frame = torch.full((3, 72, 72), 0.5)
            alive.add(i)
            weakref.finalize(frame, alive.discard, i)
            most = max(most, len(alive))
            yield frame

    restorer, held = sharpener(16), []
    for result in restore_frames(frames(), restorer, PLAIN, lambda _: [face_at(4, 4)]):
        held.append(weakref.ref(result))
        del result
    gc.collect()
    assert len(held) == 300 and restorer.module.faces == 300
    assert most <= PLAIN.batch_size + 2 * REACH + 3, most
    assert sum(ref() is not None for ref in held) <= 1


class Stop(Exception):
    pass


def run(folder: Path | None, frames: list[Tensor], stop_at: int = 0) -> tuple[list[Any], Any, FrameStore | None]:
    restorer: Any = sharpener()
    searched, done = 0, []
    store = FrameStore(folder, "these frames") if folder else None

    def find(number: int, _: Tensor) -> list[Face]:
        nonlocal searched
        searched += 1
        return [face_at(20, 20), face_at(150, 15)]

    try:
        for result in restore_frames(iter(frames), restorer, PLAIN, find=find, store=store):
            done.append(result)
            if stop_at and len(done) == stop_at:
                raise Stop
    except Stop:
        pass
    restorer.module.searched = searched
    return done, restorer, store


def test_a_job_that_was_stopped_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    frames = filmed(20)
    whole, restorer, store = run(tmp_path / "whole", frames)
    assert restorer.module.faces == 40 and store
    store.done()
    assert not (tmp_path / "whole").exists()
    some, first, _ = run(tmp_path / "stopped", frames, stop_at=11)
    rest, second, store = run(tmp_path / "stopped", frames)
    assert first.module.faces >= 22 and first.module.faces + second.module.faces == 40
    assert first.module.searched + second.module.searched == 20
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(rest, whole, strict=True))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(some, whole, strict=False))
    without, _, _ = run(None, frames)
    assert all(torch.allclose(a.pixels, b.pixels, atol=1e-3) for a, b in zip(without, whole, strict=True))
    _, third, _ = run(tmp_path / "stopped", frames)
    assert third.module.faces == 0
    FrameStore(tmp_path / "stopped", "other frames")
    _, fourth, _ = run(tmp_path / "stopped", frames)
    assert fourth.module.faces == 40, "what was made of other frames is not used"


def test_a_damaged_file_of_the_store_is_made_again(tmp_path: Path) -> None:
    frames = filmed(4)
    run(tmp_path / "store", frames)
    (tmp_path / "store/restored_000002.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "store/faces_000001.safetensors").write_bytes(b"x" * 50)
    results, restorer, _ = run(tmp_path / "store", frames)
    assert restorer.module.faces == 2 and restorer.module.searched == 1 and len(results) == 4


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1", [1]),
        (" 1, 3", [1, 3]),
        ("2-4", [2, 3, 4]),
        ("4-2", [2, 3, 4]),
        ("4 -", [4, 5, 6]),
        ("1,3-", [1, 3, 4, 5, 6]),
    ],
)
def test_numbers_may_be_ranges(text: str, numbers: list[int]) -> None:
    RestoreConfig(faces="numbered", numbers=text)
    assert [n for n in range(1, 7) if numbers_in(text)(n)] == numbers


@pytest.mark.parametrize("text", ["", "0", "-3", "1,,2", "a", "1-2-3", "1 2"])
def test_other_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="numbers is"):
        RestoreConfig(numbers=text)


def test_a_face_that_enters_in_the_middle_of_a_batch_is_restored() -> None:
    first, second = face_at(20, 20), face_at(150, 15)
    config = replace(PLAIN, batch_size=8)
    faces = [[first]] * 3 + [[first, second]] * 4
    results = list(restore_frames(filmed(7), sharpener(), config, find=lambda i, _: faces[i]))
    assert [len(result.faces) for result in results] == [1, 1, 1, 2, 2, 2, 2]
