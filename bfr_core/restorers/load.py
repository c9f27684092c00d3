"""Open and save restorers. To add a kind: write an adapter beside this file and enter it in `ADAPTERS`."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..files.photos import printable
from ..files.tensors import (
    METADATA,
    LimitedBuilding,
    load_tensors,
    misfit_of,
    named_in_utf8,
    reason_of,
    save_pickled,
    save_tensors,
    sha256_of,
    whole_number,
    without_prefix,
)
from ..files.weights import entry_of, licence_of, locations, resolve, search_folders
from .base import Restorer
from .codeformer import CodeFormer
from .gfpgan import GFPGAN
from .low_rank import KIND, apply_change, factor_change
from .nafnet import NAFNet
from .onnx_file import SUFFIX as ONNX
from .onnx_file import load_onnx
from .restoreformer import RestoreFormer
from .routed import GROUPS, ONE_GROUP, Routed, members_of, read_groups, save_groups
from .silu import with_one_kernel

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parents[1] / "embedded" / "restorer256.safetensors"
EMBEDDED_SMALL = EMBEDDED.with_name("restorer128.safetensors")  # older changes are changes of it, and likeness needs it
SHIPPED = {"embedded": EMBEDDED, "embedded128": EMBEDDED_SMALL}

# spandrel's architecture name -> adapter. `Restorer` itself serves networks that map [0, 1] RGB to [0, 1] RGB.
ADAPTERS: dict[str, type[Restorer]] = {
    "CodeFormer": CodeFormer,
    "GFPGAN": GFPGAN,
    "NAFNet": NAFNet,
    "RestoreFormer": RestoreFormer,
    "SwinIR": Restorer,
}

CODEFORMER_MARK = "codeformer"  # other programs take a .pth file for a CodeFormer if its name has this word
DEFAULT_SIZE = 512  # pixels a side of published face restorers, whose files do not say it
UNSHUFFLING = "0.4.2"  # the first spandrel that opens a SwinIR whose input pixels are rearranged into channels
SIZES = (16, 2048)  # pixels a side: the smallest and the largest that a file may say
OF_ITS_KIND = ("kind", "members")  # metadata that only files of changes and of groups have, not whole restorers


def load_restorer(name_or_path: str | Path = "embedded") -> Restorer:
    """The restorer in a .safetensors, .pth or .onnx file, on the CPU, in eval mode.

    "embedded" is the 256 x 256 restorer that ships with this project, and "embedded128" a smaller one that ships, too;
    a name of `weights.TABLE` is looked for in `weights.search_folders`; a file of low-rank changes is applied to the
    base that it names; a file of groups loads the restorers that it names in its own folder; an ONNX file can be run
    and not tuned. Raises FileNotFoundError, or ValueError when the file is damaged or of a kind that is not known.
    """
    path = SHIPPED.get(str(name_or_path)) or resolve(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"restorer {printable(path)}: is not a file ('embedded' is the one that ships)")
    if path.suffix.lower() == ONNX:
        return load_onnx(path, SIZES, DEFAULT_SIZE)
    state, metadata = load_tensors(path)
    if metadata.get("kind") == KIND:
        return _with_change(path, state, metadata)
    if metadata.get("kind") == GROUPS:
        return _with_groups(path, state, metadata)
    import spandrel

    state = {k: v.float() for k, v in state.items()}
    names = {id(v): k for k, v in state.items()}
    state = without_prefix(state)
    descriptor = _described(path, state)
    adapter = ADAPTERS.get(descriptor.architecture.id)
    if adapter is None:
        raise ValueError(f"{path.name}: is a {descriptor.architecture.id}; known restorers are {_known()}")
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or descriptor.scale != 1:
        raise ValueError(f"{path.name}: enlarges its input; a face restorer keeps the size")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ValueError(f"{path.name}: is no network for colour pictures; a face restorer takes and gives RGB")
    module = descriptor.model.eval().requires_grad_(False)
    module = with_one_kernel(module, adapter.spelt_out_silu) if adapter.spelt_out_silu else module
    return adapter(
        module=module.to(memory_format=torch.channels_last) if adapter.channels_last else module,
        architecture=descriptor.architecture.id,
        size=_size_of(path, metadata),
        name=path.name,
        sha256=(digest := sha256_of(path)),
        licence=metadata.get("licence") or licence_of(digest),
        metadata=metadata,
        # spandrel renames tensors in the dictionary it is given; the tensors themselves stay the same objects.
        file_keys={k: names[id(v)] for k, v in state.items() if names.get(id(v), k) != k},
    )


def load_general(name_or_path: str | Path) -> tuple[Any, Path]:
    """spandrel's descriptor of a network for pictures of any kind, on the CPU, in eval mode, and its file.

    It takes and gives RGB in [0, 1] and may enlarge. name_or_path: as for `load_restorer`. Raises FileNotFoundError,
    or ValueError for a file that is damaged, or of another kind, such as a network that makes faces only.
    """
    import spandrel

    path = resolve(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"{printable(path)}: is not a file; name the file of a network for whole pictures")
    state, metadata = load_tensors(path)
    if metadata.get("kind") in (KIND, GROUPS):
        raise ValueError(f"{path.name}: is made of other files; give the file of a network for whole pictures")
    descriptor = _described(path, without_prefix({k: v.float() for k, v in state.items()}))
    adapter = ADAPTERS.get(descriptor.architecture.id)
    if adapter and adapter.makes_faces_only:
        raise ValueError(
            f"{path.name}: is a {descriptor.architecture.id}, which makes faces only; "
            "give the file of a network for whole pictures"
        )
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise ValueError(f"{path.name}: takes more than a picture; give the file of a network that restores pictures")
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ValueError(
            f"{path.name}: is no network for colour pictures; give the file of one that takes and gives RGB"
        )
    descriptor.model.eval().requires_grad_(False)
    return descriptor, path


def _described(path: Path, state: dict[str, torch.Tensor]) -> Any:
    """spandrel's descriptor of the network that has the tensors `state`. Raises ValueError if it knows none."""
    import spandrel

    is_codeformer = {"position_emb", "idx_pred_layer.1.weight"} <= set(state)
    try:
        registry = known_architectures() if is_codeformer else spandrel.MAIN_REGISTRY
        # The random numbers that fill a network before its file is read must not be taken from the process's own.
        with torch.random.fork_rng(devices=[]), LimitedBuilding(state):
            descriptor = spandrel.ModelLoader(registry=registry).load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        if is_codeformer:
            raise ValueError(
                f"{path.name}: is a CodeFormer, whose network comes with an optional package that is under a "
                "non-commercial licence: pip install spandrel_extra_arches"
            ) from None
        raise ValueError(f"{path.name}: spandrel does not know this architecture; known here: {_known()}") from None
    except Exception as error:  # whatever a strange table of tensors makes the reader of an architecture stumble on
        raise ValueError(f"{path.name}: its network cannot be rebuilt ({misfit_of(error)})") from None
    if 1 < getattr(descriptor.model, "start_unshuffle", 1) == getattr(descriptor, "scale", 1):
        raise ValueError(
            f"{path.name}: this kind of {descriptor.architecture.id} is read rightly by spandrel "
            f"{UNSHUFFLING} or newer, and {version('spandrel')} is installed; update spandrel"
        )
    return descriptor


