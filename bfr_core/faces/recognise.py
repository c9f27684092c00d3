"""The embedded face recogniser: it maps a face to an embedding of 128 numbers, which are close for one person.

It is dlib's face recogniser (Davis King, CC0) as a PyTorch network. `bfr_core/embedded/MODEL_CARD.md` says where the
weights come from and how well it tells people apart, group by group.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files.tensors import load_tensors, reason_of
from .align import similarity, similarity_scale, template

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "recogniser.safetensors"
SIDE = 150  # side in pixels of a chip, which is dlib's word for an aligned face
NUMBERS = 128
MEAN_RGB = (122.782, 117.001, 104.298)  # of the faces that it was trained on, of 255
# Left eye, right eye, nose, left and right mouth corner in a chip: the median over 120 portraits that were aligned by
# dlib's own landmarks, as dlib aligned the faces that it was trained on.
TEMPLATE_150 = np.array([[47.4, 45.6], [101.8, 45.5], [73.6, 78.4], [47.8, 99.6], [101.6, 99.8]])
STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))  # width, blocks; all but the first begin with a down block
BATCH = 16
COMPARED = 4  # layers by which pictures are compared; the coarser ones know who it is, and not how it looks


class RecogniserNet(nn.Module):
    """Chips (B, 3, 150, 150) RGB in [0, 1] -> (B, 128) float32. Their length varies; do not normalise them."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.ModuleDict({"conv": nn.Conv2d(3, STAGES[0][0], 7, stride=2)})
        before = STAGES[0][0]
        for number, (width, blocks) in enumerate(STAGES, 1):
            stage = nn.ModuleDict()
            for i in range(blocks):
                stage[f"block{i}"] = Block(before, width, down=number > 1 and i == 0)
                before = width
            self.add_module(f"stage{number}", stage)
        self.embedding = nn.Linear(before, NUMBERS, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(3, 1, 1) / 255, persistent=False)

    def forward(self, chips: Tensor) -> Tensor:
        return self.embedding(self.features(chips)[-1].mean((2, 3))).float()

    def features(self, chips: Tensor) -> list[Tensor]:
        """The output of the first convolution and of each stage, from fine to coarse: (B, C, H, W) each."""
        x = ((chips - self.mean) * (255 / 256)).to(self.embedding.weight.dtype)
        found = [F.relu(self.stem["conv"](x))]
        x = F.max_pool2d(found[0], 3, stride=2)
        for number in range(1, len(STAGES) + 1):
            for block in self.get_submodule(f"stage{number}").children():
                x = block(x)
            found.append(x)
        return found


class Block(nn.Module):
    """Two convolutions beside a shortcut. down: to about half the size, by a convolution without padding."""

    def __init__(self, before: int, width: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(before, width, 3, stride=2 if down else 1, padding=0 if down else 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.avg_pool2d(x, 2) if self.down else x
        x = self.conv2(F.relu(self.conv1(x)))
        channels, height, width = (max(pair) for pair in zip(x.shape[1:], shortcut.shape[1:], strict=True))
        return F.relu(_filled(x, channels, height, width) + _filled(shortcut, channels, height, width))


def _filled(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """`x` with zero channels at the end and zero rows and columns below and to the right, up to these sizes."""
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2], 0, channels - x.shape[1]))


