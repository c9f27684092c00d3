"""report.html and report.json: what came out, in one page that needs nothing else, and for programs.

Nothing is computed here but the running mean beside a curve: texts and numbers appear as they were given.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from ..files.photos import printable, replace_atomically

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
    """All that a report says. measurements: numbers for report.json only, under whatever names the caller gives."""

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
    """The page: verdict, pictures, figures, tables, curves, notes; settings and licences folded away."""
    sections = [_gallery(gallery, max_rows) for gallery in data.galleries]
    sections += [_figures(data.figures), *(_table(table) for table in data.tables)]
    sections += [_curves(data.loss_curves), _list("Notes", data.notes)]
    sections += [_settings(data.settings), _folded("Licences", _items(data.licences) if data.licences else "")]
    pictures = any(gallery.rows[:max_rows] for gallery in data.galleries)
    body = f"""<main>
<header>
<h1>{_text(data.title)}</h1>
<p class="verdict {data.verdict}"><strong>{VERDICTS[data.verdict]}</strong> {_text(data.verdict_sentence)}</p>
</header>
{_HINT if pictures else ""}{"".join(section + chr(10) for section in sections if section)}</main>
{_DIALOG if pictures else ""}"""
    return html_document(data.title, _STYLE, body, _SCRIPT)


def html_document(title: str, style: str, body: str, script: str) -> str:
    """A self-contained page: it runs `script` alone, shows pictures given as data alone, and asks the network for none.

    title is escaped here; style, body and script are the caller's own.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def _text(value: object) -> str:
    """Safe between tags and inside quoted attributes, on one line."""
    return escape(printable(str(value)), quote=True)


def _items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _section(title: str, note: str, body: str, kind: str) -> str:
    note = f'<p class="note">{_text(note)}</p>' if note else ""
    return f'<section class="{kind}"><h2>{_text(title)}</h2>{note}{body}</section>'


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{body}</details>" if body else ""


def _list(title: str, lines: Sequence[str]) -> str:
    return _section(title, "", _items(lines), "prose") if lines else ""


def _settings(settings: Mapping[str, object]) -> str:
    def shown(value: object) -> str:
        value = _plain(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    lines = "".join(f"<dt>{_text(key)}</dt><dd>{_text(shown(value))}</dd>" for key, value in settings.items())
    return _folded("Settings", f'<dl class="settings">{lines}</dl>' if lines else "")


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    lines = "".join(f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in figures)
    return _section("In figures", "", f'<dl class="figures">{lines}</dl>', "numbers") if lines else ""


def _table(table: Table) -> str:
    def cell(text: str) -> str:
        interval = re.fullmatch(r"(.+?) \((.+)\)", str(text))
        if not interval:
            return f"<td>{_text(text)}</td>"
        return f"<td>{_text(interval[1])}<small>{_text(interval[2])}</small></td>"

    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    body = ""
    for name, *cells in table.rows:
        chosen = ' class="chosen"' if table.highlight and name == table.highlight else ""
        body += f'<tr{chosen}><th scope="row">{_text(name)}</th>{"".join(cell(text) for text in cells)}</tr>'
    scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}">'
    body = f"{scroll}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    return _section(table.title, table.note, body, "table")


# ---------------------------------------------------------------- pictures


def _gallery(gallery: Gallery, max_rows: int) -> str:
    shown = gallery.rows[:max_rows]
    if not shown:
        return ""
    width = 2 * max(min(picture.shape[-1], _LONGEST_SIDE) for _, pictures in shown for picture in pictures)
    heads = "".join(f"<span>{_text(column)}</span>" for column in gallery.columns)
    body = f'<p><a href="{_text(gallery.link[0])}">{_text(gallery.link[1])}</a></p>' if gallery.link else ""
    body += f'<div class="heads row" aria-hidden="true">{heads}</div>'
    for label, pictures in shown:
        cells = ""
        for column, picture in zip(gallery.columns, pictures, strict=True):
            cells += (
                f'<figure><img src="{data_uri(picture)}" alt="{_text(column)}: {_text(label)}" '
                f'data-column="{_text(column)}" width="{2 * picture.shape[-1]}" height="{2 * picture.shape[-2]}">'
                f"<figcaption>{_text(column)}</figcaption></figure>"
            )
        body += f'<div class="faces row" data-label="{_text(label)}">{cells}</div><p class="label">{_text(label)}</p>'
    if len(shown) < len(gallery.rows):
        body += f'<p class="note">The first {len(shown)} of {len(gallery.rows)} are shown.</p>'
    style = f"--columns:{len(gallery.columns)};--width:{width}px"
    return _section(gallery.title, gallery.note, f'<div class="gallery" style="{style}">{body}</div>', "pictures")


