"""Are faces found, and nothing else? Measured on photographs that no training has seen.

    python benchmarks/detection.py --data DIR [--only photos small large frames turned] [--threads 2] [--out FILE]

DIR holds portraits/, diverse/, portraits_recent/ and photos/, and for other --sets faces_t2i/, faces256/ and historic/;
of the sets that training uses, only the held-out part is measured. The photographs are shown in these ways:

photos  each photograph as it is: faces found, and false faces for 100 photographs;
small   the same, shrunk until the crop of the face is 40 pixels wide;
large   canvases of 12, 24, 48 and 100 megapixels: photographs scattered over a cloudy background, with crops of 40
        pixels, and the Solvay photograph of 1927 enlarged threefold; seconds, and how much the process grew;
frames  standard crops of 128 pixels, which the face fills: as if given without --aligned;
turned  every ninth photograph, turned by 90, 180 and 270 degrees.

A face is found if the middle of its landmarks is less than 0.2 crop widths off, its crop at most 1.4 times too large or
too small, and it is turned at most 30 degrees away from the truth. What is found elsewhere is false. Intervals are
Wilson's, 95 %. A second person in the background of a photograph would count as false; the photographs were looked
through for such by eye.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.align import Face, crop_face, similarity, template
from bfr_core.faces.detect import FaceDetector, load_detector
from bfr_core.files.photos import read_image
from bfr_core.metrics.intervals import wilson_interval

SMALLEST = 40  # width of the crop, pixels of the photo, from which on faces are promised to be found
MAIN = ("portraits", "diverse", "portraits_recent")
OTHERS = ("faces_t2i", "faces256", "historic/clean", "historic/damaged")
MEGAPIXELS = {12: (4000, 3000), 24: (6000, 4000), 48: (8000, 6000), 100: (11600, 8650)}
SCATTERED = 60  # photographs on each canvas
ENLARGED = 3  # times, of the Solvay photograph
# Middle of each face of the Solvay photograph and width of its head, in pixels, read off by eye.
SOLVAY = np.array([
    [82, 175, 51], [124, 219, 46], [200, 202, 56], [229, 57, 52], [263, 232, 54], [324, 86, 42],
    [337, 181, 48], [390, 113, 45], [399, 226, 46], [484, 181, 55], [502, 108, 47], [548, 232, 57],
    [621, 117, 47], [642, 171, 43], [721, 93, 43], [724, 221, 50], [760, 176, 48], [835, 97, 50],
    [842, 223, 56], [880, 185, 52], [939, 94, 51], [955, 225, 56], [1027, 188, 50], [1032, 90, 38],
    [1105, 50, 46], [1105, 229, 57], [1159, 194, 50], [1164, 91, 44], [1207, 247, 49],
], float)  # fmt: skip
log = logging.getLogger("detection")


@dataclass
class Count:
    """Over `photos` photographs with `faces` faces: how many were found, how many others, and which.

    errors: of the found ones, mean distance of the landmarks in eye distances.
    """

    faces: int = 0
    found: int = 0
    photos: int = 0
    false: int = 0
    missed: list[str] = field(default_factory=list)
    false_ones: list[str] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, name: str, seen: list[Face], truth: list[np.ndarray]) -> None:
        """One photograph: what was seen in it, and the landmarks (5, 2) of each of its faces."""
        left = list(seen)
        for points in truth:
            match = next((face for face in left if agrees(face, points)), None)
            if match is None:
                self.missed.append(name)
            else:
                left = [face for face in left if face is not match]
                off = np.linalg.norm(match.landmarks - points, axis=1).mean()
                self.errors.append(round(float(off / np.linalg.norm(points[0] - points[1])), 4))
        self.faces += len(truth)
        self.found = self.faces - len(self.missed)
        self.photos += 1
        self.false += len(left)
        for face in left:
            x, y = face.landmarks.mean(0)
            self.false_ones.append(f"{name} at {x:.0f}, {y:.0f}, {face.width:.0f} wide, score {face.score:.2f}")

    def __add__(self, other: Count) -> Count:
        return Count(**{key: value + getattr(other, key) for key, value in vars(self).items()})


def agrees(face: Face, points: np.ndarray) -> bool:
    """Whether a face that was found is the one with these landmarks."""
    move = similarity(points, face.landmarks)
    size = abs(math.log(math.hypot(move[0, 0], move[1, 0])))
    turn = abs(math.degrees(math.atan2(move[1, 0], move[0, 0])))
    off = np.linalg.norm(face.landmarks.mean(0) - points.mean(0)) / Face(points).width
    return bool(off < 0.2 and size < math.log(1.4) and turn < 30)


# ---------------------------------------------------------------- photographs


def photographs(data: Path, name: str) -> list[tuple[str, Path, np.ndarray]]:
    """Those of a set that no training may see: name, file, landmarks."""
    folder = data / name
    entries = data / name.split("/")[0] / "landmarks.json"
    every = {key: np.array(value["landmarks"], float) for key, value in json.loads(entries.read_text()).items()}
    if "/" in name:
        prefix = name.split("/")[1] + "/"
        every = {key.removeprefix(prefix): value for key, value in every.items() if key.startswith(prefix)}
    step = {"portraits": 5, "faces_t2i": 10, "faces256": 10, "historic/clean": 10}.get(name, 1)
    return [(f"{name}/{key}", folder / key, every[key]) for key in sorted(every)[::step]]


def resized(photo: Tensor, points: np.ndarray, scale: float) -> tuple[Tensor, np.ndarray]:
    """A photo (3, H, W) at another size, and its landmarks."""
    size = [max(1, round(n * scale)) for n in photo.shape[-2:]]
    actual = np.array([size[1] / photo.shape[-1], size[0] / photo.shape[-2]])
    other = F.interpolate(photo[None], size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
    return other, (points + 0.5) * actual - 0.5


def turned(photo: Tensor, points: np.ndarray, quarters: int) -> tuple[Tensor, np.ndarray]:
    """A photo turned anticlockwise, and its landmarks."""
    for _ in range(quarters):
        points = np.stack([points[:, 1], photo.shape[-1] - 1 - points[:, 0]], 1)
        photo = photo.rot90(1, (1, 2))
    return photo, points


def clouds(width: int, height: int) -> Tensor:
    """A background (3, height, width) in [0, 1] without faces: soft and finer spots, never flat."""
    rng = torch.Generator().manual_seed(0)
    canvas = torch.full((1, 1, height, width), 0.45)
    for cell, strength in ((1500, 0.12), (300, 0.08), (60, 0.05), (12, 0.03)):
        coarse = torch.randn(1, 1, height // cell + 2, width // cell + 2, generator=rng)
        canvas += strength * F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return canvas[0].clamp_(0, 1).expand(3, -1, -1).clone()


def scattered(canvas: Tensor, photos: list[tuple[Tensor, np.ndarray]]) -> list[np.ndarray]:
    """Sets the photos into the cells of a grid over the canvas; returns their landmarks there."""
    height, width = canvas.shape[-2:]
    columns = math.ceil(math.sqrt(len(photos) * width / height))
    rows = math.ceil(len(photos) / columns)
    truth = []
    for i, (photo, points) in enumerate(photos):
        left = (i % columns) * width // columns + (37 * i) % 90
        top = (i // columns) * height // rows + (53 * i) % 90
        canvas[:, top : top + photo.shape[-2], left : left + photo.shape[-1]] = photo
        truth.append(points + np.array([left, top]))
    return truth


def solvay_count(seen: list[Face], scale: float, corner: tuple[int, int]) -> tuple[int, int]:
    """How many of the 29 faces were found, and how many others."""
    found, false = set(), 0
    for face in seen:
        middle = (face.landmarks.mean(0) - corner) / scale
        off = np.linalg.norm(SOLVAY[:, :2] - middle, axis=1) / SOLVAY[:, 2]
        nearest = int(off.argmin())
        if off[nearest] < 0.35 and 1 < face.width / scale / SOLVAY[nearest, 2] < 2.6:
            found.add(nearest)
        else:
            false += 1
    return len(found), false


# ---------------------------------------------------------------- what is measured


def one_by_one(
    detector: FaceDetector, data: Path, name: str, kind: str
) -> Iterator[tuple[str, list[Face], list[np.ndarray]]]:
    """Name, faces seen and true landmarks of each photograph of a set, shown in one of the ways of this module."""
    for i, (label, file, points) in enumerate(photographs(data, name)):
        photo = read_image(file)
        width = Face(points).width
        if kind == "frames":
            points = points.copy()
            crop = crop_face(photo, Face(points), 128).clamp(0, 1)
            move = similarity(points, template(128))
            yield label, detector(crop), [points @ move[:, :2].T + move[:, 2]]
        elif kind == "turned" and i % 9 == 0:
            for quarters in (1, 2, 3):
                other, found = turned(photo, points, quarters)
                yield f"{label} turned by {90 * quarters}", detector(other), [found]
        elif kind == "small":
            other, found = resized(photo, points, min(1.0, SMALLEST / width))
            yield label, detector(other), [found]
        elif kind == "photos":
            yield label, detector(photo), [points] if width >= SMALLEST else []


def over_sets(detector: FaceDetector, data: Path, kind: str, sets: tuple[str, ...]) -> dict[str, Count]:
    counts = {}
    for name in sets:
        if not (data / name).is_dir():
            continue
        counts[name] = Count()
        for label, seen, truth in one_by_one(detector, data, name, kind):
            counts[name].add(label, seen, truth)
        log.info(
            "%s, %s: %d of %d found, %d false", kind, name, counts[name].found, counts[name].faces, counts[name].false
        )
    return counts


class Growth:
    """Most resident memory while the block runs, less that before it, in MB; 0 where /proc does not tell."""

    def __enter__(self) -> Growth:
        self.before = self.most = self.resident()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, self.resident())

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()
        self.megabytes = round((self.most - self.before) / 1e6)

    @staticmethod
    def resident() -> int:
        status = Path("/proc/self/statm")
        return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def large(detector: FaceDetector, data: Path) -> dict[str, dict[str, float]]:
    """Faces found, false ones, seconds on the clock and of computing, and growth, for each canvas."""
    every = [entry for name in MAIN for entry in photographs(data, name)]
    chosen = every[:: math.ceil(len(every) / SCATTERED)]
    small = [resized(photo, points, min(1.0, SMALLEST / Face(points).width)) for photo, points in
             ((read_image(file), points) for _, file, points in chosen)]  # fmt: skip
    solvay = read_image(data / "photos" / "solvay_conference_1927.png")
    found, false = solvay_count(detector(solvay), 1, (0, 0))
    rows: dict[str, dict[str, float]] = {"Solvay as it is": {"faces": len(SOLVAY), "found": found, "false": false}}
    for megapixels, (width, height) in MEGAPIXELS.items():
        for what in ("scattered", "Solvay"):
            canvas = clouds(width, height)
            if what == "scattered":
                truth = scattered(canvas, small)
            elif width < ENLARGED * solvay.shape[-1]:
                continue
            else:
                big, _ = resized(solvay, np.zeros((1, 2)), ENLARGED)
                corner = ((width - big.shape[-1]) // 2, (height - big.shape[-2]) // 2)
                canvas[:, corner[1] : corner[1] + big.shape[-2], corner[0] : corner[0] + big.shape[-1]] = big
            with Growth() as growth:
                clock, computing = time.perf_counter(), time.process_time()
                seen = detector(canvas)
                seconds, busy = time.perf_counter() - clock, time.process_time() - computing
            if what == "scattered":
                count = Count()
                count.add(what, seen, truth)
                faces, found, false = count.faces, count.found, count.false
            else:
                faces, (found, false) = len(SOLVAY), solvay_count(seen, ENLARGED, corner)
            row = {"faces": faces, "found": found, "false": false, "seconds": round(seconds, 1)}
            rows[f"{what} on {megapixels} megapixels"] = row | {
                "computing_seconds": round(busy, 1), "grew_megabytes": growth.megabytes
            }  # fmt: skip
            log.info("%s on %d megapixels: %s", what, megapixels, rows[f"{what} on {megapixels} megapixels"])
            del canvas
    return rows


# ---------------------------------------------------------------- tables


def share(part: int, total: int) -> str:
    """A share with its Wilson interval, in percent."""
    interval = wilson_interval(part, total)
    return f"{100 * interval.mean:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def count_rows(kind: str, counts: dict[str, Count]) -> list[str]:
    counts = {name: count for name, count in counts.items() if count.photos}
    together = sum((counts[name] for name in MAIN if name in counts), Count())
    rows = []
    for name, count in {"**together**": together, **counts}.items():
        if count.photos:
            false_photos = len({line.split(" at ")[0] for line in count.false_ones})
            error = f"{100 * float(np.mean(count.errors)):.1f} %" if count.errors else "-"
            found = f"{count.found} of {count.faces}: {share(count.found, count.faces)}" if count.faces else "-"
            false = f"{count.false} on {false_photos} of {count.photos}: {share(false_photos, count.photos)}"
            rows.append(f"| {kind} | {name} | {found} | {error} | {false} |")
    return rows


def tables(result: dict) -> str:
    """What was measured, as Markdown."""
    lines = [
        "| photographs | set | found | error, eye distances | photographs with false faces |",
        "|---|---|---|---|---|",
    ]
    for kind, counts in result["counts"].items():
        lines += count_rows(kind, {name: Count(**count) for name, count in counts.items()})
    if result.get("large"):
        lines += [
            "",
            "| canvas | found | false | seconds | seconds of computing | grew by, MB |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in result["large"].items():
            cells = [f"{row['found']} of {row['faces']}", row["false"]]
            cells += [row.get(key, "-") for key in ("seconds", "computing_seconds", "grew_megabytes")]
            lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("photos", "small", "frames", "turned")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=(*kinds, "large"), default=[*kinds, "large"])
    parser.add_argument("--sets", nargs="+", choices=(*MAIN, *OTHERS), default=MAIN)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--out", type=Path, help="JSON file of the figures; what it holds already is kept and printed, too"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("bfr_core").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    detector = load_detector("embedded")
    result: dict = {"threads": args.threads, "counts": {}}
    if args.out and args.out.is_file():
        result = json.loads(args.out.read_text())
    for kind in kinds:
        if kind in args.only:
            counts = over_sets(detector, args.data, kind, tuple(args.sets))
            measured = {name: asdict(count) for name, count in counts.items()}
            result["counts"][kind] = result["counts"].get(kind, {}) | measured
    if "large" in args.only:
        result["large"] = large(detector, args.data)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
