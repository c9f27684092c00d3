"""x * sigmoid(x) as one kernel, in networks whose source spells it out.

Spelt out, it reads and writes the largest tensors of a network twice; where it was compiled by `torch.jit.script`, as
CodeFormer's, it is also computed in float32 within bfloat16, with a copy before and after. `benchmarks/memory.py`
compares restorers with the networks as spandrel builds them.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any

from torch import nn
from torch.nn import functional as F


def with_one_kernel(network: nn.Module, name: str) -> nn.Module:
    """`network`, whose parts call `torch.nn.functional.silu` where they called the function `name` of their source.

    Only these objects change: their classes, and with them other users' networks, stay as they are. Results differ by
    the rounding of one product. A part whose class does not call that function is left alone.
    """
    for part in network.modules():
        kind: Any = type(part)
        forward = kind.forward
        if isinstance(forward, FunctionType) and name in forward.__code__.co_names and name in forward.__globals__:
            part.__class__ = _calling_silu(kind, name)
    return network


@cache
def _calling_silu(kind: Any, name: str) -> Any:
    """The class `kind` with another forward: the same code, for which `name` is silu."""
    old: FunctionType = kind.forward
    forward = FunctionType(old.__code__, old.__globals__ | {name: F.silu}, name="forward", closure=old.__closure__)
    forward.__defaults__, forward.__kwdefaults__ = old.__defaults__, old.__kwdefaults__
    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
