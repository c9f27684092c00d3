"""Measures by published networks, available where their package is installed and their file is on this machine.

Nothing is ever fetched. The packages' own loaders would run code that a file holds, so each file is read by our loader
first, which refuses such files.

NIQE, MUSIQ and MANIQA come from pyiqa (PolyForm Noncommercial 1.0.0), FID's network from piq (Apache-2.0). They are
tested with stand-ins and were not run with their published weights.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import first_line
from ..files.photos import printable, replace_atomically
from ..files.tensors import load_tensors, reason_of
from .fid import FeatureStatistics

log = logging.getLogger(__name__)

# Where the packages themselves keep these files, below torch's hub folder.
PYIQA_FILES = {
    "niqe": "pyiqa/niqe_modelparameters.mat",
    "musiq": "pyiqa/musiq_koniq_ckpt-e95806b9.pth",
    "maniqa": "pyiqa/ckpt_koniq10k.pt",
}
INCEPTION_FILE = "checkpoints/pt_inception-2015-12-05-6726825d.pth"
# The fewest pixels a side from which a measure says anything: NIQE looks at whole blocks, MANIQA at cut-outs this size.
MIN_SIDE = {"niqe": 96, "musiq": 1, "maniqa": 224}
STATISTICS_NAMES = (("mu", "sigma"), ("mean", "cov"))  # pytorch-fid's, and those of published face restorers


def hub_file(name: str) -> Path | None:
    """A file below torch's hub folder, if it is there."""
    path = Path(torch.hub.get_dir()) / name
    return path if path.is_file() else None


def find_quality() -> dict[str, Callable[[Tensor], Tensor]]:
    """Those of NIQE, MUSIQ and MANIQA that are available: key -> (faces (B, 3, H, W) RGB in [0, 1] -> (B,) float64).

    None needs clean faces. niqe: "Completely blind image quality analyzer" (Mittal et al., 2013), on luma, the distance
    from its authors' natural images; NaN below 96 x 96 pixels. musiq: arXiv:2108.05997, trained on KonIQ-10k. maniqa:
    arXiv:2204.08958, trained on KonIQ-10k, the mean over 20 cut-outs, which are the same at every call; NaN below
    224 x 224 pixels.
    """
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, file in PYIQA_FILES.items():
        path = hub_file(file)
        if path is None or find_spec("pyiqa") is None:
            continue
        try:
            if path.suffix in (".pth", ".pt"):
                load_tensors(path)
            with contextlib.redirect_stdout(sys.stderr), _without_pretrained_parts():  # it prints while it loads
                from pyiqa import create_metric

                found[name] = _scores(create_metric(name, device="cpu"), MIN_SIDE[name])
        except (ImportError, ValueError, RuntimeError) as error:
            log.warning("%s is not measured: %s", name.upper(), first_line(error))
    return found


@contextlib.contextmanager
def _without_pretrained_parts() -> Iterator[None]:
    """Within it, timm builds networks without weights: MANIQA makes it fetch some that its own file then replaces."""
    if find_spec("timm") is None:
        yield
        return
    import timm

    create_model = timm.create_model
    timm.create_model = lambda name, *args, **settings: create_model(name, *args, **(settings | {"pretrained": False}))
    try:
        yield
    finally:
        timm.create_model = create_model


def _scores(score: Callable[[Tensor], Tensor], least: int) -> Callable[[Tensor], Tensor]:
    def one(face: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)  # fixes MANIQA's cut-outs
            return score(face.float().clamp(0, 1)).flatten()

    def scores(faces: Tensor) -> Tensor:
        if min(faces.shape[-2:]) < least:
            return torch.full((len(faces),), torch.nan, dtype=torch.float64)
        return torch.cat([one(face) for face in faces.split(1)]).cpu().double()

    return scores


def find_inception() -> Callable[[Tensor], Tensor] | None:
    """Features for `metrics.fid`: faces (B, 3, H, W) RGB in [0, 1] -> (B, 2048) float32; None without their network.

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
        log.warning("FID is not measured: %s", first_line(error))
        return None

    @torch.inference_mode()
    def features(faces: Tensor) -> Tensor:
        return net(faces.float().clamp(0, 1))[0].flatten(1)

    return features


def read_statistics(path: Path) -> FeatureStatistics:
    """Statistics of a reference set for FID: a .npz file with mu and sigma, or a PyTorch file with mean and cov.

    The file is untrusted: nothing in it is executed. Raises FileNotFoundError, or ValueError in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)}: no such file of statistics")
    try:
        content = _read_npz(path) if path.suffix == ".npz" else _read_arrays(path)
    except ValueError as error:
        raise ValueError(f"{printable(path.name)}: holds no statistics that can be read ({error})") from None
    for names in STATISTICS_NAMES:
        if all(name in content for name in names):
            mean, covariance = (torch.as_tensor(np.asarray(content[name], np.float64)) for name in names)
            break
    else:
        raise ValueError(
            f"{printable(path.name)}: has neither mu and sigma nor mean and cov, so it is no file of statistics"
        )
    finite = mean.isfinite().all() and covariance.isfinite().all()
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not finite:
        raise ValueError(
            f"{printable(path.name)}: its mean {tuple(mean.shape)} and covariance {tuple(covariance.shape)} do not fit,"
            " or are not finite"
        )
    return FeatureStatistics(mean, covariance)


def write_statistics(path: Path, statistics: FeatureStatistics) -> None:
    """Write a .npz file that `read_statistics` and pytorch-fid read."""

    def write(part: Path) -> None:
        with part.open("wb") as stream:
            np.savez(stream, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())

    replace_atomically(path, write)


def _read_npz(path: Path) -> Mapping[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files if name in ("mu", "sigma", "mean", "cov")}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(first_line(error) if str(error) else "it is cut short") from None


def _read_arrays(path: Path) -> Mapping[str, Any]:
    """A PyTorch file of tensors, or of NumPy arrays, as statistics are published for face restorers."""
    try:
        return load_tensors(path)[0]
    except ValueError:
        if not hasattr(torch.serialization, "safe_globals"):
            raise
    # Only the constructors of plain arrays are let through; with them a file can fill an array and do nothing else.
    makers = [np.ndarray, np.dtype, type(np.dtype("float64")), type(np.dtype("float32"))]
    rebuild = np.empty(0).__reduce__()[0]
    named: list[Any] = [*makers, *((rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]
    try:
        with torch.serialization.safe_globals(named):
            content = torch.serialization.load(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError("it holds more than arrays; such a file can run code and is refused") from None
    except Exception as error:  # it raises many kinds on a damaged file
        raise ValueError(reason_of(error)) from None
    if not isinstance(content, Mapping):
        raise ValueError("it is no table of arrays")
    return content
