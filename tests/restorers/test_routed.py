"""Several restorers as one: each face goes to the restorer of its group, and false files of groups are refused."""

import json
import os
from dataclasses import dataclass, fields, replace

import pytest
import torch

from bfr_core.adaptation.config import recipe
from bfr_core.damage.groups import FEATURES, DamageGroups, describe
from bfr_core.faces.align import Face, template
from bfr_core.files.photos import read_photo, write_image
from bfr_core.files.tensors import load_tensors, save_tensors, sha256_of
from bfr_core.restoration.folder import restore_folder
from bfr_core.restoration.restore import RestoreConfig, restore_aligned, restore_photo
from bfr_core.restorers import Restorer, export_pth, load_restorer, save_restorer
from bfr_core.restorers.codeformer import CodeFormer, with_fidelity
from bfr_core.restorers.routed import Routed, save_groups

EXACT = RestoreConfig(precision="float32")  # as the groups of `file` were described
RECORD = {"base": "tiny.safetensors", "base_sha256": "00", "licence": "test"}


def darker(restorer, by):
    """`restorer` with a bias of its last layer moved, so that its results are known by their mean."""
    other = load_restorer(restorer)
    with torch.no_grad():
        other.module.get_parameter("ending.bias").sub_(by)
    return other


@pytest.fixture
def lq():
    """Two faces with little noise, one with more of it, two with much: three damages, as 8 bits hold them.

    Their red rises from left to right, because what is nearly grey is restored, and described, as grey.
    """
    generator = torch.Generator().manual_seed(0)
    amounts = torch.tensor([0.02, 0.02, 0.08, 0.3, 0.3]).view(-1, 1, 1, 1)
    colour = torch.full((1, 3, 32, 32), 0.5)
    colour[:, 0] += torch.linspace(-0.1, 0.1, 32)
    return (colour + amounts * (torch.rand(5, 3, 32, 32, generator=generator) - 0.5)).mul(255).round() / 255


@pytest.fixture
def file(tiny_restorer, tmp_path, lq):
    """A file of two groups: of little noise, served by a restorer of its own, and of much, served by the base."""
    folder = tmp_path / "run"
    base = load_restorer(tiny_restorer)
    described = describe(lq, base.restore(lq))
    centres = torch.stack([described[:2].mean(0), described[3:].mean(0)])
    away = torch.tensor([(described[0] - centres[0]).norm(), (described[3] - centres[1]).norm()])
    groups = DamageGroups(torch.eye(FEATURES), centres, 1.1 * away + 1e-3)
    members = [folder / "groups/base.safetensors", folder / "groups/1/restorer.safetensors"]
    for path, restorer in zip(members, (base, darker(tiny_restorer, 0.25)), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_restorer(path, restorer, {})
    save_groups(folder / "groups.safetensors", groups, members[0], [members[1], None], RECORD)
    return folder / "groups.safetensors"


def test_each_face_is_restored_by_its_own(file, tiny_restorer, lq):
    routed = load_restorer(file)
    assert isinstance(routed, Routed)
    base, own = load_restorer(tiny_restorer), darker(tiny_restorer, 0.25)
    result, served = routed.restore_and_tell(lq)
    assert served == ["group 1", "group 1", "base", "base", "base"]
    assert torch.allclose(result[:2], own.restore(lq[:2]), atol=1e-6)
    assert torch.allclose(result[2:], base.restore(lq[2:]), atol=1e-6)
    assert not torch.allclose(result[:2], base.restore(lq[:2]), atol=0.1)
    assert torch.allclose(routed.restore(lq), result) and torch.allclose(routed.restore_each(lq), result, atol=1e-6)
    assert (routed.size, routed.licence, routed.name) == (32, "test", "groups.safetensors")
    assert routed.groups.route(describe(lq, base.restore(lq))) == [0, 0, -1, 1, 1]


def test_a_folder_says_who_served_each_face(file, lq, tmp_path):
    for i in (0, 3):
        write_image(tmp_path / "photos" / f"{i}.png", lq[i])
    result = restore_folder(tmp_path / "photos", tmp_path / "out", load_restorer(file), EXACT, aligned=True)
    assert [one.served for one in result.files] == [("group 1",), ("base",)]
    step = read_photo(tmp_path / "out/0.png").record.steps[-1]
    assert step.settings["served_by"] == "group 1" and step.restorer == "groups.safetensors"


def test_so_does_the_record_of_a_photo_in_memory(file, lq):
    config = replace(EXACT, likeness="off")
    face = Face(template(1) * 32 + [48, 48])
    photo = torch.full((3, 96, 96), 0.5)
    photo[:, 32:64, 32:64] = lq[0]
    routed = load_restorer(file)
    whole = restore_photo(photo, routed, config, lambda _: [face])
    step = restore_aligned(lq[0], routed, config).step
    assert whole.step.settings["served_by"] in ("group 1", "base") and step.settings["served_by"] == "group 1"


def test_one_restorer_says_nothing_of_groups(tiny_restorer, lq, tmp_path):
    write_image(tmp_path / "photos/a.png", lq[0])
    result = restore_folder(tmp_path / "photos", tmp_path / "out", load_restorer(tiny_restorer), aligned=True)
    assert result.files[0].served == ()
    assert "served_by" not in read_photo(tmp_path / "out/a.png").record.steps[-1].settings


def test_a_face_that_fails_does_not_move_the_others_names(file, lq, tmp_path):
    routed = load_restorer(file)
    assert isinstance(routed, Routed)
    with torch.no_grad():
        routed.members[1].module.get_parameter("ending.bias").fill_(float("nan"))
    for i in (0, 1, 3, 4):
        write_image(tmp_path / "photos" / f"{i}.png", lq[i])
    result = restore_folder(tmp_path / "photos", tmp_path / "out", routed, EXACT, aligned=True)
    assert [(one.status, one.served) for one in result.files] == [("failed", ())] * 2 + [("restored", ("base",))] * 2


def test_several_in_one_can_be_neither_tuned_nor_written_as_one(file, tmp_path):
    routed = load_restorer(file)
    with pytest.raises(ValueError, match=r"groups.safetensors: is several restorers in one"):
        recipe(routed)
    for write in (lambda: save_restorer(tmp_path / "a", routed, {}), lambda: export_pth(tmp_path / "a.pth", routed)):
        with pytest.raises(ValueError, match=r"give the file of one group, such as groups/1/restorer.safetensors"):
            write()


# ---------------------------------------------------------------- files that are not what they say


def rewritten(file, members=None, **tensors):
    state, metadata = load_tensors(file)
    save_tensors(file, state | tensors, metadata | ({} if members is None else {"members": members}))


def refused(file, says, error=ValueError):
    with pytest.raises(error, match=says) as raised:
        load_restorer(file)
    assert str(raised.value).startswith("groups.safetensors") and str(raised.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "groups/../../outside.safetensors",
        "..\\outside",
        "C:\\a",
        "",
        ".",
        "a\0b",
    ],
)
def test_a_member_outside_the_folder_is_refused(file, tiny_restorer, name):
    outside = file.parent.parent / "outside.safetensors"
    outside.write_bytes(tiny_restorer.read_bytes())
    entries = json.loads(load_tensors(file)[1]["members"])
    entries[1] = {"file": name, "sha256": load_restorer(tiny_restorer).sha256}
    rewritten(file, json.dumps(entries))
    refused(file, "which is not in its own folder")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_that_leads_out_is_refused(file, tiny_restorer):
    member = file.parent / "groups/1/restorer.safetensors"
    outside = file.parent.parent / "outside.safetensors"
    member.replace(outside)
    member.symlink_to(outside)
    refused(file, "groups/1/restorer.safetensors, which is not in its own folder")
    member.unlink()
    member.symlink_to(member)
    refused(file, "not in its own folder|is not beside it", (ValueError, FileNotFoundError))


