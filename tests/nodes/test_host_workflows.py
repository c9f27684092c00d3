"""The workflow files, help and texts in a real ComfyUI, and in its page in a headless Chromium.

Pictures of the page are kept in build/screenshots, or where $BFR_SCREENSHOTS says.
"""

from __future__ import annotations

import json
import logging
import re
import time
from itertools import combinations, cycle
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from api_graph import WORKFLOWS, read, to_api, twin

pytestmark = pytest.mark.host
log = logging.getLogger(__name__)
FILES = sorted(WORKFLOWS.glob("*.json"))
BLUEPRINTS = sorted((WORKFLOWS.parent / "subgraphs").glob("*.json"))
each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
PACK = "bfr-adapt"
FEW_STEPS = {
    "settings": "as set below", "iterations": 4, "batch_size": 2, "micro_batch": 2, "perceptual": 0.0,
    "adversarial": 0.0, "anchor": 0.0, "transplant": 0.0, "sharp": 0.0,
}  # fmt: skip
AS_RECOMMENDED = {  # but for a search for the damage, which takes minutes
    "settings": "as set below", "sampler": "fast", "calls": 3, "start": 16, "hold_until": 2, "factor": 2,
    "known_answers": False,
}  # fmt: skip
SHORT = {
    "BFR_FinetuneRestorer": FEW_STEPS, "BFR_MakePseudoTargets": AS_RECOMMENDED, "BFR_DrawFaces": {"count": 4},
}  # fmt: skip
CHECKPOINT = (
    "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEEncode", "VAEDecode",
    "FluxGuidance", "BFR_HoldLowBand",
)  # fmt: skip
TAKES_LONG = {"BFR_FinetuneRestorer", "BFR_DrawFaces", "BFR_MakePseudoTargets", "BFR_RestoreFaces"}
MEMORY = 40 * 2**20  # half of what five restorers take, were they kept
SEARCHED = "the nearest damage of a camera is"  # what the log says after a search for the damage


def short(path: Path, **tuning: Any) -> dict[str, Any]:
    """The twin of a workflow with few faces and steps; pictures stand in for what a checkpoint would make."""
    graph = read(twin(path))
    ids = {node["class_type"]: name for name, node in graph.items()}
    for node in graph.values():
        node["inputs"] |= SHORT.get(node["class_type"], {})
        node["inputs"] |= tuning if node["class_type"] == "BFR_FinetuneRestorer" else {}
    if "VAEDecode" in ids:
        if "BFR_FacesFromFolder" in ids:
            inputs = {"image": [ids["BFR_FacesFromFolder"], 1], "sharpen_radius": 1, "sigma": 1.0, "alpha": 0.5}
            stands_in = {"class_type": "ImageSharpen", "inputs": inputs}
        else:
            stands_in = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
        made = ids["VAEDecode"]
        graph = {name: node for name, node in graph.items() if node["class_type"] not in CHECKPOINT}
        graph[made] = stands_in
    return graph


def fetch(comfy: Any, path: str) -> tuple[str, bytes]:
    """Media type and content of a file that the server serves."""
    with urlopen(comfy.url + quote(path), timeout=30) as answer:
        return answer.headers.get_content_type(), answer.read()


# ---------------------------------------------------------------- what is served


def test_templates_are_listed_and_served(comfy: Any) -> None:
    assert sorted(comfy.get("/workflow_templates")[PACK]) == [path.stem for path in FILES]
    for path in FILES:
        kind, content = fetch(comfy, f"/api/workflow_templates/{PACK}/{path.name}")
        assert kind == "application/json" and content == path.read_bytes()
        kind, content = fetch(comfy, f"/api/workflow_templates/{PACK}/{path.stem}.jpg")
        assert kind == "image/jpeg" and content == path.with_suffix(".jpg").read_bytes()


