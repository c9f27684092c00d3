"""The page: hostile texts stay texts, nothing is fetched, everything given is there, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from PIL import Image

from bfr_core.reports import html as report
from bfr_core.reports.html import Gallery, ReportData, Table, write_report

HOSTILE = "<script>alert('1')</script>\n\"onload='x' &amp; \u202egpj.exe"


class Page(HTMLParser):
    """Tags with attributes, and the text between them; fails on a tag that is left open or closed twice."""

    VOID = ("meta", "img", "input", "line", "polyline", "br")

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(text)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def picture(value: float = 0.5, height: int = 8, width: int = 6) -> torch.Tensor:
    return torch.full((3, height, width), value)


def full(text: str = "a name") -> ReportData:
    """Every field in use, with `text` wherever a text is shown."""
    return ReportData(
        title=text,
        verdict="keep_base",
        verdict_sentence=text,
        galleries=[Gallery(text, text, ["lq", text], [(text, [picture(0.1), picture(0.9)])] * 3)],
        figures=[(text, text)],
        tables=[Table(text, text, ["", text], [[text, "24.60 (24.10 to 25.00)"], ["b", text]], highlight=text)],
        loss_curves={text: [(i, 1 / (i + 1)) for i in range(100)]},
        notes=[text],
        settings={text: text, "nested": {"a": [1, text]}},
        licences=[text],
        measurements={"gain": {"mean": 1.5, "low": float("nan")}},
    )


def test_every_text_is_shown_and_none_becomes_markup(tmp_path):
    page = Page(write_report(tmp_path, full(HOSTILE)).read_text(encoding="utf-8"))
    plain = Page(report.render_html(full()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert [sorted(attributes) for _, attributes in page.tags] == [sorted(attributes) for _, attributes in plain.tags]
    shown = "<script>alert('1')</script>\\n\"onload='x' &amp; \\u202egpj.exe"
    assert page.texts.count(shown) >= 14
    assert page.named("img")[0]["alt"] == f"lq: {shown}"
    assert not any("\u202e" in text for text in page.texts)


def test_nothing_is_fetched_and_only_our_own_script_may_run():
    text = report.render_html(full(HOSTILE))
    page = Page(text)
    assert not re.search(r"(?:https?:)?//\w", re.sub(r"base64,[\w+/=]+", "", text))
    assert page.named("link") == [] and len(page.named("script")) == 1
    assert all(image["src"].startswith("data:image/") for image in page.named("img") if "src" in image)
    policy = page.named("meta")[1]["content"]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and policy.endswith(f"script-src 'sha256-{digest}'")


def test_pictures_come_first_whole_and_labelled():
    text = report.render_html(full())
    assert (
        text.index('class="verdict') < text.index('class="pictures') < text.index("In figures") < text.index("<table")
    )
    assert text.index("<table") < text.index("<svg") < text.index("<details")
    image = Page(text).named("img")[1]
    assert (image["width"], image["height"], image["alt"]) == ("12", "16", "a name: a name")
    pixels = Image.open(BytesIO(base64.b64decode(image["src"].partition("base64,")[2])))
    assert pixels.size == (6, 8) and pixels.getpixel((0, 0)) == (230, 230, 230)


def test_galleries_are_cut_at_max_rows_and_say_so():
    page = Page(report.render_html(full(), max_rows=2))
    assert len([image for image in page.named("img") if "src" in image]) == 4
    assert "The first 2 of 3 are shown." in page.texts
    assert not any("are shown" in text for text in Page(report.render_html(full(), max_rows=3)).texts)


def test_large_pictures_are_shrunk_and_stay_close():
    y, x = torch.meshgrid(torch.linspace(0, 1, 600), torch.linspace(0, 1, 1500), indexing="ij")
    data = ReportData("t", "adopt", "s", galleries=[Gallery("g", "", ["c"], [("r", [torch.stack([x, y, x * y])])])])
    (image, *_) = Page(report.render_html(data)).named("img")
    assert image["src"].startswith("data:image/jpeg")
    pixels = Image.open(BytesIO(base64.b64decode(image["src"].partition("base64,")[2])))
    assert pixels.size == (1024, 410)
    assert pixels.getpixel((1023, 409)) == pytest.approx((255, 255, 255), abs=6)


def test_a_number_stands_over_its_interval_and_the_chosen_row_stands_out():
    text = report.render_html(full())
    assert "<td>24.60<small>24.10 to 25.00</small></td>" in text
    assert text.count('<tr class="chosen"><th scope="row">a name</th>') == 1
    plain = ReportData("t", "adopt", "s", tables=[Table("t", "", ["", "x"], [["", "1"]])])
    assert 'class="chosen"' not in report.render_html(plain)


def test_json_holds_everything_but_the_pictures(tmp_path):
    write_report(tmp_path, full(HOSTILE))
    read = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert read["verdict"] == "keep_base" and read["title"] == HOSTILE
    assert read["measurements"] == {"gain": {"mean": 1.5, "low": None}}
    assert read["galleries"][0]["rows"] == [HOSTILE] * 3
    assert read["loss_curves"][HOSTILE][1] == [1, 0.5]
    assert read["settings"]["nested"] == {"a": [1, HOSTILE]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_least_report_is_a_page_without_empty_sections():
    text = report.render_html(ReportData("t", "not_judged", "too few faces"))
    page = Page(text)
    assert page.texts.count("Not judged") == 1
    for absent in ("section", "details", "dialog", "figure", "table"):
        assert page.named(absent) == [], absent


def test_rows_that_do_not_fit_their_columns_are_refused_by_name(tmp_path):
    data = ReportData("t", "adopt", "s", tables=[Table("Scores", "", ["", "x"], [["a"]])])
    with pytest.raises(ValueError, match="table 'Scores': 1 cells under 2 columns"):
        write_report(tmp_path, data)
    data = ReportData("t", "adopt", "s", galleries=[Gallery("Faces", "", ["x"], [("r", [])])])
    with pytest.raises(ValueError, match="gallery 'Faces': 0 pictures of r under 1 columns"):
        write_report(tmp_path, data)
    with pytest.raises(ValueError, match="verdict is 'maybe'"):
        write_report(tmp_path, ReportData("t", "maybe", "s"))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_page_leaves_the_old_one(tmp_path, monkeypatch):
    write_report(tmp_path, full("old"))
    monkeypatch.setattr(report, "render_html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(tmp_path, full("new"))
    assert "old" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["title"] == "old"
