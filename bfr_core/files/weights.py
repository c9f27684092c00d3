"""Published weights: a table of files, where they are looked for, and how they are fetched when the user asks.

Nothing is fetched unasked. A file counts as the published one only if its SHA-256 is the table's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from .names import printable
from .ownership import delete, make_folder, move
from .tensors import MAX_BYTES, sha256_of

CHUNK = 1 << 18
TIMEOUT = 30.0  # seconds without a byte before a connection is given up
RETRY_SECONDS = 0.5
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES}
ATTEMPTS = 5  # connections that bring nothing new, in a row, before fetching fails


@dataclass(frozen=True)
class Weights:
    """One published file. size: bytes, 0 if not known. sha256: "" if not known; then only the user can place it.

    commercial: whether its licence allows commercial use; None where the licence leaves that open.
    also: other names under which hosts keep the same file.
    """

    name: str
    what: str
    url: str
    size: int
    sha256: str
    licence: str
    commercial: bool | None
    also: tuple[str, ...] = ()


_S_LAB = "S-Lab License 1.0 (non-commercial)"
_GFPGAN = "Apache-2.0, with third-party parts under non-commercial terms"
_FACEXLIB = "published with facexlib (MIT code); terms of the weights not stated"
_GITHUB = "https://github.com"

TABLE = (
    Weights(
        "codeformer.pth",
        "CodeFormer, restorer, 512",
        f"{_GITHUB}/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
        376637898,
        "1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
        _S_LAB,
        False,
        ("codeformer-v0.1.0.pth",),  # WebUI's name for it
    ),
    Weights(
        "GFPGANv1.4.pth",
        "GFPGAN 1.4, restorer, 512",
        f"{_GITHUB}/TencentARC/GFPGAN/releases/download/v1.3.4/GFPGANv1.4.pth",
        348632874,
        "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
        _GFPGAN,
        None,
    ),
    Weights(
        "GFPGANv1.3.pth",
        "GFPGAN 1.3, restorer, 512",
        f"{_GITHUB}/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.3.pth",
        348632874,
        "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70",
        _GFPGAN,
        None,
    ),
    Weights(
        "RestoreFormer.pth",
        "RestoreFormer, restorer, 512",
        f"{_GITHUB}/TencentARC/GFPGAN/releases/download/v1.3.4/RestoreFormer.pth",
        290785322,
        "07404d446d62ca3d5ed38b1de09a947a1e77d46dbccec961a74d713a8f24ace0",
        "Apache-2.0",
        True,
    ),
    Weights(
        "swinir_gan_v1.pth",
        "SwinIR, restorer, 512, of arXiv:2410.04618",
        f"{_GITHUB}/SamsungLabs/DT-BFR/releases/tag/v1.0.0",
        0,
        "",
        "CC BY-NC-SA 4.0",
        False,
    ),
    Weights(
        "swinir_restoration512_L1.pth",
        "SwinIR, restorer, 512, of DifFace",
        f"{_GITHUB}/zsyOAOA/DifFace/releases/tag/V1.0",
        0,
        "",
        _S_LAB,
        False,
    ),
    Weights(
        "iddpm_ffhq512_ema500000.pth",
        "diffusion prior of faces, 512, of arXiv:2410.04618",
        f"{_GITHUB}/zsyOAOA/DifFace/releases/download/V1.0/iddpm_ffhq512_ema500000.pth",
        0,
        "e16446b14cff4fedf1102ba67945fcced2074500a3fe8fd2bfad5d818928d1d0",
        _S_LAB,
        False,
    ),
    Weights(
        "detection_Resnet50_Final.pth",
        "RetinaFace, face detector",
        f"{_GITHUB}/xinntao/facexlib/releases/download/v0.1.0/detection_Resnet50_Final.pth",
        109497761,
        "6d1de9c2944f2ccddca5f5e010ea5ae64a39845a86311af6fdf30841b0a5a16d",
        _FACEXLIB,
        None,
    ),
    Weights(
        "parsing_parsenet.pth",
        "ParseNet, face parsing",
        f"{_GITHUB}/xinntao/facexlib/releases/download/v0.2.2/parsing_parsenet.pth",
        85331193,
        "3d558d8d0e42c20224f13cf5a29c79eba2d59913419f945545d8cf7b72920de2",
        _FACEXLIB,
        None,
    ),
    Weights(
        "recognition_arcface_ir_se50.pth",
        "ArcFace IR-SE50, face recogniser",
        f"{_GITHUB}/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth",
        0,
        "",
        _FACEXLIB,
        None,
    ),
)

ALSO = "BFR_WEIGHTS_ALSO"
# Where hosts keep such files, below their own folder.
HOST_FOLDERS = (
    "models/facerestore_models",
    "models/facedetection",
    "models/Codeformer",
    "models/GFPGAN",
    "models/RestoreFormer",
    "models/upscale_models",
    "models/ESRGAN",
    "models/RealESRGAN",
    "models/diffusion_models",
    "models/checkpoints",
    "models/Stable-diffusion",
)


def find_entry(name: str) -> Weights | None:
    """The table's entry for a file name, with or without suffix, in any case; also for a host's name of the file."""
    wanted = name.lower()
    return next((w for w in TABLE for n in (w.name, *w.also) if wanted in (n.lower(), Path(n).stem.lower())), None)


def licence_of(sha256: str) -> str:
    """Licence of the published file with this SHA-256, or "unknown"."""
    entry = entry_of(sha256)
    return entry.licence if entry else "unknown"


def entry_of(sha256: str) -> Weights | None:
    """The table's entry for the published file with this SHA-256, whatever it is called."""
    return next((w for w in TABLE if w.sha256 and w.sha256 == sha256), None)


