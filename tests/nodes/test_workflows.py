"""The workflow files: twins, widgets as the nodes have them, nothing on top of anything, a picture each."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from api_graph import WORKFLOWS, read, to_api, twin, widget_values
from PIL import Image
from refresh_workflows import height_with_results

FILES = sorted(WORKFLOWS.glob("*.json"))
BLUEPRINT = WORKFLOWS.parent / "subgraphs" / "Teach with a Checkpoint (BFR).json"
BLUEPRINTS = sorted(BLUEPRINT.parent.glob("*.json"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
TITLE = 30  # height of a node's title, above its position


def graphs(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The workflow and the insides of its boxes."""
    return [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]


def test_the_ten_are_there_in_the_order_of_their_names_the_shortest_first() -> None:
    """The template browser shows file names as titles."""
    assert [path.stem for path in FILES] == [
        "01 Restore a photo", "02 Tour of the method", "03 Restore generated images", "04 Adapt and restore",
        "05 Adapt step by step", "06 Compare base and adapted", "07 Teach with any graph", "08 Teach with SD 1.5",
        "09 Teach with SDXL", "10 Teach with Flux",
    ]  # fmt: skip
    assert {path.name for path in (WORKFLOWS / "api").iterdir()} == {path.name for path in FILES}


TEACHERS = {
    "08 Teach with SD 1.5": (512, 16, 1.0, 3.0),
    "09 Teach with SDXL": (1024, 32, 1.0, 3.0),
    "10 Teach with Flux": (1024, 32, 1, 1),
}


@pytest.mark.parametrize(("name", "side", "factor", "least", "most"), [(k, *v) for k, v in TEACHERS.items()])
def test_a_teacher_holds_what_it_samples(name: str, side: int, factor: int, least: float, most: float) -> None:
    """Encoded, held and fixed is one picture at the checkpoint's size, and sampler and hold overlap."""
    graph = read(twin(WORKFLOWS / f"{name}.json"))
    of = {node["class_type"]: node["inputs"] for node in graph.values()}
    ids = {node["class_type"]: key for key, node in graph.items()}
    picture = [ids["ImageScale"], 0]
    assert (of["ImageScale"]["width"], of["ImageScale"]["height"]) == (side, side)
    held, fixed = of["BFR_HoldLowBand"], of["BFR_LowBandFix"]
    assert of["VAEEncode"]["pixels"] == held["reference"] == fixed["reference"] == picture
    assert held["factor"] == fixed["factor"] == factor
    assert of["KSampler"]["model"] == [ids["BFR_HoldLowBand"], 0] and least <= of["KSampler"]["cfg"] <= most
    assert 1 - of["KSampler"]["denoise"] < held["until"] < 1
    assert of["BFR_TargetsFromImages"]["images"] == [ids["BFR_LowBandFix"], 0]
    assert of["BFR_RestoreFaces"]["aligned"]
    assert of["BFR_FacesFromFolder"]["first"] == of["BFR_TargetsFromImages"]["first"]
    (note,) = (n["widgets_values"][0] for n in read(WORKFLOWS / f"{name}.json")["nodes"] if n["type"] == "MarkdownNote")
    assert all(
        word in note for word in ("**denoise**", "**factor**", "**Prompt**", "Not yet tried on real checkpoints")
    )


