"""Find the faces of a photo: the embedded networks, or RetinaFace where facexlib and its weights are installed."""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..files.photos import printable
from ..files.tensors import load_tensors, reason_of
from ..files.weights import search_folders
from .align import Face, invert, similarity, template, warp_region
from .landmarks import CROP, STRIDE, WINDOW, LandmarkNet, load_landmark_net, to_grey

RETINAFACE_FILE = "detection_Resnet50_Final.pth"
SCAN_PIXELS = 3_000_000  # the largest copy of the photo that is searched
MAX_ENLARGE = 1.5  # of small photos: faces from 35 pixels of crop width on are found
PROPOSAL_SCORE = 0.3  # what is looked at a second time
MAX_PROPOSALS = 400
BORDER = CROP // 2
WIDE, WIDE_CROP = 144, 80  # window that all views of a face are taken from, and the standard crop within
# Spread of the landmarks over the views, in eye distances, above which a face is doubted, and how much: chosen so that
# one in a hundred badly damaged portraits that no training has seen scores below 0.5.
SPREAD, DISAGREEMENT = 0.07, 30.0
MIRRORED = [1, 0, 2, 4, 3]
# Of a box from hair line to chin: width of the standard crop in box heights, and where in it the box's middle lies.
CROP_OVER_BOX, BOX_CENTRE = 1.65, 0.56
BOX_SCORE = 0.2  # the other detector has vouched for the face; what is asked here is whether it can be aligned
log = logging.getLogger(__name__)


class FaceDetector(Protocol):
    """Finds faces: photo (3, H, W) in [0, 1] -> faces, largest first."""

    name: str

    def __call__(self, photo: Tensor) -> list[Face]: ...


DETECTORS = ("auto", "embedded", "retinaface")
DETECTOR_TEXT = (
    "The network that finds the faces: auto takes RetinaFace if facexlib and its file are here, else the embedded one."
)
THRESHOLD_TEXT = "How sure the detector must be of a face, from 0 to 1."


def check_detector(kind: str, threshold: float) -> None:
    """Raise ValueError unless `kind` names a detector and `threshold` lies in [0, 1]."""
    if kind not in DETECTORS:
        raise ValueError(f'detector is "{kind}"; choose "auto", "embedded" or "retinaface"')
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; it must lie between 0 and 1")


def load_detector(
    kind: str = "auto", threshold: float = 0.5, device: str | torch.device = "cpu", weights: Path | None = None
) -> FaceDetector:
    """The detector `kind`: "embedded", "retinaface", or "auto", which is RetinaFace if it is installed.

    threshold: least score of a face, in [0, 1]. weights: folder with RetinaFace's file, looked in before the one
    that the environment variable BFR_WEIGHTS names and facexlib's own. Nothing is ever downloaded.
    Raises ValueError for another `kind` and FileNotFoundError if "retinaface" is not there.
    """
    check_detector(kind, threshold)
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
    """Places that look like a face in a scan of the whole photo, each looked at again from several sides."""

    name = "embedded"

    def __init__(self, net: LandmarkNet, threshold: float = 0.5) -> None:
        self.net, self.threshold = net, threshold

    @torch.inference_mode()
    def __call__(self, photo: Tensor) -> list[Face]:
        """photo: (3, H, W) in [0, 1]. Returns faces, largest first, landmarks as fine as the photo allows."""
        proposals = distinct(scan(self.net, photo), 0.15)[:MAX_PROPOSALS]
        aligned = refine(self.net, photo, proposals, ONE_VIEW)
        likely = distinct([face for face in aligned if face.score >= PROPOSAL_SCORE], 0.15)
        faces = [face for face in refine(self.net, photo, likely, VIEWS) if face.score >= self.threshold]
        return sorted(distinct(faces, 0.4), key=lambda face: -face.width)


def scan(net: LandmarkNet, photo: Tensor) -> list[Face]:
    """Every place of a (3, H, W) photo where the network sees a face, at sizes half an octave apart."""
    device = next(net.parameters()).device
    extent = np.array([photo.shape[-1], photo.shape[-2]])
    scale = min(MAX_ENLARGE, math.sqrt(SCAN_PIXELS / extent.prod()))
    largest = resized(photo[None].float(), scale) if scale < 1 else photo[None].float()
    largest = to_grey(largest)
    faces: list[Face] = []
    while True:
        level = resized(largest, scale * extent[0] / largest.shape[-1])
        actual = np.array([level.shape[-1], level.shape[-2]]) / extent
        # Half a cell of border, as a face may touch the photo's edge, and whole cells.
        pad = [max(WINDOW, math.ceil(n / STRIDE) * STRIDE + CROP) - n - BORDER for n in level.shape[:1:-1]]
        padded = F.pad(level.to(device), (BORDER, pad[0], BORDER, pad[1]), mode="replicate")
        logit, landmarks = (out[0] for out in net(padded))
        scores = torch.sigmoid(logit)
        rows, columns = torch.nonzero(scores > PROPOSAL_SCORE, as_tuple=True)
        centre = torch.stack([columns, rows], -1) * STRIDE + (CROP - 1) / 2 - BORDER
        points = (landmarks[rows, columns] + centre[:, None]).cpu().double().numpy()
        faces += [
            Face((p + 0.5) / actual - 0.5, s) for p, s in zip(points, scores[rows, columns].tolist(), strict=True)
        ]
        if min(level.shape[-2:]) < CROP:  # on the next one a face would be larger than the photo
            return faces
        scale /= math.sqrt(2)


