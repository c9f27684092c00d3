"""Everything that differs between versions of gradio, and what keeps its server private."""

from __future__ import annotations

import errno
import inspect
import itertools
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..files.photos import FORMATS

FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
LOOPBACK = "127.0.0.1"
REFRESH = "bfr-refresh"
PRESS = """() => {
  clearInterval(window.bfrRefresh);
  window.bfrRefresh = setInterval(() => {
    const button = document.getElementById("%(button)s");
    const files = [...document.querySelectorAll(".file-preview .download")];
    const uploading = files.some((cell) => !cell.querySelector("a"));  // which an answer would end unfinished
    if (button && button.offsetParent !== null && !uploading) button.click();
  }, %(milliseconds)d);
}"""
# Whatever a version of gradio would fetch from elsewhere (fonts, scripts, telemetry), the browser refuses.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def prepare(cache: Path) -> None:
    """Before gradio is imported: no telemetry, and `cache` as the only folder that it writes to and serves."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE"):
        os.environ[name] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(cache)


def load() -> Any:
    """The gradio module. Raises ValueError in one line if it is not installed."""
    try:
        import gradio
    except ImportError:
        raise ValueError('the web page needs gradio: pip install "gradio>=6"') from None
    return gradio


def major() -> int:
    """The major version of gradio."""
    return int(load().__version__.split(".")[0])


def blocks(title: str) -> Any:
    """`gradio.Blocks`; its theme is an argument here up to gradio 5 and of `launch` from 6 on."""
    gr = load()
    return gr.Blocks(title=title, **_known(gr.Blocks.__init__, {"theme": theme(), "analytics_enabled": False}))


def theme() -> Any:
    """A theme whose fonts are the system's."""
    themes = load().themes
    fonts = [themes.Font(name) for name in FONT]
    return themes.Default(font=fonts, font_mono=[themes.Font("ui-monospace"), themes.Font("monospace")])


def on(
    event: Callable[..., Any],
    act: Callable[..., Any],
    inputs: Any,
    outputs: Any,
    quiet: bool = False,
    each: bool = False,
) -> Any:
    """Call `act` at an event, outside of gradio's queue and its public interface. quiet: without a busy sign.

    each: also at an event that comes before `act` has answered the one before, which gradio drops otherwise.
    """
    hidden = {"api_visibility": "private"} if "api_visibility" in _parameters(event) else {"api_name": False}
    shown = "hidden" if quiet else "minimal"
    how = _known(event, {"trigger_mode": "multiple"}) if each else {}
    return event(act, inputs, outputs, queue=False, show_progress=shown, **hidden, **how)


