"""From a folder to a tuned restorer through the nodes; stopped, paused and resumed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bfr_core.adaptation.faces import leave_out
from bfr_core.faces.align import Face, template
from bfr_core.files.photos import read_image, write_image
from bfr_core.restorers import load_restorer, save_change
from tests.two_damages import BLURRED, judged

TUNING = {
    "settings": "as set below", "iterations": 6, "batch_size": 2, "micro_batch": 2, "perceptual": 0.0,
    "adversarial": 0.0, "lr": 1e-3, "sharp": 0.0,
}  # fmt: skip
SEARCHING = TUNING | {"sharp": 0.5}  # for the folder's damage
Run = Callable[..., tuple]


@pytest.fixture
def faces(run: Run, models: tuple[Any, Any], host: Any, photos: Path) -> Any:
    shutil.copytree(photos, host.root / "input/photos")
    return run("BFR_FacesFromFolder", restorer=models[0], folder="photos", aligned=True)[0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs `pairs` leaves its run, for the others."""
    return tmp_path_factory.mktemp("drawn") / "my_run"


@pytest.fixture
def pairs(run: Run, models: tuple[Any, Any], faces: Any, host: Any, drawn: Path) -> Any:
    """Targets of `faces`, which are drawn once for all tests: each has them in a run of its own."""
    restorer, prior = models
    folder = host.root / "output/bfr_runs/my_run"
    if drawn.is_dir():
        shutil.copytree(drawn, folder, dirs_exist_ok=True)
    made = run("BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, gate=0.0)[0]
    if not drawn.is_dir():
        shutil.copytree(folder, drawn)
    return made


def test_everything_lies_below_the_output(run: Run, models: tuple[Any, Any], pairs: Any, host: Any) -> None:
    before = {p for p in host.root.rglob("*") if "output" not in p.parts}
    tuned, verdict, finished, curve, shown, folder, adopt, likeness, others = run(
        "BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **SEARCHING
    )
    assert adopt is verdict.startswith("Adopt")
    assert likeness.startswith("Adapted restorer, 10 faces: cannot tell") and others == 0
    assert finished and verdict.startswith(("Adopt", "Keep the base", "Cannot tell"))
    assert curve.shape == (1, 256, 512, 3) and shown.shape == (1, 8 * 32, 4 * 32, 3)
    assert Path(folder) == host.root / "output/bfr_runs/my_run"
    assert json.loads((Path(folder) / "report.json").read_text())["verdict"] != "not_judged"
    assert {p for p in host.root.rglob("*") if "output" not in p.parts} == before
    assert tuned.network.metadata["base"] == "tiny.safetensors"
    assert host.previews, "the loss and a face were shown as it went"
    assert tuned.network.metadata["prior"] == "prior", "the teacher is on record"
    assert host.asked.index("free True") < host.asked.index("empty"), "memory was asked for, and given back"


def test_a_first_look_shows_three_faces_and_stops_what_comes_behind(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer, prior = models
    host.texts.clear()
    module = sys.modules["any-name.bfr_core.adaptation.first_look"]  # the pack has a copy of its own
    monkeypatch.setattr(module, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(module, "SECONDS", 0.5)
    folder = host.root / "output/bfr_runs/my_run"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    out = run("BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, first_look=True)
    assert len(out) == 5 and all(type(value).__name__ == "Blocker" for value in out)
    assert {p: p.read_bytes() for p in before} == before
    place = folder / "first_look"
    assert {p for p in folder.rglob("*") if p.is_file()} - set(before) == {p for p in place.rglob("*") if p.is_file()}
    assert "3 faces and" in host.texts[-1] and "10 faces will take" in host.texts[-1]
    assert not restorer.network.module.training and host.previews


def test_the_nodes_say_how_long_they_will_take(run: Run, models: tuple[Any, Any], faces: Any, host: Any) -> None:
    restorer, prior = models
    host.texts.clear()
    pairs = run("BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, gate=0.0)[0]
    assert "10 faces will take" in host.texts[1] and len(pairs.opened()[2]) == 10
    host.texts.clear()
    run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, **TUNING)
    assert "10 faces will take" in host.texts[1]
    host.texts.clear()
    run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, **TUNING | {"iterations": 8})
    assert not any("will take" in text for text in host.texts), "it goes on"


def test_weights_that_the_host_moved_in_inference_mode_can_be_tuned(
    run: Run, models: tuple[Any, Any], pairs: Any, host: Any
) -> None:
    module = models[0].network.module
    with torch.inference_mode():
        module.to(torch.float64).to(torch.float32)
    assert all(p.is_inference() for p in module.parameters())
    settings = TUNING | {"settings": "recommended"}
    run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **settings, minutes_this_run=0.005)
    report = json.loads((host.root / "output/bfr_runs/my_run/report.json").read_text())
    assert report["measurements"]["steps"] > 0 and report["loss_curves"]["l1"]


def test_targets_report_what_was_refused(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["any-name.nodes.host"], "PREVIEW_SECONDS", -1)
    restorer, prior = models
    pairs, examples, accepted, refused, report = run(
        "BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, settings="as set below", start=8,
        calls=2, hold_until=0, factor=2, gate=0.2, batch_size=4,
    )  # fmt: skip
    assert any(picture.size == (96, 32) for _, picture, _ in host.previews), "triplets were shown as it went"
    assert accepted + refused == 10 and refused > 0 and len(report.splitlines()) == refused + 1
    assert examples.shape[-1] == 3 and pairs.faces == faces
    again = run(
        "BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, settings="as set below", start=8,
        calls=2, hold_until=0, factor=2, gate=0.2, batch_size=2,
    )  # fmt: skip
    assert again[0].faces == faces, "fewer faces at once change no target, and go on in the same run"


def test_names_are_escaped(run: Run, models: tuple[Any, Any], host: Any) -> None:
    (host.root / "input/odd").mkdir()
    write_image(host.root / "input/odd/good.png", torch.rand(3, 32, 32))
    (host.root / "input/odd" / "<img src=x>\n.png").write_bytes(b"no picture")
    *_, report, _ = run("BFR_FacesFromFolder", restorer=models[0], folder="odd", aligned=True)
    assert "<img src=x>\\n.png" in report and len(report.splitlines()) == 3
    run("BFR_SaveRestorer", restorer=models[0], name="a & b")
    assert host.texts[-1].startswith("saved: a &amp; b.safetensors in ")


def test_cancelled_at_any_look_the_same_graph_finishes(
    run: Run, models: tuple[Any, Any], pairs: Any, host: Any
) -> None:
    host.looks = 0
    unbroken = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **SEARCHING)[0]
    folder, all_looks = host.root / "output/bfr_runs/my_run", host.looks
    saved = []
    for look in (1, all_looks // 2, all_looks - 20):  # before the first step, between steps, at the verdict
        for file in ("checkpoints/last.pt", "report.json"):
            (folder / file).unlink(missing_ok=True)
        host.looks, host.cancel_at = 0, look
        with pytest.raises(Exception, match="^$") as caught:
            run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **SEARCHING)
        assert type(caught.value).__name__ == "Cancelled" and host.looks == look, "it ended there"
        saved.append((folder / "checkpoints/last.pt").exists())
        assert not (folder / "report.json").exists()
        resumed = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **SEARCHING)[0]
        for a, b in zip(*(r.network.module.state_dict().values() for r in (unbroken, resumed)), strict=True):
            assert torch.equal(a, b)
    assert saved == [False, True, True]


