"""Restorers in ONNX files, such as GPEN's, which onnxruntime runs: for restoring only, they cannot be tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..device import Precision
from ..errors import first_line
from ..files.photos import printable
from ..files.tensors import sha256_of
from ..files.weights import licence_of
from .base import Restorer

SUFFIX = ".onnx"
DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
ON_CARD, ON_CPU = "CUDAExecutionProvider", "CPUExecutionProvider"  # what onnxruntime computes with
# A key of the format's external data, with the bytes before it: the weights would be read from a path in the file.
ELSEWHERE = b"\x0a\x08location"


class Session(nn.Module):
    """An onnxruntime session as a module. Faces go through it one by one, because most such files take one at a time.

    session: takes a picture (1, 3, S, S) of `dtype` and gives one of the same shape. available: what this onnxruntime
    can compute with, by its names.
    """

    def __init__(self, session: Any, name: str, dtype: torch.dtype, available: Sequence[str] = ()) -> None:
        super().__init__()
        self.available = tuple(available)
        self.session, self.name, self.dtype = session, name, dtype
        self.computes_on = torch.device("cpu")
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)  # says to which device results go

    def run_on(self, device: torch.device) -> None:
        """Let onnxruntime compute on this device, if it has a part for it, else on the CPU."""
        self.computes_on = device
        if device.type == "cuda" and ON_CARD in self.available:
            self.session.set_providers([(ON_CARD, {"device_id": device.index or 0}), ON_CPU])
        elif ON_CARD in self.session.get_providers():
            self.session.set_providers([ON_CPU])

    def forward(self, faces: Tensor) -> Tensor:
        """(B, 3, S, S) -> the same shape, float32. Raises ValueError for a network that gives anything else."""
        if self.place.device != self.computes_on:  # a host has moved the module by itself
            self.run_on(self.place.device)
        return torch.cat([self._one(face) for face in faces.split(1)])

    def _one(self, face: Tensor) -> Tensor:
        given = face.to("cpu", self.dtype).contiguous().numpy()
        try:
            made = torch.from_numpy(self.session.run(None, {self.name: given})[0])
        except Exception as error:  # onnxruntime has a class of its own for each reason
            raise ValueError(f"an ONNX network failed on a face of {tuple(face.shape)}: {_line_of(error)}") from None
        if made.shape != face.shape:
            raise ValueError(f"an ONNX network made {tuple(made.shape)} of a face of {tuple(face.shape)}")
        return made.to(face.device, torch.float32)


@dataclass(eq=False)
class OnnxRestorer(Restorer):
    """A network that takes and gives RGB in [-1, 1], as all face restorers do that are published as ONNX: GPEN, GFPGAN,
    RestoreFormer."""

    channels_last = False
    makes_faces_only: ClassVar[bool] = True
    not_tuned_because = "is an ONNX file, which restores and cannot be tuned or saved; give its .pth or .safetensors"

    def to(self, device: torch.device | str) -> OnnxRestorer:
        """As `Restorer.to`; onnxruntime goes on that card, where it can use one, or on the CPU."""
        super().to(device)
        assert isinstance(self.module, Session)
        self.module.run_on(self.device)
        return self

    def default_precision(self) -> Precision:
        """float32, because the file says in which precision it computes."""
        return "float32"

    def __call__(self, lq: Tensor) -> Tensor:
        return (self.module(lq * 2 - 1) + 1) / 2


def load_onnx(path: Path, sizes: tuple[int, int], default_size: int) -> OnnxRestorer:
    """The restorer in an ONNX file, on the CPU until it is moved to a GPU that onnxruntime can use.

    sizes: the smallest and the largest side in pixels. default_size: where the file leaves the side open. Nothing
    outside the file is read. Raises ValueError if the file is damaged, is no network from a face to a face, or the
    package onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError(
            f"{path.name}: is an ONNX file, which needs the package onnxruntime: pip install onnxruntime"
        ) from None
    content = path.read_bytes()
    if ELSEWHERE in content:
        raise ValueError(f"{path.name}: keeps its weights in another file; give one that holds them itself")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is raised, too
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[ON_CPU])
    except Exception as error:  # onnxruntime has a class of its own for each reason
        raise ValueError(f"{path.name}: is not a readable ONNX file ({_line_of(error)})") from None
    name, dtype, side = _picture_in(path, session.get_inputs())
    size = side or default_size
    if not sizes[0] <= size <= sizes[1]:
        raise ValueError(
            f"{path.name}: takes pictures of {size} pixels a side; {sizes[0]} to {sizes[1]} are known here"
        )
    digest = sha256_of(path)
    module = Session(session, name, dtype, onnxruntime.get_available_providers()).eval()
    return OnnxRestorer(module, "ONNX", size, path.name, digest, licence_of(digest))


def _line_of(error: Exception) -> str:
    return printable(first_line(error)[:160])


def _picture_in(path: Path, inputs: list[Any]) -> tuple[str, torch.dtype, int]:
    """Name, type and side in pixels, 0 where it is open, of the only input: a square RGB picture (1, 3, S, S)."""
    (one, *others) = inputs or [None]
    shape = [side if isinstance(side, int) and side > 0 else 0 for side in one.shape] if one else []
    square = len(shape) == 4 and shape[0] in (0, 1) and shape[1] in (0, 3) and shape[2] == shape[3]
    if others or not square or one.type not in DTYPES:
        takes = ", ".join(f"{given.name} {given.type} {given.shape}" for given in inputs)[:160]
        raise ValueError(f"{path.name}: takes {takes}; only networks from one face, (1, 3, S, S), to another are run")
    return one.name, DTYPES[one.type], shape[2]
