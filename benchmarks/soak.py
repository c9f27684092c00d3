"""Many photos while the program is killed again and again: is every result whole, none lost, none doubled?

    python benchmarks/soak.py restore --work DIR --photos 10000 --kills 100 --small
    python benchmarks/soak.py adapt --work DIR --photos 8 --iterations 48 --kills 30

The command runs once unbroken, and once more in another folder while it is killed at random moments: by SIGKILL, by
SIGTERM, and by a disk that refuses files above a random size, as one that is full does (a limit of the process; not on
Windows). It is given again each time, and at last runs to its end; if that is before the last kill, it starts over in a
new folder. Every second kill of `restore` waits until the command is restoring, the others come at any time. After
every kill of `restore` each result that is there must have the bytes of the unbroken run. At the end nothing may be
missing, nothing be there besides, and for `adapt` the restorer must have the weights of the unbroken run. A command
that ends with an error without having been killed, on a disk that is not full, is a fault.

The memory is that of the unbroken run's process: its median in the second and in the last fifth of the results, and
its peak after one fifth and at the end. On Linux the commands are forked from a process that has loaded the libraries
already, so that little time is spent on loading them after each kill. Photos are sharp faces that come with the
program, each shifted and lit in its own way. With --small they are aligned faces of 32 pixels and the restorer is a
network of a few thousand parameters, whose results are not compared with the person: the time is then that of the
program's own reading, writing and resuming.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: a process that has threads cannot be forked

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import write_image
from bfr_core.pixels import resized
from bfr_core.randomness import keyed_generator

ENDINGS = ("SIGKILL", "SIGTERM", "disk") if os.name == "posix" else ("SIGTERM",)
PROCESSES: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
SIDE = 192  # pixels of a photo
SMALL_SIDE = 32  # pixels of an aligned face with --small
KILOBYTE = 1024


def make_photos(folder: Path, count: int, aligned: bool, side: int = 128) -> None:
    """`count` photos, JPEG, of 192 x 192 pixels with a face of 128, or aligned faces of `side` pixels."""
    faces = SharpFaces(128)
    for i in range(count):
        place = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        if place.exists():
            continue
        draws = keyed_generator(0, "soak", i)
        light, left, top = torch.rand(3, generator=draws).tolist()
        face = resized(faces[i % len(faces)][None], 32)  # so that there is something to restore
        face = (resized(face, side)[0] * (0.7 + 0.3 * light)).clamp(0, 1)
        if not aligned:
            photo = face.mean((1, 2), keepdim=True).expand(3, SIDE, SIDE).clone()
            x, y = round(left * (SIDE - 128)), round(top * (SIDE - 128))
            photo[:, y : y + 128, x : x + 128] = face
            face = photo
        write_image(place, face)


def make_small_restorer(file: Path) -> None:
    """A network of a few thousand parameters for aligned faces of 32 pixels, which changes them a little."""
    from safetensors.torch import save_file
    from spandrel.architectures.NAFNet import NAFNet

    torch.manual_seed(0)
    net = NAFNet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1], dec_blk_nums=[1])
    torch.nn.init.normal_(net.ending.weight, std=0.01)
    save_file(net.state_dict(), file, {"architecture": "NAFNet", "size": str(SMALL_SIDE), "licence": "none"})


def results_in(folder: Path) -> dict[str, bytes]:
    """What every result holds, by relative path; the program's own hidden files are none."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".bfr"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def run_command(words: list[str], limit: int = 0) -> None:
    """The command, in this process, which then ends. limit: bytes above which it cannot write a file, 0 for none."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    from bfr_core.cli import main as bfr

    sys.exit(bfr(words))


def start(words: list[str], limit: int = 0) -> BaseProcess:
    """The command in a process of its own, see `run_command`."""
    process = PROCESSES.Process(target=run_command, args=(words, limit))
    process.start()
    return process


def load_libraries() -> None:
    """Load what every command needs, once for all that are forked from this process."""
    import bfr_core.adaptation.adapt
    import bfr_core.cli.commands
    import bfr_core.restoration.restore  # noqa: F401

    for name in ("cv2", "diffusers", "skimage", "spandrel"):
        with contextlib.suppress(ImportError):
            __import__(name)


def memory_of(process: BaseProcess, line: str) -> int:
    """Bytes of memory that the process holds now (VmRSS) or held at most (VmHWM); 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((KILOBYTE * int(text.split()[1]) for text in lines if text.startswith(line)), 0)


