"""Everything the nodes need of ComfyUI: its folders, model management, progress and cancelling, and texts on nodes."""

from __future__ import annotations

import copy
import hashlib
import html
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy import model_management, model_patcher, utils
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from server import PromptServer
from torch import Tensor, nn

from ..bfr_core.adaptation.run import Run
from ..bfr_core.diffusion.prior import Prior
from ..bfr_core.faces.detect import RETINAFACE_FILE
from ..bfr_core.files.photos import printable
from ..bfr_core.files.weights import ALSO, name_more_folders
from ..bfr_core.pixels import resized
from ..bfr_core.reports.pictures import sheet
from ..bfr_core.restoration.background import ADAPTED, OFF, Background, load_background
from ..bfr_core.restoration.tiles import in_tiles
from ..bfr_core.restoration.video import FrameStore
from ..bfr_core.restorers import Restorer
from ..bfr_core.restorers.load import SHIPPED
from ..bfr_core.settings import setting_at
from . import convert, paths

log = logging.getLogger(__name__)

CATEGORY = "BFR Adapt"
RUNS = "bfr_runs"  # folder of the runs, below ComfyUI's output
RESTORERS, PRIORS = "facerestore_models", "bfr_priors"  # folders below ComfyUI's models; other packs use the first, too
UPSCALERS = "upscale_models"  # ComfyUI's own folder, where denoisers lie, too
DETECTORS = "facedetection"  # where packs keep face detectors, and ParseNet
FRAMES = "bfr_frames"  # folder of videos that are being restored, below ComfyUI's folder of temporary files
WEIGHT_SUFFIXES = (".safetensors", ".pth")
RESTORER_SUFFIXES = (*WEIGHT_SUFFIXES, ".onnx")
FOLDERS_DEEP, MAX_FOLDERS = 3, 500  # of the list of folders in ComfyUI's input
PREVIEW_SECONDS, PREVIEW_PIXELS = 0.5, 512
TEXT_KEY = "bfr_text"  # of a node's text among what it shows, as web/bfr_adapt.js looks for it
RESULT_PICTURES, RESULT_PIXELS = 9, 1024
SHOWN_PIXELS = 2048  # of a picture on a node: what is larger is shown smaller
# Memory asked for, in bytes per pixel of a face: to run a restorer or prior, and to tune one; both are generous.
RUNNING, TUNING = 1_500, 12_000
TILE, TILE_OVERLAP = 512, 64  # pixels a side of the pieces that an upscaler is given, and what neighbours share
TUNED_COPIES = 8  # of the weights: base, tuned, average, best, Adam's two moments, gradients, and room
NEEDED_FOR = {
    "spandrel": "restorers cannot be loaded",
    "diffusers": "priors in diffusers folders, the embedded one too, cannot be loaded",
    "facexlib": "faces are found with the embedded detector only",
}

RestorerType = io.Custom("BFR_RESTORER")
PriorType = io.Custom("BFR_PRIOR")
FacesType = io.Custom("BFR_FACES")
PairsType = io.Custom("BFR_PAIRS")


def register_folders() -> None:
    """Tell ComfyUI where restorers, priors and detectors lie, and the library where ComfyUI has them; none is made.

    The folders that extra_model_paths.yaml names under these keys count, too.
    """
    for name in (RESTORERS, PRIORS, DETECTORS):
        folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
    folders = [folder for name in (DETECTORS, RESTORERS, UPSCALERS) for folder in folder_paths.get_folder_paths(name)]
    name_more_folders(ALSO, folders)


def missing_packages() -> str:
    """What is not installed and what does not work without it, in one line; "" if nothing is missing."""
    missing = [f"{name} ({what})" for name, what in NEEDED_FOR.items() if not _installed(name)]
    return f"BFR Adapt: not installed: {'; '.join(missing)}" if missing else ""


def how_to_install() -> str:
    """What to do about a missing package; ComfyUI's registry delivers the pack without install.py."""
    if (Path(__file__).resolve().parents[1] / "install.py").is_file():
        return "run this pack's install.py with ComfyUI's Python"
    return "install this pack's requirements.txt with ComfyUI's Python"


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


