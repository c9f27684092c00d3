"""Train the models that ship in bfr_core/embedded, from folders of real and made-up faces.

    python tools/train_embedded.py prior --portraits DIR --faces DIR --minutes 60

Each folder holds images and a landmarks.json (file name -> {"landmarks": five points}). The work folder keeps the
aligned faces, a checkpoint every ten minutes and a log; the same command run again goes on where it stopped. With no
checkpoint it goes on from the shipped weights (their moving average; the optimizer starts anew), or with `--fresh`
from nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.device import autocast
from bfr_core.faces.align import Face, similarity, similarity_scale, template, warp
from bfr_core.files.tensors import load_tensors

SIZE = 128
PATCH = 2
HELD_OUT_EVERY = 5  # every fifth portrait, by file name, is used in no training
CHECKPOINT_SECONDS = 600
EMBEDDED = Path(__file__).resolve().parents[1] / "bfr_core" / "embedded"
SHIPPED = {
    "prior": EMBEDDED / "prior128" / "diffusion_pytorch_model.safetensors",
    "restorer": EMBEDDED / "restorer128.safetensors",
}
TEXTURE_WEIGHT = 0.3
log = logging.getLogger("train_embedded")


# ---------------------------------------------------------------- data


def held_out_names(portraits: Path) -> list[str]:
    """File names of the portraits that no training may see."""
    return sorted(json.loads((portraits / "landmarks.json").read_text()))[::HELD_OUT_EVERY]


def aligned_faces(folder: Path, skip: set[str], variants: int, seed: int) -> Tensor:
    """Standard crops of every face, jittered a little: (N * variants, 3, 128, 128) uint8; variant 0 is exact."""
    from torchvision.io import ImageReadMode, decode_image

    rng = np.random.default_rng(seed)
    crops = []
    for name, entry in sorted(json.loads((folder / "landmarks.json").read_text()).items()):
        if name in skip:
            continue
        photo = decode_image(str(folder / name), ImageReadMode.RGB).float()[None]
        face = Face(np.array(entry["landmarks"]))
        for variant in range(variants):
            matrix = similarity(face.landmarks, template(SIZE))
            if variant:
                angle, zoom = rng.normal(0, math.radians(2)), math.exp(rng.normal(0, 0.03))
                turn = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
                centre = np.full(2, (SIZE - 1) / 2)
                shift = rng.normal(0, 1.5, 2)
                matrix = np.concatenate(
                    [turn @ matrix[:, :2], (turn @ (matrix[:, 2] - centre) + centre + shift)[:, None]], 1
                )
            if similarity_scale(matrix) > 0.8:  # sample at twice the size, then average: sharper than one bicubic step
                fine = np.concatenate([matrix[:, :2] * 2, matrix[:, 2:] * 2 + 0.5], 1)
                crop = nn.functional.avg_pool2d(warp(photo, fine, 2 * SIZE, 2 * SIZE), 2)
            else:
                crop = warp(photo, matrix, SIZE, SIZE)
            crops.append(crop[0].round().clamp(0, 255).byte())
    return torch.stack(crops)


def training_faces(args: argparse.Namespace) -> Tensor:
    """All training crops, cached in the work folder: (N, 3, 128, 128) uint8."""
    cache = args.work / "faces.pt"
    if not cache.exists():
        skip = set(held_out_names(args.portraits))
        faces = torch.cat([aligned_faces(args.portraits, skip, 4, 1), aligned_faces(args.faces, set(), 4, 2)])
        save(cache, faces)
    return torch.load(cache, weights_only=True)


# ---------------------------------------------------------------- the loop that every training shares


def save(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save(value, part)
    os.replace(part, path)


def train(name: str, net: nn.Module, loss_of, args: argparse.Namespace, lr: float, ema_decay: float) -> None:
    """AdamW with warm-up and an exponential moving average, for `args.minutes`, resumed from the work folder.

    loss_of: (step) -> (loss, log entries). With `--cooldown` the rate falls linearly to zero over these minutes and
    the result goes to NAME_cooled.pt, so that the constant-rate checkpoint can still be trained further.
    """
    path = args.work / f"{name}.pt"
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
    step, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, seconds = state["ema"], state["step"], state["seconds"]
        log.info("%s: resumed at step %d after %.0f minutes", name, step, seconds / 60)
    elif not args.fresh:
        tensors, record = load_tensors(SHIPPED[name])
        net.load_state_dict(tensors)
        ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
        step, seconds = int(record["steps"]), 60.0 * int(record["minutes"])
        log.info("%s: went on from the shipped weights, step %d", name, step)
    first = step
    if args.cooldown:
        path = args.work / f"{name}_cooled.pt"

    def checkpoint() -> None:
        save(
            path,
            {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema,
                "step": step,
                "seconds": seconds,
            },
        )

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    start = last = saved = time.monotonic()
    sums: dict[str, list[float]] = {}
    try:
        while (elapsed := time.monotonic() - start) < args.minutes * 60:
            rate = lr * min(1.0, (step - first + 1) / 200) * (1 - elapsed / (args.minutes * 60) if args.cooldown else 1)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, entries = loss_of(step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.values()), list(net.state_dict().values()), 1 - decay)
            for key, value in entries:
                sums.setdefault(key, []).append(value)
            now = time.monotonic()
            seconds += now - last
            last = now
            if step % 100 == 0:
                line = {
                    "step": step,
                    "minutes": round(seconds / 60, 1),
                    **{k: round(float(np.mean(v)), 4) for k, v in sorted(sums.items())},
                }
                with (args.work / f"{name}.jsonl").open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                log.info("%s %s", name, line)
                sums.clear()
            if now - saved > CHECKPOINT_SECONDS:
                checkpoint()
                saved = now
    finally:
        checkpoint()


# ---------------------------------------------------------------- prior


def new_prior() -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        layers_per_block=1,
        block_out_channels=(48, 96, 160, 192),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )


def train_prior(args: argparse.Namespace) -> None:
    """v-prediction on 2 x 2 patches; noise levels drawn where a face's details are decided (t = 60 ... 420)."""
    faces = training_faces(args)
    net = new_prior().to(memory_format=torch.channels_last)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    log_noise = (0.5 * torch.log((1 - alpha_bar) / alpha_bar)).contiguous()
    rng = torch.Generator().manual_seed(time.time_ns() % 2**31)

    def loss_of(step: int):
        x0 = faces[torch.randint(len(faces), (args.batch,), generator=rng)].float() / 127.5 - 1
        flip = torch.rand(args.batch, 1, 1, 1, generator=rng) < 0.5
        x0 = nn.functional.pixel_unshuffle(torch.where(flip, x0.flip(-1), x0), PATCH).contiguous(
            memory_format=torch.channels_last
        )
        level = torch.randn(args.batch, generator=rng, dtype=torch.float64) * 1.2 - 0.4
        t = torch.searchsorted(log_noise, level).clamp(0, 999)
        uniform = torch.rand(args.batch, generator=rng) < 0.15  # keeps the whole chain usable for unconditional samples
        t = torch.where(uniform, torch.randint(1000, (args.batch,), generator=rng), t)
        a = alpha_bar[t].float().sqrt().view(-1, 1, 1, 1)
        s = (1 - alpha_bar[t]).float().sqrt().view(-1, 1, 1, 1)
        eps = torch.randn(x0.shape, generator=rng)
        with autocast(torch.device("cpu"), "auto"):
            v = net(a * x0 + s * eps, t).sample.float()
        each = (v - (a * eps - s * x0)).square().mean((1, 2, 3))
        # logged as the error of the clean image itself, which is comparable between noise levels
        x0_error = (each.detach() * s.flatten() ** 2).tolist()
        return each.mean(), [("loss", each.mean().item())] + [
            (f"x0_{100 * (int(i) // 100):03d}", e) for i, e in zip(t, x0_error, strict=True)
        ]

    train("prior", net, loss_of, args, lr=4e-4, ema_decay=0.9995)


