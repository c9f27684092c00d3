"""Train the prior and the restorer that ship in bfr_core/embedded, from one file of packed faces.

    python tools/pack_faces.py --shared DIR
    python tools/train_embedded.py prior --minutes 60
    python tools/train_embedded.py --all --minutes 8
    python tools/train_embedded.py restorer_sharp --minutes 60    # the last part: begins with the restorer so far
    python tools/train_embedded.py prior --from-shipped           # goes on from the weights in bfr_core/embedded

The work folder keeps a checkpoint every ten minutes and a log; the same command given again goes on where it stopped,
on a CPU or on a GPU, whichever made the checkpoint. `--all` shares the minutes between prior and restorer, two to one.
`--pieces DIR` also writes the checkpoints there in files of at most 15 MB, and begins from such pieces where the work
folder has no checkpoint: for machines between which only small files travel.

    python tools/train_embedded.py export       # the averaged weights as they ship, into bfr_core/embedded
    python tools/train_embedded.py export --mean-with-shipped    # of the restorer: half way from what ships to these
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pack_faces import MARGIN, SIZE, held_out, read_pack

from bfr_core.damage.blind import blind_damage, draw_tones
from bfr_core.device import autocast
from bfr_core.pixels import gaussian_blur
from bfr_core.restorers.nafnet import LayerNorm2d
from bfr_core.training.losses import hatching_loss, perceptual_loss, pixel_loss, texture_loss

PATCH = 4
MIN_DETAIL = 180.0  # softer faces would teach softness
CHECKPOINT_SECONDS = 600
LOG_STEPS = 50
TEXTURE_WEIGHT = 0.3  # against the mean absolute difference, as the next two
PERCEPTUAL_WEIGHT, HATCHING_WEIGHT, LATTICE_WEIGHT = 0.3, 5.0, 10.0
LATTICE = 8  # pixels after which patterns of the restorer repeat, which enlarges by rearranging channels
PIECE_BYTES = 15 << 20
CUDA_BATCH, CUDA_RATE = 8, 2.0  # times as many faces a step as on a CPU, at so many times the rate
RECORD = ("step", "faces", "seconds", "cpu_seconds")  # of how long a network was trained
EMBEDDED = Path(__file__).resolve().parents[1] / "bfr_core" / "embedded"
log = logging.getLogger("train_embedded")

Batch = tuple[Tensor, ...]  # images (B, 3, H, W) in [0, 1]
Entries = list[tuple[str, Tensor]]  # of the log, by name
Loss = Callable[[Batch, torch.Generator], tuple[Tensor, Entries]]


@dataclass(frozen=True)
class Task:
    """How one network is trained.

    batch: faces a step. rate: of the optimizers. decay: of the moving average of the weights. prepare: makes a batch of
    clean faces, on the CPU. begin: readies a new network for its first step, given the work folder; nothing is done
    without it. by_muon: whether a parameter of this name is one for `Muon`; the others are AdamW's. shipped: its file
    in `EMBEDDED`. compiled: whether it is compiled on a graphics card; PyTorch 2.11 does not compile a NAFNet rightly.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Path], Loss]
    batch: int
    rate: float
    decay: float
    prepare: Callable[[Tensor, torch.Generator], Batch] = lambda hq, generator: (hq,)
    begin: Callable[[nn.Module, Path], None] | None = None
    by_muon: Callable[[str, Tensor], bool] = lambda name, value: False
    shipped: str = ""
    compiled: bool = False


# ---------------------------------------------------------------- faces