def allows_commercial_use(licence: str) -> bool | None:
    """What a licence named in a file says of commercial use; None where its name does not settle it."""
    known = {w.licence: w.commercial for w in TABLE} | dict.fromkeys(
        ("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0"), True
    )
    if licence in known:
        return known[licence]
    return False if re.search(r"non.?commercial|[- ]nc\b", licence.lower()) else None


def weights_folder() -> Path:
    """Where fetched files go: $BFR_WEIGHTS, or the user's cache, which is where the operating system has it.

    Raises ValueError, in one line, where neither that variable nor the package platformdirs says where this is.
    """
    if given := os.environ.get("BFR_WEIGHTS"):
        return Path(given)
    try:
        from platformdirs import user_cache_path
    except ImportError:
        raise ValueError("set BFR_WEIGHTS to the folder of the weights, or: pip install platformdirs") from None
    return user_cache_path("bfr-adapt", appauthor=False) / "weights"


def search_folders() -> list[Path]:
    """Folders that are searched, in order: `weights_folder`, those of $BFR_WEIGHTS_ALSO, those of this pack's host.

    $BFR_WEIGHTS_ALSO lists folders as PATH does; a host that knows where its files are adds them there. Where Windows
    and macOS have another cache, ~/.cache is searched, too, because version 0.1 fetched files to there.
    """
    own = []
    with contextlib.suppress(ValueError):
        own = [weights_folder()]
    if not os.environ.get("BFR_WEIGHTS") and os.path.isdir(earlier := Path.home() / ".cache/bfr-adapt/weights"):
        own.append(earlier)
    pack = Path(__file__).resolve().parents[2]
    hosts = [pack.parents[1]] if pack.parent.name in ("custom_nodes", "extensions") else []
    of_host = [host / folder for host in hosts for folder in HOST_FOLDERS]
    return list(dict.fromkeys([*own, *folders_named_by(ALSO), *of_host]))


def folders_named_by(variable: str) -> list[Path]:
    """The folders that an environment variable lists, as PATH does."""
    return [Path(folder) for folder in os.environ.get(variable, "").split(os.pathsep) if folder]


def name_more_folders(variable: str, folders: Iterable[Path | str]) -> None:
    """Add folders to those that an environment variable lists, each once and after those that are there."""
    named = dict.fromkeys(map(str, [*folders_named_by(variable), *folders]))
    os.environ[variable] = os.pathsep.join(named)


def locate(name: str) -> Path | None:
    """Path of a file of the table that is on this machine; it is used where it lies, never moved."""
    return next(iter(locations(name)), None)


def locations(name: str) -> list[Path]:
    """All places on this machine where a file of the table is, in the order of `search_folders`."""
    entry = find_entry(name)
    names = (entry.name, *entry.also) if entry else ()
    return [path for folder in search_folders() for n in names if os.path.isfile(path := folder / n)]


