"""ArcFace, an extra measure of `evaluate` where its file is present: facexlib's layers, loaded by our loader.

The terms of its file are not stated, so nothing else uses it; the recogniser that ships is in `recognise`.
Source: arXiv:1801.07698. Without its file this measure is left out.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import first_line
from ..files.tensors import load_tensors, reason_of
from ..files.weights import locate, resolve
from .align import similarity, template, warp

log = logging.getLogger(__name__)

FILE = "recognition_arcface_ir_se50.pth"
SIDE = 112
# Left eye, right eye, nose, left and right mouth corner in the 112 x 112 pictures that ArcFace was trained on.
TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
BATCH = 16


class Recogniser:
    """Maps faces to directions that are close for one person. Raises as `load_tensors` if its file is unfit."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from facexlib.recognition.arcface_arch import Backbone

        path = resolve(FILE)
        state, _ = load_tensors(path)
        self.net = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path.name}: not ArcFace IR-SE50 weights ({reason_of(error)})") from None
        self.net = self.net.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, faces: Tensor) -> Tensor:
        """Standard crops (B, 3, S, S) RGB in [0, 1] -> (B, 512) of length 1 on the CPU; mirror images are averaged."""
        matrix = similarity(template(faces.shape[-1]), TEMPLATE_112)
        found = []
        for some in faces.split(BATCH):
            image = warp(some, matrix, SIDE, SIDE).to(self.device) * 2 - 1
            found.append(F.normalize(self.net(image) + self.net(image.flip(-1))).cpu())
        return torch.cat(found)


def may_recognise() -> bool:
    """True where the recogniser's file is on this machine."""
    return locate(FILE) is not None


def find_recogniser(device: torch.device | str = "cpu") -> Recogniser | None:
    """The recogniser, or None, with a line in the log, where facexlib or the file of weights is missing or unfit."""
    if not may_recognise():
        log.info("identity is not measured: %s is not on this machine, see 'bfr weights list'", FILE)
        return None
    try:
        return Recogniser(device)
    except (ImportError, ValueError) as error:
        log.warning("identity is not measured: %s", first_line(error))
        return None


def likeness(directions: Tensor, others: Tensor) -> Tensor:
    """Cosine of the angle between directions: (B, 512) twice -> (B,), 1 for one picture, about 0 for two people."""
    return (directions * others).sum(1).clamp(-1, 1)
