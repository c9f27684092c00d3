"""The script that shows the nodes' texts, in a headless Chromium, on a page as thin as can be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "web" / "bfr_adapt.js"
APP = """
export const app = {
  extensions: [], nodes: {}, graph: {setDirtyCanvas() {}, getNodeById: (id) => app.nodes[id]},
  registerExtension(e) { this.extensions.push(e); },
};
"""
WIDGETS = """
export const ComfyWidgets = {STRING(node, name, kind) {
  const widget = {name, kind, value: "", options: {}, element: document.createElement("textarea")};
  node.widgets.push(widget);
  return {widget};
}};
"""
PAGE = """<script type="module">
import { app } from "/scripts/app.js";
import "/extensions/pack/bfr_adapt.js";
window.make = (type, optional = {}) => {
  class Node {
    widgets = []; size = [300, 100]; before = []; type = type;
    computeSize() { return [200, 50 + 40 * this.widgets.length]; }
    setSize(size) { this.size = size; }
    onExecuted(output) { this.before.push(output); }
  }
  app.extensions.forEach((e) => e.beforeRegisterNodeDef(Node, {name: type, input: {required: {}, optional}}));
  return new Node();
};
window.app = app;
</script>"""
RUN = """
const [type, kept, outputs, height = 100] = arguments, node = make(type);
node.size = [300, height];
node.widgets.push(...kept);
outputs.forEach((output) => node.onExecuted(output));
return [node.widgets.map((w) => [w.name, w.value, w.serialize, w.options?.serialize, w.element?.readOnly]),
        node.size, node.before.length];
"""


@pytest.fixture
def texts(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """(type of node, widgets that the page made, outputs) -> widgets, size, and how often the page was told."""
    for name, content in {
        "index.html": PAGE,
        "scripts/app.js": APP,
        "scripts/widgets.js": WIDGETS,
        "extensions/pack/bfr_adapt.js": SCRIPT.read_text(encoding="utf-8"),
    }.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(content, encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path / "site"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.get(f"http://127.0.0.1:{server.server_port}/index.html")
        yield lambda *given: browser.execute_script(RUN, *given)
    finally:
        server.shutdown()
        server.server_close()


def test_a_nodes_text_is_shown_once_and_saved_nowhere(texts: Any) -> None:
    said = [{"bfr_text": ["2 faces <b>found</b>", "keep the base"]}, {"images": []}, {"bfr_text": ["3 faces"]}]
    widgets, size, told = texts("BFR_RestoreFaces", [], said[:1])
    assert widgets == [["bfr_text", "2 faces <b>found</b>\nkeep the base", False, False, True]] and told == 1
    assert size == [300, 140], "the node grows, so that nothing of it is covered"
    widgets, again, told = texts("BFR_RestoreFaces", [], said)
    assert [w[1] for w in widgets] == ["3 faces"] and again == size and told == 3


@pytest.mark.parametrize(("height", "grown"), [(60, 140), (139, 140), (140, 140), (808, 808)])
def test_a_node_with_room_for_its_text_keeps_its_size_and_covers_no_other(texts: Any, height: int, grown: int) -> None:
    """Templates leave that room; a node that grew all the same would lie on the one below it."""
    assert texts("BFR_Compare", [], [{"bfr_text": ["2 faces"]}], height)[1] == [300, grown]


@pytest.mark.parametrize(("letters", "grown"), [(10, 140), (280, 181), (280 * 40, 350)])
def test_a_longer_text_gets_more_room_up_to_a_limit(texts: Any, letters: int, grown: int) -> None:
    assert texts("BFR_FinetuneRestorer", [], [{"bfr_text": ["x" * letters]}])[1] == [300, grown]


def test_the_pages_own_text_gives_way_and_other_nodes_are_left_alone(texts: Any) -> None:
    """It is two lines high, and would cut a longer text off."""
    said = [{"bfr_text": ["2 faces\n3 left out\nkeep the base"]}]
    by_page = {"name": "$$node-text-preview", "value": "2 faces"}
    for own in (by_page, by_page | {"value": ""}):
        assert [w[:3] for w in texts("BFR_Compare", [own], said)[0]] == [["bfr_text", said[0]["bfr_text"][0], False]]
    kept = {"name": "rows", "value": 1}
    assert [w[0] for w in texts("BFR_Compare", [kept, by_page], said * 2)[0]] == ["rows", "bfr_text"]
    assert [w[0] for w in texts("SomeNode", [by_page], said)[0]] == ["$$node-text-preview"]


BACK = """
const [type, outputs] = arguments, node = make(type), inner = make(type);
app.nodes = {4: node};
app.graph.subgraphs = new Map([["box", {getNodeById: (id) => id === 7 && inner}]]);
app.extensions.forEach((e) => e.onNodeOutputsUpdated(outputs));
return [node, inner].map((n) => n.widgets.map((w) => w.value));
"""


def test_texts_come_back_with_outputs_of_an_earlier_time(texts: Any, browser: Any) -> None:
    said = {"bfr_text": ["2 faces"]}
    back = {"4": said, "box:7": {"bfr_text": ["3 faces"]}, "9": said, "other:7": said}
    assert browser.execute_script(BACK, "BFR_Compare", back) == [["2 faces"], ["3 faces"]]
    assert browser.execute_script(BACK, "BFR_Compare", {"4": {"images": []}, "box:7": None}) == [[], []]
    assert browser.execute_script(BACK, "SomeNode", {"4": said}) == [[], []]
    assert browser.execute_script(BACK, "BFR_Compare", None) == [[], []]


OPENED = """
const [type, listed, values] = arguments, inputs = Object.fromEntries(listed), node = make(type, inputs);
node.widgets = Object.keys(inputs).map((name, i) => ({name, value: values[i] ?? inputs[name][1].default}));
node.onConfigure({widgets_values: values});
return node.widgets.map((w) => w.value);
"""


def opened(browser: Any, node: str, inputs: dict, values: list) -> list:
    """The values of a node's widgets once a workflow that saved `values` is opened."""
    return browser.execute_script(OPENED, f"BFR_{node}", list(inputs.items()), values)  # a driver sorts tables


