"""Folders in, a table out: matching, what is left out, and that the figures are those of the measures."""

from __future__ import annotations

import csv
import json
import math
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bfr_core import metrics
from bfr_core.cli.commands import main
from bfr_core.files.ownership import note_result
from bfr_core.files.photos import read_image, write_image
from bfr_core.metrics.optional import write_statistics
from bfr_core.pixels import gaussian_blur, resized
from bfr_core.studies import evaluate as ev


def picture(seed: int, size: int = 48) -> Tensor:
    """(3, size, size): soft coloured patches with some fine grain."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 6, generator=draw)
    soft = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0]
    return (soft + 0.1 * torch.randn(3, size, size, generator=draw)).clamp(0, 1)


def damaged(image: Tensor, sigma: float) -> Tensor:
    return (image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(9))).clamp(0, 1)


def save(folder: Path, name: str, image: Tensor) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_image(folder / name, image)


WITHOUT_FILES = [
    "not measured, because their packages or files are not on this machine: Identity, ArcFace IR-SE50 (degrees); "
    "LPIPS, VGG; NIQE, against its authors' natural images; MUSIQ, trained on KonIQ-10k; MANIQA, trained on KonIQ-10k",
    "FID is left out: it needs 2000 faces or more",
]


@pytest.fixture(autouse=True)
def no_weights(tmp_path_factory, monkeypatch):
    """Whatever this machine has: no file of a network is found, unless a test says so."""
    monkeypatch.setenv("BFR_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
    monkeypatch.setattr(ev, "find_vgg", lambda: None)
    monkeypatch.setattr(ev, "find_quality", dict)
    monkeypatch.setattr(ev, "find_inception", lambda: None)


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """Six faces: damaged, half repaired, clean; in subfolders, and in different formats."""
    for i in range(6):
        hq = picture(i)
        save(tmp_path / "clean", f"a/{i}.png", hq)
        save(tmp_path / "lq", f"a/{i}.jpg", damaged(hq, 0.2))
        save(tmp_path / "restored", f"a/{i}.png", damaged(hq, 0.05))
    return {name: tmp_path / name for name in ("clean", "lq", "restored")}


def test_figures_are_those_of_the_measures(folders):
    result = ev.evaluate(folders["restored"], folders["clean"], folders["lq"])
    assert [row.name for row in result.rows] == ["damaged", "restored", "restored - damaged"]
    assert result.faces == [f"a/{i}" for i in range(6)] and result.notes == WITHOUT_FILES
    pairs = [[read_image(folders[name] / f"a/{i}.png")[None] for name in ("restored", "clean")] for i in range(6)]
    values = [metrics.psnr(*pair).item() for pair in pairs]
    before, after, gain = result.rows
    assert after.values["psnr"] == metrics.bootstrap_interval(values)
    assert gain.values["psnr"].mean == pytest.approx(after.values["psnr"].mean - before.values["psnr"].mean)
    assert gain.values["psnr"].low > 5
    assert after.values["kid"].mean < before.values["kid"].mean
    assert before.values["low_band"].mean == 0
    assert after.values["detail_correlation"].mean > before.values["detail_correlation"].mean


def test_equal_folders_are_perfect(folders):
    (row,) = ev.evaluate(folders["clean"], folders["clean"]).rows
    assert row.values["psnr"].mean == metrics.PSNR_CAP
    assert row.values["ssim"].mean == pytest.approx(1)
    assert row.values["kid"] == pytest.approx((0, 0, 0), abs=1e-9)
    assert "low_band" not in row.values


def test_faces_without_a_counterpart_are_named_and_left_out(folders, caplog):
    (folders["lq"] / "a/2.jpg").unlink()
    save(folders["restored"], "extra.png", picture(7))
    result = ev.evaluate(folders["restored"], folders["clean"], folders["lq"])
    assert result.faces == [f"a/{i}" for i in (0, 1, 3, 4, 5)]
    assert "2 of 7 in the restored folder have no counterpart: a/2, extra" in result.notes
    assert "1 of 6 in the clean folder have no counterpart: a/2" in caplog.messages


def test_unreadable_and_other_sized_faces_are_left_out_and_the_rest_is_done(folders, capsys):
    (folders["restored"] / "a/0.png").write_text("not a picture")
    save(folders["restored"], "a/1.png", picture(1, size=64))
    result = ev.evaluate(folders["restored"], folders["clean"])
    assert result.faces == [f"a/{i}" for i in range(2, 6)]
    assert any(note.startswith("left out: 0.png: ") for note in result.notes)
    assert "left out: a/1: sizes differ (restored 64 x 64, clean 48 x 48 pixels)" in result.notes
    assert result.failed == ["a/0", "a/1"]
    assert main(["evaluate", str(folders["restored"]), "--clean", str(folders["clean"]), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == ["a/0", "a/1"]


def test_same_stem_twice_is_told_apart_by_suffix(tmp_path):
    for name, seed in (("x.png", 0), ("x.jpg", 1)):
        save(tmp_path / "clean", name, picture(seed))
        save(tmp_path / "restored", name, picture(seed))
    result = ev.evaluate(tmp_path / "restored", tmp_path / "clean")
    assert sorted(result.faces) == ["x.jpg", "x.png"]
    assert min(result.per_face["restored"]["psnr"]) > 35


def test_results_beside_a_picture_of_somebody_else_are_measured(tmp_path):
    """Only in a folder of photos to restore are results passed over."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    Image.new("RGB", (48, 48)).save(mixed / "montage.png")
    for i in range(2):
        save(mixed, f"p{i}.png", picture(i))
        note_result(mixed / f"p{i}.png")
        save(tmp_path / "clean", f"p{i}.png", picture(i))
    pairs, notes = ev.match_files({"restored": mixed, "clean": tmp_path / "clean"})
    assert set(pairs) == {"p0", "p1"} and notes == ["1 of 3 in the restored folder have no counterpart: montage"]