class Faces:
    """Training faces, drawn in any order: turned, shifted and enlarged a little, mirrored for half of them."""

    def __init__(self, pack: Path) -> None:
        tiles, entries = read_pack(pack)
        self.tiles = tiles[[entry.detail >= MIN_DETAIL for entry in entries]]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, 3, 256, 256) in [0, 1]. Two thirds keep their pixels, because turning softens them a little."""
        pick = torch.randint(len(self.tiles), (count,), generator=generator)
        tiles = self.tiles[pick].float() / 255
        flip = torch.rand(count, generator=generator) < 0.5
        turned = torch.rand(count, generator=generator) < 1 / 3
        normal = torch.randn(count, 4, generator=generator)
        crops = []
        for tile, mirrored, turn, (x, y, angle, zoom) in zip(tiles, flip, turned, normal.tolist(), strict=True):
            tile = tile.flip(-1) if mirrored else tile
            crops.append(_turned(tile, x, y, angle, zoom) if turn else _shifted(tile, x, y))
        return torch.stack(crops)


def _shifted(tile: Tensor, x: float, y: float) -> Tensor:
    left, top = (min(2 * MARGIN, max(0, MARGIN + round(3 * shift))) for shift in (x, y))
    return tile[:, top : top + SIZE, left : left + SIZE]


def _turned(tile: Tensor, x: float, y: float, angle: float, zoom: float) -> Tensor:
    radians, scale = math.radians(2) * angle, math.exp(-0.03 * zoom) * SIZE / tile.shape[-1]
    cos, sin = scale * math.cos(radians), scale * math.sin(radians)
    shift = 6 / tile.shape[-1]
    matrix = torch.tensor([[[cos, -sin, shift * x], [sin, cos, shift * y]]])
    grid = F.affine_grid(matrix, [1, 3, SIZE, SIZE], align_corners=False)
    return F.grid_sample(tile[None], grid, "bicubic", "reflection", align_corners=False)[0].clamp(0, 1)


class Prepared(torch.utils.data.IterableDataset):
    """Batches of a task without end. generator: draws them; a worker of a DataLoader has one of its own."""

    def __init__(self, faces: Faces, task: Task, count: int, generator: torch.Generator) -> None:
        self.faces, self.task, self.count, self.generator = faces, task, count, generator

    def __iter__(self) -> Iterator[Batch]:
        generator, worker = self.generator, torch.utils.data.get_worker_info()
        if worker:
            generator = torch.Generator().manual_seed(worker.seed)
        while True:
            yield self.task.prepare(self.faces.draw(self.count, generator), generator)


def held_out_names(portraits: Path) -> list[str]:
    """File names of the portraits that no training may see."""
    return sorted(held_out("portraits", list(json.loads((portraits / "landmarks.json").read_text()))))


# ---------------------------------------------------------------- checkpoints


def save(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    torch.save(value, part)
    os.replace(part, path)


def write_pieces(path: Path, folder: Path) -> None:
    """Cut a file into NAME.000, NAME.001 and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as stream:
        for number in range(-(-path.stat().st_size // PIECE_BYTES)):
            (folder / f"{path.name}.{number:03d}").write_bytes(stream.read(PIECE_BYTES))


def join_pieces(path: Path, folder: Path) -> None:
    """Make `path` of its pieces, if there are any and it is not there."""
    pieces = sorted(folder.glob(f"{path.name}.[0-9][0-9][0-9]"))
    if pieces and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))


