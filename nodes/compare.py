"""For trials: measure and show results side by side, and damage clean pictures."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..bfr_core.degradations import DAMAGES, degrade
from ..bfr_core.draws import keyed_generator
from ..bfr_core.evaluate import MEASURES, face_measures, format_interval, summarise
from ..bfr_core.pictures import sheet
from . import convert, host
from .faces import ROWS


class Compare(host.Node):
    """A grid of pictures, and figures where clean ones are known."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_Compare",
            "Compare (BFR)",
            "Puts pictures of the same faces side by side and, given clean ones, measures how close they come.",
            [
                io.Image.Input("restored", tooltip="The pictures to judge."),
                io.Image.Input("other", optional=True, tooltip="The same, from another restorer."),
                io.Image.Input("damaged", optional=True, tooltip="What they were made from."),
                io.Image.Input("clean", optional=True, tooltip="What they should be like; needed for the figures."),
                io.Int.Input(
                    "rows", default=ROWS, min=1, max=64, tooltip="Pictures shown at most; all are measured."
                ),
            ],
            [
                io.Image.Output(display_name="grid", tooltip="A row a picture: damaged, restored, other, clean."),
                io.String.Output(display_name="figures", tooltip="Mean over the pictures and its 95 % interval."),
            ],
            ("psnr", "ssim", "metrics", "before after"),
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def work(
        cls,
        restored: Tensor,
        rows: int,
        other: Tensor | None = None,
        damaged: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> io.NodeOutput:
        given = {"damaged": damaged, "restored": restored, "other": other, "clean": clean}
        sets = {name: convert.to_photos(image) for name, image in given.items() if image is not None}
        counts = {name: len(photos) for name, photos in sets.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the sets differ in number ({counts}); connect the same pictures in the same order")
        text = (
            "\n".join(figures(sets))
            if "clean" in sets
            else f"columns: {', '.join(sets)}; no clean pictures to measure by"
        )
        grid = sheet([list(row) for row in zip(*(photos[:rows] for photos in sets.values()), strict=True)])[None]
        return host.output(cls, convert.to_image(grid), text, text=text, picture=grid)


def figures(sets: dict[str, Tensor]) -> list[str]:
    """A line for each measure: every set against the clean one, (B, 3, H, W) each, at the clean one's size."""
    clean = sets["clean"]
    progress = host.Progress()
    measured = {}
    for name in (name for name in sets if name != "clean"):
        columns: dict[str, list[Tensor]] = {}
        for i, (photo, hq) in enumerate(zip(sets[name], clean, strict=True)):
            photo = F.interpolate(photo[None], hq.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
            for key, value in face_measures(photo, hq[None]).items():
                columns.setdefault(key, []).append(value)
            progress.show(i + 1, len(clean))
        measured[name] = summarise({key: torch.cat(values) for key, values in columns.items()})
    return [
        f"{measure.title}, {measure.goal}: "
        + "; ".join(f"{name} {format_interval(values.get(key), measure.decimals)}" for name, values in measured.items())
        for key, measure in MEASURES.items()
        if any(key in values for values in measured.values())
    ]


class Degrade(host.Node):
    """Damage for trials."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_Degrade",
            "Degrade (BFR)",
            "Damages clean pictures, to try things out on: each picture on its own, always alike for one seed.",
            [
                io.Image.Input("images", tooltip="Clean pictures."),
                io.Combo.Input("kind", options=list(DAMAGES), default="sensor", tooltip="The damage."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=4.0, step=0.1, tooltip="0: next to nothing, 1: the usual."
                ),
                host.seed_widget(),
            ],
            [io.Image.Output(display_name="images", tooltip="The damaged pictures.")],
            ("noise", "blur", "jpeg", "damage"),
        )

    @classmethod
    def work(cls, images: Tensor, kind: str, strength: float, seed: int) -> io.NodeOutput:
        photos, damaged = convert.to_photos(images), []
        progress = host.Progress()
        for i, photo in enumerate(photos):
            damaged.append(degrade(photo[None], kind, keyed_generator(seed, kind, i), strength).lq[0])
            progress.show(i + 1, len(photos))
        return host.output(cls, convert.to_image(torch.stack(damaged)), picture=torch.stack(damaged))