# ---------------------------------------------------------------- nodes


class Node(io.ComfyNode):
    """A node that works outside ComfyUI's inference mode, whose tensors cannot be trained on or with."""

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        with torch.inference_mode(False), torch.no_grad():
            try:
                return cls.work(**inputs)
            except ModuleNotFoundError as error:
                raise ValueError(f"the package {error.name} is missing: {how_to_install()}") from error

    @classmethod
    def work(cls, *args: Any, **inputs: Any) -> io.NodeOutput:
        """What the node does."""
        raise NotImplementedError


def judged(check: Callable[[str], Any], text: str | None) -> bool | str:
    """What `validate_inputs`, which ComfyUI calls before it runs anything, answers for a text: True, or the line of
    `check`'s ValueError. None, a text that comes from another node and is not known yet, is checked by the run."""
    try:
        if text is not None:
            check(text)
    except ValueError as error:
        return str(error)
    return True


def schema(
    node_id: str, name: str, about: str, inputs: list, outputs: list, aliases: tuple[str, ...] = (), **more: Any
) -> io.Schema:
    """A node's schema; what this ComfyUI's schema has no field for is left out.

    A newer ComfyUI sends what a node shows again, after its page was loaded anew or where nothing changed, only for
    nodes of output and for those that say that they have an intermediate one.
    """
    optional = {"search_aliases": list(aliases), "has_intermediate_output": not more.get("is_output_node", False)}
    known = {f.name for f in fields(io.Schema)}
    return io.Schema(
        node_id=node_id,
        display_name=name,
        category=CATEGORY,
        description=about,
        inputs=inputs,
        outputs=outputs,
        hidden=[io.Hidden.unique_id],
        **{key: value for key, value in optional.items() if key in known},
        **more,
    )


def widget(config: Any, field: str, **options: Any) -> Any:
    """A widget for a setting, whose kind, default, tooltip, range and choices are those of the dataclass's field.

    options: id, if it is not the field's name; advanced, for experts; and what a host's widget needs besides, such as a
    narrower range.
    """
    known = setting_at(config, field)
    for_experts, name = options.pop("advanced", False), options.pop("id", field)
    if known.choices:
        made = io.Combo.Input(
            name, default=known.default, tooltip=known.help_text, options=list(known.choices), **options
        )
        return advanced(made) if for_experts else made
    limits = {"min": known.low, "max": known.high}
    own = {key: known.kind(limit) for key, limit in limits.items() if limit is not None and known.kind in (int, float)}
    kind = {bool: io.Boolean, int: io.Int, float: io.Float, str: io.String}[known.kind]
    made = kind.Input(name, default=known.default, tooltip=known.help_text, **own | options)
    return advanced(made) if for_experts else made


def advanced(widget: Any) -> Any:
    """`widget`, which a newer ComfyUI shows on demand only; older ones take no such argument and ignore the entry."""
    widget.extra_dict = {**(getattr(widget, "extra_dict", None) or {}), "advanced": True}
    return widget


def seed_widget() -> Any:
    """The seed, which behaves as every other one in ComfyUI."""
    tooltip = "Seed of every random draw: the same one gives the same result. It is best left on fixed."
    modes = getattr(io, "ControlAfterGenerate", None)  # older ComfyUIs begin with "randomize", whatever is wanted
    control = modes.fixed if modes else True
    return io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=control, tooltip=tooltip)


def preview_widget() -> Any:
    """Whether the pictures of a batch are shown on the node, which writes each to the disk."""
    tooltip = "Shows the pictures on the node, which writes each as a temporary PNG; switch it off for video frames."
    return io.Boolean.Input("preview", optional=True, default=True, tooltip=tooltip)


def output(cls: type[Node], *values: Any, text: str = "", picture: Tensor | None = None) -> io.NodeOutput:
    """The node's outputs, with `text` and `picture` (B, 3, H, W) shown on the node.

    Not every version of ComfyUI's page shows the text that `say` sends; web/bfr_adapt.js then shows that of `TEXT_KEY`.
    """
    shown: dict[str, Any] = {}
    if text:
        say(cls, text)
        shown |= {"text": [escaped(text)], TEXT_KEY: [text]}
    if picture is not None:
        shown |= ui.PreviewImage(convert.to_image(shrunk(picture, SHOWN_PIXELS)), cls=cls).as_dict()
    return io.NodeOutput(*values, ui=shown)