# ---------------------------------------------------------------- restorer


def new_restorer() -> Any:
    from spandrel.architectures.NAFNet import NAFNet

    return NAFNet(img_channel=3, width=16, middle_blk_num=4, enc_blk_nums=[1, 1, 2, 4], dec_blk_nums=[1, 1, 1, 1])


def train_restorer(args: argparse.Namespace) -> None:
    """The usual blind recipe: blur, shrink, Gaussian noise and JPEG, drawn anew for every face; some faces grey."""
    from bfr_core.damage.synthetic import degrade
    from bfr_core.training.losses import pixel_loss, texture_loss

    faces = training_faces(args)
    net = new_restorer().to(memory_format=torch.channels_last)
    rng = torch.Generator().manual_seed(time.time_ns() % 2**31)

    def loss_of(step: int):
        hq = faces[torch.randint(len(faces), (args.batch,), generator=rng)].float() / 255
        hq = torch.where(torch.rand(args.batch, 1, 1, 1, generator=rng) < 0.5, hq.flip(-1), hq)
        grey = torch.rand(args.batch, 1, 1, 1, generator=rng) < 0.1
        hq = torch.where(grey, hq.mean(1, keepdim=True), hq)
        lq = degrade(hq, "blind", rng).lq.contiguous(memory_format=torch.channels_last)
        with autocast(torch.device("cpu"), "auto"):
            restored = net(lq).float()
        l1, texture = pixel_loss(restored, hq), texture_loss(restored, hq)
        return l1 + TEXTURE_WEIGHT * texture, [
            ("l1", l1.item()),
            ("texture", texture.item()),
            ("psnr", -10 * math.log10((restored.detach().clamp(0, 1) - hq).square().mean().item())),
        ]

    train("restorer", net, loss_of, args, lr=1e-3, ema_decay=0.998)


