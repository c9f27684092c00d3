"""`bfr bench paper`: sets, halves, groups of people, and one table in three forms."""

from __future__ import annotations

import csv
import json
import math
import unicodedata

import numpy as np
import pytest
import torch

from bfr_core.cli.commands import main
from bfr_core.damage.camera import READINGS, published_kind
from bfr_core.damage.synthetic import DAMAGES
from bfr_core.files.photos import read_image
from bfr_core.files.records import write_json
from bfr_core.metrics.intervals import Interval
from bfr_core.studies import benchmark, paper_table
from bfr_core.studies.paper_table import (
    EVERYONE,
    METHODS,
    SETS,
    as_dict,
    format_table,
    halves,
    parts_of,
    read_groups,
    tabulate,
)


@pytest.fixture
def untuned(monkeypatch):
    """The rows that are compared with ours are those of the base: nothing is tuned for them."""
    monkeypatch.setattr(benchmark, "tuned", lambda restorer, *_: restorer)


@pytest.fixture
def command(photos, tiny_restorer, tiny_prior, tmp_path):
    return ["bench", "paper", "--hq", str(photos), "--aligned", "--out", str(tmp_path / "out"), "--iterations", "2",
            "--calls", "2", "--start", "8", "--faces", "8", "--sets", "camera_x4_iso1500", "camera_x8_iso3000",
            "--restorer", str(tiny_restorer), "--prior", str(tiny_prior), "--json"]  # fmt: skip


