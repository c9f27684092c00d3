"""The sharp faces that come with the program: free for every use, of nobody in a user's folder, in no benchmark."""

from __future__ import annotations

import io
import random
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..files.tensors import reason_of, sha256_of
from ..pixels import resized
from ..spread import evenly

SHARP_FACES = Path(__file__).parents[1] / "embedded" / "sharp_faces.safetensors"
KEPT_APART = 16  # the last ones
SIDE = 256  # pixels, as they are kept


class SharpFaces:
    """Aligned sharp faces: item i is (3, S, S) RGB in [0, 1] on the CPU, S as asked for.

    They are kept as JPEG files, 256 pixels a side, and decoded when they are asked for. At sizes above 256 they are
    enlarged, and are then only as sharp as enlarged faces are.
    """

    def __init__(self, size: int, path: Path = SHARP_FACES) -> None:
        self.size, self.path = size, path
        self._tiles = _read(path)

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> Tensor:
        import numpy as np
        from PIL import Image

        stored = Image.open(io.BytesIO(self._tiles[index]))
        stored.draft("RGB", (self.size, self.size))  # a smaller face is decoded at a half, a quarter or an eighth
        pixels = np.array(stored.convert("RGB"))
        face = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        return resized(face[None], self.size)[0].clamp(0, 1)

    def stacked(self, count: int) -> Tensor:
        """(count, 3, S, S): so many of them, spread evenly over all; all if there are fewer."""
        return torch.stack([self[i] for i in evenly(len(self), count)])

    def kept_apart(self) -> Tensor:
        """(K, 3, S, S): those that no tuning learns from, so that they can be known answers afterwards."""
        return torch.stack([self[i] for i in range(len(self) - KEPT_APART, len(self))])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return sha256_of(self.path)


@lru_cache(maxsize=1)
def _read(path: Path) -> list[bytes]:
    """The JPEG files. Raises FileNotFoundError if the file is missing and ValueError if it holds something else."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the sharp faces are missing; reinstall BFR Adapt")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        data, ends = tensors["bytes"].numpy().tobytes(), tensors["ends"].tolist()
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path}: holds no sharp faces ({reason_of(error)}); reinstall BFR Adapt") from None
    tiles = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    random.Random(0).shuffle(tiles)  # the file has them by source, and any few of them are to be of all sources
    return tiles
