"""The embedded face networks, which say where the five landmarks are and whether there is a face at all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import first_line
from ..pixels import luma, resized

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "landmarks.safetensors"
CROP = 64  # width of the standard crop of the face that the network looks at
MARGIN = 16  # pixels that it sees around that crop on each side: a window is 96 x 96
WINDOW = CROP + 2 * MARGIN
MIRRORED = (1, 0, 2, 4, 3)  # landmark that each becomes in a mirror: eyes and mouth corners change places
STRIDE = 16  # distance between neighbouring answers
SCAN_CROP = 32  # width of the crop of the face that the scanning network looks at


class ResidualLayer(nn.Module):
    """A residual 3 x 3 layer, which is the identity before it has been trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(width)
        nn.init.zeros_(norm.weight)
        self.layer = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), norm, nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class FaceNet(nn.Module):
    """Score and landmarks of the face whose standard crop, `crop` pixels wide, nearly fills a cell of a grey picture.

    It is convolutional: on a window of 1.5 crops the middle one of 3 x 3 cells is the output, on a photo every cell is.
    With a crop of 64 a cell responds to faces up to 10 pixels off its centre, 0.8 to 1.25 times its size, turned up to
    30 degrees. layers: (width, stride) of each 3 x 3 layer; a stride of 0 stands for a `ResidualLayer`. hidden: the
    number of channels in which a whole cell is gathered.
    """

    def __init__(self, crop: int, layers: tuple[tuple[int, int], ...], hidden: int) -> None:
        super().__init__()
        self.crop, self.stride = crop, crop // 4
        before, steps = 1, []
        for width, stride in layers:
            if stride:
                steps += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
            else:
                steps.append(ResidualLayer(width))
            before = width
        self.features = nn.Sequential(*steps)
        self.gather = nn.Sequential(nn.Conv2d(before, hidden, 4), nn.SiLU())
        self.answer = nn.Conv2d(hidden, 11, 1)

    def forward(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        """grey: (B, 1, H, W) in [0, 1], H and W at least `crop` -> face logits (B, h, w), landmarks (B, h, w, 5, 2).

        h = (H - crop) // stride + 1 if H is a multiple of the stride, which is a quarter of the crop; landmarks are
        x, y in pixels from the cell's centre, which lies at (crop - 1) / 2 + stride * (column, row).
        """
        out = self.answer(self.gather(self.features(4 * grey - 2))).permute(0, 2, 3, 1)
        return out[..., 0], out[..., 1:].unflatten(-1, (5, 2)) * self.crop


class LandmarkNet(FaceNet):
    """The network that reads a face from a window aligned to it, 64 pixels of crop and 16 around them."""

    def __init__(self) -> None:
        layers = ((24, 2), (48, 2), (64, 1), (96, 2), (96, 1), (96, 0), (128, 2), (128, 0), (128, 0))
        super().__init__(CROP, layers, hidden=96)


class ScanNet(FaceNet):
    """The network that scans whole photos for places to look at more closely, for a twelfth of the work a face."""

    def __init__(self) -> None:
        super().__init__(SCAN_CROP, ((16, 2), (32, 2), (48, 1), (64, 2), (64, 0)), hidden=64)


Net = TypeVar("Net", LandmarkNet, ScanNet)


class AlignedFaces(NamedTuple):
    """score: (B,), 0 to 1, how surely each is a face. points: (B, 5, 2), x and y in crop widths, 0 to 1."""

    score: Tensor
    points: Tensor


@torch.no_grad()
def read_aligned(net: LandmarkNet, faces: Tensor) -> AlignedFaces:
    """Score and landmarks of standard crops, (B, 3, S, S) RGB in [0, 1]; the mean of each and its mirror image."""
    device = next(net.parameters()).device
    small = resized(luma(faces), CROP, "bilinear")
    windows = F.pad(small.to(device), (MARGIN,) * 4, mode="replicate")
    logit, points = (out[:, 1, 1] for out in net(torch.cat([windows, windows.flip(-1)])))
    plain, mirrored = (points / CROP + 0.5).chunk(2)
    mirrored = torch.stack([1 - mirrored[..., 0], mirrored[..., 1]], -1)[:, MIRRORED]
    return AlignedFaces(torch.sigmoid(logit).view(2, -1).mean(0), (plain + mirrored) / 2)


def landmark_distance(points: Tensor, others: Tensor) -> Tensor:
    """Mean distance of corresponding landmarks, in distances between the eyes of `others`: (B, 5, 2) twice -> (B,)."""
    eyes = (others[:, 0] - others[:, 1]).norm(dim=-1)
    return (points - others).norm(dim=-1).mean(1) / eyes.clamp_min(1e-6)


def load_landmark_net(path: Path = EMBEDDED, device: str | torch.device = "cpu") -> LandmarkNet:
    """The embedded network that reads aligned faces, in float32, for inference.

    Raises FileNotFoundError if the file is missing and ValueError if it holds something else.
    """
    return _loaded(LandmarkNet, "landmarks.", path, device)


def load_scan_net(path: Path = EMBEDDED, device: str | torch.device = "cpu") -> ScanNet:
    """The embedded network that scans whole photos; otherwise as `load_landmark_net`."""
    return _loaded(ScanNet, "scan.", path, device)


def _loaded(kind: type[Net], prefix: str, path: Path, device: str | torch.device) -> Net:
    """A network of this kind with those weights of the file whose names begin with `prefix`."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: the embedded face network is missing; reinstall BFR Adapt")
    with torch.random.fork_rng(devices=[]):  # it is filled with random numbers before its own weights are read
        net = kind()
    try:
        weights = {key.removeprefix(prefix): value for key, value in load_file(path).items() if key.startswith(prefix)}
        net.load_state_dict({key: value.float() for key, value in weights.items()})
    except Exception as error:  # safetensors and torch raise many kinds, all of which mean the same to the user
        raise ValueError(f"{path}: not the embedded face network ({first_line(error)})") from error
    return net.eval().requires_grad_(False).to(device)
