"""Read and write files of tensors. Every file is untrusted: nothing in it is executed."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

MAX_TENSORS = 20_000


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a .safetensors or PyTorch file by name, on the CPU, and the metadata (safetensors only).

    PyTorch files may wrap the tensors as {"params_ema": ...}, {"params": ...} or {"state_dict": ...}.
    Raises FileNotFoundError, or ValueError when the file is damaged, holds code, or holds NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _read_pickle(path), {}
    if len(state) > MAX_TENSORS:
        raise ValueError(f"{path.name}: holds {len(state)} tensors; that is no network this program knows")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"{path.name}: {name} holds NaN or infinite numbers; the file is damaged, get it anew")
    return state, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name}: not a readable safetensors file ({error}); it may be cut short") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path.name}: holds more than tensors; such a file can run code and is refused") from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name}: not a readable PyTorch file ({reason}); it may be cut short") from None
    for key in ("params_ema", "params", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path.name}: holds no table of tensors")
    return dict(content)


def save_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file; an older one stays until the new one is complete."""
    from safetensors.torch import save_file

    from .images import replace_atomically

    whole = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    replace_atomically(path, lambda part: save_file(whole, part, dict(metadata)))


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: BinaryIO) -> str:  # Python 3.10
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()