def load_recogniser(path: Path = EMBEDDED, device: str | torch.device = "cpu") -> RecogniserNet:
    """The embedded recogniser in float32, for inference.

    Raises FileNotFoundError if the file is missing and ValueError if it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the embedded face recogniser is missing; reinstall BFR Adapt")
    state, _ = load_tensors(path)
    with torch.random.fork_rng(devices=[]):  # it is filled with random numbers before its own
        net = RecogniserNet()
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the embedded face recogniser ({reason_of(error)})") from None
    net.eval().requires_grad_(False).to(device)
    if torch.device(device).type == "cpu":  # where its convolutions are a fifth faster so
        net.to(memory_format=torch.channels_last)
    return net


# ---------------------------------------------------------------- chips


def chip_of(photo: Tensor, landmarks: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """The chip of one face of a photo: (3, H, W) RGB in [0, 1] -> (3, 150, 150), black beyond the photo's edge.

    landmarks: (5, 2) x, y in photo pixels, in the order of `TEMPLATE_150`. Only the part of the photo that is seen is
    read. Raises ValueError if the landmarks coincide.
    """
    return _chips(photo[None], similarity(landmarks, TEMPLATE_150), torch.device(device))[0]


def chips_of(faces: Tensor, points: Tensor | None = None, device: str | torch.device | None = None) -> Tensor:
    """The chips of standard crops: (B, 3, S, S) RGB in [0, 1] -> (B, 3, 150, 150) on `device`, or on that of `faces`.

    points: (B, 5, 2) x, y in crop widths, as `read_aligned` gives them; by default those of the standard crop. A
    restored face must be cut by the same points as its damaged face, or their distance measures the points as well.
    Raises ValueError for other shapes.
    """
    size = faces.shape[-1]
    if faces.ndim != 4 or faces.shape[1] != 3 or faces.shape[2] != size:
        raise ValueError(f"faces must be (B, 3, S, S), not {tuple(faces.shape)}")
    if points is not None and tuple(points.shape) != (len(faces), 5, 2):
        raise ValueError(f"points must be ({len(faces)}, 5, 2), not {tuple(points.shape)}")
    where = torch.device(device) if device is not None else faces.device
    if not len(faces):
        return faces.new_zeros(0, 3, SIDE, SIDE).to(where)
    if points is None:  # all are cut alike
        return _chips(faces, similarity(template(size), TEMPLATE_150), where)
    # A crop's width is `size` pixels, and its first pixel's centre lies half a pixel inside.
    landmarks = points.detach().cpu().numpy().astype(np.float64) * size - 0.5
    matrices = [similarity(own, TEMPLATE_150) for own in landmarks]
    return torch.cat([_chips(face[None], matrix, where) for face, matrix in zip(faces, matrices, strict=True)])


def _chips(photos: Tensor, matrix: np.ndarray, device: torch.device) -> Tensor:
    """(B, 3, H, W) -> (B, 3, 150, 150), all cut alike.

    They are shrunk by area where a chip's pixel is more than one of the photo, then bilinear. The map is worked out in
    float64 on the CPU; what runs on `device` is float32, because not every device has more.
    """
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    corners = np.array([[-1, -1, 1], [SIDE, -1, 1], [-1, SIDE, 1], [SIDE, SIDE, 1]], np.float64) @ inverse[:2].T
    block = max(1, round(1 / similarity_scale(matrix)))  # photo pixels a chip pixel, along an axis
    height, width = photos.shape[-2:]
    x0, y0 = (int(max(0, np.floor(low) - block)) for low in corners.min(0))
    x1, y1 = (int(min(n, np.ceil(high) + 1 + block)) for high, n in zip(corners.max(0), (width, height), strict=True))
    if x1 <= x0 or y1 <= y0:
        return torch.zeros(len(photos), 3, SIDE, SIDE, device=device)
    part = photos[:, :, y0:y1, x0:x1].float().to(device)
    # Photo coordinates of a chip's pixels -> this part's, -1 to 1 from edge to edge, as grid_sample counts them.
    blocks = [-(-(y1 - y0) // block), -(-(x1 - x0) // block)]
    part = F.pad(part, (0, blocks[1] * block - (x1 - x0), 0, blocks[0] * block - (y1 - y0)), mode="replicate")
    if block > 1:
        part = F.avg_pool2d(part, block)
    spans = np.array([blocks[1], blocks[0]]) * block
    to_part = (inverse[:2, :2] * 2) / spans[:, None]
    shift = ((inverse[:2, 2] - [x0, y0]) + 0.5) * 2 / spans - 1
    line = np.arange(SIDE, dtype=np.float64)
    xs, ys = np.meshgrid(line, line)
    grid = np.stack([xs, ys], -1) @ to_part.T + shift
    places = torch.from_numpy(grid.astype(np.float32))[None].to(device).expand(len(photos), -1, -1, -1)
    return F.grid_sample(part, places, mode="bilinear", align_corners=False)


@torch.inference_mode()
def embed(net: RecogniserNet, chips: Tensor) -> Tensor:
    """Embeddings of chips, (B, 3, 150, 150) RGB in [0, 1] -> (B, 128) float32 on the CPU, a few at a time.

    Raises ValueError for chips of another size.
    """
    if chips.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(f"chips must be (B, 3, {SIDE}, {SIDE}), not {tuple(chips.shape)}")
    device = net.embedding.weight.device
    parts = [net(some.to(device)).cpu() for some in chips.split(BATCH) if len(some)]
    return torch.cat(parts) if parts else torch.zeros(0, NUMBERS)


def embed_faces(net: RecogniserNet, faces: Tensor, points: Tensor | None = None) -> Tensor:
    """Embeddings of standard crops, (B, 3, S, S) RGB in [0, 1] -> (B, 128) on the CPU; points: see `chips_of`."""
    return embed(net, chips_of(faces, points, net.embedding.weight.device))


@torch.inference_mode()
def feature_distance(net: RecogniserNet, faces: Tensor, others: Tensor) -> Tensor:
    """How different two faces look to the recogniser, (B, 3, S, S) RGB in [0, 1] twice -> (B,); 0 for one picture.

    As LPIPS (arXiv:1801.03924) without its learned weights: the mean over `COMPARED` layers and their places of the
    squared difference of unit vectors. Faces are seen as chips of 150 pixels. Raises ValueError for unequal shapes.
    """
    if faces.shape != others.shape:
        raise ValueError(f"faces are {tuple(faces.shape)} and {tuple(others.shape)}; both must have one shape")
    device = net.embedding.weight.device
    found = [torch.zeros(0, dtype=torch.float64)]
    for pair in zip(faces.split(BATCH), others.split(BATCH), strict=True):
        ours, theirs = (net.features(chips_of(some, device=device))[:COMPARED] for some in pair)
        layers = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1).mean((1, 2)).cpu()
            for a, b in zip(ours, theirs, strict=True)
        ]
        found.append(torch.stack(layers).mean(0).double())
    return torch.cat(found)
