"""`bfr verify-real` on files that stand for the published ones: it checks, restores, adapts, and reports failures."""

from __future__ import annotations

import json

import pytest

from bfr_core import verification, weights
from bfr_core.checkpoints import sha256_of
from bfr_core.verification import verify_real
from bfr_core.weights import Weights


@pytest.fixture
def table(tiny_restorer, tmp_path, monkeypatch):
    """A table of a good restorer, a damaged one, and one that is not here."""
    folder = tmp_path / "weights"
    folder.mkdir()
    good, bad = folder / "good.safetensors", folder / "bad.safetensors"
    good.write_bytes(tiny_restorer.read_bytes())
    bad.write_bytes(tiny_restorer.read_bytes()[:-100])
    entries = tuple(
        Weights(name, "test, restorer, 32", "https://nowhere.invalid", 0, digest, "MIT", True)
        for name, digest in (
            (good.name, sha256_of(good)),
            (bad.name, sha256_of(tiny_restorer)),
            ("absent.safetensors", "0" * 64),
        )
    )
    monkeypatch.setenv("BFR_WEIGHTS", str(folder))
    monkeypatch.setattr(weights, "TABLE", entries)
    monkeypatch.setattr(verification, "TABLE", entries)
    return tmp_path


def test_every_file_is_checked_and_a_failure_does_not_stop_the_rest(table):
    page, findings = verify_real(table / "out")
    good, bad, adaptation = findings
    rows = dict(good.rows)
    assert not good.failed and rows["SHA-256"] == "ok" and float(rows["seconds to load"]) >= 0
    assert len(good.pictures) == 4 and "PSNR of the restored faces" in rows
    assert bad.failed and dict(bad.rows)["SHA-256"].startswith("wrong") and "failed" in dict(bad.rows)
    assert "good.safetensors" in adaptation.name and not adaptation.failed
    assert float(dict(adaptation.rows)["seconds"]) > 0
    text = page.read_text()
    assert "not here: absent.safetensors" in text and "1 checks failed" in text
    report = json.loads((table / "out" / "report.json").read_text())
    assert report["measurements"]["good.safetensors"]["SHA-256"] == "ok"