def shrunk(pictures: Tensor, most: int) -> Tensor:
    """Pictures (B, 3, H, W), shrunk so far that neither side is longer than `most` pixels."""
    shrink = min(1.0, most / max(pictures.shape[-2:]))
    return resized(pictures, [max(1, math.floor(n * shrink)) for n in pictures.shape[-2:]], "area")


def say(cls: type[Node], text: str) -> None:
    """Show `text` on the node, where this ComfyUI can."""
    send = getattr(PromptServer.instance, "send_progress_text", None)
    if send and cls.hidden and cls.hidden.unique_id:
        send(escaped(text), cls.hidden.unique_id)


def escaped(text: str) -> str:
    """`text` as a page shows it, markup and all."""
    return html.escape(text, quote=False)


def nothing() -> Any:
    """A placeholder for an output that has no value; the nodes after it do not run."""
    return ExecutionBlocker(None)


# ---------------------------------------------------------------- folders


def folder(place: str) -> Path:
    """ComfyUI's folder "input" or "output"."""
    return Path(folder_paths.get_input_directory() if place == "input" else folder_paths.get_output_directory())


def photo_folders() -> list[str]:
    """Folders of ComfyUI's folder "input" by their path in it, linked ones included; no file is opened."""
    return paths.folders_inside(folder("input"), FOLDERS_DEEP, MAX_FOLDERS)


def open_run(name: str) -> Run:
    """The run of this name. Raises ValueError for a name that leads elsewhere or is empty."""
    if not name.strip("./ "):
        raise ValueError("run is empty; give the run a name, such as old_photos")
    root = folder("output") / RUNS
    paths.inside(folder("output"), RUNS)
    return Run(paths.inside(root, name))


def weight_files(kind: str) -> list[str]:
    """Files of weights in ComfyUI's folders of this kind, by relative path; nothing is opened.

    Restorers are looked for here: other packs (ReActor, facerestore_cf) set ComfyUI's list to suffixes without .onnx.
    """
    if kind != RESTORERS:
        return [name for name in folder_paths.get_filename_list(kind) if name.lower().endswith(WEIGHT_SUFFIXES)]
    found = {
        os.path.relpath(os.path.join(at, name), root)
        for root in folder_paths.get_folder_paths(kind)
        for at, _, names in os.walk(root, followlinks=True)
        for name in names
    }
    return sorted(name for name in found if name.lower().endswith(RESTORER_SUFFIXES))


def prior_folders() -> list[str]:
    """diffusers folders directly below ComfyUI's folders of priors."""
    found = [path for root in folder_paths.get_folder_paths(PRIORS) for path in sorted(Path(root).glob("*/"))]
    return [p.name for p in found if any(os.path.isfile(p / f) for f in ("config.json", "model_index.json"))]


def weight_path(kind: str, name: str) -> str | Path:
    """Where the chosen file or folder is; the name of one that comes with the pack stays as it is.

    Raises ValueError for a name that leads out of ComfyUI's folders, FileNotFoundError if there is none.
    """
    if name in SHIPPED:
        return name
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        path = paths.to_read(root, name.replace("\\", "/"))  # ComfyUI lists folders of Windows with backslashes
        if path.exists():
            return path
    raise FileNotFoundError(f"{printable(name)}: is not in ComfyUI's folder {kind}; refresh the list (R)")


def save_folder() -> Path:
    """Where restorers are saved: ComfyUI's own folder, unless extra_model_paths.yaml has made another base the default.

    Its folders of a kind that ComfyUI does not know come first, default or not; those of checkpoints tell.
    """
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(RESTORERS)]
    models = Path(folder_paths.models_dir)
    by_default = Path(folder_paths.get_folder_paths("checkpoints")[0])
    own = models in by_default.parents and models / RESTORERS in folders
    return models / RESTORERS if own else folders[0]


