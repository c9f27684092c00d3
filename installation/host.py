"""Add what BFR Adapt lacks to the Python of ComfyUI or WebUI, and change nothing that is there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .packages import Requirement, constraints, installed, read_requirements, satisfied, too_new
from .pip_runs import InstallError, NoNetwork, NoRoom, install_command, run_quietly, say, this_python

# What a host does without when a package could not be added.
WITHOUT = {
    "diffusers": "no diffusion prior can be loaded, so adapting is off; restoring with an adapted restorer works",
    "spandrel": "no restorer can be loaded",
    "safetensors": "no restorer or prior can be loaded",
    "scikit-image": "faces in whole photos are found only with facexlib; aligned faces work",
    "cma": "no folder's damage can be searched for, so adapting with sharp faces of others is off",
    "scipy": "no verdict can be given and damages are not told apart, so adapting is off",
    "einops": "no restorer or prior can be loaded",
    "filelock": "no run folder can be locked, so adapting is off",
    "jinja2": "no report and no ballot can be written as a page",
    "platformdirs": "published weights are looked for in the folders of this host and of BFR_WEIGHTS only",
    "pillow": "no picture file can be read or written",
    "tqdm": "the bfr command does not start",
    "facexlib": "faces are found by the built-in detector instead of RetinaFace",
    "lpips": "tuning compares pictures by the prior's own features instead of LPIPS",
}
SKIP = "--skip-install"  # WebUI tells its options to whatever it runs in COMMANDLINE_ARGS
STATE = ".install-state.json"  # beside requirements.txt: what could not be added, so that WebUI's next start is quick


def add_missing(root: Path) -> int:
    """Exit code 0 once everything that can be added is there; raises InstallError where nothing required can be.

    requirements.txt is resolved with every installed package pinned. requirements-optional.txt is added without
    dependencies: facexlib asks for opencv-python, which must not land beside a host's opencv-python-headless.
    """
    if SKIP in os.environ.get("COMMANDLINE_ARGS", "").split():
        say(f"nothing is added, because WebUI was started with {SKIP}.")
        return 0
    before = installed()
    needed = missing(root / "requirements.txt", before)
    extras = missing(root / "requirements-optional.txt", before)
    for name, advice in too_new(before).items():  # it may be the host's own, so it stays
        say(f"{advice}. Until then {WITHOUT.get(name, 'it is not used')}.")
    if not needed and not extras:
        say("every package is here already.")
        return 0
    known = remembered(root, before)
    if known is not None:
        left_out, in_vain = known
        return told(f"nothing new to add. {summary(left_out)}", in_vain)
    theirs = (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists() and sys.prefix == sys.base_prefix
    if theirs and os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", "").lower() not in ("1", "y", "yes", "t", "true", "on"):
        raise InstallError(
            "this Python belongs to the system: use the Python of ComfyUI or WebUI, or `python3 install.py demo`."
        )
    command = install_command(this_python())

    say("adding " + ", ".join(requirement.name for requirement in needed + extras) + " ...")
    left_out = add(command, needed)
    for requirement in extras:
        if requirement.name == "facexlib" and importlib.util.find_spec("cv2") is None:
            left_out["facexlib"] = "needs OpenCV, which this host does not have"
        else:
            left_out.update(add(command, [requirement], "--no-deps"))

    after = installed()
    changed = [name for name, version in before.items() if after.get(name) != version]
    if changed:  # cannot happen under the constraints; if it ever does, the user must know
        raise InstallError("pip changed packages of this host against its constraints: " + ", ".join(changed))
    in_vain = bool(needed) and all(requirement.name in left_out for requirement in needed)
    remember(root, after, left_out, in_vain)
    added = sorted(set(after) - set(before))
    say(f"added {', '.join(added)}." if added else "nothing could be added.")
    return told(summary(left_out), in_vain) if left_out else 0


def told(line: str, in_vain: bool) -> int:
    """Exit code 0, after `line` is said; raises it as InstallError if nothing required was added."""
    if in_vain:
        raise InstallError(line)
    say(line)
    return 0


def missing(path: Path, versions: dict[str, str]) -> list[Requirement]:
    """The packages of a requirements file that are absent or too old."""
    return [requirement for requirement in read_requirements(path) if not satisfied(requirement, versions)]


def add(command: list[str], requirements: Sequence[Requirement], *options: str) -> dict[str, str]:
    """Install `requirements` under constraints, together or else one by one; name -> reason of those that would not."""
    if not requirements:
        return {}
    try:
        install(command, [requirement.text for requirement in requirements], *options)
    except (NoNetwork, NoRoom):  # another try may end differently, so nothing of this one is remembered
        raise
    except InstallError as error:
        if len(requirements) == 1:
            return {requirements[0].name: str(error)}
        left_out: dict[str, str] = {}
        for requirement in requirements:
            left_out.update(add(command, [requirement], *options))
        return left_out
    return {}


def install(command: list[str], texts: list[str], *options: str) -> None:
    """One run of pip with everything that is installed at this moment pinned; wheels only, nothing is built."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("\n".join(constraints(installed())) + "\n", encoding="utf-8")
        run_quietly([*command, "--constraint", str(pins), "--only-binary", ":all:", *options, *texts])


def summary(left_out: dict[str, str]) -> str:
    """One line: what was left out, why, and what works without it."""
    parts = [f"{name} ({reason}): {WITHOUT.get(name, '')}" for name, reason in sorted(left_out.items())]
    return "Left out " + "; ".join(parts) + "."


def fingerprint(root: Path, versions: dict[str, str]) -> str:
    """A digest that changes whenever another try at adding packages could end differently."""
    files = [(root / name).read_text(encoding="utf-8") for name in ("requirements.txt", "requirements-optional.txt")]
    return hashlib.sha256(json.dumps([files, sorted(versions.items()), sys.version]).encode()).hexdigest()


def remembered(root: Path, versions: dict[str, str]) -> tuple[dict[str, str], bool] | None:
    """What the last run left out, and whether it was in vain, if it ended in the very state this one starts from."""
    try:
        state = json.loads((root / STATE).read_text(encoding="utf-8"))
        known = dict(state["left_out"]), bool(state["in_vain"])
        return known if state["fingerprint"] == fingerprint(root, versions) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(root: Path, versions: dict[str, str], left_out: dict[str, str], in_vain: bool) -> None:
    """Write `STATE`; a folder that cannot be written only makes the next run slower."""
    try:
        state = {"fingerprint": fingerprint(root, versions), "left_out": left_out, "in_vain": in_vain}
        text = json.dumps(state, indent=1)
        (root / STATE).write_text(text, encoding="utf-8")
    except OSError:
        return
