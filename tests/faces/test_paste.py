from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.faces.align import Face, crop_face, similarity, template
from bfr_core.faces.paste import colour_gap, face_patches, paste_face


def smooth_photo(height: int, width: int, seed: int = 0) -> Tensor:
    """A soft colourful picture, (3, height, width)."""
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]


def turned_face(width: float, x: float, y: float, degrees: float = 10) -> Face:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return Face((template(1) * width) @ turn.T + [x, y])


def mask_of(photo: Tensor, crop: Tensor, face: Face) -> Tensor:
    mask = torch.zeros(1, *photo.shape[-2:])
    for patch in face_patches(photo, crop, face, crop):
        mask[patch.place] = patch.mask
    return mask[0]


@pytest.mark.parametrize("width", [40, 128, 300])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_an_unchanged_crop_changes_nothing(width: int, noise: float) -> None:
    photo = (smooth_photo(320, 400) + noise * torch.randn(3, 320, 400)).clamp(0, 1)
    face = turned_face(width, 60, 10)
    crop = crop_face(photo, face, 128)
    pasted = paste_face(photo, crop, face, crop)
    outside = mask_of(photo, crop, face) == 0
    assert 0.1 < outside.float().mean() < 1
    assert torch.equal(pasted[:, outside], photo[:, outside])
    assert (pasted - photo).abs().max() < 1e-5


def test_the_crop_replaces_a_face_larger_than_itself() -> None:
    clean = smooth_photo(400, 400)
    noisy = (clean + 0.2 * torch.randn(clean.shape)).clamp(0, 1)
    face = turned_face(300, 40, 40)
    pasted = paste_face(noisy, crop_face(clean, face, 64), face, crop_face(noisy, face, 64))
    inside = mask_of(noisy, crop_face(noisy, face, 64), face) > 0.99
    assert (noisy - clean)[:, inside].abs().mean() > 0.1
    assert (pasted - clean)[:, inside].abs().mean() < 0.02


def test_a_crop_larger_than_the_face_is_shrunk_without_aliasing() -> None:
    photo = torch.full((3, 120, 120), 0.5)
    face = turned_face(64, 20, 20, 0)
    stripes = 0.5 + 0.5 * (torch.arange(512) % 2 * 2.0 - 1).expand(3, 512, 512)
    pasted = paste_face(photo, stripes, face, crop_face(photo, face, 512))
    assert (pasted - 0.5).abs().max() < 0.05


def test_only_the_face_is_touched_and_blend_scales_the_change() -> None:
    photo, face = smooth_photo(200, 260), turned_face(90, 80, 50)
    crop = crop_face(photo, face, 128)
    restored = 1 - crop
    full = paste_face(photo, restored, face, crop, match_colour=False)
    half = paste_face(photo, restored, face, crop, match_colour=False, blend=0.5)
    outside = mask_of(photo, crop, face) == 0
    assert torch.equal(full[:, outside], photo[:, outside])
    assert torch.allclose(half - photo, (full - photo) / 2, atol=1e-5)
    assert (full - photo).abs().amax() > 0.2
    assert torch.equal(paste_face(photo, restored, face, crop, blend=0), photo)


def test_a_cast_is_taken_out_and_contrast_kept() -> None:
    original = smooth_photo(128, 128)
    detail = torch.zeros(3, 128, 128)
    detail[:, 48:80, 48:80] = 0.2 * torch.randn(3, 32, 32)
    restored = original + detail + torch.tensor([0.1, -0.05, 0.0]).view(3, 1, 1)
    matched = restored + colour_gap(restored, original)
    assert (matched - original - detail).abs().mean() < 0.005
    contrast = (matched - original)[:, 48:80, 48:80].std() / detail[:, 48:80, 48:80].std()
    assert contrast == pytest.approx(1, abs=0.02)


def test_a_grey_photo_stays_grey_to_the_bit() -> None:
    photo = smooth_photo(150, 150)[:1].expand(3, -1, -1).contiguous()
    face = turned_face(70, 30, 30)
    pasted = paste_face(photo, torch.rand(3, 128, 128), face, crop_face(photo, face, 128))
    assert (pasted - photo).abs().max() > 0.05
    assert torch.equal(pasted[0], pasted[1]) and torch.equal(pasted[0], pasted[2])


def test_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, face = smooth_photo(200, 200), turned_face(120, 40, 30)
    crop = crop_face(photo, face, 128)
    whole = paste_face(photo, 1 - crop, face, crop)
    monkeypatch.setattr("bfr_core.faces.paste.STRIP_PIXELS", 3000)
    assert len(face_patches(photo, 1 - crop, face, crop)) > 3
    assert (paste_face(photo, 1 - crop, face, crop) - whole).abs().max() < 1e-4


def test_the_restored_crop_lands_where_the_face_is() -> None:
    photo, face = torch.zeros(3, 200, 200), turned_face(100, 70, 40, 20)
    crop = torch.zeros(3, 128, 128)
    eye = template(128)[0].round().astype(int)
    crop[:, eye[1] - 2 : eye[1] + 3, eye[0] - 2 : eye[0] + 3] = 1
    pasted = paste_face(photo, crop, face, crop_face(photo, face, 128), match_colour=False)
    y, x = divmod(int(pasted[0].argmax()), 200)
    assert np.linalg.norm(face.landmarks[0] - [x, y]) < 2


def test_a_face_at_the_edge_and_one_outside() -> None:
    photo = smooth_photo(100, 100)
    for face in (turned_face(80, -40, -20), turned_face(50, 400, 400)):
        crop = crop_face(photo, face, 64)
        pasted = paste_face(photo, 1 - crop, face, crop)
        assert pasted.shape == photo.shape and torch.isfinite(pasted).all()
    assert face_patches(photo, crop, face, crop) == []
    assert similarity(face.landmarks, template(64)).shape == (2, 3)