def test_help_and_texts_are_served(comfy: Any) -> None:
    nodes = [name for name in comfy.get("/object_info") if name.startswith("BFR_")]
    texts = comfy.get("/i18n")
    for name in nodes:
        assert texts["en"]["nodeDefs"][name]["display_name"] != texts["zh"]["nodeDefs"][name]["display_name"]
        for page in (f"{name}.md", f"{name}/zh.md"):
            text = fetch(comfy, f"/extensions/{PACK}/docs/{page}")[1].decode()
            assert text.startswith("# ")
            for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
                assert fetch(comfy, f"/extensions/{PACK}/docs/{picture}")[0] == "image/jpeg"


def test_the_blueprints_are_in_the_node_menu(comfy: Any) -> None:
    try:
        listed = comfy.get("/global_subgraphs")
    except HTTPError:
        pytest.skip("this ComfyUI knows no blueprints of packs")
    ours = {one["name"]: key for key, one in listed.items() if one["source"] == "custom_node"}
    assert sorted(ours) == sorted(path.stem for path in BLUEPRINTS)
    for path in BLUEPRINTS:
        assert json.loads(comfy.get(f"/global_subgraphs/{ours[path.stem]}")["data"]) == read(path)


# ---------------------------------------------------------------- run


@each
def test_every_workflow_runs_and_says_how_far_it_is(comfy: Any, path: Path) -> None:
    graph = short(path)
    for node in graph.values():  # of two templates that do the same ComfyUI would do nothing again
        node["inputs"] |= {"run": path.stem} if "run" in node["inputs"] else {}
    said = comfy.watch(graph)
    assert said[-1]["type"] == "execution_success", said[-1]
    events = [message for message in said if isinstance(message, dict)]
    # Kinds of nodes are compared, because of two equal nodes ComfyUI runs one.
    done = {m["data"]["node"] for m in events if m["type"] == "progress" and m["data"]["value"] == m["data"]["max"]}
    shipped = [node for node in graph.values() if node["inputs"].get("source") == "shipped"]  # there at once
    kinds = {node["class_type"] for node in graph.values() if node not in shipped}
    assert TAKES_LONG & kinds <= {graph[name]["class_type"] for name in done}, "not all said that they were done"
    shown = {m["data"]["node"] for m in events if m["type"] == "executed"}
    assert {n for n, node in graph.items() if node["class_type"] in ("SaveImage", "BFR_FinetuneRestorer")} <= shown
    if any(node["class_type"] == "BFR_FinetuneRestorer" for node in graph.values()):
        previews = [m for m in said if isinstance(m, bytes) and int.from_bytes(m[:4], "big") in (1, 4)]
        assert previews, "nothing was seen of the work"


def test_a_workflow_cancelled_midway_goes_on(comfy: Any) -> None:
    graph = short(WORKFLOWS / "05 Adapt step by step.json", iterations=40)
    for node in graph.values():
        node["inputs"] |= {"run": "stopped"} if "run" in node["inputs"] else {}
    folder = comfy.base / "output/bfr_runs/stopped"
    assert "execution_interrupted" in comfy.cancelled(graph, folder)[0]["messages"]
    assert (folder / "checkpoints/last.pt").is_file() and not (folder / "report.json").exists()
    assert comfy.run(graph)["status"]["status_str"] == "success"
    assert "resumed at step" in (folder / "log.txt").read_text()


def test_memory_after_six_runs_is_that_after_one(comfy: Any) -> None:
    searched = comfy.log.read_text().count(SEARCHED)
    after: list[int] = []
    for i in range(6):  # each in a run of its own beside the first, with the damage that was estimated there
        graph = short(WORKFLOWS / "05 Adapt step by step.json", seed=i, sharp=0.9)
        for node in graph.values():
            if node["class_type"] == "BFR_MakePseudoTargets":
                node["inputs"] |= {"seed": i, "known_answers": True}
        result = comfy.run(graph)
        assert result["status"]["status_str"] == "success", result["messages"]
        after.append(comfy.memory_in_use())
    log.info("memory in use after each run: %s MB", ", ".join(f"{one / 2**20:.0f}" for one in after))
    assert comfy.log.read_text().count(SEARCHED) == searched + 1, "the damage of the same faces is searched for once"
    assert after[-1] - after[0] < MEMORY, f"{after[0] / 2**20:.0f} MB became {after[-1] / 2**20:.0f} MB"


