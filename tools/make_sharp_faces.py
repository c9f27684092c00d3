"""Choose the sharp faces that ship with the program, from those that the embedded models may learn from.

    python tools/make_sharp_faces.py --faces .training/faces256.safetensors

Of each source that is free for every use the faces are taken whose pictures have the most pixels for them and that are
sharper than half of that source's, by lot. They are stored as tiles of 256 x 256 in the format of `pack_faces`. Faces
that are kept out of every training are not in the packed faces, so that no benchmark measures on one of these.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pack_faces import MARGIN, Entry, as_jpeg, read_pack, write_pack

from bfr_core.faces.sharp_faces import SHARP_FACES
from bfr_core.metrics.detail import sharpness

# Source -> how many of its faces are taken, and the narrowest crop, in pixels of the picture, that is.
TAKEN = {"faces_t2i": (72, 256.0), "faces256": (50, 256.0), "portraits": (52, 215.0)}
SEED = 0


def chosen(entries: list[Entry], sharp: torch.Tensor, source: str) -> list[int]:
    """The places of the faces that are taken of `source`. sharp: (N,) of all entries."""
    count, least = TAKEN[source]
    fit = [i for i, e in enumerate(entries) if e.source == source and e.detail >= least and not e.grey]
    middle = sharp[fit].median()
    fit = [i for i in fit if sharp[i] >= middle]
    order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(SEED)).tolist()
    return sorted(fit[i] for i in order[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, required=True, help="the packed faces of tools/pack_faces.py")
    parser.add_argument("--out", type=Path, default=SHARP_FACES)
    args = parser.parse_args()
    tiles, entries = read_pack(args.faces)
    tiles = tiles[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    sharp = torch.cat([sharpness(some.float() / 255) for some in tiles.split(16)])
    taken = [i for source in TAKEN for i in chosen(entries, sharp, source)]
    write_pack(args.out, [entries[i] for i in taken], [as_jpeg(tiles[i].permute(1, 2, 0).numpy()) for i in taken])
    print(f"{args.out.name}: {len(taken)} faces, {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
