"""GFPGAN, the clean version of v1.3 and v1.4. Source: arXiv:2101.04061; the network is spandrel's."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from .base import Restorer


class GFPGAN(Restorer):
    """GFPGAN, whose network takes and gives [-1, 1].

    The noise that its StyleGAN2 adds is the stored one, so that a face always gives one result.
    """

    channels_last = False
    makes_faces_only = True

    def __call__(self, lq: Tensor) -> Tensor:
        image, _ = self.module(lq * 2 - 1, return_rgb=False, randomize_noise=False)
        return (image + 1) / 2

    def tuned_parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """All but the heads for intermediate sizes and the style mapping, which restoring does not use."""
        unused = ("toRGB.", "stylegan_decoder.style_mlp.")
        return ((name, p) for name, p in module.named_parameters() if not name.startswith(unused))
