"""Take over runs of version 0.1, which kept no lists of what it wrote: their files are entered in lists."""

from __future__ import annotations

from ..files.ownership import Ledger, claim, made_without_list
from ..files.stages import old_files, open_stage
from .faces import old_crops
from .run import Run


def list_old_run(run: Run) -> None:
    """Enter in lists what version 0.1, which kept none, made in a run and in the runs inside it."""
    if not run.folder.is_dir():
        return
    run.claim()
    for folder in (run.faces, run.restored, run.targets, run.given, run.photos):
        if made_without_list(folder):
            open_stage(folder, ["image_[0-9]*.png", *old_crops(run)] if folder == run.photos else old_crops(run))
    list_old_redrawn(run)
    for inner in (run.good, *sorted((run.folder / "groups").glob("[0-9]*"))):
        list_old_run(Run(inner))


def list_old_redrawn(run: Run) -> None:
    """Enter in a list the targets that version 0.1 drew again in a run."""
    if run.redrawn.is_dir() and not Ledger(run.redrawn).there:
        claim(run.redrawn, "run", old_files(run.redrawn, old_crops(run)))
