"""The rest of a photo, restored around its faces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr_core.damage.groups import FEATURES, DamageGroups
from bfr_core.damage.synthetic import stored_as_jpeg
from bfr_core.faces.align import Face, crop_face, template
from bfr_core.files.photos import read_image, read_photo, write_image
from bfr_core.files.tensors import save_tensors
from bfr_core.restoration import folder as module
from bfr_core.restoration import restore as restore_module
from bfr_core.restoration.background import (
    LARGEST_SCALE,
    Background,
    load_background,
    offered_background,
    restore_background,
)
from bfr_core.restoration.blocks import read_blocks
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.restore import RestoreConfig, paste_faces, restore_photo
from bfr_core.restorers import load_restorer
from bfr_core.restorers.base import Restorer
from bfr_core.restorers.codeformer import CodeFormer
from bfr_core.restorers.routed import Routed

SIZE = 64
PLAIN = RestoreConfig(
    match_colour=False, keep_detail=False, match_grain=False, even_tone=False, likeness="off", precision="float32"
)
ADAPTED = replace(PLAIN, background="adapted")


class Smoothing(nn.Module):
    """A mean over 5 x 5 pixels. It notes the sizes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))
        self.sizes: list[tuple[int, int]] = []

    def forward(self, lq: Tensor) -> Tensor:
        self.sizes += [(lq.shape[-2], lq.shape[-1])] * len(lq)
        return F.avg_pool2d(F.pad(lq, (2, 2, 2, 2), mode="replicate"), 5, 1) + self.nothing


def smoothing() -> Restorer:
    return Restorer(Smoothing().eval(), "fake", SIZE, "fake")


def found(*faces: Face):
    return lambda photo: list(faces)


def face_at(x: float, y: float, width: float) -> Face:
    return Face(template(1) * width + [x + width / 2, y + width / 2])


def noisy(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.rand(1, 3, 6, 6, generator=generator), (height, width), mode="bicubic")[0]
    return (0.3 + 0.4 * coarse.clamp(0, 1) + 0.1 * torch.randn(3, height, width, generator=generator)).clamp(0, 1)


def restored(photo: Tensor, restorer: Restorer, *widths: float, keep_detail: bool = False) -> Tensor:
    background = load_background("adapted", restorer)
    assert background is not None
    return restore_background(photo, background, widths, even_tone=False, keep_detail=keep_detail)


# ---------------------------------------------------------------- the scale


def test_without_faces_the_photo_is_seen_at_its_own_scale_and_tiles_are_not_seen() -> None:
    photo, restorer = noisy(150, 210), smoothing()
    whole = Smoothing()(photo[None])[0]
    assert (restored(photo, restorer) - whole).abs().max() < 1 / 255
    assert set(restorer.module.sizes) == {(SIZE, SIZE)}  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "scale"), [(128.0, 0.5), (32.0, 2.0), (4.0, LARGEST_SCALE)])
def test_the_network_sees_the_photo_at_the_scale_of_its_median_face(width: float, scale: float) -> None:
    photo, restorer = noisy(260, 300), smoothing()
    made = restored(photo, restorer, 1.0, width, 1e4)
    whole = F.interpolate(photo[None], scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)
    expected = F.interpolate(Smoothing()(whole), (260, 300), mode="bicubic", antialias=True)[0].clamp(0, 1)
    inside = (slice(None), slice(16, -16), slice(16, -16))
    assert made.shape == photo.shape and (made - expected)[inside].abs().max() < 2 / 255
    assert set(restorer.module.sizes) == {(SIZE, SIZE)}  # type: ignore[arg-type]


def test_detail_that_a_shrunk_photo_cannot_have_is_kept_but_not_its_noise() -> None:
    photo = torch.full((3, 256, 256), 0.8)
    photo[:, 20:240:30, 20:236] = photo[:, 20:240, 20:240:30] = 0.1  # a grid of thin lines on paper
    plain, kept = (restored(photo, smoothing(), 4.0 * SIZE, keep_detail=on) for on in (False, True))
    assert (plain - photo).square().mean() > 5 * (kept - photo).square().mean()
    generator = torch.Generator().manual_seed(0)
    noise = 0.5 + 0.1 * torch.randn(3, 256, 256, generator=generator)
    assert restored(noise, smoothing(), 4.0 * SIZE, keep_detail=True).std() < 0.03


