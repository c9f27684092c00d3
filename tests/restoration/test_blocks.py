from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bfr_core.damage.jpeg import LUMA_TABLE, block_cosines, from_block_cosines, scaled_table
from bfr_core.damage.synthetic import stored_as_jpeg
from bfr_core.faces.paste import Patch
from bfr_core.files.photos import read_photo, write_image
from bfr_core.pixels import gaussian_blur, luma, resized
from bfr_core.restoration import finishing
from bfr_core.restoration.blocks import Jpeg, read_jpeg, unblocked, within_steps
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.restore import RestoreConfig, restore_photo
from tests.restoration.faces_in_photos import SIDE, a_face, noise, restorer, soft, within

FACE = a_face()


def natural(side: int = SIDE) -> Tensor:
    """(3, side, side) with detail of every size, the finer the weaker, as photographs have it."""
    fy, fx = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)
    white = torch.fft.rfft2(noise(torch.empty(side, side), 1.0, seed=3))
    texture = torch.fft.irfft2(white / (fx.square() + fy.square()).sqrt().clamp_min(1 / side) ** 1.2, s=(side, side))
    return (0.5 * soft(side) + 0.25 + 0.1 * texture / texture.std()).clamp(0, 1)


CONFIG = RestoreConfig(precision="float32", match_grain=False, likeness="off")


@pytest.mark.parametrize("quality", [10, 30, 50, 75])
@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 5)])
def test_the_quality_and_the_corners_of_a_jpeg_are_read_off_its_pixels(quality: int, top: int, left: int) -> None:
    photo = stored_as_jpeg(natural(), quality)[:, top:, left:]
    read = read_jpeg(photo)
    assert read and abs(read.quality - quality) <= 2 and read == Jpeg(read.quality, -top % 8, -left % 8)


@pytest.mark.parametrize("quality", [30, 75])
def test_a_jpeg_that_was_stored_lying_on_its_side_is_read_and_used_as_one_that_was_not(quality: int) -> None:
    """Cameras store what is taken upright so; libjpeg's steps are not the same for rows and columns."""
    upright = stored_as_jpeg(natural(), quality)
    jpeg, turned = read_jpeg(upright), read_jpeg(upright.mT)
    assert jpeg and turned and turned == Jpeg(jpeg.quality, jpeg.left, jpeg.top, turned=True)
    assert torch.allclose(unblocked(upright.mT, turned), unblocked(upright, jpeg).mT, atol=1 / 255)
    new = (upright + noise(upright, 0.01)).clamp(0, 1)
    assert torch.allclose(within_steps(upright.mT, new.mT, turned), within_steps(upright, new, jpeg).mT, atol=1e-5)


def test_other_photos_come_from_no_jpeg() -> None:
    clean = natural()
    for photo in (
        clean,
        (clean + noise(clean, 0.05)).clamp(0, 1),
        resized(stored_as_jpeg(clean, 30)[None], 300)[0].clamp(0, 1),  # made larger since
        torch.full((3, 64, 64), 0.5),
        clean[:, :20, :20],
    ):
        assert read_jpeg(photo) is None


def steps_at_edges(photo: Tensor, jpeg: Jpeg) -> float:
    """How much steps across the edges of the blocks are larger than those beside them, in levels of 255."""
    grey, larger = 255 * luma(photo)[0], []
    for part, first in ((grey, jpeg.left), (grey.T, jpeg.top)):
        step = part.diff(dim=1).abs()
        excess = step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2
        larger.append(float(excess[:, (first - 2) % 8 :: 8].mean()))
    return sum(larger) / 2


def rms(picture: Tensor, clean: Tensor) -> float:
    return float((picture - clean).square().mean().sqrt())