# ---------------------------------------------------------------- optimizers


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum of each matrix; a convolution's is (out, in times its kernel).

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the step's size as in
    arXiv:2502.16982, so that AdamW's learning rate is a measure of it. After 300 steps of the prior from one
    checkpoint, 3 times that rate was better on little noise than once, and worse on much. torch's own Muon takes no
    convolutions.
    """

    TIMES = 2.0  # the task's learning rate

    FACTORS = (3.4445, -4.7750, 2.0315)  # of X, (X X^T) X and (X X^T)^2 X, published with the method
    ROUNDS = 5

    def __init__(self, parameters: list[nn.Parameter], rate: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(
            [{"params": parameters, "times": self.TIMES}], {"lr": rate, "momentum": momentum, "weight_decay": decay}
        )

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            ahead: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                ahead.setdefault((len(p), p[0].numel()), []).append(
                    (p, torch.lerp(p.grad, momentum, group["momentum"]))
                )
            for (rows, columns), those in ahead.items():
                made = self.orthogonal(torch.stack([value.flatten(1) for _, value in those]))
                for (p, _), one in zip(those, made, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(one.view_as(p), alpha=-group["lr"] * 0.2 * max(rows, columns) ** 0.5)

    @classmethod
    def orthogonal(cls, matrix: Tensor) -> Tensor:
        """About the orthogonal factor of each matrix (..., M, N): its singular values become .7 to 1.2."""
        a, b, c = cls.FACTORS
        x = matrix.bfloat16()
        tall = x.shape[-2] > x.shape[-1]
        x = x.mT if tall else x
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(cls.ROUNDS):
            square = x @ x.mT
            x = a * x + (b * square + c * square @ square) @ x
        return (x.mT if tall else x).to(matrix)


def optimizers_of(net: nn.Module, task: Task) -> list[torch.optim.Optimizer]:
    """AdamW, and before it Muon if the task has parameters for it. Groups hold the "times" of the task's rate."""
    matrices = [p for name, p in net.named_parameters() if task.by_muon(name, p)]
    of_muon = {id(p) for p in matrices}
    groups: list[dict[str, Any]] = [{"params": [p for p in net.parameters() if id(p) not in of_muon], "times": 1.0}]
    adam = torch.optim.AdamW(groups, task.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    return [Muon(matrices, task.rate), adam] if matrices else [adam]


def restore_optimizers(optimizers: list[torch.optim.Optimizer], state: Any) -> None:
    """Take over the state of a checkpoint; that of other optimizers is left, and they begin anew."""
    states = state if isinstance(state, list) else [state]
    if len(states) != len(optimizers):
        log.info("the checkpoint is of other optimizers; these begin anew")
        return
    for optimizer, one in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(one)


# ---------------------------------------------------------------- the loop that both trainings share


def train(task: Task, faces: Faces, args: argparse.Namespace, minutes: float) -> None:
    """Train with warm-up and a moving average for so many minutes, resuming from the work folder.

    With `--cooldown` the rate falls to zero over these minutes and the result goes to NAME_cooled.pt, so that the
    checkpoint with its constant rate can still be trained further.
    """
    device = torch.device(args.device)
    args.work.mkdir(parents=True, exist_ok=True)
    path = args.work / f"{task.name}.pt"
    if args.pieces:
        join_pieces(path, args.pieces)
    net = task.build()
    if args.from_shipped and not path.exists():
        save(path, shipped_state(task))
    elif task.begin and not path.exists():
        task.begin(net, args.work)
    net = net.to(device).to(memory_format=torch.channels_last)
    optimizers = optimizers_of(net, task)
    ema = {name: value.detach().clone() for name, value in net.state_dict().items()}
    step, seconds, cpu_seconds, seen = 0, 0.0, 0.0, 0
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        net.load_state_dict(state["net"])
        restore_optimizers(optimizers, state["optimizer"])
        for name, value in ema.items():
            value.copy_(state["ema"][name])  # in the memory format of the network
        step, seen = state["step"], state["faces"]
        seconds, cpu_seconds = state["seconds"], state["cpu_seconds"]
        log.info("%s goes on from step %d, after %.0f minutes", task.name, step, seconds / 60)
    if args.cooldown:
        path = args.work / f"{task.name}_cooled.pt"
    run = cast(nn.Module, torch.compile(net)) if task.compiled and device.type == "cuda" else net
    loss_of = task.loss(run, args.work)
    batch, top_rate = args.batch or task.batch, task.rate
    if device.type == "cuda":
        batch, top_rate = args.batch or task.batch * CUDA_BATCH, task.rate * CUDA_RATE
    torch.manual_seed(step)  # for the noise that is drawn on a graphics card, and for workers
    generator = torch.Generator().manual_seed(step)
    prepared = iter(
        torch.utils.data.DataLoader(
            Prepared(faces, task, batch, generator),
            batch_size=None,
            num_workers=args.workers,
            pin_memory=device.type == "cuda",
        )
    )
    first, start, last, cpu_last = step, time.monotonic(), time.monotonic(), time.process_time()
    saved, sums = start, dict[str, list[Tensor]]()

    def checkpoint() -> None:
        record = {"step": step, "seconds": seconds, "cpu_seconds": cpu_seconds, "faces": seen}
        states = [optimizer.state_dict() for optimizer in optimizers]
        save(path, {"net": net.state_dict(), "optimizer": states, "ema": ema, **record})
        if args.pieces:
            write_pieces(path, args.pieces)

    try:
        while (elapsed := time.monotonic() - start) < minutes * 60:
            rate = top_rate * min(1.0, (step - first + 1) / 200)
            if args.cooldown:
                rate *= 1 - elapsed / (minutes * 60)
            loss, entries = loss_of(tuple(x.to(device, non_blocking=True) for x in next(prepared)), generator)
            net.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("times", 1.0)
                optimizer.step()
            step, seen = step + 1, seen + batch
            decay = min(task.decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.values()), list(net.state_dict().values()), 1 - decay)
            for key, value in entries:
                sums.setdefault(key, []).append(value)
            now, cpu_now = time.monotonic(), time.process_time()
            seconds, cpu_seconds, last, cpu_last = seconds + now - last, cpu_seconds + cpu_now - cpu_last, now, cpu_now
            if step % LOG_STEPS == 0:
                means = {key: round(float(torch.stack(values).mean()), 5) for key, values in sorted(sums.items())}
                line = {"step": step, "minutes": round(seconds / 60, 1), "cpu": round(cpu_seconds / 60, 1), **means}
                with (args.work / f"{task.name}.jsonl").open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                log.info("%s %s", task.name, line)
                sums.clear()
            if now - saved > CHECKPOINT_SECONDS:
                checkpoint()
                saved = now
    finally:
        checkpoint()


