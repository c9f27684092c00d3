"""Take the documents' pictures of the page and of its hosts anew, from programs that are running.

    python tools/host_pictures.py page http://127.0.0.1:7860 --out docs/page.jpg
    python tools/host_pictures.py webui http://127.0.0.1:7861 --out docs/webui_a1111.jpg
    python tools/host_pictures.py webui http://127.0.0.1:7862 --out docs/webui_neo.jpg
    python tools/host_pictures.py comfyui http://127.0.0.1:8188 --out docs/comfyui_tour.jpg

`page` and `webui` show the result of the newest run, which must have been adapted. `comfyui` opens a template of the
pack, sets the widgets that --set names (also inside a box), runs the graph in the page, and shows it after the run.
This needs the package selenium, Chromium and its chromedriver.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from readme_picture import as_jpeg

log = logging.getLogger("host_pictures")

MAX_BYTES, THUMBNAIL_BYTES = 300_000, 40_000
PATIENCE = 3600.0  # seconds until a wait fails
PACK = "bfr-adapt"  # the folder's name in custom_nodes
TOUR = "02 Tour of the method"
THUMBNAIL = 448  # pixels a side of a template's picture
MARGIN = 12  # around a graph, in pixels of the window
WINDOW = {  # width and height of the browser's window, and pixels of the picture for each of its pixels
    "page": (900, 1400, 1.5),
    "webui": (1064, 1440, 1.25),
    "comfyui": (1400, 1300, 1.5),
}
QUIET = """
const {set} = app.extensionManager.setting;
set('Comfy.UseNewMenu', 'Top');
for (const name of ['Minimap.Visible', 'Graph.CanvasInfo', 'Graph.CanvasMenu']) set(`Comfy.${name}`, false);
set('Comfy.TutorialCompleted', true);
set('LiteGraph.Canvas.MinFontSizeForLOD', 0);  // titles and values are drawn at every size
"""
BUTTONS = "return [...document.querySelectorAll('button')].filter((b) => b.innerText.trim() === arguments[0])"
READY = "return !!(window.app && app.graph && app.canvas && LiteGraph.registered_node_types.BFR_RestoreFaces)"
CLOSE = """  // a first start shows templates
document.querySelectorAll(".p-dialog [aria-label=Close], [aria-label='Close dialog']").forEach((b) => b.click());
"""
OPEN = """
const [url, name, done] = arguments;
fetch(url).then((r) => r.json()).then((w) => app.loadGraphData(w, true, true, name))
  .then(() => done(''), (e) => done(String(e)));
"""
SET = """
const [kind, name, value] = arguments;
const all = (nodes) => nodes.flatMap((n) => [n, ...(n.subgraph ? all(n.subgraph.nodes) : [])]);
const found = all(app.graph.nodes).filter((n) => n.type === kind)
  .flatMap((n) => n.widgets ?? []).filter((w) => w.name === name);
const as = {number: Number, boolean: (given) => given === 'true'};
found.forEach((w) => { w.value = (as[typeof w.value] ?? String)(value); });
return found.length;
"""
IDLE = """
const done = arguments[0];
fetch('/api/queue').then((r) => r.json()).then((q) => done(!q.queue_running.length && !q.queue_pending.length));
"""
PICTURES_LOADED = """
return [...document.querySelectorAll('img:not(.bfr img, .thumbnail-item img)')]
  .some((i) => i.checkVisibility() && i.naturalWidth > 100);
"""
FIT = """
const [first, last, margin] = arguments, view = app.canvas;
const numbered = (g) => /^\\d/.test(g.title) && g.title >= first && (!last || g.title < last + '~');
const groups = app.graph._groups.filter((g) => !(first || last) || numbered(g));
const edge = Math.min(...groups.map((g) => g.pos[0])), end = Math.max(...groups.map((g) => g.pos[0] + g.size[0]));
const nodes = app.graph.nodes.filter((n) => (!first || n.pos[0] >= edge) && (!last || n.pos[0] < end));
const left = Math.min(...[...groups, ...nodes].map((i) => i.pos[0]));
const top = Math.min(...groups.map((g) => g.pos[1]), ...nodes.map((n) => n.pos[1] - LiteGraph.NODE_TITLE_HEIGHT));
const right = Math.max(...[...groups, ...nodes].map((i) => i.pos[0] + i.size[0]));
const bottom = Math.max(...[...groups, ...nodes].map((i) => i.pos[1] + i.size[1]));
const menu = 80, bar = 130;  // what the page keeps for itself at the left and at the top
view.ds.scale = Math.min((view.canvas.clientWidth - menu - margin) / (right - left),
                         (view.canvas.clientHeight - bar - margin) / (bottom - top));
view.ds.offset[0] = -left + menu / view.ds.scale;
view.ds.offset[1] = -top + bar / view.ds.scale;
view.setDirty(true, true);
return [menu - margin, bar - margin, menu + (right - left) * view.ds.scale + margin,
        bar + (bottom - top) * view.ds.scale + margin].map((edge) => edge * devicePixelRatio);
"""


@contextmanager
def chromium(width: int, height: int, scale: float) -> Iterator[Any]:
    """A headless Chromium with a window of this size, of whose pixels each is `scale` pixels of a picture."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars",
                     f"--window-size={width},{height}", f"--force-device-scale-factor={scale}"):  # fmt: skip
        options.add_argument(argument)
    browser: Any = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.command_executor.client_config.timeout = PATIENCE
    browser.set_script_timeout(PATIENCE)
    try:
        yield browser
    finally:
        browser.quit()


