"""BFR Adapt in Stable-Diffusion-WebUI (A1111, Forge, Forge Neo): a tab, face restorers, a part of Extras, an API.

WebUI runs this file at every start and at every "Reload UI". What must outlive a reload (running jobs, networks) is
kept in WebUI's own module `shared`.
"""

import logging
from pathlib import Path

import numpy as np
from modules import devices, face_restoration, images, paths, script_callbacks, scripts_postprocessing, shared
from modules.initialize_util import get_gradio_auth_creds
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion
from PIL import Image

from bfr_core.errors import first_line
from bfr_core.files.photos import printable
from bfr_core.files.weights import ALSO, name_more_folders
from bfr_core.restoration.background import ALSO_GENERAL, GENERAL_FOLDERS
from bfr_core.web import gradio_compat
from bfr_core.web import gradio_page as ui
from bfr_core.web.actions import Page
from bfr_core.web.host_service import (
    HostService,
    NothingRestoredError,
    RestoreRequest,
    existing,
    restore_request_of,
    summary_of,
)
from bfr_core.web.http_api import add_routes

NAME = "BFR Adapt"
TAB = "bfr_adapt"
OPTIONS = shared.cmd_opts
WEIGHT_OPTIONS = ("codeformer_models_path", "gfpgan_models_path", "ckpt_dir", "ckpt_dirs")
UPSCALER_OPTIONS = (
    "esrgan_models_path",
    "realesrgan_models_path",
    "bsrgan_models_path",
    "dat_models_path",
    "scunet_models_path",
    "swinir_models_path",
)
log = logging.getLogger(NAME)


def host_service() -> HostService:
    """The one page of this WebUI, with its restorers."""
    if not hasattr(shared, TAB):
        set_weight_folders()
        outputs, hidden = Path(paths.data_path, "outputs"), OPTIONS.hide_ui_dir_config
        page = Page(
            outputs / "bfr_runs",
            allowed_folders(outputs),
            str(devices.get_device_for("codeformer")),
            how_to_allow=f"start WebUI with{'out --hide-ui-dir-config' if hidden else ' --bfr-allow DIR'}",
            uploads=gradio_compat.host_uploads(),
            changed=register,
        )
        setattr(shared, TAB, HostService(page))
    return getattr(shared, TAB)


def run_names() -> list[str]:
    """Runs that have an adapted restorer; none, and a line in the log, where their folder cannot be made or read.

    WebUI builds no page at all if a part of it raises.
    """
    try:
        return host_service().names()
    except (ValueError, OSError) as error:
        log.warning("%s", first_line(error))
        return []


def allowed_folders(outputs: Path) -> list[Path]:
    """Folders that may be named on the page: none where WebUI itself lets none be named.

    WebUI takes a folder of results that is no whole path from where it was started, as `Path.resolve` does.
    """
    if OPTIONS.hide_ui_dir_config:
        return []
    outputs.mkdir(parents=True, exist_ok=True)
    own = [str(value) for name, value in shared.opts.data.items() if name.startswith("outdir_") and value]
    named = getattr(OPTIONS, "bfr_allow", [])
    for folder in named:
        if not Path(folder).is_dir():
            log.warning("--bfr-allow %s: there is no such folder", printable(folder))
    return existing([outputs, *own, *OPTIONS.gradio_allowed_path, *named])


def options_of(names: tuple[str, ...]) -> list[str]:
    """The folders that these options of WebUI name, each none, one, or a list (checkpoints in Forge Neo)."""
    given = [getattr(OPTIONS, name, None) or [] for name in names]
    return [folder for one in given for folder in (one if isinstance(one, list) else [one])]


def set_weight_folders() -> None:
    """Add WebUI's own folders of face restorers, checkpoints and upscalers to those searched for weights."""
    models = Path(paths.models_path)
    names = ("Codeformer", "GFPGAN", "RestoreFormer", "Stable-diffusion", *GENERAL_FOLDERS)
    name_more_folders(ALSO, existing([*options_of(WEIGHT_OPTIONS), *(models / name for name in names)]))
    name_more_folders(ALSO_GENERAL, existing(options_of(UPSCALER_OPTIONS)))


# ---------------------------------------------------------------- Settings, Face restoration


OURS = f" ({NAME})"  # ends the names of ours in the list


class AdaptedRestorer(face_restoration.FaceRestoration):
    """An adapted restorer among WebUI's face restorers. own: marks those of an earlier load of this file."""

    own = TAB

    def __init__(self, run: str) -> None:
        self.run = run

    def name(self) -> str:
        return f"{self.run}{OURS}"

    def restore(self, np_image: np.ndarray) -> np.ndarray:
        """The picture with restored faces, (H, W, 3) uint8 RGB. Raises ValueError in one line, because a picture that
        came back unchanged would not tell the reason; WebUI ends the job there, so the picture is saved before."""
        fidelity = float(getattr(shared.opts, "code_former_weight", RestoreRequest.fidelity))
        try:
            return restored(np_image, RestoreRequest(self.run, fidelity=fidelity))[0]
        except Exception as error:  # whatever it is, WebUI throws the picture away
            raise ValueError(f"{first_line(error)}{kept(np_image)}") from error


