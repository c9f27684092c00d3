"""Where networks run, and which number format is fast there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from .errors import first_line

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """A context in which networks run in `precision`, whatever is around it; "auto" is as `default_precision` says.

    Raises ValueError for another name, and for bfloat16 where PyTorch cannot switch a network to it.
    """
    if check_precision(precision) == "auto":
        precision = default_precision(device)
    if precision == "float32":
        return full_precision(device)
    if not has_autocast(device):
        raise ValueError(f"precision is 'bfloat16', which this PyTorch does not offer on {device}; use auto or float32")
    return torch.autocast(device.type, torch.bfloat16)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast, for computations outside networks: matrix products and convolutions stay float32."""
    return torch.autocast(device.type, enabled=False) if has_autocast(device) else contextlib.nullcontext()


def has_autocast(device: torch.device) -> bool:
    """Whether PyTorch can switch the number format of networks on this kind of device."""
    if device.type in ("cpu", "cuda"):
        return True
    tell = getattr(torch.amp, "is_autocast_available", None)  # since PyTorch 2.4
    if not tell or not tell(device.type):
        return False
    with contextlib.suppress(AssertionError):  # of a backend of its own it says yes without asking it
        torch.autocast(device.type, enabled=False)
        return True
    return False


def check_precision(precision: Precision) -> Precision:
    """`precision` itself. Raises ValueError for a name that is not one of `Precision`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be auto, float32 or bfloat16")
    return precision


def default_precision(device: torch.device) -> Precision:
    """What "auto" means on this device, by its hardware alone: bfloat16 where it is native, else float32."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def lay_out(network: Network) -> Network:
    """`network`, all on one device, with its weights channels last on a CPU, and so all that its convolutions compute.

    There bfloat16 takes a third to two thirds of the time for it. On a GPU, PyTorch's group norm would copy every image
    back and forth.
    """
    device = next((weight.device.type for weight in network.parameters()), "cpu")
    layout = torch.channels_last if device == "cpu" else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first CUDA GPU if there is one that torch can use, else the CPU.

    Raises ValueError for a device that cannot be used on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error)
        raise ValueError(f"device is {name!r}, which cannot be used here ({reason}); try auto or cpu") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the computer's memory is too small."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "not enough gpu video memory")
    said = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    return said or isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)


def halving(
    work: Callable[[int], Result], size: int, smallest: int = 1, of: str = "faces at once"
) -> tuple[Result, int]:
    """`work(size)`, and the size that it was done with, which is halved as often as the memory is too small for it.

    Each attempt begins anew, so `work` must leave nothing behind that a second call would count twice. Any other error
    of `work` is raised, and so is its error of memory if half the size would be below `smallest`. of: what the size
    counts, for the log.
    """
    while True:
        try:
            return work(size), size
        except (RuntimeError, MemoryError) as error:
            if size // 2 < smallest or not is_out_of_memory(error):
                raise
        # From here on the error, and with it all that the failed call held in memory, is gone.
        log.warning("too little memory for %d %s; going on with %d", size, of, size // 2)
        size //= 2
        release_memory()


def in_batches(work: Callable[[slice], Result], count: int, size: int) -> Iterator[Result]:
    """What `work` returns for the slices of `count` faces, in order; each has `size` faces, or fewer by `halving`."""
    start = 0
    while start < count:

        def some(length: int, start: int = start) -> Result:
            return work(slice(start, start + length))

        result, size = halving(some, min(size, count - start))
        start += size
        yield result


def release_memory() -> None:
    """Give back to the system the memory of graphics cards that PyTorch holds in reserve and no tensor needs."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def has_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 arithmetic is native, so that it saves time."""
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported counts emulation, too, unless told not to, which it can be since PyTorch 2.4.
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def where_all_works(image: Tensor) -> Tensor:
    """`image`, on the CPU if its own device lacks float64, linear algebra or bicubic sampling, as Apple's GPU does."""
    return image.cpu() if image.device.type == "mps" else image