def resolve(name_or_path: str | Path) -> Path:
    """The path itself if it exists, else the file of the table that has this name.

    Raises FileNotFoundError, in one line that says how to get the file.
    """
    path = Path(name_or_path)
    if os.path.exists(path):
        return path
    entry = find_entry(str(name_or_path))
    if entry is None:
        raise FileNotFoundError(f"{name_or_path}: no such file; 'bfr weights list' names those that can be fetched")
    found = locate(entry.name)
    if found is None:
        raise FileNotFoundError(f"{entry.name}: not on this machine; {_how_to_get(entry)}")
    return found


def _how_to_get(entry: Weights) -> str:
    place = weights_folder() / entry.name
    if not entry.sha256:
        return f"get it from {entry.url} and put it at {place}"
    return f"'bfr weights get {entry.name}' fetches it, or put it at {place}"


# ---------------------------------------------------------------- checking and fetching


def verify(entry: Weights, path: Path) -> str:
    """What is wrong with the file; "ok" if nothing is, "not checkable" if the table has no SHA-256."""
    if not entry.sha256:
        return "not checkable: its SHA-256 is not known"
    size = path.stat().st_size
    if entry.size and size != entry.size:
        return f"wrong size: {size} bytes, {entry.size} expected"
    return "ok" if sha256_of(path) == entry.sha256 else "wrong SHA-256: not the published file; get it anew"


def fetch(entry: Weights, folder: Path | None = None, callback: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a file of the table into `folder` (`weights_folder`) and return its path; a part fetched before is used.

    callback: (bytes there, bytes in all or 0), after every piece; what it raises ends the fetching, which can go on
    later. The file appears under its name only once its SHA-256 is right.
    Raises ValueError if the table has no SHA-256 or what came is not the published file, OSError if it cannot be
    reached; both say where to get the file and where to put it. Raises the OSError of a disk that is full or protected.
    """
    place = (folder or weights_folder()) / entry.name
    if os.path.isfile(place) and verify(entry, place) == "ok":
        return place
    if not entry.sha256:
        raise ValueError(f"{entry.name}: its SHA-256 is not known, so it is not fetched; {_how_to_get(entry)}")
    if os.path.lexists(place):
        raise ValueError(f"{printable(place)}: is not the published file; move it away or rename it, then fetch again")
    make_folder(place.parent)
    with _fetching_alone(place):
        return _fetched(entry, place, callback)


@contextlib.contextmanager
def _fetching_alone(place: Path) -> Iterator[None]:
    """Hold the fetching of a file for this process. Raises ValueError if another one fetches it."""
    from filelock import FileLock, Timeout

    lock = FileLock(place.with_name(f".bfr-{place.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{place.name}: another process is fetching it; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


def _fetched(entry: Weights, place: Path, callback: Callable[[int, int], None] | None) -> Path:
    """`fetch`, where nothing is in the way and no other process fetches it."""
    part = place.with_name(f"{place.name}.bfr-part")  # no other program's name: it may be added to and deleted
    failures = 0
    while True:
        before = part.stat().st_size if os.path.exists(part) else 0
        try:
            if _fetch_rest(entry, part, callback):
                break
            failures += 1
            reason = "the connection ended early"
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in OF_THE_DISK:  # asking again would not help
                raise
            reason = str(error) or type(error).__name__
            failures += 1
            if isinstance(error, HTTPError) and 400 <= error.code < 500:  # asking again would not help
                failures = ATTEMPTS
        if failures < ATTEMPTS and os.path.exists(part) and part.stat().st_size > before:
            failures = 0
        if failures >= ATTEMPTS:
            raise OSError(
                f"{entry.name}: cannot be fetched ({reason}); get {entry.url} by other means and put it at {place}"
            )
        time.sleep(min(2.0**failures, 10) * RETRY_SECONDS)
    problem = verify(entry, part)
    if problem != "ok":
        delete(part)
        raise ValueError(f"{entry.name}: what came from {entry.url} is not the published file ({problem})")
    move(part, place)
    return place


def _fetch_rest(entry: Weights, part: Path, callback: Callable[[int, int], None] | None) -> bool:
    """Append what is missing to `part`; True if the server says that it is whole now."""
    have = part.stat().st_size if os.path.exists(part) else 0
    request = Request(entry.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:  # nothing is missing
            return True
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        have = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else entry.size
        while chunk := response.read(CHUNK):
            file.write(chunk)
            have += len(chunk)
            if have > (most := entry.size or MAX_BYTES):
                raise ValueError(f"{entry.name}: {entry.url} sends more than the published file's {most} bytes")
            if callback:
                callback(have, total)
    return not total or have >= total
