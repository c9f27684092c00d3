from __future__ import annotations

import numpy as np
import pytest
import torch

from bfr_core.faces.align import Face, crop_face, similarity, template, warp, warp_region


def test_similarity_recovers_the_map_that_made_the_points() -> None:
    truth = np.array([[1.2, -0.5, 30.0], [0.5, 1.2, -7.0]])
    points = template(128)
    found = similarity(points, points @ truth[:, :2].T + truth[:, 2])
    np.testing.assert_allclose(found, truth, atol=1e-9)
    with pytest.raises(ValueError, match="coincide"):
        similarity(np.ones((5, 2)), points)


def test_a_face_that_is_the_template_gives_the_photo_itself() -> None:
    photo = torch.rand(3, 128, 128)
    crop = crop_face(photo, Face(template(128)), 128)
    assert (crop - photo).abs().max() < 1e-5
    assert Face(template(128)).width == pytest.approx(128)


def test_a_point_lands_where_the_matrix_says() -> None:
    photo = torch.zeros(1, 1, 60, 80)
    photo[0, 0, 20, 30] = 1
    matrix = np.array([[0.0, -2, 70], [2, 0, -50]])  # (30, 20) -> (30, 10)
    out = warp(photo, matrix, 40, 50)[0, 0]
    assert divmod(int(out.argmax()), 50) == (10, 30)


@pytest.mark.parametrize("scale", [0.3, 0.87, 2.0])
def test_a_region_is_warped_as_the_whole_photo_is(scale: float) -> None:
    ys, xs = torch.meshgrid(torch.arange(300.0), torch.arange(400.0), indexing="ij")
    photo = torch.stack([torch.sin(xs / 9), torch.cos(ys / 7), torch.sin((xs + ys) / 11)])
    matrix = scale * np.array([[0.96, 0.28, 0.0], [-0.28, 0.96, 0.0]])
    matrix[:, 2] = 32 - matrix[:, :2] @ [210.0, 160.0]
    whole = warp(photo[None], matrix, 64, 64)[0]
    assert (warp_region(photo, matrix, 64, 64) - whole).abs().mean() < 0.02


def test_shrinking_does_not_alias() -> None:
    stripes = (torch.arange(512) % 2).float().expand(3, 512, 512).contiguous()
    crop = crop_face(stripes, Face(template(512)), 64)
    assert (crop - 0.5).abs().max() < 0.05


def test_a_face_partly_outside_the_photo_is_still_cropped() -> None:
    crop = crop_face(torch.rand(3, 50, 50), Face(template(100) - 60), 64)
    assert crop.shape == (3, 64, 64) and torch.isfinite(crop).all()
