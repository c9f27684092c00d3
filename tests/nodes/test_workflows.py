"""The workflow files: twins, widgets as the nodes have them, nothing on top of anything, a picture each."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from api_graph import WORKFLOWS, read, to_api, twin, widget_values
from PIL import Image

FILES = sorted(WORKFLOWS.glob("*.json"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
TITLE = 30  # height of a node's title, above its position


def graphs(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The workflow and the insides of its boxes."""
    return [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]


def test_the_seven_are_there() -> None:
    assert {path.stem for path in FILES} == {
        "adapt_and_restore", "adapt_step_by_step", "any_graph_as_teacher", "compare_base_and_adapted",
        "restore_generated_images", "restore_photo", "tour",
    }  # fmt: skip
    assert {path.name for path in (WORKFLOWS / "api").iterdir()} == {path.name for path in FILES}


@each
def test_the_twin_is_the_same_graph(path: Path) -> None:
    assert read(twin(path)) == to_api(read(path)), "write it anew: python tools/api_graph.py"


@each
def test_inputs_and_outputs_are_those_of_the_nodes(path: Path, nodes: dict[str, Any]) -> None:
    for graph in graphs(read(path)):
        for node in (n for n in graph["nodes"] if n["type"].startswith("BFR_")):
            schema = nodes[node["type"]].define_schema()
            assert {s["name"] for s in node["inputs"]} == {s.id for s in schema.inputs}, node["type"]
            widgets = [s["name"] for s in node["inputs"] if s.get("widget")]
            assert widgets == [s.id for s in schema.inputs if "default" in s.options], "values go by this order"
            assert [s["name"] for s in node["outputs"]] == [s.options["display_name"] for s in schema.outputs]
            for name, value in widget_values(node).items():
                options = next(s.options for s in schema.inputs if s.id == name)
                assert value in options.get("options", [value])
                assert options.get("min", value) <= value <= options.get("max", value)


@each
def test_every_node_leads_to_a_result(path: Path, nodes: dict[str, Any]) -> None:
    shows = {"SaveImage", "PreviewImage", "PreviewAny"}
    shows |= {name for name, node in nodes.items() if node.define_schema().is_output_node}
    graph = read(twin(path))
    wanted = [name for name, node in graph.items() if node["class_type"] in shows]
    reached = set(wanted)
    while wanted:
        links = [v[0] for v in graph[wanted.pop()]["inputs"].values() if isinstance(v, list)]
        wanted += [name for name in links if name not in reached]
        reached |= set(links)
    assert reached == set(graph), "ComfyUI does not run a node that leads to none"


@each
def test_seeds_stay_fixed_so_that_a_run_goes_on(path: Path) -> None:
    for graph in graphs(read(path)):
        for node in graph["nodes"]:
            assert not {"randomize", "increment", "decrement"} & set(map(str, node.get("widgets_values", [])))


@each
def test_no_box_lies_on_another_and_a_note_explains(path: Path) -> None:
    workflow = read(path)
    assert any(n["type"] == "MarkdownNote" and n["widgets_values"][0].startswith("# ") for n in workflow["nodes"])
    for graph in graphs(workflow):
        boxes = [(n["type"], *n["pos"], *n["size"]) for n in graph["nodes"]]
        for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in combinations(boxes, 2):
            apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - TITLE or by + bh <= ay - TITLE
            assert apart, f"{a} and {b} overlap"


@each
def test_every_template_has_a_small_picture(path: Path) -> None:
    picture = path.with_suffix(".jpg")  # the name and format that ComfyUI's template browser asks for
    assert picture.stat().st_size < 40_000
    with Image.open(picture) as opened:
        assert opened.format == "JPEG" and min(opened.size) >= 256


def test_adapt_and_restore_has_three_widgets() -> None:
    workflow = read(WORKFLOWS / "adapt_and_restore.json")
    (box,) = workflow["definitions"]["subgraphs"]
    (node,) = [n for n in workflow["nodes"] if n["type"] == box["id"]]
    assert list(widget_values(node)) == ["folder", "restorer", "prior"]


def test_no_two_nodes_have_one_number_boxes_or_not() -> None:
    for path in FILES:  # newer editors would number them anew
        ids = [node["id"] for graph in graphs(read(path)) for node in graph["nodes"]]
        assert len(ids) == len(set(ids))


def test_only_safe_places_are_named() -> None:
    for path in FILES:
        for node in read(twin(path)).values():
            for value in (v for v in node["inputs"].values() if isinstance(v, str)):
                assert not value.startswith(("/", "\\", "..")) and ":" not in value