def test_the_detail_of_a_jpeg_is_kept_without_its_blocks() -> None:
    import skimage.data

    clean = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    photo = stored_as_jpeg(clean, 20)
    kept = restored(photo, smoothing(), 4.0 * SIZE, keep_detail=True)
    errors = [float((made - clean).square().mean()) for made in (photo, kept)]
    assert errors[1] < 2.5 * errors[0] and read_blocks(kept) < 0.4 * read_blocks(photo)


def test_on_a_jpeg_that_is_seen_enlarged_less_is_made_up_than_its_steps_leave_open() -> None:
    import skimage.data

    clean = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1).float() / 255
    photo = stored_as_jpeg(clean, 20)
    plain, kept = (restored(photo, smoothing(), SIZE / 3, keep_detail=on) for on in (False, True))
    errors = [float((made - clean).square().mean()) for made in (photo, plain, kept)]
    assert errors[2] < min(errors[:2])


# ---------------------------------------------------------------- one photo


def test_off_leaves_the_rest_and_adapted_restores_it_without_a_line_around_the_face() -> None:
    photo, face = noisy(200, 300), face_at(100, 60, SIZE)
    off = restore_photo(photo, smoothing(), PLAIN, found(face))
    on = restore_photo(photo, smoothing(), ADAPTED, found(face))
    outside = off.mask[0] == 0
    assert torch.equal(off.pixels[:, outside], photo[:, outside])
    # Face and rest are restored by the same network at the same scale: nobody can tell where one begins.
    assert (on.pixels - Smoothing()(photo[None])[0]).abs().max() < 6 / 255
    assert (on.mask == 1).all() and on.faces == [face]
    assert on.step is not None and on.step.settings["background"] == "fake"


def test_a_face_that_is_not_restored_stays_as_the_photo_has_it() -> None:
    photo = noisy(200, 300)
    chosen, other = face_at(20, 40, 100), face_at(180, 60, 64)
    made = restore_photo(photo, smoothing(), replace(ADAPTED, faces="largest"), found(chosen, other))
    middle = (slice(None), slice(80, 104), slice(200, 224))
    assert made.faces == [chosen] and (made.pixels - photo)[middle].abs().max() < 1e-5
    assert (made.pixels - photo)[:, 150:, 100:].abs().max() > 0.1


def test_a_photo_without_faces_is_restored_and_that_is_recorded() -> None:
    made = restore_photo(noisy(100, 90), smoothing(), ADAPTED, found())
    assert (made.pixels - Smoothing()(noisy(100, 90)[None])[0]).abs().max() < 1 / 255
    assert made.step is not None and (made.step.faces_found, made.step.faces_restored) == (0, 0)


def test_grey_and_tinted_photos_stay_so() -> None:
    grey = noisy(100, 140)[:1].expand(3, -1, -1).contiguous()
    restorer = smoothing()
    colours = torch.tensor([0.2, 0.0, -0.1]).view(1, 3, 1, 1)
    restorer.module.register_forward_hook(lambda module, args, out: out + colours * torch.rand_like(out))
    made = restored(grey, restorer)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    casts = torch.tensor([0.06, 0.0, -0.06]).view(1, 3, 1, 1)
    other = smoothing()
    other.module.register_forward_hook(lambda module, args, out: out + casts)
    shift = [float((restored(grey, other, keep_detail=keep) - grey).mean()) for keep in (False, True)]
    assert shift[1] == pytest.approx(shift[0], abs=1.5 / 255), "of the network's answer its luma counts"
    sepia = grey * torch.tensor([1.0, 0.96, 0.9]).view(3, 1, 1)
    made = restored(sepia, restorer)
    assert ((made[0] - made[2]) - (sepia[0] - sepia[2])).abs().mean() < 0.01


def test_the_enlarged_background_is_that_of_the_restored_rest() -> None:
    photo, face = noisy(100, 140), face_at(30, 20, SIZE)

    def twice(picture: Tensor) -> Tensor:
        return picture.repeat_interleave(2, -1).repeat_interleave(2, -2)

    made = restore_photo(photo, smoothing(), ADAPTED, found(face), enlarge=twice)
    assert made.mask.shape == (1, 200, 280) and (made.mask == 1).all(), "all of it is new"
    expected = twice(Smoothing()(photo[None])[0])
    outside = restore_photo(photo, smoothing(), PLAIN, found(face), enlarge=twice).mask[0] == 0
    assert outside.any() and (made.pixels - expected)[:, outside].abs().max() < 2 / 255


