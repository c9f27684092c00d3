"""Stable-Diffusion-WebUI as thin as can be: enough of its package `modules` to load the script as WebUI does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bfr_adapt.py"
EVENTS = ("before_ui", "ui_tabs", "app_started", "script_unloaded")


class FaceRestoration:
    def name(self) -> str:
        return "CodeFormer"

    def restore(self, np_image: Any) -> Any:
        return np_image


class ScriptPostprocessing:
    """The base class of Extras' parts."""


class PostprocessedImage:
    def __init__(self, image: Any) -> None:
        self.image = image
        self.info: dict[str, Any] = {}


class WebUI:
    """What the fakes share. root: WebUI's folder of data. callbacks: those of the script that was loaded last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.callbacks: dict[str, Callable[..., Any]] = {}
        options = {
            "hide_ui_dir_config": False, "gradio_allowed_path": [], "bfr_allow": [], "api": True, "nowebui": False,
            "api_auth": None, "codeformer_models_path": str(root / "models/Codeformer"),
            "gfpgan_models_path": str(root / "models/GFPGAN"),
        }  # fmt: skip
        labels = {"face_restoration_model": SimpleNamespace(refresh=None)}
        settings = SimpleNamespace(
            data={}, data_labels=labels, face_restoration_unload=False, code_former_weight=0.5
        )  # fmt: skip
        self.shared = self._module(
            "shared", cmd_opts=SimpleNamespace(**options), opts=settings, face_restorers=[FaceRestoration()]
        )
        self.collected = 0
        self.logins: list[tuple[str, str]] = []
        for name in ("models/Codeformer", "models/GFPGAN"):
            (root / name).mkdir(parents=True)

    def save_image(self, image: Any, path: str, basename: str, suffix: str = "") -> tuple[str, None]:
        """WebUI's own way to save a picture."""
        Path(path).mkdir(parents=True, exist_ok=True)
        file = Path(path, f"00000{basename}{suffix}.png")
        image.save(file)
        return str(file), None

    @staticmethod
    def _module(name: str, **names: Any) -> ModuleType:
        made = ModuleType(f"modules.{name}")
        vars(made).update(names)
        return made

    def modules(self) -> dict[str, ModuleType]:
        """The fakes, by module name."""

        def collect() -> None:
            self.collected += 1

        def registers(event: str) -> Callable[[Callable[..., Any]], None]:
            return lambda callback: self.callbacks.__setitem__(event, callback)

        made = self._module
        parts = [
            self.shared,
            made("devices", get_device_for=lambda task: torch.device("cpu"), torch_gc=collect),
            made("face_restoration", FaceRestoration=FaceRestoration),
            made("images", save_image=self.save_image),
            made("paths", data_path=str(self.root), models_path=str(self.root / "models")),
            made("script_callbacks", **{f"on_{event}": registers(event) for event in EVENTS}),
            made("scripts_postprocessing", ScriptPostprocessing=ScriptPostprocessing),
            made("initialize_util", get_gradio_auth_creds=lambda: iter(self.logins)),
            made("ui_common", create_refresh_button=lambda *arguments: None),
            made("ui_components", InputAccordion=lambda value, **_: contextlib.nullcontext("enable")),
        ]
        package = ModuleType("modules")
        vars(package).update({part.__name__.split(".")[1]: part for part in parts})
        return {"modules": package} | {part.__name__: part for part in parts}

    def load(self) -> ModuleType:
        """Run the script as WebUI does: by its path, with the extension on `sys.path` only meanwhile."""
        self.callbacks.clear()
        before = sys.path
        sys.path = [str(ROOT), *sys.path]
        try:
            spec = spec_from_file_location(SCRIPT.name, SCRIPT)
            assert spec and spec.loader
            script = module_from_spec(spec)
            spec.loader.exec_module(script)
        finally:
            sys.path = before
        return script

    def reload(self) -> ModuleType:
        """What "Reload UI" does."""
        self.callbacks["script_unloaded"]()
        script = self.load()
        self.callbacks["before_ui"]()
        return script

    def face_restorers(self) -> list[str]:
        return [restorer.name() for restorer in self.shared.face_restorers]


@pytest.fixture
def webui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebUI]:
    """A WebUI with nothing in it."""
    host = WebUI(tmp_path / "webui")
    for variable in ("BFR_WEIGHTS_ALSO", "BFR_UPSCALERS_ALSO"):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path / "none"))
    for name, module in host.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    yield host
    if service := getattr(host.shared, "bfr_adapt", None):
        service.page.jobs.stop_all()
