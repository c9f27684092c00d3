"""The stages on a run folder, with networks of a few thousand parameters."""

import json
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bfr_core.adaptation import target_checks, target_stage, tuning
from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import FaceConfig
from bfr_core.adaptation.faces import collect_faces, faces_of, leave_out, left_out_of
from bfr_core.adaptation.report import refused_faces
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.target_checks import TargetCheckConfig
from bfr_core.adaptation.target_stage import check_given
from bfr_core.diffusion.prior import load_prior
from bfr_core.files.ownership import LIST, is_own
from bfr_core.files.photos import read_image, write_image
from bfr_core.restorers import export_pth, load_restorer
from bfr_core.settings import changed
from bfr_core.training.batches import split
from bfr_core.training.checkpoint import TuningProgress
from bfr_core.training.config import FinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
ALIGNED = FaceConfig(aligned=True)


class Stop(Exception):
    pass


def stop_at(stage, step):
    def callback(name, done, total, detail):
        if (name, done) == (stage, step):
            raise Stop

    return callback


@pytest.fixture(scope="module")
def whole(photos, config, tmp_path_factory):
    """A finished run that was not stopped, the stages it went through, and its result. It is looked at only."""
    stages = []
    folder = tmp_path_factory.mktemp("whole")
    result = adapt(photos, folder, config, lambda stage, *_: stages.append(stage), labels={"face 0.png": "Ada"})
    return folder, stages, result


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of the finished run, which a test may change."""
    return Path(shutil.copytree(whole[0], tmp_path / "run"))


def weights(run_dir):
    return load_file(run_dir / "restorer.safetensors")


def test_an_adaptation_leaves_what_the_run_folder_promises(whole):
    folder, stages, result = whole
    always = [stage for stage in dict.fromkeys(stages) if stage != "redraw"]  # where a target was refused
    assert always == ["faces", "targets", "gate", "finetune", "judge", "likeness"]
    assert len(result.faces) == 10
    for part in ("faces", "restored", "targets"):
        assert len(list((folder / part).glob("*.png"))) == 10
    promised = {"config.json", "restorer.safetensors", "log.txt", "report.html", "report.json"}
    assert promised <= {p.name for p in folder.iterdir()}
    shown = json.loads((folder / "report.json").read_text())["galleries"][0]["rows"]
    called = {row.removesuffix(" (not trained on)") for row in shown}
    assert "Ada" in called and "face 0.png" not in called and "face 2.png" in called
    assert result.faces.photos["face 0"] == "face 0.png", "other names are for the report alone"
    assert not list(folder.rglob("*.part*"))


def test_stopped_in_every_stage_and_gone_on_gives_the_same_weights(photos, config, whole, tmp_path):
    for stop in (("faces", 4), ("targets", 16), ("gate", 10), ("finetune", 4)):
        with pytest.raises(Stop):
            adapt(photos, tmp_path, config, stop_at(*stop))
        assert not Run(tmp_path).restorer.exists()
    stages: list[str] = []
    adapt(photos, tmp_path, config, lambda stage, *_: stages.append(stage))
    assert stages.count("finetune") < whole[1].count("finetune"), "it goes on from the checkpoint"
    unbroken, broken = weights(whole[0]), weights(tmp_path)
    assert all(torch.equal(unbroken[k], broken[k]) for k in unbroken)
    unbroken, broken = (torch.load(Run(run).checkpoint, weights_only=True)["net"] for run in (whole[0], tmp_path))
    assert all(torch.equal(unbroken[k], broken[k]) for k in unbroken), "also after the best step"


def test_what_is_left_to_the_faces_is_read_off_them_once(photos, config, tmp_path, monkeypatch):
    looked = []

    def level(config, lq, restorer, prior, callback):
        looked.append(len(lq))
        callback(1, 1)
        return replace(config, t_clean=7)

    monkeypatch.setattr("bfr_core.adaptation.target_stage.resolved_settings", level)
    auto = replace(config, targets=replace(config.targets, t_clean="auto"))
    stages = []
    for _ in range(2):
        result = adapt(photos, tmp_path, auto, lambda stage, *_: stages.append(stage))
    assert looked == [target_stage.EXAMINED_FACES] and stages.count("examine") == 1
    assert result.run.config()["targets"]["t_clean"] == 7
    assert json.loads(result.run.resolved_settings.read_text())["t_clean"] == 7
    write_image(tmp_path / "photos" / "new.png", torch.rand(3, 32, 32))
    adapt(tmp_path / "photos", tmp_path, auto)
    assert looked == [target_stage.EXAMINED_FACES, 1]


def test_a_sampler_left_to_the_faces_is_the_one_that_is_used(photos, config, tmp_path):
    open_ = replace(config, targets=replace(config.targets, search=("t_start",)))
    run = adapt(photos, tmp_path, open_).run
    found, used = json.loads(run.resolved_settings.read_text()), run.config()["targets"]
    assert found["t_start"] in (12, 25, 50, 100) and used["search"] == [] and found["factor"] == 4
    assert all(used["sampler"][name] == found[name] for name in ("t_start", "t_constrain_end", "factor", "calls"))


def test_a_finished_run_does_nothing_again(photos, config, finished):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.png")}
    steps = []
    adapt(photos, finished, config, lambda stage, *_: steps.append(stage))
    assert "finetune" not in steps
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*.png")}


def test_another_seed_makes_targets_anew_but_not_faces(photos, config, finished):
    face, target = (next((finished / f).glob("*.png")) for f in ("faces", "targets"))
    old_face, old_target = face.stat().st_mtime_ns, target.read_bytes()
    adapt(photos, finished, replace(config, targets=replace(config.targets, seed=1)))
    assert face.stat().st_mtime_ns == old_face and target.read_bytes() != old_target


def test_two_processes_never_share_a_run(tmp_path):
    run = Run(tmp_path)
    with run.locked(), pytest.raises(ValueError, match="in use by another process"), Run(tmp_path).locked():
        pass
    with run.locked():
        pass


def test_faces_left_out_stay_out_when_the_run_goes_on(photos, config, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="holds no faces yet"):
        leave_out(run, [])
    with run.locked():
        collect_faces(photos, run, 32, ALIGNED)
    whole = faces_of(run)
    leave_out(run, ["face 4", "below__face 1", "no such face"])
    assert left_out_of(run) == ["below__face 1", "face 4"]
    result = adapt(photos, tmp_path, config)
    assert set(result.faces.names) == set(whole.names) - {"face 4", "below__face 1"}
    assert result.faces.fingerprint != whole.fingerprint
    with run.locked():
        assert len(collect_faces(photos, run, 64, ALIGNED)) == 8  # the same faces, larger
    leave_out(run, whole.names)
    with pytest.raises(ValueError, match="all of its 10 faces are left out"):
        faces_of(run)
    leave_out(run, [])
    assert faces_of(run).names == whole.names
    leave_out(run, ["face 4"])
    write_image(tmp_path / "photos" / "face 4.png", torch.rand(3, 32, 32))
    with run.locked():
        assert len(collect_faces(tmp_path / "photos", run, 32, ALIGNED)) == 1  # other faces


def counted_looking(monkeypatch):
    """The photos that faces are taken from."""
    import bfr_core.adaptation.faces as module

    looked: list[str] = []
    real = module._crops_of

    def counted(file, name, *rest):
        looked.append(name)
        return real(file, name, *rest)

    monkeypatch.setattr(module, "_crops_of", counted)
    return looked


@pytest.fixture
def own_photos(photos, tmp_path):
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.mark.parametrize("search", [(), ("t_start",)], ids=["settings given", "settings left to the faces"])
def test_only_what_is_missing_is_made(own_photos, config, tmp_path, monkeypatch, drawn_names, search):
    looked, drawn = counted_looking(monkeypatch), drawn_names
    config = replace(config, targets=replace(config.targets, search=search), gate=TargetCheckConfig(limit=0))
    run = Run(tmp_path / "run")
    adapt(own_photos, run.folder, config)
    tuned = weights(run.folder)
    names = faces_of(run).names
    assert sorted(looked) == sorted(names) == sorted(drawn)
    looked.clear(), drawn.clear()

    os.utime(own_photos / "face 0.png", (1e9, 1e9))
    steps = []
    adapt(own_photos, run.folder, config, lambda stage, *_: steps.append(stage))
    assert not looked and not drawn and "finetune" not in steps, "another time is not another photo"
    assert all(torch.equal(tuned[k], v) for k, v in weights(run.folder).items())

    def up_to_the_tuning():
        with pytest.raises(Stop):
            adapt(own_photos, run.folder, config, stop_at("finetune", 1))
        return faces_of(run)

    leave_out(run, ["face 4"])
    assert len(up_to_the_tuning()) == 9 and not looked and not drawn
    assert (run.targets / "face 4.png").exists(), "it may be taken back"

    write_image(own_photos / "new.png", torch.rand(3, 32, 32))
    assert len(up_to_the_tuning()) == 10
    assert looked == drawn == ["new"] and left_out_of(run) == ["face 4"]
    looked.clear(), drawn.clear()

    (own_photos / "face 0.png").unlink()
    write_image(own_photos / "face 2.png", torch.rand(3, 32, 32))
    assert len(adapt(own_photos, run.folder, config).faces) == 9
    assert looked == drawn == ["face 2"]
    assert not any((folder / "face 0.png").exists() for folder in (run.faces, run.restored, run.targets))


def test_a_new_face_gives_the_same_targets_as_a_new_run(own_photos, config, tmp_path):
    exact = replace(config, targets=replace(config.targets, batch_size=1), gate=TargetCheckConfig(limit=0))

    def drawn(name):
        with pytest.raises(Stop):
            adapt(own_photos, tmp_path / name, exact, stop_at("finetune", 1))
        run = Run(tmp_path / name)
        return {face: (run.targets / f"{face}.png").read_bytes() for face in faces_of(run).names}

    before = drawn("run")
    write_image(own_photos / "new.png", torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(5)))
    grown, fresh = drawn("run"), drawn("fresh")
    assert len(before) == 10 and len(grown) == 11 and grown == fresh


def paint(file, colour):
    Image.new("RGB", (32, 32), colour).save(file)
    return file.read_bytes()


def test_what_was_retouched_by_hand_does_not_pass_to_another_photo(own_photos, config, tmp_path, caplog):
    """Targets and crops of "face 4" and "face 6": the one is replaced, the other goes, and its name comes back."""
    run = Run(tmp_path / "run")
    adapt(own_photos, run.folder, config)
    held = {f"{folder.name}/face {n}.png": paint(folder / f"face {n}.png", (250, 10, 10 * n))
            for folder, n in ((run.targets, 4), (run.targets, 6), (run.faces, 6))}  # fmt: skip
    (own_photos / "face 6.png").unlink()
    adapt(own_photos, run.folder, config)
    assert all((run.folder / name).exists() for name in held if name != "targets/face 6.png")
    white = torch.full((3, 32, 32), 0.9)
    write_image(own_photos / "face 4.png", white)
    write_image(own_photos / "face 6.webp", white * 0.9)
    caplog.clear()
    adapt(own_photos, run.folder, config)
    assert float(read_image(run.faces / "face 4.png").min()) > 0.85 > float(read_image(run.faces / "face 6.png").min())
    for name, bytes_ in held.items():
        file = run.folder / name
        assert file.read_bytes() != bytes_ and (file.parent / "former" / file.name).read_bytes() == bytes_
    assert "faces/face 6.png: was changed by hand, but another photo has its name now; it is kept as" in caplog.text


def test_a_target_and_a_crop_that_were_retouched_together_are_used(photos, config, finished, caplog):
    run = Run(finished)
    target = paint(run.targets / "face 4.png", (250, 10, 10))
    paint(run.faces / "face 4.png", (200, 10, 10))
    for seed in (0, 1):
        result = adapt(photos, run.folder, replace(config, targets=replace(config.targets, seed=seed)))
        assert result.targets["face 4"].read_bytes() == target and float(result.faces.read(["face 4"]).max()) < 0.8


def test_a_target_retouched_by_hand_is_kept_used_and_named(photos, config, finished, drawn_names, caplog):
    run = Run(finished)
    retouched = run.targets / "face 4.png"
    Image.new("RGB", (32, 32), (250, 10, 10)).save(retouched)
    before, drawn = retouched.read_bytes(), drawn_names
    steps = []
    with caplog.at_level("INFO"):
        result = adapt(photos, run.folder, config, lambda stage, *_: steps.append(stage))
    assert result.targets["face 4"] == retouched and "finetune" in steps, "it is learned from"
    assert "targets/face 4.png: was changed by hand; it is kept and used" in caplog.text and "face 4" not in drawn
    other = replace(config, targets=replace(config.targets, seed=1))
    result = adapt(photos, run.folder, other)
    assert retouched.read_bytes() == before and result.targets["face 4"] == retouched
    assert "face 4" not in drawn and "face 2" in drawn


def test_a_redrawn_target_is_not_drawn_again_when_another_face_comes(own_photos, config, tmp_path, monkeypatch):
    import bfr_core.adaptation.target_stage as module

    tries = []
    real = module.redraw_with

    def counted(*rest):
        redraw = real(*rest)

        def one(lq, names, attempt):
            tries.append((*names, attempt))
            return redraw(lq, names, attempt)

        return one

    monkeypatch.setattr(module, "redraw_with", counted)
    monkeypatch.setattr(
        "bfr_core.adaptation.target_checks.refusals", lambda checks, *_: ["no", *[""] * (len(checks.low_band) - 1)]
    )

    def draw():
        with pytest.raises(Stop):
            adapt(own_photos, tmp_path / "run", config, stop_at("finetune", 1))
        return list(tries)

    first = draw()
    write_image(own_photos / "new.png", torch.rand(3, 32, 32))
    assert first and draw() == first


def test_a_run_inside_the_photo_folder_goes_on(own_photos, config, monkeypatch):
    monkeypatch.chdir(own_photos)
    looked = counted_looking(monkeypatch)
    steps: list[str] = []
    for _ in range(2):
        steps.clear()
        result = adapt(Path(), Path("my_run"), config, lambda stage, *_: steps.append(stage))
        assert len(result.faces) == 10
    assert len(looked) == 10 and "finetune" not in steps
    assert len(collect_faces(Path(), Run(Path("other_run")), 32, ALIGNED)) == 10, "nor those of another run"


def test_a_run_of_version_0_1_goes_on_and_its_files_are_replaced(photos, config, finished):
    run = Run(finished)
    for path in run.folder.rglob(LIST):
        path.unlink()
    for folder in (run.faces, run.restored, run.targets):
        (folder / "stage.json").write_text('{"fingerprint": "old"}')
    journal = run.faces / "photos.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    old = ({k: r[k] for k in ("photo", "faces", "problem")} for r in records)
    journal.write_text("".join(json.dumps(record) + "\n" for record in old))
    (run.targets / "stranger.png").write_text("mine")
    result = adapt(photos, run.folder, replace(config, targets=replace(config.targets, seed=1)))
    assert len(result.targets) == 10 and (run.targets / "stranger.png").read_text() == "mine"
    assert is_own(run.targets / "face 4.png") and is_own(run.restorer) and is_own(run.folder / "log.txt")


def fingerprints(monkeypatch):
    """What the tunings to come take for the fingerprint of all that they depend on."""
    seen = []
    real = tuning.finetune

    def spied(*given, **more):
        seen.append(more["fingerprint"])
        return real(*given, **more)

    monkeypatch.setattr(tuning, "finetune", spied)
    return seen


def test_the_report_of_a_tuning_does_not_ask_for_a_refused_face_that_is_gone(photos, config, tmp_path):
    """`bfr faces` after a photo was taken away, then `bfr finetune`: the checks' record still names its face."""
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    run = Run(tmp_path / "run")
    before = adapt(folder, run.folder, config)
    gone = before.faces.names[0]
    checks = json.loads(run.target_checks.read_text())
    run.target_checks.write_text(json.dumps(checks | {"refused": {gone: "it has moved"}}))
    next(path for path in folder.rglob("*.png") if path.stem == gone.split("__")[-1]).unlink()
    after = replace(before, faces=collect_faces(folder, run, 32, config.faces))
    assert gone not in after.faces.names and not after.faces.crop(gone).exists()
    assert refused_faces(replace(after, targets={})) == []


