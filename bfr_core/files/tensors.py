"""Read and write files of tensors. Every file is untrusted: nothing in it is executed."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import first_line
from .ownership import sha256_of as sha256_of
from .photos import printable, replace_atomically

MAX_TENSORS = 20_000
MAX_BYTES = 1 << 34  # of a file: SDXL's U-Net in full precision has 10 GB; published face networks have far less
MAX_AXIS = 1 << 20  # entries of a tensor along one axis
MAX_HEADER = 1 << 24  # bytes of a safetensors file's table of contents
MAX_JSON = 1 << 20  # bytes of a side-car or config
NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NUMBERS |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
MAX_REASON = 160  # characters of another library's words
WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "params-ema", "model", "net")
METADATA = "bfr_adapt"  # where a PyTorch file of this program has what a safetensors file has as metadata
PREFIXES = ("module.", "_orig_mod.", "netG.")  # that wrappers of networks put before every name
HEAD = 512  # bytes at the start of a file, by which other kinds of files are known
GIT_LFS = b"version https://git-lfs"
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
ARCHIVES = {b"\x1f\x8b": "a gzip archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a RAR archive"}
PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
TEXT = frozenset(b"\t\r\n") | frozenset(range(32, 127))
SPARE_BYTES = 1 << 26  # how much building a network may take beyond what its file holds


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a .safetensors or PyTorch file by name, on the CPU, and the metadata, which few PyTorch files have.

    PyTorch files may wrap the tensors as {"params_ema": ...}, or by another name of `WRAPPERS`.
    Raises FileNotFoundError, or ValueError when the file is damaged, holds code or NaN, or claims absurd sizes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path.name}: has {path.stat().st_size} bytes; that is no network this program knows")
    _refuse_other_kinds(path)
    if path.suffix.lower() == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _read_tensors(path)
    _refuse_absurd(path, state)
    for name, value in state.items():
        if value.is_floating_point() and value.numel() and not _is_finite(value):
            raise ValueError(f"{path.name}: {name} holds NaN or infinite numbers; the file is damaged, get it anew")
    # Copies, apart from the file: while that is mapped into memory, Windows does not let anyone replace it.
    return {name: value.clone() for name, value in state.items()}, metadata


def _is_finite(value: Tensor) -> bool:
    value = value.float() if value.dtype == torch.float16 else value  # PyTorch 2.1 has no aminmax of float16
    return bool(torch.stack(torch.aminmax(value)).isfinite().all())


def _refuse_other_kinds(path: Path) -> None:
    """Raise ValueError, naming what the file is and what to do, if by its start it plainly holds no weights."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    is_safetensors = head[8:9] == b"{"  # after a length, whose bytes may be an archive's mark
    if not head:
        said = "is empty; get the file anew"
    elif path.suffix.lower() == ".onnx":
        said = "is an ONNX file; only face restorers are opened of these; give its .pth or .safetensors file"
    elif text.startswith(GIT_LFS):
        said = "is a git-lfs pointer, which stands for the weights and holds none; run 'git lfs pull' or download it"
    elif text.startswith(PAGES):
        said = "is a web page, which came in place of the weights; download the file itself"
    elif (archive := next((ARCHIVES[mark] for mark in ARCHIVES if head.startswith(mark)), "")) and not is_safetensors:
        said = f"is {archive}; unpack it and give the file of weights that is in it"
    elif (picture := next((PICTURES[mark] for mark in PICTURES if head.startswith(mark)), "")) and not is_safetensors:
        said = f"is a {picture} picture, which holds no weights; a picture's name must end as such names do"
    elif TEXT.issuperset(head):
        said = "is a text, which holds no weights; get the file anew"
    else:
        return
    raise ValueError(f"{path.name}: {said}")


def _refuse_absurd(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless these are plain tensors of plain numbers, no more of them than the file has room for."""
    if len(state) > MAX_TENSORS:
        raise ValueError(f"{path.name}: holds {len(state)} tensors; that is no network this program knows")
    for name, value in state.items():
        if value.layout != torch.strided or value.dtype not in NUMBERS or value.device.type != "cpu":
            raise ValueError(f"{path.name}: {name} is no plain tensor ({value.dtype}, {value.layout}, {value.device})")
        if max(value.shape, default=0) > MAX_AXIS or value.ndim > 8:
            raise ValueError(f"{path.name}: {name} has the absurd shape {tuple(value.shape)}")
    # Tensors of a PyTorch file may show the same bytes again and again, which costs room once they are used.
    shown, there = sum(value.numel() * value.element_size() for value in state.values()), path.stat().st_size
    if shown > 2 * there + (1 << 20):
        raise ValueError(f"{path.name}: its tensors would take {shown} bytes, but the file has {there}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if MAX_HEADER < header <= path.stat().st_size:
        raise ValueError(
            f"{path.name}: its table of contents has {header} bytes; that is no network this program knows"
        )
    try:
        with named_in_utf8(path) as place, safe_open(place, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OverflowError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{path.name}: not a readable safetensors file ({reason_of(error)}); it may be cut short"
        ) from None


@contextmanager
def named_in_utf8(path: Path) -> Iterator[Path]:
    """`path`, or another name of its file, for a while, where its own is not UTF-8, which safetensors and PyTorch need.

    Such names are known on Linux alone.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/proc/self/fd/{file.fileno()}")
    else:
        yield path


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a .safetensors file, read from its table of contents alone; none if it has no such."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            return set()
        try:
            table = json.loads(file.read(length))
        except (ValueError, RecursionError):
            return set()
    return set(table) - {"__metadata__"} if isinstance(table, dict) else set()


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU and mapped to the file. Raises ValueError; nothing is executed.

    It is read by `torch.serialization.load`: hosts put functions of their own in place of `torch.load`, of which some
    rename what they cannot read, and some refuse files of newer PyTorch.
    """
    zipped = _is_honest_zip(path)
    try:
        # Mapped into memory: older PyTorch would otherwise read past a record that claims more bytes than it has.
        with named_in_utf8(path) as place:
            return torch.serialization.load(str(place), map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = str(error).rpartition("WeightsUnpickler error: ")[2]
        if "resize storage" in reason:  # so older PyTorch refuses a tensor that reaches past its bytes
            raise ValueError(f"{path.name}: not a readable PyTorch file ({reason}); it may be cut short") from None
        raise ValueError(f"{path.name}: holds more than tensors; such a file can run code and is refused") from None
    except Exception as error:  # it raises many kinds on a damaged file
        raise ValueError(
            f"{path.name}: not a readable PyTorch file ({reason_of(error)}); it may be cut short"
        ) from None


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    content = read_pickle(path)
    metadata = content.get(METADATA) if isinstance(content, Mapping) else None
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise ValueError(f"{path.name}: holds no table of tensors")
    if not isinstance(metadata, Mapping) or not all(isinstance(x, str) for pair in metadata.items() for x in pair):
        metadata = {}
    return dict(content), dict(metadata)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the names that the network itself gives, if a wrapper put one of `PREFIXES` before all of them."""
    found = dict(state)
    for prefix in PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _is_honest_zip(path: Path) -> bool:
    """Whether a PyTorch file is a zip, as all newer ones are. Raises ValueError if it is a packed one."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ValueError(
            f"{path.name}: not a readable PyTorch file ({reason_of(error)}); it may be cut short"
        ) from None
    unfolded = sum(record.file_size for record in records)
    if unfolded > path.stat().st_size or any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError(f"{path.name}: unfolds to {unfolded} bytes; no network is packed like that")
    return True


class LimitedBuilding(TorchDispatchMode):
    """A context in which building a network may take about as much memory as its tensors in the file, and no more.

    Raises ValueError where it would take more, before it does: the shapes in a small file may add up to a huge network.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.left = 2 * sum(value.nbytes for value in state.values()) + SPARE_BYTES

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], list | tuple) and all(type(n) is int for n in args[0]):  # a new tensor's shape
            self.left -= 4 * math.prod(args[0])
            if self.left < 0:
                raise ValueError("it would take much more memory than its file has bytes")
        return func(*args, **(kwargs or {}))


