"""Measures by published networks: there where their package is installed and their file is on this machine.

Nothing is ever fetched. The packages' own loaders would run code that a file holds, so each file is read by ours first,
which refuses such files.

NIQE and MUSIQ come from pyiqa (PolyForm Noncommercial 1.0.0), FID's network from piq (Apache-2.0).
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from .checkpoints import load_tensors

log = logging.getLogger(__name__)

# Where the packages themselves keep these files, below torch's hub folder.
PYIQA_FILES = {"niqe": "pyiqa/niqe_modelparameters.mat", "musiq": "pyiqa/musiq_koniq_ckpt-e95806b9.pth"}
INCEPTION_FILE = "checkpoints/pt_inception-2015-12-05-6726825d.pth"
NIQE_LEAST = 96  # pixels a side: NIQE looks at whole blocks of this size


def hub_file(name: str) -> Path | None:
    """A file below torch's hub folder, if it is there."""
    path = Path(torch.hub.get_dir()) / name
    return path if path.is_file() else None


def find_quality() -> dict[str, Callable[[Tensor], Tensor]]:
    """NIQE and MUSIQ, those that are here: key -> (faces (B, 3, H, W) RGB in [0, 1] -> (B,)). They need no clean face.

    niqe: "Completely blind image quality analyzer" (Mittal et al., 2013), on luma, distance from its authors' natural
    images; not a number below 96 x 96 pixels. musiq: arXiv:2108.05997, trained on KonIQ-10k.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, file in PYIQA_FILES.items():
        path = hub_file(file)
        if path is None or find_spec("pyiqa") is None:
            continue
        try:
            if path.suffix == ".pth":
                load_tensors(path)
            with contextlib.redirect_stdout(sys.stderr):  # it prints while it loads
                from pyiqa import create_metric

                found[name] = _scores(create_metric(name, device="cpu"), NIQE_LEAST if name == "niqe" else 1)
        except (ImportError, ValueError, RuntimeError) as error:
            log.warning("%s is not measured: %s", name.upper(), str(error).splitlines()[0])
    return found


def _scores(score: Callable[[Tensor], Tensor], least: int) -> Callable[[Tensor], Tensor]:
    def scores(faces: Tensor) -> Tensor:
        if min(faces.shape[-2:]) < least:
            return torch.full((len(faces),), torch.nan, dtype=torch.float64)
        return torch.cat([score(face.float().clamp(0, 1)).flatten() for face in faces.split(1)]).cpu().double()

    return scores


def find_inception() -> Callable[[Tensor], Tensor] | None:
    """Features for `metrics.fid`, if their network is here: faces (B, 3, H, W) RGB in [0, 1] -> (B, 2048) float32.

    The Inception network of the first FID (2015-12-05), as ported by pytorch-fid (Apache-2.0) and used by piq.
    """
    path = hub_file(INCEPTION_FILE)
    if path is None or find_spec("piq") is None:
        return None
    try:
        load_tensors(path)
        from piq.feature_extractors import InceptionV3

        net = InceptionV3().eval()
    except (ImportError, ValueError, RuntimeError) as error:
        log.warning("FID is not measured: %s", str(error).splitlines()[0])
        return None

    @torch.inference_mode()
    def features(faces: Tensor) -> Tensor:
        return net(faces.float().clamp(0, 1))[0].flatten(1)

    return features
