"""The command line as its user meets it."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import load_file, save_file

from bfr_core import cli
from bfr_core.cli import progress
from bfr_core.cli.commands import build_parser, main
from bfr_core.cli.flags import OPTIONS, settings_from
from bfr_core.cli.inspection import inspect, inspect_picture
from bfr_core.diffusion import prior
from bfr_core.files.photos import list_images, look_through, read_image, write_image
from bfr_core.files.tensors import sha256_of
from bfr_core.restorers import load_restorer, save_restorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def quick(photos, tiny_restorer, tiny_prior):
    """Arguments of a quick adaptation, without the run folder."""
    return ["adapt", str(photos), "--aligned", "--restorer", str(tiny_restorer), "--prior", str(tiny_prior),
            "--calls", "2", "--batch-size", "4", "--micro-batch", "4", "--iterations", "8",
            "--precision", "float32", "--set", "finetune.sharp=0"]  # fmt: skip


class Made(NamedTuple):
    """An adaptation that several tests look at and none changes: its folder, and what the command printed."""

    run: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def made(quick, tmp_path_factory):
    run, out, err = tmp_path_factory.mktemp("made"), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main([*quick, "--run", str(run), "--json", "--export-pth"]) == 0
    return Made(run, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def lean(quick, tiny_restorer, tmp_path_factory):
    """An adaptation of low memory, with its base beside it, far from it; tests only look at it."""
    run = tmp_path_factory.mktemp("lean")
    far = ["--lr", "0.1", "--set", "finetune.held_out=0", "--set", "finetune.ema=0"]
    assert main([*quick, *far, "--low-memory", "--run", str(run)]) == 0
    shutil.copy(tiny_restorer, run)
    return run


def test_adapt_prints_a_summary_last(made):
    summary = json.loads(made.out.splitlines()[-1])
    report = json.loads((made.run / "report.json").read_text())
    assert summary["steps"] == 8 and summary["verdict"] == report["verdict"] in ("adopt", "keep_base", "cannot_tell")
    assert "damage of 3 faces that were not trained on" in report["verdict_sentence"]
    assert "<html" in (made.run / "report.html").read_text()


def test_before_it_starts_it_says_how_long_and_how_much_memory(quick, made, tmp_path, capsys):
    assert made.err.index("10 faces will take") < made.err.index("report:")
    shutil.copytree(made.run, tmp_path / "run")
    assert main([*quick, "--run", str(tmp_path / "run"), "--iterations", "9"]) == 0
    assert "will take" not in capsys.readouterr().err, "it goes on, and the bar says how long"


def test_a_first_look_shows_three_faces_and_stops(quick, tmp_path, capsys):
    assert main([*quick, "--run", str(tmp_path), "--first-look", "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    assert summary["report"] == str(tmp_path / "first_look" / "report.html") and summary["steps"] == 8
    assert summary["forecast"]["faces"] == 10 and sum(summary["forecast"]["seconds"].values()) > 0
    assert "about 10 faces will take" in said.err and "is no verdict" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["first_look"], "nothing of the adaptation itself"
    report = json.loads((tmp_path / "first_look" / "report.json").read_text())
    assert len(report["galleries"][0]["rows"]) == 3


def test_a_first_look_accounts_for_its_photos(quick, photos, tmp_path, capsys):
    """Of those that it searched, or of all, where the run has faces already."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    shutil.copytree(photos / "below", mine)
    (mine / "a torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    command = [*quick[:1], str(mine), *quick[2:], "--run", str(run), "--first-look", "--json"]
    for _ in range(2):
        assert main([*command, "--iterations", "2"]) == 1
        said = capsys.readouterr()
        files = {one["photo"]: one["status"] for one in json.loads(said.out.splitlines()[-1])["files"]}
        assert (
            files["a torn.png"] == "failed" and "1 failed; " in said.err and set(files.values()) == {"used", "failed"}
        )
        assert main(["faces", str(mine), *quick[2:5], "--run", str(run)]) == 1
    assert len(files) == 6


def test_the_stages_one_by_one_give_what_adapt_gives(made, photos, tiny_restorer, tiny_prior, tmp_path):
    networks = ["--restorer", str(tiny_restorer), "--prior", str(tiny_prior)]
    run = ["--run", str(tmp_path / "b")]
    assert main(["faces", str(photos), "--aligned", *networks[:2], *run]) == 0
    plain = ["--precision", "float32", "--set", "finetune.sharp=0"]
    assert main(["targets", "--calls", "2", *plain, *networks, *run]) == 0
    tuning = ["--batch-size", "4", "--micro-batch", "4", "--iterations", "8", *plain]
    assert main(["finetune", *tuning, *networks, *run]) == 0
    a, b = (load_file(folder / "restorer.safetensors") for folder in (made.run, tmp_path / "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_restorer_names_the_prior_that_drew_its_targets(photos, tiny_restorer, tiny_prior, tmp_path, capsys):
    """Its licence decides whether the restorer may be used commercially, whatever `finetune` is given for a prior."""
    bought = tmp_path / "bought"
    shutil.copytree(tiny_prior, bought)
    weights = next(bought.glob("*.safetensors"))
    save_file(load_file(weights), weights, {"licence": "CC BY-NC-SA 4.0"})
    restorer, run = ["--restorer", str(tiny_restorer)], ["--run", str(tmp_path / "run")]
    assert main(["faces", str(photos), "--aligned", *restorer, *run]) == 0
    assert main(["targets", "--calls", "2", "--prior", str(bought), *restorer, *run]) == 0
    quick = ["--iterations", "2", "--set", "finetune.sharp=0", *restorer, *run]
    capsys.readouterr()
    assert main(["finetune", "--prior", str(tiny_prior), *quick]) == 2
    assert "did not draw the targets of this run, bought did; give that one" in capsys.readouterr().err
    assert main(["finetune", "--gate", "0.5", *quick]) == 2
    assert "--gate: is for targets that --targets brings" in capsys.readouterr().err
    assert main(["finetune", "--set", "finetune.perceptual=0", *quick]) == 0
    assert load_restorer(tmp_path / "run/restorer.safetensors").metadata["prior_licence"] == "CC BY-NC-SA 4.0"
    assert main(["finetune", "--prior", str(bought), *quick]) == 0
    assert load_restorer(tmp_path / "run/restorer.safetensors").metadata["prior_licence"] == "CC BY-NC-SA 4.0"


def test_a_named_file_of_another_source_is_not_overwritten(made, photos, tiny_restorer, tmp_path):
    def sums() -> dict[str, str]:
        return {path.name: sha256_of(path) for path in tmp_path.glob("[xt]*")}

    out = str(tmp_path / "x.safetensors")
    for source in (str(tiny_restorer), str(made.run / "restorer.safetensors"), str(tiny_restorer)):
        assert main(["export", source, "--out", out]) == 0
    assert set(sums()) == {"x.safetensors", "x_2.safetensors"} and len(set(sums().values())) == 2
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    for restored in (photos, other, photos):
        assert main(["evaluate", str(restored), "--clean", str(photos), "--csv", str(tmp_path / "t.csv")]) == 0
    assert {"t.csv", "t_2.csv"} <= set(sums()) and "t_3.csv" not in sums()


def test_export_pth_writes_the_same_weights_again(made):
    assert load_restorer(made.run / "restorer.pth").metadata["prior_licence"] == "unknown", "terms travel with it"
    exported = torch.load(made.run / "restorer.pth", weights_only=True)["params_ema"]
    saved = load_file(made.run / "restorer.safetensors")
    assert exported.keys() == saved.keys() and all(torch.equal(exported[k], saved[k]) for k in saved)


def test_export_writes_what_spandrel_reads_whole_or_from_a_change(lean, photos, tiny_restorer, tmp_path, capsys):
    import spandrel

    run = lean
    lq = read_image(photos / "face 0.png")[None]
    for source in ("restorer.safetensors", "change.safetensors"):
        wanted = load_restorer(run / source).restore(lq)
        assert (wanted - load_restorer(tiny_restorer).restore(lq)).abs().max() > 0.01, "it is not the base"
        for suffix in (".pth", ".safetensors"):
            out = (tmp_path / source).with_suffix(f".out{suffix}")
            assert main(["export", str(run / source), "--out", str(out)]) == 0
            assert (spandrel.ModelLoader().load_from_file(out)(lq) - wanted).abs().max() < 1e-6
            if suffix == ".pth":
                assert list(torch.load(out, weights_only=True)) == ["params_ema", "bfr_adapt"]
            written = load_restorer(out)
            assert (written.restore(lq) - wanted).abs().max() < 1e-6
            assert written.metadata["base_sha256"] == sha256_of(tiny_restorer), "what it was made from travels"
            assert written.licence == "test"
            assert [part[0] for part in inspect(out).parts] == ["restorer", "base", "prior"]
    capsys.readouterr()
    assert main(["export", str(run / "restorer.safetensors"), "--out", str(tmp_path / "x.zip")]) == 2
    assert capsys.readouterr().err.startswith("bfr: --out ")


@pytest.mark.parametrize(("verdict", "says"), [("keep_base", 1), ("cannot_tell", 1), ("adopt", 0), ("", 0)])
def test_restore_warns_of_a_restorer_that_was_judged_no_better(photos, tiny_restorer, tmp_path, capsys, verdict, says):
    judged = tmp_path / "judged.safetensors"
    save_restorer(judged, load_restorer(tiny_restorer), {"base": "b\x1b[31m", "verdict": verdict} if verdict else {})
    assert main(["restore", str(photos), "--aligned", "--restorer", str(judged), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "verdict" in line]
    assert len(lines) == says and all(line.startswith("judged.safetensors: ") for line in lines)
    assert all(line.isprintable() and "base" in line for line in lines)


def test_settings_that_change_nothing_are_said(photos, tmp_path, tiny_restorer, capsys):
    command = ["restore", str(photos), "--aligned", "--restorer", str(tiny_restorer), "--out", str(tmp_path / "out")]
    assert main([*command, "--numbers", "2", "--reference-strength", "0.3"]) == 0
    said = capsys.readouterr().err
    assert "--numbers 2: changes nothing without --faces numbered" in said
    assert "--reference-strength 0.3: changes nothing without --reference" in said


def test_restore_sets_codeformers_fidelity(photos, tmp_path, monkeypatch, capsys):
    from published_shapes import small_network

    from bfr_core import restorers
    from bfr_core.restorers.codeformer import CodeFormer

    base = CodeFormer(small_network("CodeFormer").eval(), "CodeFormer", 64, "base.pth")
    monkeypatch.setattr(base.module, "forward", lambda x, weight: (x, None))
    monkeypatch.setattr(restorers, "load_restorer", lambda name: base)
    command = ["restore", str(photos / "below"), "--aligned", "--out"]
    assert main([*command, str(tmp_path / "usual")]) == 0
    assert main([*command, str(tmp_path / "faithful"), "--fidelity", "1"]) == 0
    weights = []
    for kind in ("usual", "faithful"):
        weights += [inspect_picture(tmp_path / kind / "face 1.png").record.steps[0].settings["fidelity_weight"]]
    assert weights == [0.5, 1.0]
    assert main([*command, str(tmp_path / "wrong"), "--fidelity", "1.5"]) == 2
    assert "fidelity_weight is 1.5" in capsys.readouterr().err


def test_too_little_memory_is_one_line(photos, tmp_path, monkeypatch, capsys):
    from bfr_core import restorers

    def full(name):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")

    monkeypatch.setattr(restorers, "load_restorer", full)
    assert main(["restore", str(photos), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.strip().splitlines() == [
        "bfr: too little memory (CUDA out of memory. Tried to allocate 20.00 MiB.); try --device cpu"
    ], "it has no --low-memory"


def test_adapt_opens_its_networks_once(quick, tmp_path, monkeypatch):
    from bfr_core.files import tensors as checkpoints
    from bfr_core.restorers import load as loading

    opened = []

    def open_(path):
        opened.append(path)
        return checkpoints.load_tensors(path)

    for module in (loading, prior):
        monkeypatch.setattr(module, "load_tensors", open_)
    assert main([*quick, "--run", str(tmp_path)]) == 0
    assert len(opened) == len(set(opened)) == 2


def test_finetune_takes_targets_made_elsewhere(photos, tiny_restorer, tmp_path):
    targets = tmp_path / "targets"
    for i in range(0, 10, 2):
        write_image(targets / f"face {i}.png", torch.rand(3, 32, 32))
    command = ["finetune", str(photos), "--aligned", "--targets", str(targets), "--restorer", str(tiny_restorer)]
    command += ["--batch-size", "2", "--micro-batch", "2", "--iterations", "3", "--run", str(tmp_path / "run")]
    assert main(command) == 0
    assert (tmp_path / "run" / "restorer.safetensors").exists()
    tuned = json.loads((tmp_path / "run" / "config.json").read_text())["finetune"]
    assert tuned["sharp"] == 0.5, "what somebody made elsewhere is at least half of what is learned"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--restorer", "gone.pth"], "gone.pth"),
        (["--prior", "gone"], "gone"),
        (["--sampler", "slow"], "sampler.kind is 'slow'"),
        (["--factor", "5"], "factor is 5"),
        (["--eta", "2"], "eta is 2.0"),
        (["--micro-batch", "0"], "micro_batch is 0"),
        (["--precision", "int4"], "precision is 'int4'"),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_bad_settings_are_one_line_and_exit_2(quick, tmp_path, capsys, change, says):
    assert main([*quick, *change, "--run", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bfr: ")]
    assert len(lines) == 1 and says in lines[0]


@pytest.mark.parametrize("make", ["missing", "empty", "file"])
def test_bad_photo_folders_are_one_line_and_exit_2(tmp_path, capsys, make):
    folder = tmp_path / "photos\n<script>"
    if make == "empty":
        folder.mkdir()
    elif make == "file":
        folder.write_text("")
    assert main(["faces", str(folder), "--run", str(tmp_path / "run"), "--size", "32"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("bfr: ") and "\n" not in error


def test_a_run_folder_that_is_a_file(tmp_path, photos, capsys):
    (tmp_path / "run").write_text("")
    assert main(["faces", str(photos), "--aligned", "--size", "32", "--run", str(tmp_path / "run")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_every_option_names_a_setting_and_changes_it(tiny_restorer):
    parser, restorer = build_parser(), load_restorer()
    for flag, path in OPTIONS.items():
        default = settings_from(parser.parse_args(["adapt", "x", "--run", "y"]), restorer)
        for part in path.split("."):
            default = getattr(default, part)
        other = {
            "targets.sampler.kind": "paper",
            "targets.reference": "lq",
            "targets.t_clean": "5",
            "restorer": str(tiny_restorer),
            "faces.detector": "embedded",
            "targets.precision": "float32",
            "finetune.precision": "float32",
            "finetune.trainable": "lora",
            "finetune.judged_on": "own",
        }.get(path)
        if other is None:
            other = {bool: "", str: "other", int: "101", float: "0.25"}[type(default)]
        if flag == "--calls":
            other = "5"
        value = settings_from(
            parser.parse_args(["adapt", "x", "--run", "y", flag, *([other] if other else [])]), restorer
        )
        for part in path.split("."):
            value = getattr(value, part)
        assert value != default, flag


def test_the_sampler_may_be_left_to_the_faces(tiny_restorer, capsys):
    parser, restorer = build_parser(), load_restorer(tiny_restorer)
    read = settings_from(parser.parse_args(["adapt", "x", "--run", "y", "--start", "auto", "--factor", "4"]), restorer)
    assert read.targets.search == ("t_start",) and read.targets.sampler.factor == 4
    read = settings_from(
        parser.parse_args(["adapt", "x", "--run", "y", "--start", "auto", "--factor", "auto"]), restorer
    )
    assert read.targets.search == ("t_start", "factor")
    assert settings_from(parser.parse_args(["adapt", "x", "--run", "y"]), restorer).targets.search == ()


@pytest.mark.parametrize(("flag", "name"), [("--clean-level", "t_clean"), ("--target-detail", "detail")])
def test_what_may_be_left_to_the_faces(tiny_restorer, flag, name, capsys):
    parser, restorer = build_parser(), load_restorer(tiny_restorer)
    read = settings_from(parser.parse_args(["adapt", "x", "--run", "y", flag, "auto"]), restorer)
    assert getattr(read.targets, name) == "auto"
    with pytest.raises(SystemExit):
        parser.parse_args(["adapt", "x", "--run", "y", flag, "some"])
    assert flag in capsys.readouterr().err


def start(arguments, environment):
    command = [sys.executable, "-m", "bfr_core", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for_a_step(process, seconds=600):
    """Return once the progress bar of the tuning shows a step."""
    late = threading.Timer(seconds, process.kill)
    late.start()
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(r"finetune .* [1-9]\d*/\d+", line):
            late.cancel()
            return
    late.cancel()
    raise AssertionError("".join(said))


def test_killed_and_run_again_ends_with_the_same_weights(quick, made, short_programs, tmp_path):
    broken = [*quick, "--run", str(tmp_path / "broken")]
    process = start([*broken, "--iterations", "1000000"], short_programs)  # it cannot be over before it is killed
    wait_for_a_step(process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "broken" / "restorer.safetensors").exists()
    assert main(broken) == 0
    whole, again = (load_file(run / "restorer.safetensors") for run in (made.run, tmp_path / "broken"))
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    whole, again = (
        torch.load(run / "checkpoints/last.pt", weights_only=True)["net"] for run in (made.run, tmp_path / "broken")
    )
    assert all(torch.equal(whole[k], again[k]) for k in whole), "also after the best step"


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process")
def test_ctrl_c_exits_130_and_leaves_a_checkpoint(quick, short_programs, tmp_path):
    process = start([*quick, "--iterations", "1000000", "--run", str(tmp_path)], short_programs)
    wait_for_a_step(process)
    assert not (tmp_path / "checkpoints" / "last.pt").exists()
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130 and "cancelled" in error
    assert (tmp_path / "checkpoints" / "last.pt").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send Ctrl-C to one process alone")
@pytest.mark.parametrize("loaded", ["bfr_core.threads", "torch._C"])
def test_ctrl_c_before_a_command_begins_exits_130_in_one_line(loaded, tmp_path):
    """loaded: the module after whose import it is pressed."""
    start = [sys.executable, "-X", "importtime", "-m", "bfr_core"]
    words = ["restore", str(tmp_path), "--out", str(tmp_path / "out")]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job is started deaf to it
    with subprocess.Popen([*start, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heard) as process:
        for line in process.stderr:
            if line.split("|")[-1].strip() == loaded:
                process.send_signal(signal.SIGINT)
                break
        said = [line for line in process.stderr if not line.startswith("import time:")]
    assert (process.returncode, said) == (130, ["bfr: cancelled; nothing was under way\n"])


def test_ctrl_c_while_arguments_are_read_exits_130(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bfr_core.cli.commands.build_parser", stop)
    assert cli.main(["weights", "list"]) == 130
    assert capsys.readouterr().err == "bfr: cancelled; nothing was under way\n"


def test_restore_keeps_names_and_goes_on_after_a_bad_file(photos, tiny_restorer, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "text.jpg").write_text("not a picture")
    command = ["restore", str(folder), "--aligned", "--restorer", str(tiny_restorer), "--out", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["restored"], summary["failed"]) == (10, 1) and summary["problems"][0]["photo"] == "text.jpg"
    made = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.png")}
    assert made == {p.relative_to(photos) for p in photos.rglob("*.png")}


def test_restore_goes_on_where_it_was_stopped_as_it_says(photos, tiny_restorer, tmp_path, capsys, monkeypatch):
    command = ["restore", str(photos), "--aligned", "--restorer", str(tiny_restorer), "--out", str(tmp_path / "out")]
    real = progress.Bars.__call__

    def cancelled(self, stage, step, total, detail):
        real(self, stage, step, total, detail)
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bars, "__call__", cancelled)
    assert main(command) == 130
    assert "cancelled; the same command goes on where this one stopped" in capsys.readouterr().err
    monkeypatch.setattr(progress.Bars, "__call__", real)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    assert before and main([*command, "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["restored"], summary["kept"]) == (10 - len(before), len(before)) and not summary["problems"]
    assert f"{len(before)} kept, made before in the same way" in said.err
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert main([*command, "--again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["restored"] == 10


def test_a_command_that_does_not_go_on_does_not_say_so(photos, tmp_path, capsys, monkeypatch):
    def cancelled(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bars, "__call__", cancelled)
    assert main(["tone", str(photos), "--out", str(tmp_path / "out")]) == 130
    assert "the same command starts from the beginning" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_keeps_what_was_made(quick, made, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(made.run, tmp_path / "run")
    before = (run / "restorer.safetensors").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert main([*quick, "--run", str(run), "--iterations", "9"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bfr: ")]
    assert len(lines) == 1 and "No space left on device" in lines[0]
    assert (run / "restorer.safetensors").read_bytes() == before


def test_evaluate_reads_what_degrade_wrote(photos, tmp_path, capsys):
    assert main(["degrade", str(photos), "--kind", "blind", "--out", str(tmp_path / "lq"), "--json"]) == 0
    capsys.readouterr()
    command = ["evaluate", str(tmp_path / "lq"), "--clean", str(photos), "--csv", str(tmp_path / "faces.csv"), "--json"]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["faces"]) == 10 and 5 < summary["rows"]["restored"]["psnr"]["mean"] < 60
    assert len((tmp_path / "faces.csv").read_text().splitlines()) == 11


def test_degrade_without_the_package_that_a_damage_needs_says_so(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)  # an import of it fails
    assert main(["degrade", str(photos), "--kind", "video", "--out", str(tmp_path / "lq"), "--json"]) == 1
    said = capsys.readouterr()
    assert "the package av: pip install av" in said.err and "Traceback" not in said.err


def test_degrade_changes_nothing_but_the_damage(tmp_path):
    """Without its profile a photo in another colour space would be shown in other colours."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "photos").mkdir()
    photo = Image.effect_noise((32, 32), 60).convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").resize((32, 32)))
    photo.save(tmp_path / "photos" / "a.png", icc_profile=profile)
    assert main(["degrade", str(tmp_path / "photos"), "--kind", "blind", "--out", str(tmp_path / "lq")]) == 0
    (made,) = (tmp_path / "lq").glob("*.png")
    damaged = Image.open(made)
    assert damaged.info["icc_profile"] == profile and damaged.mode == "RGBA"
    assert damaged.getchannel("A").tobytes() == photo.getchannel("A").tobytes()


@pytest.mark.parametrize(("command", "gone"), [("demo", "matplotlib"), ("verify-real", "skimage")])
def test_what_real_photographs_need_is_asked_for_first(command, gone, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, gone, None)
    where = ["--run"] if command == "demo" else ["--out"]
    assert main([command, *where, str(tmp_path / "new")]) == 2
    name = {"skimage": "scikit-image"}.get(gone, gone)
    assert f"{command}: {name} is not installed; install it with pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_degrade_records_what_it_drew(photos, tmp_path, capsys):
    assert main(["degrade", str(photos), "--kind", "film_grain", "--out", str(tmp_path / "lq"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 10
    recorded = json.loads((tmp_path / "lq" / "degrade.json").read_text())
    assert recorded["kind"] == "film_grain" and len(recorded["images"]) == 10


def test_a_picture_that_cannot_be_worked_on_does_not_end_the_batch(photos, tmp_path, capsys, monkeypatch):
    from bfr_core.damage import synthetic

    real, calls = synthetic.degrade, []

    def odd(*given, **named):
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("Input and output sizes should be greater than 0\nand more")
        return real(*given, **named)

    monkeypatch.setattr(synthetic, "degrade", odd)
    assert main(["degrade", str(photos), "--kind", "blind", "--out", str(tmp_path / "lq"), "--json"]) == 1
    files = json.loads(capsys.readouterr().out)["files"]
    failed = [file for file in files if file["status"] == "failed"]
    assert len(failed) == 1 and "sizes should be" in failed[0]["reason"] and "\n" not in failed[0]["reason"]
    assert len(json.loads((tmp_path / "lq" / "degrade.json").read_text())) and len(files) == len(calls)


@pytest.mark.parametrize("work", [["degrade", "--kind", "blind"], ["tone"]])
def test_one_photo_is_worked_on_like_a_folder(photos, tmp_path, capsys, work):
    assert main([work[0], str(photos / "face 0.png"), *work[1:], "--out", str(tmp_path / "out"), "--json"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file == {"photo": "face 0.png", "status": "done", "reason": ""}
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["face 0.png"]


@pytest.mark.parametrize("work", ["restore --aligned", "tone", "degrade --kind blind"])
@pytest.mark.parametrize(
    ("name", "says"),
    [("a.gif", "256 colours"), ("a.MP4", "is a video"), ("a.cr2", "raw file"), ("a.txt", "not that of a photo"),
     ("a", "not that of a photo")],
)  # fmt: skip
def test_one_file_that_is_no_photo_is_refused_as_a_folder_leaves_it_out(tmp_path, capsys, work, name, says):
    file = tmp_path / name
    Image.new("RGB", (8, 8)).save(file, "GIF")
    assert main([*work.split(), str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"bfr: {name}: ") and says in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_low_memory_stands_for_settings_and_gives_way_to_flags():
    parser, restorer = build_parser(), load_restorer()
    low = settings_from(parser.parse_args(["adapt", "x", "--run", "y", "--low-memory"]), restorer).finetune
    assert (low.trainable, low.recompute, low.micro_batch) == ("lora", True, 1)
    given = settings_from(
        parser.parse_args(["adapt", "x", "--run", "y", "--low-memory", "--micro-batch", "2"]), restorer
    ).finetune
    assert (given.trainable, given.micro_batch) == ("lora", 2)


def test_low_memory_also_writes_the_change_alone(lean, photos, tiny_restorer, tmp_path):
    change, whole = lean / "change.safetensors", lean / "restorer.safetensors"
    assert change.stat().st_size < whole.stat().st_size
    for name, restorer in (("a", change), ("b", whole)):
        command = ["restore", str(photos), "--aligned", "--restorer", str(restorer), "--out", str(tmp_path / name)]
        assert main(command) == 0
    a, b = (read_image(tmp_path / x / "face 0.png") for x in "ab")
    assert (a - b).abs().max() < 1.5 / 255  # the change is fp16
    base = load_restorer(tiny_restorer).restore(read_image(photos / "face 0.png")[None])[0]
    assert (a - base).abs().max() > 3 / 255, "both are of the tuned restorer"


def test_an_unknown_device_is_one_line(quick, tmp_path, capsys):
    assert main([*quick, "--run", str(tmp_path), "--device", "cuda:99"]) == 2
    assert "device is 'cuda:99'" in capsys.readouterr().err


def test_weights_are_listed_with_licence_and_nothing_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    assert main(["weights", "list", "--json"]) == 0
    text = capsys.readouterr()
    rows = json.loads(text.out)["weights"]
    assert {row["state"] for row in rows} == {"not here"} and "non-commercial" in text.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["get"], "give a NAME"),
        (["get", "nothing"], "not in the table"),
        (["get", "swinir_gan_v1"], "put it at"),
        (["convert", "iddpm_ffhq512_ema500000"], "--out"),
        (["convert", "iddpm_ffhq512_ema500000", "--out", "x"], "not on this machine"),
    ],
    ids=" ".join,
)
def test_weights_that_cannot_be_had_are_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    assert main(["weights", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bfr: ")]
    assert len(lines) == 1 and says in lines[0]


def test_weights_that_are_here_are_verified(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path))
    (tmp_path / "codeformer.pth").write_bytes(b"short")
    assert main(["weights", "list", "codeformer"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("codeformer.pth") and not shown.err, "a table, to be piped"
    assert main(["weights", "verify", "codeformer", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["weights"][0]["state"].startswith("wrong size")
    (tmp_path / "codeformer.pth").unlink()
    assert main(["weights", "verify", "codeformer.pth", "--json"]) == 1, "a script is to check before a long run"
    assert json.loads(capsys.readouterr().out)["failed"] == ["codeformer.pth"]
    assert main(["weights", "verify"]) == 0


def test_the_exit_status_is_1_if_a_face_or_a_check_failed():
    from bfr_core.cli.commands import _has_failed

    restored = {"photo": "a.png", "status": "restored", "reason": ""}
    assert not _has_failed({"files": [restored], "failed": []}) and not _has_failed({})
    assert _has_failed({"files": [restored | {"failed_faces": 1}]}) and _has_failed({"failed": ["CodeFormer"]})
    assert _has_failed({"files": [restored, restored | {"status": "failed"}]})


def test_inspect_answers_whether_it_may_be_used_commercially(capsys):
    assert main(["inspect", "embedded"]) == 0
    assert "may it be used commercially? yes" in capsys.readouterr().out


def test_inspect_reads_back_what_restore_wrote(photos, tiny_restorer, tmp_path, capsys):
    strange = tmp_path / "r <&\x1b[31m>.safetensors"
    strange.write_bytes(tiny_restorer.read_bytes())
    out = tmp_path / "out"
    assert main(["restore", str(photos), "--aligned", "--restorer", str(strange), "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out / "face 0.png")]) == 0
    said = capsys.readouterr().out
    assert "details of the faces are generated" in said.lower() and "r <&?[31m>.safetensors" in said
    assert str(tmp_path) not in said and all(line.isprintable() for line in said.splitlines())
    assert main(["inspect", str(out / "face 0.png"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generated"] and found["record"]["steps"][0]["sha256"] == sha256_of(strange)
    assert found["record"]["steps"][0]["licence"] == "test" and found["record"]["steps"][0]["settings"]["aligned"]
    assert main(["inspect", str(photos / "face 0.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generated"] is False


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"not a picture", 2, "is not a JPEG"),
        (b"\xff\xd8\xff cut", 2, "is damaged"),
        (None, 2, "No such file"),
        (b"<a", 0, "its XMP is damaged"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", 0, "its XMP is damaged"),
        (b" " * (1 << 21), 0, "its XMP has 2,097,152 bytes"),
    ],
)
def test_inspect_answers_strange_pictures_in_a_line(tmp_path, capsys, content, status, says):
    path = tmp_path / "a\x1b[31m.webp"
    if content and status:
        path.write_bytes(content)
    elif content:
        Image.new("RGB", (8, 8)).save(path, xmp=content)
    assert main(["inspect", str(path)]) == status
    out, error = capsys.readouterr()
    lines = (out + error).splitlines()
    assert len(lines) == 1 and says in lines[0] and lines[0].isprintable() and "Traceback" not in error


@pytest.mark.slow
def test_inspect_says_what_to_give_in_place_of_a_folder_or_a_video(photos, made, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    for place, says in (
        (photos, "is a folder without the config.json of a prior; give the folder of a prior, or one file"),
        (made.run, "is the folder of a run; give a file in it, restorer.safetensors"),
        (tmp_path / "a.mp4", "is a video"),
    ):
        assert main(["inspect", str(place)]) == 2
        error = capsys.readouterr().err.strip()
        assert says in error and place.name in error and "\n" not in error


def test_shards_in_processes_of_their_own_make_what_one_makes(
    photos, tiny_restorer, tiny_prior, short_programs, tmp_path, capsys
):
    """The commands that a queue would start, both at once; then the ones that put their work together."""
    networks = ["--restorer", str(tiny_restorer)]
    on_run = [*networks, "--prior", str(tiny_prior), "--calls", "2", "--set", "targets.batch_size=2", "--run"]
    one, many = str(tmp_path / "one"), str(tmp_path / "many")
    environment = short_programs | {"OMP_NUM_THREADS": "1"}

    def together(*words):
        commands = [[sys.executable, "-m", "bfr_core", *words, "--shard", f"{i}/2"] for i in (1, 2)]
        started = [subprocess.Popen(c, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
        for process in started:
            said = process.communicate()[1]
            assert process.returncode == 0, said

    for run in (one, many):
        for words in (("faces", str(photos), "--aligned", *networks, "--run", run), ("targets", *on_run, run)):
            if run == many:
                together(*words)
            assert main(list(words)) == 0
    restore = ["restore", str(photos), "--aligned", *networks, "--batch-size", "2", "--out"]
    together(*restore, f"{many}_photos")
    assert main([*restore, f"{one}_photos"]) == 0

    def pictures(folder):
        return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*.png")}

    assert pictures(one) == pictures(many) and len(pictures(one)) == 30
    assert pictures(f"{one}_photos") == pictures(f"{many}_photos") and len(pictures(f"{one}_photos")) == 10
    with pytest.raises(SystemExit):
        main([*restore, many, "--shard", "4/3"])
    assert "must be I/N" in capsys.readouterr().err
    assert main(["faces", str(photos), "--people", *networks, "--run", many, "--shard", "1/2"]) == 2
    assert "without --shard" in capsys.readouterr().err


def names_in(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def test_a_number_is_not_the_name_of_another_photos_result(tmp_path, capsys):
    for number, name in enumerate(("a.png", "a_2.png")):
        write_image(tmp_path / "photos" / name, torch.full((3, 8, 8), 0.2 + 0.3 * number))
    write_image(tmp_path / "out" / "a.png", torch.zeros(3, 8, 8))  # somebody else's
    assert main(["tone", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--strength", "0"]) == 0
    assert names_in(tmp_path / "out") == ["a.png", "a_2.png", "a_3.png"]
    assert read_image(tmp_path / "out/a_3.png").mean() < 0.25 < 0.45 < read_image(tmp_path / "out/a_2.png").mean()


def test_commands_do_not_replace_each_others_results(photos, tiny_restorer, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["restore", str(photos), "--aligned", "--restorer", str(tiny_restorer), "--out", str(out)]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert main(["tone", str(photos), "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in before} == before and len(list(out.rglob("*.png"))) == 2 * len(before)
    again = {path: path.stat().st_mtime_ns for path in before}
    assert main(["tone", str(photos), "--out", str(out)]) == main(command) == 0
    assert len(list(out.rglob("*.png"))) == 2 * len(before), "each knows its own"
    assert {path: path.stat().st_mtime_ns for path in before} == again


def test_the_result_of_one_photo_is_no_photo_afterwards(tmp_path, capsys):
    folder = tmp_path / "album"
    write_image(folder / "a.png", torch.rand(3, 8, 8))
    assert main(["tone", str(folder / "a.png"), "--out", str(folder / "toned")]) == 0
    assert main(["tone", str(folder / "a.png"), "--out", str(folder)]) == 0
    assert names_in(folder) == ["a.png", "a_2.png"] and names_in(folder / "toned") == ["a.png"]
    assert [path.name for path in list_images(folder)] == ["a.png"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["tone", "--strength", "5"], "strength is 5.0"),
        (["degrade", "--kind", "foo"], "unknown damage 'foo'"),
        (["degrade", "--kind", "blind", "--strength", "-1"], "strength must be 0 or more"),
    ],
)
def test_a_wrong_setting_is_told_before_any_photo_is_read(photos, tmp_path, capsys, command, says):
    assert main([command[0], str(photos), *command[1:], "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flag", "package"), [("--parquet", "pyarrow"), ("--plot", "matplotlib")])
def test_a_package_that_is_missing_is_told_before_the_work(
    photos, tiny_restorer, tmp_path, capsys, monkeypatch, flag, package
):
    monkeypatch.setitem(sys.modules, package, None)
    commands = {
        "--parquet": [
            "restore",
            str(photos),
            "--aligned",
            "--restorer",
            str(tiny_restorer),
            "--out",
            str(tmp_path / "out"),
        ],
        "--plot": ["evaluate", str(photos), "--clean", str(photos)],
    }
    assert main([*commands[flag], flag, str(tmp_path / "file")]) == 2
    assert f"{flag}: {package} is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_link_to_itself_is_one_line(photos, tmp_path, capsys):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(SystemExit) as ended:
        main(["tone", str(photos), "--out", str(loop)])
    assert ended.value.code == 2
    assert main(["tone", str(loop), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 2 and all(line.startswith(("bfr: ", "bfr tone: ")) for line in said)


def test_a_picture_of_one_pixel_does_not_end_an_evaluation(tmp_path, capsys):
    for name, side in (("a.png", 1), ("b.png", 64)):
        write_image(tmp_path / "restored" / name, torch.rand(3, side, side))
    assert main(["evaluate", str(tmp_path / "restored"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["faces"]) == 2


def test_names_that_a_code_page_lacks_end_no_command(tmp_path):
    write_image(tmp_path / "бабушка.png", torch.rand(3, 8, 8))
    command = [sys.executable, "-m", "bfr_core", "inspect", str(tmp_path / "бабушка.png")]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, cwd=ROOT)
    assert done.returncode == 0 and b"picture, 8 x 8 pixels" in done.stdout


@pytest.mark.parametrize("work", [["degrade", "--kind", "blind"], ["tone"]])
def test_a_photo_that_comes_while_they_begin_ends_no_batch(work, tmp_path, monkeypatch, capsys):
    """As a camera or scanner brings them."""
    photos, seen = tmp_path / "photos", look_through

    def look_through_and_one_comes(*given):
        found = seen(*given)
        write_image(photos / f"later {len(list(photos.iterdir()))}.png", torch.rand(3, 40, 40))
        return found

    for name in ("a", "z"):
        write_image(photos / f"{name}.png", torch.rand(3, 40, 40))
    monkeypatch.setattr("bfr_core.files.photos.look_through", look_through_and_one_comes)
    assert main([work[0], str(photos), *work[1:], "--out", str(tmp_path / "out")]) == 1
    assert {"a.png", "z.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "has come since; run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["settings", "weights list"])
def test_who_closes_the_pipe_has_enough(command):
    run = f"import sys; from bfr_core.cli.commands import main; sys.exit(main({command.split()!r}))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", run], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def test_a_closed_stderr_fails_nothing(photos, tiny_restorer, tmp_path):
    given = ["restore", str(photos), "--restorer", str(tiny_restorer), "--aligned", "--out", str(tmp_path / "out")]
    main_alone = "import sys; from bfr_core.cli import main; sys.exit(main(sys.argv[1:]))"
    run = f"import os; os.close(2); os.execv({sys.executable!r}, {[sys.executable, '-c', main_alone, *given]!r})"
    assert subprocess.run([sys.executable, "-c", run], stdout=subprocess.PIPE, check=False).returncode == 0
    assert len(list_images(tmp_path / "out")) == 10
