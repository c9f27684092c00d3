"""Wherever a picture is called the base, it is what the base restorer makes of the damaged face itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bfr_core.adaptation import per_damage as mixed
from bfr_core.adaptation import report as summary
from bfr_core.adaptation.adapt import adapt
from bfr_core.adaptation.config import AdaptConfig, FaceConfig
from bfr_core.adaptation.run import Run
from bfr_core.diffusion.sampler import SamplerConfig
from bfr_core.files.photos import read_image, write_image
from bfr_core.files.records import write_json
from bfr_core.reports.html import ReportData
from bfr_core.restorers import load_restorer
from bfr_core.restorers.base import Restorer
from bfr_core.settings import changed
from bfr_core.web import runs, views
from bfr_core.web.actions import Page

CLEANED = {  # the prior cleans the face strongly before the restorer sees it
    "faces": FaceConfig(aligned=True),
    "targets.sampler": SamplerConfig(t_start=20, t_constrain_end=5, factor=2, calls=2),
    "targets.t_clean": 60,
    "targets.precision": "float32",
    "gate.limit": 0.0,
    "finetune.iterations": 2,
    "finetune.batch_size": 2,
    "finetune.micro_batch": 2,
    "finetune.perceptual": 0.0,
    "finetune.adversarial": 0.0,
}


@pytest.fixture(scope="module")
def base(tiny_restorer: Path) -> Restorer:
    return load_restorer(tiny_restorer)


@pytest.fixture(scope="module")
def adapted(photos: Path, tiny_restorer: Path, tiny_prior: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An adaptation to noisy faces that the prior cleaned, and what its report shows."""
    folder = tmp_path_factory.mktemp("noisy")
    generator = torch.Generator().manual_seed(1)
    for i, file in enumerate(sorted(photos.rglob("*.png"))[:6]):
        noisy = read_image(file) + 0.2 * torch.randn(3, 32, 32, generator=generator)
        write_image(folder / "trip" / f"face {i}ø.png", noisy.clamp(0, 1))
    networks = {"restorer": str(tiny_restorer), "prior": str(tiny_prior)}
    config = changed(AdaptConfig(), CLEANED | networks)
    result = adapt(folder, tmp_path_factory.mktemp("runs") / "run", config)
    return result, config


def test_the_run_keeps_what_the_base_makes_of_the_damaged_face(adapted: Any, base: Restorer) -> None:
    result, _ = adapted
    for name in result.faces.names:
        lq = read_image(result.faces.folder / f"{name}.png")
        kept = read_image(result.run.restored / f"{name}.png")
        assert (kept - base.restore(lq[None])[0]).abs().max() < 1.5 / 255


def test_the_report_shows_the_base_and_calls_faces_by_their_photos(
    adapted: Any, base: Restorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, config = adapted
    written: list[ReportData] = []
    monkeypatch.setattr(summary, "write_report", lambda folder, data: written.append(data))
    summary.report_adaptation(result, config.finetune)
    gallery = written[0].galleries[0]
    shown = gallery.columns.index("base restorer")
    for label, pictures in gallery.rows:
        assert label.removesuffix(" (not trained on)") in {f"trip/face {i}ø.png" for i in range(6)}
        assert torch.allclose(pictures[shown], base.restore(pictures[0][None])[0], atol=1e-5)
    assert written[0].notes[0] == "6 of 6 files of the folder gave faces."
    for _, pictures in mixed.rows_of(result.faces, result.faces.names[:2], [base]):
        assert torch.allclose(pictures[1], base.restore(pictures[0][None])[0], atol=1e-5)


def test_the_page_shows_the_base_itself_and_never_another(
    adapted: Any, base: Restorer, tiny_restorer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = adapted
    at = Page(result.run.folder.parent, device="cpu")
    seen: list[tuple[Any, Any]] = []

    def look(columns: Any, rows: Any) -> str:
        seen.append((columns, rows))
        return ""

    monkeypatch.setattr(views, "grid", look)
    monkeypatch.setattr(runs, "restorers", lambda: ["embedded", "tiny"])
    monkeypatch.setattr(runs, "locate", lambda name: tiny_restorer)
    write_json(result.run.folder / "request.json", {"restorer": "tiny"})
    run = Run(result.run.folder)
    assert at.details("run") and len(seen) == 1
    columns, rows = seen.pop()
    assert columns == ("damaged", "base restorer", "adapted restorer") and len(rows) == 6
    for _, (lq, restored, _) in rows:
        assert torch.allclose(restored, base.restore(lq[None])[0], atol=1e-5)

    at.triplets(run)
    for _, (lq, restored, _) in seen.pop()[1]:
        assert (restored - base.restore(lq[None])[0]).abs().max() < 1.5 / 255

    write_json(result.run.folder / "request.json", {"restorer": "embedded"})  # not what was tuned
    assert "its base, tiny.safetensors, is not among the restorers here" in at.details("run")
    assert seen.pop()[0] == ("damaged", "adapted restorer")
    at.allowed = [Path(result.faces.folder).parents[2]]
    with pytest.raises(ValueError, match="is not among the restorers here"):
        at.base_of(run, at.loaded(run.result))
