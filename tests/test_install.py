"""install.py in made-up hosts: virtual environments with hand-written packages, a folder for an index, no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import install
from installation import environment, host, packages, pip_runs
from installation.main import run
from installation.pip_runs import InstallError

ROOT = Path(__file__).resolve().parents[1]
Listing = dict[str, str]


# ---------------------------------------------------------------- which Python


def test_supported_pythons_are_the_ones_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'requires-python = ">=3.{install.OLDEST[1]},<3.{install.NEWEST[1] + 1}"' in text
    for minor in range(10, 14):
        assert install.refusal((3, minor, 0), "python") == ""
    for version in ((2, 7, 18), (3, 9, 18), (3, 14, 0)):
        line = install.refusal(version, "here/python")
        assert "3.10 to 3.13" in line and ".".join(map(str, version)) in line and "here/python" in line
        assert "\n" not in line


def test_other_pythons_get_one_line(pythons: dict[tuple[int, ...], str]) -> None:
    refused = {version: path for version, path in pythons.items() if not install.OLDEST <= version <= install.NEWEST}
    if not refused:
        pytest.skip("every Python at hand is a supported one")
    for version, path in refused.items():
        done = subprocess.run([path, str(ROOT / "install.py"), "test"], capture_output=True, text=True, check=False)
        assert done.returncode == 2, version
        assert done.stdout == "" and done.stderr.count("\n") == 1
        assert "needs Python 3.10 to 3.13" in done.stderr


def test_unknown_word_prints_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(ROOT), ["tests"]) == 2
    assert "usage" in capsys.readouterr().err
    assert run(str(ROOT), ["--help"]) == 0


# ---------------------------------------------------------------- requirement files and constraints


def test_requirement_files() -> None:
    needed = packages.read_requirements(ROOT / "requirements.txt")
    optional = packages.read_requirements(ROOT / "requirements-optional.txt")
    names = [requirement.name for requirement in needed + optional]
    assert len(set(names)) == len(names)
    assert not set(names) & set(packages.NEVER_ADDED)
    assert set(names) == set(host.WITHOUT), "the user is told what is missing without each package"
    assert {(r.name, r.minimum) for r in needed} >= {("diffusers", (0, 31)), ("spandrel", (0, 3, 4)), ("pillow", ())}


def test_a_wheel_holds_what_the_pages_and_the_networks_are_made_from() -> None:
    code = """
