"""Does a restored video flicker? Films made of still portraits, restored frame by frame and as a video.

    python benchmarks/video.py --shared DIR [--faces 6] [--frames 8] [--noise 0.01 0.03 0.08]

DIR holds portraits/, of which only faces of held_out.txt are taken. A film is one portrait at 135 x 165 pixels, each
frame of which has noise of its own, of this deviation, in whole numbers. The restorer and the detector are the embedded
ones. Printed is by how much the pasted face changes from frame to frame, root mean square over where the mask is above
a half, as a multiple of what the input changes by there: 1 is as still as the input. *grain* is as by default;
*no grain* has match_grain and keep_detail off, so that nothing of the input's own noise is put back. Portraits whose
face is left alone, because the photo is clean and sharper than the restorer, are not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.detect import load_detector
from bfr_core.files.photos import read_image
from bfr_core.pixels import resized
from bfr_core.restoration.restore import RestoreConfig, restore_photo
from bfr_core.restoration.video import restore_frames
from bfr_core.restorers import load_restorer

DEFAULT = RestoreConfig(likeness="off", mask="square")
KINDS = {"grain": DEFAULT, "no grain": replace(DEFAULT, match_grain=False, keep_detail=False)}
SIZE = (165, 135)
HELD_OUT = Path(__file__).parents[1] / "bfr_core" / "embedded" / "held_out.txt"


def film(portrait: Tensor, frames: int, noise: float) -> list[Tensor]:
    """So many frames (3, H, W) of a still portrait."""
    draws = (torch.randn(portrait.shape, generator=torch.Generator().manual_seed(i)) for i in range(frames))
    return [((portrait + noise * draw).clamp(0, 1) * 255).round() / 255 for draw in draws]


def change(frames: Sequence[Tensor], part: Tensor) -> float:
    """Root mean square of the change from frame to frame in `part`, a mask (1, H, W)."""
    where = part.expand_as(frames[0])
    return float(torch.stack([(b - a)[where].square().mean() for a, b in pairwise(frames)]).mean().sqrt())


def measured(portraits: Sequence[Path], frames: int, noise: float) -> Iterator[tuple[str, float, float]]:
    """For each portrait and kind: its name, and the change frame by frame and as a video, as multiples."""
    restorer, detector = load_restorer(), load_detector("embedded")
    for path in portraits:
        shot = film(resized(read_image(path)[None], SIZE)[0].clamp(0, 1), frames, noise)
        for kind, config in KINDS.items():
            alone = [restore_photo(frame, restorer, config, detector).pixels for frame in shot]
            results = list(restore_frames(iter(shot), restorer, config, detector))
            part = results[0].mask > 0.5
            if not part.any():
                continue  # the photo is clean and sharper than the restorer: its face is left alone
            before = change(shot, part)
            yield kind, change(alone, part) / before, change([one.pixels for one in results], part) / before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with portraits/")
    parser.add_argument("--faces", type=int, default=6, help="how many portraits")
    parser.add_argument("--frames", type=int, default=8, help="frames of each film")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.01, 0.03, 0.08], help="deviations, of the range 0 to 1"
    )
    args = parser.parse_args()
    names = HELD_OUT.read_text(encoding="utf-8").split()
    chosen = [args.shared / "portraits" / name for name in names]
    portraits = chosen[:: max(1, len(chosen) // args.faces)][: args.faces]
    print(f"{len(portraits)} portraits, {args.frames} frames each; 1 is the input's own change")
    for noise in args.noise:
        found: dict[str, list[tuple[float, float]]] = {}
        for kind, alone, video in measured(portraits, args.frames, noise):
            found.setdefault(kind, []).append((alone, video))
        for kind, pairs in found.items():
            alone, video = (sum(values) / len(values) for values in zip(*pairs, strict=True))
            most = max(value for _, value in pairs)
            said = f"frame by frame {alone:.2f}, as a video {video:.2f} (at most {most:.2f})"
            print(f"noise {noise:.2f}, {kind}, {len(pairs)} portraits: {said}", flush=True)


if __name__ == "__main__":
    main()