def kept(np_image: np.ndarray) -> str:
    """Where WebUI saved a picture that it had just made, for the message; "" if it could not."""
    folder = shared.opts.data.get("outdir_samples") or shared.opts.data.get("outdir_txt2img_samples")
    folder = folder or str(Path(paths.data_path, "outputs"))
    try:
        file, _ = images.save_image(Image.fromarray(np_image), folder, "", suffix="-before-face-restoration")
    except Exception:
        log.exception("the picture could not be saved")
        return ""
    return f"; the picture is saved without that: {file}"


def restored(picture, request: RestoreRequest):
    """As `HostService.restore`; the networks are unloaded afterwards if WebUI's settings ask for that."""
    try:
        return host_service().restore(picture, request)
    finally:
        unload_as_set()


def unload_as_set() -> None:
    """Give the memory of the networks back, if WebUI's settings ask for that."""
    if shared.opts.face_restoration_unload:
        host_service().forget()
        devices.torch_gc()


def register() -> None:
    """Put the adapted restorers among WebUI's face restorers, in place of those registered before."""
    others = [restorer for restorer in shared.face_restorers if getattr(restorer, "own", "") != TAB]
    runs = run_names()
    chosen = str(getattr(shared.opts, "face_restoration_model", None) or "")
    if chosen.endswith(OURS) and (run := chosen.removesuffix(OURS)) not in runs:
        runs.append(run)  # its run is gone, which it tells; without it WebUI would pass pictures on unchanged
    shared.face_restorers[:] = others + [AdaptedRestorer(run) for run in runs]


def make_list_renewable() -> None:
    """Give the list in Settings WebUI's own button that reads a list again: a restorer may come at any time."""
    setting = shared.opts.data_labels["face_restoration_model"]
    if setting.refresh is None:
        setting.refresh = register


def unregister() -> None:
    """Take the adapted restorers out of WebUI's face restorers, and the button away."""
    shared.face_restorers[:] = [r for r in shared.face_restorers if getattr(r, "own", "") != TAB]
    setting = shared.opts.data_labels["face_restoration_model"]
    if setting.refresh is register:
        setting.refresh = None


# ---------------------------------------------------------------- Extras


class ScriptPostprocessingAdapted(scripts_postprocessing.ScriptPostprocessing):
    """Restores the faces of Extras' pictures, one or a folder of them."""

    name = NAME
    order = 3500  # after WebUI's own face restorers

    def ui(self):
        with InputAccordion(False, label=NAME, elem_id="extras_bfr_adapt") as enable:
            widgets = ui.extras(run_names())
            create_refresh_button(
                widgets["restorer"],
                lambda: None,
                lambda: {"choices": run_names()},
                "extras_bfr_adapt_refresh",
            )
        return {"enable": enable, **widgets}

    def process(self, pp, enable=False, **settings):
        """Restore the faces of `pp.image`; without these settings, or with empty ones, nothing is done.

        A picture of which nothing can be restored stays as it is, which its record and the page say: an error would end
        WebUI's batch there.
        """
        request = restore_request_of(settings) if enable else None
        if request is None or request.visibility == 0:
            if enable and not settings.get("restorer"):
                raise ValueError(f"{NAME}: choose a restorer; the tab {NAME} makes one, the button beside it finds it")
            return
        picture = pp.image if pp.image.mode == "RGB" else pp.image.convert("RGB")
        try:
            pixels, result = restored(np.asarray(picture), request)
        except NothingRestoredError as error:
            pp.info[NAME] = f"nothing restored: {first_line(error)}"
            gradio_compat.load().Warning(f"{NAME}: nothing restored: {first_line(error)}")
            return
        made = Image.fromarray(pixels)
        if "A" in pp.image.getbands():
            made.putalpha(pp.image.getchannel("A"))
        pp.image = made
        pp.info[NAME] = f"{request.restorer}: {summary_of(result)}"
        pp.info[f"{NAME} visibility"] = round(request.visibility, 3)
        if result.step:
            pp.info[f"{NAME} restorer SHA-256"] = result.step.sha256


# ---------------------------------------------------------------- when WebUI calls


def tab():
    demo = ui.build_tab(host_service().page)
    for block in demo.blocks.values():
        block.do_not_save_to_config = True  # WebUI's own config, whose defaults would override a run's
    return [(demo, NAME, TAB)]


def started(demo, app) -> None:
    """Serve the page's files, and the API if WebUI serves its own. demo: None with --nowebui."""
    if demo is not None:
        gradio_compat.serve_also(demo, host_service().page.cache)
    if OPTIONS.api or OPTIONS.nowebui:
        names = [pair.split(":", 1) for pair in (OPTIONS.api_auth or "").split(",") if ":" in pair]
        logins = dict([*names, *(pair for pair in get_gradio_auth_creds() if len(pair) == 2)])
        add_routes(app, host_service(), logins, unload_as_set)


def before_ui() -> None:
    if hasattr(shared, TAB):  # after a reload, before which WebUI's settings may have been changed
        set_weight_folders()
        try:
            host_service().page.allowed = allowed_folders(Path(paths.data_path, "outputs"))
        except OSError as error:  # the folder of outputs cannot be made; WebUI builds no page if a part of it raises
            log.warning("%s", first_line(error))
    register()
    make_list_renewable()


script_callbacks.on_before_ui(before_ui)
script_callbacks.on_ui_tabs(tab)
script_callbacks.on_app_started(started)
script_callbacks.on_script_unloaded(unregister)
