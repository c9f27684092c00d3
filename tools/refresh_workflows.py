"""Bring the workflow files up to the nodes as they are now; titles, links and values stay.

    python tools/refresh_workflows.py     rewrites workflows/*.json, their twins, and subgraphs/*.json

New inputs get their default, and nodes have room for what they show after a run. Every node says in which pack it is
found (`cnr_id`), so that ComfyUI can offer to install what is missing, and a checkpoint says where it is published. A
template opens at a scale at which titles can be read, at its left upper corner.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import api_graph
from node_help import ROOT, nodes_of_the_pack

PACK, CORE = "bfr-adapt", "comfy-core"  # the names of the packs in ComfyUI's registry
SCALE, MARGIN = 0.75, (110, 130)  # of the view; pixels of the page beside and above the first node
# Pixels below a node's widgets for what it shows after a run: its picture, then its text.
PICTURE, TEXT = 220, 90
ROOM = {
    "BFR_Compare": 300 + TEXT,  # more where clean pictures are known, as every measure takes three lines
    "BFR_Degrade": PICTURE,
    "BFR_DrawFaces": PICTURE,
    "BFR_FacesFromFolder": PICTURE + TEXT,
    "BFR_FacesFromImages": PICTURE + TEXT,
    "BFR_FinetuneRestorer": 330 + 120,
    "BFR_LoadPrior": 60,
    "BFR_LoadRestorer": 60,
    "BFR_MakePseudoTargets": PICTURE + TEXT,
    "BFR_RestoreFaces": 250 + TEXT,
    "BFR_SaveRestorer": TEXT,
    "BFR_TargetsFromImages": PICTURE + TEXT,
}
SOCKET, WIDGET, RIM = 20, 24, 20  # pixels of height that a node's parts take in the editor
GAP, GROUP_RIM = 60, 20  # between nodes of a column, whose titles lie in it; of a group below its last node
OPTIONAL = 7  # the shape that the editor draws an optional input in
# What ComfyUI's app mode shows of a template: widgets by node and name, and nodes whose results are shown.
APPS = {
    "01 Restore a photo": {
        "inputs": [("LoadImage", "image"), ("BFR_LoadRestorer", "restorer")],
        "outputs": ["SaveImage"],
    },
    "04 Adapt and restore": {"inputs": [("LoadImage", "image")], "outputs": ["SaveImage", "PreviewAny"]},
}
# Where the checkpoints that templates begin with are published, as ComfyUI's own templates say it.
CHECKPOINTS = {
    "v1-5-pruned-emaonly-fp16.safetensors": "Comfy-Org/stable-diffusion-v1-5-archive",
    "sd_xl_base_1.0.safetensors": "stabilityai/stable-diffusion-xl-base-1.0",
    "flux1-dev-fp8.safetensors": "Comfy-Org/flux1-dev",
}
Graph = dict[str, Any]


def refreshed(node: Graph, schema: Any, links: list[Any]) -> None:
    """Give `node` the inputs of its schema in their order, sockets first, and values for its widgets.

    links: of the node's graph, whose slots move along.
    """
    values = api_graph.widget_values(node)
    before = {socket["name"]: (place, socket) for place, socket in enumerate(node["inputs"])}
    ordered = sorted(schema.inputs, key=lambda socket: "default" in socket.options)
    node["inputs"] = [before[s.id][1] if s.id in before else entry(s) for s in ordered]
    moved = {before[s.id][0]: place for place, s in enumerate(ordered) if s.id in before}
    for link in links:
        if isinstance(link, dict) and link["target_id"] == node["id"]:
            link["target_slot"] = moved[link["target_slot"]]
        elif isinstance(link, list) and link[3] == node["id"]:
            link[4] = moved[link[4]]
    node["widgets_values"] = []
    for socket in (s for s in schema.inputs if "default" in s.options):
        node["widgets_values"].append(values.get(socket.id, socket.options["default"]))
        node["widgets_values"] += ["fixed"] if socket.id == "seed" else []


def entry(socket: Any) -> Graph:
    """An input as the editor writes it."""
    made = {"name": socket.id, "type": socket.kind, "link": None}
    made |= {"shape": OPTIONAL} if socket.options.get("optional") else {}
    return made | ({"widget": {"name": socket.id}} if "default" in socket.options else {})


def refresh(workflow: Graph, schemas: dict[str, Any], version: str) -> None:
    """Refresh every node of `workflow`, those in its boxes too."""
    boxes = workflow.get("definitions", {}).get("subgraphs", [])
    inside = {box["id"] for box in boxes}
    for graph in (workflow, *boxes):
        for node in graph["nodes"]:
            if node["type"] in schemas:
                refreshed(node, schemas[node["type"]], graph["links"])
                node["properties"] |= {"cnr_id": PACK, "ver": version}
            elif node["type"] not in inside:
                node["properties"]["cnr_id"] = CORE
            if named := [value for value in node.get("widgets_values") or [] if value in CHECKPOINTS]:
                node["properties"]["models"] = [published(name) for name in named]


def published(name: str) -> Graph:
    """What a node says of its checkpoint, so that ComfyUI, where the file is missing, offers it and says its folder."""
    url = f"https://huggingface.co/{CHECKPOINTS[name]}/resolve/main/{name}"
    return {"name": name, "url": url, "directory": "checkpoints"}


def give_room(graph: Graph) -> None:
    """Make nodes as high as what they show needs; those below in the same column move down, and groups grow.

    Nodes of a column begin at the same place from the left.
    """
    columns: dict[float, list[Graph]] = {}
    for node in sorted(graph["nodes"], key=lambda node: node["pos"][1]):
        columns.setdefault(node["pos"][0], []).append(node)
    for column in columns.values():
        bottom = column[0]["pos"][1] - GAP
        for node in column:
            node["pos"][1] = max(node["pos"][1], bottom + GAP)
            node["size"][1] = max(node["size"][1], height_with_results(node))
            bottom = node["pos"][1] + node["size"][1]
    for group in graph.get("groups", []):
        left, top, width, _ = group["bounding"]
        inside = [node for node in graph["nodes"] if left <= node["pos"][0] < left + width]
        group["bounding"][3] = max(node["pos"][1] + node["size"][1] for node in inside) + GROUP_RIM - top


def height_with_results(node: Graph) -> int:
    """Pixels of height that a node of the pack needs once it shows its picture and its text; 0 for other nodes."""
    if node["type"] not in ROOM:
        return 0
    sockets = max(sum("widget" not in socket for socket in node["inputs"]), len(node["outputs"]))
    return SOCKET * sockets + WIDGET * len(node["widgets_values"]) + RIM + ROOM[node["type"]]


def view(nodes: list[Graph]) -> Graph:
    """The place and scale at which a graph is opened."""
    corner = [min(node["pos"][axis] for node in nodes) for axis in (0, 1)]
    offset = [round(pixels / SCALE - least, 1) for pixels, least in zip(MARGIN, corner, strict=True)]
    return {"scale": SCALE, "offset": offset}


def app(workflow: Graph, shown: Graph) -> Graph:
    """What app mode shows, by the numbers of the nodes; the widgets of a box are shown as well."""
    numbers: dict[str, list[int]] = {}
    for node in workflow["nodes"]:
        numbers.setdefault(node["type"], []).append(node["id"])
    inputs = [[numbers[kind][0], name] for kind, name in shown["inputs"]]
    for box in workflow.get("definitions", {}).get("subgraphs", []):
        inputs += [
            [number, one["name"]] for number in numbers[box["id"]] for one in box["inputs"] if one["type"] in WIDGETS
        ]
    return {"inputs": inputs, "outputs": [number for kind in shown["outputs"] for number in numbers[kind]]}


WIDGETS = ("STRING", "COMBO", "INT", "FLOAT", "BOOLEAN")


def main() -> None:
    """Rewrite every file."""
    nodes = nodes_of_the_pack()
    from bfr_core import __version__

    schemas = {schema.node_id: schema for schema in (node.define_schema() for node in nodes)}  # type: ignore[attr-defined]
    for path in sorted([*api_graph.WORKFLOWS.glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]):
        workflow = api_graph.read(path)
        refresh(workflow, schemas, __version__)
        if path.parent == api_graph.WORKFLOWS:
            give_room(workflow)
            workflow["extra"]["ds"] = view(workflow["nodes"])
            if path.stem in APPS:
                workflow["extra"]["linearData"] = app(workflow, APPS[path.stem])
        path.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    api_graph.main()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