@pytest.mark.parametrize("quality", [10, 30, 60])
def test_without_its_blocks_a_photo_is_nearer_to_what_was_stored(quality: int) -> None:
    clean = F.pad(natural()[None], (5, 0, 3, 0), mode="replicate")[0]
    photo = stored_as_jpeg(clean, quality)[:, 3:, 5:]
    jpeg = read_jpeg(photo)
    assert jpeg
    made = unblocked(photo, jpeg)
    assert rms(made, natural()) < 0.99 * rms(photo, natural())
    assert steps_at_edges(made, jpeg) < 0.65 * steps_at_edges(photo, jpeg)


@pytest.mark.parametrize("full_colour", [False, True])
@pytest.mark.parametrize("quality", [20, 60, 85])
def test_its_colours_are_nearer_too(quality: int, full_colour: bool) -> None:
    other = natural()
    clean = torch.stack([other[0], other[1].flip(0), other[2].flip(1)])  # whose colours have detail, too
    photo = stored_as_jpeg(clean, quality, full_colour=full_colour)
    made = unblocked(photo, Jpeg(quality, 0, 0))
    colours = [picture - luma(picture) for picture in (made, photo, clean)]
    assert rms(colours[0], colours[2]) < rms(colours[1], colours[2])


def test_a_photo_above_pillows_limit_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert stored_as_jpeg(natural(), 50).shape == (3, SIDE, SIDE)


def test_outside_the_mask_a_face_of_a_jpeg_is_as_it_was() -> None:
    photo = stored_as_jpeg(natural(), 30)
    mask = torch.zeros(1, 100, 100)
    mask[:, 33:70, 29:75] = 1
    covered = photo[:, 50:150, 60:160]
    new = torch.where(mask > 0, gaussian_blur(covered[None], 1.5)[0], covered)
    (kept,) = finishing._within_steps(photo, [Patch(50, 60, new, mask)], Jpeg(30, -50 % 8, -60 % 8))
    outside = mask[0] == 0
    assert torch.equal(kept.pixels[:, outside], covered[:, outside])


