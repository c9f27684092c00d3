"""Whether a result still is the same picture as the damaged one."""

from __future__ import annotations

from torch import Tensor

from ..diffusion.low_pass import low_pass
from .checks import checked_pair


def low_band_consistency(restored: Tensor, lq: Tensor, factor: int) -> Tensor:
    """Root mean square difference of the low bands (`low_pass`), in units of [0, 1]. Lower is better, 0 is exact.

    Says whether a result is still the same picture as the damaged one. Raises ValueError as `low_pass` does.
    """
    restored, lq = checked_pair(restored, lq)
    return (low_pass(restored, factor) - low_pass(lq, factor)).square().mean((1, 2, 3)).sqrt()
