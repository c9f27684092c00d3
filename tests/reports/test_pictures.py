from __future__ import annotations

import torch

from bfr_core.reports.pictures import sheet, side_by_side


def test_pictures_of_all_sizes_stand_side_by_side() -> None:
    row = side_by_side([torch.zeros(3, 8, 8), torch.ones(3, 16, 24)])
    assert row.shape == (3, 16, 40) and row[:, :, :16].max() == 0 and row[:, :, 16:].min() == 1


def test_short_rows_are_filled_with_white() -> None:
    made = sheet([[torch.zeros(3, 4, 4)] * 3, [torch.zeros(3, 8, 8)]])
    assert made.shape == (3, 12, 12) and made[:, 4:, 8:].min() == 1 and made[:, :, :8].max() == 0
