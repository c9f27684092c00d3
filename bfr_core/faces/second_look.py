"""A second look at what may be a face: does the recogniser see somebody there?

To the recogniser, places without a face look much alike: their embeddings lie together, near the point that is called
nobody here, while those of faces lie around it. How far from there a place lies says more about it than all that the
face networks say, and costs two embeddings, so only doubtful places are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files.tensors import load_tensors, reason_of
from .align import Face
from .recognise import NUMBERS, RecogniserNet, chip_of, embed, load_recogniser

EMBEDDED = Path(__file__).resolve().parent.parent / "embedded" / "nobody.safetensors"


@dataclass(frozen=True, eq=False)
class SecondLook:
    """net: the recogniser. nobody: (128,), the mean embedding of what looks like a face and is none."""

    net: RecogniserNet
    nobody: Tensor

    def embeddings(self, photo: Tensor, faces: Sequence[Face]) -> Tensor:
        """(B, 128) embeddings of faces of a photo (3, H, W) in [0, 1], the means of a chip and its mirror."""
        device = self.net.embedding.weight.device
        found = []
        for face in faces:
            chip = chip_of(photo, face.landmarks, device)
            found.append(embed(self.net, torch.stack([chip, chip.flip(-1)])).mean(0))
        return torch.stack(found) if found else torch.zeros(0, NUMBERS)

    def distances(self, photo: Tensor, faces: Sequence[Face]) -> Tensor:
        """(B,) how far each face lies from where places without a face lie: about 0.35 there, 0.6 for sharp faces."""
        return (self.embeddings(photo, faces) - self.nobody).norm(dim=1)


def load_second_look(path: Path = EMBEDDED, device: str | torch.device = "cpu") -> SecondLook:
    """The embedded recogniser, and where it puts nobody.

    Raises FileNotFoundError if a file is missing and ValueError if it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing, and faces are not found without it; reinstall BFR Adapt")
    try:
        state, _ = load_tensors(path)
        nobody = state["nobody"].float()
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: does not say where nobody is ({reason_of(error)})") from None
    if nobody.shape != (NUMBERS,):
        raise ValueError(f"{path}: nobody is {tuple(nobody.shape)} numbers, not {NUMBERS}")
    return SecondLook(load_recogniser(device=device), nobody)