_LONGEST_SIDE = 1024
_LOSSLESS_SIDE = 256


def data_uri(picture: Tensor, longest: int = _LONGEST_SIDE) -> str:
    """(3, H, W) in [0, 1] as a data URI, shrunk to `longest`: PNG up to 256 pixels a side, JPEG 95 above."""
    pixels = picture.detach().float().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    encoded = BytesIO()
    if max(image.size) <= _LOSSLESS_SIDE:
        image.save(encoded, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(encoded, "JPEG", quality=95, subsampling=0, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


# ---------------------------------------------------------------- curves

_CHART_WIDTH, _CHART_HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 10, 10, 26
_MOST_POINTS = 1000


def _curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    charts = "".join(chart(name, points) for name, points in curves.items() if points)
    return _section("While tuning", "", f'<div class="charts">{charts}</div>', "curves") if charts else ""


def chart(name: str, points: Sequence[tuple[int, float]]) -> str:
    """One curve as SVG, a long one with its running mean; points that are not finite are left out and counted."""
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    said = [] if len(finite) == len(points) else [f"{len(points) - len(finite)} of {len(points)} points are not finite"]
    if not finite:
        return f"<figure><figcaption><b>{_text(name)}</b> {said[0]}</figcaption></figure>"
    lines = {"mean": finite}
    window = len(finite) // 20
    if window >= 3:
        lines = {"raw": finite, "mean": _running_mean(finite, window)}
        said.append(f"thick line: mean of {window} values")
    said.append(f"last: {finite[-1][1]:.4g} at step {finite[-1][0]:,}")

    steps, values = [step for step, _ in finite], [value for _, value in finite]
    (x0, x1), x_ticks = _axis(min(steps), max(steps), whole=True)
    (y0, y1), y_ticks = _axis(min(values), max(values), whole=False)
    right, bottom = _CHART_WIDTH - _RIGHT, _CHART_HEIGHT - _BOTTOM

    def place_x(step: float) -> float:
        return _LEFT + (step - x0) / (x1 - x0) * (right - _LEFT)

    def place_y(value: float) -> float:
        return bottom - (value - y0) / (y1 - y0) * (bottom - _TOP)

    drawn = ""
    for tick in y_ticks:
        y = place_y(tick)
        drawn += f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        drawn += f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for tick in x_ticks:
        drawn += f'<text x="{place_x(tick):.1f}" y="{_CHART_HEIGHT - 6}" text-anchor="middle">{tick:,.0f}</text>'
    for kind, line in lines.items():
        placed = " ".join(f"{place_x(step):.1f},{place_y(value):.1f}" for step, value in _thinned(line))
        drawn += f'<polyline class="{kind}" points="{placed}"/>'
    return (
        f"<figure><figcaption><b>{_text(name)}</b> {'; '.join(said)}</figcaption>"
        f'<svg viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" role="img" aria-label="{_text(name)} by step">'
        f"{drawn}</svg></figure>"
    )


def _running_mean(points: Sequence[tuple[int, float]], window: int) -> list[tuple[int, float]]:
    """Mean of the last `window` values at each step that has so many."""
    means = np.lib.stride_tricks.sliding_window_view([value for _, value in points], window).mean(-1)
    return [(step, float(mean)) for (step, _), mean in zip(points[window - 1 :], means, strict=True)]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Evenly chosen points, 1,000 at most, and the last one."""
    every = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:every], points[-1]]


def _axis(low: float, high: float, whole: bool) -> tuple[tuple[float, float], list[float]]:
    """The ends of an axis that holds `low` and `high`, and 3 to 6 round numbers on it."""
    if low == high:
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    if whole:
        step = max(step, 1)
        return (low, high), [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    first, last = math.floor(low / step), math.ceil(high / step)
    return (first * step, last * step), [i * step for i in range(first, last + 1)]


# ---------------------------------------------------------------- the page's own parts

_STYLE = """
:root { --paper: #fbfbf9; --raised: #f1f1ee; --ink: #1f2023; --quiet: #66676c; --line: #dededa;
  --curve: #2c6a8f; --adopt: #1d7a4c; --keep_base: #9a5b00; --cannot_tell: #66676c; --not_judged: #66676c; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #141517; --raised: #1f2124; --ink: #e9e8e4; --quiet: #a0a1a5; --line: #34363a;
    --curve: #7db9dc; --adopt: #6fcf9b; --keep_base: #e5ad5c; --cannot_tell: #a0a1a5; --not_judged: #a0a1a5; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 56px 32px 96px; }
h1, h2 { font-weight: 600; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h1 { font-size: 2.1rem; }
h2 { font-size: 1.35rem; }
section { margin-top: 64px; }
p, ul { max-width: 44rem; }
.verdict { margin: 18px 0 0; padding-left: 18px; border-left: 4px solid var(--tone); font-size: 1.2rem; }
.verdict strong { display: block; color: var(--tone); font-weight: 600; }
.adopt { --tone: var(--adopt); } .keep_base { --tone: var(--keep_base); } .not_judged { --tone: var(--not_judged); }
.cannot_tell { --tone: var(--cannot_tell); }
header + section, .hint + section { margin-top: 40px; }
.note { color: var(--quiet); margin: 6px 0 0; }
.gallery { margin-top: 14px; }
.row { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, var(--width))); gap: 14px; }
.heads { position: sticky; top: 0; z-index: 1; padding: 10px 0; background: var(--paper); font-weight: 600; }
.faces figure { margin: 0; min-width: 0; }
.faces img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: var(--raised); }
.faces figcaption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.label { margin: 6px 0 26px; max-width: none; color: var(--quiet); font-size: 0.875rem; overflow-wrap: anywhere; }
.hint { display: none; } .live .hint { display: block; margin-top: 14px; padding-left: 22px; }
.live .faces img { cursor: zoom-in; }
.live .faces img:focus-visible, summary:focus-visible, .scroll:focus-visible, dialog :focus-visible {
  outline: 3px solid var(--curve); outline-offset: 2px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 26px 32px;
  margin: 20px 0 0; }
.figures div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.figures dt { color: var(--quiet); font-size: 0.9rem; line-height: 1.4; }
.figures dd { margin: 0; font-size: 1.6rem; font-weight: 600; letter-spacing: -0.01em; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin-top: 16px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 10px 14px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); padding-left: 10px; }
thead th { color: var(--quiet); font-weight: 500; font-size: 0.9rem; line-height: 1.35; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 8.5rem; max-width: 18rem; overflow-wrap: anywhere; }
td { white-space: nowrap; }
td small { display: block; color: var(--quiet); font-size: 0.78rem; }
.chosen > * , .chosen > th:first-child { background: var(--raised); font-weight: 650; }
.chosen small { font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 28px 40px;
  margin-top: 18px; }