# ---------------------------------------------------------------- prior


def new_prior() -> Any:
    """A diffusers U-Net on 4 x 4 patches: the grid of the 128-pixel prior, twice its channels where detail is drawn.

    It starts from random weights: started from the inner layers of the 128-pixel prior, it was not ahead after 200
    steps.
    """
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        layers_per_block=1,
        block_out_channels=(96, 128, 192, 224),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )


def is_hidden_matrix(name: str, value: Tensor) -> bool:
    """Whether a parameter of the U-Net is a matrix between hidden layers, which `Muon` is for."""
    return value.ndim >= 2 and not name.startswith(("conv_in.", "conv_out.", "time_embedding."))


def linear_alpha_bar() -> Tensor:
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def prior_loss(net: nn.Module, work: Path, centre: float = 0.3, spread: float = 1.2) -> Loss:
    """v-prediction (arXiv:2202.00512), noise levels drawn where a face's details are decided.

    The logarithm of sigma is normal around `centre`; 15 % of the steps are uniform instead, which keeps the whole
    chain usable for unconditional samples.
    """
    alpha_bar = linear_alpha_bar()
    log_noise = (0.5 * torch.log((1 - alpha_bar) / alpha_bar)).contiguous()

    def loss_of(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Entries]:
        (hq,) = batch
        count = len(hq)
        x0 = F.pixel_unshuffle(hq * 2 - 1, PATCH).contiguous(memory_format=torch.channels_last)
        level = torch.randn(count, generator=generator, dtype=torch.float64) * spread + centre
        t = torch.searchsorted(log_noise, level).clamp(0, 999)
        uniform = torch.rand(count, generator=generator) < 0.15
        t = torch.where(uniform, torch.randint(1000, (count,), generator=generator), t)
        a = alpha_bar[t].float().sqrt().view(-1, 1, 1, 1).to(hq.device)
        s = (1 - alpha_bar[t]).float().sqrt().view(-1, 1, 1, 1).to(hq.device)
        eps = torch.randn(x0.shape, generator=generator if x0.device.type == "cpu" else None, device=x0.device)
        with autocast(hq.device, "auto"):
            v = net(a * x0 + s * eps, t.to(hq.device)).sample.float()
        each = (v - (a * eps - s * x0)).square().mean((1, 2, 3))
        # logged as the error of the clean image itself, which is comparable between noise levels
        x0_error = each.detach() * s.flatten() ** 2
        return each.mean(), [("loss", each.detach().mean())] + [
            (f"x0_{100 * (int(i) // 100):03d}", error) for i, error in zip(t, x0_error, strict=True)
        ]

    return loss_of


# ---------------------------------------------------------------- restorer


def new_restorer() -> Any:
    """A NAFNet with few channels where the picture is large and many blocks where it is small.

    It costs half as much as a NAFNet of width 16 with four levels, and after eleven minutes of one CPU thread it was
    0.16 dB ahead of that on held-out faces.
    """
    from spandrel.architectures.NAFNet import NAFNet

    net = NAFNet(img_channel=3, width=8, middle_blk_num=6, enc_blk_nums=[1, 1, 2, 4, 6], dec_blk_nums=[1, 1, 1, 1, 1])
    for layer in net.modules():
        if type(layer).__name__ == "LayerNorm2d":
            layer.__class__ = LayerNorm2d
    return net


def restorer_loss(net: nn.Module, work: Path) -> Loss:
    """Mean absolute difference and texture strength, of pairs by `damaged_pair`."""

    def loss_of(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Entries]:
        hq, lq = batch[0], batch[1].contiguous(memory_format=torch.channels_last)
        with autocast(hq.device, "auto"):
            restored = net(lq).float()
        l1, texture, entries = agreement(lq, restored, hq)
        return l1 + TEXTURE_WEIGHT * texture, entries

    return loss_of


