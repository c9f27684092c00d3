"""Many photos while the program is killed again and again: is every result whole, none lost, none doubled?

    python benchmarks/soak.py restore --work DIR --photos 10000 --kills 100
    python benchmarks/soak.py adapt --work DIR --photos 24 --iterations 200 --kills 30

The command runs once unbroken, and once more in another folder while it is killed at random moments: by SIGKILL, by
SIGTERM, and by a disk that refuses files above a random size, as one that is full does (a limit of the process; not on
Windows). It is given again each time, and at last runs to its end. After every kill of `restore` each result that is
there must have the bytes of the unbroken run. At the end nothing may be missing, nothing be there besides, and for
`adapt` the restorer must have the weights of the unbroken run. The memory is that of the unbroken run's process, in
the second and in the last fifth of its results. Photos are sharp faces that come with the program, each shifted and
lit in its own way.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.faces.sharp_faces import SharpFaces
from bfr_core.files.photos import write_image
from bfr_core.pixels import resized
from bfr_core.randomness import keyed_generator

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = ("SIGKILL", "SIGTERM", "disk") if os.name == "posix" else ("SIGTERM",)
SIDE = 192  # pixels of a photo
KILOBYTE = 1024


def make_photos(folder: Path, count: int, aligned: bool) -> None:
    """`count` photos, JPEG, of 192 x 192 pixels with a face of 128, or aligned faces of 128."""
    faces = SharpFaces(128)
    for i in range(count):
        place = folder / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        if place.exists():
            continue
        draws = keyed_generator(0, "soak", i)
        light, left, top = torch.rand(3, generator=draws).tolist()
        face = resized(faces[i % len(faces)][None], 32)  # so that there is something to restore
        face = (resized(face, 128)[0] * (0.7 + 0.3 * light)).clamp(0, 1)
        if not aligned:
            photo = face.mean((1, 2), keepdim=True).expand(3, SIDE, SIDE).clone()
            x, y = round(left * (SIDE - 128)), round(top * (SIDE - 128))
            photo[:, y : y + 128, x : x + 128] = face
            face = photo
        write_image(place, face)


def results_in(folder: Path) -> dict[str, bytes]:
    """What every result holds, by relative path; the program's own hidden files are none."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".bfr"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def limited(size: int) -> Callable[[], None]:
    """What makes a process unable to write files of more than `size` bytes, to be called in it."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def start(words: list[str], limit: int = 0) -> subprocess.Popen[bytes]:
    """The command in a process of its own; limit: see `limited`, 0 for none."""
    before = limited(limit) if limit else None
    return subprocess.Popen(
        [sys.executable, "-m", "bfr_core", *words], cwd=ROOT, stderr=subprocess.DEVNULL, preexec_fn=before
    )


def memory_of(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory that the process holds now; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((KILOBYTE * int(line.split()[1]) for line in lines if line.startswith("VmRSS")), 0)


def unbroken(words: list[str], progress: Callable[[], float]) -> tuple[float, float, list[tuple[float, int]]]:
    """Run to the end; returns the seconds before the first result and in all, and (share done, memory) over time."""
    started, first = time.monotonic(), 0.0
    held: list[tuple[float, int]] = []
    process = start(words)
    while process.poll() is None:
        time.sleep(0.25)
        done = progress()
        first = first or (time.monotonic() - started if done else 0.0)
        held.append((done, memory_of(process)))
    if process.returncode:
        raise SystemExit(f"bfr {' '.join(words)}: ended with {process.returncode} without being killed")
    return first, time.monotonic() - started, held


def killed(words: list[str], wait: float, ending: str, draws: random.Random) -> bool:
    """Give the command, and end it after `wait` seconds; returns False if it was done before.

    A full disk is there from the beginning, and the command is killed on it.
    """
    process = start(words, draws.randrange(1, 12) * KILOBYTE if ending == "disk" else 0)
    try:
        process.wait(wait)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(getattr(signal, ending, signal.SIGTERM))
        process.wait()
        return True


def kill_often(
    words: list[str], kills: int, first: float, seconds: float, seed: int, check: Callable[[], None]
) -> Counter[str]:
    """Give the command until it was killed so often, then once more; returns how often it ended in which way.

    first, seconds: of the unbroken run, before its first result and in all; they say how long it lives between two
    kills. check: called after each.
    """
    draws, ends = random.Random(seed), Counter[str]()
    for kill in range(kills):
        wait = draws.uniform(0, first + 2 * (seconds - first) / kills)
        ending = ENDINGS[kill % len(ENDINGS)]
        if not killed(words, wait, ending, draws):
            ends["done before"] += 1
        else:
            ends[ending] += 1
        check()
    if start(words).wait():
        raise SystemExit("the last, unbroken call failed")
    return ends


def soak_restore(work: Path, photos: int, kills: int, seed: int) -> list[str]:
    """The lines that say how restoring went; SystemExit if a result is lost, doubled or not whole."""
    make_photos(work / "photos", photos, aligned=False)

    def words(out: str) -> list[str]:
        return ["restore", str(work / "photos"), "--out", str(work / out)]

    def count() -> float:
        return sum(1 for path in (work / "unbroken").rglob("*.jpg") if not path.name.startswith(".")) / photos

    first, seconds, held = unbroken(words("unbroken"), count)
    expected = results_in(work / "unbroken")
    if len(expected) != photos:
        raise SystemExit(f"{len(expected)} results of {photos} photos in the unbroken run")

    def check() -> None:
        there = results_in(work / "killed") if (work / "killed").is_dir() else {}
        wrong = [name for name, content in there.items() if expected.get(name) != content]
        if wrong:
            raise SystemExit(f"not as in the unbroken run: {', '.join(wrong[:5])}")

    ends = kill_often(words("killed"), kills, first, seconds, seed, check)
    check()
    lost = expected.keys() - results_in(work / "killed").keys()
    if lost:
        raise SystemExit(f"lost: {', '.join(sorted(lost)[:5])}")
    scratch = len(list((work / "killed").rglob(".bfr-*.part*")))
    early = [memory for done, memory in held if 0.2 <= done < 0.4]
    late = [memory for done, memory in held if done >= 0.8]
    flat = f"{median(early) / 2**20:.0f} and {median(late) / 2**20:.0f} MiB" if early and late else "not measured"
    return [
        f"{photos} photos, {seconds:.0f} s unbroken ({first:.1f} s of them before the first result)",
        f"ended early: {dict(ends)}; then every result as in the unbroken run, none lost, none besides",
        f"memory in the second and in the last fifth of the results: {flat}; scratch files left: {scratch}",
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

    first, seconds, _ = unbroken(words("unbroken"), any_target)
    ends = kill_often(words("killed"), kills, first, seconds, seed, lambda: None)
    expected, found = (load_file(work / run / "restorer.safetensors") for run in ("unbroken", "killed"))
    differ = [name for name in expected if not torch.equal(expected[name], found[name])]
    if differ or expected.keys() != found.keys():
        raise SystemExit(f"{len(differ)} of {len(expected)} tensors are not those of the unbroken run")
    return [
        f"{photos} faces, {iterations} steps, {seconds:.0f} s unbroken",
        f"ended early: {dict(ends)}; then all {len(expected)} tensors as in the unbroken run, to the bit",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("restore", "adapt"))
    parser.add_argument("--work", type=Path, required=True, help="An empty folder to work in.")
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=60, help="Steps of adapt.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments of the kills.")
    args = parser.parse_args()
    if any((args.work / name).exists() for name in ("unbroken", "killed")):
        raise SystemExit(f"{args.work}: holds an earlier soak; give another folder")
    given = (args.work.absolute(), args.photos, args.kills, args.seed)
    print("\n".join(soak_restore(*given) if args.command == "restore" else soak_adapt(*given, args.iterations)))


if __name__ == "__main__":
    main()