def on_select(gallery: Any, act: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Call `act(index, *inputs)` when a picture of the gallery is clicked."""
    gr = load()

    class Chosen(gr.SelectData):  # type: ignore[name-defined]
        """A choice that may also be of a place without a picture, see `clickable_again`."""

        def __init__(self, target: Any, data: Any) -> None:
            super().__init__(target, {"value": None} | data)

    def clicked(event: Any, *values: Any) -> Any:
        return act(int(event.index), *values) if event.index >= 0 else {gallery: gr.update()}

    clicked.__annotations__["event"] = Chosen  # gradio looks for this to know what to pass
    on(gallery.select, clicked, inputs, outputs, quiet=True, each=True)


_no_picture = itertools.cycle((-1, -2))


def clickable_again(pictures: Any) -> Any:
    """An update for a gallery, after which the picture that was clicked last can be clicked again.

    Before gradio 6 a click on the picture that is chosen already sends no event, and choosing none counts as no change
    where only the browser knows of the choice: so a place without a picture is chosen, each time another one. Gradio 3
    ignores that, too; there another picture must be clicked in between.
    """
    if major() >= 6:
        return load().update(value=pictures)
    return {"__type__": "update", "value": pictures, "selected_index": next(_no_picture)}


def every(demo: Any, seconds: float, act: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Call `act` again and again while the page is open.

    Where gradio has no timer, the browser presses a button that is out of sight, as long as its tab can be seen.
    """
    gr = load()
    if hasattr(gr, "Timer"):
        on(gr.Timer(seconds).tick, act, inputs, outputs, quiet=True)
        return
    button = gr.Button("Refresh", elem_id=REFRESH, elem_classes=[REFRESH])
    on(button.click, act, inputs, outputs, quiet=True)
    demo.load(None, None, None, _js=PRESS % {"milliseconds": round(1000 * seconds), "button": REFRESH})


def comparison() -> tuple[list[Any], Callable[[Sequence[Path]], list[Any]]]:
    """Components for a picture before and after, and what turns two files into their values."""
    gr = load()
    if hasattr(gr, "ImageSlider"):
        slider = gr.ImageSlider(label="Before | after", type="filepath", interactive=False, max_height=800)
        return [slider], lambda files: [tuple(map(str, files))]
    with gr.Row():
        pair = [gr.Image(label=when, type="filepath", interactive=False) for when in ("Before", "After")]
    return pair, lambda files: [str(file) for file in files]


def uploads(label: str) -> Any:
    """A component to drop pictures on; its value is a list of paths."""
    gr = load()
    kind = "filepath" if major() >= 4 else "file"
    made = gr.File(label=label, file_count="multiple", file_types=sorted(FORMATS), type=kind, height=150)
    if major() < 4:  # its own way copies whatever path a browser names into the cache, from where it is served
        made.preprocess = lambda files: [str(file["name"]) for file in files or [] if file.get("is_file")]
    return made


def gallery(label: str, visible: bool = True) -> Any:
    """Pictures to click on, which do not grow when clicked."""
    gr = load()
    plain = {"buttons": [], "show_share_button": False, "show_download_button": False, "interactive": False}
    fixed = {"columns": 8, "height": "auto", "allow_preview": False, "object_fit": "contain", "show_label": False}
    return gr.Gallery(
        label=label, visible=visible, elem_classes=["bfr-faces"], **fixed, **_known(gr.Gallery.__init__, plain)
    )


def host_uploads() -> Path:
    """Where a host's gradio puts what is dropped on its pages."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio"))


def confine(demo: Any, cache: Path) -> None:
    """Keep the files that the components of `demo` show in `cache`, not in the host's, which all its pages share."""
    for block in demo.blocks.values():
        for name in ("DEFAULT_TEMP_DIR", "GRADIO_CACHE"):  # gradio 3 and 4
            if hasattr(block, name):
                setattr(block, name, str(cache))
    _let_events_name(cache)


def _let_events_name(cache: Path) -> None:
    """Let an event carry a file that is in `cache`: gradio 4 refuses all files but those in the host's cache."""
    from gradio import processing_utils

    check = getattr(processing_utils, "check_all_files_in_cache", None)
    if check is None or getattr(check, "also", None) == cache:
        return

    inside = cache.resolve()

    def checked(data: Any) -> None:
        paths = list(_paths_in(data))
        if not paths or any(inside not in Path(path).resolve().parents for path in paths):
            check(data)

    checked.also = cache  # type: ignore[attr-defined]
    processing_utils.check_all_files_in_cache = checked


def _paths_in(data: Any) -> Iterator[str]:
    """Every value of a key "path", at any depth of what JSON can hold."""
    if isinstance(data, dict):
        yield from (value for key, value in data.items() if key == "path" and isinstance(value, str))
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _paths_in(value)


def serve_also(demo: Any, cache: Path) -> None:
    """Let a host's running `demo` serve `cache`, too."""
    demo.allowed_paths = [*(path for path in demo.allowed_paths or [] if path != str(cache)), str(cache)]


def launch(demo: Any, port: int, listen: bool, auth: Sequence[tuple[str, str]], max_bytes: int) -> str:
    """Start the server in the background; returns its address. Raises OSError if the port is taken or not to be had.

    listen: whether other machines are answered, too. Nothing but gradio's cache is served, whatever gradio's own
    defaults are.
    """
    from starlette.middleware import Middleware

    wanted = {
        "server_name": "0.0.0.0" if listen else LOOPBACK,
        "server_port": port,
        "auth": list(auth) or None,
        "prevent_thread_lock": True,
        "share": False,
        "quiet": True,
        "inbrowser": False,
        "show_api": False,
        "footer_links": [],
        "allowed_paths": [],
        "max_file_size": max_bytes,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,
        "theme": theme(),
        "app_kwargs": {"middleware": [Middleware(Doorkeeper, loopback=not listen)]},
    }
    try:
        _, address, _ = demo.launch(**_known(demo.launch, wanted))
    except OSError as error:  # gradio's text is advice about variables of its own
        why = _why_not(wanted["server_name"], port)
        raise OSError(f"port {port} {why}; choose another with --port" if why else str(error)) from None
    return str(address)


def _why_not(name: str, port: int) -> str:
    """Why no server can be had at a port; "" if one can."""
    with socket.socket() as tried:
        try:
            tried.bind((name, port))
        except OSError as error:
            return "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
    return ""


class Doorkeeper:
    """ASGI middleware that refuses requests from pages of other sites, and keeps their content out of ours.

    loopback: only requests by a name of this machine are answered, so that no foreign name can be made to point here.
    """

    def __init__(self, app: Any, loopback: bool) -> None:
        self.app, self.loopback = app, loopback

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin", "")
        if not (at_home(host, origin) if self.loopback else is_own_page(host, origin)):
            why = b"only for this machine" if self.loopback else b"only for this server's own page"
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": why})
            return

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *own, (b"x-content-type-options", b"nosniff")]}
            await send(message)

        await self.app(scope, receive, answer)


def at_home(host: str, origin: str) -> bool:
    """Whether a request to `host`, from a page of `origin` ("" if it says none), stays on this machine."""
    own = {"localhost", LOOPBACK, "::1"}
    return urlsplit(f"//{host}").hostname in own and is_own_page(host, origin)


def is_own_page(host: str, origin: str) -> bool:
    """Whether a request to `host` comes from a page that it served itself, or from none: `origin` is ""."""
    return not origin or urlsplit(origin).netloc == host


def _known(function: Callable[..., Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Those of the wanted arguments that this version of gradio has by name."""
    return {name: value for name, value in wanted.items() if name in _parameters(function)}


def _parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)