def test_cancel_is_looked_at_before_every_network_call(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer, prior = models
    calls: list[int] = []
    for network in (restorer.network.module, prior.network.network):
        forward = type(network).forward

        def counted(self: Any, *inputs: Any, forward: Any = forward, **more: Any) -> Any:
            calls.append(host.looks)
            return forward(self, *inputs, **more)

        monkeypatch.setattr(type(network), "forward", counted)
    pairs = run("BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, gate=0.0)[0]
    run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, **TUNING)
    assert len(calls) > 30 and len(set(calls)) == len(calls), "two calls with no look between them"
    assert not restorer.network.module._forward_pre_hooks and not prior.network.network._forward_pre_hooks


def test_targets_are_cancelled_within_one_network_call(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer, prior = models
    network, calls = prior.network, []
    forward = type(network).forward

    def counted(self: Any, *inputs: Any) -> Any:
        calls.append(1)
        return forward(self, *inputs)

    monkeypatch.setattr(type(network), "forward", counted)
    host.looks, host.cancel_at = 0, 4
    with pytest.raises(Exception, match="^$"):
        run(
            "BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, settings="as set below",
            sampler="paper", start=40, hold_until=0, factor=2, batch_size=2,
        )  # fmt: skip
    assert len(calls) < 60, "not all the calls of a batch were made"


def test_pause_gives_the_best_so_far_and_queues_again(
    run: Run, models: tuple[Any, Any], pairs: Any, nodes: dict[str, Any], host: Any
) -> None:
    faces_node, tune_node = nodes["BFR_FacesFromFolder"], nodes["BFR_FinetuneRestorer"]
    where = {"place": "input", "folder": "photos", "run": "my_run"}
    faces_before, before = faces_node.fingerprint_inputs(**where), tune_node.fingerprint_inputs(pairs=None)
    assert faces_before == faces_node.fingerprint_inputs(**where), "an unchanged graph runs nothing again"
    assert before == tune_node.fingerprint_inputs(pairs=None)
    longer = TUNING | {"iterations": 10**6, "minutes_this_run": 0.005}
    tuned, verdict, finished, *_ = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **longer)
    assert not finished and verdict.startswith("Paused at step ")
    (path,) = run("BFR_SaveRestorer", restorer=tuned)
    assert type(path).__name__ == "Blocker" and host.texts[-1].startswith("not saved: the tuning is paused")
    assert not list((host.root / "models/facerestore_models").glob("my_restorer*"))
    assert (host.root / "output/bfr_runs/my_run/restorer.safetensors").exists()
    paused = tune_node.fingerprint_inputs(pairs=None)
    assert paused != before, "so that queuing the same graph again goes on"
    assert faces_node.fingerprint_inputs(**where) == faces_before, "and no teacher is run again"
    first = int(verdict.split()[3])
    _, verdict, *_ = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **longer)
    assert int(verdict.split()[3]) > first
    assert tune_node.fingerprint_inputs(pairs=None) != paused


def test_a_run_that_is_called_like_one_beside_the_default_is_the_one_that_is_named(
    run: Run, models: tuple[Any, Any], pairs: Any, nodes: dict[str, Any], host: Any
) -> None:
    """As a user types who sees output/bfr_runs/my_run_2 and wants to go on with it."""
    where = {"place": "input", "folder": "photos", "run": "my_run_2"}
    inputs = {"restorer": models[0]}
    made = run("BFR_FacesFromFolder", aligned=True, **inputs, **where)[0]
    assert made.folder == host.root / "output/bfr_runs/my_run_2"
    longer = TUNING | {"iterations": 10**6, "minutes_this_run": 0.005}
    for seed in (3, 4):  # other settings replace what is in a run that has a name
        own = run("BFR_MakePseudoTargets", faces=made, prior=models[1], gate=0.0, seed=seed, **inputs)[0]
        before = nodes["BFR_FinetuneRestorer"].fingerprint_inputs(pairs=None)
        assert run("BFR_FinetuneRestorer", pairs=own, **inputs, **longer)[5] == str(made.folder)
        assert nodes["BFR_FinetuneRestorer"].fingerprint_inputs(pairs=None) != before, "queuing again goes on"


def test_a_list_of_pictures_of_several_sizes_is_one_folder_of_photos(run: Run, models: tuple[Any, Any]) -> None:
    pictures = [torch.rand(count, side, side, 3) for count, side in ((1, 32), (2, 40), (1, 64))]
    made, _, number, *_ = run("BFR_FacesFromImages", restorer=models[0], images=pictures, run="album", aligned=True)
    assert number == 4 and len(made.opened()[1]) == 4
    again = run("BFR_FacesFromImages", restorer=models[0], images=pictures[:1], run="one", aligned=True)
    assert again[2] == 1


def test_a_picture_that_comes_twice_counts_once_and_this_is_said(run: Run, models: tuple[Any, Any]) -> None:
    picture = torch.rand(1, 32, 32, 3)
    pictures = [picture, torch.rand(1, 32, 32, 3), picture.clone()]
    *_, number, report, _ = run("BFR_FacesFromImages", restorer=models[0], images=pictures, aligned=True)
    assert number == 2 and "1 file gave none:" in report and "shows the same as" in report


def test_a_deleted_run_is_made_again(run: Run, faces: Any, nodes: dict[str, Any], host: Any) -> None:
    node, where = nodes["BFR_FacesFromFolder"], {"place": "input", "folder": "photos", "run": "my_run"}
    other = nodes["BFR_FacesFromImages"]
    before, before_other = node.fingerprint_inputs(**where), other.fingerprint_inputs(run=["my_run"])
    shutil.rmtree(host.root / "output/bfr_runs")
    assert node.fingerprint_inputs(**where) != before and other.fingerprint_inputs(run=["my_run"]) != before_other
    assert node.fingerprint_inputs(**where) == node.fingerprint_inputs(**where)


