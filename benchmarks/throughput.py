"""Three ratios that say whether time goes into the networks and not around them.

    python benchmarks/throughput.py

Restoring: share of the wall time of `restore_folder`, on 200 aligned crops, that is spent in the network (aim: 0.85).
Sampling: images a second that the fast sampler passes through the U-Net, over those of the bare U-Net called in a loop
at the same batch size (aim: 0.80).
Finishing: the processor's time for a photo with what keeps a restored face no worse than its photo (`NO_WORSE`), over
that without: of whole photos with detection and likeness as by default, and of a face of each width alone, in a clean
and in a grainy photo. Each ratio compares two things in one run; the worse of two is printed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core import SamplerConfig, load_prior, load_restorer, sample_constrained
from bfr_core.device import autocast
from bfr_core.faces.align import Face, template
from bfr_core.files.photos import write_image
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.restore import NO_WORSE, FindFaces, RestoreConfig, restore_photo
from bfr_core.studies.demo import real_photos

CROPS, BATCH, CALLS = 200, 8, 10
WIDTHS = (100, 256, 600)  # pixels of a face


def restoring() -> float:
    restorer = load_restorer()
    with tempfile.TemporaryDirectory() as folder:
        smooth = torch.rand(CROPS, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        crops = torch.nn.functional.interpolate(smooth, (restorer.size,) * 2, mode="bicubic").clamp(0, 1)
        for i, crop in enumerate(crops):
            write_image(Path(folder) / "photos" / f"{i:03d}.png", crop)
        result = restore_folder(
            Path(folder) / "photos", Path(folder) / "out", restorer, RestoreConfig(batch_size=BATCH), aligned=True
        )
    assert result.count("restored") == CROPS
    return result.network_seconds / result.seconds


@torch.no_grad()
def sampling() -> float:
    prior = load_prior()
    reference = torch.zeros(BATCH, 3, prior.size, prior.size)
    config = SamplerConfig(t_start=100, t_constrain_end=25, factor=2, calls=CALLS)
    t = torch.full((BATCH,), 100)
    with autocast(reference.device, "auto"):
        prior(reference, t)
        started = time.perf_counter()
        for _ in range(CALLS):
            prior.network(torch.nn.functional.pixel_unshuffle(reference, prior.patch), t)
        bare = time.perf_counter() - started
        started = time.perf_counter()
        sample_constrained(prior, reference, config)
        return bare / (time.perf_counter() - started)


def finishing(photo: torch.Tensor, find: FindFaces | None, likeness: str) -> float:
    restorer = load_restorer()

    def seconds(**switches: Any) -> float:
        started = time.process_time()
        restore_photo(photo, restorer, RestoreConfig(detector="embedded", likeness=likeness, **switches), find)
        return time.process_time() - started

    off = dict.fromkeys(NO_WORSE, False)
    seconds(**off)  # the first call prepares
    return max(seconds() / seconds(**off) for _ in range(2))


def one_face(width: int, noise: float) -> float:
    draws, side = torch.Generator().manual_seed(0), 2 * width
    smooth = torch.rand(1, 3, 16, 16, generator=draws)
    photo = torch.nn.functional.interpolate(smooth, (side, side), mode="bicubic")[0]
    photo = (photo + noise * torch.randn(photo.shape, generator=draws)).clamp(0, 1)
    face = Face(template(1) * width + side / 4)
    return finishing(photo, lambda photo: [face], "off")


if __name__ == "__main__":
    print(f"restoring: {min(restoring() for _ in range(2)):.2f} of the wall time is inside the network (aim 0.85)")
    print(f"sampling:  {min(sampling() for _ in range(2)):.2f} of the bare U-Net's throughput (aim 0.80)")
    for name, photo in real_photos().items():
        print(f"finishing: {finishing(photo, None, 'warn'):.2f} times the time of a whole photo ({name})")
    for width in WIDTHS:
        clean, grainy = (one_face(width, noise) for noise in (0.0, 0.05))
        print(f"finishing: {clean:.2f} times (clean), {grainy:.2f} times (grainy) of a face of {width} pixels")
