"""Pieces of HTML that the page is made of: lines, tables, pictures, and the words for a job's state.

Everything that came from outside is escaped here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from ..adaptation.forecast import duration
from ..errors import first_line
from ..files.photos import printable, read_image
from ..reports.html import data_uri
from .jobs import Status

THUMBNAIL = 176  # pixels
STAGES = {
    "faces": "Finding faces",
    "people": "Telling people apart",
    "groups": "Telling kinds of damage apart",
    "forecast": "Timing a step of each stage",
    "examine": "Looking at the damage",
    "targets": "Drawing clean faces",
    "gate": "Checking the clean faces",
    "redraw": "Drawing refused ones again",
    "finetune": "Tuning the restorer",
    "judge": "Judging it on faces that were held out",
    "likeness": "Comparing the faces with their photos",
    "repair": "Repairing photos",
}
STATES = {
    "waiting": "Waiting for another run to finish",
    "cancelled": "Stopped by you; start it again and it goes on where it was",
    "failed": "Failed",
    "elsewhere": "Another program is at work on this run; this page only shows it",
    "stopped": "Interrupted; start it again and it goes on where it was",
}
KINDS = {"faces": "finding faces", "look": "the first look", "adapt": "adapting", "repair": "repairing photos"}
NEXT = {
    "faces": "Faces found. Look through them below, then go to Adapt.",
    "look": "The first look is under Adapt.",
    "adapt": "Adapted. The verdict is under Result.",
    "repair": "Repaired. The photos are under Repair photos.",
}
STYLE = """<style>
.bfr-refresh { position: absolute !important; left: -9999px; width: 1px; height: 1px; overflow: hidden; }
.pending:has(.bfr) { opacity: 1 !important; }
.bfr-faces .grid-wrap { min-height: 0 !important; max-height: 75vh !important; }
.bfr { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.bfr p { margin: 0 0 8px; } .bfr .quiet { opacity: .7; font-size: .9em; }
.bfr .error { border-left: 4px solid #c0392b; padding: 6px 12px; background: rgb(192 57 43 / .1); }
.bfr .said { border-left: 4px solid #2c6a8f; padding: 6px 12px; background: rgb(44 106 143 / .1); }
.bfr .bar { height: 10px; border-radius: 5px; background: rgb(128 128 128 / .25); overflow: hidden;
  margin: 6px 0 10px; }
.bfr .bar i { display: block; height: 100%; background: #2c6a8f; }
.bfr .steps { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; padding: 0 !important;
  margin: 0 0 8px; }
.bfr .steps li { display: block; opacity: .55; margin: 0; } .bfr .steps li.now { opacity: 1; font-weight: 600; }
.bfr .steps li.over::before { content: "\\2713\\00a0"; }
.bfr .rows { display: grid; gap: 18px 30px; margin: 12px 0; max-width: 1200px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.bfr .faces { display: flex; gap: 8px; } .bfr .faces figure { flex: 0 1 176px; min-width: 0; }
.bfr .faces img { display: block; width: 100%; margin: 0; border-radius: 6px; }
.bfr .charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px; }
.bfr figure { margin: 0; } .bfr figcaption { font-size: .85em; }
.bfr svg { width: 100%; height: auto; font-size: 11px; }
.bfr svg text { fill: currentColor; opacity: .7; } .bfr svg line { stroke: rgb(128 128 128 / .3); }
.bfr svg polyline { fill: none; stroke: #2c6a8f; stroke-width: 2; } .bfr svg .raw { stroke-width: 1; opacity: .4; }
.bfr .verdict { font-size: 1.15em; border-left: 4px solid #66676c; padding-left: 14px; }
.bfr .adopt { border-color: #1d7a4c; } .bfr .keep_base { border-color: #b36a00; }
.bfr table { border-collapse: collapse; width: 100%; border: 0 !important; }
.bfr tr { border: 0 !important; } .bfr th, .bfr td { text-align: left; padding: 6px 10px;
  border: 0 !important; border-bottom: 1px solid rgb(128 128 128 / .3) !important; vertical-align: top; }
</style>"""


def text(value: object) -> str:
    """`value` on one line, escaped for use between tags and in quoted attributes."""
    return escape(printable(str(value)), quote=True)


def block(body: str) -> str:
    """HTML in a block with the page's own styles."""
    return f'<div class="bfr">{body}</div>'


def quiet(line: str) -> str:
    """A line in subdued type, as HTML."""
    return f'<p class="quiet">{text(line)}</p>'


def said(line: str, problems: Sequence[str] = ()) -> str:
    """What was done, and which files could not be used, as HTML; "" if there is nothing to say."""
    count = len(problems)
    left_out = [f"{count} {'file' if count == 1 else 'files'} cannot be used:", *problems[:10]] if problems else []
    lines = [text(shown) for shown in (line, *left_out) if shown]
    return block(f'<p class="said" role="status">{"<br>".join(lines)}</p>') if lines else ""


def failed(error: Exception) -> str:
    """The first line of an error, as HTML."""
    return block(f'<p class="error" role="alert">{text(first_line(error))}</p>')


def headline(status: Status) -> str:
    if status.state == "new":
        return quiet("Nothing has been started yet.")
    if status.state == "failed":
        what = KINDS.get(status.kind, "the job").capitalize()
        return f'<p class="error" role="alert">{text(what)} failed: {text(status.error)}</p>'
    if status.state == "done":
        return f"<p><b>{text(NEXT.get(status.kind, 'Done'))}</b></p>"
    if status.state != "running":
        where = f" ({KINDS[status.kind]})" if status.kind in KINDS else ""
        return f"<p><b>{text(STATES.get(status.state, status.state))}</b>{text(where)}</p>"
    if not status.stage:
        return "<p><b>Starting</b></p>"
    group = f"Group {status.group} of {status.groups}: " if status.groups else ""
    left = f", {duration(status.seconds_left)} left in this stage" if status.seconds_left is not None else ""
    return (
        f"<p><b>{text(group + STAGES.get(status.stage, status.stage))}</b>: "
        f"{status.step:,} of {status.steps:,}{text(left)}</p>"
    )


def stage_list(now: str, mixed: bool) -> str:
    order = [stage for stage in STAGES if stage not in ("repair", "people") and (mixed or stage != "groups")]
    place = order.index(now) if now in order else 0
    items = ""
    for i, stage in enumerate(order):
        kind = "over" if i < place else "now" if i == place else ""
        items += f'<li class="{kind}">{STAGES[stage]}</li>'
    return f'<ul class="steps">{items}</ul>'


def row(cells: Iterable[object]) -> str:
    """A row of a table."""
    return f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"


def grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Tensor]]]) -> str:
    """Rows of pictures, each with its column's name below; "" without rows."""
    groups = ""
    for name, pictures in rows:
        cells = "".join(figure(picture, column, name) for column, picture in zip(columns, pictures, strict=True))
        groups += f'<div class="faces">{cells}</div>'
    return f'<div class="rows">{groups}</div>' if groups else ""


def figure(picture: Tensor, caption: str, name: str = "") -> str:
    alt = f"{caption}: {name}" if name else caption
    image = f'<img src="{data_uri(picture, THUMBNAIL)}" alt="{text(alt)}">'
    return f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>"


def face_picture(file: Path, left_out: bool) -> Tensor:
    """(3, S, S) in [0, 1]; a face left out is dark, with a cross over it."""
    if not file.is_file():
        return torch.zeros(3, THUMBNAIL, THUMBNAIL)
    face = read_image(file)
    if left_out:
        height, width = face.shape[-2:]
        face = face.mean(0, keepdim=True).expand(3, -1, -1) * 0.35
        across = torch.linspace(-1, 1, width) - torch.linspace(-1, 1, height)[:, None]
        wide = across.abs() <= 1 / 24
        face = face.masked_fill(wide | wide.flip(-1), 0.8)
    return face
