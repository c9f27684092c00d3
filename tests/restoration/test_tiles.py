from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.restoration.tiles import in_tiles, tile_starts, tile_weights


def blurring(radius: int):
    """A network that sees `radius` pixels to each side, with a bend, so that it is not linear."""
    kernel = torch.rand(3, 1, 2 * radius + 1, 2 * radius + 1, generator=torch.Generator().manual_seed(0))
    kernel = kernel / kernel.sum((2, 3), keepdim=True)

    def network(tiles: Tensor) -> Tensor:
        seen = F.conv2d(F.pad(tiles, (radius,) * 4, mode="replicate"), kernel, groups=3)
        return tiles + 0.5 * torch.tanh(8 * (seen - tiles))

    return network


def picture(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(200, 333), (64, 64), (65, 40), (30, 500), (1, 1)])
def test_tiles_give_what_the_whole_picture_gives(height: int, width: int) -> None:
    whole, network = picture(height, width), blurring(6)
    tiled = in_tiles(whole, network, 64, 24, at_once=3)
    assert (tiled - network(whole[None])[0]).abs().max() < 1 / 255


def test_a_network_that_sees_farther_leaves_no_line_at_the_border_of_a_tile() -> None:
    whole, network = torch.full((3, 96, 300), 0.5), torch.nn.Identity()

    def darker_at_random(tiles: Tensor) -> Tensor:  # every tile gets another brightness, as by a mean over the tile
        darker_at_random.count += 1  # type: ignore[attr-defined]
        return network(tiles) - 0.1 * (darker_at_random.count % 2)  # type: ignore[attr-defined]

    darker_at_random.count = 0  # type: ignore[attr-defined]
    tiled = in_tiles(whole, darker_at_random, 96, 48)
    assert tiled.min() < 0.41 and tiled.max() > 0.49  # the tiles do differ
    assert (tiled[..., 1:] - tiled[..., :-1]).abs().max() <= 0.1 / 24 + 1e-5  # over half of the overlap


def test_an_enlarging_network_is_put_together_at_its_scale() -> None:
    whole = picture(100, 130)

    def twice(tiles: Tensor) -> Tensor:
        return F.interpolate(tiles, scale_factor=2, mode="nearest")

    assert torch.allclose(in_tiles(whole, twice, 48, 16, scale=2), twice(whole[None])[0], atol=1e-6)
    with pytest.raises(ValueError, match="a network made 96 x 96 pixels of a tile, where 48 x 48 were expected"):
        in_tiles(whole, twice, 48, 16)


def test_too_little_memory_takes_fewer_tiles_then_smaller_ones() -> None:
    whole, seen = picture(300, 300), []

    def network(tiles: Tensor) -> Tensor:
        seen.append(tuple(tiles.shape))
        if tiles[:, 0].numel() > 64 * 64:
            raise RuntimeError("CUDA out of memory")
        return tiles

    assert torch.allclose(in_tiles(whole, network, 256, 32, at_once=4, smallest=64), whole, atol=1e-6)
    assert (4, 3, 256, 256) in seen and (1, 3, 256, 256) in seen and seen[-1] == (1, 3, 64, 64)
    with pytest.raises(RuntimeError, match="out of memory"):
        in_tiles(whole, network, 256, 32, smallest=128)


def test_starts_cover_all_and_overlap_and_weights_sum_to_one() -> None:
    for length in (1, 64, 65, 100, 777):
        starts = tile_starts(length, 64, 20)
        assert starts[0] == 0 and starts[-1] == max(0, length - 64)
        assert all(64 - (b - a) >= 20 for a, b in pairwise(starts))
        side = min(64, length)
        total = torch.zeros(length)
        for start, weight in zip(starts, tile_weights(starts, length, side, 20), strict=True):
            total[start : start + side] += weight
        assert torch.allclose(total, torch.ones(length))