# ---------------------------------------------------------------- in the page

READY = "return !!(window.app && app.graph && app.canvas && LiteGraph.registered_node_types.BFR_RestoreFaces)"
SETTINGS = """
const set = app.extensionManager?.setting?.set ?? ((k, v) => app.ui.settings.setSettingValue(k, v));
set('Comfy.Minimap.Visible', false); set('Comfy.Graph.CanvasInfo', false); set('Comfy.TutorialCompleted', true);
"""
OPEN = """
const [url, name, done] = arguments;
fetch(url).then((r) => r.json()).then((w) => app.loadGraphData(w, true, true, name))
  .then(() => done(''), (e) => done(String(e)));
"""
OPEN_GIVEN = """
const [graph, done] = arguments;
app.loadGraphData(graph, true, true, 'blueprint').then(() => done(''), (e) => done(String(e)));
"""
FIT = """
const items = [...app.graph._nodes, ...app.graph._groups], canvas = app.canvas;
const left = Math.min(...items.map((i) => i.pos[0])), top = Math.min(...items.map((i) => i.pos[1])) - 40;
const right = Math.max(...items.map((i) => i.pos[0] + i.size[0]));
const bottom = Math.max(...items.map((i) => i.pos[1] + i.size[1]));
const scale = Math.min(
  (canvas.canvas.clientWidth - 120) / (right - left), (canvas.canvas.clientHeight - 120) / (bottom - top), 1);
canvas.ds.scale = scale;
canvas.ds.offset[0] = -left + 90 / scale;
canvas.ds.offset[1] = -top + 60 / scale;
canvas.setDirty(true, true);
"""
BOXES = """
return app.graph._nodes.map((n) => ({
  type: n.type, known: !!LiteGraph.registered_node_types[n.type],
  box: [n.pos[0], n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT, n.pos[0] + n.size[0], n.pos[1] + n.size[1]],
  least: n.computeSize()[1], height: n.size[1]}));
"""
PROMPT = "const done = arguments[0]; app.graphToPrompt().then((p) => done(p.output), (e) => done(String(e)));"


@pytest.fixture
def page(comfy: Any, browser: Any) -> Any:
    """ComfyUI's page, loaded, in a large window."""
    browser.set_window_size(3400, 1900)
    browser.set_script_timeout(120)
    browser.get(comfy.url)
    until(lambda: browser.execute_script(READY))
    time.sleep(2)  # it opens a graph of its own
    browser.execute_script(SETTINGS)
    for button in browser.find_elements("css selector", ".p-dialog-close-button, .p-dialog [aria-label=Close]"):
        browser.execute_script("arguments[0].click()", button)  # a first start shows templates
        time.sleep(1)
    return browser