def unbroken(words: list[str], progress: Callable[[], float]) -> tuple[float, float, list[tuple[float, int, int]]]:
    """Run to the end; returns seconds before the first result and in all, and (share done, memory, peak) over time."""
    started, first = time.monotonic(), 0.0
    held: list[tuple[float, int, int]] = []
    process = start(words)
    while process.is_alive():
        time.sleep(0.25)
        done = progress()
        first = first or (time.monotonic() - started if done else 0.0)
        held.append((done, memory_of(process, "VmRSS"), memory_of(process, "VmHWM")))
    if process.exitcode:
        raise SystemExit(f"bfr {' '.join(words)}: ended with {process.exitcode} without being killed")
    return first, time.monotonic() - started, held


def killed(words: list[str], ending: str, limit: int, wait: float, is_working: Callable[[], bool]) -> bool:
    """Give the command, and end it `wait` seconds after it is working; returns False if it was done before.

    limit: of a full disk, which is there from the beginning; the command is killed on it, or gives up. SystemExit if
    the command ends with an error for another reason.
    """
    process = start(words, limit)
    while process.is_alive() and not is_working():
        time.sleep(0.02)
    process.join(wait)
    if process.is_alive():
        os.kill(process.pid or 0, getattr(signal, ending, signal.SIGTERM))
        process.join()
        return True
    if process.exitcode and ending != "disk":
        raise SystemExit(f"bfr {' '.join(words)}: ended with {process.exitcode} without being killed")
    return bool(process.exitcode)


def kill_often(
    words_of: Callable[[str], list[str]],
    kills: int,
    first: float,
    seconds: float,
    draws: random.Random,
    largest: float,
    work_of: Callable[[str], object],
    check: Callable[[str, bool], None],
) -> tuple[Counter[str], int]:
    """Give the command until it was killed so often, then once more; returns how often by what, and in how many runs.

    words_of: the command for a folder's name. first, seconds: of the unbroken run, before its first result and in all.
    largest: bytes of a file that a full disk takes at most. work_of: anything that changes when the command has done
    work in the folder. check: called with the folder after each kill, and with True at the end of each run.
    """
    ends, runs, folder = Counter[str](), 1, "killed-1"
    while ends.total() < kills:
        ending = ENDINGS[ends.total() % len(ENDINGS)]
        limit = round(KILOBYTE * (largest / KILOBYTE) ** draws.random()) if ending == "disk" else 0
        before, latest = work_of(folder), time.monotonic() + 2 * seconds
        waits = draws.random() < 0.5

        def is_working(before: object = before, latest: float = latest, waits: bool = waits, now: str = folder) -> bool:
            return not waits or work_of(now) != before or time.monotonic() > latest

        wait = draws.uniform(0, (0.0 if waits else first) + 1.5 * (seconds - first) / kills)
        if killed(words_of(folder), ending, limit, wait, is_working):
            ends[ending] += 1
            check(folder, False)
        else:
            check(folder, True)
            runs += 1
            folder = f"killed-{runs}"
    last = start(words_of(folder))
    last.join()
    if last.exitcode:
        raise SystemExit(f"the last, unbroken call ended with {last.exitcode}")
    check(folder, True)
    return ends, runs


def in_mib(held: list[int]) -> str:
    """The median of some amounts of memory, in MiB."""
    return f"{median(held) / 2**20:.0f} MiB" if held else "not measured"


