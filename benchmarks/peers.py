"""The restorers on this machine against one another, on faces that no training of the embedded one has seen.

    python benchmarks/peers.py --shared DIR [--restorers embedded embedded128 FILE ...] [--pictures DIR]

DIR holds diverse/, portraits/ and faces_t2i/, each with its landmarks.json; of portraits/ the 150 that are held out are
taken, of faces_t2i/ every tenth. Published files such as codeformer.pth are found where `bfr weights` keeps them. A
table for each set is printed; see `bfr_core/studies/peers.py`. Whoever has such files, but not these faces, calls `bfr
verify-real --faces`.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.align import Face, crop_face
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.weights import TABLE, locate
from bfr_core.restorers import load_restorer
from bfr_core.studies.peers import SIZE, as_markdown, compare_restorers, table_of

HELD_OUT = Path(__file__).parents[1] / "bfr_core" / "embedded" / "held_out.txt"
SETS = ("portraits", "diverse", "faces_t2i")
EVERY = {"faces_t2i": 10}  # of so many names, in order, the first is kept from training


def clean_faces(shared: Path, group: str) -> Tensor:
    """(N, 3, SIZE, SIZE) RGB in [0, 1]."""
    folder = shared / group
    records = json.loads((folder / "landmarks.json").read_text(encoding="utf-8"))
    names = HELD_OUT.read_text(encoding="utf-8").split() if group == "portraits" else sorted(records)
    crops = [
        crop_face(read_image(folder / name), Face(np.array(records[name]["landmarks"])), SIZE)
        for name in names[:: EVERY.get(group, 1)]
    ]
    return torch.stack(crops).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, metavar="DIR")
    here = [str(path) for entry in TABLE if "restorer" in entry.what and (path := locate(entry.name))]
    parser.add_argument("--restorers", nargs="+", default=["embedded", "embedded128", *here], metavar="FILE")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write some faces of every row, by set")
    args = parser.parse_args()
    for group in args.sets:
        clean = clean_faces(args.shared, group)
        peers = compare_restorers(clean, {Path(n).stem: partial(load_restorer, n) for n in args.restorers})
        print(
            f"\n{group}: {table_of(peers, len(clean)).note}\n\n{as_markdown(table_of(peers, len(clean)))}", flush=True
        )
        if args.pictures:
            rows = [*(peer.shown for peer in peers), clean[: len(peers[0].shown)]]
            sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
            write_image(args.pictures / f"{group}.png", sheet)


if __name__ == "__main__":
    main()