def damaged_pair(hq: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The faces (B, 3, H, W) as they are to come out, some of them grey, tinted or faded, and with blind damage."""
    hq = draw_tones(hq, generator)
    return hq, blind_damage(hq, generator)


def agreement(lq: Tensor, restored: Tensor, hq: Tensor) -> tuple[Tensor, Tensor, Entries]:
    """Terms for the same pixels and for as strong a texture, and the log's entries. Images: (B, 3, H, W)."""
    l1, texture = pixel_loss(restored, hq), texture_loss(restored, hq)
    error = (restored.detach().clamp(0, 1) - hq).square().mean((1, 2, 3))
    before = (lq - hq).square().mean((1, 2, 3))
    entries = [
        ("l1", l1.detach()),
        ("texture", texture.detach()),
        ("psnr", (-10 * error.clamp_min(1e-6).log10()).mean()),
        ("gain", (-10 * (error / before.clamp_min(1e-6)).clamp_min(1e-6).log10()).mean()),
    ]
    return l1, texture, entries


def begin_with_restorer(net: nn.Module, work: Path) -> None:
    """Take the averaged weights of the restorer that the work folder has. Raises FileNotFoundError."""
    found = latest(work, "restorer")
    if found is None:
        raise FileNotFoundError(f"{work}: no restorer.pt to begin with; train the restorer first")
    net.load_state_dict(found[0])


def sharp_loss(net: nn.Module, work: Path) -> Loss:
    """The mean absolute difference, the distance in the new prior's encoder, and what hatching and lattice there is.

    Not the strength of texture: a hatching of the right strength satisfies it. The encoder sees the faces moved by a
    few pixels, or patterns in step with its strides would please it. There is no discriminator: of three that were
    tried (small patches; the same with the lattice penalised; on the encoder's features) each taught patterns or
    coloured eyes before it taught skin.
    """
    perceptual = perceptual_loss(prior_encoder(work, next(net.parameters()).device))

    def loss_of(batch: Batch, generator: torch.Generator) -> tuple[Tensor, Entries]:
        hq, lq = batch[0], batch[1].contiguous(memory_format=torch.channels_last)
        with autocast(hq.device, "auto"):
            restored = net(lq).float()
            features = perceptual(*moved((restored, hq), PATCH, generator))
        l1, _, entries = agreement(lq, restored, hq)
        hatched = hatching_loss(restored, hq)
        repeated = lattice_loss(restored, hq)
        loss = l1 + PERCEPTUAL_WEIGHT * features + HATCHING_WEIGHT * hatched + LATTICE_WEIGHT * repeated
        terms = {"perceptual": features, "hatching": hatched, "lattice": repeated}
        return loss, [*entries, *((name, term.detach()) for name, term in terms.items())]

    return loss_of


def lattice_loss(restored: Tensor, hq: Tensor) -> Tensor:
    """By how much more than `hq`, (B, 3, H, W) both, `restored` has of patterns that repeat every `LATTICE` pixels.

    The fine detail at each place of a square of that side is averaged over 16 squares: what does not repeat cancels.
    """

    def strength(faces: Tensor) -> Tensor:
        fine = (faces - gaussian_blur(faces, 2.0, edges="replicate")).mean(1, keepdim=True)
        return F.avg_pool2d(F.pixel_unshuffle(fine, LATTICE), 4, 2).abs()

    return F.relu(strength(restored) - strength(hq)).mean()


def moved(faces: Sequence[Tensor], step: int, generator: torch.Generator) -> list[Tensor]:
    """The faces (B, 3, H, W) without `step` rows and columns, some of them at the upper left, drawn anew."""
    y, x = torch.randint(0, step, (2,), generator=generator).tolist()
    return [some[:, :, y : y - step, x : x - step] for some in faces]


def prior_encoder(work: Path, device: torch.device) -> Callable[[Tensor], list[Tensor]]:
    """The features of the prior in the work folder, see `bfr_core.diffusion.prior.Prior.features`."""
    from bfr_core.diffusion.prior import load_prior

    found = latest(work, "prior")
    if found is None:
        raise FileNotFoundError(f"{work}: no prior.pt, whose encoder compares the faces; train the prior first")
    folder = work / "encoder"
    write_prior(folder, *found)
    return load_prior(folder).encoder_to(device).features


TASKS = {
    "prior": replace(
        Task("prior", new_prior, prior_loss, batch=16, rate=4e-4, decay=0.999, by_muon=is_hidden_matrix, compiled=True),
        shipped="prior256/diffusion_pytorch_model.safetensors",
    ),
    "restorer": Task("restorer", new_restorer, restorer_loss, batch=8, rate=1e-3, decay=0.999, prepare=damaged_pair),
    "restorer_sharp": replace(
        Task("restorer_sharp", new_restorer, sharp_loss, batch=8, rate=3e-4, decay=0.999, prepare=damaged_pair),
        begin=begin_with_restorer,
        shipped="restorer256.safetensors",
    ),
}


# ---------------------------------------------------------------- from checkpoints to the files that ship


def shipped_state(task: Task) -> dict[str, Any]:
    """What a checkpoint would hold of the weights that ship, without the optimizers' state. Raises ValueError."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    if not task.shipped:
        raise ValueError(f"{task.name}: no weights of it ship")
    with safe_open(EMBEDDED / task.shipped, "pt") as file:
        record = {name: int(file.metadata()[name]) for name in RECORD}
    weights = {name: value.float() for name, value in load_file(EMBEDDED / task.shipped).items()}
    return {"net": weights, "optimizer": [], "ema": weights, **record}


def latest(work: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The moving average of the cooled training if there is one, else of the running one, and its record."""
    path = next((p for p in (work / f"{name}_cooled.pt", work / f"{name}.pt") if p.exists()), None)
    if path is None:
        return None
    state = torch.load(path, weights_only=True, map_location="cpu")
    record = {name: str(round(state[name])) for name in RECORD}
    return state["ema"], record


def write_prior(folder: Path, state: dict[str, Tensor], record: dict[str, str]) -> None:
    """A diffusers folder of the prior with these weights, as fp16. record: goes into the file's metadata."""
    from bfr_core.files.tensors import save_tensors

    net = new_prior()
    net.load_state_dict(state)
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


def export(args: argparse.Namespace) -> None:
    """Write the moving averages as fp16, of what was trained: embedded/prior256 and restorer256.safetensors.

    With `--mean-with-shipped` the restorer's weights become the mean of these and of those that ship, with which the
    training should have begun: see "Model soups", arXiv:2203.05482.
    """
    from bfr_core.files.tensors import save_tensors

    if found := latest(args.work, "prior"):
        write_prior(EMBEDDED / "prior256", *found)
    if found := latest(args.work, "restorer_sharp") or latest(args.work, "restorer"):
        state, record = found
        if args.mean_with_shipped:
            shipped = shipped_state(TASKS["restorer_sharp"])["net"]
            state = {name: (value + shipped[name]) / 2 for name, value in state.items()}
        own = {"architecture": "NAFNet", "size": str(SIZE), "licence": "Apache-2.0"}
        save_tensors(EMBEDDED / "restorer256.safetensors", {k: v.half() for k, v in state.items()}, own | record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=[*TASKS, "export"])
    parser.add_argument("--all", action="store_true", help="train the prior, then the restorer, two minutes to one")
    parser.add_argument("--faces", type=Path, default=Path(".training/faces256.safetensors"))
    parser.add_argument("--work", type=Path, default=Path(".training"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=0, help="faces a step (default: the task's own)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare faces (%(default)s: this one)")
    parser.add_argument("--from-shipped", action="store_true", help="without a checkpoint: begin with what ships")
    parser.add_argument("--mean-with-shipped", action="store_true", help="for export, see above")
    parser.add_argument("--pieces", type=Path, help="folder for checkpoints in small files")
    parser.add_argument("--cooldown", action="store_true", help="let the learning rate fall to zero over these minutes")
    args = parser.parse_args()
    if args.all == bool(args.what):
        parser.error("name prior, restorer or export, or give --all")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if args.what == "export":
        export(args)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    faces = Faces(args.faces)
    parts = {"prior": args.minutes * 2 / 3, "restorer": args.minutes / 3} if args.all else {args.what: args.minutes}
    with contextlib.suppress(KeyboardInterrupt):
        for name, minutes in parts.items():
            train(TASKS[name], faces, args, minutes)


if __name__ == "__main__":
    main()
