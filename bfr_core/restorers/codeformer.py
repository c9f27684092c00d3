"""CodeFormer, tuned by predicting codes. Source: arXiv:2206.11253; the network is spandrel_extra_arches'.

That network is under the S-Lab licence (non-commercial), which is why its package is an optional extra.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import Precision, full_precision, where_all_works
from .base import Restorer

FIDELITY_TEXT = (
    "CodeFormer's fidelity_weight: 0 gives the cleanest face, and 1 stays closest to the photo. Other restorers have "
    "none."
)
FROZEN = ("quantize.", "generator.", "fuse_convs_dict.")


class Codes(NamedTuple):
    """logits: (B, HW, codes), scores of each code at each place. feature: (B, C, H, W), the encoder's."""

    logits: Tensor
    feature: Tensor


@dataclass(eq=False)
class CodeFormer(Restorer):
    """CodeFormer, whose network takes and gives [-1, 1].

    fidelity_weight: w in [0, 1]; 0 trusts the codebook, 1 the damaged face.
    """

    fidelity_weight: float = 0.5
    tuned_by_codes = True
    makes_faces_only = True
    spelt_out_silu = "swish"

    def __post_init__(self) -> None:
        if not 0 <= self.fidelity_weight <= 1:
            raise ValueError(f"fidelity_weight is {self.fidelity_weight}; it must be 0 to 1")

    def default_precision(self) -> Precision:
        """float32: rounding would choose other codes, and thereby another face."""
        return "float32"

    def with_fidelity(self, fidelity_weight: float) -> CodeFormer:
        return replace(self, fidelity_weight=fidelity_weight)

    def __call__(self, lq: Tensor) -> Tensor:
        image, _ = self.module(lq * 2 - 1, weight=self.fidelity_weight)
        return (image + 1) / 2

    def tuned_parameters(self, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Encoder and transformer; quantizer, generator and fusion stay as they are."""
        return ((name, p) for name, p in module.named_parameters() if not name.startswith(FROZEN))

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        net: Any = module
        return [*net.encoder.blocks, *net.ft_layers]

    def codes(self, lq: Tensor) -> Codes:
        """What the network predicts for damaged faces (B, 3, 512, 512) in [0, 1], as its own forward does."""
        from einops import rearrange

        net: Any = self.module
        feature = self._encoded(lq)
        position = net.position_emb.unsqueeze(1)  # (HW, 1, D)
        query = net.feat_emb(rearrange(feature, "b c h w -> (h w) b c"))
        for layer in net.ft_layers:
            query = layer(query, query_pos=position.expand_as(query))
        return Codes(rearrange(net.idx_pred_layer(query), "places b codes -> b places codes"), feature)

    @torch.no_grad()
    def target_codes(self, hq: Tensor) -> Tensor:
        """Indices of the codebook entries nearest to the encoding of clean faces: (B, HW) long.

        They are computed in float32 even under autocast, because rounding would make another entry the nearest.
        """
        from einops import rearrange

        with full_precision(hq.device):
            flat = where_all_works(rearrange(self._encoded(hq.float()), "b c h w -> b (h w) c"))
            codebook = where_all_works(self.codebook.float()).expand(len(flat), -1, -1)
            return torch.cdist(flat, codebook).argmin(2).to(hq.device)

    @property
    def codebook(self) -> Tensor:
        """The vectors of the codebook, (codes, C)."""
        net: Any = self.module
        return net.quantize.embedding.weight

    def _encoded(self, image: Tensor) -> Tensor:
        net: Any = self.module
        return net.encoder(image * 2 - 1)


def with_fidelity(restorer: Restorer, fidelity_weight: float) -> Restorer:
    """`restorer` with this fidelity_weight in every CodeFormer of it, else itself. Raises ValueError outside [0, 1]."""
    return restorer.with_fidelity(fidelity_weight)


def code_losses(predicted: Codes, codes: Tensor, codebook: Tensor) -> dict[str, Tensor]:
    """Mean squared distance of the feature to the wanted code vectors, and cross-entropy of the logits, unweighted.

    codes: (B, HW) long, of the pseudo targets. codebook: (codes, C). Source: arXiv:2206.11253, its second stage.
    """
    from einops import rearrange

    wanted = rearrange(codebook[codes], "b (h w) c -> b c h w", h=predicted.feature.shape[2])
    return {
        "feature": F.mse_loss(predicted.feature.float(), wanted),
        "code": F.cross_entropy(predicted.logits.float().mT, codes),
    }
