"""The figures and the picture of bfr_core/embedded/MODEL_CARD.md, measured on the models as they ship.

    python tools/model_card.py --faces .training/faces256.safetensors
    python tools/model_card.py --kid 500 [--prior FILE]    # of another prior

Prints how well the prior predicts clean faces, trained on and held out, how much its drawn faces resemble training
faces, and what the restorer makes of the damage of its training; writes docs/prior_samples.png.
With --kid it measures only the distance (KID) of so many drawn faces from the held-out ones, both 128 pixels wide.
The faces are those of `tools/pack_faces.py`; the file of held-out ones lies beside them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pack_faces import MARGIN, Entry, read_pack

from bfr_core import metrics
from bfr_core.damage.blind import blind_damage
from bfr_core.device import choose_device
from bfr_core.diffusion.draw import draw_faces
from bfr_core.diffusion.prior import Prior, load_prior
from bfr_core.diffusion.sampler import predict_x0
from bfr_core.diffusion.schedule import q_sample
from bfr_core.files.photos import write_image
from bfr_core.pixels import resized
from bfr_core.randomness import keyed_generator
from bfr_core.restorers import load_restorer

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "prior_samples.png"
LEVELS = (50, 100, 200, 300, 400, 600, 800)
MEASURED = 64  # faces, of each kind
KID_SIZE = 128  # pixels
SHOWN = 8  # drawn faces a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, default=Path(".training/faces256.safetensors"))
    parser.add_argument("--kid", type=int, metavar="N", help="measure only the KID of so many drawn faces")
    parser.add_argument("--prior", default="embedded", help="for --kid (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where the networks run (%(default)s)")
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.kid:
        unseen, _ = read_pack(args.faces.with_name(args.faces.stem + "_held_out.safetensors"))
        print_kid(load_prior(args.prior).to(device), unseen, args.kid)
        return
    tiles, entries = read_pack(args.faces)
    known = tiles[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    unseen, others = read_pack(args.faces.with_name(args.faces.stem + "_held_out.safetensors"))
    print(f"trained on: {counted(entries)}\nheld out: {counted(others)}")
    prior = load_prior().to(device)
    draw_picture(prior, known, unseen)
    print("mean squared error of the clean face that the prior predicts, on the scale of [-1, 1]")
    for name, faces in (("training faces", known), ("held-out faces", unseen)):
        some = by_lot(faces)
        print(f"{name}: " + ", ".join(f"t = {t}: {clean_error(prior, some, t):.4f}" for t in LEVELS))
    hq = by_lot(unseen)
    lq = blind_damage(hq, keyed_generator("card"))
    before, after = (metrics.psnr(faces, hq).median() for faces in (lq, load_restorer().to(device).restore(lq).cpu()))
    print(
        f"restorer, {len(hq)} held-out faces under the damage of its training: median PSNR {before:.2f} dB before, "
        f"{after:.2f} dB after"
    )


def counted(entries: list[Entry]) -> str:
    """How many faces there are of each source."""
    sources = [entry.source for entry in entries]
    return ", ".join(f"{sources.count(source)} of {source}" for source in sorted(set(sources)))


def by_lot(faces: Tensor) -> Tensor:
    """(MEASURED, 3, S, S) in [0, 1] of uint8 faces (N, 3, S, S)."""
    order = torch.randperm(len(faces), generator=keyed_generator("card"))[:MEASURED]
    return faces[order].float() / 255


def draw_picture(prior: Prior, known: Tensor, unseen: Tensor) -> None:
    """Write the first faces that the prior draws, none picked out, and below each the training face most like it."""
    drawn = torch.cat(
        [draw_faces(prior, [f"card_{i}" for i in range(first, first + SHOWN)], 0) for first in (0, SHOWN)]
    )
    both = torch.cat([known, known.flip(-1)])
    gallery = torch.cat([described(some.float() / 255) for some in both.split(64)])

    def likeness(faces: Tensor) -> Tensor:
        return described(faces) @ gallery.T / gallery.shape[1]

    best = likeness(drawn).max(1)
    among = likeness(by_lot(known)).topk(2, 1).values[:, 1]
    print("correlation with the most similar training face at 32 x 32, mean and most:")
    for name, found in (
        ("drawn faces", best.values),
        ("held-out faces", likeness(by_lot(unseen)).max(1).values),
        ("training faces, with another", among),
    ):
        print(f"{name}: {found.mean():.2f}, {found.max():.2f}")
    nearest = both[best.indices].float() / 255
    rows = [torch.cat(list(some[half]), 2) for half in (slice(SHOWN), slice(SHOWN, None)) for some in (drawn, nearest)]
    picture = torch.cat(rows, 1)[None]
    write_image(PICTURE, resized(picture, (picture.shape[-2] // 2, picture.shape[-1] // 2))[0].clamp(0, 1))


def print_kid(prior: Prior, unseen: Tensor, count: int) -> None:
    """The KID of `count` drawn faces and of `unseen`, uint8 (N, 3, S, S), all of them shrunk to `KID_SIZE` pixels."""
    names = [f"kid_{i}" for i in range(count)]
    drawn = [draw_faces(prior, names[i : i + 25], 0) for i in range(0, count, 25)]
    seen = [
        metrics.kid_features(resized(faces, (KID_SIZE, KID_SIZE)).clamp(0, 1))
        for faces in (torch.cat(drawn), unseen.float() / 255)
    ]
    print(f"KID of {count} drawn faces and {len(unseen)} held-out ones at {KID_SIZE} pixels: {metrics.kid(*seen):.3f}")


def described(faces: Tensor) -> Tensor:
    """Faces (B, 3, S, S) as numbers whose mean products are correlations: (B, 3 * 32 * 32)."""
    small = F.adaptive_avg_pool2d(faces, 32).flatten(1)
    return (small - small.mean(1, keepdim=True)) / small.std(1, correction=0, keepdim=True)


@torch.no_grad()
def clean_error(prior: Prior, faces: Tensor, t: int) -> float:
    """Mean squared error of the prior's clean faces from noise of level t, for faces (B, 3, S, S) in [0, 1]."""
    alpha_bar = float(prior.alpha_bar[t])
    x0 = faces * 2 - 1
    noise = torch.randn(x0.shape, generator=keyed_generator("card", t))
    x_t, x0 = q_sample(x0, alpha_bar, noise).to(prior.device), x0.to(prior.device)
    errors = []
    for noisy, clean in zip(x_t.split(16), x0.split(16), strict=True):
        eps, _ = prior(noisy, torch.full((len(noisy),), t, device=prior.device))
        errors.append((predict_x0(noisy, eps, alpha_bar).clamp(-1, 1) - clean).square().mean((1, 2, 3)))
    return float(torch.cat(errors).mean())


if __name__ == "__main__":
    main()