def test_the_report_shows_the_refused_target_and_no_earlier_one(photos, config, tmp_path):
    run = Run(tmp_path / "run")
    before = adapt(photos, run.folder, config)
    names = before.faces.names
    brought = {name: tmp_path / "mine" / f"{name}.png" for name in names}
    for i, name in enumerate(names):
        write_image(brought[name], (before.faces.read([name])[0] + 0.4 * (i == 1)).clamp(0, 1))
    accepted, _ = check_given(run, before.faces, brought, replace(config.gate, limit=10.0))
    assert set(names) - set(accepted) == {names[1]}
    judged = replace(before, targets=accepted)
    (gallery,) = refused_faces(judged)
    ((label, (_, shown)),) = gallery.rows
    assert "low band" in label and torch.equal(shown, read_image(brought[names[1]]))
    write_image(brought[names[1]], torch.ones_like(shown))
    assert not refused_faces(judged)[0].rows[0][1][1].any(), "what is there now was not judged"


def test_a_target_that_was_drawn_again_is_part_of_what_a_tuning_depends_on(photos, config, tmp_path, monkeypatch):
    refused = ["bad"]
    real = target_checks.refusals

    def refusals(checks, settings, folder=None):
        found = [""] * len(real(checks, settings, folder))
        return [*refused, *found[1:]] if folder is None else found

    monkeypatch.setattr(target_checks, "refusals", refusals)
    seen = fingerprints(monkeypatch)
    adapt(photos, tmp_path, config)
    assert list(Run(tmp_path).redrawn.glob("*.png"))
    refused[0] = ""
    Run(tmp_path).target_checks.unlink()
    adapt(photos, tmp_path, config)
    assert seen[0] != seen[1], "the first drawing is learned from now"