# ---------------------------------------------------------------- the file of a general network


class Twice(nn.Module):
    def forward(self, tiles: Tensor) -> Tensor:
        return tiles.repeat_interleave(2, -1).repeat_interleave(2, -2) * 0.5


def test_what_a_general_network_enlarges_gets_the_size_of_the_photo() -> None:
    photo = F.interpolate(noisy(30, 70)[None], (300, 700), mode="bicubic")[0].clamp(0, 1)
    made = restore_background(photo, Background("x", "", "", general=Twice(), enlarges=2))
    assert made.shape == photo.shape and (made - photo * 0.5).abs().max() < 0.02


def test_a_file_that_spandrel_opens_is_used(tmp_path: Path) -> None:
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.manual_seed(0)
    net = SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2)
    save_tensors(tmp_path / "net.safetensors", net.state_dict(), {})
    background = load_background(str(tmp_path / "net.safetensors"), smoothing())
    assert background is not None and background.enlarges == 2 and background.name == "net.safetensors"
    photo = noisy(300, 280)
    whole = F.interpolate(net(photo[None]).clamp(0, 1), (300, 280), mode="bicubic", antialias=True)[0].detach()
    assert (restore_background(photo, background) - whole.clamp(0, 1)).abs().max() < 1 / 255


def test_what_cannot_restore_the_rest_is_refused_in_one_line(tmp_path: Path) -> None:
    faces_only = CodeFormer(nn.Linear(1, 1), "CodeFormer", 512, "codeformer.pth")
    with pytest.raises(ValueError, match=r"adapted, but codeformer\.pth is a CodeFormer, which makes faces only"):
        load_background("adapted", faces_only)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        load_background(str(tmp_path / "gone.pth"), smoothing())
    save_tensors(tmp_path / "odd.safetensors", {"odd": torch.zeros(3)}, {})
    with pytest.raises(ValueError, match=r"odd\.safetensors: spandrel does not know this architecture"):
        load_background(str(tmp_path / "odd.safetensors"), smoothing())


def test_pages_and_hosts_can_name_no_file_outside_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    (tmp_path / "upscale_models").mkdir()
    (tmp_path / "upscale_models" / "denoise.pth").write_bytes(b"")
    (tmp_path / "outside.pth").write_bytes(b"")
    assert offered_background("denoise.pth") == str(tmp_path / "upscale_models" / "denoise.pth")
    assert [offered_background(name) for name in ("off", "adapted")] == ["off", "adapted"]
    for name in ("outside.pth", str(tmp_path / "outside.pth"), "../outside.pth"):
        with pytest.raises(ValueError, match="it must be off or adapted or denoise.pth"):
            offered_background(name)


# ---------------------------------------------------------------- a folder


def test_a_folder_is_restored_with_the_rest_of_its_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out, restorer = tmp_path / "photos", tmp_path / "out", load_restorer()
    photos.mkdir()
    answers = {"empty": [], "one": [face_at(30, 10, 100)]}
    widths = {"empty": 160, "one": 150}
    for name, width in widths.items():
        write_image(photos / f"{name}.png", noisy(140, width))
    # Photos are read side by side, in no fixed order.
    by_width = {widths[name]: faces for name, faces in answers.items()}
    monkeypatch.setattr(module, "load_detector", lambda *_: lambda photo: by_width[photo.shape[-1]])
    config = RestoreConfig(background="adapted", likeness="off", precision="float32")
    result = restore_folder(photos, out, restorer, config)
    assert [(file.status, file.faces) for file in result.files] == [("restored", 0), ("restored", 1)]
    assert "only the rest of the photo is restored" in result.files[0].reason
    for name, faces in answers.items():
        alone = restore_photo(read_image(photos / f"{name}.png"), restorer, config, found(*faces))
        assert (read_image(out / f"{name}.png") - alone.pixels).abs().max() < 1 / 255
    steps = read_photo(out / "empty.png").record.steps
    assert steps[-1].settings["background"] == restorer.name
    assert [file.status for file in restore_folder(photos, out, restorer, config).files] == ["kept", "kept"]