def test_names_match_however_their_accents_are_encoded(tmp_path):
    save(tmp_path / "clean", unicodedata.normalize("NFC", "é.png"), picture(0))
    save(tmp_path / "restored", unicodedata.normalize("NFD", "é.png"), picture(0))
    assert len(ev.evaluate(tmp_path / "restored", tmp_path / "clean").faces) == 1


def test_nothing_to_compare_is_one_clear_line(folders, tmp_path):
    save(tmp_path / "elsewhere", "b.png", picture(0))
    with pytest.raises(ValueError, match="has the same name, suffix aside"):
        ev.evaluate(tmp_path / "elsewhere", folders["clean"])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ev.evaluate(tmp_path / "absent", folders["clean"])
    save(tmp_path / "broken", "a/1.png", picture(0))
    (tmp_path / "broken/a/1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no face could be compared: left out: 1\.png: is empty"):
        ev.evaluate(tmp_path / "broken", folders["clean"])


def test_one_small_face_has_what_can_be_measured(tmp_path):
    for name in ("clean", "restored"):
        save(tmp_path / name, "tiny.png", picture(0, size=8))
    result = ev.evaluate(tmp_path / "restored", tmp_path / "clean")
    (row,) = result.rows
    assert {"psnr", "detail_correlation"} <= set(row.values) and not {"ssim", "vif", "kid"} & set(row.values)
    assert any("KID is left out" in note for note in result.notes)
    assert math.isnan(row.values["psnr"].low) and "100.00\n" in ev.format_table(result) + "\n"


def test_a_flat_clean_face_costs_only_its_own_detail(folders):
    save(folders["clean"], "a/0.png", torch.full((3, 48, 48), 0.5))
    result = ev.evaluate(folders["restored"], folders["clean"])
    values = result.per_face["restored"]["detail_correlation"]
    assert math.isnan(values[0])
    assert result.rows[0].values["detail_correlation"].mean == pytest.approx(values[1:].mean())