def test_the_network_of_the_perceptual_loss_is_part_of_what_a_tuning_depends_on(photos, config, tmp_path, monkeypatch):
    run, base, prior = Run(tmp_path), load_restorer(config.restorer), load_prior(config.prior)
    other = replace_sha(load_prior(config.prior))
    seen = fingerprints(monkeypatch)
    faces = collect_faces(photos, run, base.size, ALIGNED)
    targets = {name: faces.crop(name) for name in faces.names}
    for term, teacher in ((0.1, prior), (0.1, other), (0.0, prior), (0.0, other)):
        tuning.tune(run, faces, targets, "brought", base, replace(config.finetune, perceptual=term), teacher)
    assert seen[0] != seen[1] and seen[2] == seen[3]


def replace_sha(prior):
    prior.sha256 = "another"
    return prior


def test_nothing_of_an_earlier_tuning_lies_beside_a_later_one(photos, config, finished):
    run = Run(finished)
    adapt(photos, finished, changed(config, {"finetune.trainable": "lora"}))
    export_pth(run.exported("NAFNet"), load_restorer(run.restorer))
    assert run.change.is_file() and run.exported("NAFNet").is_file()
    adapt(photos, finished, config)
    assert not run.change.exists() and not run.exported("NAFNet").exists()
    export_pth(run.exported("NAFNet"), load_restorer(run.restorer))
    adapt(photos, finished, config)
    assert run.exported("NAFNet").exists(), "the restorer is the same, and others may use this file"


