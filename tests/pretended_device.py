"""A graphics card that is only pretended: tensors of the CPU that count as lying on Apple's GPU.

Under the mode below a tensor that is moved to, or made on, the device "mps" stays an ordinary one, but its memory is
marked. `Tensor.device` answers "mps" for it, and what is computed from it is marked, too. What the real device would
not do raises `Refused`: float64, tensors of two devices in one operation, NumPy, a generator of the CPU, and
operations that PyTorch 2.1 lacks there. The marks are weak references to the memory, so that it can be counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("mps")
WIDE = {torch.float64, torch.complex128}
TRANSFERS = {"copy_", "__setitem__"}  # write into one device what lies on another
MOVES = {"data", "_has_compatible_shallow_copy_type"}  # how a module takes its moved parameters
INDEXED_BY = {"__getitem__", "__setitem__"}  # with indices of the CPU, too
# Take a single number of the CPU beside tensors of the device.
TAKE_NUMBERS = {f"{a}{name}{b}" for name in ("add", "sub", "mul", "div", "truediv", "pow")
                for a, b in (("", ""), ("", "_"), ("__", "__"), ("__r", "__"))}  # fmt: skip
TAKE_NUMBERS |= {"_foreach_mul_"}  # as gradients are clipped by: PyTorch itself asks where they really lie
LACKING = ("linalg_", "fft_", "isin", "svd", "qr", "cdist", "stft")
PRESENT = {"linalg_norm", "linalg_vector_norm"}
# Asked of a tensor all the time; the answers are no tensors, and the same on every device.
PLAIN = {"shape", "size", "dim", "ndim", "dtype", "layout", "requires_grad", "is_floating_point", "numel", "stride"}
LEAVES = {int, float, bool, str, type(None), torch.dtype, torch.device}


class Refused(AssertionError):
    """What the device would not do; no error that the program takes for one of its own."""


class PretendedDevice(TorchFunctionMode):
    """The mode; tensors made before it is entered lie on the CPU. It holds in the thread that entered it."""

    def __init__(self) -> None:
        super().__init__()
        self._marked: dict[int, StorageWeakRef] = {}
        self._scripts = Follower(self)
        self.moving = False

    def __enter__(self) -> PretendedDevice:
        self._scripts.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._scripts.__exit__(*error)

    # ------------------------------------------------------------ for tests

    def held(self) -> int:
        """How many pieces of memory of the device are in use."""
        return sum(not memory.expired() for memory in self._marked.values())

    def holds(self, tensor: Tensor) -> bool:
        """Whether `tensor` lies on the device."""
        with torch._C.DisableTorchFunction():
            return self._holds(tensor)

    def _holds(self, tensor: Tensor) -> bool:
        memory = self._marked.get(tensor.untyped_storage()._cdata)
        return memory is not None and not memory.expired()

    # ------------------------------------------------------------ what PyTorch calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):  # of a property of tensors
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in PLAIN:
            return func(*args, **kwargs)
        there = any(map(self._holds, tensors((args, kwargs))))
        if name == "device":
            return DEVICE if there else func(*args)
        if name in ("to", "cpu", "cuda"):
            return self._move(name, args, kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == DEVICE.type:
            if kwargs.get("generator") is not None:
                raise Refused(f"{name} on {DEVICE} with a generator of the CPU")
            made = func(*args, **kwargs | {"device": "cpu"})
            return self._mark(made.clone() if any(made is given for given in tensors(args)) else made, name)
        if not there:
            return func(*args, **kwargs)
        self._refuse(name, args, kwargs)
        made = func(*args, **kwargs)
        if name not in TRANSFERS and "device" not in kwargs:
            for tensor in tensors(made):
                self._mark(tensor, name)
        return made

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        source, *rest = args
        there = self.holds(source)
        if name == "cuda":
            raise Refused("there is no CUDA device")
        kwargs = {key: value for key, value in kwargs.items() if key != "copy"}
        if name == "cpu":
            target, dtype, layout = torch.device("cpu"), source.dtype, None
        elif rest and isinstance(rest[0], Tensor):
            target, dtype, layout = (DEVICE if self.holds(rest[0]) else rest[0].device), rest[0].dtype, None
        else:
            target, dtype, _, layout = torch._C._nn._parse_to(*rest, **kwargs)
            target = target or (DEVICE if there else source.device)
        if there and dtype in WIDE and source.dtype != dtype:
            raise Refused(f"{dtype} on {DEVICE}: the tensor must be on the CPU first")
        real = torch.device("cpu") if target == DEVICE else target
        self.moving = True
        moved = source.to(real, dtype or source.dtype, memory_format=layout or torch.preserve_format)
        if (target == DEVICE) != there and moved.untyped_storage()._cdata == source.untyped_storage()._cdata:
            moved = moved.clone()
        self.moving = False
        return self._mark(moved, name) if target == DEVICE else moved

    def _mark(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.dtype in WIDE:
            raise Refused(f"{name} gave {tensor.dtype} on {DEVICE}, which has none")
        self.mark(tensor)
        return tensor

    def mark(self, tensor: Tensor) -> None:
        if tensor.device.type == "cpu":
            memory = tensor.untyped_storage()
            self._marked[memory._cdata] = StorageWeakRef(memory)

    def _refuse(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        """Raise `Refused` for what the device, whose tensors are among the arguments, does not do."""
        if name in ("numpy", "__array__"):
            raise Refused(f"{name} of a tensor on {DEVICE}")
        if name.startswith(LACKING) and name not in PRESENT:
            raise Refused(f"PyTorch 2.1 has no {name} on {DEVICE}")
        if name == "interpolate" and (kwargs.get("antialias") or kwargs.get("mode") == "bicubic"):
            raise Refused(f"PyTorch 2.1 has no antialiased or bicubic {name} on {DEVICE}")
        if name == "grid_sample" and kwargs.get("mode") == "bicubic":
            raise Refused(f"PyTorch has no bicubic {name} on {DEVICE}")
        if name == "grid_sample" and kwargs.get("padding_mode") == "border":
            raise Refused(f"PyTorch before 2.11 has no {name} with padding_mode border on {DEVICE}")
        if name in MOVES or (name in TRANSFERS and name not in INDEXED_BY):
            return
        looked_at = (args[0], *args[2:]) if name in INDEXED_BY else args
        for tensor in tensors((looked_at, kwargs)):
            number = tensor.ndim == 0 and name in TAKE_NUMBERS
            if not self.holds(tensor) and not number:
                raise Refused(f"{name} of tensors on {DEVICE} and on the CPU, the latter {tuple(tensor.shape)}")


class Follower(TorchDispatchMode):
    """Marks what TorchScript and the backward pass compute, which the mode above does not see and cannot refuse."""

    def __init__(self, card: PretendedDevice) -> None:
        super().__init__()
        self.card = card
        self._copies: dict[Any, bool] = {}  # operation -> whether it copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in self._copies:
            self._copies[func] = "copy_" in str(func)
        if not (self.card.moving or self._copies[func]):
            with torch._C.DisableTorchFunction():
                if any(map(self.card._holds, tensors((args, kwargs)))):
                    for tensor in tensors(made):
                        self.card.mark(tensor)
        return made


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and tables."""
    found: list[Tensor] = []
    waiting = [value]
    while waiting:  # a loop, and types before `isinstance`: this is called for every operation
        part = waiting.pop()
        if type(part) in LEAVES:
            continue
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
    return found
