"""A network on a picture of any size: in overlapping tiles that blend into each other, so that memory stays flat."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..device import halving, in_batches

RAMP = 0.5  # of an overlap, in its middle, is where one tile gives way to the next; what is nearer to a rim is not used
SMALLEST = 128  # pixels a side down to which a tile is halved where memory is short


def in_tiles(
    picture: Tensor,
    network: Callable[[Tensor], Tensor],
    side: int,
    overlap: int,
    *,
    scale: int = 1,
    at_once: int = 1,
    smallest: int = SMALLEST,
) -> Tensor:
    """`network(picture)` without more than some tiles in the network: (3, H, W) -> (3, scale H, scale W) on the CPU.

    network: (B, 3, h, w) -> (B, 3, scale h, scale w), at most `at_once` tiles in a call. side: of a tile in pixels; a
    smaller picture is one tile. overlap: of neighbours in pixels, at least, and at most half of `side`. The result is
    that of the whole picture, but for rounding, if what the network makes of a pixel depends on nothing that is farther
    away than a quarter of the overlap. Where memory is too small fewer tiles are taken at once, then smaller ones, not
    below `smallest` pixels a side. Raises what the network raises.
    """

    def attempt(side: int) -> Tensor:
        return _in_tiles(picture, network, side, min(overlap, side // 2), scale, at_once)

    return halving(attempt, side, min(smallest, side), "pixels a side of a tile")[0]


def _in_tiles(
    picture: Tensor, network: Callable[[Tensor], Tensor], side: int, overlap: int, scale: int, at_once: int
) -> Tensor:
    height, width = picture.shape[-2:]
    tops, lefts = tile_starts(height, side, overlap), tile_starts(width, side, overlap)
    tall, wide = min(side, height), min(side, width)
    # The weights of a row of tiles and of a column sum to one everywhere, and so do their products.
    down = tile_weights([top * scale for top in tops], height * scale, tall * scale, overlap * scale)
    across = tile_weights([left * scale for left in lefts], width * scale, wide * scale, overlap * scale)
    places = [(i, j) for i in range(len(tops)) for j in range(len(lefts))]
    result = torch.zeros(len(picture), height * scale, width * scale)

    def made(part: slice) -> list[tuple[tuple[int, int], Tensor]]:
        corners = [(tops[i], lefts[j]) for i, j in places[part]]
        tiles = torch.stack([picture[:, top : top + tall, left : left + wide] for top, left in corners])
        new = network(tiles).float().cpu()
        wanted = (tall * scale, wide * scale)
        if tuple(new.shape[-2:]) != wanted:
            found = f"{new.shape[-1]} x {new.shape[-2]}"
            raise ValueError(f"a network made {found} pixels of a tile, where {wanted[1]} x {wanted[0]} were expected")
        return list(zip(places[part], new, strict=True))

    for tiles in in_batches(made, len(places), at_once):
        for (i, j), tile in tiles:
            top, left = tops[i] * scale, lefts[j] * scale
            weight = down[i][:, None] * across[j]
            result[:, top : top + tile.shape[-2], left : left + tile.shape[-1]] += weight * tile
    return result


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin that cover `length` pixels evenly, neighbours having at least `overlap` in common."""
    if length <= side:
        return [0]
    last = math.ceil((length - side) / max(1, side - overlap))
    return [round(i * (length - side) / last) for i in range(last + 1)]


def tile_weights(starts: list[int], length: int, side: int, overlap: int) -> list[Tensor]:
    """How much each tile counts at each of its own pixels, (side,) in [0, 1]; all that cover a pixel sum to one.

    A tile counts nothing within (1 - RAMP) / 2 of the overlap from a rim that another tile covers, too.
    """
    at = torch.arange(side) + 0.5
    ramp, unused = max(1.0, RAMP * overlap), (1 - RAMP) / 2 * overlap
    total, weights = torch.zeros(length), []
    for start in starts:
        weight = torch.ones(side)
        if start > 0:
            weight = weight * ((at - unused) / ramp).clamp(0, 1)
        if start + side < length:
            weight = weight * ((side - at - unused) / ramp).clamp(0, 1)
        weights.append(weight)
        total[start : start + side] += weight
    return [weight / total[start : start + side] for start, weight in zip(starts, weights, strict=True)]
