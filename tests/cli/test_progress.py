"""The progress bars of the command line."""

from bfr_core.cli.progress import Bars, Cancel


def test_each_part_of_a_stage_has_a_bar_of_its_own(capsys):
    with Cancel() as cancel:
        bars = Bars(cancel)
        for step in range(1, 8):
            bars("examine", step, 7, None)
        for trial in (8, 16, 1200):
            bars("examine", trial, 1200, None)
    shown = capsys.readouterr().err
    assert "7/7" in shown and "1200/1200" in shown
