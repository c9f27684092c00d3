"""The family of damages, the statistics that compare faces, and the search for the damage of a folder."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bfr_core.damage import search
from bfr_core.damage.family import RANGES, Photographed, photographed
from bfr_core.damage.light import with_light_of
from bfr_core.damage.search import closest_damage
from bfr_core.damage.statistics import LEVELS, Looks, statistics
from bfr_core.damage.synthetic import motion_kernel
from bfr_core.damage.transplant import filtered
from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.pixels import gaussian_blur
from bfr_core.randomness import keyed_generator

NOTHING = Photographed(0, 1, 1, -5, -4, 0, 0, 1, 0, 0, 105, 0)


@pytest.fixture(scope="module")
def faces():
    return SharpFaces(64).stacked(48)


def made(faces, **how):
    return photographed(faces, replace(NOTHING, **how), keyed_generator(3))


def test_the_mildest_damage_leaves_a_face_as_it_is(faces):
    assert (made(faces) - faces).abs().mean() < 0.002
    assert Photographed.at([0] * len(RANGES)) == Photographed(*(low for low, _ in RANGES.values()))
    assert Photographed.at([2] * len(RANGES)) == Photographed(*(high for _, high in RANGES.values())), "never beyond"


def test_photon_noise_grows_with_light_and_read_out_noise_does_not():
    grey = torch.linspace(0.2, 0.8, 64).expand(4, 3, 64, 64)
    dark, light = ((made(grey, shot=-2.0) - grey)[..., columns].std() for columns in (slice(8), slice(56, 64)))
    assert light**2 / dark**2 == pytest.approx(0.763 / 0.238, rel=0.1)
    dark, light = ((made(grey, read=-1.5) - grey)[..., columns].std() for columns in (slice(8), slice(56, 64)))
    assert light / dark == pytest.approx(1, abs=0.05)


def test_noise_in_light_lifts_the_shadows():
    shadow = torch.full((4, 3, 64, 64), 0.05)
    assert made(shadow, gamma=2.2, read=-2.0).mean() > 0.056
    assert made(shadow, read=-2.0).mean() == pytest.approx(0.05, abs=0.002), "not where the picture is the light"


def test_developing_makes_noise_colourful(faces):
    def colour(x):
        noise = x - faces
        return (noise - noise.mean(1, keepdim=True)).std() / noise.std()

    assert colour(made(faces, read=-1.7, colour=3)) > 1.1 * colour(made(faces, read=-1.7))


def test_green_lends_its_noise_to_the_colours_that_are_interpolated_from_it():
    grey = torch.tensor([0.5, 0.5, 0.501]).view(1, 3, 1, 1).repeat(8, 1, 64, 64)  # a grey photo would stay grey
    sharp, smooth = (made(grey, read=-1.6, colour_blur=sigma) - grey for sigma in (0.0, 3.0))
    apart, together = (torch.corrcoef(noise.transpose(0, 1).flatten(1)) for noise in (sharp, smooth))
    assert apart[0, 1].abs() < 0.02 and apart[1, 2].abs() < 0.02
    assert together[0, 1] > 0.98 and together[1, 2] > 0.98
    assert float(smooth.mean(1).std()) == pytest.approx(float(sharp[:, 1].std()), rel=0.05), "green's, not a third"


def test_a_mosaic_makes_the_noise_of_green_coarser_where_it_was_not_seen():
    grey = torch.tensor([0.5, 0.5, 0.501]).view(1, 3, 1, 1).repeat(8, 1, 64, 64)  # a grey photo would stay grey
    whole, mosaic = (made(grey, read=-1.6, mosaic=share)[:, 1] - 0.5 for share in (0.0, 1.0))
    seen = torch.eye(2).repeat(32, 32).bool()
    assert torch.equal(mosaic[:, seen], whole[:, seen])
    assert mosaic[:, ~seen].std() == pytest.approx(float(whole[:, ~seen].std()) / 2, rel=0.1), "a mean of four"
    middle, neighbour = mosaic[:, 1:-1, 1:-1], mosaic[:, 1:-1, 2:]
    assert (middle * neighbour).mean() > 0.2 * middle.square().mean(), "neighbours hang together"


def test_a_lens_makes_a_disc_of_a_point_and_a_scanner_a_bell():
    dot = torch.full((1, 3, 64, 64), 0.2)
    dot[..., 32, 32] = 20.0
    place = torch.arange(64.0) - 32
    disc, bell = (
        photographed(dot, replace(NOTHING, blur=4), keyed_generator(3), lens)[0, 1] - 0.2 for lens in (True, False)
    )
    flat, peaked = (float((one > 0.75 * one.max()).sum() / (one > 0.25 * one.max()).sum()) for one in (disc, bell))
    assert flat > 0.6 and peaked < 0.3
    widths = [float((one.sum(0) * place.square()).sum() / one.sum()) for one in (disc, bell)]
    assert max(widths) / min(widths) < 1.2, "of the same spread"


def test_half_of_the_faces_are_out_of_focus_as_by_a_lens(faces):
    face = faces[0]

    def kinds(blur):
        how = replace(NOTHING, blur=blur)
        either = [
            with_light_of(photographed(face[None], how, keyed_generator(1), lens), face[None])[0]
            for lens in (False, True)
        ]
        given = [how.put_on(face, face, face, key) for key in range(40)]
        near = [[(one - made).abs().mean() < 2e-3 for made in either] for one in given]
        assert all(any(one) for one in near)
        return [one == [False, True] for one in near]

    assert 10 < sum(kinds(3.0)) < 30
    assert not any(kinds(0.8)), "spread by less than a pixel the two are the same"


def test_each_photo_is_shaken_along_a_line_of_its_own(faces):
    dot = torch.full((16, 3, 64, 64), 0.2)
    dot[:, :, 32, 32] = 1
    lines = made(dot, shake=20.0)[:, 1].double() - 0.2  # at most 10 pixels of 64
    lines = torch.where(lines > 0.01, lines, 0) / 0.8  # without the noise
    offset = torch.arange(64.0) - 32
    total = lines.sum((1, 2))
    assert total.allclose(torch.ones(16).double(), atol=0.1)
    across, down = ((lines * offset.view(shape) ** 2).sum((1, 2)) / total for shape in ((1, 1, -1), (1, -1, 1)))
    turned = (lines * offset.view(1, 1, -1) * offset.view(1, -1, 1)).sum((1, 2)) / total
    ways = (12 * (across + down)).sqrt()  # the variance of a line of this length
    angles = torch.atan2(2 * turned, across - down) % (2 * torch.pi)
    assert 8 < ways.max() < 11.5 and (ways < 3).sum() <= 5 and 4 < ways.median() < 7
    assert torch.histc(angles, 4, 0, 2 * torch.pi).tolist() == pytest.approx([4] * 4, abs=1), "in all directions"
    assert torch.equal(made(faces, shake=0.0), made(faces)), "the noise is what it was before there was a shake"
    shaken = replace(NOTHING, shake=10.0)
    first, again, other = (shaken.put_on(faces[0], faces[1], faces[1], key) for key in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("how", [{"shake": 12.0}, {"blur": 2.5}])
@pytest.mark.parametrize("by_lens", [True, False])
def test_black_stays_a_number_under_wide_blurs(how, by_lens):
    """They are made by Fourier transforms, which leave of black what is nearly 0, and may be below it."""
    faces = torch.rand(4, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    faces[..., :150] = 0
    for one in photographed(faces, replace(NOTHING, gamma=2.2, **how), keyed_generator(3), by_lens):
        assert one.isfinite().all() and float(one[..., :100].max()) < 0.05


def test_a_photo_is_stored_before_its_face_is_enlarged(faces):
    """So the blocks of JPEG are enlarged, too: 16 pixels of a photo that was enlarged twice, not 8."""

    def at_every_other(damaged):
        """How much larger the steps across 16, 32, 48 are than those across 8, 24, 40, 56."""
        steps = (damaged[..., 1:] - damaged[..., :-1]).abs().mean((0, 1, 2))
        return float(steps[15::16].mean() / steps[7::16].mean())

    plain, enlarged = made(faces, quality=10), made(faces, shrink=2.0, quality=10)
    assert at_every_other(plain) < 1.4 and at_every_other(enlarged) > 1.7


def test_a_damage_is_said_in_words():
    assert NOTHING.in_words(128) == "noise and colours alone"
    how = replace(NOTHING, shake=6.0, blur=1.0, shrink=2.0, quality=30)
    assert how.in_words(256) == (
        "shaken by up to 12 pixels, each along a line of its own, out of focus by 2.0 pixels, shrunk 2.0 times, "
        "stored as JPEG of quality 30"
    )
    assert replace(NOTHING, shake=0.2, blur=0.1, shrink=1.1).in_words(256) == "noise and colours alone"


def test_a_shaken_camera_is_told_from_one_out_of_focus(faces):
    draws = torch.rand(24, 3, generator=keyed_generator(5)).tolist()
    bent = [motion_kernel(1 + 9 * way, math.pi * turn, bend - 0.5) for way, turn, bend in draws]
    looks = Looks(statistics(torch.stack([filtered(face, line) for face, line in zip(faces, bent, strict=False)])))

    def distance(**how):
        return looks.distance(statistics(made(faces[:24], **how)))

    assert distance(shake=20.0) < 0.8 * min(distance(blur=blur) for blur in (1.0, 2.0, 3.0, 3.5, 4.0, 5.0))


def test_faces_of_others_are_alike_and_damaged_ones_are_not(faces):
    looks = Looks(statistics(faces[:24]))
    others = looks.distance(statistics(faces[24:]))
    damaged = [made(faces[24:], read=-1.6), gaussian_blur(faces[24:], 1.5), made(faces[24:], quality=20)]
    assert looks.distance(statistics(faces[:24])) == 0
    assert all(looks.distance(statistics(x)) > 3 * others for x in damaged)


@pytest.mark.parametrize("size", [32, 63, 64])
def test_the_numbers_of_a_face_are_its_own_whoever_else_is_there(faces, size):
    some = faces[:5, :, :size, :size]
    together = statistics(some)
    assert together.isfinite().all() and together.std(0).gt(0).float().mean() > 0.9
    assert torch.allclose(together, torch.cat([statistics(face[None]) for face in some]), atol=1e-4)


def test_how_dark_and_light_a_channel_becomes_is_known_to_a_pixel():
    """Of a slope from black to white the quantiles are the shares, but for the outer eighth on each side."""
    slope = torch.linspace(0, 1, 128).expand(1, 3, 128, 128)
    levels = statistics(slope)[0, : 3 * len(LEVELS)].view(3, -1)
    assert torch.allclose(levels, 0.5 + 0.75 * (torch.tensor(LEVELS) - 0.5), atol=1 / 127)


def test_what_is_lost_by_rounding_does_not_count(faces):
    """A face that was enlarged has nothing in its finest octave but what rounding left there."""
    small = made(faces, shrink=8.0)
    stored = small.mul(255).round() / 255
    assert not torch.equal(small, stored) and Looks(statistics(stored)).distance(statistics(small)) == 0


def test_detail_is_told_from_noise_of_the_same_strength(faces):
    """By the symmetry of faces: the same noise on a blurred face, and that noise mirrored, differ."""
    soft = gaussian_blur(faces[:24], 2.0)
    noise = gaussian_blur(torch.randn(soft.shape, generator=keyed_generator(1)), 1.0) * 0.1
    mirrored = (noise + noise.flip(-1)) / 2**0.5
    assert Looks(statistics(soft + noise)).distance(statistics(soft + mirrored)) > 0.1


POPULATION = search.POPULATION  # before `few_trials` makes it smaller


def test_the_search_comes_near_a_known_damage(faces, monkeypatch):
    monkeypatch.setattr(search, "POPULATION", POPULATION)
    true = replace(NOTHING, blur=0.8, shrink=3.0, gamma=2.0, read=-1.6, quality=60)
    looks = Looks(statistics(photographed(faces[:24], true, keyed_generator(5))))
    np.random.seed(1)  # noqa: NPY002
    before = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    calls = []
    found = closest_damage(
        photographed(faces[:24], true, keyed_generator(5)),
        faces[24:],
        180,
        6,
        callback=lambda *call: calls.append(call),
    )
    answer = looks.distance(statistics(photographed(faces[24:], found.how, keyed_generator(6))))
    best = looks.distance(statistics(photographed(faces[24:], true, keyed_generator(6))))
    start = looks.distance(statistics(faces[24:]))
    assert best < answer < best + 0.4 * (start - best)
    assert calls[-1] == (180, 180) and np.random.rand() == before  # noqa: NPY002


def test_trials_of_a_generation_see_the_same_faces_and_those_of_the_next_others(faces, monkeypatch):
    seen = []

    def watched(how, sharp, looks, seed):
        seen.append(frozenset(float(face.sum()) for face in sharp))
        return how.blur

    monkeypatch.setattr(search, "distance_under", watched)
    monkeypatch.setattr(search, "STARTS", search.STARTS[:1])
    generation = search.POPULATION
    closest_damage(faces[:4], faces[4:28], 3 * generation, 6)
    trials, judged = [one for one in seen if len(one) == 6], [one for one in seen if len(one) == 24]
    assert [len(set(trials[i : i + generation])) for i in range(0, len(trials), generation)] == [1] * 3
    assert len(frozenset.union(*trials)) > 12 and seen[-2:] == judged[-2:], "the answer is measured on all"


def test_the_search_leaves_a_place_from_which_nothing_near_is_better(faces, monkeypatch):
    """It begins at more than one, and goes on with most of its trials from where it came nearest."""
    mild, sensor = (torch.tensor(search.Start(how, 0.1).place) for how in (search.MILD, search.SENSOR))
    seen = []

    def two_valleys(how, sharp, looks, seed):
        place = torch.tensor(search.Start(how, 0.0).place)
        near_mild, near_sensor = ((place - bottom).square().sum() for bottom in (mild, sensor))
        seen.append(len(sharp))
        return min(0.5 + float(near_mild), 0.1 + 3 * float(near_sensor))

    monkeypatch.setattr(search, "distance_under", two_valleys)
    told = []
    found = closest_damage(faces[:4], faces[4:12], 120, 4, callback=lambda *call: told.append(call))
    assert found.distance < 0.4, "the mild valley has 0.5"
    assert seen.count(4) == 120 == told[-1][0] and told == sorted(told)


def test_starts_are_damages_of_the_family():
    for start in search.STARTS:
        assert all(0 <= share <= 1 for share in start.place) and Photographed.at(start.place) == start.how


@pytest.mark.parametrize(("without", "shake"), [(1.0, 0.0), (1.04, 0.0), (1.2, 6.0)])
def test_a_shaken_camera_is_found_only_where_a_still_one_is_clearly_worse(faces, monkeypatch, without, shake):
    place = [(6.0 - low) / (high - low) if name == "shake" else 0.5 for name, (low, high) in RANGES.items()]
    at, distances = Photographed.at, []

    def distance(how, sharp, looks, seed):
        distances.append(without if how.shake == 0 else 1.0)
        return distances[-1]

    monkeypatch.setattr(search, "distance_under", distance)
    monkeypatch.setattr(search.Photographed, "at", lambda _: at(place))
    found = closest_damage(faces[:4], faces[4:8], search.POPULATION, 4)
    assert found.how == replace(at(place), shake=shake) and found.distance == (1.0 if shake else without)


def test_a_search_can_be_stopped(faces):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        closest_damage(faces[:4], faces[4:8], 100, 4, callback=stop)


def test_a_folder_of_one_face_can_be_searched_for(faces):
    found = closest_damage(made(faces[:1], blur=2.0), faces[:4], 24, 2)
    assert 0 < found.distance < 100 and found.how.blur > 0