@pytest.mark.parametrize("name", ["my_run", "mine"])
@pytest.mark.parametrize("change", ["left out", "edited", "deleted"])
def test_faces_that_others_changed_are_collected_again_and_nothing_after_that(
    run: Run, models: tuple[Any, Any], photos: Path, nodes: dict[str, Any], host: Any, change: str, name: str
) -> None:
    """Queued again, a graph goes on with them; ComfyUI would take the faces node for done."""
    shutil.copytree(photos, host.root / "input/photos")
    node, where = nodes["BFR_FacesFromFolder"], {"place": "input", "folder": "photos", "run": name}

    def collect() -> Any:
        return run("BFR_FacesFromFolder", restorer=models[0], aligned=True, **where)[0]

    before, made = node.fingerprint_inputs(**where), collect()
    assert node.fingerprint_inputs(**where) == before, "what the node itself has made is no change"
    if change == "left out":
        leave_out(made.opened()[0], [made.opened()[1].names[0]])
    elif change == "edited":
        write_image(made.folder / "faces/face 0.png", torch.zeros(3, 32, 32))
    else:
        shutil.rmtree(made.folder / "faces")
    with pytest.raises(ValueError, match="queue again"):
        made.opened()
    changed = node.fingerprint_inputs(**where)
    assert changed != before
    assert len(collect().opened()[1]) == 10 - (change == "left out")
    assert node.fingerprint_inputs(**where) == changed


def test_targets_that_others_changed_are_looked_at_again_and_no_teacher_is_run(
    pairs: Any, nodes: dict[str, Any], run: Run, models: tuple[Any, Any]
) -> None:
    node, faces_node = nodes["BFR_MakePseudoTargets"], nodes["BFR_FacesFromFolder"]
    where = {"place": "input", "folder": "photos", "run": "my_run"}
    faces_before, before = faces_node.fingerprint_inputs(**where), node.fingerprint_inputs(faces=None)
    assert node.fingerprint_inputs(faces=None) == before
    Image.new("RGB", (32, 32)).save(pairs.faces.folder / "targets/face 0.png")
    retouched = node.fingerprint_inputs(faces=None)
    run("BFR_MakePseudoTargets", faces=pairs.faces, restorer=models[0], prior=models[1], gate=0.0)
    assert node.fingerprint_inputs(faces=None) == retouched != before
    shutil.rmtree(pairs.faces.folder / "targets")
    assert node.fingerprint_inputs(faces=None) != retouched
    assert faces_node.fingerprint_inputs(**where) == faces_before


def test_a_saved_restorer_that_is_gone_is_saved_again(run: Run, models: tuple[Any, Any], nodes: dict[str, Any]) -> None:
    node = nodes["BFR_SaveRestorer"]
    before = node.fingerprint_inputs(name="a")
    (path,) = run("BFR_SaveRestorer", restorer=models[0], name="a")
    assert node.fingerprint_inputs(name="a") == before
    Path(path).unlink()
    assert node.fingerprint_inputs(name="a") != before


def test_a_run_that_is_deleted_while_a_graph_runs_names_no_command(
    run: Run, faces: Any, models: tuple[Any, Any], host: Any
) -> None:
    shutil.rmtree(host.root / "output/bfr_runs")
    with pytest.raises(ValueError, match="was deleted or emptied since; queue again") as caught:
        run("BFR_TargetsFromImages", faces=faces, images=torch.rand(10, 32, 32, 3), gate=0.0)
    assert "bfr " not in str(caught.value) and "my_run" in str(caught.value)


def test_what_comes_from_another_node_has_a_fingerprint_too(run: Run, faces: Any, nodes: dict[str, Any]) -> None:
    folder, pictures = nodes["BFR_FacesFromFolder"], nodes["BFR_FacesFromImages"]
    linked = {"place": "input", "folder": "photos", "run": None}
    before, before_pictures = folder.fingerprint_inputs(**linked), pictures.fingerprint_inputs(run=[None])
    assert before == folder.fingerprint_inputs(**linked) and isinstance(before, str)
    assert before_pictures == pictures.fingerprint_inputs(run=[None])
    shutil.rmtree(faces.folder)
    assert folder.fingerprint_inputs(**linked) != before
    assert pictures.fingerprint_inputs(run=[None]) != before_pictures
    for change in ({"folder": None}, {"place": None}, {"input_folder": None}):
        first, then = (folder.fingerprint_inputs(**linked | {"run": "my_run"} | change) for _ in range(2))
        assert (first,) != (then,), "nobody knows whether its photos have changed"


def test_bad_names_are_told_before_anything_runs(nodes: dict[str, Any]) -> None:
    """ComfyUI gives None for what comes from another node, and a list of it where a node takes lists."""
    save, folder, pictures = (nodes[f"BFR_{name}"] for name in ("SaveRestorer", "FacesFromFolder", "FacesFromImages"))
    for good in ("my_restorer", "old photos/album", None):
        assert save.validate_inputs(name=good) is True
        assert folder.validate_inputs(run=good) is True and pictures.validate_inputs(run=[good]) is True
    for bad, why in (
        ("faces\\old", "separate folders by /"),
        ("a:b", "is no name"),
        (" ", "is empty"),
        ("../a", "'..'"),
    ):
        said = [save.validate_inputs(name=bad), folder.validate_inputs(run=bad), pictures.validate_inputs(run=[bad])]
        assert all(isinstance(one, str) and why in one and "\n" not in one for one in said)