def reason_of(error: Exception) -> str:
    """What an error says, on one short line; of PyTorch's lists of what does not fit, the first entry."""
    line = first_line(error, heading="Error(s) in loading")
    return printable(line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]}...")


def misfit_of(error: Exception) -> str:
    """Why tensors make no network: the error's own text, or a plain sentence where that text helps only programmers."""
    told = isinstance(error, RuntimeError | ValueError)
    return reason_of(error) if told else "the shapes of its tensors do not fit each other"


def whole_number(text: Any, least: int, most: int) -> int:
    """`text` as a whole number within limits. Raises ValueError."""
    if isinstance(text, str) and text.strip().isdecimal() and len(text) < 12:
        text = int(text)
    if type(text) is not int or not least <= text <= most:
        raise ValueError(f"is {text!r:.40}; it must be a whole number from {least} to {most}")
    return text


def save_tensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file; an older one stays until the new one is complete.

    The same tensors and metadata always make the same bytes.
    """
    from safetensors.torch import save_file

    whole = {k: v.detach().cpu().contiguous() for k, v in state.items()}

    def write(part: Path) -> None:
        _with_reason(lambda: save_file(whole, part, dict(metadata)))
        _sort_contents(part)

    replace_atomically(path, write)


def _sort_contents(path: Path) -> None:
    """Sort a safetensors file's table of contents in its place: safetensors writes the metadata in any order.

    The metadata come first, by name, then the tensors as their bytes follow each other; those stay where they are. The
    table as it is written here is never longer than safetensors writes it; if it were, the file would stay as it is.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
        metadata = table.pop("__metadata__", None)
        tensors = sorted(table.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        first = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
        text = json.dumps(first | dict(tensors), ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def save_pickled(path: Path, state: object) -> None:
    """Write what `torch.save` makes of `state`; an older file stays until the new one is complete."""
    replace_atomically(path, lambda part: _with_reason(lambda: _pickled(state, part)))


def _pickled(state: object, part: Path) -> None:
    with open(part, "wb") as file:  # a file that PyTorch opens by itself gives no reason when the disk refuses
        torch.save(state, file)


def _with_reason(write: Callable[[], object]) -> None:
    """`write`, which raises OSError where the disk refuses: safetensors only says so in words, and PyTorch hides it
    behind the error of ending the file."""
    from safetensors import SafetensorError

    try:
        write()
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
