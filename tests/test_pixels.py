"""What is done to pictures everywhere."""

import pytest
import torch

from bfr_core.pixels import as_bytes, luma


def test_luma_of_grey_is_itself_and_green_weighs_most():
    plane = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(luma(plane.expand(-1, 3, -1, -1)), plane, atol=1e-6)
    assert luma(torch.eye(3)[:, :, None, None]).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


def test_whole_numbers_are_the_nearest_and_stay_within_a_byte():
    values = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 1.2])
    assert as_bytes(values).tolist() == [0, 0, 0, 1, 128, 255, 255] and as_bytes(values).dtype == torch.uint8
