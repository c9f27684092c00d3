"""Groups of damages: what is told apart, what is not, and where a new face goes."""

import pytest
import torch
from torch.nn import functional as F

from bfr_core.damage.groups import (
    FEATURES,
    KNOWN,
    DamageGroups,
    describe,
    find_groups,
    known_descriptions,
    one_damage,
    units_of,
)
from bfr_core.damage.synthetic import degrade
from bfr_core.diffusion.low_pass import low_pass


def cloud(count, place, seed, spread=1.0):
    """Points in 40 dimensions, as descriptions have many: neighbours are all about equally far, 7 or so."""
    points = spread * torch.randn(count, 40, generator=torch.Generator().manual_seed(seed))
    points[:, : len(place)] += torch.tensor(place)
    return points


def smooth_faces(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(count, 3, 6, 6, generator=generator), (64, 64), mode="bicubic").clamp(0, 1)


def base(lq):
    return low_pass(lq, 4)


def under(kind, faces, seed=0):
    lq = degrade(faces, kind, torch.Generator().manual_seed(seed)).lq
    return describe(lq, base(lq))


def test_a_description_is_a_row_of_plain_numbers():
    found = describe(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    assert found.shape == (2, FEATURES) and found.isfinite().all()


def test_two_clouds_are_two_groups_and_one_is_one():
    near, far = cloud(20, (0.0,), 0), cloud(30, (20.0,), 1)
    assert find_groups(torch.cat([near, far])) == [list(range(20, 50)), list(range(20))]
    assert find_groups(far) == [list(range(30))]


def test_copies_of_faces_split_no_damage():
    for seed in range(20):
        one = cloud(30, (0.0,), seed)
        assert len(find_groups(torch.cat([one, one, one]))) == len(find_groups(one)) == 1


def test_clouds_that_touch_are_one():
    assert len(find_groups(torch.cat([cloud(40, (0.0,), 0), cloud(40, (4.0,), 1)]))) == 1


def test_a_loose_cloud_is_measured_by_its_own_links():
    dense, loose = cloud(20, (0.0,), 0, 0.1), cloud(20, (0.0,), 1)
    assert len(find_groups(torch.cat([dense, loose]))) == 1  # nowhere further apart than the loose ones are
    apart = find_groups(torch.cat([dense, loose + 3]))
    assert sorted(apart) == [list(range(20)), list(range(20, 40))]


def test_a_cloud_too_small_for_a_group_is_none():
    few = cloud(14, (20.0,), 2)
    assert len(find_groups(torch.cat([cloud(20, (0.0,), 0), few]))) == 1
    three = find_groups(torch.cat([cloud(20, (0.0,), 0), few, cloud(20, (0.0, 20.0), 1)]))
    assert len(three) == 2 and not set(range(20, 34)) & {i for group in three for i in group}


@pytest.mark.parametrize("count", [1, 2, 29])
def test_too_few_faces_for_two_groups_are_one(count):
    assert find_groups(torch.rand(count, 3)) == [list(range(count))]


def test_units_make_faces_of_one_damage_vary_alike_in_every_direction():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(3, 200, 1, generator=generator)
    known = torch.cat([10 * common + 0.1 * torch.randn(3, 200, 2, generator=generator), torch.ones(3, 200, 1)], 2)
    units = units_of(known)
    assert units.isfinite().all()
    spread = ((known - known.mean(1, keepdim=True)).flatten(0, 1) @ units)[:, :2].std(0)
    assert spread.max() < 3 * spread.min()  # of the features themselves 1, but all in one direction
    along, across = torch.tensor([10.0, 10.0, 0.0]) @ units, torch.tensor([10.0, -10.0, 0.0]) @ units
    assert across.norm() > 1.5 * along.norm()


def test_damages_are_told_apart_and_new_faces_find_theirs():
    faces = smooth_faces(60, 0)
    lq = torch.cat([under("sensor", faces[:20]), under("motion_jpeg", faces[20:50])])
    units = units_of(known_descriptions(faces[::4], base))
    groups = DamageGroups.of(lq, units)
    assert len(groups) == 2 and not one_damage(groups)
    assert groups.route(lq) == [1] * 20 + [0] * 30
    assert groups.route(under("sensor", faces[50:], 1)) == [1] * 10
    assert groups.route(under("motion_jpeg", faces[50:], 1)) == [0] * 10
    assert groups.route(under("halftone", faces[50:], 1)) == [-1] * 10
    assert one_damage(DamageGroups.of(lq[:20], units)) and one_damage(DamageGroups.of(lq[20:], units))


def test_known_damages_are_the_same_every_time():
    faces = smooth_faces(3, 1)
    once, again = known_descriptions(faces, base), known_descriptions(faces, base)
    assert once.shape == (len(KNOWN), 3, FEATURES) and torch.equal(once, again)