def test_a_rest_that_fails_fails_its_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "a.png", noisy(80, 80))
    monkeypatch.setattr(module, "load_detector", lambda *_: found())
    restorer = smoothing()
    restorer.module.register_forward_hook(lambda module, args, out: out * torch.nan)
    result = restore_folder(tmp_path / "photos", tmp_path / "out", restorer, ADAPTED)
    (file,) = result.files
    assert file.status == "failed" and "the rest of the photo failed" in file.reason
    assert not (tmp_path / "out" / "a.png").exists()


def test_a_rest_that_fails_ends_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for width in (80, 90, 100):
        write_image(tmp_path / "photos" / f"{width}.png", noisy(80, width))
    monkeypatch.setattr(module, "load_detector", lambda *_: found(face_at(10, 10, 50)))
    whole = module.restored_background

    def fails_once(photo: Tensor, *rest: Any) -> Tensor:
        if photo.shape[-1] == 90:
            raise ValueError("the network gave NaN")
        return whole(photo, *rest)

    monkeypatch.setattr(module, "restored_background", fails_once)
    files = restore_folder(tmp_path / "photos", tmp_path / "out", smoothing(), ADAPTED).files
    said = {file.path.name: (file.status, file.faces) for file in files}
    assert said == {"80.png": ("restored", 1), "90.png": ("failed", 0), "100.png": ("restored", 1)}


@pytest.mark.parametrize("small_one", ["fails", "is left alone"])
def test_a_face_that_is_not_restored_takes_nothing_from_its_neighbour(
    small_one: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, large, small = noisy(200, 300), face_at(40, 40, 120), face_at(130, 70, 60)
    ground, new = torch.full_like(photo, 0.3), torch.full((3, SIZE, SIZE), 0.7)
    crops = [crop_face(photo, face, SIZE) for face in (large, small)]
    alone = paste_faces(photo, [large], crops[:1], [new], [], PLAIN, ground=ground)
    plain = paste_faces(photo, [large], crops[:1], [new], [], PLAIN)
    second: Tensor | str = new
    if small_one == "fails":
        second = "NaN"
    else:
        finish = restore_module.finished_on

        def leaves_small_ones(ground: Tensor, photo: Tensor, patches: list, face: Face, *rest: Any, **more: Any) -> Any:
            return ([], "left alone") if face is small else finish(ground, photo, patches, face, *rest, **more)

        monkeypatch.setattr(restore_module, "finished_on", leaves_small_ones)
    made = paste_faces(photo, [large, small], crops, [new, second], [], PLAIN, ground=ground)
    assert made.faces == [large] and len(made.skipped) == 1
    pasted = plain.mask[0] == 1
    assert torch.allclose(made.pixels[:, pasted], alone.pixels[:, pasted], atol=1e-5)
    beside = (slice(None), slice(90, 110), slice(165, 175))
    assert torch.allclose(made.pixels[beside], photo[beside], atol=1e-5), "and itself it stays as the photo has it"


def test_the_group_of_most_faces_restores_the_rest_and_the_base_where_there_are_none() -> None:
    groups = DamageGroups(torch.eye(FEATURES), torch.zeros(2, FEATURES), torch.ones(2))
    base, first = (replace(smoothing(), name=name) for name in ("base", "first"))
    routed = Routed.of(groups, [base, first, None], name="groups")
    served = {("group 1", "group 1", "base"): "first", ("group 1", "base"): "base", (): "base"}
    assert {by: routed.for_background(by).name for by in served} == served


def test_a_blend_is_with_the_photo_and_not_with_the_restored_rest() -> None:
    photo, face = noisy(160, 240), face_at(80, 40, SIZE)
    made = [restore_photo(photo, smoothing(), replace(ADAPTED, blend=blend), found(face)) for blend in (0.0, 0.5, 1.0)]
    none, half, whole = (one.pixels for one in made)
    x, y = (int(v) for v in face.landmarks.mean(0))
    middle = (slice(None), slice(y - 8, y + 8), slice(x - 8, x + 8))
    assert (none - photo)[middle].abs().max() < 1e-3 < (whole - photo)[middle].abs().max()
    assert (half - (photo + whole) / 2)[middle].abs().max() < 1e-3
    far = (slice(None), slice(0, 12), slice(0, 12))
    assert torch.equal(none[far], whole[far]) and (none - photo)[far].abs().max() > 0.01, "the rest is restored"
