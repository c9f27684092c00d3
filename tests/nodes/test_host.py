"""The pack in a real ComfyUI: started, queried, given a graph, cancelled, resumed.

Where it is looked for, see the fixture `comfy`.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from PIL import Image

from tests.two_damages import BLURRED, NOISY, put

pytestmark = pytest.mark.host
CANCEL_SECONDS = 20.0  # one network call on a busy machine is well below it


def graph(run: str, iterations: int = 6, search: bool = False, **tuning: Any) -> dict[str, Any]:
    """The tour: embedded models, a folder of ten faces, tuned, saved, used on a portrait.

    search: whether the damage of the faces is searched for, which takes minutes.
    """
    tuned = {
        "pairs": ["targets", 0], "restorer": ["restorer", 0], "minutes_this_run": 0.0, "seed": 0, "low_memory": False,
        "settings": "as set below", "iterations": iterations, "batch_size": 2, "micro_batch": 2, "lr": 1e-4,
        "perceptual": 0.0, "adversarial": 0.0, "anchor": 0.0, "transplant": 0.0, "sharp": 0.9 if search else 0.0,
    }  # fmt: skip
    faces = {
        "restorer": ["restorer", 0], "place": "input", "folder": "faces", "run": run, "aligned": True,
        "detector": "embedded", "threshold": 0.5, "min_face": 32, "first": 0, "count": 4,
    }  # fmt: skip
    targets = {
        "faces": ["faces", 0], "restorer": ["restorer", 0], "prior": ["prior", 0], "seed": 0, "gate": 0.0,
        "settings": "as set below", "sampler": "fast", "calls": 3, "start": 16, "hold_until": 2, "factor": 2,
        "batch_size": 8, "known_answers": search,
    }  # fmt: skip
    restore = {
        "restorer": ["tune", 0], "images": ["photo", 0], "aligned": False, "detector": "embedded", "threshold": 0.5,
        "faces": "largest", "numbers": "1", "min_face": 16, "skip_sharp": 0.0, "fidelity": 0.5, "blend": 1.0,
        "mask": "square", "batch_size": 8,
    }  # fmt: skip
    nodes = {
        "restorer": ("BFR_LoadRestorer", {"restorer": "embedded"}),
        "prior": ("BFR_LoadPrior", {"prior": "embedded"}),
        "faces": ("BFR_FacesFromFolder", faces),
        "targets": ("BFR_MakePseudoTargets", targets),
        "tune": ("BFR_FinetuneRestorer", tuned | tuning),
        "save": ("BFR_SaveRestorer", {"restorer": ["tune", 0], "name": run, "half": False, "also_pth": False}),
        "photo": ("LoadImage", {"image": "portrait.png"}),
        "restore": ("BFR_RestoreFaces", restore),
        "shown": ("PreviewImage", {"images": ["restore", 0]}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_every_node_is_there(comfy: Any) -> None:
    found = {name: info for name, info in comfy.get("/object_info").items() if name.startswith("BFR_")}
    assert len(found) == 14
    threshold = found["BFR_RestoreFaces"]["input"]["required"]["threshold"][1]
    assert threshold["advanced"] is True, "what experts use is hidden until it is asked for"
    for info in found.values():
        sockets = [*info["input"].get("required", {}).values(), *info["input"].get("optional", {}).values()]
        assert all(options["tooltip"] for _, options in sockets)
        assert info["category"] == "BFR Adapt" and info["display_name"].endswith("(BFR)")
    assert "IMPORT FAILED" not in comfy.log.read_text()


def test_a_graph_runs_and_an_unchanged_one_runs_nothing_again(comfy: Any) -> None:
    wanted = graph("whole", search=True)
    result = comfy.run(wanted)
    assert result["status"]["status_str"] == "success", result["messages"]
    outputs = result["outputs"]
    assert outputs["tune"]["text"][0].startswith(("Adopt", "Keep the base", "Cannot tell"))
    assert outputs["targets"]["text"][0].startswith("10 targets are fit to learn from, 0 are refused")
    assert "1 face found, 1 restored, 0 skipped" in outputs["restore"]["text"][0].splitlines()
    folder = comfy.base / "output/bfr_runs/whole"
    assert json.loads((folder / "report.json").read_text())["verdict"] in ("adopt", "keep_base", "cannot_tell")
    assert (comfy.base / "models/facerestore_models/whole.safetensors").is_file()
    again = comfy.run(wanted)
    assert set(again["messages"]["execution_cached"]["nodes"]) == set(wanted)
    listed = comfy.get("/object_info/BFR_LoadRestorer")["BFR_LoadRestorer"]["input"]["required"]["restorer"]
    assert "whole.safetensors" in json.dumps(listed), "the saved restorer can be chosen"


def test_cancelled_midway_the_same_graph_goes_on(comfy: Any) -> None:
    folder = comfy.base / "output/bfr_runs/cancelled"
    result, seconds = comfy.cancelled(graph("cancelled", iterations=30), folder)
    assert "execution_interrupted" in result["messages"] and seconds < CANCEL_SECONDS
    assert (folder / "checkpoints/last.pt").is_file() and not (folder / "report.json").exists()
    result = comfy.run(graph("cancelled", iterations=30))
    assert result["status"]["status_str"] == "success", result["messages"]
    assert "resumed at step" in (folder / "log.txt").read_text()


def test_what_others_changed_is_seen_and_what_nobody_changed_is_not_run_again(comfy: Any) -> None:
    """Under the name that runs have by default, where other settings make another run beside it."""

    def ran(**settings: Any) -> set[str]:
        wanted = graph("my_run", iterations=2)
        for name, value in settings.items():
            wanted["targets" if name == "seed" else "tune"]["inputs"][name] = value
        result = comfy.run(wanted)
        assert result["status"]["status_str"] == "success", result["messages"]
        return set(wanted) - set(result["messages"]["execution_cached"]["nodes"])

    folder = comfy.base / "output/bfr_runs/my_run"
    after_faces = {"targets", "tune", "save", "restore", "shown"}
    assert {"faces", *after_faces} <= ran() and ran() == set()
    assert ran(seed=1) == after_faces and ran(seed=1) == set(), "another run was made beside it"
    assert ran() == after_faces and ran() == set(), "ComfyUI keeps what belongs to the last graph alone"
    target = next(path for path in sorted((folder / "targets").glob("*.png")))
    Image.new("RGB", (256, 256)).save(target)
    assert ran() == after_faces and ran() == set()
    shutil.rmtree(folder / "faces")
    assert ran() == {"faces", *after_faces} and ran() == set()
    (comfy.base / "models/facerestore_models/my_run.safetensors").unlink()
    assert ran() == {"save"}


def test_a_pause_goes_on_when_queued_again(comfy: Any) -> None:
    paused = graph("paused", iterations=8, minutes_this_run=0.03)
    steps = []
    for _ in range(30):
        result = comfy.run(paused)
        assert result["status"]["status_str"] == "success", result["messages"]
        text = result["outputs"]["tune"]["text"][0]
        if not text.startswith("Paused at step "):
            break
        steps.append(int(text.split()[3]))
    assert steps and steps == sorted(set(steps)), "each queueing went on"
    assert text.startswith(("Adopt", "Keep the base", "Cannot tell"))


def test_faces_of_two_damages_give_a_restorer_for_each(comfy: Any) -> None:
    photos = put(put(comfy.base / "input/mixed", "sensor", NOISY, 0), "motion_jpeg", BLURRED, 1)
    wanted = graph("mixed", iterations=3, mixed=True)
    wanted["faces"]["inputs"]["folder"] = photos.name
    result = comfy.run(wanted)
    assert result["status"]["status_str"] == "success", result["messages"]
    first, *lines = result["outputs"]["tune"]["text"][0].splitlines()
    assert "2 groups of damages were found" in first and lines[0].startswith("group 1: ")
    saved = comfy.base / "models/facerestore_models"
    assert (saved / "mixed.safetensors").is_file() and (saved / "mixed.groups/base.safetensors").is_file()
    wanted["restorer"]["inputs"]["restorer"] = "mixed.safetensors"
    error = comfy.run(wanted)["messages"]["execution_error"]
    assert "is several restorers in one" in error["exception_message"]


def test_a_video_is_restored_frame_by_frame_and_goes_on_after_a_stop(comfy: Any) -> None:
    """Ten frames of one portrait: repeated, restored as a video, and boxes of ComfyUI's own kind where it has them."""
    restore = graph("video")["restore"]["inputs"] | {"restorer": ["restorer", 0], "images": ["frames", 0]}
    video = {
        "restorer": {"class_type": "BFR_LoadRestorer", "inputs": {"restorer": "embedded"}},
        "photo": {"class_type": "LoadImage", "inputs": {"image": "portrait.png"}},
        "frames": {"class_type": "RepeatImageBatch", "inputs": {"image": ["photo", 0], "amount": 10}},
        "restore": {"class_type": "BFR_RestoreFaces", "inputs": restore | {"video": True, "faces": "all"}},
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["restore", 3]}},
    }
    result = comfy.run(video)
    assert result["status"]["status_str"] == "success", result["messages"]
    assert "10 faces found, 10 restored, 0 skipped" in result["outputs"]["restore"]["text"][0].splitlines()
    assert len(result["outputs"]["restore"]["images"]) <= 9, "not every frame is written as a temporary picture"
    assert not list((comfy.base / "temp").glob("bfr_frames/*")), "what was kept to go on with is gone"
    if "PrimitiveBoundingBox" not in comfy.get("/object_info"):
        return
    box = {"x": 155, "y": 40, "width": 130, "height": 160}
    video["box"] = {"class_type": "PrimitiveBoundingBox", "inputs": box}
    video["restore"]["inputs"] |= {"bboxes": ["box", 0], "video": False}
    result = comfy.run(video)
    assert result["status"]["status_str"] == "success", result["messages"]
    assert "10 faces found, 10 restored, 0 skipped" in result["outputs"]["restore"]["text"][0].splitlines()


