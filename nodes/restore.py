"""The nodes of the fast path: load a restorer or a prior, and restore the faces of pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..bfr_core.diffusion.prior import load_prior
from ..bfr_core.faces.align import Face
from ..bfr_core.faces.detect import faces_in_boxes, load_detector
from ..bfr_core.faces.landmarks import load_landmark_net
from ..bfr_core.faces.likeness import OTHER
from ..bfr_core.files.photos import printable
from ..bfr_core.restoration.background import ADAPTED, BACKGROUND_TEXT, OFF
from ..bfr_core.restoration.restore import NO_WORSE, RestoreConfig, RestoredPhoto, restore_aligned, restore_photo
from ..bfr_core.restoration.same_person import counted, load_check, warnings_of
from ..bfr_core.restorers import load_restorer
from ..bfr_core.restorers.codeformer import FIDELITY_TEXT, CodeFormer, with_fidelity
from . import convert, host
from .faces import lines

CONFIG = RestoreConfig()
BACKGROUNDS = (OFF, ADAPTED)  # and files
SegsType = io.Custom("SEGS")
DetectorType = io.Custom("BBOX_DETECTOR")


class LoadRestorer(host.Node):
    """A restorer from ComfyUI's model folders, or the embedded one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_LoadRestorer",
            "Load Restorer (BFR)",
            "Opens a face restorer: GFPGAN, RestoreFormer, SwinIR, CodeFormer, a tuned one, or the embedded one.",
            [
                io.Combo.Input(
                    "restorer",
                    options=["embedded", *host.weight_files(host.RESTORERS)],
                    default="embedded",
                    tooltip=f"A file of models/{host.RESTORERS}; 'embedded' is small and comes with this pack. "
                    "ONNX files (GPEN, ReActor's default) cannot be opened or tuned here and are not listed.",
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
        return host.output(cls, host.managed(loaded), about, text=lines([about, *host.onnx_note()]))


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
        """Name, size and time of the file, or of the folder's files."""
        path = host.weight_path(host.PRIORS, prior)
        return path if isinstance(path, str) else host.stamp(path)

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
                    "are looked for, and of the widgets below only fidelity and blend count.",
                ),
                host.widget(CONFIG, "detector"),
                host.widget(CONFIG, "threshold", step=0.05),
                host.widget(CONFIG, "faces"),
                host.widget(CONFIG, "numbers"),
                host.widget(CONFIG, "min_face", min=8, max=4096),
                host.widget(CONFIG, "skip_sharp", max=2.0, step=0.05),
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
                host.widget(CONFIG, "batch_size", max=64),
                io.UpscaleModel.Input(
                    "upscale_model", optional=True, tooltip="Enlarges the rest of the picture; the faces are put on it."
                ),
                SegsType.Input(
                    "segs",
                    optional=True,
                    tooltip="Face boxes of the Impact Pack, for one picture; no other faces are looked for.",
                ),
                DetectorType.Input(
                    "bbox_detector", optional=True, tooltip="A face detector of the Impact Pack; used in place of ours."
                ),
                host.preview_widget(),
                host.widget(CONFIG, "likeness", optional=True),
                io.Image.Input(
                    "only_like",
                    optional=True,
                    tooltip="A photo of one person, sharp and from the front: only faces that look like theirs are "
                    "restored.",
                ),
                host.widget(CONFIG, "person_limit", optional=True, max=2.0, min=0.05, step=0.05),
                host.widget(CONFIG, "order", optional=True),
                *(host.widget(CONFIG, name, optional=True) for name in NO_WORSE),
                io.Combo.Input(
                    "background",
                    options=[*BACKGROUNDS, *host.weight_files(host.UPSCALERS)],
                    default=CONFIG.background,
                    optional=True,
                    tooltip=f"{BACKGROUND_TEXT} Files are those of models/{host.UPSCALERS}.",
                ),
            ],
            [
                io.Image.Output(display_name="images", tooltip="The photos with their faces restored."),
                io.Mask.Output(display_name="mask", tooltip="Where the photos were changed, and how much."),
                io.Image.Output(display_name="crops", tooltip="The restored faces alone, aligned."),
                io.String.Output(display_name="report", tooltip="Faces found, restored and skipped, and why."),
                io.Int.Output(display_name="found", tooltip="Faces found."),
                io.Int.Output(display_name="restored", tooltip="Faces restored."),
                io.Int.Output(display_name="skipped", tooltip="Faces found and not restored."),
                io.String.Output(display_name="likeness", tooltip="Whether each face is still the person, in words."),
                io.Int.Output(
                    display_name="other_people",
                    tooltip="Faces that no longer look like the same person; to branch on, such as with a switch.",
                ),
            ],
            ("face restore", "face enhance", "codeformer", "gfpgan", "deblur face"),
        )

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
        **settings: Any,
    ) -> io.NodeOutput:
        config = RestoreConfig(**settings)
        if config.background not in BACKGROUNDS:
            config = replace(config, background=str(host.weight_path(host.UPSCALERS, config.background)))
        photos = convert.to_photos(images)
        height, width = photos.shape[-2:]
        if aligned and height != width:
            raise ValueError(f"images are {width} x {height} pixels; an aligned face is square: switch 'aligned' off")
        progress = host.NodeProgress(cls, "restoring ...")
        enlarge = host.enlarger(upscale_model, progress.check) if upscale_model is not None else None
        results: list[RestoredPhoto] = []
        with host.on_device(restorer, faces=config.batch_size):
            network = with_fidelity(restorer.network, fidelity)
            detector = None if aligned else detector_for(photos, config, network.device, segs, bbox_detector)
            person = None if only_like is None else convert.to_photos(only_like)[0]
            rest = None if aligned else host.background(config.background, network.at_precision(config.precision))
            look = load_check(config.likeness, network, None, person=person, limit=config.person_limit)
            for i, photo in enumerate(photos):
                if detector is None:
                    result = restore_aligned(photo, network, config, check=progress.check, likeness=look)
                else:
                    how = {"check": progress.check, "enlarge": enlarge, "name": f"photo {i + 1}", "likeness": look}
                    result = restore_photo(photo, network, config, detector, **how, background=rest)
                results.append(result)
                progress.show(i + 1, len(photos), partial(getattr, result, "pixels"))
        found, restored = (sum(counts) for counts in zip(*((r.found, len(r.faces)) for r in results), strict=True))
        alike = [one for result in results for one in result.likeness]
        text = lines(
            [
                *([network.caution] if network.caution else []),
                f"{found} face{'' if found == 1 else 's'} found, {restored} restored, {found - restored} skipped",
                *(f"photo {i}: {one}" for i, result in enumerate(results, 1) for one in warnings_of(result.likeness)),
                *(f"photo {i}: {reason}" for i, result in enumerate(results, 1) for reason in result.skipped),
            ]
        )
        made = torch.stack([result.pixels for result in results])
        masks = torch.stack([result.mask for result in results])
        crops = [crop for result in results for crop in result.crops]
        faces = convert.to_image(torch.stack(crops)) if crops else host.nothing()
        progress.end(made)
        whole = convert.with_alpha(convert.to_image(made), images)
        each = [f"photo {i}: {one.said}" for i, result in enumerate(results, 1) for one in result.likeness]
        said = lines(each) if each else "likeness was not looked at"
        shown = lines([text, *([counted(alike)] if alike else [])])
        others = sum(one.word == OTHER for one in alike)
        values = (whole, convert.to_mask(masks), faces, text, found, restored, found - restored, said, others)
        return host.output(cls, *values, text=shown, picture=made if preview else None)


def detector_for(
    photos: Tensor, config: RestoreConfig, device: torch.device, segs: Any, bbox_detector: Any
) -> Callable[[Tensor], list[Face]]:
    """The function that finds the faces: by the boxes given, the Impact Pack's detector, or ours, in this order.

    Raises ValueError for boxes with several photos, FileNotFoundError if the chosen detector is not here.
    """
    if segs is None and bbox_detector is None:
        return load_detector(config.detector, config.threshold, device, host.detector_folder())
    if segs is not None and len(photos) > 1:
        raise ValueError(f"segs are the boxes of one picture, but {len(photos)} came; connect bbox_detector instead")
    net = load_landmark_net(device=device)

    def find(photo: Tensor) -> list[Face]:
        boxes = segs if segs is not None else bbox_detector.detect(convert.to_image(photo), config.threshold, 0, 1.0, 1)
        return faces_in_boxes(net, photo, convert.boxes_of(boxes, *photo.shape[-2:]))

    return find