def detector_folder() -> Path:
    """Where ComfyUI packs keep face detectors: the first such folder with RetinaFace's file, else the first."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(DETECTORS)]
    return next((folder for folder in folders if (folder / RETINAFACE_FILE).is_file()), folders[0])


def frame_store(images: Tensor, made_with: str) -> FrameStore:
    """Where the work on a video is kept until it is done; ComfyUI empties that folder when it starts.

    images: the frames, IMAGE. made_with: a fingerprint of all else that the results depend on.
    """
    digest = hashlib.sha256(made_with.encode())
    for frame in images:
        digest.update(frame.detach().to("cpu", torch.float32).contiguous().numpy())
    name = digest.hexdigest()[:16]
    return FrameStore(Path(folder_paths.get_temp_directory()) / FRAMES / name, digest.hexdigest())


def stamp(path: Path) -> tuple[str, int, int]:
    """Name, size and time of a file, for fingerprints; of a folder, those of its files as one."""
    if os.path.isdir(path):
        inner = [stamp(p) for p in sorted(path.rglob("*")) if os.path.isfile(p)]
        return path.name, sum(size for _, size, _ in inner), max((time for *_, time in inner), default=0)
    try:
        status = path.stat()
    except OSError:  # gone, or a link to itself: who reads it says so
        return path.name, 0, 0
    return path.name, status.st_size, status.st_mtime_ns


# ---------------------------------------------------------------- models


class FaceNetwork(nn.Module):
    """Carries the attributes that ComfyUI's model management sets on a model, so that the network stays clean."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


@dataclass(frozen=True, eq=False)
class Managed:
    """A restorer or prior whose memory ComfyUI manages. network: use it inside `on_device` only.

    paused: whether its tuning was paused before it was done.
    """

    network: Any
    patcher: Any
    paused: bool = False


def managed(network: Restorer | Prior, paused: bool = False) -> Managed:
    """`network`, on the CPU, handed to ComfyUI's model management."""
    load, rest = model_management.get_torch_device(), model_management.unet_offload_device()
    carrier = FaceNetwork(_module(network))
    return Managed(network, model_patcher.ModelPatcher(carrier, load_device=load, offload_device=rest), paused)


def device() -> torch.device:
    """Where ComfyUI wants networks to run."""
    return model_management.get_torch_device()


@contextmanager
def on_device(*models: Managed, faces: int = 1) -> Iterator[Callable[[], None]]:
    """The models, whole, on ComfyUI's device, with room for `faces` at once; ComfyUI may move them away afterwards.

    Before every call of a model it is checked whether the user has cancelled. The context gives a function that brings
    the models back: where memory is short, ComfyUI moves them away, in parts even, whenever room is asked for.
    """
    pixels = max(model.network.size for model in models) ** 2
    patchers = [model.patcher for model in models]

    def bring() -> None:
        model_management.load_models_gpu(patchers, memory_required=RUNNING * pixels * faces, force_full_load=True)

    bring()
    called = [part for model in models for part in _called(_module(model.network))]
    hooks = [part.register_forward_pre_hook(_check) for part in called]
    try:
        yield bring
    finally:
        for hook in hooks:
            hook.remove()


def for_training(model: Managed, faces: int) -> Any:
    """A copy of the network on ComfyUI's device, of ordinary tensors; asks for room to tune it on `faces` at once.

    Before every call of it, or of a copy of it, it is checked whether the user has cancelled.
    """
    device = model_management.get_torch_device()
    pixels = model.network.size**2
    needed = TUNED_COPIES * model.patcher.model_size() + TUNING * pixels * faces
    model_management.free_memory(needed, device)
    if isinstance(model.network, Prior):
        copied: Any = copy.deepcopy(model.network)
    else:
        copied = replace(model.network, module=copy.deepcopy(model.network.module))
    _module(copied).register_forward_pre_hook(_check)
    return copied.to(device)


def _module(network: Restorer | Prior) -> nn.Module:
    return network.network if isinstance(network, Prior) else network.module


