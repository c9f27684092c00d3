"""Which pixels of a standard crop are the face: facexlib's ParseNet, built directly and loaded through our loader."""

from __future__ import annotations

import torch
from torch import Tensor

from ..files.tensors import load_tensors, reason_of
from ..files.weights import resolve
from ..pixels import gaussian_blur, resized

FILE = "parsing_parsenet.pth"
SIZE = 512  # of the crops it was trained on
NOT_FACE = (0, 14, 16, 17, 18)  # background, hat, necklace, neck, cloth, among CelebAMask-HQ's 19 classes
SOFT = 11  # deviation in pixels of 512 by which the mask's rim is blurred


class FaceParser:
    """Masks a face, hair and ears included. Raises FileNotFoundError or ValueError if its file cannot be used."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from facexlib.parsing.parsenet import ParseNet

        path = resolve(FILE)
        state, _ = load_tensors(path)
        self.net = ParseNet(SIZE, SIZE, parsing_ch=19)
        try:
            self.net.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path.name}: not ParseNet weights ({reason_of(error)})") from None
        self.net = self.net.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, crop: Tensor) -> Tensor:
        """crop: (3, S, S) RGB in [0, 1]. Returns (1, S, S) in [0, 1], 1 on the face, soft at its rim."""
        image = resized(crop[None].to(self.device), SIZE, "bilinear")
        classes = self.net(image * 2 - 1)[0].argmax(1, keepdim=True).cpu()
        face = ~torch.isin(classes, torch.tensor(NOT_FACE))
        mask = gaussian_blur(face.float(), SOFT, edges="replicate")
        return resized(mask, crop.shape[-2:], "area")[0]
