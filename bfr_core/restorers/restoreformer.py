"""RestoreFormer. Source: arXiv:2201.06374; the network is spandrel's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor, nn

from .base import Restorer


class RestoreFormer(Restorer):
    """RestoreFormer, whose network takes and gives [-1, 1]."""

    makes_faces_only = True
    spelt_out_silu = "nonlinearity"

    def __call__(self, lq: Tensor) -> Tensor:
        image, _ = self.module(lq * 2 - 1)
        return (image + 1) / 2

    def tuned_parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """All but the codebook, and the second norm of the encoder's attention, which restoring does not use."""
        unused = re.compile(r"quantize\.|encoder\..*attn.*\.norm2\.")
        return ((name, p) for name, p in module.named_parameters() if not unused.match(name))