def _called(module: nn.Module) -> list[nn.Module]:
    """The modules of a restorer that are called: its own, or each of several restorers in one."""
    return list(module) if isinstance(module, nn.ModuleList) else [module]


def _check(*_: Any) -> None:
    model_management.throw_exception_if_processing_interrupted()


def free() -> None:
    """Give back to the device what is no longer used."""
    model_management.soft_empty_cache()


def background(choice: str, restorer: Restorer, bring_back: Callable[[], None]) -> Background | None:
    """What restores the rest of photos, see `load_background`; if a file does, there is room for it on the device.

    bring_back: of the restorer, see `on_device`.
    """
    if choice in (OFF, ADAPTED):
        return load_background(choice, restorer)
    needed = Path(choice).stat().st_size + TILE * TILE * 3 * 4 * 384
    model_management.free_memory(needed, restorer.device)
    found = load_background(choice, restorer)
    bring_back()
    return found


def enlarger(model: Any, check: Callable[[], None], bring_back: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """(3, H, W) -> (3, nH, nW) by an UPSCALE_MODEL, in tiles, smaller ones where memory is short.

    bring_back: of the networks that are used between the calls, see `on_device`.
    A newer ComfyUI gives the model with a patcher, by which its own management loads it and takes it away again.
    """
    patcher = getattr(model, "patcher", None)

    def enlarge(photo: Tensor) -> Tensor:
        needed = TILE * TILE * 3 * 4 * 384 * max(model.scale, 1)
        if patcher is not None:
            device = patcher.load_device
            model_management.load_models_gpu([patcher], memory_required=needed, force_full_load=True)
        else:
            device = model_management.get_torch_device()
            model_management.free_memory(needed + model_management.module_size(model.model), device)
            model.to(device)

        def network(part: Tensor) -> Tensor:
            check()
            return model(part.to(device))

        try:
            return in_tiles(photo, network, TILE, TILE_OVERLAP, scale=model.scale)
        finally:
            if patcher is None:
                model.to("cpu")
            bring_back()

    return enlarge


# ---------------------------------------------------------------- progress


class NodeProgress:
    """Progress bar, preview and cancel of a node: the callback that every long stage takes.

    cls, doing: the node, and the text that it shows until it is done. It is shown before any picture, because ComfyUI's
    page would lay it over the picture.
    """

    def __init__(self, cls: type[Node] | None = None, doing: str = "") -> None:
        self.bar = utils.ProgressBar(1)
        self.shown_at = 0.0
        if cls:
            say(cls, doing)

    def check(self) -> None:
        """Raises ComfyUI's own exception if the user has cancelled."""
        model_management.throw_exception_if_processing_interrupted()

    def __call__(self, stage: str, step: int, total: int, detail: Any = None) -> None:
        """Moves the bar; what `detail` is depends on the stage and is not shown. Raises if cancelled."""
        self.show(step, total)

    def show(self, step: int, total: int, picture: Callable[[], Tensor | None] | None = None) -> None:
        """Moves the bar and, at most twice a second, shows `picture()`, (3, H, W) in [0, 1]. Raises if cancelled."""
        self.check()
        preview = None
        if picture and time.monotonic() - self.shown_at > PREVIEW_SECONDS:
            found = picture()
            if found is not None:
                small = shrunk(found[None], PREVIEW_PIXELS)[0]
                preview = ("JPEG", convert.to_pillow(small), PREVIEW_PIXELS)
                self.shown_at = time.monotonic()
        self.bar.update_absolute(step, max(1, total), preview)

    def end(self, picture: Tensor) -> None:
        """Shows the result, (B, 3, H, W), because some pages leave the last live picture in its place."""
        if self.shown_at:
            some = picture[:RESULT_PICTURES].float().cpu()
            columns = math.ceil(len(some) ** 0.5)
            some = shrunk(some, RESULT_PIXELS // columns)
            rows = [list(some[i : i + columns]) for i in range(0, len(some), columns)]
            self.bar.update_absolute(1, 1, ("JPEG", convert.to_pillow(sheet(rows)), RESULT_PIXELS))
