"""Restorers on the same damaged faces: each sees them at its own size, and all are measured at one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.restorers import load_restorer
from bfr_core.restorers.base import Restorer
from bfr_core.studies.peers import SIZE, as_markdown, compare_restorers, table_of


class Kept(nn.Module):
    """Gives back what it is given, and remembers its size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), 0

    def forward(self, lq: Tensor) -> Tensor:
        self.seen = lq.shape[-1]
        return lq * self.weight


@pytest.fixture(scope="module")
def peers() -> Any:
    clean = SharpFaces(SIZE).stacked(4)
    large = Restorer(Kept().eval(), "idle", 2 * SIZE, "fake")
    found = compare_restorers(clean, {"embedded": partial(load_restorer, "embedded"), "idle": lambda: large})
    return found, large


@pytest.mark.slow
def test_a_restorer_is_compared_with_the_damaged_faces(peers: Any) -> None:
    damaged, ours, idle = peers[0]
    assert [peer.name for peer in peers[0]] == ["damaged", "embedded", "idle"]
    assert ours.values["psnr"].mean > damaged.values["psnr"].mean + 0.5
    assert ours.values["feature_distance"].mean < damaged.values["feature_distance"].mean
    assert idle.values["psnr"].mean == pytest.approx(damaged.values["psnr"].mean, abs=0.3), "it changed nothing"


def test_each_sees_the_faces_at_its_own_size_and_is_shown_at_the_common_one(peers: Any) -> None:
    found, large = peers
    assert large.module.seen == 2 * SIZE and all(peer.shown.shape == (4, 3, SIZE, SIZE) for peer in found)


def test_the_table_has_a_row_for_each(peers: Any) -> None:
    table = table_of(peers[0], 4)
    lines = as_markdown(table).splitlines()
    assert len(lines) == 5 and lines[3].startswith("| embedded | ") and lines[0].endswith("| KID |")
    assert "Likeness distance" in lines[0] and "4 faces" in table.note


def test_too_few_faces_or_another_size_are_refused() -> None:
    for shape in ((1, 3, SIZE, SIZE), (4, 3, 128, 128)):
        with pytest.raises(ValueError, match="at least 2 of 3 x 256 x 256 are needed"):
            compare_restorers(torch.rand(shape), {})