from setuptools.dist import Distribution
made = Distribution()
made.parse_config_files()
made.include_package_data = False  # what is declared, and no more
command = made.get_command_obj("build_py")
command.ensure_finalized()
print(*(f"{folder}/{name}" for _, folder, _, names in command.data_files for name in names), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = {
        Path(line).relative_to("bfr_core").as_posix()
        for line in done.stdout.replace("\\", "/").replace("build/lib/", "").splitlines()
    }
    for folder in ("reports/templates", "embedded"):
        files = {path for path in (ROOT / "bfr_core" / folder).rglob("*") if path.is_file() and path.suffix != ".py"}
        wanted = {path.relative_to(ROOT / "bfr_core").as_posix() for path in files}
        assert wanted and wanted <= listed


def test_odd_requirement_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("fine>=1.0  # why\n\nodd==1; python_version<'4'\n")
    with pytest.raises(ValueError, match="odd==1"):
        packages.read_requirements(tmp_path / "requirements.txt")


def test_versions_compare_by_number() -> None:
    wanted = packages.Requirement("a", packages.release("0.10.0"), "a>=0.10.0")
    assert packages.satisfied(wanted, {"a": "0.10"})
    assert packages.satisfied(wanted, {"a": "0.31.0.dev0+local"})
    assert not packages.satisfied(wanted, {"a": "0.9.9"})
    assert not packages.satisfied(wanted, {"a": ""})
    assert not packages.satisfied(wanted, {})


def test_constraints_pin_all_and_forbid_the_rest() -> None:
    lines = packages.constraints(
        {"torch": "2.3.1+cu121", "numpy": "1.26.4", "dev": "2.6.0.dev20241112+cu124", "odd": "x1"}
    )
    assert {"torch==2.3.1+cu121", "numpy==1.26.4", "dev==2.6.0.dev20241112+cu124", "odd<0"} <= set(lines)
    assert "opencv-python<0" in lines and "torch<0" not in lines


def test_a_package_that_is_too_new_for_the_hosts_torch_is_not_added_and_named_if_it_is_there() -> None:
    """A1111 comes with torch 2.1, with which diffusers 0.36 cannot be loaded."""
    old, new = {"torch": "2.1.2+cpu"}, {"torch": "2.3.1"}
    assert "diffusers<0.36" in packages.constraints(old) and not packages.too_new(old)
    assert not any(line.startswith("diffusers") for line in packages.constraints(new))
    assert "diffusers==0.37.1" in packages.constraints(old | {"diffusers": "0.37.1"}), "what is there stays"
    said = packages.too_new(old | {"diffusers": "0.37.1"})
    assert said == {"diffusers": "diffusers 0.37.1 is too new for torch 2.1.2+cpu; install diffusers<0.36"}
    assert not packages.too_new(old | {"diffusers": "0.35.2"}) and not packages.too_new(new | {"diffusers": "0.37.1"})


def test_complaints_become_one_line() -> None:
    conflict = (
        "ERROR: Cannot install a\n    The user requested (constraint) safetensors==0.3.0\n (constraint) torch<0\n"
    )
    assert str(pip_runs.failure(conflict)) == "needs safetensors other than 0.3.0, torch (never added here)"
    retrying = (
        "WARNING: Retrying (Retry(total=1)) after NewConnectionError\nERROR: No matching distribution found for a"
    )
    assert isinstance(pip_runs.failure(retrying), pip_runs.NoNetwork)
    for full in ("ERROR: [Errno 28] No space left on device", "OSError: [Errno 122] Disk quota exceeded"):
        error = pip_runs.failure(full)
        assert isinstance(error, pip_runs.NoRoom) and "disk is full" in str(error)
    assert str(pip_runs.failure("noise\nERROR: No matching distribution found for a\nmore")).startswith("No matching")
    assert str(pip_runs.failure(""))


# ---------------------------------------------------------------- a host's Python


def write_wheel(folder: Path, name: str, version: str, requires: tuple[str, ...] = (), module: str = "") -> Path:
    """A wheel that pip can install: one module and its metadata."""
    folder.mkdir(exist_ok=True)
    file_name = name.replace("-", "_")
    path = folder / f"{file_name}-{version}-py3-none-any.whl"
    about = f"{file_name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    files = {
        f"{module or file_name}.py": "",
        f"{about}/METADATA": "\n".join(lines + [f"Requires-Dist: {text}" for text in requires]) + "\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


class Host:
    """A virtual environment with hand-written packages, the pack in a folder of its own, and a folder of wheels."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "host"
        self.index = folder / "index"
        self.pack = folder / "pack"
        self.old = folder / "old"
        venv.create(self.environment, with_pip=False, symlinks=os.name != "nt")
        self.python = self.environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        self.packages = Path(subprocess.check_output([self.python, "-c", where], text=True).strip())
        import pip

        shutil.copytree(Path(pip.__file__).parent, self.packages / "pip")
        shutil.copytree(ROOT / "installation", self.pack / "installation")
        for name in ("install.py", "requirements.txt", "requirements-optional.txt"):
            shutil.copy(ROOT / name, self.pack / name)
        self.index.mkdir()

    def has(self, name: str, version: str, module: str = "") -> None:
        """Put a package into the environment as it was before install.py."""
        with zipfile.ZipFile(write_wheel(self.old, name, version, module=module)) as archive:
            archive.extractall(self.packages)

    def needs_only(self, *names: str) -> None:
        """Let the pack ask for these packages alone: every further one is another run of pip."""
        for name in ("requirements.txt", "requirements-optional.txt"):
            wanted = [r.text for r in packages.read_requirements(self.pack / name) if r.name in names]
            (self.pack / name).write_text("".join(f"{text}\n" for text in wanted), encoding="utf-8")

    def listing(self) -> Listing:
        code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
        return json.loads(subprocess.check_output([self.python, "-I", "-c", code], text=True))

    def install(self, **settings: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": os.devnull, "PATH": ""}
        command = [str(self.python), str(self.pack / "install.py")]
        return subprocess.run(command, env=clean | pip | settings, capture_output=True, text=True, check=False)


@pytest.fixture
def made_host(tmp_path: Path) -> Host:
    """A host as ComfyUI's portable build has it, and an index with newer versions of everything it has."""
    made = Host(tmp_path)
    for name, version, module in (
        ("torch", "2.3.1+cu121", ""),
        ("torchvision", "0.18.1+cu121", ""),
        ("numpy", "1.26.4", ""),
        ("Pillow", "9.5.0", "PIL"),
        ("safetensors", "0.4.0", ""),
        ("huggingface_hub", "0.23.2", ""),
        ("opencv-python-headless", "4.8.0.76", "cv2"),
    ):
        made.has(name, version, module)
    for name in ("torch", "torchvision", "numpy", "opencv-python", "huggingface-hub", "filterpy", "numba"):
        write_wheel(made.index, name, "99.0")
    write_wheel(made.index, "safetensors", "0.8.0")
    write_wheel(made.index, "pillow", "99.0")
    write_wheel(made.index, "filelock", "3.0")
    write_wheel(made.index, "tqdm", "4.0")
    write_wheel(made.index, "jinja2", "3.1")
    write_wheel(made.index, "cma", "4.0")
    write_wheel(made.index, "platformdirs", "4.0")
    write_wheel(made.index, "scipy", "1.17", ("numpy>=2.0",))
    write_wheel(made.index, "scipy", "1.13", ("numpy>=1.22",))
    write_wheel(made.index, "diffusers", "0.42.1", ("safetensors>=0.8.0", "huggingface-hub>=1.32", "Pillow"))
    write_wheel(made.index, "diffusers", "0.31.0", ("safetensors>=0.3.1", "huggingface-hub>=0.23.2", "Pillow", "numpy"))
    write_wheel(made.index, "spandrel", "0.4.2", ("torch", "torchvision", "safetensors", "numpy", "einops"))
    write_wheel(made.index, "einops", "0.8")
    write_wheel(made.index, "scikit-image", "0.26", ("numpy>=1.24", "pillow>=10.1"), "skimage")
    write_wheel(made.index, "scikit-image", "0.22", ("numpy>=1.22", "pillow>=9.0.1"), "skimage")
    write_wheel(made.index, "facexlib", "0.3.0", ("filterpy", "numba", "numpy", "opencv-python"))
    write_wheel(made.index, "lpips", "0.1.4", ("torch", "numpy"))
    return made


def test_host_gains_packages_and_keeps_every_version(made_host: Host) -> None:
    before = made_host.listing()
    done = made_host.install()
    after = made_host.listing()
    assert done.returncode == 0, done.stderr
    assert {name: after.get(name) for name in before} == before
    added = {name: version for name, version in after.items() if name not in before}
    assert added == {
        "diffusers": "0.31.0",  # the newest that lives with the host's safetensors
        "scikit-image": "0.22",
        "filelock": "3.0",
        "tqdm": "4.0",
        "jinja2": "3.1",  # a real PyTorch brings it
        "cma": "4.0",
        "platformdirs": "4.0",
        "scipy": "1.13",  # the newest that lives with the host's numpy
        "spandrel": "0.4.2",
        "einops": "0.8",
        "facexlib": "0.3.0",  # without opencv-python beside the host's headless one, without filterpy
        "lpips": "0.1.4",
    }
    assert "Left out" not in done.stdout

    again = made_host.install(PIP_FIND_LINKS="nowhere")
    assert again.returncode == 0 and again.stdout == "BFR Adapt: every package is here already.\n"
    assert made_host.listing() == after


def test_what_cannot_come_is_left_out_and_remembered(made_host: Host) -> None:
    made_host.needs_only("diffusers", "spandrel")
    made_host.has("diffusers", "0.25.0")
    before = made_host.listing()
    done = made_host.install()
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert line.startswith("BFR Adapt: Left out diffusers (needs diffusers other than 0.25.0): no diffusion prior")
    after = made_host.listing()
    assert after["diffusers"] == "0.25.0" and after["spandrel"] == "0.4.2"
    assert before.items() <= after.items()

    again = made_host.install(PIP_FIND_LINKS="nowhere")  # does not even ask pip
    assert again.returncode == 0
    assert "nothing new to add. Left out diffusers" in again.stdout

    made_host.has("another", "1.0")  # what is installed changed, so it is worth another try
    assert "adding diffusers" in made_host.install().stdout


def test_torch_and_opencv_are_never_added(made_host: Host) -> None:
    made_host.needs_only("diffusers", "spandrel", "facexlib")
    for name in ("torch-2.3.1+cu121", "opencv_python_headless-4.8.0.76"):
        shutil.rmtree(made_host.packages / f"{name}.dist-info")
    (made_host.packages / "cv2.py").unlink()
    before = made_host.listing()
    done = made_host.install()
    after = made_host.listing()
    assert done.returncode == 0, done.stderr
    assert before.items() <= after.items()
    assert "diffusers" in after and not {"torch", "opencv-python", "spandrel", "facexlib"} & set(after)
    line = done.stdout.splitlines()[-1]
    assert "spandrel (needs torch (never added here)): no restorer" in line
    assert "facexlib (needs OpenCV, which this host does not have): faces are found by the built-in" in line


def test_a_version_pip_cannot_read_stops_nothing(made_host: Host) -> None:
    made_host.needs_only("diffusers", "spandrel")
    made_host.has("odd", "2004d_final")
    done = made_host.install()
    assert done.returncode == 0, done.stderr
    after = made_host.listing()
    assert after["diffusers"] == "0.31.0" and after["odd"] == "2004d_final"


def test_host_without_network(made_host: Host) -> None:
    before = made_host.listing()
    nowhere = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    done = made_host.install(**nowhere)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "package index does not answer" in done.stderr
    assert made_host.listing() == before
    assert made_host.install().returncode == 0, "nothing about a missing network is remembered"
    assert "diffusers" in made_host.listing()


def test_a_full_disk_is_an_error_and_nothing_of_it_is_remembered(made_host: Host) -> None:
    made_host.needs_only("diffusers", "spandrel")
    pip = made_host.packages / "pip" / "__main__.py"
    full = "import os, sys\nif 'FULL' in os.environ:\n    sys.exit('ERROR: [Errno 28] No space left on device')\n"
    pip.write_text(full + pip.read_text())
    for _ in range(2):
        done = made_host.install(FULL="yes")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and "the disk is full" in done.stderr
    assert made_host.install().returncode == 0
    assert {"diffusers", "spandrel"} <= set(made_host.listing())


def test_a_full_disk_is_one_line_wherever_it_is_met(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(root: Path, python: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(environment, "working_version", lambda python: "3.12 (pretended)")
    (project / ".venv").mkdir()
    monkeypatch.setattr(environment, "fill", refused)
    assert run(str(project), ["demo"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the disk is full" in said


def test_where_nothing_required_can_come_that_is_an_error_each_time(made_host: Host) -> None:
    made_host.needs_only("diffusers")
    made_host.has("diffusers", "0.25.0")
    for find_links in (str(made_host.index), "nowhere"):
        done = made_host.install(PIP_FIND_LINKS=find_links)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "Left out diffusers (needs diffusers other than 0.25.0): no diffusion prior" in done.stderr


def test_host_without_pip(made_host: Host) -> None:
    shutil.rmtree(made_host.packages / "pip")
    done = made_host.install()
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "-m ensurepip" in done.stderr


@pytest.mark.slow
def test_host_with_real_old_packages(tmp_path: Path, pythons: dict[tuple[int, ...], str]) -> None:
    """Needs the package index. Old pins that have wheels for the Pythons we support."""
    for version, path in sorted(pythons.items()):
        if not install.OLDEST <= version <= install.NEWEST:
            continue
        old = ["pillow<11", "safetensors<0.5", "requests<2.32", "urllib3<2", "huggingface-hub<0.26", "packaging<24"]
        old += ["numpy<2.2", "filelock<3.14", "tqdm<4.66", "regex<2024.12"]
        folder = tmp_path / ".".join(map(str, version))
        subprocess.run([path, "-m", "venv", folder / "host"], check=True)
        python = str(folder / "host" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        subprocess.run([python, "-m", "pip", "install", "-q", "--only-binary", ":all:", *old], check=True)
        # Torch itself would be 3 GB: its metadata is what pip looks at.
        site = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        for name, torch_version in (("torch", "2.6.0+cu124"), ("torchvision", "0.21.0+cu124")):
            with zipfile.ZipFile(write_wheel(folder, name, torch_version)) as archive:
                archive.extractall(site.strip())
        pack = folder / "pack"
        shutil.copytree(ROOT / "installation", pack / "installation")
        for name in ("install.py", "requirements.txt", "requirements-optional.txt"):
            shutil.copy(ROOT / name, pack / name)
        before = subprocess.check_output([python, "-m", "pip", "list", "--format=freeze"], text=True).splitlines()
        done = subprocess.run([python, pack / "install.py"], capture_output=True, text=True, check=False)
        after = subprocess.check_output([python, "-m", "pip", "list", "--format=freeze"], text=True).splitlines()
        print(version, done.stdout, done.stderr, "added:", sorted(set(after) - set(before)))
        assert done.returncode == 0, done.stderr
        assert set(before) <= set(after)
        names = {line.split("==")[0].lower() for line in after}
        assert {"diffusers", "spandrel", "scikit-image", "lpips"} <= names
        assert not {"opencv-python", "gradio", "facexlib"} & names
        again = subprocess.run([python, pack / "install.py"], capture_output=True, text=True, check=False)
        assert again.returncode == 0 and "nothing new to add" in again.stdout


# ---------------------------------------------------------------- .venv


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "requirements-optional.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_environment_is_made_once_and_repaired(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[str] = []
    monkeypatch.setattr(environment, "fill", lambda root, python: filled.append(python))
    python = environment.prepare(project)
    assert filled == [python] and Path(python).is_relative_to(project / ".venv")
    assert environment.prepare(project) == python and len(filled) == 1, "nothing changed, nothing to do"

    with (project / "requirements.txt").open("a") as stream:
        stream.write("another\n")
    environment.prepare(project)
    assert len(filled) == 2, "other requirements are installed"

    Path(python).unlink()  # its Python is gone
    assert environment.working_version(Path(python)) is None
    environment.prepare(project)
    assert len(filled) == 3 and environment.working_version(Path(python))


def test_interrupted_filling_is_done_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "working_version", lambda python: "3.12 (pretended)")
    (project / ".venv").mkdir()

    def cut_off(root: Path, python: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "fill", cut_off)
    with pytest.raises(KeyboardInterrupt):
        environment.prepare(project)
    filled: list[str] = []
    monkeypatch.setattr(environment, "fill", lambda root, python: filled.append(python))
    environment.prepare(project)
    assert len(filled) == 1


def test_half_installed_package_is_forgotten(made_host: Host) -> None:
    (made_host.packages / "numpy-1.26.4.dist-info" / "RECORD").unlink()
    environment.drop_half_installed(str(made_host.python))
    assert "numpy" not in made_host.listing() and "torch" in made_host.listing()


def test_packages_of_an_environment_of_the_users_are_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(environment, "drop_half_installed", dropped.append)
    monkeypatch.setattr(environment, "run_shown", lambda words: None)
    (project / ".venv").mkdir()
    environment.fill(project, "python")
    assert not dropped
    (project / ".venv" / environment.MARK).touch()
    environment.fill(project, "python")
    assert dropped == ["python"]


@pytest.mark.parametrize("said", ["", "1"])
def test_who_may_install_into_the_systems_python_is_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    (tmp_path / "requirements.txt").write_text("einops>=0.7\n")
    (tmp_path / "requirements-optional.txt").write_text("")
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(host, "installed", dict)
    monkeypatch.setattr(host, "install_command", lambda python: [])
    monkeypatch.setenv("PIP_BREAK_SYSTEM_PACKAGES", said)
    asked: list[str] = []

    def add(command: list[str], requirements: list[packages.Requirement], *options: str) -> dict[str, str]:
        asked.extend(one.name for one in requirements)
        return {}

    monkeypatch.setattr(host, "add", add)
    with nullcontext() if said else pytest.raises(InstallError, match="belongs to the system"):
        host.add_missing(tmp_path)
    assert asked == (["einops"] if said else [])


def test_foreign_folder_is_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "fill", lambda root, python: None)
    (project / ".venv").mkdir()
    (project / ".venv" / "thesis.txt").write_text("mine")
    with pytest.raises(InstallError, match="was not made by this program"):
        environment.prepare(project)
    assert (project / ".venv" / "thesis.txt").exists()


def test_making_that_was_cut_off_is_done_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "fill", lambda root, python: None)
    run = environment.run_quietly

    def cut_off(command: list[str]) -> str:
        if "venv" in command and "--without-pip" not in command:
            raise KeyboardInterrupt
        return run(command)

    monkeypatch.setattr(environment, "run_quietly", cut_off)
    with pytest.raises(KeyboardInterrupt):
        environment.prepare(project)
    monkeypatch.setattr(environment, "run_quietly", run)
    assert environment.working_version(Path(environment.prepare(project)))


def test_an_environment_of_the_users_own_is_not_emptied(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `uv venv` makes it: without pip."""
    monkeypatch.setattr(environment, "fill", lambda root, python: None)
    venv.create(project / ".venv", with_pip=False, symlinks=os.name != "nt")
    (project / ".venv" / "lib" / "theirs.txt").write_text("hours of downloads")
    with pytest.raises(InstallError, match="has no pip or a Python that is not"):
        environment.prepare(project)
    assert (project / ".venv" / "lib" / "theirs.txt").exists()


def test_what_an_interrupted_pip_left_is_not_installed(made_host: Host) -> None:
    about = made_host.packages / "numpy-1.26.4.dist-info"
    shutil.copytree(about, made_host.packages / "~umpy-1.24.0.dist-info")
    left = made_host.packages / "~cipy-1.14.0.dist-info"
    left.mkdir()
    (left / "METADATA").write_text("Metadata-Version: 2.1\nName: scipy\nVersion: 1.14.0\n")
    (made_host.packages / "~umpy-1.24.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 1.24.0\n"
    )
    code = "from installation.packages import installed; found = installed(); print(found['numpy'], 'scipy' in found)"
    told = subprocess.run([made_host.python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["1.26.4", "False"]


@pytest.mark.parametrize("absent", ["venv", "ensurepip"])
def test_python_without_venv(project: Path, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    monkeypatch.setattr(environment, "fill", lambda root, python: None)
    find = environment.importlib.util.find_spec
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(InstallError, match=f"lacks {absent}: .*apt install python3") as caught:
        environment.prepare(project)
    assert "\n" not in str(caught.value)


def test_checks_stop_at_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    codes = {"ruff": 0, "mypy": 0, "pytest": 5}

    def call(command: list[str], cwd: Path | None = None, more: object = None) -> int:
        calls.append(command[2:])
        return codes[command[2]]

    monkeypatch.setattr(environment, "prepare", lambda root: "python")
    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(
        environment, "compiling", lambda *_: nullcontext(SimpleNamespace(wait=lambda: calls.append(["waited"])))
    )
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert run(str(ROOT), ["test", "--all", "-x"]) == 5
    assert [words[0] for words in calls] == ["ruff", "ruff", "mypy", "waited", "pytest"]
    assert calls[-1] == ["pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--all", "-x"]
    assert run(str(ROOT), ["test"]) == 5
    assert calls[-1] == ["pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]
    calls.clear()
    codes["mypy"] = 1
    assert run(str(ROOT), ["test"]) == 1
    assert calls[-1] == ["mypy"]


def test_tests_are_compiled_once_and_no_process_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    (tmp_path / "test_one.py").write_text("def test_one(): assert 1 + 1 == 2\n")
    with environment.compiling(sys.executable, tmp_path) as process:
        process.wait()
    assert process.returncode == 0 and list(tmp_path.rglob("test_one*.pyc"))
    with environment.compiling(sys.executable, tmp_path) as process:  # a linter has failed meanwhile
        pass
    assert process.returncode is not None and process.returncode != 0


def test_a_command_is_given_more_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BFR_OF_THE_USER", "theirs")
    code = (
        "import os, sys; sys.exit(int(os.environ['BFR_OF_THE_USER'] != 'theirs' or os.environ['BFR_OURS'] != 'ours'))"
    )
    more = {"BFR_OF_THE_USER": "ours", "BFR_OURS": "ours"}
    assert environment.call([sys.executable, "-c", code], more=more) == 0


def test_demo_passes_its_words_and_exit_code_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def call(command: list[str], cwd: Path | None = None, more: object = None) -> int:
        calls.append(command)
        return 130

    monkeypatch.setattr(environment, "prepare", lambda root: sys.executable)
    monkeypatch.setattr(environment, "call", call)
    assert run(str(ROOT), ["demo", "--seed", "3"]) == 130
    assert calls == [[sys.executable, "-m", "bfr_core", "demo", "--seed", "3"]]
