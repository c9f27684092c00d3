"""A workflow as ComfyUI's editor saves it -> the graph that its server takes ("API format").

    python tools/api_graph.py     writes workflows/api/*.json anew from workflows/*.json

Widgets are read by the order in which the editor lists them. Subgraphs are flattened as the editor does it: node 3
inside box 5 becomes "5:3". Muted, bypassed and Reroute nodes are refused: a template needs none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
ONLY_SHOWN = ("Note", "MarkdownNote")
CONTROL = ("fixed", "increment", "decrement", "randomize")  # what follows a seed in the list of values, and is no input
BUTTON = "IMAGEUPLOAD"  # the type of a widget that is a button
SUBGRAPH_INPUT, SUBGRAPH_OUTPUT = -10, -20
Graph = dict[str, Any]


def to_api(workflow: Graph) -> Graph:
    """The nodes of `workflow`, those of its subgraphs too, by id: class_type, inputs and title each.

    Raises ValueError for what is not converted, naming the node.
    """
    boxes = {box["id"]: box for box in workflow.get("definitions", {}).get("subgraphs", [])}
    return dict(_nodes(_Scope(workflow, boxes)))


@dataclass
class _Scope:
    """A graph or the inside of a box. prefix: of its nodes' ids. given: what comes in at the box, by slot."""

    graph: Graph
    boxes: dict[str, Graph]
    prefix: str = ""
    given: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        links = [link if isinstance(link, dict) else _as_dict(link) for link in self.graph["links"]]
        self.links = {link["id"]: link for link in links}
        self.nodes = {node["id"]: node for node in self.graph["nodes"]}

    def inside(self, node: Graph) -> _Scope:
        """The inside of `node`, a box of this graph."""
        given = list(self.inputs(node).values())
        return _Scope(self.boxes[node["type"]], self.boxes, f"{self.prefix}{node['id']}:", given)

    def inputs(self, node: Graph) -> Graph:
        """What every input of `node` gets: a value, [node, slot], or None."""
        values = widget_values(node)
        found = {}
        for socket in node["inputs"]:
            name, link = socket["name"], socket.get("link")
            found[name] = self.source(link) if link is not None else values.get(name)
        return found

    def source(self, link_id: int) -> Any:
        """Where a link comes from: [node, slot] of a node that is no box, or a value given to this box."""
        link = self.links[link_id]
        if link["origin_id"] == SUBGRAPH_INPUT:
            return self.given[link["origin_slot"]]
        node = self.nodes[link["origin_id"]]
        if node["type"] not in self.boxes:
            return [f"{self.prefix}{node['id']}", link["origin_slot"]]
        inner = self.inside(node)
        leaving = [n for n in inner.links.values() if n["target_id"] == SUBGRAPH_OUTPUT]
        return inner.source(next(n["id"] for n in leaving if n["target_slot"] == link["origin_slot"]))


def _as_dict(link: list[Any]) -> Graph:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, link, strict=True))


def _nodes(scope: _Scope) -> Iterator[tuple[str, Graph]]:
    for node in scope.graph["nodes"]:
        name = f"{scope.prefix}{node['id']}"
        if node["type"] in ONLY_SHOWN:
            continue
        if node.get("mode", 0) or node["type"] == "Reroute":
            raise ValueError(f"node {name} ({node['type']}) is muted, bypassed or a Reroute; take it out")
        if node["type"] in scope.boxes:
            yield from _nodes(scope.inside(node))
            continue
        inputs = {key: value for key, value in scope.inputs(node).items() if value is not None}
        title = node.get("title") or node["properties"].get("Node name for S&R", node["type"])
        yield name, {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}


def widget_values(node: Graph) -> Graph:
    """The values of the widgets of `node` by name. Raises ValueError if there are too few or too many."""
    left = list(node.get("widgets_values") or [])
    values = {}
    for socket in (s for s in node["inputs"] if s.get("widget")):
        if not left:
            raise ValueError(f"node {node['id']} ({node['type']}) has no value for {socket['name']}")
        value = left.pop(0)
        if socket["type"] != BUTTON:
            values[socket["name"]] = value
        if left and left[0] in CONTROL and socket["name"] in ("seed", "noise_seed"):
            left.pop(0)
    if left and values:
        raise ValueError(f"node {node['id']} ({node['type']}) has values left over: {left}")
    return values


def read(path: Path) -> Graph:
    """A workflow file."""
    return json.loads(path.read_text(encoding="utf-8"))


def twin(path: Path) -> Path:
    """Where the API format of a workflow file lies."""
    return path.parent / "api" / path.name


def main() -> None:
    """Write the twin of every workflow file."""
    for path in sorted(WORKFLOWS.glob("*.json")):
        twin(path).parent.mkdir(exist_ok=True)
        text = json.dumps(to_api(read(path)), indent=2, ensure_ascii=False)
        twin(path).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
