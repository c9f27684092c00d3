"""Help pages and texts say what the nodes say, in English and in Chinese."""

from __future__ import annotations

import re
from typing import Any

import pytest
from node_help import LOCALES, PAGES, TITLES, english, page, page_path, read_texts
from PIL import Image


def test_english_texts_are_the_nodes_own(nodes: dict[str, Any]) -> None:
    assert read_texts("en") == english(list(nodes.values())), "write them anew: python tools/node_help.py"


def test_chinese_texts_are_complete(nodes: dict[str, Any]) -> None:
    def keys(tree: Any) -> Any:
        return {key: keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None

    english, chinese = read_texts("en"), read_texts("zh")
    assert keys(chinese) == keys(english)
    for name, texts in chinese.items():
        for socket in [*texts["inputs"].values(), *texts["outputs"].values()]:
            assert re.search(r"[\u4e00-\u9fff]", socket["tooltip"]), f"{name}: {socket}"
    for language in ("en", "zh"):
        assert "BFR Adapt" in (LOCALES / language / "main.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", TITLES)
def test_every_node_has_its_page(nodes: dict[str, Any], language: str) -> None:
    texts = read_texts(language)
    for name, node in nodes.items():
        path = page_path(name, language)
        text = path.read_text(encoding="utf-8")
        assert text == page(node.define_schema(), texts[name], language), "write it anew: python tools/node_help.py"
        assert text.startswith(f"# {texts[name]['display_name']}\n")
    assert {path.stem for path in PAGES.glob("*.md")} == set(nodes)


def test_pictures_are_there_and_small() -> None:
    named = {
        name for path in PAGES.rglob("*.md") for name in re.findall(r"\]\((.*?)\)", path.read_text(encoding="utf-8"))
    }
    assert named == {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.jpg")}
    for name in named:
        with Image.open(PAGES / name) as picture:
            assert picture.format == "JPEG" and (PAGES / name).stat().st_size < 60_000
