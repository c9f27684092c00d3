"""Tune a tiny network for the tests, as one of several processes or alone: OUT, dtype, step to stop at or 0."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from spandrel.architectures.NAFNet import NAFNet

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bfr_core.cluster.processes import team_of_processes
from bfr_core.restorers.base import Restorer
from bfr_core.training.config import FinetuneConfig
from bfr_core.training.finetune import finetune

STEPS = 50


class StopError(Exception):
    pass


def main(out: Path, dtype: torch.dtype, stop: int) -> None:
    torch.manual_seed(0)
    net = NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1]).to(dtype).eval()
    faces = torch.nn.functional.interpolate(torch.rand(12, 3, 8, 8), (32, 32), mode="bicubic").clamp(0, 1).to(dtype)
    pairs = list(zip((faces * 0.8 + 0.1), faces, strict=True))
    more: dict[str, Any] = {} if dtype == torch.float64 else {"adversarial": 0.1, "anchor": 0.5, "transplant": 0.5}
    given: dict[str, Any] = {
        "adversarial": 0.0,
        "perceptual": 0.0,
        "discriminator_features": 8,
        "precision": "float32",
    } | more
    config = FinetuneConfig(
        iterations=STEPS,
        batch_size=6,
        micro_batch=2,
        lr=1e-3,
        lr_end=1e-4,
        texture=0.1,
        judge_every=20,
        held_out=0.0,
        **given,
    )
    team = team_of_processes(cpu=True)

    def callback(step: int, steps: int, progress: object) -> None:
        if stop and step == stop:
            raise StopError

    try:
        tuned, _ = finetune(
            Restorer(net, "tiny", 32, "test"), pairs, config, checkpoint=out / "last.pt", callback=callback, team=team
        )
    except StopError:
        return
    torch.save(net.state_dict(), out / "before.pt")
    torch.save(tuned.module.state_dict(), out / f"tuned {team.number} of {team.count}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