# ---------------------------------------------------------------- from checkpoints to the files that ship


def export(args: argparse.Namespace) -> None:
    """Write the moving averages as fp16, of what was trained: embedded/prior128 and restorer128.safetensors."""
    from bfr_core.files.tensors import save_tensors

    if found := latest(args.work, "prior"):
        state, record = found
        net = new_prior()
        net.load_state_dict(state)
        folder = EMBEDDED / "prior128"
        net.save_config(folder)
        scheduler = {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": 1000,
            "beta_schedule": "linear",
            "beta_start": 1e-4,
            "beta_end": 0.02,
            "prediction_type": "v_prediction",
            "clip_sample": True,
        }
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1) + "\n")
        half = {k: v.half() for k, v in state.items()}
        save_tensors(
            folder / "diffusion_pytorch_model.safetensors", half, {"format": "pt", "licence": "Apache-2.0"} | record
        )
    if found := latest(args.work, "restorer"):
        state, record = found
        own = {"architecture": "NAFNet", "size": str(SIZE), "licence": "Apache-2.0"}
        save_tensors(EMBEDDED / "restorer128.safetensors", {k: v.half() for k, v in state.items()}, own | record)
    (EMBEDDED / "held_out.txt").write_text("\n".join(held_out_names(args.portraits)) + "\n")


def usual(args: argparse.Namespace) -> None:
    """Write what the verdict compares with, see `bfr_core.verdict`: embedded/usual.safetensors, what the training faces
    look like, and embedded/drawn_faces.png, the first faces that the prior draws, their detail made as strong."""
    from bfr_core.adaptation.verdict import DRAWN_FILE, USUAL_FILE, usual_of
    from bfr_core.diffusion.prior import load_prior
    from bfr_core.files.photos import write_image
    from bfr_core.files.tensors import save_tensors
    from bfr_core.metrics.detail import high_band
    from bfr_core.studies.demo import draw_faces

    drawn = torch.cat([draw_faces(load_prior(), [f"usual_{i}" for i in range(j, j + 8)], 0) for j in (0, 8)])
    faces = training_faces(args)[::4].float() / 255  # variant 0 of each face is the exact crop
    usual = usual_of(faces, drawn)
    detail = high_band(drawn)
    gain = (10**usual.energy / detail.square().mean((1, 2, 3), keepdim=True)).sqrt()
    drawn = (drawn + (gain - 1) * detail).clamp(0, 1)
    write_image(DRAWN_FILE, torch.cat([torch.cat(list(row), 2) for row in drawn.split(4)], 1))
    found = usual._asdict()
    tensors = {name: found[name].contiguous() for name in ("mean", "spread", "energy")}
    save_tensors(USUAL_FILE, tensors, {"licence": "Apache-2.0", "faces": str(len(faces))})


