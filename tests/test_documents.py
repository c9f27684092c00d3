"""What the documents name is there: files, headings, pictures; and the README stays short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [ROOT / "benchmarks" / "README.md", ROOT / "bfr_core" / "embedded" / "MODEL_CARD.md"]
# Paths in code marks that begin in one of these folders, or name a module of the core as docs/method.md does.
FOLDERS = (
    "bfr_core",
    "nodes",
    "scripts",
    "tests",
    "tools",
    "docs",
    "benchmarks",
    "workflows",
    "installation",
    "locales",
)


def paths_in(text: str) -> set[str]:
    """Paths of this repository that stand in code marks: below one of `FOLDERS`, without placeholders."""
    words = {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}
    return {word for word in words if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", word)}


def anchors_of(text: str) -> set[str]:
    """The headings of a page, as links to them are written."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Links to files or headings of this repository that lead nowhere."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_and_heading_that_a_document_names_is_there(document):
    text = document.read_text(encoding="utf-8")
    assert [path for path in sorted(paths_in(text)) if not (ROOT / path).exists()] == []
    assert broken_links(document) == []


def test_every_module_that_the_method_names_is_there():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"`((?:\w+/)*\w+\.py)`", text))
    assert len(modules) > 15
    assert [name for name in sorted(modules) if not (ROOT / "bfr_core" / name).exists()] == []


def test_the_readme_has_at_most_a_thousand_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_every_command_is_described():
    done = subprocess.run(
        [sys.executable, "-m", "bfr_core", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = re.findall(r"^ {2,4}([a-z]+(?:-[a-z]+)*)(?: {2,}|$)", done.stdout, re.MULTILINE)
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert len(commands) > 10
    assert [name for name in commands if f"bfr {name}" not in page] == []


def test_the_chart_is_drawn_from_the_table_of_results():
    pytest.importorskip("matplotlib")
    from readme_chart import ALWAYS, METHODS, TITLES, psnr_of

    values = psnr_of((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert {(kind, method) for kind in TITLES for method in ALWAYS} <= set(values) and set(ALWAYS) <= set(METHODS)
    assert {method for kind, method in values if kind in TITLES} >= set(METHODS)
    assert all(value.low < value.mean < value.high for value in values.values())
    twice = "| sensor: adapted | 29.3 (29.1 to 29.5) | 1 |\n\n| sensor: adapted | 27.0 (26.8 to 27.3) | 1 |\n"
    twice += "| sensor: oracle | 27.8 (27.6 to 28.1) | 1 |\n| tape: base | 26.2 (25.8 to 26.6) | 1 |\n"
    assert {key: value.mean for key, value in psnr_of(twice).items()} == {
        ("sensor", "adapted"): 29.3,  # the first table's, and only that one's
        ("tape", "base"): 26.2,
    }


def test_what_is_checked_here_can_be_found_broken(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, with: marks\n[a](#a-heading-with-marks) [b](#other) [c](nowhere.md) [d](https://x.y/z)\n"
    )
    assert broken_links(page) == ["#other", "nowhere.md"]
    assert paths_in("`python tools/gone.py x` and `bfr_core/files/` but not `<name>/x`") == {
        "tools/gone.py",
        "bfr_core/files/",
    }
