"""Which number format a device computes fast in."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """A context in which networks run in `precision`; "auto" is bfloat16 where the hardware has it natively.

    Raises ValueError for another name.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; it must be auto, float32 or bfloat16")
    if precision == "float32" or (precision == "auto" and not has_bfloat16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 arithmetic is native, so that it saves time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())
