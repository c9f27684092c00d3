from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bfr_core.damage.jpeg import through_jpeg
from bfr_core.damage.synthetic import degrade, stored_as_jpeg
from bfr_core.faces.align import Face, template
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import read_image, write_image
from bfr_core.metrics.detail import high_band, sharpness
from bfr_core.metrics.psnr import psnr
from bfr_core.pixels import gaussian_blur, resized
from bfr_core.randomness import keyed_generator
from bfr_core.restoration import finishing
from bfr_core.restoration.finest_band import levels_for
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.grain import NO_COARSE_GRAIN, NO_GRAIN
from bfr_core.restoration.noise import read_coarse_grain, read_noise
from bfr_core.restoration.pyramid import split
from bfr_core.restoration.restore import RestoreConfig, RestoredPhoto, restore_aligned, restore_photo
from bfr_core.restorers import load_restorer
from tests.pretended_device import DEVICE, PretendedDevice
from tests.restoration.faces_in_photos import SIDE, a_face, noise, restorer, sharp, soft, within
from tests.restoration.test_blocks import natural

FACE, CLEAN = a_face(), sharp(contrast=0.15)
KEEP = RestoreConfig(precision="float32", match_grain=False)
GRAIN = RestoreConfig(precision="float32", keep_detail=False)
BOTH = RestoreConfig(precision="float32")
NEITHER = RestoreConfig(precision="float32", keep_detail=False, match_grain=False)


def error(picture: Tensor, clean: Tensor) -> float:
    """Root mean square in the middle of the face."""
    place = within(clean, FACE)
    return float((picture - clean)[place].square().mean().sqrt())


def restored(photo: Tensor, config: RestoreConfig, sigma: float = 1.0) -> Tensor:
    return restore_photo(photo, restorer(sigma), config, lambda photo: [FACE]).pixels


# ---------------------------------------------------------------- detail


def test_a_clean_sharp_face_larger_than_the_restorer_is_left_alone_and_this_is_said() -> None:
    photo = CLEAN
    result = restore_photo(photo, restorer(1.0), KEEP, lambda photo: [FACE])
    assert torch.equal(result.pixels, photo) and not result.faces and not result.mask.any() and result.found == 1
    (reason,) = result.skipped
    assert "200 pixels wide is left alone" in reason and "restorer of 64 pixels" in reason
    assert result.step is None
    assert error(restored(photo, NEITHER), photo) > 0.003


def test_a_noisy_face_keeps_its_detail_and_loses_its_noise() -> None:
    clean = sharp()
    photo = (clean + noise(clean, 0.02)).clamp(0, 1)
    before, kept = error(restored(photo, NEITHER), clean), error(restored(photo, KEEP), clean)
    assert kept < 0.7 * before
    flat = ~(high_band(clean[None], 3.0).abs().amax(1)[0] > 0.01)
    place = torch.zeros_like(flat)
    place[within(clean, FACE)[1:]] = True
    smooth = (flat & place).expand(3, -1, -1)
    assert (restored(photo, KEEP) - clean)[smooth].std() < 0.6 * (photo - clean)[smooth].std()


@pytest.mark.parametrize(
    "damage",
    [
        lambda clean: (clean + noise(clean, 0.12)).clamp(0, 1),
        lambda clean: gaussian_blur(clean[None], 6)[0],
        lambda clean: through_jpeg(clean[None], 8)[0],
    ],
    ids=["noise", "blur", "JPEG"],
)
def test_a_damaged_face_is_restored_as_before(damage) -> None:
    clean = soft() if "JPEG" in str(damage) else sharp()
    photo = damage(clean)
    before, after = restored(photo, NEITHER), restored(photo, KEEP)
    assert (before - photo)[within(clean, FACE)].abs().mean() > 0.001
    assert (after - before).abs().mean() < 0.1 * (before - photo).abs().mean()


def test_a_clean_face_somewhat_narrower_than_the_restorer_is_left_alone_too() -> None:
    result = restore_photo(CLEAN, restorer(2.0), KEEP, lambda photo: [a_face(50)])
    assert torch.equal(result.pixels, CLEAN) and "a face 50 pixels wide is left alone" in result.skipped[0]


def test_a_clean_face_far_narrower_than_the_restorer_keeps_its_detail() -> None:
    photo, face = sharp(), a_face(25)
    kept, plain = (
        restore_photo(photo, restorer(1.0), config, lambda photo: [face]).pixels for config in (KEEP, NEITHER)
    )
    assert error(kept, photo) < 0.7 * error(plain, photo)