def test_a_strangers_workflow_reads_nothing_outside(comfy: Any) -> None:
    for folder in ("/etc", "../..", "C:\\Windows"):
        bad = graph("stranger")
        bad["faces"]["inputs"]["folder"] = folder
        error = comfy.run(bad)["messages"]["execution_error"]
        assert error["node_type"] == "BFR_FacesFromFolder" and error["exception_type"] == "ValueError"
        assert "path" in error["exception_message"] or "leads out" in error["exception_message"]
    assert not (comfy.base / "output/bfr_runs/stranger").exists()


def test_where_packages_are_missing_the_rest_works(bare_comfy: Any) -> None:
    said = [line for line in bare_comfy.log.read_text().splitlines() if "BFR Adapt" in line]
    assert len(said) == 1 and all(name in said[0] for name in ("facexlib", "diffusers", "spandrel")), said
    assert len([name for name in bare_comfy.get("/object_info") if name.startswith("BFR_")]) == 14
    lq = {"images": ["photo", 0], "kind": "sensor", "strength": 1.0, "seed": 0}
    works = {
        "photo": {"class_type": "LoadImage", "inputs": {"image": "portrait.png"}},
        "lq": {"class_type": "BFR_Degrade", "inputs": lq},
        "compare": {"class_type": "BFR_Compare", "inputs": {"restored": ["lq", 0], "clean": ["photo", 0], "rows": 1}},
    }
    assert bare_comfy.run(works)["status"]["status_str"] == "success"
    load = {"class_type": "BFR_LoadRestorer", "inputs": {"restorer": "embedded"}}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["load", 1]}}
    error = bare_comfy.run({"load": load, "shown": shown})["messages"]["execution_error"]
    assert error["exception_message"].strip().startswith("the package spandrel is missing: run this pack's install.py")


