"""RestoreFormer. Source: arXiv:2201.06374; the network is spandrel's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from .base import Restorer


class RestoreFormer(Restorer):
    """Wants [-1, 1] inside. Its codebook is never tuned."""

    def __call__(self, lq: Tensor) -> Tensor:
        image, _ = self.module(lq * 2 - 1)
        return (image + 1) / 2

    def tuned_parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in module.named_parameters() if not name.startswith("quantize."))
