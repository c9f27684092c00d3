"""Write the results as report.html, one page that needs nothing else, and as report.json for programs.

Nothing is computed here: texts and numbers appear as they were given, through the template report.html.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from ..files.photos import printable, replace_atomically
from ..pixels import as_bytes
from .charts import chart
from .pages import render_page, trusted

Verdict = Literal["adopt", "keep_base", "cannot_tell", "not_judged"]
VERDICTS: dict[str, str] = {
    "adopt": "Adopt",
    "keep_base": "Keep the base",
    "cannot_tell": "Cannot tell",
    "not_judged": "Not judged",
}


@dataclass(frozen=True)
class Table:
    """rows: a name, then one text per further column; "12.3 (11.9 to 12.7)" is set as a number over its interval.

    columns: headings, the first above the names. highlight: name of the row that stands out.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: str = ""


@dataclass(frozen=True)
class Gallery:
    """rows: a label and one picture (3, H, W) in [0, 1] per column. link: address of a page that says more, and its
    name, below the note."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Tensor]]]
    link: tuple[str, str] | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything that a report says. measurements: numbers for report.json only, under the caller's names."""

    title: str
    verdict: Verdict
    verdict_sentence: str
    galleries: Sequence[Gallery] = ()
    figures: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    loss_curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    licences: Sequence[str] = ()
    measurements: Mapping[str, object] = field(default_factory=dict)


def write_report(folder: Path, data: ReportData, max_rows: int = 12) -> Path:
    """Write report.json and then report.html into `folder`, each whole or not at all; returns the page's path.

    max_rows: pictures are embedded for that many rows of a gallery, the first ones.
    Raises ValueError if a table or gallery has a row of another length than its columns or the verdict is unknown,
    OSError as `replace_atomically`.
    """
    _check(data)
    texts = {"report.json": render_json(data), "report.html": render_html(data, max_rows)}
    for name, text in texts.items():
        replace_atomically(Path(folder) / name, partial(Path.write_text, data=text, encoding="utf-8"))
    return Path(folder) / "report.html"


def _check(data: ReportData) -> None:
    if data.verdict not in VERDICTS:
        raise ValueError(f"verdict is {data.verdict!r}; it must be one of {', '.join(VERDICTS)}")
    for table in data.tables:
        for row in table.rows:
            if len(row) != len(table.columns):
                raise ValueError(f"table {table.title!r}: {len(row)} cells under {len(table.columns)} columns")
    for gallery in data.galleries:
        for label, pictures in gallery.rows:
            if len(pictures) != len(gallery.columns):
                raise ValueError(
                    f"gallery {gallery.title!r}: {len(pictures)} pictures of {printable(label)} "
                    f"under {len(gallery.columns)} columns"
                )


# ---------------------------------------------------------------- for programs


def render_json(data: ReportData) -> str:
    """Everything but the pictures; numbers that are not finite become null."""
    content = {
        "title": data.title,
        "verdict": data.verdict,
        "verdict_sentence": data.verdict_sentence,
        "figures": [{"label": label, "value": value} for label, value in data.figures],
        "measurements": data.measurements,
        "tables": [asdict(table) for table in data.tables],
        "galleries": [
            {"title": gallery.title, "columns": gallery.columns, "rows": [label for label, _ in gallery.rows]}
            for gallery in data.galleries
        ],
        "loss_curves": data.loss_curves,
        "notes": data.notes,
        "settings": data.settings,
        "licences": data.licences,
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """`value` in the types that JSON knows; anything else as its text."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)


# ---------------------------------------------------------------- for people


def render_html(data: ReportData, max_rows: int = 12) -> str:
    """The page: verdict, pictures, figures, tables, curves, notes; settings and licences folded away.

    Raises ValueError, in one line, where Jinja2 is missing.
    """
    values = {
        "verdict": data.verdict,
        "verdict_word": VERDICTS[data.verdict],
        "verdict_sentence": data.verdict_sentence,
        "galleries": [_gallery(gallery, max_rows) for gallery in data.galleries if gallery.rows[:max_rows]],
        "figures": data.figures,
        "tables": [_table(table) for table in data.tables],
        "charts": [chart(name, points) for name, points in data.loss_curves.items() if points],
        "notes": data.notes,
        "settings": [(name, _setting(value)) for name, value in data.settings.items()],
        "licences": data.licences,
    }
    return render_page("report", data.title, values)


def _setting(value: object) -> str:
    value = _plain(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(table: Table) -> dict[str, Any]:
    """What the template shows of a table: each cell as (text, its interval or "")."""

    def cell(text: str) -> tuple[str, str]:
        interval = re.fullmatch(r"(.+?) \((.+)\)", str(text))
        return (interval[1], interval[2]) if interval else (text, "")

    return vars(table) | {"rows": [(name, [cell(text) for text in cells]) for name, *cells in table.rows]}


# ---------------------------------------------------------------- pictures


def _gallery(gallery: Gallery, max_rows: int) -> dict[str, Any]:
    """What the template shows of a gallery: its first rows, shown at twice their size. It must have one."""
    shown = gallery.rows[:max_rows]

    def shown_as(picture: Tensor) -> dict[str, Any]:
        height, width = picture.shape[-2:]
        return {"uri": trusted(data_uri(picture)), "width": 2 * width, "height": 2 * height}

    return vars(gallery) | {
        "rows": [(label, [shown_as(picture) for picture in pictures]) for label, pictures in shown],
        "count": len(gallery.rows),
        "width": 2 * max(min(picture.shape[-1], _LONGEST_SIDE) for _, pictures in shown for picture in pictures),
    }


_LONGEST_SIDE = 1024
_LOSSLESS_SIDE = 256


def data_uri(picture: Tensor, longest: int = _LONGEST_SIDE) -> str:
    """(3, H, W) in [0, 1] as a data URI, shrunk to `longest`: PNG up to 256 pixels a side, JPEG 95 above."""
    image = Image.fromarray(as_bytes(picture).permute(1, 2, 0).cpu().numpy())
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        image.save(encoded, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(encoded, "JPEG", quality=95, subsampling=0, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"