def test_the_report_tells_the_damage_only_where_it_was_learned_from(photos, config, tmp_path):
    run = Run(tmp_path)
    adapt(photos, tmp_path, changed(config, {"finetune.sharp": 1.0}))
    assert run.damage.is_file() and "What these photos lost" in run.report.read_text()
    adapt(photos, tmp_path, config)
    assert "What these photos lost" not in run.report.read_text()


@pytest.mark.parametrize("stage", ["judge", "likeness"])
def test_a_run_that_is_stopped_while_it_is_judged_does_not_tune_again(photos, config, tmp_path, stage):
    """With a large network on a CPU the verdict and the likeness take minutes: Stop must not have to wait for them."""
    said: list[tuple[str, int, int]] = []

    def stop(name, done, total, detail):
        said.append((name, done, total))
        if name == stage:
            raise Stop

    with pytest.raises(Stop):
        adapt(photos, tmp_path, config, stop)
    assert said[-1][0] == stage and said[-1][1] <= 8
    steps: list[tuple[str, int, int]] = []
    result = adapt(photos, tmp_path, config, lambda *one: steps.append(one[:3]))
    assert result.judgement.verdict and not [one for one in steps if one[0] == "finetune" and one[1] < one[2]]
    judged = [one for one in steps if one[0] == "judge"]
    assert judged[-1][1] == judged[-1][2] and [one[1] for one in judged] == list(range(1, len(judged) + 1))
    assert [one for one in steps if one[0] == "likeness"][-1] == ("likeness", 10, 10)


def test_a_run_that_is_stopped_at_the_likeness_keeps_the_restorer_of_its_report(photos, config, tmp_path):
    adapt(photos, tmp_path, config)
    before = {name: (tmp_path / name).read_bytes() for name in ("restorer.safetensors", "report.json")}

    def stop(name, *_):
        if name == "likeness":
            raise Stop

    with pytest.raises(Stop):
        adapt(photos, tmp_path, changed(config, {"finetune.iterations": 9}), stop)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_the_verdict_looks_at_faces_from_the_whole_folder(tmp_path, monkeypatch):
    """A folder may be sorted by year, or by kind."""
    judged: list[tuple[torch.Tensor, torch.Tensor]] = []
    faces = [(torch.tensor(i), torch.tensor(i)) for i in range(2000)]

    def judged_on_faces(base, tuned, held, *_):
        judged.extend(held)
        return tuning.NOT_JUDGED

    monkeypatch.setattr(tuning, "pairs_of", lambda *_: faces)
    monkeypatch.setattr(tuning, "judged_on_faces", judged_on_faces)
    net = SimpleNamespace(size=32)
    config = FinetuneConfig(held_out=0.1, sharp=0)
    tuning.judge_tuning(Run(tmp_path), net, net, (), {}, config, TuningProgress())  # type: ignore[arg-type]
    places = [int(lq) for lq, _ in judged]
    held = split(2000, config)[1]
    assert len(set(places)) == tuning.MAX_JUDGED < len(held) and set(places) <= set(held)
    assert max(b - a for a, b in pairwise(places)) < 200 and places[-1] > 1800