def test_in_a_jpeg_with_blocks_it_keeps_the_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, face = stored_as_jpeg(natural(), 20), a_face(25)

    def made(config: RestoreConfig) -> Tensor:
        return restore_photo(photo, restorer(0.5), config, lambda photo: [face]).pixels

    monkeypatch.setattr(finishing, "within_steps", lambda photo, new, *of: new)
    assert torch.equal(made(KEEP), made(NEITHER))


def test_bands_reach_below_the_restorers_finest() -> None:
    assert [levels_for(width, 128) for width in (100, 128, 256, 512, 1000)] == [2, 2, 3, 4, 5]


def test_a_grey_photo_stays_grey_and_nothing_outside_changes() -> None:
    for clean in (sharp(), sharp()[:1].expand(3, -1, -1).contiguous()):
        photo = (clean + noise(clean[:1], 0.06)).clamp(0, 1)
        result = restore_photo(photo, restorer(1.0), BOTH, lambda photo: [FACE])
        assert torch.equal(result.pixels[:, result.mask[0] == 0], photo[:, result.mask[0] == 0])
        assert not torch.equal(result.pixels, photo)
    assert torch.equal(result.pixels[0], result.pixels[1]) and torch.equal(result.pixels[0], result.pixels[2])


def test_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = (sharp() + noise(sharp(), 0.04)).clamp(0, 1)
    whole = restored(photo, BOTH)
    monkeypatch.setattr(finishing, "STRIP_PIXELS", 2000)
    assert (restored(photo, BOTH) - whole).abs().max() < 1e-5


def test_a_photo_whose_faces_are_all_left_alone_is_copied_and_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "in" / "a.png", CLEAN)
    monkeypatch.setattr("bfr_core.restoration.folder.load_detector", lambda *args: lambda photo: [FACE])
    (file,) = restore_folder(tmp_path / "in", tmp_path / "out", restorer(1.0), KEEP).files
    assert (file.status, file.faces, file.written) == ("no_face", 0, True)
    assert "left alone: the photo is clean" in file.reason and "copied as it is" in file.reason
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "in" / "a.png").read_bytes()


def test_a_face_that_is_left_alone_is_so_on_an_enlarged_background() -> None:
    def twice(photo: Tensor) -> Tensor:
        return photo.repeat_interleave(2, -1).repeat_interleave(2, -2)

    result = restore_photo(CLEAN, restorer(1.0), KEEP, lambda photo: [FACE], enlarge=twice)
    assert torch.equal(result.pixels, twice(CLEAN)) and "left alone" in result.skipped[0]


# ---------------------------------------------------------------- grain


def fine(picture: Tensor, place: tuple) -> Tensor:
    """Variance of each channel's finest detail."""
    return high_band(picture[None], 1.0)[0][place].flatten(1).var(1)


@pytest.mark.parametrize("correlated", [False, True], ids=["a sensor's", "a film's"])
def test_a_pasted_face_has_the_grain_of_its_surroundings(correlated: bool) -> None:
    clean = soft()
    grain = noise(clean[:1], 0.04).expand(3, -1, -1) if correlated else noise(clean, 0.04)
    photo = (clean + grain).clamp(0, 1)
    face = a_face(150)
    around, inside = (slice(None), slice(0, SIDE), slice(0, 40)), within(photo, face)
    smooth, grainy = (
        restore_photo(photo, restorer(3.0, 128), config, lambda photo: [face]).pixels for config in (NEITHER, GRAIN)
    )
    assert (fine(smooth, inside) < 0.3 * fine(photo, around)).all()
    ratio = fine(grainy, inside) / fine(photo, around)
    assert ((ratio > 0.7) & (ratio < 1.4)).all(), ratio
    added = (grainy - smooth)[inside].flatten(1)
    assert (torch.corrcoef(added)[0, 1] > 0.8) == correlated


def test_grain_is_put_back_where_the_photo_lies_and_in_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = (soft() + noise(soft(), 0.04)).clamp(0, 1)
    expected = restore_photo(photo, restorer(3.0, 128), GRAIN, lambda photo: [FACE]).pixels
    wide = restore_photo(photo.double(), restorer(3.0, 128), GRAIN, lambda photo: [FACE]).pixels
    assert (wide - expected).abs().max() < 1 / 255
    with PretendedDevice():
        monkeypatch.setattr(finishing, "where_all_works", lambda tensor: tensor)  # as it is on a CUDA card
        there = restore_photo(photo.to(DEVICE), restorer(3.0, 128).to(DEVICE), GRAIN, lambda photo: [FACE]).pixels
        assert there.device.type == DEVICE.type and (there.cpu() - expected).abs().max() < 1 / 255