def test_a_restorer_of_another_size_than_the_faces_is_named(
    run: Run, models: tuple[Any, Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models[0].network, "size", 64)
    for node, inputs in (
        ("BFR_MakePseudoTargets", {"faces": pairs.faces, "prior": models[1]}),
        ("BFR_FinetuneRestorer", {"pairs": pairs, **TUNING}),
    ):
        with pytest.raises(ValueError, match="the faces are 32 pixels wide, but restorer takes 64; connect"):
            run(node, restorer=models[0], **inputs)


def test_a_run_is_found_again_where_one_before_it_was_deleted(
    run: Run, models: tuple[Any, Any], faces: Any, pairs: Any, nodes: dict[str, Any], host: Any
) -> None:
    runs, inputs = host.root / "output/bfr_runs", {"restorer": models[0]}

    def targets(seed: int) -> Any:
        return run("BFR_MakePseudoTargets", faces=faces, **inputs, prior=models[1], gate=0.0, seed=seed)[0]

    assert [targets(seed).faces.folder.name for seed in (3, 4)] == ["my_run_2", "my_run_3"]
    where = {"place": "input", "folder": "photos", "run": "my_run"}
    before = nodes["BFR_FacesFromFolder"].fingerprint_inputs(**where)
    assert targets(5).faces.folder.name == "my_run_4"
    assert nodes["BFR_FacesFromFolder"].fingerprint_inputs(**where) == before, "one more is no change of the others"
    shutil.rmtree(runs / "my_run_2")
    assert targets(4).faces.folder.name == "my_run_3" and not (runs / "my_run_2").exists()
    without = nodes["BFR_FacesFromFolder"].fingerprint_inputs(**where)
    assert without != before
    shutil.rmtree(runs / "my_run")
    again = run("BFR_FacesFromFolder", restorer=models[0], folder="photos", aligned=True)[0]
    assert again.folder.name == "my_run_3"
    assert targets_of_another(run, models, host) == "my_run", "what is new takes the first number that is free"


def targets_of_another(run: Run, models: tuple[Any, Any], host: Any) -> str:
    """The name of the run of faces that no run holds yet."""
    write_image(host.root / "input/other/face.png", torch.rand(3, 32, 32))
    return run("BFR_FacesFromFolder", restorer=models[0], folder="other", aligned=True)[0].folder.name


def test_a_list_of_pictures_is_a_row_of_targets(run: Run, models: tuple[Any, Any], faces: Any) -> None:
    pictures = [torch.rand(count, side, side, 3) for count, side in ((4, 32), (5, 64), (1, 32))]
    pairs, _, accepted, _, _ = run("BFR_TargetsFromImages", faces=faces, images=pictures, gate=0.0)
    assert accepted == 10
    _, names, files = pairs.opened()
    kept = [read_image(files[name]) for name in names.names]
    for own, wanted in zip(kept, (picture for some in pictures for picture in some), strict=True):
        assert torch.allclose(own.movedim(0, -1), wanted, atol=1 / 255)


def test_reports_come_out_whole_and_are_shown_in_part(run: Run, models: tuple[Any, Any], host: Any) -> None:
    for i in range(30):
        (host.root / "input/odd").mkdir(exist_ok=True)
        (host.root / f"input/odd/{i}.png").write_bytes(b"no picture")
    write_image(host.root / "input/odd/good.png", torch.rand(3, 32, 32))
    *_, report, _ = run("BFR_FacesFromFolder", restorer=models[0], folder="odd", aligned=True)
    assert len(report.splitlines()) == 32 and host.texts[-1].splitlines()[-1] == "... and 12 more"


def test_restorers_are_saved_in_comfyuis_own_folder(
    run: Run, models: tuple[Any, Any], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that extra_model_paths.yaml names for a kind that ComfyUI does not know stand before its own."""
    monkeypatch.setattr(sys.modules["folder_paths"], "models_dir", str(host.root / "models"))
    own, elsewhere = host.root / "models/facerestore_models", host.root / "elsewhere"
    host.model_folders["facerestore_models"] = [str(elsewhere / "facerestore_models"), str(own)]
    assert Path(run("BFR_SaveRestorer", restorer=models[0])[0]).parent == own
    assert str(own) in host.texts[-1]
    host.model_folders["checkpoints"].insert(0, str(elsewhere / "checkpoints"))
    assert Path(run("BFR_SaveRestorer", restorer=models[0])[0]).parent == elsewhere / "facerestore_models"


def test_the_pth_of_a_codeformer_is_named_so_and_others_are_cautioned_of(
    run: Run, models: tuple[Any, Any], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = host.root / "models/facerestore_models"
    run("BFR_SaveRestorer", restorer=models[0], name="other", also_pth=True)
    assert (folder / "other.pth").exists() and "ReActor reads .pth files of GFPGAN and CodeFormer only" in host.texts[
        -1
    ]
    monkeypatch.setattr(models[0].network, "architecture", "CodeFormer")
    for name in ("mine", "mine", "My_CodeFormer"):
        run("BFR_SaveRestorer", restorer=models[0], name=name, also_pth=True)
        assert "ReActor" not in host.texts[-1]
    made = {path.name for path in folder.glob("[mM]*")}
    assert made == {"mine.safetensors", "mine_codeformer.pth", "My_CodeFormer.safetensors", "My_CodeFormer.pth"}


def test_a_changed_photo_changes_the_fingerprint(faces: Any, nodes: dict[str, Any], host: Any) -> None:
    node, where = nodes["BFR_FacesFromFolder"], {"place": "input", "folder": "photos", "run": "my_run"}
    before = node.fingerprint_inputs(**where)
    write_image(host.root / "input/photos/face 0.png", torch.zeros(3, 32, 32))
    assert node.fingerprint_inputs(**where) != before


def test_a_handle_of_replaced_faces_is_refused(
    run: Run, models: tuple[Any, Any], pairs: Any, faces: Any, host: Any
) -> None:
    write_image(host.root / "input/other/face.png", torch.rand(3, 32, 32))
    named = run("BFR_FacesFromFolder", restorer=models[0], folder="photos", run="named", aligned=True)[0]
    run("BFR_FacesFromFolder", restorer=models[0], folder="other", run="named", aligned=True)
    with pytest.raises(ValueError, match="was filled with other faces since"):
        run("BFR_MakePseudoTargets", faces=named, restorer=models[0], prior=models[1], gate=0.0)


def test_other_photos_or_settings_make_a_new_run_beside_the_default_one(
    run: Run, models: tuple[Any, Any], pairs: Any, host: Any
) -> None:
    runs = host.root / "output/bfr_runs"
    before = {path: path.read_bytes() for path in (runs / "my_run").rglob("*") if path.is_file()}
    write_image(host.root / "input/other/face.png", torch.rand(3, 32, 32))
    pictures = torch.rand(2, 32, 32, 3)
    for _ in range(2):  # again each finds its own
        for other in ({"folder": "other"}, {"folder": "none", "place": "output", "input_folder": "other"}):
            made = run("BFR_FacesFromFolder", restorer=models[0], aligned=True, **other)[0]
            assert made.folder == runs / "my_run_2"
        for number, images in enumerate((pictures, 1 - pictures), 3):
            made = run("BFR_FacesFromImages", restorer=models[0], images=images, aligned=True)[0]
            assert made.folder == runs / f"my_run_{number}"
    assert {path: path.read_bytes() for path in (runs / "my_run").rglob("*") if path.is_file()} == before
    same = run("BFR_FacesFromFolder", restorer=models[0], folder="photos", aligned=True, min_face=20)[0]
    assert same.folder == runs / "my_run", "in aligned pictures no face is sought"
    assert run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **TUNING)[5] == str(runs / "my_run")


def test_other_settings_of_targets_or_tuning_make_a_new_run_beside_the_default_one(
    run: Run, models: tuple[Any, Any], faces: Any, pairs: Any, host: Any
) -> None:
    runs, inputs = host.root / "output/bfr_runs", {"restorer": models[0]}
    first = run("BFR_FinetuneRestorer", pairs=pairs, **inputs, **SEARCHING)
    before = load_file(runs / "my_run/restorer.safetensors")
    other = run("BFR_MakePseudoTargets", faces=faces, **inputs, prior=models[1], gate=0.0, seed=3)[0]
    assert other.faces.folder == runs / "my_run_2"
    for _ in range(2):  # again each finds its own
        more = [
            run("BFR_FinetuneRestorer", pairs=pairs, **inputs, **SEARCHING | change)[5] for change in ({}, {"lr": 2e-3})
        ]
        more += [run("BFR_FinetuneRestorer", pairs=other, **inputs, **SEARCHING)[5]]
        assert more == [str(runs / name) for name in ("my_run", "my_run_3", "my_run_2")]
    estimates = {(runs / name / "damage.json").stat().st_mtime_ns for name in ("my_run", "my_run_2", "my_run_3")}
    assert len(estimates) == 1, "the damage of the same faces is not estimated again"
    after = load_file(runs / "my_run/restorer.safetensors")
    assert first[5] == str(runs / "my_run") and all(torch.equal(before[name], after[name]) for name in before)
    assert run("BFR_FinetuneRestorer", pairs=pairs, **inputs, **SEARCHING | {"iterations": 8})[5] == first[5], "goes on"


def test_strangers_files_among_the_runs_and_models_stay(
    run: Run, models: tuple[Any, Any], host: Any, photos: Path
) -> None:
    shutil.copytree(photos, host.root / "input/photos")
    restorer, prior = models

    def everything(seed: int) -> None:
        where = {"folder": "photos", "run": "named", "aligned": True, "min_face": 20 + seed}
        faces = run("BFR_FacesFromFolder", restorer=restorer, **where)[0]
        made = run("BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, gate=0.0, seed=seed)[0]
        tuned = run("BFR_FinetuneRestorer", pairs=made, restorer=restorer, seed=seed, **SEARCHING)[0]
        run("BFR_SaveRestorer", restorer=tuned, also_pth=True)
        given = run("BFR_TargetsFromImages", faces=faces, images=torch.rand(10, 32, 32, 3), gate=0.0)[0]
        run("BFR_FinetuneRestorer", pairs=given, restorer=restorer, **SEARCHING)

    everything(1)
    folders = {p.parent for place in ("output", "models") for p in (host.root / place).rglob("*") if p.is_file()}
    strangers = [folder / name for folder in folders for name in ("holiday.png", "config_2.json")]
    for path in strangers:
        path.write_bytes(b"precious")
    everything(2)
    assert len(strangers) > 12 and all(path.read_bytes() == b"precious" for path in strangers)


def test_a_run_name_that_leads_to_files_of_others_is_refused(run: Run, models: tuple[Any, Any], host: Any) -> None:
    write_image(host.root / "input/photos/face.png", torch.rand(3, 32, 32))
    precious = host.root / "output/bfr_runs/mine/faces/holiday.png"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"precious")
    (precious.parents[1] / "letter.txt").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds files that this program did not make.*mine_2"):
        run("BFR_FacesFromFolder", restorer=models[0], folder="photos", run="mine", aligned=True)
    assert precious.read_bytes() == b"precious"


def test_any_graph_can_be_the_teacher(run: Run, models: tuple[Any, Any], photos: Path, host: Any) -> None:
    images = torch.rand(10, 32, 32, 3)
    faces, shown, number, report, _ = run(
        "BFR_FacesFromImages", restorer=models[0], images=images, aligned=True, count=10
    )
    assert number == 10 and report == "10 faces", "the run's own records are not told of"
    assert torch.allclose(shown, images, atol=1 / 255)
    again = run("BFR_FacesFromImages", restorer=models[0], images=images, aligned=True)[0]
    assert again == faces, "the same pictures are the same faces"
    with pytest.raises(ValueError, match="one picture for each face"):
        run("BFR_TargetsFromImages", faces=faces, images=images, first=1)
    run("BFR_TargetsFromImages", faces=faces, images=shown[:5].repeat(1, 2, 2, 1), gate=0.0)
    pairs, _, accepted, refused, _ = run("BFR_TargetsFromImages", faces=faces, images=shown[5:], first=5, gate=0.0)
    assert (accepted, refused) == (10, 0)
    longer = TUNING | {"iterations": 10**6, "minutes_this_run": 0.005}
    first = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **longer)[1]
    again = run("BFR_TargetsFromImages", faces=faces, images=shown[5:], first=5, gate=0.0)[0]
    assert again == pairs, "the same pictures are the same targets"
    then = run("BFR_FinetuneRestorer", pairs=again, restorer=models[0], **longer)[1]
    assert int(then.split()[3]) > int(first.split()[3]) > 0, "the tuning went on"
    changed = run("BFR_TargetsFromImages", faces=faces, images=shown[5:].flip(2), first=5, gate=0.0)[0]
    assert changed != pairs


def test_without_known_answers_and_sharp_faces_no_damage_is_searched_for(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*given: Any, **more: Any) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(sys.modules["any-name.bfr_core.adaptation.folder_damage"], "closest_damage", searched)
    restorer, prior = models
    targets = {"faces": faces, "restorer": restorer, "prior": prior, "gate": 0.0, "known_answers": False}
    sampler = {"start": 8, "calls": 2, "hold_until": 0, "factor": 2}
    pairs = run("BFR_MakePseudoTargets", settings="as set below", **targets, **sampler)[0]
    run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, **TUNING)
    assert not (host.root / "output/bfr_runs/my_run/damage.json").exists()
    with pytest.raises(AssertionError, match="searched"):
        run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, **SEARCHING)
    with pytest.raises(AssertionError, match="searched"):  # these targets have a run of their own
        run("BFR_MakePseudoTargets", settings="as set below", **targets | {"known_answers": True}, **sampler)
    with pytest.raises(AssertionError, match="searched"):  # what is set below does not count
        run("BFR_MakePseudoTargets", settings="recommended", **targets)


def test_a_damage_that_was_estimated_in_any_run_beside_is_not_estimated_again(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any
) -> None:
    targets = {"faces": faces, "restorer": models[0], "prior": models[1], "gate": 0.0, "settings": "as set below"}
    targets |= {"start": 8, "calls": 2, "hold_until": 0, "factor": 2}
    run("BFR_MakePseudoTargets", known_answers=False, **targets)  # in the first run there is none
    for seed in (1, 2, 3):
        run("BFR_MakePseudoTargets", known_answers=True, seed=seed, **targets)
    runs = host.root / "output/bfr_runs"
    assert not (runs / "my_run/damage.json").exists()
    estimates = {(runs / f"my_run_{n}/damage.json").stat().st_mtime_ns for n in (2, 3, 4)}
    assert len(estimates) == 1 and not (runs / "my_run_5").exists()


def test_a_restorer_larger_than_the_sharp_faces_does_not_learn_from_them_whatever_the_widget_says(pack: Any) -> None:
    made = sys.modules["any-name.nodes.adapt"].tuning_config
    small, large = (SimpleNamespace(size=size, not_tuned_because="", tuned_by_codes=False, architecture="RestoreFormer")
                    for size in (256, 512))  # fmt: skip
    assert made(small, 0, False, {"sharp": 0.5, "lr": 1e-4}).sharp == 0.5
    config = made(large, 0, False, {"sharp": 0.9, "lr": 1e-4})
    assert config.sharp == 0 and config.lr == 1e-4, "the other widgets count"


def test_where_the_tuning_searches_for_the_damage_it_says_so_and_looks_whether_it_is_cancelled(
    run: Run, models: tuple[Any, Any], faces: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = run("BFR_TargetsFromImages", faces=faces, images=torch.rand(10, 32, 32, 3), gate=0.0)[0]
    module, looks = sys.modules["any-name.bfr_core.adaptation.folder_damage"], []
    search = module.closest_damage

    def watched(*given: Any, **more: Any) -> Any:
        looks.append(host.looks)
        found = search(*given, **more)
        looks.append(host.looks)
        return found

    monkeypatch.setattr(module, "closest_damage", watched)
    monkeypatch.setattr(module, "TRIALS", 3 * sys.modules["any-name.bfr_core.damage.search"].POPULATION)
    pace = sys.modules["any-name.bfr_core.adaptation.forecast"].Pace(trial=10.0)
    monkeypatch.setattr(sys.modules["any-name.nodes.adapt"], "measure_search", lambda lq: pace)
    host.texts.clear()
    run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **SEARCHING)
    assert "less than a minute" not in host.texts[1], "the trials are reckoned with"
    assert len(looks) == 2 and looks[1] - looks[0] >= 3, "one look a generation"


def test_pictures_that_are_brought_as_targets_are_at_least_half_of_the_answers(
    run: Run, models: tuple[Any, Any], faces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, shares = sys.modules["any-name.nodes.adapt"], []
    config_of = module.tuning_config

    def watched(*given: Any, **more: Any) -> Any:
        shares.append(config_of(*given[:3], {}, "recommended", **more).sharp)
        return config_of(*given, **more)

    monkeypatch.setattr(module, "tuning_config", watched)
    brought = run("BFR_TargetsFromImages", faces=faces, images=torch.rand(10, 32, 32, 3), gate=0.0)[0]
    run("BFR_FinetuneRestorer", pairs=brought, restorer=models[0], **TUNING)
    drawn = run("BFR_MakePseudoTargets", faces=faces, restorer=models[0], prior=models[1], gate=0.0)[0]
    run("BFR_FinetuneRestorer", pairs=drawn, restorer=models[0], **TUNING)
    assert shares == [0.5, 1.0]


def test_a_missing_prior_is_said(run: Run, models: tuple[Any, Any], faces: Any) -> None:
    pairs = run("BFR_TargetsFromImages", faces=faces, images=torch.rand(10, 32, 32, 3), gate=0.0)[0]
    with pytest.raises(ValueError, match="needs a prior: connect one"):
        run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **TUNING | {"perceptual": 0.1})


def test_perceptual_loss_takes_the_prior(run: Run, models: tuple[Any, Any], pairs: Any) -> None:
    restorer, prior = models
    settings = TUNING | {"perceptual": 0.1, "iterations": 2}
    assert run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, prior=prior, **settings)[2]


@pytest.fixture
def mixed_pairs(
    run: Run, models: tuple[Any, Any], host: Any, mixed_photos: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Of a folder of two damages, in the run "mixed"; drawn once, as `pairs`."""
    folder, kept = host.root / "output/bfr_runs/mixed", drawn.with_name("mixed")
    if kept.is_dir():
        shutil.copytree(kept, folder)
    monkeypatch.setattr(sys.modules["any-name.bfr_core.adaptation.tuning"], "judged_on_faces", judged)
    shutil.copytree(mixed_photos, host.root / "input/two_damages")
    faces = run("BFR_FacesFromFolder", restorer=models[0], folder="two_damages", run="mixed", aligned=True)[0]
    made = run("BFR_MakePseudoTargets", faces=faces, restorer=models[0], prior=models[1], gate=0.0, seed=5)[0]
    if not kept.is_dir():
        shutil.copytree(folder, kept)
    return made


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Any]:
    """Of the first tuning of `mixed_pairs` that was not stopped: how often it looked for a cancel, and its weights."""
    return {}


@pytest.fixture
def whole(run: Run, models: tuple[Any, Any], mixed_pairs: Any, host: Any, unbroken: dict[str, Any]) -> Run:
    """Tunes on `mixed_pairs` without a stop."""

    def tune() -> tuple:
        host.looks = 0
        made = run("BFR_FinetuneRestorer", pairs=mixed_pairs, restorer=models[0], mixed=True, **TUNING)
        unbroken.update(looks=host.looks, weights=list(made[0].network.module.state_dict().values()))
        return made

    return tune


def test_mixed_gives_a_restorer_that_sends_each_face_to_its_own(
    run: Run, models: tuple[Any, Any], mixed_pairs: Any, mixed_photos: Path, whole: Run, host: Any
) -> None:
    tuned, verdict, finished, curve, shown, folder, adopt, *_ = whole()
    assert finished and adopt is True and curve.shape == (1, 2 * 256, 512, 3) and shown.shape == (1, 8 * 32, 3 * 32, 3)
    assert verdict.startswith("Adopt. 2 groups of damages were found.")
    assert f"group 2: {BLURRED} faces, keep the base: worse" in verdict.splitlines()
    config = json.loads((Path(folder) / "groups/1/config.json").read_text())
    assert config["finetune"]["iterations"] == TUNING["iterations"] and config["finetune"]["prior"] == "prior"
    assert config["targets"]["seed"] == 5, "targets are drawn as Make Pseudo Targets was told to"
    lq = torch.stack([read_image(mixed_photos / f"{kind} 0.png") for kind in ("sensor", "motion_jpeg")])
    own = load_restorer(Path(folder) / "groups/1/restorer.safetensors").at_precision("auto")
    base = models[0].network.at_precision("auto")
    wanted = torch.cat([own.restore(lq[:1]), base.restore(lq[1:])])
    assert not torch.allclose(wanted[:1], base.restore(lq[:1]), atol=1e-4)
    saved = run("BFR_SaveRestorer", restorer=tuned, name="below/both")[0]
    assert Path(saved).name == "both.safetensors"
    loaded = run("BFR_LoadRestorer", restorer="below/both.safetensors")[0]
    for restorer in (tuned, loaded):
        made = run("BFR_RestoreFaces", restorer=restorer, images=lq.movedim(1, -1), aligned=True)[0]
        assert torch.allclose(made.movedim(-1, 1), wanted, atol=1e-4)
    half = run("BFR_SaveRestorer", restorer=loaded, name="below/both", half=True)[0]
    assert half == saved.replace("both.", "both_2."), "a taken name gets a number"
    path = Path(run("BFR_SaveRestorer", restorer=tuned, name="pth", also_pth=True)[0])
    assert path.name == "pth.safetensors" and path.is_file() and not path.with_suffix(".pth").exists()
    assert "also_pth: no .pth is written" in host.texts[-1]
    with pytest.raises(ValueError, match="is several restorers in one"):
        run("BFR_FinetuneRestorer", pairs=mixed_pairs, restorer=tuned, **TUNING)


def test_a_restorer_of_groups_is_saved_once(run: Run, models: tuple[Any, Any], host: Any) -> None:
    from bfr_core.damage.groups import FEATURES, DamageGroups
    from bfr_core.restorers.routed import save_groups

    folder = host.root / "models/facerestore_models"
    groups = DamageGroups(torch.eye(FEATURES), torch.zeros(2, FEATURES), torch.ones(2))
    save_groups(
        folder / "both.safetensors", groups, folder / "tiny.safetensors", [folder / "tiny.safetensors", None], {}
    )
    restorer = run("BFR_LoadRestorer", restorer="both.safetensors")[0]

    def save(name: str = "grp", **how: bool) -> str:
        return Path(run("BFR_SaveRestorer", restorer=restorer, name=name, **how)[0]).name

    def there() -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("grp*"))

    assert [save(), save(), save()] == ["grp.safetensors"] * 3 and there() == ["grp.groups", "grp.safetensors"]
    assert sorted(path.name for path in (folder / "grp.groups").glob("[!.]*")) == ["1.safetensors", "base.safetensors"]
    assert [save(half=True), save(half=True)] == ["grp_2.safetensors"] * 2, "something else, and that once"
    (folder / "grp.groups/1.safetensors").write_bytes(b"mine")
    assert [save(), save()] == ["grp_3.safetensors"] * 2, "the first one can no longer be loaded"
    assert there() == sorted(f"grp{n}.{end}" for n in ("", "_2", "_3") for end in ("groups", "safetensors"))
    assert (folder / "grp.groups/1.safetensors").read_bytes() == b"mine"


