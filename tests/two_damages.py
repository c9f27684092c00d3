"""Faces with one of two damages, and a made-up verdict: an adaptation to noise is good, one to blur is not."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bfr_core.adaptation.verdict import Judgement
from bfr_core.damage.synthetic import degrade
from bfr_core.files.photos import write_image

NOISY, BLURRED = 18, 16


def put(folder: Path, kind: str, count: int, seed: int) -> Path:
    """So many 32 x 32 faces with this damage into `folder`, which is returned."""
    generator = torch.Generator().manual_seed(seed)
    faces = F.interpolate(torch.rand(count, 3, 4, 4, generator=generator), (32, 32), mode="bilinear")
    for i, face in enumerate(degrade(faces, kind, torch.Generator().manual_seed(seed)).lq):
        write_image(folder / f"{kind} {i}.png", face)
    return folder


def judged(base: object, tuned: object, pairs: list[tuple[Tensor, Tensor]], *_: object) -> Judgement:
    """In place of `adaptation.judged_on_faces`."""
    noisy = pairs[0][0].diff(dim=-1).abs().mean() > 0.04
    return Judgement("adopt", "better") if noisy else Judgement("keep_base", "worse")