FOLDERS = ["as typed", "30 faces"]
SAVE = {"name": ["STRING", {"default": "mine"}], "half": ["BOOLEAN", {"default": False}],
        "only_adopted": ["BOOLEAN", {"default": False}]}  # fmt: skip
FACES = {"folder": ["STRING", {"default": ""}], "run": ["STRING", {"default": "my_run"}],
         "input_folder": ["COMBO", {"default": "as typed", "options": FOLDERS}],
         "older": [FOLDERS, {"default": "as typed"}], "people": ["BOOLEAN", {"default": False}]}  # fmt: skip
COMPARE = {"rows": ["INT", {"default": 8}], "name_of_restored": ["STRING", {"default": "restored"}],
           "name_of_other": ["STRING", {"default": "other"}]}  # fmt: skip
MEASURED = "PSNR (dB), higher is better: restored 20.00"


@pytest.mark.parametrize(
    ("node", "inputs", "values", "read"),
    [
        ("SaveRestorer", SAVE, ["m", False, "saved: mine.safetensors"], ["m", False, False]),
        ("SaveRestorer", SAVE, ["20 faces", True, "saved: 20 faces.safetensors"], ["20 faces", True, False]),
        ("FacesFromFolder", FACES, ["a", "b", "10 faces"], ["a", "b", "as typed", "as typed", False]),
        ("FacesFromFolder", FACES, ["a", "b", "1 face\n2 gave none:"], ["a", "b", "as typed", "as typed", False]),
        ("FacesFromFolder", FACES, ["a", "b", "10 faces of mine"], ["a", "b", "10 faces of mine", "as typed", False]),
        ("Compare", COMPARE, [4, MEASURED], [4, "restored", "other"]),
        ("Compare", COMPARE, [4, "SSIM, best at 1: restored 0.9"], [4, "restored", "other"]),
        ("Compare", COMPARE, [4, "columns: restored; no clean pictures"], [4, "restored", "other"]),
        ("Compare", COMPARE, [4, "columns", "of mine"], [4, "columns", "of mine"]),
    ],
)
def test_texts_that_older_pages_saved_are_taken_for_no_value(
    texts: Any, browser: Any, node: str, inputs: dict, values: list, read: list
) -> None:
    assert opened(browser, node, inputs, values) == read


@pytest.mark.parametrize("name", ["20 faces", "1 face", "columns: mine", MEASURED, "mine, best at 1: 3"])
def test_names_that_look_like_a_nodes_text_are_kept(texts: Any, browser: Any, name: str) -> None:
    for node, inputs in {"SaveRestorer": SAVE, "FacesFromFolder": FACES, "Compare": COMPARE}.items():
        values = [name if kind == "STRING" else more["default"] for kind, more in inputs.values()]
        assert opened(browser, node, inputs, values) == values
        assert opened(browser, node, inputs, [*values, "10 faces"]) == values


def test_a_folder_that_is_there_is_kept_whatever_its_name(texts: Any, browser: Any) -> None:
    offered = [*["30 faces"] * 4, False]
    assert opened(browser, "FacesFromFolder", FACES, offered) == offered
    gone = ["a", "b", "31 faces", "as typed", False]
    assert opened(browser, "FacesFromFolder", FACES, gone) == [
        "a",
        "b",
        "as typed",
        "as typed",
        False,
    ]