def resized(image: Tensor, scale: float) -> Tensor:
    """(1, C, H, W) enlarged or, without aliasing, shrunk."""
    size = [max(1, round(n * scale)) for n in image.shape[-2:]]
    if size == list(image.shape[-2:]):
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=scale < 1, align_corners=False)


def refine(net: LandmarkNet, photo: Tensor, faces: list[Face], views: Tensor, batch: int = 32) -> list[Face]:
    """The same faces, read again from aligned windows of the full-size photo (3, H, W), in several views each.

    views: (V, 2, 3), see `view`. Landmarks are the mean over the views. A real face is seen at the same place in all of
    them: the score is the mean logit, raised or lowered by how well they agree.
    """
    refined: list[Face] = []
    half, count = WIDE / 2, len(views)
    mirrored = torch.linalg.det(views[:, :, :2].cpu()) < 0
    views = views.to(next(net.parameters()))
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        matrices = [similarity(face.landmarks, template(WIDE_CROP) + (WIDE - WIDE_CROP) / 2) for face in part]
        wide = to_grey(torch.stack([warp_region(photo, matrix, WIDE, WIDE) for matrix in matrices]).to(views))
        grid = F.affine_grid(views, [count, 1, WINDOW, WINDOW], align_corners=False).repeat(len(part), 1, 1, 1)
        windows = F.grid_sample(wide.repeat_interleave(count, 0), grid, padding_mode="border", align_corners=False)
        logit, landmarks = net(windows)
        points = landmarks[:, 1, 1].unflatten(0, (-1, count)) * (2 / WINDOW)  # from the middle, half a side being 1
        points = points @ views[:, :, :2].mT + views[:, None, :, 2]
        points = points.cpu()
        points = torch.where(mirrored[:, None, None], points[:, :, MIRRORED], points)
        points = ((points + 1) * half - 0.5).double()
        mean = points.mean(1)
        spread = (points - mean[:, None]).norm(dim=-1).mean((1, 2)) / (mean[:, 0] - mean[:, 1]).norm(dim=-1).clamp_min(
            1
        )
        total = logit[:, 1, 1].unflatten(0, (-1, count)).mean(1).cpu().double()
        if count > 1:
            total = total + DISAGREEMENT * (SPREAD - spread)
        for matrix, found, score in zip(matrices, mean.numpy(), torch.sigmoid(total).tolist(), strict=True):
            inverse = invert(matrix)
            refined.append(Face(found @ inverse[:, :2].T + inverse[:, 2], score))
    return refined


def faces_in_boxes(net: LandmarkNet, photo: Tensor, boxes: Tensor, threshold: float = BOX_SCORE) -> list[Face]:
    """The face in each box that another detector drew, aligned by the embedded network; largest first.

    photo: (3, H, W) in [0, 1]. boxes: (N, 4) left, top, right, bottom in photo pixels, from hair line to chin.
    A box in which no face of this score can be aligned gives none.
    """
    guesses = []
    for left, top, right, bottom in boxes.tolist():
        if right > left and bottom > top:
            side = CROP_OVER_BOX * (bottom - top)
            x, y = (left + right) / 2 - side / 2, (top + bottom) / 2 - side * BOX_CENTRE
            guesses.append(Face(template(1000) * (side / 1000) + (x, y)))
    aligned = refine(net, photo, refine(net, photo, guesses, ONE_VIEW), VIEWS)
    return sorted((face for face in aligned if face.score >= threshold), key=lambda face: -face.width)


def view(zoom: float = 1.0, degrees: float = 0.0, shift: float = 0.0, mirror: bool = False) -> list[list[float]]:
    """A (2, 3) map from the network's window to the wide one around it, both being [-1, 1] from edge to edge."""
    scale = WINDOW / CROP * WIDE_CROP / WIDE / zoom
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    flip = -1 if mirror else 1
    return [[flip * c, -s, shift], [flip * s, c, -shift]]


ONE_VIEW = torch.tensor([view()])
VIEWS = torch.tensor(
    [
        view(),
        view(mirror=True),
        view(0.88, 6, 0.05),
        view(1.12, -6, 0.05, mirror=True),
        view(0.88, -6, -0.05, mirror=True),
        view(1.12, 6, -0.05),
    ]
)


def distinct(faces: list[Face], distance: float) -> list[Face]:
    """One face for each place, the surest: others less than `distance` crop widths away are dropped. Surest first."""
    faces = sorted(faces, key=lambda face: -face.score)
    centres = np.array([face.landmarks.mean(0) for face in faces]).reshape(-1, 2)
    widths = np.array([face.width for face in faces])
    kept: list[int] = []
    for i in range(len(faces)):
        apart = np.linalg.norm(centres[kept] - centres[i], axis=1)
        if not np.any(apart < distance * np.maximum(widths[kept], widths[i])):
            kept.append(i)
    return [faces[i] for i in kept]


# ---------------------------------------------------------------- RetinaFace


def retinaface_folders(weights: Path | None = None) -> list[Path]:
    """Where RetinaFace's file is looked for, in this order."""
    folders = [Path(weights)] if weights else []
    folders += search_folders()
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
            state, _ = load_tensors(path)
            self.net = RetinaFace("resnet50", device=torch.device(device))
            self.net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        except (ValueError, RuntimeError) as error:  # damaged, refused, or of other shapes: one thing to the user
            raise ValueError(
                f"{printable(path)}: not RetinaFace weights ({reason_of(error)}); get the file again"
            ) from None
        self.net = self.net.to(device).eval().requires_grad_(False)
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
