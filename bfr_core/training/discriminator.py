"""The discriminator of the adversarial loss, and the losses of both sides."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def generator_loss(fake_scores: Tensor) -> Tensor:
    """Non-saturating adversarial loss of the restorer. Source: arXiv:1406.2661, section 3."""
    return F.softplus(-fake_scores).mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Binary cross-entropy of the discriminator. Source: arXiv:1406.2661, eq. 1."""
    return F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean()


class UNetDiscriminator(nn.Module):
    """Scores for how real every pixel looks: (B, 3, H, W) in [0, 1], H and W multiples of 8 -> (B, 1, H, W) logits.

    A three-level U-Net with spectral normalization. Source: arXiv:2107.10833, section 3.3. In eval mode its norms stay
    as they are, so that scores depend on the weights alone and not on how often it was called; see `renew_norms`.
    """

    def __init__(self, features: int = 64) -> None:
        super().__init__()

        def conv(in_ch: int, out_ch: int, kernel: int = 3, stride: int = 1) -> nn.Module:
            layer = nn.Conv2d(in_ch, out_ch, kernel, stride, 1, bias=False)
            return nn.utils.parametrizations.spectral_norm(layer)

        f = features
        self.first = nn.Conv2d(3, f, 3, padding=1)
        self.down = nn.ModuleList([conv(f, 2 * f, 4, 2), conv(2 * f, 4 * f, 4, 2), conv(4 * f, 8 * f, 4, 2)])
        self.up = nn.ModuleList([conv(8 * f, 4 * f), conv(4 * f, 2 * f), conv(2 * f, f)])
        self.last = nn.Sequential(
            conv(f, f), nn.LeakyReLU(0.2), conv(f, f), nn.LeakyReLU(0.2), nn.Conv2d(f, 1, 3, padding=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(image), 0.2)
        skips = []
        for layer in self.down:
            skips.append(x)
            x = F.leaky_relu(layer(x), 0.2)
        for layer in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.leaky_relu(layer(x), 0.2) + skips.pop()
        return self.last(x)

    @torch.no_grad()
    def renew_norms(self) -> None:
        """One step of power iteration for every weight's norm, once a training step: arXiv:1802.05957, algorithm 1."""
        for layer in self.modules():
            if nn.utils.parametrize.is_parametrized(layer):
                norms = layer.get_submodule("parametrizations")
                norms.train()
                layer.weight  # noqa: B018  computing the weight in train mode is what renews its norm
                norms.eval()


def seeded_discriminator(features: int, seed: int) -> UNetDiscriminator:
    """A discriminator whose first weights are fixed by `seed`, on the CPU; torch's own generators stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return UNetDiscriminator(features).eval()
