"""Open and save restorers. To add a kind: write an adapter beside this file and enter it in `ADAPTERS`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from ..checkpoints import load_tensors, save_tensors, sha256_of
from .base import Restorer

EMBEDDED = Path(__file__).parents[1] / "embedded" / "restorer128.safetensors"

# spandrel's architecture name -> adapter. `Restorer` itself serves networks that map [0, 1] RGB to [0, 1] RGB.
ADAPTERS: dict[str, type[Restorer]] = {"NAFNet": Restorer, "SwinIR": Restorer}

DEFAULT_SIZE = 512  # of published face restorers, whose files do not say it


def load_restorer(name_or_path: str | Path = "embedded") -> Restorer:
    """The restorer in a .safetensors or .pth file, on the CPU, in eval mode.

    "embedded" is the 128 x 128 restorer that ships with this project. Raises FileNotFoundError, or ValueError when
    the file is damaged or of a kind that is not known.
    """
    import spandrel

    path = EMBEDDED if str(name_or_path) == "embedded" else Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"restorer {name_or_path}: no such file ('embedded' is the one that ships)")
    state, metadata = load_tensors(path)
    try:
        descriptor = spandrel.ModelLoader().load_from_state_dict({k: v.float() for k, v in state.items()})
    except spandrel.UnsupportedModelError:
        raise ValueError(f"{path.name}: spandrel does not know this architecture; known here: {_known()}") from None
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path.name}: its network cannot be rebuilt ({reason})") from None
    adapter = ADAPTERS.get(descriptor.architecture.id)
    if adapter is None:
        raise ValueError(f"{path.name}: is a {descriptor.architecture.id}; known restorers are {_known()}")
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or descriptor.scale != 1:
        raise ValueError(f"{path.name}: enlarges its input; a face restorer keeps the size")
    return adapter(
        # Channels last: a third faster here on a CPU, and what tensor cores want on a GPU.
        module=descriptor.model.eval().requires_grad_(False).to(memory_format=torch.channels_last),
        architecture=descriptor.architecture.id,
        size=int(metadata.get("size", DEFAULT_SIZE)),
        name=path.name,
        sha256=sha256_of(path),
        licence=metadata.get("licence", "unknown"),
        metadata=metadata,
    )


def save_restorer(path: Path, restorer: Restorer, metadata: Mapping[str, object], half: bool = False) -> None:
    """Write the restorer as .safetensors that spandrel and `load_restorer` open; whole or not at all.

    metadata: added to architecture, size and licence; values other than text are written as JSON.
    """
    dtype = torch.float16 if half else torch.float32
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in restorer.module.state_dict().items()}
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    own = {"architecture": restorer.architecture, "size": str(restorer.size), "licence": restorer.licence}
    save_tensors(path, state, own | text)


def _known() -> str:
    return ", ".join(sorted(ADAPTERS))
