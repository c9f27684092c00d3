"""Which pixels of a standard crop are the face: ParseNet, whose file facexlib publishes.

The network is built here, from the names and shapes in that file: facexlib's own cannot be imported without OpenCV,
and its loader fetches and unpickles.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.tensors import load_tensors, reason_of
from ..files.weights import locate, resolve
from ..pixels import gaussian_blur, resized

FILE = "parsing_parsenet.pth"
SIZE = 512  # of the crops it was trained on
NOT_FACE = (0, 14, 16, 17, 18)  # background, hat, necklace, neck, cloth, among CelebAMask-HQ's 19 classes
SOFT = 11  # deviation in pixels of 512 by which the mask's rim is blurred


CHANNELS = (64, 128, 256, 256, 256)  # at 512, 256, 128, 64 and 32 pixels a side
DEPTH = 10  # blocks at 32 pixels
CLASSES = 19
PICTURE = "out_img_conv."  # a second answer of the network, which nothing here needs


class _Layer(nn.Module):
    """A 3 x 3 convolution with mirrored edges, after doubling the size or halving it, and what follows it."""

    def __init__(self, cin: int, cout: int, scale: str = "", normed: bool = False, bent: bool = False) -> None:
        super().__init__()
        self.doubled, self.bent = scale == "up", bent
        self.conv2d = nn.Conv2d(cin, cout, 3, 2 if scale == "down" else 1, bias=not normed)
        self.norm = nn.ModuleDict({"norm": nn.BatchNorm2d(cout)} if normed else {})

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.doubled else x
        x = self.conv2d(F.pad(x, (1,) * 4, mode="reflect"))
        x = self.norm["norm"](x) if len(self.norm) else x
        return F.leaky_relu(x, 0.2) if self.bent else x


class _Block(nn.Module):
    """Two layers beside a short cut, which is a layer itself where size or channels change."""

    def __init__(self, cin: int, cout: int, scale: str = "") -> None:
        super().__init__()
        self.shortcut_func = _Layer(cin, cout, scale) if scale or cin != cout else nn.Identity()
        self.conv1 = _Layer(cin, cout, scale if scale == "up" else "", normed=True, bent=True)
        self.conv2 = _Layer(cout, cout, scale if scale == "down" else "", normed=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_func(x) + self.conv2(self.conv1(x))


class ParseNet(nn.Module):
    """Scores of `CLASSES` for each pixel: (B, 3, 512, 512) in [-1, 1] -> (B, 19, 512, 512)."""

    def __init__(self) -> None:
        super().__init__()
        steps = list(pairwise(CHANNELS))
        down = [_Block(cin, cout, "down") for cin, cout in steps]
        self.encoder = nn.Sequential(_Layer(3, CHANNELS[0]), *down)
        self.body = nn.Sequential(*(_Block(CHANNELS[-1], CHANNELS[-1]) for _ in range(DEPTH)))
        self.decoder = nn.Sequential(*(_Block(cout, cin, "up") for cin, cout in reversed(steps)))
        self.out_mask_conv = _Layer(CHANNELS[0], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        feature = self.encoder(x)
        return self.out_mask_conv(self.decoder(feature + self.body(feature)))


def has_parser() -> bool:
    """Whether ParseNet's file is on this machine."""
    return locate(FILE) is not None


class FaceParser:
    """Masks a face, hair and ears included. Raises FileNotFoundError or ValueError if its file cannot be used."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        path = resolve(FILE)
        state, _ = load_tensors(path)
        self.net = ParseNet()
        try:
            self.net.load_state_dict({name: value for name, value in state.items() if not name.startswith(PICTURE)})
        except RuntimeError as error:
            raise ValueError(f"{path.name}: not ParseNet weights ({reason_of(error)})") from None
        self.net = self.net.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, crop: Tensor) -> Tensor:
        """crop: (3, S, S) RGB in [0, 1]. Returns (1, S, S) in [0, 1], 1 on the face, soft at its rim."""
        image = resized(crop[None].to(self.device), SIZE, "bilinear")
        classes = self.net(image * 2 - 1).argmax(1, keepdim=True).cpu()
        face = ~torch.isin(classes, torch.tensor(NOT_FACE))
        mask = gaussian_blur(face.float(), SOFT, edges="replicate")
        return resized(mask, crop.shape[-2:], "area")[0]
