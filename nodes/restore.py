"""The nodes of the fast path: load a restorer or a prior, and restore the faces of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..bfr_core import __version__
from ..bfr_core.diffusion.prior import load_prior
from ..bfr_core.faces.align import Face
from ..bfr_core.faces.detect import detector_named, faces_in_boxes, load_detector
from ..bfr_core.faces.landmarks import load_landmark_net
from ..bfr_core.faces.likeness import OTHER
from ..bfr_core.faces.parse import has_parser
from ..bfr_core.files.photos import printable
from ..bfr_core.files.records import fingerprint
from ..bfr_core.restoration.background import ADAPTED, BACKGROUND_TEXT, OFF
from ..bfr_core.restoration.restore import (
    NO_WORSE,
    RestoreConfig,
    RestoredPhoto,
    load_parser,
    restore_aligned,
    restore_photo,
)
from ..bfr_core.restoration.same_person import FaceLikeness, counted, load_check, warnings_of
from ..bfr_core.restoration.video import VIDEO_TEXT, FrameStore, VideoConfig, restore_frames
from ..bfr_core.restorers import Restorer, load_restorer
from ..bfr_core.restorers.codeformer import FIDELITY_TEXT, CodeFormer, with_fidelity
from ..bfr_core.restorers.load import SHIPPED
from . import convert, host
from .faces import lines

CONFIG = RestoreConfig()
BACKGROUNDS = (OFF, ADAPTED)  # and files
VIDEO = VideoConfig()
ONE_FRAME = (
    "video is on, but one picture came, in which nothing can be followed: give all frames as one batch (a list of "
    "pictures is restored picture by picture), or switch video off"
)
SegsType = io.Custom("SEGS")
BoxesType = io.Custom("BOUNDING_BOX")
DetectorType = io.Custom("BBOX_DETECTOR")


class LoadRestorer(host.Node):
    """A restorer from ComfyUI's model folders, or the embedded one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_LoadRestorer",
            "Load Restorer (BFR)",
            "Opens a face restorer: GFPGAN, RestoreFormer, SwinIR, CodeFormer, GPEN, a tuned one, or the embedded one.",
            [
                io.Combo.Input(
                    "restorer",
                    options=[*SHIPPED, *host.weight_files(host.RESTORERS)],
                    default="embedded",
                    tooltip=f"A file of models/{host.RESTORERS}; 'embedded' (256 pixels) and 'embedded128' come with "
                    "this pack. ONNX files (GPEN, ReActor's default) restore but cannot be tuned; they need "
                    "onnxruntime.",
                )
            ],
            [
                host.RestorerType.Output(display_name="restorer", tooltip="The restorer."),
                io.String.Output(display_name="about", tooltip="Its kind, size and licence."),
            ],
            ("face restore", "codeformer", "gfpgan", "face restoration model"),
        )

    @classmethod
    def fingerprint_inputs(cls, restorer: str) -> Any:
        """Name, size and time of the file."""
        path = host.weight_path(host.RESTORERS, restorer)
        return path if isinstance(path, str) else host.stamp(path)

    @classmethod
    def work(cls, restorer: str) -> io.NodeOutput:
        loaded = load_restorer(host.weight_path(host.RESTORERS, restorer))
        about = f"{loaded.name}: {loaded.architecture}, {loaded.size} x {loaded.size} pixels, licence: {loaded.licence}"
        about = lines([printable(about), *([loaded.caution] if loaded.caution else [])])
        return host.output(cls, host.managed(loaded), about, text=about)


class LoadPrior(host.Node):
    """A diffusion prior from ComfyUI's model folders, or the embedded one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_LoadPrior",
            "Load Diffusion Prior (BFR)",
            "Opens a diffusion network of faces, which makes clean targets of damaged faces.",
            [
                io.Combo.Input(
                    "prior",
                    options=["embedded", *host.prior_folders(), *host.weight_files(host.PRIORS)],
                    default="embedded",
                    tooltip=f"A file or diffusers folder of models/{host.PRIORS}; 'embedded' comes with this pack.",
                )
            ],
            [
                host.PriorType.Output(display_name="prior", tooltip="The prior."),
                io.String.Output(display_name="about", tooltip="Its size and licence."),
            ],
            ("diffusion face prior",),
        )

    @classmethod
    def fingerprint_inputs(cls, prior: str) -> Any:
        """Name, size and time of the file and of the settings beside it, or of the folder's files."""
        path = host.weight_path(host.PRIORS, prior)
        return path if isinstance(path, str) else (host.stamp(path), host.stamp(path.with_suffix(".json")))

    @classmethod
    def work(cls, prior: str) -> io.NodeOutput:
        loaded = load_prior(host.weight_path(host.PRIORS, prior))
        about = printable(f"{loaded.name}: {loaded.size} x {loaded.size} pixels, licence: {loaded.licence}")
        return host.output(cls, host.managed(loaded), about, text=about)


