"""Find the faces of a photo: the embedded networks, or RetinaFace where facexlib and its weights are installed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import where_all_works
from ..files.photos import printable
from ..files.tensors import load_tensors, reason_of
from ..files.weights import search_folders
from ..pixels import luma, resized, sampled_within
from .align import Face, invert, part_seen, similarity, similarity_scale, template, warp
from .landmarks import CROP, SCAN_CROP, WINDOW, LandmarkNet, ScanNet, load_landmark_net, load_scan_net
from .second_look import SecondLook, load_second_look

RETINAFACE_FILE = "detection_Resnet50_Final.pth"
RETINAFACE_PACKAGES = ("facexlib", "cv2", "torchvision")  # it imports them
SMALLEST = 40  # width of the crop, in photo pixels, from which faces are promised to be found; many narrower ones are
SCAN_SCALE = SCAN_CROP / SMALLEST  # scale of the photo in its finest scan
LEVELS = 4  # sizes, half an octave apart, at which one copy of the photo is scanned; the next copy is a quarter as wide
TILE, RIM = 768, 96  # pixels of such a copy that are scanned at once, and how many around them are seen with them
LARGEST = 1.6  # widest crop found, in photo widths or heights, whichever is less
PROPOSAL_SCORE = 0.3  # of the scanning network, from which a place is examined again
LIKELY_SCORE = 0.3  # from which a place is examined a third time, in several views
MAX_PROPOSALS, PROPOSALS_PER_MEGAPIXEL = 400, 30  # the larger number counts
TURNED_SCORE = 0.7  # least score of a face in a photo that is turned: three more looks are three more chances to err
STRIP_ROWS = 512  # of the photo that are shrunk at once
WIDE, WIDE_CROP = 144, 80  # window that all views of a face are taken from, and the standard crop within
EVEN = 1.7  # sum of both networks' mean logits at which a face scores 0.5: chosen on faces kept for the constants
DOUBTFUL = (0.1, 0.95)  # scores between which the recogniser is asked as well; others it could not turn
# How the second look moves a score's logit: WEIGHT for each unit of distance from nobody, none at AWAY. Chosen on faces
# kept for the constants.
WEIGHT, AWAY = 12.0, 0.49
MIRRORED = [1, 0, 2, 4, 3]
# Of a box from hair line to chin: width of the standard crop in box heights, and where in it the box's middle lies.
CROP_OVER_BOX, BOX_CENTRE = 1.65, 0.56
BOX_SCORE = 0.2  # low, because the other detector has found the face already; it must only be alignable
log = logging.getLogger(__name__)


class FaceDetector(Protocol):
    """Finds faces: photo (3, H, W) in [0, 1] -> faces, largest first."""

    name: str

    def __call__(self, photo: Tensor) -> list[Face]: ...


DETECTORS = ("auto", "embedded", "retinaface")
DETECTOR_TEXT = (
    "The network that finds the faces: auto takes RetinaFace if facexlib and its file are there, else the embedded one."
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

    threshold: least score of a face, in [0, 1]. weights: folder with RetinaFace's file, looked in before
    `weights.search_folders` and facexlib's own. Nothing is ever downloaded.
    Raises ValueError for another `kind` or a threshold outside [0, 1], FileNotFoundError if "retinaface" is not there.
    """
    check_detector(kind, threshold)
    if kind != "embedded":
        found, missing = _retinaface_file(weights)
        if found:
            return RetinaFaceDetector(found, threshold, device)
        if kind == "retinaface":
            raise FileNotFoundError(f'detector "retinaface": {missing}; add it, or use the detector "embedded"')
        log.info("faces are found with the embedded detector: RetinaFace is not installed (%s)", missing)
    return load_embedded_detector(threshold, device)


def detector_named(kind: str) -> str:
    """The name of the detector that `load_detector` gives for `kind`, or would give if it were there."""
    if kind != "auto":
        return kind
    return RetinaFaceDetector.name if _retinaface_file()[0] else EmbeddedDetector.name


def _retinaface_file(weights: Path | None = None) -> tuple[Path | None, str]:
    """RetinaFace's file, or None and what is missing: the file, or a package that reads it."""
    folders = retinaface_folders(weights)
    found = next((f / RETINAFACE_FILE for f in folders if (f / RETINAFACE_FILE).is_file()), None)
    if found is None:
        return None, f"{RETINAFACE_FILE} is not in {', '.join(map(str, folders)) or 'any folder'}"
    if missing := next((name for name in RETINAFACE_PACKAGES if find_spec(name) is None), None):
        return None, f"the package {missing} is not installed"
    return found, ""


