"""Generic blind damage: what is drawn, what it does, and what it must not contain."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.damage import blind
from bfr_core.damage.blind import BlindRange, anisotropic_blur, blind_damage, draw_tones

NO_DAMAGE = BlindRange((0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (100, 100), 0.0, 0.0, 0.0, 0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grey_texture() -> Tensor:
    """Fine texture without colour, of which JPEG's halved colour takes nothing."""
    return torch.rand(2, 1, 64, 64, generator=seeded(3)).expand(2, 3, 64, 64)


def faces(count: int = 4, size: int = 64) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=seeded(9))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def test_one_seed_gives_one_damage() -> None:
    assert torch.equal(blind_damage(faces(), seeded(1)), blind_damage(faces(), seeded(1)))
    assert not torch.equal(blind_damage(faces(), seeded(1)), blind_damage(faces(), seeded(2)))


def test_no_range_no_damage() -> None:
    difference = blind_damage(grey_texture(), seeded(), NO_DAMAGE) - grey_texture()
    assert difference.abs().max() < 4 / 255  # JPEG at 100 rounds


@pytest.mark.parametrize(
    "ranges",
    [
        replace(NO_DAMAGE, blur_sigma=(20.0, 20.0)),
        replace(NO_DAMAGE, shrink=(8.0, 8.0)),
        replace(NO_DAMAGE, noise=(0.1, 0.1)),
        replace(NO_DAMAGE, jpeg_quality=(5, 5)),
    ],
)
def test_each_part_damages(ranges: BlindRange) -> None:
    hq = grey_texture()
    alone = (blind_damage(hq, seeded(), ranges) - hq).square().mean()
    assert alone > 10 * (blind_damage(hq, seeded(), NO_DAMAGE) - hq).square().mean()


def test_some_faces_are_left_untouched() -> None:
    hq = faces(40, 16)
    kept = (blind_damage(hq, seeded(), replace(BlindRange(), untouched=0.5)) == hq).flatten(1).all(1)
    assert 10 <= int(kept.sum()) <= 30


def test_blur_has_the_width_that_was_asked_for() -> None:
    point = torch.zeros(1, 1, 65, 65)
    point[..., 32, 32] = 1
    spread = anisotropic_blur(point, torch.diag(torch.tensor([9.0, 4.0], dtype=torch.float64))[None])[0, 0]
    offset = torch.arange(65.0) - 32
    assert spread.sum() == pytest.approx(1, abs=1e-3)
    assert (spread.sum(0) * offset**2).sum() == pytest.approx(9, rel=0.02)
    assert (spread.sum(1) * offset**2).sum() == pytest.approx(4, rel=0.02)


def test_tones_are_grey_or_tinted_for_the_shares_asked() -> None:
    hq = faces(200, 8)
    grey = draw_tones(hq, seeded(), replace(BlindRange(), grey=0.3, tinted=0.0))
    colourless = (grey.amax(1) - grey.amin(1)).flatten(1).amax(1) < 1e-6
    assert 40 <= int(colourless.sum()) <= 80
    tinted = draw_tones(hq, seeded(), replace(BlindRange(), grey=0.0, tinted=1.0))
    assert (tinted[:, 0].mean((1, 2)) > tinted[:, 2].mean((1, 2))).float().mean() > 0.9
    assert tinted.min() >= 0 and tinted.max() <= 1


def test_nothing_that_the_benchmarks_judge_by_is_in_it() -> None:
    """No embedded model may have seen the benchmarks' damage: it is made elsewhere, of other parts."""
    assert {field.name for field in fields(BlindRange)} == {
        "blur_sigma", "shrink", "noise", "jpeg_quality", "second_round", "untouched", "grey", "tinted",
    }  # fmt: skip
    tree = ast.parse(inspect.getsource(blind))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    kept_out = ("camera", "sensor", "bayer", "halftone", "grain", "motion", "tape", "print", "screen", "video")
    assert not [name for name in names for word in kept_out if word in name.lower()]
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert imported == {"jpeg", "pixels"}