def until(look: Callable[[], Any], what: str) -> Any:
    """What `look` gives, once that is something. Raises TimeoutError, which says `what` did not come."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(Exception):  # what is not there yet
            if found := look():
                return found
        time.sleep(0.3)
    raise TimeoutError(f"{what} did not come within {PATIENCE:.0f} seconds")


def press(browser: Any, text: str) -> None:
    """Press the button, or open the tab, of these words."""

    def pressed() -> bool:
        found = browser.execute_script(BUTTONS, text)
        next(b for b in found if b.is_displayed() and b.is_enabled()).click()
        return True

    until(pressed, f"the button {text!r}")


def result_of_a_run(browser: Any, url: str, inside_webui: bool) -> Image.Image:
    """The newest run's result on our page, or on our tab of a WebUI, with a photo before and after."""
    browser.get(url)
    if inside_webui:
        press(browser, "BFR Adapt")
    until(lambda: "Adapted." in browser.find_element("tag name", "body").text, "an adapted run")
    press(browser, "3. Result")
    press(browser, "Show before and after")
    until(lambda: browser.execute_script(PICTURES_LOADED), "the photo before and after")
    time.sleep(2)  # what was pressed fades
    return screenshot(browser)


def workflow(
    browser: Any, url: str, template: str, settings: Sequence[tuple[str, str, str]], groups: tuple[str, str], run: bool
) -> Image.Image:
    """A template of the pack in ComfyUI, after its run if `run`.

    settings: kind of node, widget and value; a widget that is not there raises ValueError. groups: how the titles of
    the first and the last group that are shown begin, "" for all.
    """
    browser.get(url)
    until(lambda: browser.execute_script(READY), "ComfyUI's page")
    time.sleep(3)  # it opens a graph of its own
    browser.execute_script(QUIET)
    browser.execute_script(CLOSE)
    failed = browser.execute_async_script(OPEN, f"/api/workflow_templates/{PACK}/{quote(template)}.json", template)
    if failed:
        raise ValueError(f"the template {template} cannot be opened: {failed}")
    time.sleep(2)
    for kind, widget, value in settings:
        if not browser.execute_script(SET, kind, widget, value):
            raise ValueError(f"no node {kind} with a widget {widget} is in {template}")
    if run:
        browser.execute_script("app.queuePrompt(0)")
        time.sleep(3)
        until(lambda: browser.execute_async_script(IDLE), "the end of the run")
        time.sleep(5)  # pictures are loaded
    left, top, right, bottom = (round(edge) for edge in browser.execute_script(FIT, *groups, MARGIN))
    time.sleep(2)
    return screenshot(browser).crop((left, top, right, bottom))


def thumbnail(picture: Image.Image) -> Image.Image:
    """The picture, whole, in the middle of a square of the size that the template browser shows."""
    whole = picture.convert("RGB")
    side = max(whole.size)
    square = Image.new("RGB", (side, side), whole.getpixel((0, 0)))
    square.paste(whole, ((side - whole.width) // 2, (side - whole.height) // 2))
    return square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)


def screenshot(browser: Any) -> Image.Image:
    return Image.open(BytesIO(browser.get_screenshot_as_png()))


def setting(text: str) -> tuple[str, str, str]:
    """BFR_FinetuneRestorer.iterations=240 in its parts."""
    name, _, value = text.partition("=")
    kind, dot, widget = name.partition(".")
    if not (dot and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND.WIDGET=VALUE, such as BFR_Degrade.strength=0.5")
    return kind, widget, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=sorted(WINDOW))
    parser.add_argument("url", help="address of the page of the running program")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the JPEG is written")
    parser.add_argument("--template", default=TOUR, help=f"of ComfyUI: which one is opened and run ({TOUR})")
    parser.add_argument("--first", default="", metavar="TITLE", help="of ComfyUI: the first group that is shown (all)")
    parser.add_argument("--last", default="", metavar="TITLE", help="of ComfyUI: the last group that is shown (all)")
    parser.add_argument("--no-run", action="store_true", help="of ComfyUI: shows the template as it opens")
    parser.add_argument("--thumbnail", action="store_true", help="of ComfyUI: a picture for the template browser")
    parser.add_argument(
        "--set", dest="settings", type=setting, action="append", default=[], metavar="KIND.WIDGET=VALUE",
        help="of ComfyUI: a widget's value; may be given several times",
    )  # fmt: skip
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with chromium(*WINDOW[args.host]) as browser:
        if args.host == "comfyui":
            shown = (args.first, args.last)
            picture = workflow(browser, args.url, args.template, args.settings, shown, not args.no_run)
        else:
            picture = result_of_a_run(browser, args.url, args.host == "webui")
    picture = thumbnail(picture) if args.thumbnail else picture.convert("RGB")
    content = as_jpeg(picture, THUMBNAIL_BYTES if args.thumbnail else MAX_BYTES)
    args.out.write_bytes(content)
    log.info("%s: %d x %d, %d KB", args.out, *picture.size, len(content) // 1000)


if __name__ == "__main__":
    main()
