"""Settings of every kind: what lies outside its range is refused, by name."""

import math
import re
from pathlib import Path

import pytest

from bfr_core.adaptation.config import FaceConfig
from bfr_core.adaptation.good_faces import AlbumConfig
from bfr_core.adaptation.target_checks import TargetCheckConfig
from bfr_core.adaptation.targets import TargetConfig
from bfr_core.cli.commands import main
from bfr_core.diffusion.sampler import SamplerConfig
from bfr_core.restoration.restore import RestoreConfig
from bfr_core.studies.evaluate import evaluate
from bfr_core.studies.vote import make_ballot
from bfr_core.training.config import FinetuneConfig


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FaceConfig(min_face=-5), "min_face is -5"),
        (lambda: FaceConfig(min_face=0), "min_face is 0"),
        (lambda: FaceConfig(threshold=7), "threshold is 7"),
        (lambda: FaceConfig(threshold=math.nan), "threshold is nan"),
        (lambda: FaceConfig(detector="eyes"), "detector is 'eyes'"),
        (lambda: RestoreConfig(min_face=0), "min_face is 0"),
        (lambda: RestoreConfig(threshold=-0.1), "threshold is -0.1"),
        (lambda: RestoreConfig(detector="eyes"), "detector is 'eyes'"),
        (lambda: RestoreConfig(skip_sharp=math.nan), "skip_sharp is nan"),
        (lambda: TargetConfig(batch_size=0), "batch_size is 0"),
        (lambda: TargetConfig(reference="best"), "reference is 'best'"),  # type: ignore[arg-type]
        (lambda: TargetConfig(precision="half"), "precision is 'half'"),  # type: ignore[arg-type]
        (lambda: SamplerConfig(factor=0), "factor is 0"),
        (lambda: TargetCheckConfig(limit=math.nan), "gate.limit is nan"),
        (lambda: TargetCheckConfig(most_moved=-1), "gate.most_moved is -1"),
        (lambda: AlbumConfig(least_kept=-1), "album.least_kept is -1"),
        (lambda: FinetuneConfig(lr=0), "lr is 0"),
        (lambda: FinetuneConfig(minutes=math.nan), "minutes is nan"),
        (lambda: FinetuneConfig(adversarial=-0.1), "adversarial is -0.1"),
        (lambda: FinetuneConfig(ema=1), "ema is 1"),
        (lambda: FinetuneConfig(halve_at=(0.5, 2)), "halve_at is"),
        (lambda: FinetuneConfig(precision="half"), "precision is 'half'"),  # type: ignore[arg-type]
        (lambda: evaluate(Path("a"), Path("b"), factor=0), "factor is 0"),
        (lambda: make_ballot(Path("a"), Path("a"), Path("a"), Path("b"), most=0), "most is 0"),
    ],
)
def test_settings_out_of_their_range_are_refused_by_name(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("evaluate", "a", "--clean", "b", "--factor", "0"), "factor is 0"),
        (("faces", "a", "--run", "r", "--min-face", "-5"), "min_face is -5"),
        (("restore", "a", "--out", "b", "--threshold", "7"), "threshold is 7"),
        (("vote", "a", "--a", "a", "--b", "a", "--out", "b", "--most", "0"), "most is 0"),
        (("adapt", "a", "--run", "r", "--lr", "nan"), "lr is nan"),
    ],
)
def test_commands_refuse_them_with_status_2(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())