def test_the_table_is_printed_written_and_kept(command, tmp_path, capsys):
    groups = tmp_path / "groups.csv"
    groups.write_text("name,group\n" + "".join(f"face {i}.png,{'even' if i % 2 == 0 else 'odd'}\n" for i in range(9)))
    assert main([*command, "--groups", str(groups)]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["adapted_to"] == found["measured"] == 4 and list(found["sets"]) == ["4x ISO 1500", "8x ISO 3000"]
    assert all(list(rows) == list(METHODS) for rows in found["sets"].values())
    out = tmp_path / "out"
    text = (out / "table.txt").read_text()
    assert text.strip() in shown.err and json.loads((out / "table.json").read_text()) == found
    mean = found["sets"]["8x ISO 3000"]["oracle"]["psnr"]["mean"]
    line = next(line for line in text.splitlines() if line.startswith("oracle"))
    assert f"{mean:.2f}" in line and "LPIPS" in text.splitlines()[-2] and "FID is left out" in text.splitlines()[-1]
    with open(out / "table.csv", newline="", encoding="utf-8") as file:
        wanted = ("8x ISO 3000", "oracle", "psnr")
        rows = [row for row in csv.DictReader(file) if (row["set"], row["method"], row["measure"]) == wanted]
    assert [float(r["mean"]) for r in rows] == [pytest.approx(mean, rel=1e-5)] and rows[0]["faces"] == "4"
    assert found["groups"][EVERYONE] == 4 and sum(n for g, n in found["groups"].items() if g != EVERYONE) >= 3
    strips = sorted(p.name for p in (out / "pictures/camera_x8_iso3000").glob("*.png"))
    assert len(strips) == len(METHODS) and read_image(out / "pictures/clean.png").shape == (3, 32, 4 * 32)

    kept = out / "cells" / "camera_x8_iso3000.json"
    cell = json.loads(kept.read_text())
    cell["rows"]["oracle"]["faces"]["psnr"] = [99.0] * 4  # shows whether it is made again
    del cell["rows"]["adapted"]
    write_json(kept, cell)
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)["sets"]["8x ISO 3000"]
    assert again["oracle"]["psnr"]["mean"] == 99 and again["adapted"] == found["sets"]["8x ISO 3000"]["adapted"]
    other = [*command[: command.index("--sets")], "--sets", "camera_x8_iso3000", *command[-5:]]
    assert main([*other, "--iterations", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"]["8x ISO 3000"]["oracle"]["psnr"]["mean"] != 99


def test_the_sets_are_the_papers():
    assert {name: (int(name[0]), int(name[-4:])) for name in SETS} == SETS
    assert set(SETS.values()) == {(shrink, iso) for shrink in (4, 8) for iso in (1500, 3000)}
    assert {published_kind(*of, reading) for of in SETS.values() for reading in READINGS} <= set(DAMAGES)


@pytest.mark.slow
def test_the_reading_is_named_and_changes_the_faces(command, untuned, tmp_path, capsys):
    psnr = {}
    for reading in READINGS:
        out = tmp_path / reading
        asked = [*command[: command.index("--sets")], "--sets", "camera_x8_iso1500", *command[-5:]]
        assert main([*asked, "--out", str(out), "--reading", reading]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["reading"] == reading
        assert f"shrunk to the {READINGS[reading]}" in (out / "table.txt").read_text().splitlines()[0]
        psnr[reading] = found["sets"]["8x ISO 1500"]["damaged"]["psnr"]["mean"]
    assert psnr["pixels"] > psnr["ratio"] + 1


@pytest.mark.slow
def test_the_published_recipe_is_a_row_and_what_is_changed_of_it_is_said(
    command, untuned, tmp_path, capsys, monkeypatch
):
    """With two steps of sampling: 150 for each face would take minutes."""
    monkeypatch.setattr(paper_table, "find_vgg", lambda: None)
    monkeypatch.setattr(paper_table, "drawn_targets", lambda lq, *_: lq.flip(0))
    asked = [*command[: command.index("--sets")], "--sets", "camera_x4_iso1500", *command[-5:], "--reading", "pixels"]
    asked += ["--iterations", "1"]  # the published discriminator is a large one
    assert main(asked) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*asked, "--published"]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = (one["sets"]["4x ISO 1500"] for one in (plain, found))
    assert set(after) - set(before) == {"published recipe"} and all(after[row] == before[row] for row in before)
    (note,) = (note for note in found["notes"] if note.startswith("published recipe: "))
    assert "finetune.iterations 1 (20000)" in note and "finetune.perceptual 0.0 (0.4)" in note
    assert "finetune.precision auto (float32)" in note and "targets.precision auto (float32)" in note
    assert "targets.sampler.factor 1 (16)" in note  # 16 of 512 pixels are 1 of 32
    text = (tmp_path / "out" / "table.txt").read_text()
    assert any(line.startswith("published recipe  ") for line in text.splitlines()) and note in text
    assert main(asked) == 0  # kept, and shown as they were measured
    assert "published recipe" in json.loads(capsys.readouterr().out)["sets"]["4x ISO 1500"]


def test_a_cell_that_somebody_else_wrote_is_refused_before_anything_is_made(
    command, untuned, tmp_path, capsys, monkeypatch
):
    asked = [*command[: command.index("--sets")], "--sets", "camera_x4_iso1500", *command[-5:]]
    assert main(asked) == 0
    cell = tmp_path / "out" / "cells" / "camera_x4_iso1500.json"
    cell.write_text("{}")
    capsys.readouterr()
    monkeypatch.setattr(paper_table, "run_cell", lambda *_: pytest.fail("rows were made that cannot be kept"))
    assert main(asked) == 2
    assert "camera_x4_iso1500.json: was not written by this program" in capsys.readouterr().err
    assert cell.read_text() == "{}"


def test_halves_are_drawn_by_lot_and_share_no_face():
    names = [str(i) for i in range(20)]
    adapt_to, measure_on = halves(names, 12, 0)
    assert len(adapt_to) == len(measure_on) == 6 and not set(adapt_to) & set(measure_on)
    assert halves(names, 12, 0) == (adapt_to, measure_on) != halves(names, 12, 1)
    assert set(adapt_to) | set(measure_on) != set(names[:12])
    with pytest.raises(ValueError, match="3 faces are too few"):
        halves(names, 3, 0)


def test_the_published_split_is_fixed_and_needs_a_large_folder():
    names = [f"{i:05d}" for i in range(3200)]
    adapt_to, measure_on = parts_of(names, 200, 0, "published")
    assert (len(adapt_to), len(measure_on)) == (2500, 500) and not set(adapt_to) & set(measure_on)
    assert parts_of(names, 200, 1, "published") == (adapt_to, measure_on)
    assert parts_of(names, 200, 1, "halves") == halves(names, 200, 1)
    with pytest.raises(ValueError, match="2999 faces are too few for the published split of 2500 and 500"):
        parts_of(names[:2999], 200, 0, "published")
    with pytest.raises(ValueError, match="split is 'else'; it must be one of halves, published"):
        parts_of(names, 200, 0, "else")


def test_fid_against_a_reference_set_is_in_the_table(photos, tmp_path, monkeypatch):
    clean = torch.stack([read_image(path) for path in sorted(photos.rglob("*.png"))])

    def inception(faces):
        return torch.stack([faces.mean((1, 2, 3)), faces.std((1, 2, 3))], 1)

    monkeypatch.setattr(paper_table, "find_inception", lambda: inception)
    judge = paper_table.Judge(clean, photos)
    assert judge.record(clean)["fid_reference"] == pytest.approx(0, abs=1e-9) and "fid" not in judge.record(clean)
    worse = judge.record((clean * 0.5).clamp(0, 1))
    assert worse["fid_reference"] > 0.01
    assert judge.taken != paper_table.Judge(clean).taken
    monkeypatch.setattr(paper_table, "find_inception", lambda: None)
    assert any("FID against the reference set is left out" in note for note in paper_table.Judge(clean, photos).notes)


def test_too_few_faces_are_one_line(command, capsys):
    assert main([*command, "--faces", "2"]) == 2
    assert "2 faces are too few" in capsys.readouterr().err


def test_groups_name_faces_or_photos(tmp_path, caplog):
    photos = {"a_0": "x/a.jpg", "a_1": "x/a.jpg", "b_0": "b.jpg", "c_0": "c.jpg", "d_0": "d.jpg"}
    path = tmp_path / "groups.csv"
    path.write_text("﻿name,group,more\nx/a.jpg,one,\na_1,two,\nb,one,\nc.jpg,,\n", encoding="utf-8")
    assert read_groups(path, photos) == {"a_0": "one", "a_1": "two", "b_0": "one"}
    accented = {"e_0": unicodedata.normalize("NFD", "x/José.jpg"), "a_0": "a.jpg"}
    path.write_text("name,group\nx\\José.jpg,one\n", encoding="utf-8")
    assert read_groups(path, accented) == {"e_0": "one"} and "1 of 2 faces are in no group" in caplog.text
    for text, said in (
        ("name;group\na;b\n", "must have the columns name and group"),
        ("", "must have the columns"),
        ("name,group\nz,one\n", "names none of the 5 faces; one would be a_0"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_groups(path, photos)
    path.write_bytes(b"name,group\n\xff,one\n")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_groups(path, photos)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_groups(tmp_path / "absent.csv", photos)


def test_gains_are_of_the_group_alone_and_undefined_figures_are_left_out():
    def record(psnr: list[float | None]) -> dict:
        return {"faces": {"psnr": psnr}, "kid": [0.1, 0.0, 0.2]}

    rows = {row: record([20.0, 20.0, 20.0, None]) for row in METHODS} | {"adapted": record([21.0, 23.0, 19.0, 25.0])}
    table = tabulate({"4x ISO 1500": rows}, ["a"], list("bcde"), {"b": "=x", "c": "=x", "d": "y", "a": "z"}, ["a note"])
    gains = table.gains["4x ISO 1500"]
    assert table.groups == {EVERYONE: 4, "=x": 2, "y": 1}
    assert gains["=x"]["psnr"].mean == 2 and gains["y"]["psnr"].mean == -1
    assert gains[EVERYONE]["psnr"].mean == pytest.approx(1)
    assert math.isnan(gains["y"]["psnr"].low) and as_dict(table)["gains"]["4x ISO 1500"]["y"]["psnr"]["low"] is None
    assert np.isclose(table.sets["4x ISO 1500"]["base"]["psnr"].mean, 20)
    assert table.sets["4x ISO 1500"]["base"]["kid"] == Interval(0.1, 0.0, 0.2)
    text = format_table(table)
    assert text.startswith("1 faces to adapt to, 4 others") and text.endswith("a note")
    assert next(line for line in text.splitlines() if " =x " in line).split()[-4:] == ["2.00", "(1.00", "to", "3.00)"]
