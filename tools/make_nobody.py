"""Find where the embedded recogniser puts nobody (bfr_core/embedded/nobody.safetensors), on one CPU thread.

    python tools/make_nobody.py --portraits DIR --faces DIR DIR DIR [--count 900]

The folders are those of train_landmarks.py, and so is the split: pictures that were trained on are searched by the
face networks, in turn as they are, upside down, and damaged. What these take for a face, be it ever so doubtful, and is
none, is shown to the recogniser; nobody is the mean of its embeddings. The pictures kept for the choice of constants
are searched in the same three ways, and it is printed what is found of them, with and without the second look.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pack_faces import held_out
from torch import Tensor
from train_embedded import held_out_names  # puts the repository on sys.path
from train_landmarks import LICENCE, listed, split

from bfr_core.damage.synthetic import DAMAGES, degrade
from bfr_core.faces.align import Face
from bfr_core.faces.detect import EmbeddedDetector, copies_of, looked_at_again
from bfr_core.faces.landmarks import load_landmark_net, load_scan_net
from bfr_core.faces.recognise import NUMBERS, load_recogniser
from bfr_core.faces.second_look import EMBEDDED, SecondLook
from bfr_core.files.photos import read_image
from bfr_core.files.tensors import save_tensors

WAYS = ("as they are", "upside down", "damaged")
OFF, SMALLER = 0.3, 0.7  # what is so far from the face, in its crop widths, and so much narrower, is not the face
log = logging.getLogger("make_nobody")


@dataclass(frozen=True)
class Shown:
    """A picture (3, H, W), which of WAYS it is shown in, and the middle and the crop's width of its face."""

    picture: Tensor
    way: str
    middle: np.ndarray
    width: float

    def is_stray(self, face: Face) -> bool:
        """Whether this candidate is surely not the picture's face."""
        off = np.linalg.norm(face.landmarks.mean(0) - self.middle) / self.width
        return bool(off > OFF and face.width < SMALLER * self.width)

    def is_found(self, face: Face) -> bool:
        """Whether this candidate is the picture's face, which stands upright."""
        off = np.linalg.norm(face.landmarks.mean(0) - self.middle) / self.width
        return bool(self.way != "upside down" and off < 0.2 and 1 / 1.4 < face.width / self.width < 1.4)


def shown(file: Path, landmarks: np.ndarray, number: int, way: str) -> Shown:
    """A picture in one of WAYS. number: decides about the damage."""
    picture, middle = read_image(file), landmarks.mean(0)
    if way == "upside down":
        picture, middle = picture.flip(1), np.array([middle[0], picture.shape[1] - 1 - middle[1]])
    elif way == "damaged":
        kind = sorted(DAMAGES)[number % len(DAMAGES)]
        picture = degrade(picture[None], kind, torch.Generator().manual_seed(number)).lq[0]
    return Shown(picture, way, middle, Face(landmarks).width)


def files_of(portraits: Path, folders: list[Path], chosen: bool) -> list[tuple[Path, np.ndarray]]:
    """The pictures that are trained on, or, if `chosen`, those kept for constants, with their landmarks; shuffled."""
    files = []
    for folder in (portraits, *folders):
        landmarks = listed(folder)
        out = set(held_out_names(folder)) if folder == portraits else held_out(folder.name, list(landmarks))
        files += [(folder / name, landmarks[name]) for name in split(folder, out)[chosen]]
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    return files


def strays(detector: EmbeddedDetector, files: list[tuple[Path, np.ndarray]]) -> Iterator[tuple[Tensor, list[Face]]]:
    """Each picture, in turn in each of WAYS, and its candidates that are no face."""
    for number, (file, landmarks) in enumerate(files):
        one = shown(file, landmarks, number, WAYS[number % len(WAYS)])
        with torch.inference_mode():
            faces = detector.candidates(copies_of(one.picture))
        yield one.picture, [face for face in faces if one.is_stray(face)]


def figures(detector: EmbeddedDetector, files: list[tuple[Path, np.ndarray]], way: str) -> str:
    """What is found of these pictures by the face networks alone, and with the second look, at a threshold of 0.5."""
    found, false = np.zeros(2, int), np.zeros(2, int)
    for number, (file, landmarks) in enumerate(files):
        one = shown(file, landmarks, number, way)
        with torch.inference_mode():
            alone = detector.candidates(copies_of(one.picture))
            both = looked_at_again(detector.second_look, one.picture, alone)
        for i, faces in enumerate((alone, both)):
            sure = [face for face in faces if face.score >= 0.5]
            found[i] += any(map(one.is_found, sure))
            false[i] += sum(map(one.is_stray, sure))
    said = f"found {found[0]} alone, {found[1]} with the second look; false {false[0]} and {false[1]}"
    return f"of {len(files)} pictures {way}: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--faces", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=900, help="pictures that are searched (900)")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    recogniser = load_recogniser()
    unplaced = SecondLook(recogniser, torch.zeros(NUMBERS))
    detector = EmbeddedDetector(load_landmark_net(), load_scan_net(), unplaced)
    files = files_of(args.portraits, args.faces, chosen=False)[: args.count]
    embeddings = torch.cat([unplaced.embeddings(picture, faces) for picture, faces in strays(detector, files)])
    nobody = embeddings.mean(0)
    log.info("nobody: the mean of %d candidates in %d pictures", len(embeddings), len(files))
    metadata = {"licence": LICENCE, "made_by": "tools/make_nobody.py", "candidates": str(len(embeddings))}
    save_tensors(args.out, {"nobody": nobody}, metadata)
    detector.second_look = SecondLook(recogniser, nobody)
    for way in WAYS:
        log.info("%s", figures(detector, files_of(args.portraits, args.faces, chosen=True), way))


if __name__ == "__main__":
    main()