.charts figure { margin: 0; min-width: 0; }
.charts figcaption { color: var(--quiet); font-size: 0.875rem; margin-bottom: 6px; overflow-wrap: anywhere; }
.charts b { color: var(--ink); font-weight: 600; margin-right: 6px; }
svg { display: block; width: 100%; height: auto; font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg text { fill: var(--quiet); } svg line { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--curve); stroke-linejoin: round; }
.mean { stroke-width: 2; } .raw { stroke-width: 1; opacity: 0.35; }
ul { padding-left: 1.2em; } li + li { margin-top: 4px; }
details { margin-top: 20px; border-top: 1px solid var(--line); padding-top: 18px; }
section + details { margin-top: 64px; }
summary { cursor: pointer; font-weight: 600; }
.settings { display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr); gap: 4px 24px; }
.settings dt { color: var(--quiet); overflow-wrap: anywhere; } .settings dd { margin: 0; overflow-wrap: anywhere; }
dialog { border: 0; border-radius: 12px; padding: 20px; background: var(--paper); color: var(--ink); max-width: 96vw; }
dialog::backdrop { background: rgb(0 0 0 / 0.72); }
.stage { position: relative; touch-action: pan-y; cursor: ew-resize; }
.stage img { display: block; width: min(88vw, calc((100vh - 190px) * var(--ratio, 1))); border-radius: 6px; }
.stage .over { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--cut, 50%)) 0 0); }
.stage i { position: absolute; top: 0; bottom: 0; left: var(--cut, 50%); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px rgb(0 0 0 / 0.35); }
.controls { display: grid; grid-template-columns: auto 1fr auto; gap: 8px 14px; align-items: center;
  margin-top: 14px; }