def coarse_grain(like: Tensor, radius: float, sigma: float, seed: int = 0) -> Tensor:
    """Grey grain of this standard deviation, whose correlation falls to 1/e at `radius` pixels."""
    rough = gaussian_blur(noise(like[:1], 1.0, seed)[None], radius / 2)[0]
    return (sigma * rough / rough.std()).expand(3, -1, -1)


@pytest.mark.parametrize("radius", [4.0, 5.0])
def test_a_pasted_face_has_coarse_grain_too(radius: float) -> None:
    """Grain of 12 of 255, of which the finest band has 2.5 and less."""
    photo, face = (soft() + coarse_grain(soft(), radius, 12 / 255)).clamp(0, 1), a_face(200)
    assert read_noise(photo, 3, 200).deviation(0) < NO_GRAIN[0]
    smooth, grainy = (
        restore_photo(photo, restorer(6.0, 128), config, lambda photo: [face]).pixels for config in (NEITHER, GRAIN)
    )
    _, y, x = within(photo, face)
    for k in (1, 2):
        there, before, after = (
            split(picture, 3)[k][:, y.start >> k : y.stop >> k, x.start >> k : x.stop >> k].std()
            for picture in (photo, smooth, grainy)
        )
        assert before < 0.6 * there and 0.75 * there < after < 1.3 * there, (k, before / there, after / there)


def test_structure_is_not_put_back_as_grain() -> None:
    """The photo has fine noise, and spots far coarser than grain, which are not to be drawn on the face."""
    photo = soft() + noise(soft()[:1], 0.04).expand(3, -1, -1)
    spotted, face = photo + coarse_grain(soft(), 28.0, 16 / 255), a_face(200)
    added = []
    for picture in (photo.clamp(0, 1), spotted.clamp(0, 1)):
        smooth, grainy = (
            restore_photo(picture, restorer(12.0, 64), config, lambda photo: [face]).pixels
            for config in (NEITHER, GRAIN)
        )
        added.append(split(grainy - smooth, 5)[3][:, 8:16, 8:16].std())
    assert added[1] < 1.25 * added[0], added


def test_coarse_grain_is_not_read_off_texture() -> None:
    """Detail of every size, the finer the weaker, over nine tenths of the photo."""
    ramp = (torch.linspace(0, 1, SIDE) / 0.9).clamp(0.05, 1)
    texture = soft() + ramp * (natural() - soft())
    sharpened = (texture + 0.7 * (texture - gaussian_blur(texture[None], 4.0)[0])).clamp(0, 1)
    for photo in (texture, sharpened, gaussian_blur(texture[None], 1.5)[0]):
        assert max(read_noise(photo, 3, 200).coarse) < NO_COARSE_GRAIN / 2
    grainy = texture + coarse_grain(soft(), 4.0, 12 / 255)
    assert max(read_noise(grainy, 3, 200).coarse) > NO_COARSE_GRAIN
    assert read_noise(grainy, 3, 90).coarse == (), "a narrow face has structure as fine as that"


def test_clean_portraits_have_no_coarse_grain(shared: Path) -> None:
    """Some of those that the limits were not chosen on."""
    for path in sorted((shared / "portraits_recent").glob("*.jpg"))[:12]:
        assert max(read_noise(read_image(path), 3, 200).coarse) < NO_COARSE_GRAIN, path.name


def test_a_photo_with_coarse_grain_is_not_taken_for_a_clean_one() -> None:
    """Its grain is no sharpness that a restored face must not lose."""
    photo = (soft() + coarse_grain(soft(), 4.0, 16 / 255)).clamp(0, 1)
    result = restore_photo(photo, restorer(3.0, 128), BOTH, lambda photo: [FACE])
    assert len(result.faces) == 1 and not result.skipped


@pytest.fixture(scope="module")
def large_face() -> Tensor:
    """A clean face more than twice as wide as the embedded restorer."""
    return resized(SharpFaces(256)[3][None], 600)[0].clamp(0, 1)


def restored_by_the_embedded(photo: Tensor) -> RestoredPhoto:
    config = replace(KEEP, likeness="off", precision="float32")
    return restore_photo(photo, load_restorer(), config, lambda photo: [Face(template(600))])


@pytest.mark.parametrize("damage", ["film_grain", "camera_x4_iso1500", "halftone"])
@pytest.mark.parametrize("strength", [0.75, 1.0])
def test_coarse_damage_of_a_large_face_is_not_taken_for_sharpness(
    large_face: Tensor, damage: str, strength: float
) -> None:
    """Its finest band is as quiet as that of a clean photo."""
    lq = degrade(large_face[None], damage, keyed_generator(0, damage), strength).lq[0]
    result = restored_by_the_embedded(lq)
    assert len(result.faces) == 1 and not result.skipped