def test_without_piq_the_rest_is_measured(folders, monkeypatch):
    monkeypatch.setattr(ev, "_has_piq", lambda: False)
    monkeypatch.setitem(sys.modules, "piq", None)
    result = ev.evaluate(folders["restored"], folders["clean"])
    assert "vif" not in result.rows[0].values and {"gmsd", "ssim"} <= set(result.rows[0].values)
    assert any("pip install piq" in note for note in result.notes)


def test_table_csv_and_json_say_the_same(folders, tmp_path):
    result = ev.evaluate(folders["restored"], folders["clean"], folders["lq"])
    text = ev.format_table(result)
    mean, low, high = result.rows[1].values["psnr"]
    assert f"{mean:.2f} ({low:.2f} to {high:.2f})" in text
    assert text.startswith("6 faces") and "PSNR (dB), higher is better" in text
    read = json.loads(json.dumps(ev.as_dict(result), allow_nan=False))
    assert read["rows"]["restored"]["psnr"]["low"] == low
    ev.write_csv(tmp_path / "out.csv", result)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["face"] for line in lines] == result.faces
    assert sum(float(line["restored psnr"]) for line in lines) / 6 == pytest.approx(mean, rel=1e-5)


def test_hostile_names_stay_on_their_line_and_are_no_formulas(tmp_path):
    for name in ("=1+1.png", "two\nlines.png"):
        save(tmp_path / "clean", name, picture(0))
        save(tmp_path / "restored", name, picture(0))
    result = ev.evaluate(tmp_path / "restored", tmp_path / "clean")
    ev.write_csv(tmp_path / "out.csv", result)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[1].startswith("'=1+1,") and lines[2].startswith("two\\nlines,") and len(lines) == 3
    assert "two\\nlines" in json.dumps(ev.as_dict(result)).replace("\\\\", "\\")


