"""Measures of structure that piq computes: VIF and FSIM."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .checks import check_size, checked_pair


def vif(restored: Tensor, hq: Tensor) -> Tensor:
    """Visual information fidelity in the pixel domain, on luma: 0 nothing kept, 1 for equal images. Higher is better.

    Above 1 only where contrast was added. Raises ImportError if piq (`pip install piq`) is missing, ValueError below
    41 x 41 pixels.
    Source: Sheikh and Bovik, "Image information and visual quality", 2006, as implemented in piq (Apache-2.0).
    """
    piq = _piq()
    restored, hq = checked_pair(restored, hq)
    check_size(hq, 41, "VIF")
    return piq.vif_p(restored, hq, data_range=1.0, reduction="none").flatten()


def fsim(restored: Tensor, hq: Tensor) -> Tensor:
    """Feature similarity with colour (FSIMc), in [0, 1]. Higher is better; 1 for equal images.

    Raises ImportError if piq (`pip install piq`) is missing, ValueError below 41 x 41 pixels.
    Source: Zhang et al., "FSIM: a feature similarity index for image quality assessment", 2011, as implemented in piq.
    """
    piq = _piq()
    restored, hq = checked_pair(restored, hq)
    check_size(hq, 41, "FSIM")
    return piq.fsim(restored.float(), hq.float(), data_range=1.0, reduction="none").double().flatten()


def _piq() -> ModuleType:
    try:
        import piq
    except ImportError as error:
        raise ImportError("VIF and FSIM need the package piq: pip install piq") from error
    return piq