def test_a_list_of_pictures_is_one_folder_of_photos(comfy: Any) -> None:
    """ComfyUI calls a node once for each picture of a list, unless the node takes lists."""
    faces = {
        "restorer": ["restorer", 0], "images": ["listed", 0], "run": "listed", "aligned": True, "detector": "embedded",
        "threshold": 0.5, "min_face": 32, "first": 0, "count": 4,
    }  # fmt: skip
    nodes = {
        "restorer": ("BFR_LoadRestorer", {"restorer": "embedded"}),
        "photo": ("LoadImage", {"image": "portrait.png"}),
        "other": ("ImageInvert", {"image": ["photo", 0]}),
        "both": ("ImageBatch", {"image1": ["photo", 0], "image2": ["other", 0]}),
        "square": (
            "ImageScale",
            {"image": ["both", 0], "upscale_method": "area", "width": 64, "height": 64, "crop": "center"},
        ),
        "listed": ("RebatchImages", {"images": ["square", 0], "batch_size": 1}),
        "faces": ("BFR_FacesFromImages", faces),
    }
    result = comfy.run({name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()})
    assert result["status"]["status_str"] == "success", result["messages"]
    assert result["outputs"]["faces"]["text"][0].startswith("2 faces")
    assert len(list((comfy.base / "output/bfr_runs/listed/photos").glob("image_*.png"))) == 2