# ---------------------------------------------------------------- embedded


class EmbeddedDetector:
    """The detector that ships: finds the faces of a photo of any size, and their landmarks.

    One network scans the whole photo for places that look like a face. Another examines each place, shown at several
    angles and sizes, and the face recogniser decides where these two are in doubt.
    """

    name = "embedded"

    def __init__(self, net: LandmarkNet, scan_net: ScanNet, second_look: SecondLook, threshold: float = 0.5) -> None:
        self.net, self.scan_net, self.second_look, self.threshold = net, scan_net, second_look, threshold

    @torch.inference_mode()
    def __call__(self, photo: Tensor) -> list[Face]:
        """photo: (3, H, W) in [0, 1]. Returns faces, largest first, landmarks as fine as the photo allows.

        If no face stands upright, they are those of the photo turned by 90, 180 or 270 degrees, whichever shows the
        surest face.
        """
        copies = copies_of(photo)
        faces = self.search(copies, self.threshold)
        if not faces:
            turned = [self.search(copies, max(self.threshold, TURNED_SCORE), quarters) for quarters in (1, 2, 3)]
            faces = max(turned, key=lambda found: max((face.score for face in found), default=0.0))
        narrow = sum(face.width < 0.95 * SMALLEST for face in faces)  # measured to a few percent
        if narrow:
            log.info(
                "%d of %d faces are narrower than %d pixels, where others may be missed", narrow, len(faces), SMALLEST
            )
        return sorted(faces, key=lambda face: -face.width)

    def search(self, copies: list[Tensor], threshold: float, quarters: int = 0) -> list[Face]:
        """The faces of this score that stand upright when the photo is turned anticlockwise by this many quarters."""
        faces = looked_at_again(self.second_look, copies[0], self.candidates(copies, quarters))
        return distinct([face for face in faces if face.score >= threshold], 0.4)

    def candidates(self, copies: list[Tensor], quarters: int = 0) -> list[Face]:
        """What the face networks alone make of the photo: one face for each place, surest first, however doubtful."""
        proposals = scan(self.scan_net, copies, quarters)
        most = max(MAX_PROPOSALS, round(PROPOSALS_PER_MEGAPIXEL * copies[0][0].numel() / 1e6))
        aligned = refine(self.net, copies, proposals[:most], ONE_VIEW)
        likely = distinct([face for face in aligned if face.score >= LIKELY_SCORE], 0.15)
        return distinct(refine(self.net, copies, likely, VIEWS, self.scan_net), 0.4)


def load_embedded_detector(threshold: float = 0.5, device: str | torch.device = "cpu") -> EmbeddedDetector:
    """The detector of the networks that ship with the project.

    Raises FileNotFoundError if a file is missing and ValueError if it holds something else.
    """
    nets = load_landmark_net(device=device), load_scan_net(device=device)
    return EmbeddedDetector(*nets, load_second_look(device=device), threshold)


def looked_at_again(second_look: SecondLook, photo: Tensor, faces: list[Face]) -> list[Face]:
    """The same faces of a photo (3, H, W); the scores of doubtful ones say what the recogniser thinks of them, too."""
    doubtful = [face for face in faces if DOUBTFUL[0] <= face.score < DOUBTFUL[1]]
    distances = second_look.distances(photo, doubtful).double()
    logits = torch.logit(torch.tensor([face.score for face in doubtful], dtype=torch.float64))
    scores = torch.sigmoid(logits + WEIGHT * (distances - AWAY)).tolist()
    judged = [Face(face.landmarks, score) for face, score in zip(doubtful, scores, strict=True)]
    return [face for face in faces if not DOUBTFUL[0] <= face.score < DOUBTFUL[1]] + judged


def copies_of(photo: Tensor) -> list[Tensor]:
    """The photo (3, H, W), and grey copies (1, h, w) each a quarter as wide, down to where a face would fill them."""
    copies = [where_all_works(photo)]
    while min(copies[-1].shape[-2:]) * SCAN_SCALE / 2 ** (LEVELS / 2) * LARGEST >= SCAN_CROP:
        copies.append(quartered(copies[-1]))
    return copies


def quartered(picture: Tensor) -> Tensor:
    """A grey copy (1, H, W) of a picture (C, H, W): each pixel the mean of four by four."""
    strips = []
    for top in range(0, picture.shape[-2], STRIP_ROWS):
        strip = F.avg_pool2d(picture[:, top : top + STRIP_ROWS].float(), 4, ceil_mode=True)
        strips.append(luma(strip) if len(picture) == 3 else strip)
    return torch.cat(strips, 1)