def test_a_member_that_is_missing_or_altered_is_one_clear_line(file, tiny_restorer):
    member = file.parent / "groups/1/restorer.safetensors"
    save_restorer(member, darker(tiny_restorer, 0.5), {})
    refused(file, r"groups/1/restorer.safetensors is not the file it was made with")
    member.unlink()
    refused(file, r"groups/1/restorer.safetensors is not beside it; keep the folder", FileNotFoundError)


@pytest.mark.parametrize(
    "members", ["", "nonsense", "[]", "[null, null, null]", '[{"file": 3, "sha256": ""}, null, null]', "{}", "7"]
)
def test_a_list_of_members_that_is_none(file, members):
    rewritten(file, members)
    refused(file, "does not say which restorers serve its 2 groups")


def test_groups_of_another_shape_are_refused(file):
    rewritten(file, centres=torch.zeros(2, 3))
    refused(file, "its groups are not as this version makes them")
    rewritten(file, centres=torch.zeros(0, FEATURES), usual=torch.zeros(0))
    refused(file, "its groups are not as this version makes them")
    rewritten(file, usual=torch.zeros(()))
    refused(file, "its groups are not as this version makes them")


def test_a_file_of_groups_inside_another_is_refused(file):
    inner = file.parent / "groups/1/restorer.safetensors"
    inner.write_bytes(file.read_bytes())
    entries = json.loads(load_tensors(file)[1]["members"])
    entries[1]["sha256"] = sha256_of(inner)
    rewritten(file, json.dumps(entries))
    refused(file, "restorer.safetensors is a file of groups itself")


def test_members_of_different_sizes_are_refused(file, tiny_restorer):
    member = file.parent / "groups/1/restorer.safetensors"
    save_restorer(member, replace(load_restorer(tiny_restorer), size=64), {})
    entries = json.loads(load_tensors(file)[1]["members"])
    entries[1]["sha256"] = sha256_of(member)
    rewritten(file, json.dumps(entries))
    refused(file, "restorer.safetensors is not of the size of its base, 32")


@dataclass(eq=False)
class Faithful(Restorer):
    """Stands for a CodeFormer: its result is its fidelity_weight everywhere."""

    fidelity_weight: float = 0.5
    with_fidelity = CodeFormer.with_fidelity

    def __call__(self, lq):
        return torch.full_like(lq, self.fidelity_weight)


def test_one_that_keeps_the_base_everywhere_says_so(file):
    routed = load_restorer(file)
    assert isinstance(routed, Routed) and routed.caution == ""
    kept = replace(routed, members=(routed.members[0], None, None))
    assert "keep the base" in kept.caution and kept.name in kept.caution


def test_fidelity_reaches_every_member(file, lq):
    routed = load_restorer(file)
    assert isinstance(routed, Routed) and routed.fidelity_weight is None
    assert torch.equal(with_fidelity(routed, 0.9).restore(lq), routed.restore(lq))
    members = [Faithful(**{f.name: getattr(one, f.name) for f in fields(Restorer)}) for one in routed.members if one]
    several = replace(routed, members=(*members, None))
    assert several.restore(lq).eq(0.5).all() and several.fidelity_weight == 0.5
    other = with_fidelity(several, 0.9)
    assert (
        isinstance(other, Routed)
        and torch.allclose(other.restore(lq), torch.tensor(0.9))
        and other.fidelity_weight == 0.9
    )
    assert several.restore(lq).eq(0.5).all(), "the first is as it was"
