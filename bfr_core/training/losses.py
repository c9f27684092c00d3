"""The image losses of fine-tuning. Each term is a function of (restored, pseudo_target).

Images are (B, 3, H, W) RGB in [0, 1]; every result is a scalar, the mean over the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import full_precision
from ..pixels import gaussian_blur

log = logging.getLogger(__name__)

ImageLoss = Callable[[Tensor, Tensor], Tensor]


def pixel_loss(restored: Tensor, pseudo_target: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (restored - pseudo_target).abs().mean()


def texture_loss(restored: Tensor, pseudo_target: Tensor, sigma: float = 1.5, window: float = 4.0) -> Tensor:
    """Difference in local texture strength, against the plastic skin that a mean of absolute differences rewards.

    Texture strength is the standard deviation of the high band (grey image minus its Gaussian blur of `sigma`
    pixels) in a Gaussian window. Where the texture lies is left to the other terms. It is computed in float32 or wider
    even under autocast: in bfloat16 the difference of an image and its blur would be mostly rounding.
    """

    def strength(image: Tensor) -> Tensor:
        grey = image.to(torch.promote_types(image.dtype, torch.float32)).mean(1, keepdim=True)
        return (gaussian_blur((grey - gaussian_blur(grey, sigma)) ** 2, window) + 1e-5).sqrt()

    with full_precision(restored.device):
        return (strength(restored) - strength(pseudo_target)).abs().mean()


def hatching_loss(restored: Tensor, pseudo_target: Tensor) -> Tensor:
    """By how much more than the pseudo target the restored face changes from pixel to pixel and back.

    Networks that enlarge by rearranging channels are given to patterns of two pixels where they do not know the detail.
    Compared is the mean strength in squares of eight pixels: along rows, along columns, and of a chequerboard. It is
    computed in float32 or wider, as `texture_loss` is.
    """

    def strength(image: Tensor, pattern: Tensor) -> Tensor:
        grey = image.to(torch.promote_types(image.dtype, torch.float32)).mean(1, keepdim=True)
        return F.avg_pool2d(F.conv2d(grey, pattern[None, None].to(grey)).abs(), 8)

    step = torch.tensor([[-1.0, 2.0, -1.0]]) / 4
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 4
    with full_precision(restored.device):
        more = [F.relu(strength(restored, p) - strength(pseudo_target, p)).mean() for p in (step, step.T, board)]
        return torch.stack(more).sum()


def perceptual_loss(encode: Callable[[Tensor], list[Tensor]]) -> ImageLoss:
    """Distance in a network's features, each scaled to unit length over channels.

    encode: (B, 3, H, W) in [-1, 1] -> list of (B, C, h, w). Source: arXiv:1801.03924, eq. 1, without learned weights.
    """

    def loss(restored: Tensor, pseudo_target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = encode(pseudo_target * 2 - 1)
        got = encode(restored * 2 - 1)
        terms = [
            (F.normalize(a.float(), eps=1e-6) - F.normalize(b.float(), eps=1e-6)).square().sum(1).mean()
            for a, b in zip(got, wanted, strict=True)
        ]
        return torch.stack(terms).mean()

    return loss


def find_vgg() -> Path | None:
    """torchvision's VGG-16 file, if LPIPS can be computed on this machine: it takes that file and the package lpips."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"
    return path if path.is_file() and find_spec("lpips") else None


def lpips_loss(vgg_file: Path, device: torch.device | str = "cpu") -> ImageLoss:
    """LPIPS (VGG), mean over the batch. Source: arXiv:1801.03924.

    The lpips package's own loader downloads; here its network is built empty and filled from `vgg_file` and from the
    linear weights that the package carries.
    """
    import lpips

    from ..files.tensors import load_tensors

    net = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    linear, _ = load_tensors(Path(lpips.__file__).parent / "weights" / "v0.1" / "vgg.pth")
    vgg, _ = load_tensors(vgg_file)
    state = net.state_dict()
    for key in state:
        if key in linear:
            state[key] = linear[key]
        elif key.startswith("net.slice"):
            state[key] = vgg["features." + key.split(".", 2)[2]]
    net.load_state_dict(state)
    net = net.to(device).eval().requires_grad_(False)
    return lambda restored, pseudo_target: net(restored * 2 - 1, pseudo_target * 2 - 1).mean()