def test_mixed_goes_on_after_a_cancel_and_after_a_pause(
    run: Run, models: tuple[Any, Any], mixed_pairs: Any, host: Any, whole: Run, unbroken: dict[str, Any]
) -> None:
    def tune(**more: Any) -> tuple:
        return run("BFR_FinetuneRestorer", pairs=mixed_pairs, restorer=models[0], mixed=True, **TUNING | more)

    longer = {"iterations": 10**6, "minutes_this_run": 0.005}
    steps = []
    for _ in range(2):
        _, verdict, finished, *_ = tune(**longer)
        steps.append(int(verdict.split()[3]))
        assert not finished and verdict.startswith("Paused at step ") and " of 2000000;" in verdict
    assert 0 < steps[0] < steps[1]
    folder = host.root / "output/bfr_runs/mixed"
    shutil.rmtree(folder / "groups")
    if not unbroken:  # this test runs alone
        whole()
        shutil.rmtree(folder / "groups")
    (folder / "groups.safetensors").unlink()
    host.looks, host.cancel_at = 0, unbroken["looks"] * 3 // 4  # in the second group
    with pytest.raises(Exception, match="^$") as caught:
        tune()
    assert type(caught.value).__name__ == "Cancelled" and not (folder / "groups.safetensors").exists()
    assert (folder / "groups/2/photos").is_dir()
    resumed = tune()[0]
    for a, b in zip(unbroken["weights"], resumed.network.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_mixed_with_one_damage_tunes_as_usual(run: Run, models: tuple[Any, Any], pairs: Any) -> None:
    tuned, verdict, *_ = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], mixed=True, **TUNING)
    assert not tuned.network.not_tuned_because and verdict.endswith(
        "Only one kind of damage was found: one adaptation serves all faces."
    )
    usual = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **TUNING)[0]
    for a, b in zip(*(r.network.module.state_dict().values() for r in (tuned, usual)), strict=True):
        assert torch.equal(a, b)


