"""The nodes for trials: faces of nobody, damage for them, and results measured and shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..bfr_core.damage.synthetic import DAMAGES, STRENGTH_TEXT, degrade
from ..bfr_core.diffusion.draw import draw_faces
from ..bfr_core.faces.sharp_faces import SharpFaces
from ..bfr_core.files.photos import printable
from ..bfr_core.pixels import resized
from ..bfr_core.randomness import keyed_generator
from ..bfr_core.reports.pictures import sheet, side_by_side
from ..bfr_core.studies.evaluate import MEASURES, face_measures, format_interval, summarise
from . import convert, host
from .faces import ROWS

DRAWN, SHIPPED = "drawn", "shipped"
STEP = 35  # between the shipped faces that are taken, which lie ordered by where they come from


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
                name_widget("restored"),
                name_widget("other"),
            ],
            [
                io.Image.Output(
                    display_name="grid", tooltip="One row for each picture: damaged, restored, other, clean."
                ),
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
        name_of_restored: str = "",
        name_of_other: str = "",
    ) -> io.NodeOutput:
        inputs = {"damaged": damaged, "restored": restored, "other": other, "clean": clean}
        given = {which: image for which, image in inputs.items() if image is not None}
        named = distinct_names(list(given), name_of_restored, name_of_other)
        sets = {named[which]: convert.to_photos(image, which) for which, image in given.items()}
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


def name_widget(which: str) -> Any:
    """What the pictures of an input are called in the texts."""
    tooltip = f"What the pictures of '{which}' are called in the texts, such as the name of their restorer."
    return io.String.Input(f"name_of_{which}", optional=True, default=which, tooltip=tooltip)


def distinct_names(given: Sequence[str], restored: str, other: str) -> dict[str, str]:
    """What each of the inputs that are `given` is called. Raises ValueError if two of them are called the same."""
    chosen = {"restored": printable(restored.strip()), "other": printable(other.strip())}
    names = {which: chosen.get(which) or which for which in given}
    if len(set(names.values())) < len(names):
        said = " and ".join(f"name_of_{which} is {names[which]!r}" for which in chosen if which in names)
        raise ValueError(f"{said}; each set of pictures needs a name of its own: {', '.join(names.values())}")
    return names


def figures(sets: dict[str, Tensor]) -> list[str]:
    """A line for each measure: every set against the clean one, (B, 3, H, W) each, at the clean one's size."""
    clean = sets["clean"]
    progress = host.NodeProgress()
    measured = {}
    for name in (name for name in sets if name != "clean"):
        columns: dict[str, list[Tensor]] = {}
        for i, (photo, hq) in enumerate(zip(sets[name], clean, strict=True)):
            photo = resized(photo[None], hq.shape[-2:]).clamp(0, 1)
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
            "Damages clean pictures for trials, each picture on its own; one seed always gives the same result.",
            [
                io.Image.Input("images", tooltip="Clean pictures."),
                io.Combo.Input("kind", options=list(DAMAGES), default="sensor", tooltip="The damage."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip=STRENGTH_TEXT,
                ),
                host.seed_widget(),
                host.preview_widget(),
            ],
            [io.Image.Output(display_name="images", tooltip="The damaged pictures.")],
            ("noise", "blur", "jpeg", "damage"),
        )

    @classmethod
    def work(cls, images: Tensor, kind: str, strength: float, seed: int, preview: bool = True) -> io.NodeOutput:
        photos, damaged = convert.to_photos(images), []
        progress = host.NodeProgress()
        for i, photo in enumerate(photos):
            damaged.append(degrade(photo[None], kind, keyed_generator(seed, kind, i), strength).lq[0])
            progress.show(i + 1, len(photos))
        made = torch.stack(damaged)
        return host.output(cls, convert.to_image(made), picture=made if preview else None)


class DrawFaces(host.Node):
    """Faces to try things out on where there are no photos yet."""

    AT_ONCE = 4

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "BFR_DrawFaces",
            "Draw Faces (BFR)",
            "Draws aligned faces of people who do not exist, from noise, by the diffusion prior, or gives faces that "
            "come with this pack, for trials without photos. Drawn ones flatter the prior that drew them: judge by "
            "photos of your own.",
            [
                host.PriorType.Input("prior", tooltip="The diffusion prior that draws."),
                io.Int.Input("count", default=8, min=1, max=256, tooltip="How many faces."),
                host.seed_widget(),
                host.preview_widget(),
                io.Combo.Input(
                    "source",
                    options=[DRAWN, SHIPPED],
                    default=DRAWN,
                    optional=True,
                    tooltip=f"{DRAWN}: the prior draws the faces, which takes minutes on a CPU. {SHIPPED}: sharp faces "
                    "that come with this pack, most of them of people who do not exist, at once; the seed is the "
                    "number of the first.",
                ),
            ],
            [io.Image.Output(display_name="images", tooltip="Clean faces at the prior's size, aligned.")],
            ("synthetic faces", "sample faces", "demo", "example faces"),
        )

    @classmethod
    def work(
        cls, prior: host.Managed, count: int, seed: int, preview: bool = True, source: str = DRAWN
    ) -> io.NodeOutput:
        if source == SHIPPED:
            sharp = SharpFaces(prior.network.size)
            if count > len(sharp):
                raise ValueError(f"count is {count}, but {len(sharp)} faces are shipped; ask for fewer, or draw them")
            faces = torch.stack([sharp[(seed + i) * STEP % len(sharp)] for i in range(count)])
            return host.output(cls, convert.to_image(faces), picture=faces if preview else None)
        progress, drawn = host.NodeProgress(cls, "drawing faces ..."), []
        names = [f"drawn_{i}" for i in range(count)]
        with host.on_device(prior, faces=cls.AT_ONCE):
            for start in range(0, count, cls.AT_ONCE):
                some = names[start : start + cls.AT_ONCE]

                def show(step: int, steps: int, so_far: Tensor, done: int = start, faces: int = len(some)) -> None:
                    now = done * steps + step * faces
                    progress.show(now, count * steps, partial(side_by_side, list(so_far)))

                drawn.append(draw_faces(prior.network, some, seed, show).cpu())
        faces = torch.cat(drawn)
        progress.end(faces)
        picture = faces if preview else None
        return host.output(cls, convert.to_image(faces), text=f"{count} faces are drawn", picture=picture)