def card(args: argparse.Namespace) -> None:
    """Pictures and figures for the model card: unconditional samples, the nearest training face of each, losses."""
    from bfr_core.diffusion.prior import load_prior
    from bfr_core.faces.align import crop_face
    from bfr_core.files.photos import read_image, write_image
    from bfr_core.restorers import load_restorer
    from bfr_core.studies.demo import draw_faces

    prior, faces = load_prior(), training_faces(args)[::4]  # variant 0 of each face is the exact crop
    drawn = torch.cat([draw_faces(prior, [f"card_{i}" for i in range(j, j + 8)], 0) for j in (0, 8)])

    def small(x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(x, 4).flatten(1)
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)

    known = small(torch.cat([faces, faces.flip(-1)]).float() / 255)
    likeness = small(drawn) @ known.T / known.shape[1]
    best = likeness.max(1)
    nearest = torch.cat([faces, faces.flip(-1)])[best.indices].float() / 255
    rows = [torch.cat(list(x), 2) for half in (slice(0, 8), slice(8, 16)) for x in (drawn[half], nearest[half])]
    write_image(args.work.parent / "docs" / "prior_samples.png", torch.cat(rows, 1))

    landmarks = json.loads((args.portraits / "landmarks.json").read_text())
    kept = held_out_names(args.portraits)[:64]
    unseen = torch.stack(
        [crop_face(read_image(args.portraits / n), Face(np.array(landmarks[n]["landmarks"])), SIZE) for n in kept]
    )
    seen = faces[torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))[:64]].float() / 255
    among = small(seen) @ small(torch.cat([faces, faces.flip(-1)]).float() / 255).T / known.shape[1]
    print("correlation with the nearest other training face, at 32 x 32:")
    print(f"samples {best.values.mean():.3f} (max {best.values.max():.3f})")
    print(f"training faces {among.topk(2, 1).values[:, 1].mean():.3f}")
    print(f"held-out faces {(small(unseen) @ known.T / known.shape[1]).max(1).values.mean():.3f}")
    for t in (50, 100, 200, 300, 400, 600, 800):
        errors = [_x0_error(prior, some, t) for some in (seen, unseen)]
        print(f"t = {t}: clean-image error, training {errors[0]:.4f}, held out {errors[1]:.4f}")
    from bfr_core.damage.synthetic import degrade

    lq = degrade(unseen, "blind", torch.Generator().manual_seed(0)).lq
    restored = load_restorer().restore(lq)
    before, after = (-10 * (x - unseen).square().mean((1, 2, 3)).log10().mean() for x in (lq, restored))
    print(f"restorer on blind damage of held-out portraits: {before:.2f} dB before, {after:.2f} dB after")


@torch.no_grad()
def _x0_error(prior: Any, faces: Tensor, t: int) -> float:
    """Mean squared error, on the scale of [-1, 1], of the clean image that the prior predicts at level t."""
    from bfr_core.diffusion.sampler import predict_x0
    from bfr_core.diffusion.schedule import q_sample

    alpha_bar = float(prior.alpha_bar[t])
    x0 = faces * 2 - 1
    x_t = q_sample(x0, alpha_bar, torch.randn(x0.shape, generator=torch.Generator().manual_seed(t)))
    eps, _ = prior(x_t, torch.full((len(x0),), t))
    return float((predict_x0(x_t, eps, alpha_bar).clamp(-1, 1) - x0).square().mean())


def latest(work: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The moving average of the cooled training if there is one, else of the running one, and its record."""
    path = next((p for p in (work / f"{name}_cooled.pt", work / f"{name}.pt") if p.exists()), None)
    if path is None:
        return None
    state = torch.load(path, weights_only=True, map_location="cpu")
    return state["ema"], {"steps": str(state["step"]), "minutes": str(round(state["seconds"] / 60))}


# ---------------------------------------------------------------- command line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prior", "restorer", "export", "usual", "card"])
    parser.add_argument("--portraits", type=Path, required=True)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fresh", action="store_true", help="start from nothing where there is no checkpoint")
    parser.add_argument("--cooldown", action="store_true", help="let the learning rate fall to zero over these minutes")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    does = {"prior": train_prior, "restorer": train_restorer, "export": export, "usual": usual, "card": card}
    does[args.what](args)


if __name__ == "__main__":
    main()