def until(look: Any, seconds: float = 120) -> Any:
    """What `look` gives, once that is something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "did not come in time"
        time.sleep(0.3)
    return found


def plain(graph: dict[str, Any]) -> dict[str, Any]:
    """What runs of a graph: Preview Any has, in some versions, its own display and its kind among its inputs."""
    return {
        name: (node["class_type"], {k: v for k, v in node["inputs"].items() if not k.startswith("preview")})
        for name, node in graph.items()
    }


@each
def test_a_workflow_opens_whole_and_is_its_twin(comfy: Any, page: Any, screenshots: Path, path: Path) -> None:
    if "definitions" in read(path) and not page.execute_script("return !!app.graph.subgraphs"):
        pytest.skip("this ComfyUI's page knows no subgraphs")
    url = f"/api/workflow_templates/{quote(PACK)}/{path.name}"
    assert page.execute_async_script(OPEN, url, path.stem) == ""
    time.sleep(2)
    page.set_window_size(1600, 1000)
    assert page.execute_script("return app.canvas.ds.scale") >= 0.7, "titles can be read"
    page.save_screenshot(str(screenshots / f"{path.stem}_as_it_opens.png"))
    offered = [model["name"] for node in read(path)["nodes"] for model in node["properties"].get("models", [])]
    shown = page.execute_script("return document.body.innerText").lower()
    assert offered or "missing model" not in shown, "only what begins with a checkpoint has one that is missing"
    page.set_window_size(3400, 1900)
    page.execute_script(FIT)
    time.sleep(1)
    page.save_screenshot(str(screenshots / f"{path.stem}.png"))
    nodes = page.execute_script(BOXES)
    assert len(nodes) == len(read(path)["nodes"])
    assert [node["type"] for node in nodes if not node["known"]] == []
    assert [node for node in nodes if node["height"] < node["least"]] == [], "a node grew, and may cover another"
    for a, b in combinations(nodes, 2):
        apart = any(a["box"][i + 2] <= b["box"][i] or b["box"][i + 2] <= a["box"][i] for i in (0, 1))
        assert apart, f"{a['type']} and {b['type']} overlap"
    assert plain(page.execute_async_script(PROMPT)) == plain(read(twin(path)))


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_opens_whole(comfy: Any, page: Any, screenshots: Path, path: Path) -> None:
    if not page.execute_script("return !!app.graph.subgraphs"):
        pytest.skip("this ComfyUI's page knows no subgraphs")
    assert page.execute_async_script(OPEN_GIVEN, read(path)) == ""
    time.sleep(2)
    page.execute_script(FIT)
    time.sleep(1)
    page.save_screenshot(str(screenshots / f"{path.stem}.png"))
    assert plain(page.execute_async_script(PROMPT)) == plain(to_api(read(path)))


def test_no_node_covers_another_after_a_run(comfy: Any, page: Any, screenshots: Path) -> None:
    page.set_window_size(1600, 1400)
    url = f"/api/workflow_templates/{quote(PACK)}/01 Restore a photo.json"
    assert page.execute_async_script(OPEN, url, "run") == ""
    time.sleep(2)
    page.execute_script("app.queuePrompt(0)")
    until(lambda: page.execute_script(TEXTS).get("BFR_RestoreFaces"), 600)
    time.sleep(3)  # pictures are loaded
    page.execute_script(FIT)
    time.sleep(1)
    page.save_screenshot(str(screenshots / "after_a_run.png"))
    for a, b in combinations(page.execute_script(BOXES), 2):
        apart = any(a["box"][i + 2] <= b["box"][i] or b["box"][i + 2] <= a["box"][i] for i in (0, 1))
        assert apart, f"{a['type']} and {b['type']} overlap"


CHOOSE = """
const found = [...document.querySelectorAll('*')].filter(
  (e) => !e.children.length && e.textContent.trim() === 'BFR Adapt' && e.checkVisibility());
