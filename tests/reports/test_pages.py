"""Templates: texts stay texts, markup of our own stays markup, and a value that is missing is an error."""

from __future__ import annotations

import json
import re
import sys

import pytest

from bfr_core.reports import pages


@pytest.fixture
def templates(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "TEMPLATES", tmp_path)
    return tmp_path


def test_every_value_is_escaped_and_on_one_line(templates):
    (templates / "a.html").write_text('<p title="{{ x }}">{{ x }}</p>{{ mark }}')
    made = pages.render("a.html", x="<b>\n\u202e\"'&", mark=pages.trusted("<i>"))
    shown = "&lt;b&gt;\\n\\u202e&#34;&#39;&amp;"
    assert made == f'<p title="{shown}">{shown}</p><i>'


def test_a_value_that_is_not_given_is_an_error(templates):
    from jinja2 import UndefinedError

    (templates / "a.html").write_text("{{ x }}")
    with pytest.raises(UndefinedError, match="x"):
        pages.render("a.html")


def test_no_text_ends_the_script_that_it_stands_in():
    found = pages.json_for_script({"name": "</script><!--"})
    assert "<" not in found and json.loads(found) == {"name": "</script><!--"}


def test_without_jinja_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pages, "_environment", pages._environment.__wrapped__)  # it may have been made before
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match="pip install jinja2"):
        pages.render("page.html")


def test_templates_name_no_address():
    files = list(pages.TEMPLATES.iterdir())
    assert {file.name for file in files} >= {"page.html", "report.html", "vote.html", "chart.html"}
    for file in files:
        assert not re.search(r"https?:|//[a-z]|@import|\\| safe\b", file.read_text(encoding="utf-8")), file.name