def soak_restore(work: Path, photos: int, kills: int, seed: int, small: bool) -> list[str]:
    """The lines that say how restoring went; SystemExit if a result is lost, doubled or not whole."""
    make_photos(work / "photos", photos, aligned=small, side=SMALL_SIDE if small else 128)
    how = []
    if small:
        make_small_restorer(work / "small.safetensors")
        how = ["--aligned", "--likeness", "off", "--restorer", str(work / "small.safetensors")]

    def words(out: str) -> list[str]:
        return ["restore", str(work / "photos"), "--out", str(work / out), *how]

    def count() -> float:
        return sum(1 for path in (work / "unbroken").rglob("*.jpg") if not path.name.startswith(".")) / photos

    first, seconds, held = unbroken(words("unbroken"), count)
    expected = results_in(work / "unbroken")
    if len(expected) != photos:
        raise SystemExit(f"{len(expected)} results of {photos} photos in the unbroken run")

    def check(folder: str, whole: bool) -> None:
        there = results_in(work / folder) if (work / folder).is_dir() else {}
        wrong = [name for name, content in there.items() if expected.get(name) != content]
        if wrong:
            raise SystemExit(f"not as in the unbroken run: {', '.join(wrong[:5])}")
        if whole and (lost := expected.keys() - there.keys()):
            raise SystemExit(f"lost: {', '.join(sorted(lost)[:5])}")

    def work_of(folder: str) -> object:
        return [path.stat().st_mtime_ns for path in (work / folder).glob("*/")]  # of folders: of files that came

    ends, runs = kill_often(words, kills, first, seconds, random.Random(seed), 12 * KILOBYTE, work_of, check)
    scratch = sum(1 for run in range(1, 1 + runs) for _ in (work / f"killed-{run}").rglob(".bfr-*.part*"))
    early, late = ([m for done, m, _ in held if a <= done < b] for a, b in ((0.2, 0.4), (0.8, 2)))
    peaks = [max((peak for done, _, peak in held if done <= share), default=0) for share in (0.2, 1)]
    return [
        f"{photos} photos, {seconds:.0f} s unbroken ({first:.1f} s of them before the first result)",
        f"killed: {dict(ends)} in {runs} runs; then every result as in the unbroken run, none lost, none besides",
        f"memory in the second and in the last fifth of the results: {in_mib(early)} and {in_mib(late)}; "
        f"peak after a fifth and at the end: {in_mib(peaks[:1])} and {in_mib(peaks[1:])}",
        f"scratch files left: {scratch}",
    ]


def soak_adapt(work: Path, photos: int, kills: int, seed: int, iterations: int) -> list[str]:
    """The lines that say how adapting went; SystemExit if its weights are not those of the unbroken run."""
    from safetensors.torch import load_file

    make_photos(work / "photos", photos, aligned=True)

    def words(run: str) -> list[str]:
        often = ["--set", "finetune.checkpoint_seconds=1", "--set", f"finetune.judge_every={max(1, iterations // 4)}"]
        few = ["--iterations", str(iterations), "--batch-size", "4", "--calls", "2"]
        return ["adapt", str(work / "photos"), "--aligned", "--run", str(work / run), *few, *often]

    def any_target() -> float:
        return float(any((work / "unbroken" / "targets").glob("*.png")))

    def work_of(folder: str) -> object:
        stages = ("targets", "checkpoints")
        return [p.stat().st_mtime_ns for stage in stages for p in (work / folder / stage).glob("*")]

    first, seconds, _ = unbroken(words("unbroken"), any_target)
    expected = load_file(work / "unbroken" / "restorer.safetensors")

    def check(folder: str, whole: bool) -> None:
        if not whole:
            return
        found = load_file(work / folder / "restorer.safetensors")
        differ = [name for name in expected if name not in found or not torch.equal(expected[name], found[name])]
        if differ or expected.keys() != found.keys():
            raise SystemExit(f"{len(differ)} of {len(expected)} tensors are not those of the unbroken run")

    ends, runs = kill_often(words, kills, first, seconds, random.Random(seed), 4096 * KILOBYTE, work_of, check)
    return [
        f"{photos} faces, {iterations} steps, {seconds:.0f} s unbroken",
        f"killed: {dict(ends)} in {runs} runs; after each all {len(expected)} tensors as in the unbroken, to the bit",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("restore", "adapt"))
    parser.add_argument("--work", type=Path, required=True, help="An empty folder to work in.")
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=60, help="Steps of adapt.")
    parser.add_argument("--small", action="store_true", help="For restore: small aligned faces and a small network.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments of the kills.")
    args = parser.parse_args()
    if any((args.work / name).exists() for name in ("unbroken", "killed-1")):
        raise SystemExit(f"{args.work}: holds an earlier soak; give another folder")
    load_libraries()
    given = (args.work.absolute(), args.photos, args.kills, args.seed)
    soak = soak_restore(*given, args.small) if args.command == "restore" else soak_adapt(*given, args.iterations)
    print("\n".join(soak))


if __name__ == "__main__":
    main()