.controls input { width: 100%; accent-color: var(--curve); min-width: 0; }
.controls select, dialog button { font: inherit; color: inherit; background: var(--raised);
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 10px; max-width: 11rem; }
dialog form { display: flex; justify-content: space-between; align-items: center; gap: 16px; margin-bottom: 12px; }
dialog form span { color: var(--quiet); font-size: 0.875rem; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  main { padding: 28px 16px 64px; }
  h1 { font-size: 1.6rem; } .verdict { font-size: 1.08rem; } section { margin-top: 48px; }
  .heads { display: none; }
  .row { grid-template-columns: repeat(min(2, var(--columns)), minmax(0, 1fr)); gap: 10px; }
  .faces img { width: 100%; }
  .faces figcaption { position: static; width: auto; height: auto; clip-path: none; padding-top: 3px;
    font-size: 0.875rem; font-weight: 600; }
  .figures { grid-template-columns: 1fr 1fr; gap: 20px; } .figures dd { font-size: 1.3rem; }
  th, td { padding: 8px 10px; } tbody th { min-width: 7rem; max-width: 9rem; }
  .settings { grid-template-columns: 1fr; } .settings dd { margin-bottom: 8px; }
  .controls { grid-template-columns: 1fr 1fr; } .controls input { grid-column: 1 / -1; grid-row: 1; }
  .controls select:last-child { justify-self: end; }
}
@media print { .heads { position: static; } .faces { break-inside: avoid; } dialog { display: none; } }
"""

_HINT = '<p class="note hint">Select a picture to see it large, against the one beside it.</p>\n'

_DIALOG = """<dialog aria-label="Two versions of one picture">
<form method="dialog"><span></span><button>Close</button></form>
<div class="stage"><img alt=""><img class="over" alt=""><i></i></div>
<div class="controls"><select aria-label="On the left"></select>
<input type="range" min="0" max="100" value="50" step="0.5" aria-label="Where the two versions meet">
<select aria-label="On the right"></select></div>
</dialog>"""

_SCRIPT = """
(() => {
  const dialog = document.querySelector("dialog");
  if (!dialog || !dialog.showModal) return;
  document.documentElement.classList.add("live");
  const stage = dialog.querySelector(".stage"), range = dialog.querySelector("input");
  const [right, left] = stage.querySelectorAll("img"), [pickLeft, pickRight] = dialog.querySelectorAll("select");
  let row = [];
  const cut = value => { range.value = value; stage.style.setProperty("--cut", range.value + "%"); };
  const show = () => {
    left.src = row[pickLeft.value].src; right.src = row[pickRight.value].src;
    left.alt = row[pickLeft.value].alt; right.alt = row[pickRight.value].alt;
    stage.style.setProperty("--ratio", row[pickRight.value].width / row[pickRight.value].height);
  };
  const open = picture => {
    const faces = picture.closest(".faces");
    row = [...faces.querySelectorAll("img")];
    dialog.querySelector("form span").textContent = faces.dataset.label;
    for (const pick of [pickLeft, pickRight])
      pick.replaceChildren(...row.map((face, i) => new Option(face.dataset.column, i)));
    const chosen = row.indexOf(picture);
    pickLeft.value = chosen === 0 ? 0 : chosen - 1;
    pickRight.value = chosen === 0 ? Math.min(1, row.length - 1) : chosen;
    cut(50); show(); dialog.showModal(); range.focus();
  };
  for (const picture of document.querySelectorAll(".faces img")) {
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.title = "Compare with its neighbour";
    picture.addEventListener("click", () => open(picture));
    picture.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(picture); }
    });
  }
  pickLeft.onchange = pickRight.onchange = show;
  range.oninput = () => cut(range.value);
  const drag = event => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    cut((event.clientX - box.left) / box.width * 100);
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  stage.addEventListener("dragstart", event => event.preventDefault());
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
})();
"""