def test_mixed_refuses_targets_of_other_nodes(run: Run, models: tuple[Any, Any], faces: Any) -> None:
    pairs = run("BFR_TargetsFromImages", faces=faces, images=torch.rand(10, 32, 32, 3), gate=0.0)[0]
    with pytest.raises(ValueError, match="came from Targets from Images; connect Make Pseudo Targets"):
        run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], mixed=True, **TUNING)


def test_saved_restorer_loads_and_foreign_files_are_kept(
    run: Run, models: tuple[Any, Any], pairs: Any, host: Any
) -> None:
    tuned = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], low_memory=True, **TUNING)[0]
    assert '"trainable": "lora"' in tuned.network.metadata["finetune"], "low_memory comes after what is set"
    path = Path(run("BFR_SaveRestorer", restorer=tuned, name="below/mine", half=False)[0])
    assert path == host.root / "models/facerestore_models/below/mine.safetensors"
    loaded = load_restorer(path)
    for a, b in zip(loaded.module.state_dict().values(), tuned.network.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert Path(run("BFR_SaveRestorer", restorer=tuned, name="below/mine")[0]) == path, "it is there already"
    half = Path(run("BFR_SaveRestorer", restorer=tuned, name="below/mine", half=True)[0])
    assert half == path.with_name("mine_2.safetensors")
    models_folder = host.root / "models/facerestore_models"
    before = (models_folder / "tiny.safetensors").read_bytes()
    assert Path(run("BFR_SaveRestorer", restorer=tuned, name="tiny")[0]) == models_folder / "tiny_2.safetensors"
    assert (models_folder / "tiny.safetensors").read_bytes() == before
    (models_folder / "codeformer.pth").write_bytes(b"precious")
    saved = run("BFR_SaveRestorer", restorer=tuned, name="codeformer", also_pth=True)[0]
    assert Path(saved) == models_folder / "codeformer_2.safetensors" and (models_folder / "codeformer_2.pth").is_file()
    assert (models_folder / "codeformer.pth").read_bytes() == b"precious"
    before = sorted(path.name for path in models_folder.iterdir())
    assert run("BFR_SaveRestorer", restorer=tuned, name="codeformer", also_pth=True)[0] == saved, "the same graph again"
    assert sorted(path.name for path in models_folder.iterdir()) == before


def test_a_missing_package_is_named(
    run: Run, host: Any, models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match=r"the package spandrel is missing: run this pack's install.py"):
        run("BFR_LoadRestorer", restorer="tiny.safetensors")


def test_both_nodes_take_the_published_recipe(
    run: Run, models: tuple[Any, Any], faces: Any, pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restorer, prior = models
    node, published = sys.modules["any-name.nodes.adapt"], sys.modules["any-name.bfr_core.adaptation.published"]
    monkeypatch.setattr(published, "find_vgg", lambda: Path("vgg"))
    seen: dict[str, Any] = {}

    def stop(name: str, place: int) -> Callable[..., None]:
        def act(*given: Any, **_: Any) -> None:
            seen[name] = given[place]
            seen["good"] = given[-1]
            raise ValueError("seen")

        return act

    monkeypatch.setattr(node, "make_targets", stop("targets", 4))
    monkeypatch.setattr(node, "learn", stop("finetune", 5))
    wanted = published.recipe_of(restorer.network, "published")
    with pytest.raises(ValueError, match="seen"):
        run("BFR_MakePseudoTargets", faces=faces, restorer=restorer, prior=prior, settings="published", gate=4.0)
    assert seen["targets"] == wanted and wanted.gate.limit == 0
    # LPIPS's file is only pretended to be there, so that what is said before the tuning cannot be measured.
    monkeypatch.setattr(node, "perceptual_term", lambda *_: None)
    monkeypatch.setattr(node, "measure_tuning", lambda *_: None)
    monkeypatch.setattr(node, "forecast", lambda *_, **__: SimpleNamespace(lines=list))
    with pytest.raises(ValueError, match="seen"):
        run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, settings="published", real=faces)
    assert seen["finetune"] == wanted.finetune
    assert len(seen["good"].real) == 10 and not seen["good"].files and seen["good"].real_fingerprint
    with pytest.raises(ValueError, match="real is for one restorer"):
        run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, real=faces, mixed=True)
    monkeypatch.setattr(published, "find_vgg", lambda: None)
    with pytest.raises(ValueError, match="recipe published: perceptual must be LPIPS here"):
        run("BFR_FinetuneRestorer", pairs=pairs, restorer=restorer, settings="published")