def test_neither_is_it_in_a_faded_photo(large_face: Tensor) -> None:
    lq = degrade(large_face[None], "camera_x4_iso1500", keyed_generator(0, "camera")).lq[0]
    assert not restored_by_the_embedded(0.3 * lq + 0.35).skipped


@pytest.mark.slow
def test_a_clean_large_face_and_its_jpeg_are_left_alone(large_face: Tensor) -> None:
    for photo in (large_face, stored_as_jpeg(large_face, 75)):
        result = restored_by_the_embedded(photo)
        assert result.skipped and len(result.faces) == len(result.unblocked)


@pytest.mark.parametrize(("width", "bands"), [(90, 0), (199, 1), (200, 2), (399, 2), (400, 3), (900, 4)])
def test_coarse_grain_is_looked_for_as_far_as_the_face_is_larger_than_it(width: int, bands: int) -> None:
    assert len(read_coarse_grain(soft(), width)) == bands


def test_a_clean_photo_gets_no_grain_and_grain_is_always_the_same() -> None:
    clean = sharp()
    assert torch.equal(restored(clean, GRAIN), restored(clean, NEITHER))
    photo = (soft() + noise(clean, 0.04)).clamp(0, 1)
    assert torch.equal(restored(photo, GRAIN), restored(photo, GRAIN))
    assert not torch.equal(restored(photo, GRAIN), restored(photo, NEITHER))


def test_strong_noise_is_damage_and_no_grain() -> None:
    """It is what the restorer is there to take off."""
    clean, face = soft(), a_face(150)
    added = []
    for sigma in (10 / 255, 18 / 255, 36 / 255):
        photo = (clean + noise(clean, sigma)).clamp(0, 1)
        smooth, grainy = (
            restore_photo(photo, restorer(3.0, 128), config, lambda photo: [face]).pixels for config in (NEITHER, GRAIN)
        )
        added.append(float((grainy - smooth)[within(photo, face)].std()) / sigma)
    assert added[0] > 0.7 and 0.2 < added[1] < 0.8 and added[2] == 0, added


def test_dots_of_print_are_no_grain() -> None:
    photo = degrade(soft()[None], "halftone", torch.Generator().manual_seed(3)).lq[0]
    assert torch.equal(restored(photo, GRAIN), restored(photo, NEITHER))


def test_a_restorer_that_changes_nothing_gets_no_grain() -> None:
    photo = (soft() + noise(soft(), 0.05)).clamp(0, 1)
    result = restored(photo, GRAIN, 0.0)
    assert (result - photo)[within(photo, FACE)].abs().max() < 1e-5


def test_an_aligned_face_gets_neither() -> None:
    face = (sharp(128) + noise(sharp(128), 0.05)).clamp(0, 1)
    for config in (BOTH, replace(BOTH, even_tone=False)):
        assert torch.equal(
            restore_aligned(face, restorer(1.0), config).pixels, restore_aligned(face, restorer(1.0), NEITHER).pixels
        )


# ---------------------------------------------------------------- real photographs


def test_neither_of_two_sharp_faces_gets_worse(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo = read_image(shared / "photos" / "eight_synthetic_faces.jpg")[:, :488, :916]  # all: `benchmarks/no_worse.py`
    with caplog.at_level(logging.ERROR):
        result = restore_photo(photo, load_restorer("embedded"), RestoreConfig(detector="embedded"))
    assert result.found == 2 and len(result.faces) + len(result.skipped) == 2
    for left in (0, 458):
        before, after = (p[None, :, :450, left : left + 450] for p in (photo, result.pixels))
        assert float(sharpness(after)) >= 0.995 * float(sharpness(before))


def test_a_blurred_face_with_the_noise_of_a_jpeg_does_not_pass_for_sharp(shared: Path) -> None:
    clean = read_image(shared / "photos" / "eight_synthetic_faces.jpg")[:, :450, 458:908]
    photo = stored_as_jpeg((gaussian_blur(clean[None], 4)[0] + noise(clean, 0.03)).clamp(0, 1), 50)
    result = restore_photo(photo, load_restorer("embedded"), replace(KEEP, detector="embedded"))
    assert len(result.faces) == 1 and not result.unblocked
    assert float(psnr(result.pixels[None], clean[None])) > float(psnr(photo[None], clean[None])) + 0.3
