"""NAFNet, the embedded restorer's kind. Source: arXiv:2204.04676; the network is spandrel's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from .base import Restorer


@dataclass(eq=False)
class NAFNet(Restorer):
    """NAFNet, whose network takes and gives [0, 1]. Its layer norms use PyTorch's own function, which is faster."""

    def __post_init__(self) -> None:
        for layer in self.module.modules():
            if type(layer).__name__ == "LayerNorm2d":
                layer.__class__ = LayerNorm2d


class LayerNorm2d(nn.Module):
    """Takes the place of spandrel's class in a network that is built: the same parameters, values and gradients."""

    weight: nn.Parameter
    bias: nn.Parameter
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normed over C."""
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )
