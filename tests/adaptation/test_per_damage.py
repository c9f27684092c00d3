"""A folder of two damages, with networks of a few thousand parameters."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bfr_core.adaptation import per_damage
from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.adaptation.faces import collect_faces, faces_of
from bfr_core.adaptation.per_damage import adapt_mixed, group_faces
from bfr_core.adaptation.run import Run
from bfr_core.adaptation.same_person import FolderLikeness
from bfr_core.cli.commands import main
from bfr_core.damage import groups
from bfr_core.damage.grey import is_nearly_grey
from bfr_core.damage.groups import MIN_FACES
from bfr_core.faces.align import Face, template
from bfr_core.faces.likeness import OTHER
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.records import write_json
from bfr_core.restoration.restore import restore_crops
from bfr_core.restorers import load_restorer, routed
from bfr_core.restorers.routed import Routed
from bfr_core.settings import changed
from tests.two_damages import BLURRED, NOISY, judged, put

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tiny_restorer, tiny_prior):
    changes = {
        "restorer": str(tiny_restorer), "prior": str(tiny_prior), "faces.aligned": True, "targets.sampler.calls": 2,
        "targets.sampler.t_start": 8, "targets.t_clean": 0, "finetune.iterations": 4, "finetune.batch_size": 4,
        "finetune.discriminator_features": 4, "gate.limit": 0.0, "finetune.sharp": 0,
    }  # fmt: skip
    return changed(SMALL, changes)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole(mixed_photos, config, tmp_path_factory):
    """An adaptation that was not stopped: its folder, its result, and (stage, step, steps, busy) at the beginning of
    every group and of every stage of a group: who asks whether a run is busy waits for the answer."""
    folder = tmp_path_factory.mktemp("whole")
    at_work: list[tuple[str, int, int, bool]] = []
    begun: set[str] = set()

    def callback(stage, step, steps, detail):
        if stage == "group":
            begun.clear()
        if stage not in begun:
            begun.add(stage)
            at_work.append((stage, step, steps, Run(folder).busy()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bfr_core.adaptation.tuning.judged_on_faces", judged)
        result = adapt_mixed(mixed_photos, folder, config, callback)
    return folder, result, at_work


def test_every_group_gets_its_own_adaptation(config, whole):
    folder, result, at_work = whole
    assert [seen for seen in at_work if seen[0] == "group"] == [("group", 1, 2, True), ("group", 2, 2, True)]
    assert len(at_work) > 8 and all(busy for *_, busy in at_work), "others are told so, whichever group it is at"
    first, second = result.groups
    assert all("sensor" in name for name in first.names) and all("motion" in name for name in second.names)
    assert len(first.names) + len(second.names) + len(result.left) == NOISY + BLURRED and len(result.left) <= 3
    assert result.verdict == "adopt" and result.whole is None
    routed = load_restorer(folder / "groups.safetensors")
    assert isinstance(routed, Routed)
    own = load_restorer(folder / "groups/1/restorer.safetensors")
    assert isinstance(routed, Routed)
    assert [one and one.sha256 for one in routed.members][1:] == [own.sha256, None]
    assert routed.metadata["base_sha256"] == load_restorer(config.restorer).sha256 and routed.licence == "test"
    assert {"prior", "prior_licence"} <= set(routed.metadata)
    for number in (1, 2):
        assert (folder / f"groups/{number}/report.html").is_file()
        assert f'<a href="groups/{number}/report.html">' in (folder / "report.html").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["verdict"] == "adopt" and report["measurements"]["groups"][0]["faces"] == first.names
    assert report["measurements"]["likeness"]["of"] == NOISY + BLURRED
    assert report["measurements"]["groups"][1]["judgement"]["verdict"] == "keep_base"
    assert report["measurements"]["left_to_base"] == result.left
    assert f"{len(first.names)} of {NOISY + BLURRED} faces" in report["verdict_sentence"]
    assert not list(folder.rglob("*.part*"))


def test_likeness_is_of_all_groups_by_what_serves_each(whole):
    """Of the two groups the first is adopted; a face of the other is served by the base."""
    _, result, _ = whole
    first, second = result.groups
    assert set(first.likeness.base) == set(first.names) and set(second.likeness.adapted) == set(second.names)
    changed = {name: replace(one, word=OTHER, distance=0.9) for name, one in second.likeness.adapted.items()}
    strange = replace(second, likeness=FolderLikeness(second.likeness.base, changed, len(second.names)))
    assert not strange.adopted
    found = replace(result, groups=[first, strange]).likeness
    assert set(found.base) == {*first.names, *second.names} and found.of == NOISY + BLURRED
    assert {name: found.adapted[name] for name in first.names} == first.likeness.adapted
    assert {name: found.adapted[name] for name in second.names} == second.likeness.base
    assert found.said.startswith("Adapted restorer, ")


def test_stopped_among_the_groups_and_in_the_second_and_gone_on_gives_the_same(
    mixed_photos, config, whole, tmp_path, verdicts
):
    seen: list[str] = []
    for stop, group in ((("groups", 1), 1), (("targets", 1), 2), (("finetune", 2), 2)):

        def callback(stage, step, steps, detail, stop=stop, group=group):
            seen.append(stage)
            later = tmp_path.joinpath("groups/2/photos").exists()
            if stage == stop[0] and step >= stop[1] and (later or group == 1):
                raise Stop

        seen.clear()
        with pytest.raises(Stop):
            adapt_mixed(mixed_photos, tmp_path, config, callback)
        assert not (tmp_path / "groups.safetensors").exists()
        assert ("groups" in seen) == (stop[0] in ("groups", "targets")), "found groups are kept"
    seen.clear()
    adapt_mixed(mixed_photos, tmp_path, config, lambda stage, *_: seen.append(stage))
    assert "groups" not in seen
    for name in ("groups.safetensors", "groups/1/restorer.safetensors", "groups/2/restorer.safetensors"):
        a, b = load_file(whole[0] / name), load_file(tmp_path / name)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_stopped_with_other_settings_what_was_made_before_can_still_be_used(
    mixed_photos, config, whole, tmp_path, verdicts
):
    shutil.copytree(whole[0], tmp_path / "run", copy_function=shutil.copy2)
    run = Run(tmp_path / "run")
    before = load_restorer(run.groups)
    group = 0

    def callback(stage, step, steps, detail):
        nonlocal group
        group = step if stage == "group" else group
        if group == 2 and stage == "finetune":
            raise Stop

    longer = changed(config, {"finetune.iterations": 6})
    with pytest.raises(Stop):
        adapt_mixed(mixed_photos, run.folder, longer, callback)
    now = load_restorer(run.groups)
    assert isinstance(before, Routed) and isinstance(now, Routed)
    assert now.members[1].sha256 == before.members[1].sha256 != load_restorer(run.of_group(1).restorer).sha256
    assert now.members[2] is None and torch.equal(now.groups.centres, before.groups.centres)
    adapt_mixed(mixed_photos, run.folder, longer)
    last = load_restorer(run.groups)
    assert isinstance(last, Routed) and last.members[1].sha256 == load_restorer(run.of_group(1).restorer).sha256
    assert not (run.folder / "groups/former").exists()


def test_stopped_after_photos_were_added_what_was_made_before_can_still_be_used(
    mixed_photos, config, whole, tmp_path, verdicts
):
    shutil.copytree(whole[0], tmp_path / "run", copy_function=shutil.copy2)
    shutil.copytree(mixed_photos, tmp_path / "photos")
    run, photos = Run(tmp_path / "run"), put(tmp_path / "photos", "sensor", NOISY + 3, 7)
    before = load_restorer(run.groups)
    for _ in range(2):  # stopped once, and gone on with and stopped again

        def callback(stage, step, steps, detail):
            if stage == "group" and step == 2:
                raise Stop

        with pytest.raises(Stop):
            adapt_mixed(photos, run.folder, config, callback)
        now = load_restorer(run.groups)
        assert isinstance(before, Routed) and isinstance(now, Routed)
        assert [one and one.sha256 for one in now.members] == [one and one.sha256 for one in before.members]
    adapt_mixed(photos, run.folder, config)
    last = load_restorer(run.groups)
    assert isinstance(last, Routed) and last.members[1].sha256 == load_restorer(run.of_group(1).restorer).sha256


def test_the_run_says_what_was_asked_for(config, whole):
    kept = Run(whole[0]).config()
    assert kept["asked"]["gate"]["limit"] == config.gate.limit == 0 and kept["recipe"]["name"] == config.recipe


def arguments(photos, config, run):
    return ["adapt", str(photos), "--run", str(run), "--mixed", "--aligned", "--restorer", config.restorer,
            "--prior", config.prior, "--calls", "2", "--start", "8", "--clean-level", "0", "--gate", "0",
            "--batch-size", "4", "--set", "finetune.sharp=0", "--json"]  # fmt: skip


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_adapt_and_restore_tell_of_the_groups(
    mixed_photos, config, short_programs, tmp_path, verdicts, capsys
):
    run = tmp_path / "run"
    command = [*arguments(mixed_photos, config, run), "--iterations", "200"]
    command = [sys.executable, "-m", "bfr_core", *command]
    process = subprocess.Popen(command, cwd=ROOT, env=short_programs, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not (run / "groups/1/targets").exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    assert process.wait() != 0 and not (run / "groups.safetensors").exists()
    capsys.readouterr()
    assert main([*arguments(mixed_photos, config, run), "--iterations", "4", "--export-pth"]) == 0
    routed = load_restorer(run / "groups.safetensors")
    assert isinstance(routed, Routed) and len(routed.members) == 3
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [group["verdict"] for group in summary["groups"]] == ["adopt", "keep_base"]
    assert (run / "groups/1/restorer.pth").is_file()
    command = ["restore", str(mixed_photos), "--restorer", str(run / "groups.safetensors"), "--aligned", "--json"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    out, said = capsys.readouterr()
    served = json.loads(out.splitlines()[-1])["served_by"]
    of_group = [photo for photo, by in served.items() if by == ["group 1"]]
    assert len(served) == NOISY + BLURRED and len(of_group) == summary["groups"][0]["faces"]
    assert all(photo.startswith("sensor") for photo in of_group)
    assert f"base: {len(served) - len(of_group)} faces; group 1: {len(of_group)} faces" in said


def test_a_nearly_grey_face_is_described_alike_when_groups_are_found_and_when_it_is_restored(
    tiny_restorer, tmp_path, monkeypatch
):
    """An old print stored as colour JPEG: the restorer is given it without colour."""
    generator = torch.Generator().manual_seed(0)
    for i in range(MIN_FACES):
        coarse = 0.2 + 0.6 * torch.rand(1, 1, 4, 4, generator=generator)
        grey = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")[0]
        noise = 0.005 * torch.randn(3, 32, 32, generator=generator)
        write_image(tmp_path / "photos" / f"{i:02}.png", (torch.cat([grey, grey, 0.98 * grey]) + noise).clamp(0, 1))
    run, base, described = Run(tmp_path / "run"), load_restorer(tiny_restorer), []

    def describe(lq, restored):
        described.append(lq)
        return groups.describe(lq, restored)

    monkeypatch.setattr(per_damage, "describe", describe)
    monkeypatch.setattr(routed, "describe", describe)
    with run.locked():
        faces = collect_faces(tmp_path / "photos", run, 32, FaceConfig(aligned=True))
        found, _ = group_faces(run, faces, base)
    crops = [read_image(file) for file in sorted((tmp_path / "photos").glob("*.png"))]  # as a photo gives them
    assert all(map(is_nearly_grey, crops)) and not any(torch.equal(crop[0], crop[2]) for crop in crops)
    restore_crops(crops, Routed.of(found, [base, *[None] * len(found)], name="groups"), MIN_FACES)
    first, second = described
    assert torch.allclose(first, second, atol=0.51 / 255), "but for the 8 bits in which a run keeps its faces"
    assert torch.equal(first[:, 0], first[:, 2]) and torch.equal(second[:, 0], second[:, 2])


def test_one_damage_is_adapted_to_as_usual(config, tmp_path, capsys):
    photos = put(tmp_path / "photos", "sensor", NOISY, 0)
    assert main([*arguments(photos, config, tmp_path / "run"), "--iterations", "4", "--export-pth"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["restorer"] == str(tmp_path / "run/restorer.safetensors") and "groups" not in summary
    assert not (tmp_path / "run/groups.safetensors").exists() and (tmp_path / "run/restorer.pth").is_file()
    assert Run(tmp_path / "run").by_group() == [] and Run(tmp_path / "run").result.name == "restorer.safetensors"


def test_good_faces_of_the_folder_are_refused_in_one_line(mixed_photos, config, tmp_path, capsys):
    assert main([*arguments(mixed_photos, config, tmp_path), "--album"]) == 2
    assert "bfr: album cannot be used with mixed" in capsys.readouterr().err


@pytest.mark.slow
def test_good_and_real_faces_are_found_in_photos_once_for_all_groups(mixed_photos, config, tmp_path, monkeypatch):
    """The faces of a group are crops; the good photos are photos, in which faces must be found."""
    write_image(tmp_path / "good" / "holiday.png", torch.rand(3, 60, 90))
    one = [Face(template(1) * 40)]
    monkeypatch.setattr("bfr_core.faces.detect.load_detector", lambda *_: lambda photo: one)
    monkeypatch.setattr("bfr_core.adaptation.tuning.judged_on_faces", judged)
    run, base = Run(tmp_path / "run"), load_restorer(config.restorer)
    own = changed(config, {"faces.aligned": False, "album.good": str(tmp_path / "good")})
    own = changed(own, {"album.real": str(tmp_path / "good")})
    taken = []
    real = per_damage.adapt

    def spied(*given):
        taken.append(given[-1])
        return real(*given)

    monkeypatch.setattr(per_damage, "adapt", spied)
    with run.locked():
        faces = collect_faces(mixed_photos, run, base.size, config.faces)
        result = per_damage.adapt_groups(run, faces, own, base)
    assert result and len(result.groups) == 2
    assert [[file.parent.parent.name for file in (*good.files, *good.real)] for good in taken] == [["good", "real"]] * 2


@pytest.mark.slow
def test_groups_that_nothing_judges_have_their_own_restorers(mixed_photos, config, tmp_path):
    """As without groups, where a tuned restorer that was not judged is saved all the same."""
    result = adapt_mixed(mixed_photos, tmp_path, changed(config, {"finetune.held_out": 0.0}))
    assert [group.judgement.verdict for group in result.groups] == ["not_judged"] * 2
    assert result.verdict == "not_judged"
    mixed = load_restorer(tmp_path / "groups.safetensors")
    assert isinstance(mixed, Routed) and all(mixed.members[1:])
    assert (
        "Restorers of their own serve 2 of them"
        in json.loads((tmp_path / "report.json").read_text())["verdict_sentence"]
    )


@pytest.mark.slow
def test_people_are_found_over_all_groups(mixed_photos, config, tmp_path, monkeypatch):
    """Somebody may have photos of two damages, and of none."""
    monkeypatch.setattr("bfr_core.adaptation.tuning.judged_on_faces", judged)
    asked = []

    def find(run, faces, *rest):
        asked.append(len(faces))
        write_json(run.people, {"people": dict.fromkeys(faces.names, 1)})

    for module in ("per_damage", "adapt"):
        monkeypatch.setattr(f"bfr_core.adaptation.{module}.find_people_if_few", find)
    result = adapt_mixed(mixed_photos, tmp_path, changed(config, {"people.find": True}))
    assert len(result.groups) == 2 and asked == [len(faces_of(result.run))]
    notes = json.loads((tmp_path / "report.json").read_text())["notes"]
    assert any(note.startswith(f"person 1: {asked[0]} faces: ") for note in notes)