def scan(net: ScanNet, copies: list[Tensor], quarters: int = 0) -> list[Face]:
    """Every place of a photo where the network sees a face, at sizes half an octave apart, surest first.

    copies: see `copies_of`. quarters: how often the photo is turned anticlockwise before it is scanned.
    Works in tiles: memory beyond that of the copies does not grow with the photo.
    """
    faces = []
    for step, picture in enumerate(copies):
        for box in tiles(picture.shape[-1], picture.shape[-2]):
            found = scan_tile(net, picture, box, quarters)
            faces += [Face((face.landmarks + 0.5) * 4**step - 0.5, face.score) for face in found]
    return distinct(faces, 0.15)


def tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of parts that cover a picture, all nearly of one size."""
    side = TILE / SCAN_SCALE
    columns, rows = (max(1, math.ceil(n / side - 0.25)) for n in (width, height))
    for row in range(rows):
        for column in range(columns):
            yield (
                column * width // columns, row * height // rows,
                (column + 1) * width // columns, (row + 1) * height // rows,
            )  # fmt: skip


def scan_tile(net: ScanNet, picture: Tensor, box: tuple[int, int, int, int], quarters: int) -> list[Face]:
    """The faces whose middle lies in this box of a picture (C, H, W), at `LEVELS` sizes; whole at its edge."""
    extent = (picture.shape[-1], picture.shape[-2])
    rim = math.ceil(RIM / SCAN_SCALE)
    left, top = max(0, box[0] - rim), max(0, box[1] - rim)
    right, bottom = min(extent[0], box[2] + rim), min(extent[1], box[3] + rim)
    seen = picture[None, :, top:bottom, left:right].float()
    size, corner = np.array([right - left, bottom - top]), np.array([left, top])
    # A face in the middle between two tiles may be seen a little to either side of the seam.
    low = [-math.inf if box[i] == 0 else box[i] - SMALLEST / 4 for i in range(2)]
    high = [math.inf if box[i + 2] == extent[i] else box[i + 2] + SMALLEST / 4 for i in range(2)]
    level = scaled(luma(seen) if len(picture) == 3 else seen, SCAN_SCALE)
    faces: list[Face] = []
    for step in range(LEVELS):
        scale = SCAN_SCALE / 2 ** (step / 2)
        if step and min(extent) * scale * LARGEST < net.crop:
            break
        level = scaled(level, scale * size[0] / level.shape[-1])
        shown = level.rot90(quarters, (2, 3))
        actual = np.array([level.shape[-1], level.shape[-2]]) / size
        for points, score in proposals_in(net, shown):
            points = turned_back(points, shown.shape[-1], shown.shape[-2], quarters)
            points = (points + 0.5) / actual - 0.5 + corner
            if np.all((points.mean(0) >= low) & (points.mean(0) <= high)):
                faces.append(Face(points, score))
    return distinct(faces, 0.15)


def turned_back(points: np.ndarray, width: int, height: int, quarters: int) -> np.ndarray:
    """Points (N, 2) of a picture of this size as they lie when it is turned clockwise by `quarters`."""
    for _ in range(quarters):
        points = np.stack([height - 1 - points[:, 1], points[:, 0]], 1)
        width, height = height, width
    return points


def proposals_in(net: ScanNet, level: Tensor) -> list[tuple[np.ndarray, float]]:
    """Landmarks (5, 2) and score of every cell of a grey picture (1, 1, H, W) in which the network sees a face."""
    # Half a cell of border, as a face may touch the photo's edge, and whole cells.
    border, step, device = net.crop // 2, net.stride, next(net.parameters()).device
    pad = [max(net.crop * 3 // 2, math.ceil(n / step) * step + net.crop) - n - border for n in level.shape[:1:-1]]
    padded = F.pad(level.to(device), (border, pad[0], border, pad[1]), mode="replicate")
    logit, landmarks = (out[0] for out in net(padded))
    scores = torch.sigmoid(logit)
    rows, columns = torch.nonzero(scores > PROPOSAL_SCORE, as_tuple=True)
    centre = torch.stack([columns, rows], -1) * step + (net.crop - 1) / 2 - border
    points = (landmarks[rows, columns] + centre[:, None]).cpu().numpy().astype(np.float64)
    return list(zip(points, scores[rows, columns].tolist(), strict=True))


def scaled(image: Tensor, scale: float) -> Tensor:
    """`image` (1, C, H, W) enlarged or, without aliasing, shrunk by `scale`."""
    return resized(image, [max(1, round(n * scale)) for n in image.shape[-2:]], "bilinear")


def refine(
    net: LandmarkNet,
    copies: list[Tensor],
    faces: list[Face],
    views: Tensor,
    second: ScanNet | None = None,
    batch: int = 32,
) -> list[Face]:
    """The same faces, read again from aligned windows of the photo, in several views each.

    copies: see `copies_of`. views: (V, 2, 3), see `view`. Landmarks and logit are the means over the views. second: a
    network that scores each view, too. (How well the landmarks of the views agree says less than it seems: those of
    turned faces differ more than those of many a necktie.)
    """
    refined: list[Face] = []
    half, count = WIDE / 2, len(views)
    mirrored = torch.linalg.det(views[:, :, :2].cpu()) < 0
    views = views.to(next(net.parameters()))
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        matrices = [similarity(face.landmarks, template(WIDE_CROP) + (WIDE - WIDE_CROP) / 2) for face in part]
        wide = torch.stack([wide_window(copies, matrix) for matrix in matrices]).to(views)
        grid = F.affine_grid(views, [count, 1, WINDOW, WINDOW], align_corners=False).repeat(len(part), 1, 1, 1)
        windows = sampled_within(wide.repeat_interleave(count, 0), grid)
        logit, landmarks = net(windows)
        points = landmarks[:, 1, 1].unflatten(0, (-1, count)) * (2 / WINDOW)  # from the middle, half a side being 1
        points = points @ views[:, :, :2].mT + views[:, None, :, 2]
        points = points.cpu()
        points = torch.where(mirrored[:, None, None], points[:, :, MIRRORED], points)
        points = ((points + 1) * half - 0.5).double()
        mean = points.mean(1)
        total = logit[:, 1, 1].unflatten(0, (-1, count)).mean(1).cpu().double()
        if second is not None:
            opinion, _ = second(F.avg_pool2d(windows, CROP // SCAN_CROP))
            total = total + opinion[:, 1, 1].unflatten(0, (-1, count)).mean(1).cpu().double() - EVEN
        for matrix, found, score in zip(matrices, mean.numpy(), torch.sigmoid(total).tolist(), strict=True):
            inverse = invert(matrix)
            refined.append(Face(found @ inverse[:, :2].T + inverse[:, 2], score))
    return refined


def wide_window(copies: list[Tensor], matrix: np.ndarray) -> Tensor:
    """What a map from the photo's pixels to the wide window's shows, in grey: (1, 144, 144) in [0, 1].

    It is taken from the smallest copy of the photo that still has twice the window's detail.
    """
    step = min(int(math.log(max(1.0, 0.5 / similarity_scale(matrix)), 4)), len(copies) - 1)
    linear = matrix[:, :2] * 4**step
    middle = matrix[:, 2] + matrix[:, :2].sum(1) * (4**step - 1) / 2  # of the copy's first pixel
    part, local = part_seen(copies[step], np.concatenate([linear, middle[:, None]], 1), WIDE, WIDE)
    grey = luma(part.float()) if len(part) == 3 else part
    return warp(grey[None], local, WIDE, WIDE, "border")[0]


def faces_in_boxes(net: LandmarkNet, photo: Tensor, boxes: Tensor, threshold: float = BOX_SCORE) -> list[Face | None]:
    """The face in each box that another detector drew, aligned by the embedded network; None for a box in which no
    face of this score can be aligned.

    photo: (3, H, W) in [0, 1]. boxes: (N, 4) left, top, right, bottom in photo pixels, from hair line to chin.
    """
    guesses = {}
    for i, (left, top, right, bottom) in enumerate(boxes.tolist()):
        if right > left and bottom > top:
            side = CROP_OVER_BOX * (bottom - top)
            x, y = (left + right) / 2 - side / 2, (top + bottom) / 2 - side * BOX_CENTRE
            guesses[i] = Face(template(1000) * (side / 1000) + (x, y))
    copies = copies_of(photo)
    aligned = refine(net, copies, refine(net, copies, list(guesses.values()), ONE_VIEW), VIEWS)
    found = {i: face for i, face in zip(guesses, aligned, strict=True) if face.score >= threshold}
    return [found.get(i) for i in range(len(boxes))]


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
        small = resized(photo[None].float(), size, "bilinear")[0]
        bgr = (small.flip(0).permute(1, 2, 0) * 255).cpu().numpy()  # facexlib works in BGR, 0 to 255
        actual = np.array([size[1] / width, size[0] / height])
        faces = []
        for row in self.net.detect_faces(bgr, conf_threshold=self.threshold):
            points = row[5:].reshape(5, 2).astype(np.float64)
            faces.append(Face((points + 0.5) / actual - 0.5, float(row[4])))
        return sorted(faces, key=lambda face: -face.width)