class RestoreFaces(host.Node):
    """Restore the faces of pictures, each on its own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_RestoreFaces",
            "Restore Faces (BFR)",
            "Restores the faces of pictures, and the rest as 'background' says. A grey picture stays grey, "
            "and transparency stays.",
            [
                host.RestorerType.Input("restorer", tooltip="The restorer: a tuned one, or any other."),
                io.Image.Input("images", tooltip="The photos, any number."),
                io.Boolean.Input(
                    "aligned",
                    default=False,
                    tooltip="The pictures are aligned square faces already and are restored from edge to edge; none "
                    "are looked for; of the widgets below fidelity, blend, likeness, person_limit and preview count.",
                ),
                host.widget(CONFIG, "detector", advanced=True),
                host.widget(CONFIG, "threshold", step=0.05, advanced=True),
                host.widget(CONFIG, "faces"),
                host.widget(CONFIG, "numbers"),
                host.widget(CONFIG, "min_face", min=8, max=4096, advanced=True),
                host.widget(CONFIG, "skip_sharp", max=2.0, step=0.05, advanced=True),
                io.Float.Input(
                    "fidelity",
                    default=CodeFormer.fidelity_weight,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=FIDELITY_TEXT,
                ),
                host.widget(CONFIG, "blend", step=0.05),
                host.widget(CONFIG, "mask"),
                host.widget(CONFIG, "batch_size", max=64, advanced=True),
                io.UpscaleModel.Input(
                    "upscale_model", optional=True, tooltip="Enlarges the rest of the picture; the faces are put on it."
                ),
                SegsType.Input(
                    "segs",
                    optional=True,
                    tooltip="Face boxes of the Impact Pack, of one picture for all, or of each; no other faces are "
                    "looked for.",
                ),
                DetectorType.Input(
                    "bbox_detector", optional=True, tooltip="A face detector of the Impact Pack; used in place of ours."
                ),
                BoxesType.Input(
                    "bboxes",
                    optional=True,
                    extra_dict={"forceInput": True},
                    tooltip="Face boxes of ComfyUI's own detectors (such as MediaPipe), of one picture for all, or of "
                    "each; no other faces are looked for.",
                ),
                host.preview_widget(),
                host.widget(CONFIG, "likeness", optional=True),
                io.Image.Input(
                    "only_like",
                    optional=True,
                    tooltip="A photo of one person, sharp and from the front: only faces that look like theirs are "
                    "restored.",
                ),
                host.widget(CONFIG, "person_limit", optional=True, max=2.0, min=0.05, step=0.05, advanced=True),
                host.widget(CONFIG, "order", optional=True),
                *(host.widget(CONFIG, name, optional=True, advanced=True) for name in NO_WORSE),
                io.Combo.Input(
                    "background",
                    options=[*BACKGROUNDS, *host.weight_files(host.UPSCALERS)],
                    default=CONFIG.background,
                    optional=True,
                    tooltip=f"{BACKGROUND_TEXT} Files are those of models/{host.UPSCALERS}.",
                ),
                io.Boolean.Input("video", optional=True, default=False, tooltip=VIDEO_TEXT),
                host.widget(VIDEO, "smooth", optional=True, step=0.05, advanced=True),
            ],
            [
                io.Image.Output(display_name="images", tooltip="The photos with their faces restored."),
                io.Mask.Output(display_name="mask", tooltip="Where the photos were changed, and how much."),
                io.Image.Output(display_name="crops", tooltip="The restored faces alone, aligned."),
                io.String.Output(display_name="report", tooltip="Faces found, restored and skipped, and why."),
                io.Int.Output(display_name="found", tooltip="Faces found."),
                io.Int.Output(display_name="restored", tooltip="Faces restored."),
                io.Int.Output(display_name="skipped", tooltip="Faces found and not restored."),
                io.String.Output(
                    display_name="likeness",
                    tooltip="Whether each face is still the person, in words, a photo's largest face first.",
                ),
                io.Int.Output(
                    display_name="other_people",
                    tooltip="Faces that no longer look like the same person; to branch on, such as with a switch.",
                ),
            ],
            ("face restore", "face enhance", "codeformer", "gfpgan", "deblur face"),
        )

    @classmethod
    def fingerprint_inputs(cls, background: str | None = None, detector: str | None = None, **_: Any) -> Any:
        """Name, size and time of the file for the rest of the pictures, and which networks for faces are here."""
        file: Any = None
        if background is not None and background not in BACKGROUNDS:
            with suppress(ValueError, FileNotFoundError):  # the node itself says so
                file = host.stamp(Path(host.weight_path(host.UPSCALERS, background)))
        return file, detector and detector_named(detector), has_parser()

    @classmethod
    def work(
        cls,
        restorer: host.Managed,
        images: Tensor,
        aligned: bool,
        fidelity: float,
        upscale_model: Any = None,
        segs: Any = None,
        bbox_detector: Any = None,
        preview: bool = True,
        only_like: Tensor | None = None,
        bboxes: Any = None,
        video: bool = False,
        smooth: float = VIDEO.smooth,
        **settings: Any,
    ) -> io.NodeOutput:
        config = RestoreConfig(**settings)
        if config.background not in BACKGROUNDS:
            config = replace(config, background=str(host.weight_path(host.UPSCALERS, config.background)))
        height, width = convert.to_photos(images[:1]).shape[-2:]
        if aligned and height != width:
            raise ValueError(f"images are {width} x {height} pixels; an aligned face is square: switch 'aligned' off")
        progress = host.NodeProgress(cls, "restoring ...")
        made = Made(images)
        with host.on_device(restorer, faces=config.batch_size) as bring_back:
            network = with_fidelity(restorer.network, fidelity)
            person = None if only_like is None else convert.to_photos(only_like, "only_like")[0]
            whose = {"person": person, "limit": config.person_limit, "name": "only_like"}
            look = load_check(config.likeness, network, **whose)
            how: dict[str, Any] = {"check": progress.check, "likeness": look}
            if not aligned:
                find = finder_for(len(images), config, network.device, segs, bboxes, bbox_detector, made.add_lost)
                at_work = network.at_precision(config.precision)
                how["background"] = host.background(config.background, at_work, bring_back)
                how["enlarge"] = upscale_model and host.enlarger(upscale_model, progress.check, bring_back)
            if aligned:
                results = (restore_aligned(photo, network, config, **how) for photo in made.photos())
            elif video:
                steady = VideoConfig(smooth=smooth)
                boxes = None if bbox_detector is not None else repr((segs, bboxes))
                store = frame_store(images, network, fidelity, config, steady, boxes)
                results = restore_frames(made.photos(), network, config, None, steady, find=find, store=store, **how)
            else:
                how["parser"] = load_parser(config, network)
                results = (
                    restore_photo(photo, network, config, partial(find, i), name=f"photo {i + 1}", **how)
                    for i, photo in enumerate(made.photos())
                )
            for i, result in enumerate(results, 1):
                made.add(result)
                progress.show(i, len(images), partial(getattr, result, "pixels"))
            if video and not aligned and store:
                store.done()
        which = "frame" if video and not aligned else "photo"
        counts = (made.found, made.restored, made.found - made.restored)
        faces_found = f"{made.found} face{'' if made.found == 1 else 's'} found"
        report = [
            *([network.caution] if network.caution else []),
            f"{faces_found}, {made.restored} restored, {counts[-1]} skipped",
            *([ONE_FRAME] if which == "frame" and len(images) == 1 else []),
            *(f"{which} {i}: {warning}" for i, one in made.likeness for warning in warnings_of([one])),
            *(f"{which} {i}: {reason}" for i, reason in sorted(made.skipped, key=lambda skipped: skipped[0])),
        ]
        whole = made.images
        pictures = whole[:: -(-len(whole) // host.RESULT_PICTURES) if video else 1, ..., :3].movedim(-1, 1)
        progress.end(pictures)
        crops = torch.stack(made.crops) if made.crops else None
        made.crops.clear()
        faces = host.nothing() if crops is None else convert.to_image(crops)
        said = "\n".join(f"{which} {i}: {one.said}" for i, one in made.likeness) or "likeness was not looked at"
        alike = [one for _, one in made.likeness]
        shown = "\n".join([lines(report), *([counted(alike)] if alike else [])])
        others = sum(one.word == OTHER for one in alike)
        values = (whole, made.mask, faces, "\n".join(report), *counts, said, others)
        return host.output(cls, *values, text=shown, picture=pictures if preview else None)


class Made:
    """The outputs of a batch, filled in picture by picture, so that no picture is held twice.

    images, mask: IMAGE and MASK. crops: restored faces, (3, S, S) each. found, restored: faces so far. skipped,
    likeness: what was said, with the number of its picture, from 1.
    """

    def __init__(self, source: Tensor) -> None:
        self.source, self.count = source, 0
        self.images, self.mask = torch.empty(0), torch.empty(0)
        self.crops: list[Tensor] = []
        self.found = self.restored = 0
        self.skipped: list[tuple[int, str]] = []
        self.likeness: list[tuple[int, FaceLikeness]] = []

    def photos(self) -> Iterator[Tensor]:
        """The pictures that the node was given, (3, H, W) each."""
        return (convert.to_photos(self.source[i : i + 1])[0] for i in range(len(self.source)))

    def add(self, result: RestoredPhoto) -> None:
        """Enter the next picture's result."""
        image = convert.with_alpha(convert.to_image(result.pixels), self.source[self.count : self.count + 1])[0]
        if not self.count:
            self.images = image.new_empty(len(self.source), *image.shape)
            self.mask = image.new_empty(len(self.source), *image.shape[:2])
        self.images[self.count], self.mask[self.count] = image, convert.to_mask(result.mask[None])[0]
        self.count += 1
        self.crops += result.crops
        self.found, self.restored = self.found + result.found, self.restored + len(result.faces)
        self.skipped += [(self.count, reason) for reason in result.skipped]
        self.likeness += [(self.count, one) for one in result.likeness]

    def add_lost(self, number: int, boxes: Sequence[Sequence[float]]) -> None:
        """Enter the given boxes of the picture of this number, from 0, in which no face could be aligned."""
        self.found += len(boxes)
        self.skipped += [
            (number + 1, f"a box at {left:.0f}, {top:.0f}: no face could be aligned in it") for left, top, *_ in boxes
        ]


