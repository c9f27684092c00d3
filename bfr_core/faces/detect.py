"""Find the faces of a photo: the embedded networks, or RetinaFace where facexlib and its weights are installed."""

from __future__ import annotations

import logging
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .align import Face, similarity, template, warp_region
from .landmarks import CROP, MARGIN, STRIDE, WINDOW, LandmarkNet, load_landmark_net, to_grey

RETINAFACE_FILE = "detection_Resnet50_Final.pth"
SCAN_PIXELS = 3_000_000  # the largest copy of the photo that is searched
CASCADE_PIXELS = 700_000
PROPOSAL_SCORE = 0.25  # what is looked at a second time
MAX_PROPOSALS = 1000
log = logging.getLogger(__name__)


class FaceDetector(Protocol):
    """Finds faces: photo (3, H, W) in [0, 1] -> faces, largest first."""

    name: str

    def __call__(self, photo: Tensor) -> list[Face]: ...


def load_detector(
    kind: str = "auto", threshold: float = 0.5, device: str | torch.device = "cpu", weights: Path | None = None
) -> FaceDetector:
    """The detector `kind`: "embedded", "retinaface", or "auto", which is RetinaFace if it is installed.

    threshold: least score of a face, in [0, 1]. weights: folder with RetinaFace's file, looked in before the folder that
    the environment variable BFR_WEIGHTS names and facexlib's own. Nothing is ever downloaded.
    Raises ValueError for another `kind` and FileNotFoundError if "retinaface" is not there.
    """
    if kind not in ("auto", "embedded", "retinaface"):
        raise ValueError(f'detector is "{kind}"; choose "auto", "embedded" or "retinaface"')
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must lie between 0 and 1")
    if kind != "embedded":
        folders = retinaface_folders(weights)
        found = next((f / RETINAFACE_FILE for f in folders if (f / RETINAFACE_FILE).is_file()), None)
        if found and find_spec("facexlib"):
            return RetinaFaceDetector(found, threshold, device)
        if kind == "retinaface":
            places = ", ".join(map(str, folders)) or "no folder"
            missing = f"{RETINAFACE_FILE} is not in {places}" if not found else "the package facexlib is not installed"
            raise FileNotFoundError(f'detector "retinaface": {missing}; add it, or use the detector "embedded"')
        log.info("faces are found with the embedded detector: RetinaFace is not installed")
    return EmbeddedDetector(load_landmark_net(device=device), threshold)


# ---------------------------------------------------------------- embedded


class EmbeddedDetector:
    """Places that look like a face, from the network's own scan and scikit-image's cascade, checked by the network."""

    name = "embedded"

    def __init__(self, net: LandmarkNet, threshold: float = 0.5, *, scan: bool = True, cascade: bool = True) -> None:
        self.net, self.threshold, self.use_scan, self.use_cascade = net, threshold, scan, cascade

    @torch.inference_mode()
    def __call__(self, photo: Tensor) -> list[Face]:
        """photo: (3, H, W) in [0, 1]. Returns faces, largest first, landmarks as fine as the photo allows."""
        grey = to_grey(photo.to(next(self.net.parameters()).device))
        proposals = []
        if self.use_scan:
            proposals += scan(self.net, grey)
        if self.use_cascade:
            proposals += cascade(grey)
        proposals = distinct(proposals, 0.15)[:MAX_PROPOSALS]
        for _ in range(2):
            proposals = refine(self.net, grey, proposals)
        faces = distinct([face for face in proposals if face.score >= self.threshold], 0.4)
        return sorted(faces, key=lambda face: -face.width)


def shrink_to(grey: Tensor, scale: float) -> Tensor:
    """(1, H, W) resized by `scale` and padded on the right and below to whole cells, at least 96 pixels."""
    height, width = (max(1, round(n * scale)) for n in grey.shape[-2:])
    small = grey[None]
    if scale != 1:
        small = F.interpolate(small, (height, width), mode="bilinear", antialias=scale < 1, align_corners=False)
    pad = [max(WINDOW, math.ceil(n / STRIDE) * STRIDE) - n for n in (width, height)]
    return F.pad(small, (0, pad[0], 0, pad[1]), mode="replicate")


def scan(net: LandmarkNet, grey: Tensor) -> list[Face]:
    """Every place of a (1, H, W) photo where the network sees a face, at sizes half an octave apart."""
    height, width = grey.shape[-2:]
    border = CROP // 2  # a face may touch the edge of the photo
    scale = min(2.0, math.sqrt(SCAN_PIXELS / (height * width)))
    faces: list[Face] = []
    while True:
        level = F.pad(shrink_to(grey, scale), (border,) * 4, mode="replicate")
        logit, landmarks = (out[0] for out in net(level))
        rows, columns = torch.nonzero(torch.sigmoid(logit) > PROPOSAL_SCORE, as_tuple=True)
        centre = torch.stack([columns, rows], -1) * STRIDE + (CROP - 1) / 2
        points = (landmarks[rows, columns] + centre[:, None] - border).double().cpu().numpy()
        scores = torch.sigmoid(logit[rows, columns]).tolist()
        actual = np.array([max(1, round(width * scale)) / width, max(1, round(height * scale)) / height])
        faces += [Face((p + 0.5) / actual - 0.5, s) for p, s in zip(points, scores, strict=True)]
        if scale * min(height, width) < CROP:  # the next one would be for faces larger than the photo
            return faces
        scale /= math.sqrt(2)


