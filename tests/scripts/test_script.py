"""The script in a made-up WebUI; "adapted" are networks of a few thousand parameters that make faces brighter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bfr_core.adaptation.run import Run
from bfr_core.faces.align import Face, template
from bfr_core.files.ownership import LIST, Ledger
from bfr_core.files.weights import locate, search_folders
from bfr_core.restoration.background import offered_backgrounds
from bfr_core.restoration.restore import NO_WORSE, RestoredPhoto
from bfr_core.restorers.load import SHIPPED
from bfr_core.web import host_service as host_service_module
from bfr_core.web.choices import Choices
from bfr_core.web.host_service import RestoreRequest, restore_request_of
from tests.scripts.conftest import ROOT, PostprocessedImage, WebUI

FEW = Choices(aligned=True, changes={"finetune.iterations": 4})


@pytest.fixture
def brighter(tmp_path: Path) -> Path:
    """A restorer of 32 x 32 faces that adds 0.1, as a file."""
    from spandrel.architectures.NAFNet import NAFNet

    net = NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    torch.nn.init.zeros_(net.ending.weight)
    torch.nn.init.constant_(net.ending.bias, 0.1)
    save_file(net.state_dict(), tmp_path / "brighter.safetensors", {"architecture": "NAFNet", "size": "32"})
    return tmp_path / "brighter.safetensors"


@pytest.fixture
def album(webui: WebUI, brighter: Path, monkeypatch: pytest.MonkeyPatch) -> WebUI:
    """A WebUI with an adapted run "album"; in every picture two faces are found, at (30, 40) and (110, 40)."""
    run = webui.root / "outputs" / "bfr_runs" / "album"
    run.mkdir(parents=True)
    (run / "request.json").write_text("{}")
    shutil.copy(brighter, run / "restorer.safetensors")
    faces = [Face(template(1) * 30 + [x, 40.0]) for x in (30.0, 110.0)]
    monkeypatch.setattr(host_service_module, "load_detector", lambda *_: lambda photo: list(faces))
    config = host_service_module.RestoreConfig
    plain = dict.fromkeys(("match_colour", *NO_WORSE), False)
    monkeypatch.setattr(host_service_module, "RestoreConfig", lambda **given: config(**given | plain))
    return webui


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 180, (80, 140, 3), np.uint8)


def changed_columns(before: np.ndarray, after: np.ndarray) -> set[str]:
    """Which halves of the picture are not as they were."""
    different = (before != after).any((0, 2))
    return {name for name, half in (("left", different[:70]), ("right", different[70:])) if half.any()}


# ---------------------------------------------------------------- face restorers


def test_adapted_restorers_stand_among_webuis_own_and_are_never_doubled(album: WebUI) -> None:
    album.load()
    album.callbacks["before_ui"]()
    assert album.face_restorers() == ["CodeFormer", "album (BFR Adapt)"]
    first = album.shared.face_restorers[1]
    page = album.shared.bfr_adapt.page
    album.reload()
    assert album.face_restorers() == ["CodeFormer", "album (BFR Adapt)"]
    assert album.shared.face_restorers[1] is not first, "it is the new script's"
    assert album.shared.bfr_adapt.page is page, "jobs at work outlive a reload"
    album.callbacks["script_unloaded"]()
    assert album.face_restorers() == ["CodeFormer"], "a script that is gone leaves none"


def test_a_restorer_comes_with_its_run_and_goes_with_it(
    webui: WebUI, photos: Path, tiny_restorer: Path, tiny_prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    monkeypatch.setattr("bfr_core.diffusion.prior.EMBEDDED", tiny_prior)
    monkeypatch.setattr("bfr_core.restoration.same_person.EMBEDDED_SMALL", tiny_restorer)  # helps to tell people
    webui.shared.cmd_opts.bfr_allow = [str(photos)]
    webui.load()
    webui.callbacks["before_ui"]()
    page = webui.shared.bfr_adapt.page
    name, _ = page.new_run("", [], str(photos), FEW)
    page.jobs.wait(page.run(name))
    assert webui.face_restorers() == ["CodeFormer"]
    page.adapt(name, FEW)
    assert page.jobs.wait(page.run(name)).state == "done"
    assert webui.face_restorers() == ["CodeFormer", f"{name} (BFR Adapt)"]
    page.delete(name)
    assert webui.face_restorers() == ["CodeFormer"]
    assert not list((webui.root / "models").rglob("*.*")), "nothing lies where WebUI looks for its own"


def test_the_list_in_settings_can_be_read_again(album: WebUI) -> None:
    """WebUI makes its list of face restorers once, with its page; `refresh` of a setting is a button beside it."""
    setting = album.shared.opts.data_labels["face_restoration_model"]
    album.load()
    album.callbacks["before_ui"]()
    runs = album.root / "outputs" / "bfr_runs"
    shutil.copytree(runs / "album", runs / "later")
    assert album.face_restorers() == ["CodeFormer", "album (BFR Adapt)"]
    setting.refresh()
    assert album.face_restorers() == ["CodeFormer", "album (BFR Adapt)", "later (BFR Adapt)"]
    first = setting.refresh
    album.reload()
    assert setting.refresh not in (None, first), "it is the new script's"
    album.callbacks["script_unloaded"]()
    assert setting.refresh is None
    setting.refresh = others = lambda: None
    album.load()
    album.callbacks["before_ui"]()
    album.callbacks["script_unloaded"]()
    assert setting.refresh is others


def test_a_face_restorer_repairs_faces_and_nothing_else(album: WebUI) -> None:
    album.load()
    album.callbacks["before_ui"]()
    before = picture()
    after = album.shared.face_restorers[1].restore(before)
    assert after.dtype == np.uint8 and after.shape == before.shape
    assert after[40, 30].mean() > before[40, 30].mean() + 15
    assert (after[:, 60:80] == before[:, 60:80]).all() and changed_columns(before, after) == {"left", "right"}
    assert album.collected == 0
    album.shared.opts.face_restoration_unload = True
    album.shared.face_restorers[1].restore(before)
    assert album.collected == 1 and not album.shared.bfr_adapt.page._loaded


def test_a_restorer_that_its_verdict_does_not_recommend_says_so(
    album: WebUI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    album.load()
    album.callbacks["before_ui"]()
    monkeypatch.setattr("bfr_core.restorers.base.Restorer.caution", "the verdict was: keep the base")
    album.shared.face_restorers[1].restore(picture())
    assert "album: the verdict was: keep the base" in caplog.text


def test_a_restorer_that_is_gone_is_an_error_and_not_an_unchanged_picture(album: WebUI) -> None:
    album.load()
    album.callbacks["before_ui"]()
    gone = album.shared.face_restorers[1]
    shutil.rmtree(album.root / "outputs" / "bfr_runs" / "album")
    made = picture()
    said_first = "album: there is no adapted restorer of this name; there are: none yet"
    with pytest.raises(ValueError, match=said_first) as said:
        gone.restore(made)
    saved = album.root / "outputs" / "00000-before-face-restoration.png"
    assert str(said.value).endswith(f"; the picture is saved without that: {saved}"), "WebUI throws it away"
    assert (np.asarray(Image.open(saved)) == made).all()


def test_a_chosen_restorer_whose_run_is_deleted_stays_in_the_list_and_says_so(album: WebUI) -> None:
    """WebUI passes pictures on unchanged if it finds no restorer of the chosen name."""
    album.load()
    album.callbacks["before_ui"]()
    album.shared.opts.face_restoration_model = "album (BFR Adapt)"
    shutil.rmtree(album.root / "outputs" / "bfr_runs" / "album")
    album.shared.opts.data_labels["face_restoration_model"].refresh()
    assert album.face_restorers() == ["CodeFormer", "album (BFR Adapt)"]
    with pytest.raises(ValueError, match="album: there is no adapted restorer of this name; there are: none yet"):
        album.shared.face_restorers[1].restore(picture())
    album.shared.opts.face_restoration_model = "CodeFormer"
    album.shared.opts.data_labels["face_restoration_model"].refresh()
    assert album.face_restorers() == ["CodeFormer"]


# ---------------------------------------------------------------- Extras


def no_number(*_: object) -> torch.Tensor:
    raise ValueError("restorer gave NaN")


def extras(album: WebUI, image: Image.Image, **settings: object) -> PostprocessedImage:
    pp = PostprocessedImage(image)
    album.load().ScriptPostprocessingAdapted().process(pp, **settings)
    return pp


def test_extras_of_other_scripts_and_of_the_api_change_nothing(album: WebUI) -> None:
    names = ("enable", "restorer", "visibility", "fidelity", "faces", "numbers", "background", *NO_WORSE)
    for settings in ({}, dict.fromkeys(names), {"enable": False, "restorer": "album"}, {"something": 1}):
        image = Image.fromarray(picture())
        pp = extras(album, image, **settings)
        assert pp.image is image and pp.info == {}
    assert extras(album, image, enable=True, restorer="album", visibility=0.0).image is image


def test_extras_switch_off_what_keeps_a_face_no_worse(webui: WebUI, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RestoreRequest] = []
    script, gradio = webui.load(), pytest.importorskip("gradio", reason="gradio is not installed")
    with gradio.Blocks():
        widgets = script.ScriptPostprocessingAdapted().ui()
    assert list(widgets)[-len(NO_WORSE) :] == list(NO_WORSE) and all(widgets[name].value for name in NO_WORSE)

    def restored(picture: np.ndarray, request: RestoreRequest) -> tuple[np.ndarray, RestoredPhoto]:
        asked.append(request)
        return picture, RestoredPhoto(torch.zeros(3, 8, 8), [], [], torch.zeros(1, 8, 8))

    monkeypatch.setattr(script, "restored", restored)
    for settings in ({}, dict.fromkeys(NO_WORSE, False)):
        given = {"enable": True, "restorer": "album"} | settings
        script.ScriptPostprocessingAdapted().process(PostprocessedImage(Image.fromarray(picture())), **given)
    on, off = (request.config() for request in asked)
    assert [getattr(on, name) for name in NO_WORSE] == [True] * 3
    assert [getattr(off, name) for name in NO_WORSE] == [False] * 3
    with pytest.raises(ValueError, match="even_tone is 'yes'; it must be true or false"):
        RestoreRequest("album", even_tone="yes").config()  # type: ignore[arg-type]


def test_extras_restore_what_was_asked_for(album: WebUI) -> None:
    before = picture()
    pp = extras(album, Image.fromarray(before), enable=True, restorer="album", unknown=1)
    whole = np.asarray(pp.image)
    assert changed_columns(before, whole) == {"left", "right"}
    assert pp.info["BFR Adapt"] == "album: 2 of 2 faces restored; their details are generated"
    assert len(pp.info["BFR Adapt restorer SHA-256"]) == 64
    half = np.asarray(
        extras(album, Image.fromarray(before), enable=True, restorer="album", visibility=0.5, faces=None).image
    )
    gained = [float((image[40, 30].astype(int) - before[40, 30]).mean()) for image in (whole, half)]
    assert gained[1] == pytest.approx(gained[0] / 2, abs=1.0)
    for settings, expected in (
        ({"faces": "leftmost"}, {"left"}),
        ({"faces": "numbered", "numbers": "2"}, {"right"}),
    ):
        image = extras(album, Image.fromarray(before), enable=True, restorer="album", **settings).image
        assert changed_columns(before, np.asarray(image)) == expected
    with pytest.raises(ValueError, match="choose a restorer"):
        extras(album, Image.fromarray(before), enable=True)
    with pytest.raises(ValueError, match="no adapted restorer of this name; there are: album"):
        extras(album, Image.fromarray(before), enable=True, restorer="../album")


def test_a_picture_of_which_nothing_can_be_restored_does_not_end_the_batch(
    album: WebUI, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradio, warned = pytest.importorskip("gradio", reason="gradio is not installed"), []
    monkeypatch.setattr(gradio, "Warning", lambda said: warned.append(said))
    image = Image.fromarray(picture())
    with monkeypatch.context() as patch:
        patch.setattr("bfr_core.restorers.base.Restorer.restore", no_number)
        pp = extras(album, image, enable=True, restorer="album")
    assert pp.image is image and pp.info["BFR Adapt"].startswith("nothing restored: album: a face ")
    assert warned == [f"BFR Adapt: {pp.info['BFR Adapt']}"]

    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(host_service_module, "restore_photo", full)
        pp = extras(album, image, enable=True, restorer="album")
    assert pp.image is image and pp.info == {"BFR Adapt": "nothing restored: album: CUDA out of memory"}
    assert not album.shared.bfr_adapt.page._loaded, "the card's memory is given back"
    assert extras(album, image, enable=True, restorer="album").image is not image


def test_extras_keep_transparency(album: WebUI) -> None:
    image = Image.fromarray(picture()).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    made = extras(album, image, enable=True, restorer="album").image
    assert made.mode == "RGBA" and made.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_a_request_knows_its_own_settings_alone() -> None:
    assert restore_request_of({"restorer": "a", "faces": None, "enable": True}) == RestoreRequest("a")
    assert restore_request_of({"restorer": "", "faces": "all"}) is None and restore_request_of({}) is None


# ---------------------------------------------------------------- files and folders


def test_webuis_own_weights_are_used_where_they_are(webui: WebUI, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    webui.shared.cmd_opts.gfpgan_models_path = str(elsewhere)
    codeformer = webui.root / "models" / "Codeformer" / "codeformer-v0.1.0.pth"  # WebUI's name for codeformer.pth
    for path in (codeformer, elsewhere / "GFPGANv1.4.pth", elsewhere / "detection_Resnet50_Final.pth"):
        path.write_text("")
    assert locate("codeformer.pth") is None
    webui.load()
    webui.callbacks["before_ui"]()
    assert locate("codeformer.pth") == codeformer and locate("GFPGANv1.4") == elsewhere / "GFPGANv1.4.pth"
    assert locate("detection_Resnet50_Final.pth")
    webui.reload()
    assert locate("codeformer.pth") == codeformer


def test_every_folder_of_checkpoints_is_searched_however_webui_names_it(webui: WebUI, tmp_path: Path) -> None:
    """A1111 and Forge have an option for one folder, Forge Neo one that may be given several times."""
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder in folders:
        folder.mkdir()
    webui.shared.cmd_opts.ckpt_dir = str(folders[0])
    webui.shared.cmd_opts.ckpt_dirs = [str(folder) for folder in folders[1:]]
    webui.load()
    webui.callbacks["before_ui"]()
    assert set(folders) <= set(search_folders())


def test_folders_that_may_be_named(
    webui: WebUI,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log" / "images").mkdir(parents=True)
    webui.shared.opts.data = {"outdir_samples": str(photos), "outdir_grids": "log/images", "outdir_save": "gone"}
    webui.shared.opts.data |= {"outdir_init_images": "", "other": str(tmp_path)}
    webui.shared.cmd_opts.bfr_allow = [str(photos / "below"), str(tmp_path / "unplugged")]
    webui.load()
    webui.callbacks["before_ui"]()
    page = webui.shared.bfr_adapt.page
    assert page.allowed == [webui.root / "outputs", photos, tmp_path / "log" / "images", photos / "below"]
    assert f"--bfr-allow {tmp_path / 'unplugged'}: there is no such folder" in caplog.text
    with pytest.raises(ValueError, match="start WebUI with --bfr-allow DIR"):
        page.typed_folder(str(tmp_path))
    webui.shared.opts.data["outdir_save"] = str(tmp_path)
    webui.reload()
    assert page.typed_folder(str(tmp_path)) == tmp_path


def test_no_folder_may_be_named_where_webui_forbids_it(webui: WebUI, photos: Path) -> None:
    webui.shared.cmd_opts.hide_ui_dir_config = True
    webui.shared.cmd_opts.bfr_allow = [str(photos)]
    webui.load()
    webui.callbacks["before_ui"]()
    page = webui.shared.bfr_adapt.page
    assert page.allowed == [] and page.how_to_allow == "start WebUI without --hide-ui-dir-config"


def test_upscalers_of_webui_are_offered_for_the_rest_of_a_photo(webui: WebUI) -> None:
    (webui.root / "models" / "ESRGAN").mkdir(parents=True)
    (webui.root / "models" / "ESRGAN" / "4x.pth").write_bytes(b"")
    (elsewhere := webui.root / "my enlargers").mkdir()
    (elsewhere / "denoiser.safetensors").write_bytes(b"")
    webui.shared.cmd_opts.esrgan_models_path = str(elsewhere)
    webui.shared.cmd_opts.dat_models_path = str(webui.root / "unplugged")
    webui.load()
    webui.callbacks["before_ui"]()
    assert list(offered_backgrounds()) == ["off", "adapted", "4x.pth", "denoiser.safetensors"]


def test_what_was_dropped_stays_for_the_hosts_other_fields(
    webui: WebUI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio calls an upload's folder by its content: the same photo in another field, or tab, is the same file."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    dropped = tmp_path / "gradio" / "x" / "a.png"
    dropped.parent.mkdir(parents=True)
    Image.fromarray(picture()).save(dropped)
    webui.load()
    webui.callbacks["before_ui"]()
    page = webui.shared.bfr_adapt.page
    for run in ("a", "b"):
        files, problems = page.usable_uploads([str(dropped)])
        page.keep_uploads(Run(page.runs / run), files, page.runs / run / "photos")
        assert problems == []
        assert (page.runs / run / "photos" / "a.png").is_file()
    assert dropped.is_file()


def test_the_option_of_the_command_line() -> None:
    code = (
        "import argparse, preload; p = argparse.ArgumentParser(); preload.preload(p)\n"
        "print(p.parse_args([]).bfr_allow, p.parse_args(['--bfr-allow', 'a', '--bfr-allow', 'b']).bfr_allow)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['a', 'b']"


def test_a_folder_of_runs_that_was_cleared_away_is_made_again(
    webui: WebUI, photos: Path, tiny_restorer: Path, tiny_prior: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHIPPED, "embedded", tiny_restorer)
    monkeypatch.setattr("bfr_core.diffusion.prior.EMBEDDED", tiny_prior)
    webui.shared.cmd_opts.bfr_allow = [str(photos)]
    webui.load()
    webui.callbacks["before_ui"]()
    page = webui.shared.bfr_adapt.page
    shutil.rmtree(webui.root / "outputs")
    script = webui.reload()
    assert script.run_names() == [] and (page.cache / LIST).is_file()
    shutil.rmtree(webui.root / "outputs")
    name, _ = page.new_run("album", [], str(photos), FEW)
    page.jobs.wait(page.run(name))
    assert page.names() == ["album"] and Ledger(page.cache).kind == "run"


def test_a_folder_of_runs_that_cannot_be_made_leaves_webui_its_page(
    webui: WebUI, caplog: pytest.LogCaptureFixture
) -> None:
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    script = webui.load()
    for before in (False, True):  # the first time, and with the page of an earlier load
        if before:
            (webui.root / "outputs").unlink()
            assert script.run_names() == []
            shutil.rmtree(webui.root / "outputs")
        (webui.root / "outputs").write_text("a file")
        webui.callbacks["before_ui"]()
        with gradio.Blocks():
            assert script.ScriptPostprocessingAdapted().ui()["restorer"].value is None
        assert "outputs" in caplog.text and webui.face_restorers() == ["CodeFormer"]
        caplog.clear()


# ---------------------------------------------------------------- with gradio


def test_the_tab_and_the_widgets_of_extras(album: WebUI) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed", exc_type=ImportError)
    script = album.load()
    [(demo, label, name)] = album.callbacks["ui_tabs"]()
    assert (label, name) == ("BFR Adapt", "bfr_adapt")
    assert all(block.do_not_save_to_config for block in demo.blocks.values())
    import gradio

    with gradio.Blocks():
        widgets = script.ScriptPostprocessingAdapted().ui()
    assert widgets.pop("enable") == "enable" and set(widgets) == set(RestoreRequest.__dataclass_fields__)
    assert widgets["restorer"].value == "album"
