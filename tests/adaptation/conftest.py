"""Settings and photos for the stages of an adaptation, with networks of a few thousand parameters."""

from dataclasses import replace

import pytest

from bfr_core.adaptation.config import SMALL, FaceConfig
from bfr_core.diffusion.sampler import SamplerConfig

ALIGNED = FaceConfig(aligned=True)


@pytest.fixture(scope="session")
def config(tiny_restorer, tiny_prior):
    return replace(
        SMALL,
        restorer=str(tiny_restorer),
        prior=str(tiny_prior),
        faces=ALIGNED,
        targets=replace(SMALL.targets, t_clean=9, batch_size=4, sampler=SamplerConfig(t_start=50, factor=4, calls=3)),
        finetune=replace(SMALL.finetune, iterations=6, batch_size=2, micro_batch=2, judge_every=3, sharp=0),
    )


@pytest.fixture
def drawn_names(monkeypatch):
    """The names of the faces that targets are drawn of, in the order of the calls."""
    import bfr_core.adaptation.target_stage as module

    drawn: list[str] = []
    real = module.draw_in_batches

    def counted(batches, *rest):
        for names, made in real(batches, *rest):
            drawn.extend(names)
            yield names, made

    monkeypatch.setattr(module, "draw_in_batches", counted)
    return drawn