def test_a_callback_follows_and_can_cancel(folders):
    steps = []
    ev.evaluate(folders["restored"], folders["clean"], callback=lambda *step: steps.append(step))
    assert steps == [(i, 6, None) for i in range(7)]

    def cancel(step: int, total: int, preview: Tensor | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ev.evaluate(folders["restored"], folders["clean"], callback=cancel)


def test_networks_are_used_where_their_files_are(folders, monkeypatch):
    """Their places are taken by functions whose answer is known."""
    monkeypatch.setattr(ev, "find_recogniser", lambda: lambda faces: torch.eye(2)[[0 if faces.std() > 0.25 else 1]])
    monkeypatch.setattr(ev, "find_vgg", lambda: Path("vgg"))
    monkeypatch.setattr(ev, "lpips_loss", lambda vgg: lambda a, b: (a - b).abs().mean())
    scores = {"niqe": lambda faces: faces.mean((1, 2, 3)), "musiq": lambda faces: faces.amax((1, 2, 3))}
    scores["maniqa"] = lambda faces: faces.amin((1, 2, 3))
    monkeypatch.setattr(ev, "find_quality", lambda: scores)
    result = ev.evaluate(folders["restored"], folders["clean"])
    (row,) = result.rows
    assert result.notes == WITHOUT_FILES[1:] and set(result.per_face["restored"]["identity"]) <= {0.0, 90.0}
    wanted = [
        (read_image(folders["restored"] / f"a/{i}.png") - read_image(folders["clean"] / f"a/{i}.png")) for i in range(6)
    ]
    assert row.values["lpips"].mean == pytest.approx(torch.stack(wanted).abs().mean().item(), abs=1e-6)
    first = read_image(folders["restored"] / "a/0.png")
    assert result.per_face["restored"]["niqe"][0] == pytest.approx(first.mean().item(), abs=1e-6)
    assert result.per_face["restored"]["musiq"][0] == pytest.approx(first.max().item(), abs=1e-6)


def test_fid_is_measured_of_enough_faces_and_of_no_fewer(folders, monkeypatch):
    features: dict[float, Tensor] = {}

    def inception(faces: Tensor) -> Tensor:
        return features.setdefault(float(faces.sum()), torch.stack([faces.mean((1, 2, 3)), faces.std((1, 2, 3))], 1))

    monkeypatch.setattr(ev, "find_inception", lambda: inception)
    assert "fid" not in ev.evaluate(folders["restored"], folders["clean"]).rows[0].values and not features
    monkeypatch.setattr(metrics, "FID_MIN_FACES", 6)
    monkeypatch.setattr(sys.modules["bfr_core.metrics.fid"], "FID_MIN_FACES", 6)
    restored, damaged_too = (ev.evaluate(folders[name], folders["clean"]).rows[0] for name in ("restored", "lq"))
    assert 0 < restored.values["fid"].mean < damaged_too.values["fid"].mean
    assert math.isnan(restored.values["fid"].low)


def test_a_plot_is_a_picture_of_every_measure(folders, tmp_path, monkeypatch):
    result = ev.evaluate(folders["restored"], folders["clean"], folders["lq"])
    ev.write_plot(tmp_path / "plot.png", result)
    picture = read_image(tmp_path / "plot.png")
    assert picture.shape[-1] > 400 and picture.std() > 0.05
    alone = ev.Evaluation([ev.Row("one", {"psnr": metrics.Interval(20.0, math.nan, math.nan)})], ["a"], {}, [])
    ev.write_plot(tmp_path / "one.png", alone)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        ev.write_plot(tmp_path / "none.png", result)


def test_without_clean_faces_what_needs_no_truth_is_measured(folders, monkeypatch):
    monkeypatch.setattr(ev, "find_recogniser", lambda: lambda faces: torch.eye(2)[[0 if faces.std() > 0.25 else 1]])
    monkeypatch.setattr(ev, "find_quality", lambda: {"maniqa": lambda faces: faces.mean((1, 2, 3))})
    result = ev.evaluate(folders["restored"], lq=folders["lq"])
    assert [row.name for row in result.rows] == ["damaged", "restored", "restored - damaged"]
    before, after, _ = result.rows
    assert set(after.values) == {"maniqa", "sharpness", "low_band", "likeness"}
    assert before.values["low_band"].mean == before.values["likeness"].mean == 0 < after.values["low_band"].mean
    first, photo = (
        read_image(folders[name] / file)[None] for name, file in (("restored", "a/0.png"), ("lq", "a/0.jpg"))
    )
    assert result.per_face["restored"]["maniqa"][0] == pytest.approx(first.mean().item(), abs=1e-6)
    wanted = metrics.low_band_consistency(first, photo, 8).item()
    assert result.per_face["restored"]["low_band"][0] == pytest.approx(wanted)
    assert set(result.per_face["restored"]["likeness"]) <= {0.0, 90.0}
    assert any("NIQE" in note and "MANIQA" not in note for note in result.notes)
    assert "MANIQA, trained on KonIQ-10k, higher is better" in ev.format_table(result)


def test_a_photo_smaller_than_its_result_is_enlarged_where_nothing_is_clean(folders, tmp_path):
    for i in range(6):
        save(tmp_path / "large", f"a/{i}.png", picture(i, 96))
    result = ev.evaluate(tmp_path / "large", lq=folders["lq"])
    assert len(result.faces) == 6 and 0 < result.rows[1].values["low_band"].mean < 0.3
    assert "likeness" not in result.rows[1].values
    assert any("Identity against damaged" in note for note in result.notes)
    (alone,) = ev.evaluate(tmp_path / "large").rows
    assert set(alone.values) == {"sharpness"}


def test_fid_against_a_reference_set(folders, tmp_path, monkeypatch):
    """The features are mean and deviation of a face: the distance is worked out by hand from its formula."""

    def inception(faces: Tensor) -> Tensor:
        return torch.stack([faces.mean((1, 2, 3)), faces.std((1, 2, 3))], 1)

    evaluate = ev.evaluate
    assert any(
        "FID against the reference set is left out" in n
        for n in evaluate(folders["restored"], reference=folders["clean"]).notes
    )
    monkeypatch.setattr(ev, "find_inception", lambda: inception)
    mean, covariance = torch.tensor([0.4, 0.2]).double(), torch.diag(torch.tensor([0.01, 0.0025])).double()
    write_statistics(tmp_path / "set.npz", metrics.FeatureStatistics(mean, covariance))
    (row,) = evaluate(folders["restored"], reference=tmp_path / "set.npz").rows
    own = np.array([inception(read_image(folders["restored"] / f"a/{i}.png")[None])[0].tolist() for i in range(6)])
    both = np.cov(own.T) @ covariance.numpy()
    between = np.sqrt(np.linalg.eigvals(both)).sum().real
    wanted = ((own.mean(0) - [0.4, 0.2]) ** 2).sum() + np.trace(np.cov(own.T)) + 0.0125 - 2 * between
    assert row.values["fid_reference"].mean == pytest.approx(wanted, rel=1e-4)
    result = evaluate(folders["clean"], folders["clean"], reference=folders["clean"])
    assert result.rows[0].values["fid_reference"].mean == pytest.approx(0, abs=1e-9)
    assert any(
        note.startswith("FID against the reference set is measured on 6 faces: compare") for note in result.notes
    )


def test_the_command_measures_without_clean_faces(folders, capsys):
    assert main(["evaluate", str(folders["restored"]), "--lq", str(folders["lq"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "sharpness" in found["rows"]["restored"] and "psnr" not in found["rows"]["restored"]
    assert main(["evaluate", str(folders["restored"]), "--clean", str(folders["clean"]), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"]["restored"]
    assert row["psnr_matched"]["mean"] > row["psnr"]["mean"] - 0.5 and "ssim_matched" in row


def test_of_many_faces_a_few_are_measured_at_a_time(monkeypatch):
    faces, together = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
    blurred = gaussian_blur(faces, 1.0)
    whole = [ev.face_measures(*pair)["psnr"] for pair in zip(blurred.split(1), faces.split(1), strict=True)]
    psnr = metrics.psnr

    def watched(restored, hq):
        together.append(len(hq))
        return psnr(restored, hq)

    monkeypatch.setattr(metrics, "psnr", watched)
    found = ev.face_measures(blurred, faces)
    assert max(together) <= 16 and torch.allclose(found["psnr"], torch.cat(whole)) and len(found["ssim"]) == 40


def test_a_face_that_was_destroyed_is_off_by_all(shared):
    """Left out, it would make the mean better than that of a restorer that keeps faces."""
    names = sorted((shared / "faces256").glob("*.jpg"))[:2] or sorted((shared / "faces256").glob("*.png"))[:2]
    clean = torch.stack([resized(read_image(name)[None], 128)[0] for name in names])
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))
    found = ev.face_measures(torch.stack([clean[0], noise[1]]), clean, ("landmarks",))["landmarks"]
    assert found[0] < 1 and found[1] == 100
    assert ev.face_measures(clean, noise, ("landmarks",))["landmarks"].isnan().all(), "there was none to begin with"


@pytest.mark.parametrize("size", [(64, 64), (67, 70)])
def test_the_low_band_is_of_photos_of_any_size(size):
    photo = torch.rand(1, 3, *size)
    same, darker = (ev.against_damaged(one, photo, 8, False)["low_band"] for one in (photo, photo * 0.5))
    assert same == 0 and darker > 0.1
    assert "low_band" not in ev.against_damaged(photo[..., :7], photo[..., :7], 8, False)
