"""Where networks run, and which number format is fast there."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def check_precision(precision: str) -> None:
    """Raise ValueError unless `precision` is auto, float32 or bfloat16."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; it must be auto, float32 or bfloat16")


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """A context in which networks run in `precision`; "auto" is bfloat16 where the hardware has it natively.

    Raises ValueError for another name.
    """
    check_precision(precision)
    if precision == "float32" or (precision == "auto" and not has_bfloat16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first GPU if there is one that torch can use, else the CPU.

    Raises ValueError for a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}, which cannot be used here ({reason}); try auto or cpu") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the computer's memory is too small."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    said = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return said or isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 arithmetic is native, so that it saves time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())