def steps_changed(photo: Tensor, new: Tensor, jpeg: Jpeg) -> Tensor:
    """By how many of its steps each coefficient of luma differs: (m, n, 8, 8), away from the borders' cut blocks."""
    change = luma(new - photo)[0][jpeg.top :, jpeg.left :]
    whole = change[: change.shape[0] // 8 * 8, : change.shape[1] // 8 * 8]
    return block_cosines(255 * whole) / scaled_table(LUMA_TABLE, jpeg.quality)


@pytest.mark.parametrize("quality", [20, 40, 60])
def test_what_a_network_makes_up_beyond_the_steps_of_a_jpeg_is_taken_back(
    quality: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = 0.3 + 0.4 * natural()  # far from black and white, where values are cut off
    clean, photo = (picture[:, 3:, 5:] for picture in (whole, stored_as_jpeg(whole, quality)))
    jpeg = read_jpeg(photo)
    assert jpeg and (jpeg.top, jpeg.left) == (5, 3)
    rows, columns = (clean.shape[1] - 5) // 8, (clean.shape[2] - 3) // 8
    steps = scaled_table(LUMA_TABLE, quality).clamp(max=60) / 255
    made_up = from_block_cosines(noise(torch.empty(rows, columns, 8, 8), 0.3) * steps)
    new = clean.clone()
    new[:, 5 : 5 + 8 * rows, 3 : 3 + 8 * columns] += made_up
    assert steps_changed(photo, new, jpeg).abs().max() > 0.5
    made = within_steps(photo, new, jpeg)
    assert steps_changed(photo, made, jpeg).abs().max() < 0.26
    errors = [rms(luma(picture), luma(clean)) for picture in (new, made)]
    assert errors[1] < 0.99 * errors[0]
    monkeypatch.setattr("bfr_core.restoration.blocks.STRIP", 64)
    assert torch.allclose(within_steps(photo, new, jpeg), made, atol=1e-6)


def test_what_is_not_shown_says_nothing_of_other_damage() -> None:
    clean = natural()
    photo = stored_as_jpeg(clean, 40)
    jpeg, mask = read_jpeg(photo), torch.zeros(1, SIDE, SIDE)
    mask[:, : SIDE // 2] = 1
    new = torch.where(mask > 0, clean, 1 - clean)
    assert jpeg and within_steps(photo, new, jpeg) is new
    made = within_steps(photo, new, jpeg, mask)
    assert not torch.equal(made[:, : SIDE // 2], clean[:, : SIDE // 2])


@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_where_a_network_mends_other_damage_than_a_jpegs_it_is_left_to_it(damage: str) -> None:
    clean = natural()
    blurred, noisy = gaussian_blur(clean[None], 3.0)[0], clean + noise(clean, 0.1)
    photo = stored_as_jpeg((blurred if damage == "blur" else noisy).clamp(0, 1), 60)
    jpeg = read_jpeg(photo)
    assert jpeg and within_steps(photo, clean, jpeg) is clean


def test_a_sharp_face_of_a_jpeg_loses_its_blocks_and_no_detail() -> None:
    clean, place = natural(), within(natural(), FACE)
    photo = stored_as_jpeg(clean, 30)
    result = restore_photo(photo, restorer(0.6), CONFIG, lambda photo: [FACE])
    assert result.faces == result.unblocked == [FACE] and result.step is None, "nothing is generated"
    (said,) = result.skipped
    assert said.startswith("of a face 200 pixels wide only the blocks of the JPEG are taken out: it is sharper (")
    assert rms(result.pixels[place], clean[place]) < 0.99 * rms(photo[place], clean[place])
    untouched = result.mask[0] == 0
    assert torch.equal(result.pixels[:, untouched], photo[:, untouched])
    rim = (result.mask[0] > 0) & (result.mask[0] < 0.02)
    assert rim.any() and (result.pixels - photo)[:, rim].abs().max() < 0.01, "no seam"


def test_a_coarse_jpeg_is_restored() -> None:
    photo, place = stored_as_jpeg(natural(), 10), within(natural(), FACE)
    jpeg = read_jpeg(photo)
    assert jpeg
    off, on = (
        restore_photo(photo, restorer(1.0), config, lambda photo: [FACE]).pixels[place]
        for config in (replace(CONFIG, keep_detail=False), CONFIG)
    )
    clean, only_unblocked = natural()[place], unblocked(photo, jpeg)[place]
    assert rms(on, clean) < min(rms(off, clean), rms(only_unblocked, clean)) and rms(on, only_unblocked) > 3 / 255


def test_a_grey_jpeg_stays_grey() -> None:
    photo = stored_as_jpeg(natural()[:1].expand(3, -1, -1).contiguous(), 30)
    made = restore_photo(photo, restorer(1.0), CONFIG, lambda photo: [FACE]).pixels
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2]) and not torch.equal(made, photo)


def test_that_only_the_blocks_were_taken_out_is_said_of_a_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "in" / "a.png", stored_as_jpeg(natural(), 30))
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *args: lambda photo: [FACE])
    (file,) = restore_folder(tmp_path / "in", tmp_path / "out", restorer(0.6), CONFIG).files
    assert (file.status, file.faces) == ("restored", 1) and "only the blocks of the JPEG are taken out" in file.reason
    assert not read_photo(tmp_path / "out" / "a.png").record.steps, "nothing is generated"


def test_on_an_enlarged_background_such_a_face_has_no_blocks_and_is_not_restored() -> None:
    def twice(photo: Tensor) -> Tensor:
        return photo.repeat_interleave(2, -1).repeat_interleave(2, -2)

    photo = stored_as_jpeg(natural(), 30)
    alone, enlarged = (
        restore_photo(photo, restorer(0.6), CONFIG, lambda photo: [FACE], enlarge=how) for how in (None, twice)
    )
    assert torch.equal(enlarged.pixels, twice(alone.pixels)) and not torch.equal(alone.pixels, photo)
    assert enlarged.skipped == alone.skipped and not enlarged.faces