def test_the_blueprint_is_the_teacher_in_one_box(nodes: dict[str, Any]) -> None:
    """What ComfyUI's node menu lists from a pack's folder `subgraphs`, under the file's name."""
    file = read(BLUEPRINT)
    (box,), (outside,) = file["definitions"]["subgraphs"], file["nodes"]
    assert box["name"] == BLUEPRINT.stem and outside["type"] == box["id"]
    assert [s["name"] for s in outside["inputs"]] == [s["name"] for s in box["inputs"]]
    assert widget_values(outside) == {
        "text": "sharp portrait photo, natural skin, fine detail",
        "width": 512, "factor": 16, "denoise": 0.5, "cfg": 2.0,
    }  # fmt: skip
    same = ("BFR_HoldLowBand", "BFR_LowBandFix", "BFR_RestoreFaces", "BFR_TargetsFromImages", "CLIPTextEncode",
            "ImageScale", "KSampler", "VAEDecode", "VAEEncode")  # fmt: skip
    inside = list(to_api(file).values())
    teacher = [n for n in read(twin(WORKFLOWS / "08 Teach with SD 1.5.json")).values() if n["class_type"] in same]

    def values(graph: list[dict[str, Any]]) -> list[Any]:
        found = [(n["class_type"], {k: v for k, v in n["inputs"].items() if not isinstance(v, list)}) for n in graph]
        return sorted(found, key=str)

    assert values(inside) == values(teacher)
    for node in (n for n in box["nodes"] if n["type"].startswith("BFR_")):
        schema = nodes[node["type"]].define_schema()
        assert [s["name"] for s in node["inputs"] if s.get("widget")] == [
            s.id for s in schema.inputs if "default" in s.options
        ]
        assert [s["name"] for s in node["outputs"]] == [s.options["display_name"] for s in schema.outputs]
    used = {link["origin_slot"] for link in box["links"] if link["origin_id"] == -10}
    assert used == set(range(len(box["inputs"])))


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
def test_every_node_has_room_for_what_it_shows_after_a_run(path: Path) -> None:
    """Otherwise it grows, and covers the node below it."""
    for node in read(path)["nodes"]:
        assert node["size"][1] >= height_with_results(node), node["type"]


@each
def test_every_template_has_a_small_picture(path: Path) -> None:
    picture = path.with_suffix(".jpg")  # the name and format that ComfyUI's template browser asks for
    assert picture.stat().st_size < 40_000
    with Image.open(picture) as opened:
        assert opened.format == "JPEG" and min(opened.size) >= 256


def test_adapt_and_restore_has_three_widgets() -> None:
    workflow = read(WORKFLOWS / "04 Adapt and restore.json")
    (box,) = workflow["definitions"]["subgraphs"]
    (node,) = [n for n in workflow["nodes"] if n["type"] == box["id"]]
    assert list(widget_values(node)) == ["folder", "restorer", "prior"]


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_box_whose_widgets_have_the_nodes_defaults(path: Path, nodes: dict[str, Any]) -> None:
    """What ComfyUI's node menu lists from a pack's folder `subgraphs`, under the file's name."""
    file = read(path)
    (box,), (outside,) = file["definitions"]["subgraphs"], file["nodes"]
    assert box["name"] == path.stem and outside["type"] == box["id"]
    assert [s["name"] for s in outside["inputs"]] == [s["name"] for s in box["inputs"]]
    assert [s["name"] for s in outside["outputs"]] == [s["name"] for s in box["outputs"]]
    used = {link["origin_slot"] for link in box["links"] if link["origin_id"] == -10}
    assert used == set(range(len(box["inputs"])))
    for node in (n for n in box["nodes"] if n["type"] in nodes):
        schema = nodes[node["type"]].define_schema()
        assert [s["name"] for s in node["inputs"] if s.get("widget")] == [
            s.id for s in schema.inputs if "default" in s.options
        ]
        assert [s["name"] for s in node["outputs"]] == [s.options["display_name"] for s in schema.outputs]
        for place, socket in enumerate(node["inputs"]):
            links = [x for x in box["links"] if x["id"] == socket["link"]]
            assert all((x["target_id"], x["target_slot"]) == (node["id"], place) for x in links), socket["name"]
    to_api(file)