def save_restorer(path: Path, restorer: Restorer, metadata: Mapping[str, object], half: bool = False) -> None:
    """Write the restorer as .safetensors under its base file's own keys; whole or not at all.

    spandrel, ComfyUI and `load_restorer` open it. metadata: added to architecture, size and licence; values other
    than text are written as JSON, and entries of other kinds of files, `OF_ITS_KIND`, are left out. half: in float16.
    """
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items() if k not in OF_ITS_KIND}
    save_tensors(path, _file_state(restorer, torch.float16 if half else torch.float32), _own_metadata(restorer) | text)


def save_several(path: Path, routed: Routed, half: bool = False) -> None:
    """Write a file of groups to `path`, and the restorers that it names into the folder NAME.groups beside it."""
    files = []
    for i, one in enumerate(routed.members):
        file = path.with_suffix(".groups") / (f"{i}.safetensors" if i else "base.safetensors")
        if one:
            save_restorer(file, one, {k: v for k, v in one.metadata.items() if k != "licence"}, half)
        files.append(file if one else None)
    metadata = {k: v for k, v in routed.metadata.items() if k not in OF_ITS_KIND}
    assert routed.groups is not None and files[0] is not None
    save_groups(path, routed.groups, files[0], files[1:], metadata)


def metadata_in(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; {} if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with named_in_utf8(path) as place, safe_open(place, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def export_pth(path: Path, restorer: Restorer) -> None:
    """Write the restorer as {"params_ema": ...}, for programs that read only .pth; whole or not at all.

    The metadata of its file, licences included, goes with it under a key that those programs ignore.
    """
    state = {k: v.cpu().contiguous() for k, v in _file_state(restorer, torch.float32).items()}
    metadata = {k: v for k, v in restorer.metadata.items() if k not in OF_ITS_KIND} | _own_metadata(restorer)
    save_pickled(path, {"params_ema": state, METADATA: metadata})
    named, is_one = CODEFORMER_MARK in path.name.lower(), isinstance(restorer, CodeFormer)
    if named != is_one:
        log.warning(
            "%s: is %s CodeFormer, and ReActor and facerestore_cf go by 'codeformer' in the name; rename it",
            printable(path.name), "a" if is_one else "no",
        )  # fmt: skip


def save_change(path: Path, base: Restorer, tuned: Restorer, rank: int, metadata: Mapping[str, object]) -> None:
    """Write only what tuning changed, in low-rank factors (fp16); `load_restorer` applies it to the same base.

    rank: the highest rank of a factor. The change is exact after low-rank tuning of that rank, and the nearest of that
    rank after full tuning.
    """
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    own = {
        "kind": KIND,
        "architecture": base.architecture,
        "size": str(base.size),
        "base": base.name,
        "base_sha256": base.sha256,
        "licence": base.licence,
    }
    factors = factor_change(base.module.state_dict(), tuned.module.state_dict(), rank)
    save_tensors(path, {k: v.half() for k, v in factors.items()}, own | text)


def _with_change(path: Path, factors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Restorer:
    """The base that a file of changes names, found by its SHA-256, with the changes applied."""
    name, wanted = metadata.get("base", ""), metadata.get("base_sha256", "")
    if not name or not wanted:
        raise ValueError(f"{path.name}: is a change of a restorer, but does not say of which one")
    name = Path(name).name  # a file from a stranger: never a path
    published = entry_of(wanted)  # whoever shared the change may have had it under another name
    places = [*SHIPPED.values(), path.parent / name, *locations(published.name if published else name)]
    places += [folder / name for folder in search_folders()]  # the user's own, which no table knows
    base = next((p for p in places if p.is_file() and sha256_of(p) == wanted), None)
    if base is None:
        taken = (path.parent / name).exists()  # by another, such as the restorer of the run
        raise FileNotFoundError(
            f"{path.name}: changes {printable(name)} (SHA-256 {printable(wanted[:12])}...), which is not on this "
            f"machine; put that file beside it{', or both into another folder' if taken else ''}"
        )
    restorer = load_restorer(base)
    try:
        restorer.module.load_state_dict(apply_change(restorer.module.state_dict(), factors))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name}: does not fit {base.name}: {reason_of(error)}") from None
    return replace(restorer, name=path.name, sha256=sha256_of(path), metadata=metadata)


def _own_metadata(restorer: Restorer) -> dict[str, str]:
    return {"architecture": restorer.architecture, "size": str(restorer.size), "licence": restorer.licence}


def _with_groups(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Routed:
    """The restorers that a file of groups names, as one."""
    groups = read_groups(path, state)
    files = members_of(path, metadata, len(groups))
    for file in filter(None, files):
        if metadata_in(file).get("kind") == GROUPS:  # it might name itself
            raise ValueError(f"{path.name}: {file.name} is a file of groups itself; such a file is refused")
    members = [load_restorer(file) if file else None for file in files]
    licence = metadata.get("licence") or "unknown"
    return Routed.of(groups, members, name=path.name, sha256=sha256_of(path), licence=licence, metadata=metadata)


def _size_of(path: Path, metadata: Mapping[str, str]) -> int:
    try:
        return whole_number(metadata.get("size", DEFAULT_SIZE), *SIZES)
    except ValueError as error:
        raise ValueError(f"{path.name}: its metadata 'size' {error}") from None


def _file_state(restorer: Restorer, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if isinstance(restorer, Routed):
        raise ValueError(f"{restorer.name}: is several restorers; give the file of one group, such as {ONE_GROUP}")
    if restorer.not_tuned_because:
        raise ValueError(f"{restorer.name}: {restorer.not_tuned_because}")
    state = restorer.module.state_dict()
    return {restorer.file_keys.get(k, k): v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}


def known_architectures() -> Any:
    """spandrel's architectures, and those of spandrel_extra_arches where it is installed."""
    import spandrel

    registry = spandrel.MAIN_REGISTRY.copy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit.script is on its way out
            from spandrel_extra_arches import EXTRA_REGISTRY
    except ImportError:
        return registry
    registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return registry


def _known() -> str:
    return ", ".join(sorted(ADAPTERS))