found.forEach((e) => e.click());
return found.length;
"""
SHOWN = """
const pictures = [...document.querySelectorAll('img')].filter((i) => arguments[0].includes(i.alt));
let next = pictures.find((i) => !i.naturalWidth) ?? pictures.at(arguments[1]);
while (next && !next.checkVisibility()) next = next.parentElement;  // hidden until it is loaded
next?.scrollIntoView();  // they are loaded when they come into view
return pictures.filter((i) => i.naturalWidth).map((i) => i.alt);
"""
HELP = """
const node = app.graph._nodes.find((n) => n.type === 'BFR_RestoreFaces');
app.canvas.selectNode(node);
app.canvas.setDirty(true, true);
"""
HELP_BUTTON = "[data-testid=info-button], .help-button"  # the second in frontend 1.23


def test_the_template_browser_shows_them_with_their_pictures(comfy: Any, page: Any, screenshots: Path) -> None:
    page.set_window_size(1600, 1000)
    page.execute_script("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    until(lambda: page.execute_script(CHOOSE))
    names = {path.stem for path in FILES}
    seen: set[str] = set()
    ends = cycle([-1] * 9 + [0])  # newer pages add more at the end, and take away what is out of sight, loaded or not

    def all_seen() -> bool:
        seen.update(page.execute_script(SHOWN, sorted(names), next(ends)))
        return seen == names

    until(all_seen)
    time.sleep(1)
    page.save_screenshot(str(screenshots / "templates.png"))


def test_help_is_shown_beside_the_graph(comfy: Any, page: Any, screenshots: Path) -> None:
    page.set_window_size(1600, 1000)
    url = f"/api/workflow_templates/{quote(PACK)}/01 Restore a photo.json"
    assert page.execute_async_script(OPEN, url, "help") == ""
    time.sleep(2)
    page.execute_script(HELP)
    until(lambda: page.find_elements("css selector", HELP_BUTTON))[0].click()
    until(lambda: "must not be used to identify anyone" in page.execute_script("return document.body.innerText"))
    wide = "return [...document.querySelectorAll('img')].some((i) => i.src.endsWith('restore.jpg') && i.naturalWidth)"
    until(lambda: page.execute_script(wide))
    page.save_screenshot(str(screenshots / "help.png"))


LOAD_API = (
    "const [graph, done] = arguments; Promise.resolve(app.loadApiJson(graph, 'texts')).then(() => done(''), done);"
)
TEXTS = """
const names = ['bfr_text', '$$node-text-preview'];
return Object.fromEntries(app.graph._nodes.filter((n) => n.type.startsWith('BFR_')).map(
  (n) => [n.type, (n.widgets ?? []).filter((w) => names.includes(w.name) && w.value).map((w) => w.value)]));
"""
WHOLE = """
const widgets = app.graph._nodes.flatMap((n) => n.widgets ?? []).filter((w) => w.name === 'bfr_text' && w.value);
return widgets.map((w) => w.inputEl ?? w.element).map((e) => e.scrollHeight <= e.clientHeight + 1);
"""
KEPT = "return app.graph.serialize().nodes.map((n) => [n.type, n.widgets_values ?? []])"


def test_every_node_shows_its_text_once_and_saves_none(comfy: Any, page: Any, screenshots: Path) -> None:
    page.set_window_size(1600, 1400)
    comfy.post("/free", {"free_memory": True})  # else ComfyUI passes over nodes whose result it has, and tells no text
    restore = read(twin(WORKFLOWS / "01 Restore a photo.json"))
    ids = {node["class_type"]: name for name, node in restore.items()}
    restore[ids["LoadImage"]]["inputs"]["image"] = "portrait.png"
    restored, photo = [ids["BFR_RestoreFaces"], 0], [ids["LoadImage"], 0]
    named = {"rows": 1, "name_of_restored": "a < b & c", "name_of_other": "other"}
    restore["99"] = {"class_type": "BFR_Compare", "inputs": {"restored": restored, "damaged": photo} | named}
    assert page.execute_async_script(LOAD_API, restore) == ""
    time.sleep(2)
    before = page.execute_script(KEPT)
    page.execute_script("app.queuePrompt(0)")
    wanted = {"BFR_LoadRestorer", "BFR_RestoreFaces", "BFR_Compare"}
    until(lambda: all(page.execute_script(TEXTS).get(name) for name in wanted), 600)
    texts = page.execute_script(TEXTS)
    assert all(len(shown) == 1 for shown in texts.values()), texts
    assert "1 restored" in texts["BFR_RestoreFaces"][0] and "NAFNet" in texts["BFR_LoadRestorer"][0]
    assert texts["BFR_Compare"][0].replace("&lt;", "<").replace("&amp;", "&").startswith("columns: damaged, a < b & c;")
    assert page.execute_script(KEPT) == before, "a text came into the saved workflow"
    sent = page.execute_async_script(PROMPT)
    assert not any("bfr_text" in node["inputs"] for node in sent.values())
    page.execute_script("app.graph.arrange()")
    page.execute_script(FIT)
    time.sleep(2)
    page.save_screenshot(str(screenshots / "texts.png"))
    assert page.execute_script(WHOLE) == [True] * len(wanted), "a text is cut off"