def frame_store(
    images: Tensor, network: Restorer, fidelity: float, config: RestoreConfig, video: VideoConfig, boxes: str | None
) -> FrameStore | None:
    """Where the work on a video is kept until it is done; None where nothing says what the faces were found by.

    boxes: a text of the boxes that came, None for a detector of another pack.
    """
    if boxes is None or not network.sha256:
        return None
    precision = network.at_precision(config.precision).precision
    found_by = (config.detector, config.threshold, boxes, video.patience)
    made_with = fingerprint(__version__, network.sha256, precision, fidelity, config.even_tone, found_by)
    return host.frame_store(images, made_with)


def finder_for(
    count: int,
    config: RestoreConfig,
    device: torch.device,
    segs: Any,
    bboxes: Any,
    bbox_detector: Any,
    lost: Callable[[int, list[list[float]]], None],
) -> Callable[[int, Tensor], list[Face]]:
    """The function that finds the faces of the picture of this number: by the boxes given, by the Impact Pack's
    detector, or by ours, in this order.

    count: of the pictures. lost: is told the number of a picture and its boxes in which no face can be aligned. Raises
    ValueError for boxes of another number, FileNotFoundError if the chosen detector is not here.
    """
    if segs is None and bboxes is None and bbox_detector is None:
        detector = load_detector(config.detector, config.threshold, device, host.detector_folder())
        return lambda _, photo: detector(photo)
    net = load_landmark_net(device=device)
    if segs is not None:
        of_each = for_each(convert.segs_list(segs), count, "segs")
    elif bboxes is not None:
        of_each = for_each(convert.box_lists(bboxes), count, "bboxes")

    def find(number: int, photo: Tensor) -> list[Face]:
        height, width = photo.shape[-2:]
        if segs is not None:
            boxes = convert.boxes_of(of_each[number], height, width)
        elif bboxes is not None:
            boxes = of_each[number]
        else:
            found = bbox_detector.detect(convert.to_image(photo), config.threshold, 0, 1.0, 1)
            boxes = convert.boxes_of(found, height, width)
        aligned = faces_in_boxes(net, photo, boxes)
        lost(number, [box for box, face in zip(boxes.tolist(), aligned, strict=True) if face is None])
        return sorted((face for face in aligned if face is not None), key=lambda face: -face.width)

    return find


def for_each(given: list[Any], count: int, name: str) -> list[Any]:
    """What was given for each of so many pictures; what was given once is for all. Raises ValueError otherwise."""
    if len(given) not in (1, count):
        raise ValueError(
            f"{name} are the boxes of {len(given)} pictures, but {count} came; give those of one picture, which are "
            "for all, or of each"
        )
    return given * count if len(given) == 1 else given