def test_adapt_and_restore_is_the_templates_box_and_restore_faces_keeps_the_nodes_defaults(
    nodes: dict[str, Any],
) -> None:
    by_name = {path.stem: read(path) for path in BLUEPRINTS}
    assert sorted(by_name) == ["Adapt and Restore (BFR)", "Restore Faces of a Photo (BFR)", BLUEPRINT.stem]
    (template,) = read(WORKFLOWS / "04 Adapt and restore.json")["definitions"]["subgraphs"]
    (box,) = by_name["Adapt and Restore (BFR)"]["definitions"]["subgraphs"]
    assert {k: v for k, v in box.items() if k not in ("id", "name")} == {
        k: v for k, v in template.items() if k not in ("id", "name")
    }
    for node in to_api(by_name["Restore Faces of a Photo (BFR)"]).values():
        for socket in nodes[node["class_type"]].define_schema().inputs:
            if "default" in socket.options:
                assert node["inputs"][socket.id] == socket.options["default"], socket.id


@pytest.mark.parametrize("path", [*FILES, *BLUEPRINTS], ids=lambda path: path.stem)
def test_every_node_says_in_which_pack_it_is_found(path: Path) -> None:
    """By `cnr_id`, the pack's name in ComfyUI's registry, so that what is missing can be installed."""
    name = re.search(r'^name = "(.*)"', (WORKFLOWS.parent / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    boxes = {box["id"] for box in read(path).get("definitions", {}).get("subgraphs", [])}
    for graph in graphs(read(path)):
        for node in (n for n in graph["nodes"] if n["type"] not in boxes):
            ours = node["type"].startswith("BFR_")
            assert node["properties"]["cnr_id"] == (name if ours else "comfy-core"), node["type"]


@each
def test_a_template_opens_where_it_begins_at_a_readable_scale(path: Path) -> None:
    workflow = read(path)
    scale, offset = workflow["extra"]["ds"]["scale"], workflow["extra"]["ds"]["offset"]
    assert 0.7 <= scale <= 1
    note = next(n for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    left, top = ((note["pos"][axis] + offset[axis]) * scale for axis in (0, 1))
    assert 50 < left < 400 and 80 < top < 400, "what explains the template is seen first"


@pytest.mark.parametrize("name", ["01 Restore a photo", "04 Adapt and restore"])
def test_app_mode_shows_widgets_and_results_that_are_there(name: str) -> None:
    workflow = read(WORKFLOWS / f"{name}.json")
    shown, nodes = workflow["extra"]["linearData"], {node["id"]: node for node in workflow["nodes"]}
    assert shown["inputs"] and shown["outputs"]
    for number, widget in shown["inputs"]:
        assert widget in [s["name"] for s in nodes[number]["inputs"] if s.get("widget")]
    assert {nodes[number]["type"] for number in shown["outputs"]} <= {"SaveImage", "PreviewAny"}


def test_no_two_nodes_have_one_number_boxes_or_not() -> None:
    for path in FILES:  # newer editors would number them anew
        ids = [node["id"] for graph in graphs(read(path)) for node in graph["nodes"]]
        assert len(ids) == len(set(ids))


def test_only_safe_places_are_named() -> None:
    for path in FILES:
        for node in read(twin(path)).values():
            for value in (v for v in node["inputs"].values() if isinstance(v, str)):
                assert not value.startswith(("/", "\\", "..")) and ":" not in value


@pytest.mark.parametrize("path", [*FILES, *BLUEPRINTS], ids=lambda path: path.stem)
def test_a_checkpoint_says_where_it_is_published(path: Path) -> None:
    """By `properties.models`, so that ComfyUI offers what is missing; no other node names a file of weights."""
    for graph in graphs(read(path)):
        for node in graph["nodes"]:
            files = [
                v for v in node.get("widgets_values") or [] if re.search(r"\.(safetensors|ckpt|pth?|gguf)$", str(v))
            ]
            published = node["properties"].get("models", [])
            assert [one["name"] for one in published] == files
            assert not files or node["type"] == "CheckpointLoaderSimple"
            for one in published:
                assert one["directory"] == "checkpoints" and one["url"].endswith(f"/{one['name']}")
                assert one["url"].startswith("https://huggingface.co/"), "ComfyUI offers downloads from few places"