def cascade(grey: Tensor) -> list[Face]:
    """The boxes of scikit-image's LBP cascade, as upright faces: on the photo and on a smoothed copy."""
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    height, width = grey.shape[-2:]
    scale = min(1.0, math.sqrt(CASCADE_PIXELS / (height * width)))
    small = F.interpolate(grey[None], (max(24, round(height * scale)), max(24, round(width * scale))), mode="bilinear", antialias=True)
    finder = Cascade(lbp_frontal_face_cascade_filename())
    faces = []
    for copy in (small, F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, 1)):
        pixels = (copy[0, 0].clamp(0, 1) * 255).byte().cpu().numpy()
        boxes = finder.detect_multi_scale(
            pixels, scale_factor=1.2, step_ratio=1, min_size=(24, 24), max_size=pixels.shape, min_neighbor_number=1
        )
        for box in boxes:
            side = 1.75 * box["width"]  # the standard crop is that much wider, and its middle a little higher
            centre = np.array([box["c"] + box["width"] / 2, box["r"] + box["width"] * 0.5])
            points = ((template(CROP) + 0.5) / CROP - 0.5) * side + centre
            faces.append(Face(points * [width / copy.shape[-1], height / copy.shape[-2]] - 0.5, 0.3))
    return faces


def refine(net: LandmarkNet, grey: Tensor, faces: list[Face], batch: int = 64) -> list[Face]:
    """The same faces with landmarks and scores read from aligned windows of the full-size photo (1, H, W)."""
    refined: list[Face] = []
    middle = (WINDOW - 1) / 2
    for start in range(0, len(faces), batch):
        matrices = [similarity(face.landmarks, template(CROP) + MARGIN) for face in faces[start : start + batch]]
        windows = torch.stack([warp_region(grey, matrix, WINDOW, WINDOW) for matrix in matrices])
        logit, landmarks = net(windows)
        points = (landmarks[:, 1, 1] + middle).double().cpu().numpy()
        scores = torch.sigmoid(logit[:, 1, 1]).tolist()
        for matrix, p, score in zip(matrices, points, scores, strict=True):
            refined.append(Face((p - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T, score))
    return refined


def distinct(faces: list[Face], distance: float) -> list[Face]:
    """One face for each place, the surest: others less than `distance` crop widths away are dropped. Surest first."""
    kept: list[Face] = []
    centres = np.zeros((0, 2))
    for face in sorted(faces, key=lambda face: -face.score):
        centre, width = face.landmarks.mean(0), face.width
        if not np.any(np.linalg.norm(centres - centre, axis=1) < distance * np.maximum(width, [k.width for k in kept])):
            kept.append(face)
            centres = np.concatenate([centres, centre[None]])
    return kept


# ---------------------------------------------------------------- RetinaFace


def retinaface_folders(weights: Path | None = None) -> list[Path]:
    """Where RetinaFace's file is looked for, in this order."""
    folders = [Path(weights)] if weights else []
    if os.environ.get("BFR_WEIGHTS"):
        folders.append(Path(os.environ["BFR_WEIGHTS"]))
    spec = find_spec("facexlib")
    if spec and spec.origin:
        folders.append(Path(spec.origin).parent / "weights")
    return folders


class RetinaFaceDetector:
    """facexlib's RetinaFace with weights read by us: facexlib's own loader downloads and unpickles."""

    name = "retinaface"
    max_side = 2048

    def __init__(self, path: Path, threshold: float = 0.5, device: str | torch.device = "cpu") -> None:
        from facexlib.detection.retinaface import RetinaFace

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.net = RetinaFace("resnet50", device=torch.device(device))
            self.net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        except Exception as error:  # a truncated zip, a refused pickle, other shapes: one thing to the user
            raise ValueError(f"{path}: not RetinaFace weights ({str(error).splitlines()[0]}); get the file again") from error
        self.net.requires_grad_(False)
        self.threshold = threshold

    @torch.inference_mode()
    def __call__(self, photo: Tensor) -> list[Face]:
        """photo: (3, H, W) in [0, 1]. Returns faces, largest first."""
        height, width = photo.shape[-2:]
        scale = min(1.0, self.max_side / max(height, width))
        size = [max(1, round(n * scale)) for n in (height, width)]
        small = F.interpolate(photo[None].float(), size, mode="bilinear", antialias=True, align_corners=False)[0]
        bgr = (small.flip(0).permute(1, 2, 0) * 255).cpu().numpy()  # facexlib works in BGR, 0 to 255
        actual = np.array([size[1] / width, size[0] / height])
        faces = []
        for row in self.net.detect_faces(bgr, conf_threshold=self.threshold):
            points = row[5:].reshape(5, 2).astype(np.float64)
            faces.append(Face((points + 0.5) / actual - 0.5, float(row[4])))
        return sorted(faces, key=lambda face: -face.width)
