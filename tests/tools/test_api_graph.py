"""A saved workflow becomes the graph that ComfyUI's server takes."""

from __future__ import annotations

from typing import Any

import pytest
from api_graph import to_api, widget_values


def socket(name: str, link: int | None = None, widget: bool = False, kind: str = "INT") -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def node(id: int, type: str, inputs: list[dict], values: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "inputs": inputs, "widgets_values": values or [], "properties": {}, **more}


def test_widgets_links_and_notes() -> None:
    workflow = {
        "nodes": [
            node(1, "MarkdownNote", [], ["text"]),
            node(2, "Load", [socket("image", widget=True), socket("up", widget=True, kind="IMAGEUPLOAD")], ["a", "b"]),
            node(
                3, "Use", [socket("x", 7), socket("mask"), socket("seed", widget=True), socket("n", 8, widget=True)],
                [5, "fixed", 1], title="Mine",
            ),
        ],
        "links": [[7, 2, 1, 3, 0, "IMAGE"], [8, 2, 0, 3, 3, "INT"]],
    }  # fmt: skip
    assert to_api(workflow) == {
        "2": {"class_type": "Load", "inputs": {"image": "a"}, "_meta": {"title": "Load"}},
        "3": {"class_type": "Use", "inputs": {"x": ["2", 1], "seed": 5, "n": ["2", 0]}, "_meta": {"title": "Mine"}},
    }


def link(id: int, source: int, slot: int, target: int, target_slot: int) -> dict[str, Any]:
    names = {"origin_id": source, "origin_slot": slot, "target_id": target, "target_slot": target_slot}
    return {"id": id, "type": "INT", **names}


def test_boxes_in_boxes_are_flattened() -> None:
    inner = {
        "id": "inner",
        "nodes": [node(1, "Add", [socket("a", 1), socket("b", 2, widget=True)], [0])],
        "links": [link(1, -10, 0, 1, 0), link(2, -10, 1, 1, 1), link(3, 1, 4, -20, 0)],
    }
    outer = {
        "id": "outer",
        "nodes": [node(9, "inner", [socket("a", 1), socket("b", widget=True)], [33])],
        "links": [link(1, -10, 0, 9, 0), link(2, 9, 0, -20, 0)],
    }
    workflow = {
        "nodes": [node(1, "One", []), node(5, "outer", [socket("in", 1)]), node(6, "End", [socket("x", 2)])],
        "links": [[1, 1, 0, 5, 0, "INT"], [2, 5, 0, 6, 0, "INT"]],
        "definitions": {"subgraphs": [inner, outer]},
    }
    api = to_api(workflow)
    assert set(api) == {"1", "5:9:1", "6"}
    assert api["5:9:1"]["inputs"] == {"a": ["1", 0], "b": 33}
    assert api["6"]["inputs"] == {"x": ["5:9:1", 4]}


@pytest.mark.parametrize(("values", "problem"), [([1], "no value for b"), ([1, 2, 3], r"values left over: \[3\]")])
def test_too_few_and_too_many_values_are_named(values: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        widget_values(node(1, "Add", [socket("a", widget=True), socket("b", widget=True)], values))


def test_what_a_template_must_not_have() -> None:
    for wrong in (node(4, "Reroute", []), node(4, "Add", [], mode=2)):
        with pytest.raises(ValueError, match=r"node 4 \((Reroute|Add)\)"):
            to_api({"nodes": [wrong], "links": []})