VERDICT = {"verdict": "keep_base", "base": "b.pth", "base_sha256": "00"}


def test_a_run_that_keeps_the_base_is_saved_with_a_caution_or_refused(
    run: Run, models: tuple[Any, Any], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = models[0].network
    monkeypatch.setattr(network, "metadata", {**network.metadata, **VERDICT})
    (path,) = run("BFR_SaveRestorer", restorer=models[0], name="mine", only_adopted=True)
    assert type(path).__name__ == "Blocker", "the rest of the graph goes on"
    assert host.texts[-1].startswith("not saved: only_adopted is on. ")
    assert "keep the base" in host.texts[-1] and "b.pth" in host.texts[-1]
    assert not (host.root / "models/facerestore_models/mine.safetensors").exists()
    run("BFR_SaveRestorer", restorer=models[0], name="mine")
    saved, caution = host.texts[-1].splitlines()
    folder = host.root / "models/facerestore_models"
    assert saved == f"saved: mine.safetensors in {folder}" and "keep the base" in caution
    monkeypatch.setattr(network, "metadata", {**network.metadata, "verdict": "adopt"})
    run("BFR_SaveRestorer", restorer=models[0], name="mine", only_adopted=True)
    assert host.texts[-1] == f"saved: mine_2.safetensors in {folder}", "a taken name gets a number"


def test_adopt_is_false_for_every_other_verdict(
    run: Run, models: tuple[Any, Any], pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = sys.modules["any-name.nodes.adapt"].read_table
    for verdict in ("adopt", "keep_base", "cannot_tell", "not_judged"):
        said = {"verdict": verdict, "verdict_sentence": "So it is."}
        monkeypatch.setattr(sys.modules["any-name.nodes.adapt"], "read_table", lambda path, s=said: report(path) | s)
        outputs = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **TUNING)
        assert outputs[6] is (verdict == "adopt")


def test_a_restorer_from_a_file_of_changes_is_saved_whole(run: Run, models: tuple[Any, Any], host: Any) -> None:
    folder = host.root / "models/facerestore_models"
    base = load_restorer(folder / "tiny.safetensors")
    tuned = load_restorer(folder / "tiny.safetensors")
    with torch.no_grad():
        tuned.module.get_parameter("ending.bias").add_(0.1)
    save_change(folder / "change.safetensors", base, tuned, 2, {"verdict": "adopt"})
    loaded = run("BFR_LoadRestorer", restorer="change.safetensors")[0]
    run("BFR_SaveRestorer", restorer=loaded, name="whole", also_pth=True)
    for name in ("whole.safetensors", "whole.pth"):
        again = run("BFR_LoadRestorer", restorer=name)[0]
        for a, b in zip(*(r.network.module.state_dict().values() for r in (again, loaded)), strict=True):
            assert torch.equal(a, b)


def test_settings_of_the_search_change_nothing_of_faces_that_are_the_same(
    run: Run, models: tuple[Any, Any], faces: Any
) -> None:
    images = torch.rand(10, 32, 32, 3)
    pairs = run("BFR_TargetsFromImages", faces=faces, images=images, gate=0.0)[0]
    longer = TUNING | {"iterations": 10**6, "minutes_this_run": 0.005}
    first = run("BFR_FinetuneRestorer", pairs=pairs, restorer=models[0], **longer)[1]
    searched = {"threshold": 0.7, "detector": "embedded", "min_face": 16}
    again = run("BFR_FacesFromFolder", restorer=models[0], folder="photos", aligned=True, **searched)[0]
    assert again == faces
    same = run("BFR_TargetsFromImages", faces=again, images=images, gate=0.0)[0]
    assert same == pairs
    then = run("BFR_FinetuneRestorer", pairs=same, restorer=models[0], **longer)[1]
    assert int(then.split()[3]) > int(first.split()[3]) > 0, "the tuning went on"


def test_a_handle_is_of_the_faces_and_not_of_how_they_were_found(
    run: Run, models: tuple[Any, Any], host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lambda *_: lambda photo: [Face(template(32) + 8)]  # noqa: E731
    monkeypatch.setattr(sys.modules["any-name.bfr_core.faces.detect"], "load_detector", found)
    write_image(host.root / "input/photos/a.png", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)))

    def found_with(threshold: float, name: str) -> Any:
        return run("BFR_FacesFromFolder", restorer=models[0], folder="photos", run=name, threshold=threshold)[0]

    made = [found_with(threshold, "named") for threshold in (0.5, 0.6)]
    assert made[0] == made[1] and len(made[0].opened()[1]) == 1
    beside = [found_with(threshold, "my_run") for threshold in (0.5, 0.6, 0.5)]
    assert {one.folder.name for one in beside} == {"my_run"}, "what was made of the same faces is not made again"
    assert {one.fingerprint for one in [*made, *beside]} == {made[0].fingerprint}
    write_image(host.root / "input/photos/b.png", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert found_with(0.6, "my_run").folder.name == "my_run_2", "other faces leave those of another run as they are"
