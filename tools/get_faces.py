"""Fetch the real faces that the embedded models are trained and judged on.

    python tools/get_faces.py DIR

750 official portraits of members of the US Congress, 225 x 275 pixels, 37 MB: works of the US government, in the
public domain, from github.com/Hainish/congress-images-225x275 (a copy of unitedstates/images) at one fixed commit.
Every file is checked against tools/faces.sha256, and the five points of each face (found with an MTCNN detector) are
put beside them as landmarks.json, so that DIR is ready for `tools/train_embedded.py --portraits DIR`. The same command
run again goes on where it stopped.

The second folder that training uses, `--faces`, cannot be fetched this way: it was cut, turned and compressed anew
from the sample sheets of github.com/SelfishGene/SFHQ-dataset (MIT, Copyright (c) 2022 David Beniaguev), which no
script can repeat byte for byte. Any folder of aligned faces with such a landmarks.json takes its place.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import logging
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bfr_core.files.photos import replace_atomically

COMMIT = "20531e981f99cd8fd42023d3e71000582f2e04c2"
BASE_URL = f"https://raw.githubusercontent.com/Hainish/congress-images-225x275/{COMMIT}/images/"
CHECKSUMS = Path(__file__).with_name("faces.sha256")
LANDMARKS = Path(__file__).with_name("faces_landmarks.json")
MAX_BYTES = 2_000_000  # the largest portrait has a tenth of this
TIMEOUT_SECONDS = 30
ATTEMPTS = 3
FIRST_WAIT_SECONDS = 1.0  # doubled before each further attempt
log = logging.getLogger("get_faces")


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
    log.info("%d of %d faces are in %s", len(checksums) - len(missing), len(checksums), folder)
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the portraits and landmarks.json go")
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror of the images folder, ending in /")
    parser.add_argument("--jobs", type=int, default=8, help="files fetched at the same time (default 8)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    started = time.monotonic()
    try:
        fetched = get_faces(options.folder, read_checksums(), options.base_url, options.jobs)
        replace_atomically(options.folder / "landmarks.json", lambda path: path.write_bytes(LANDMARKS.read_bytes()))
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        log.error("cancelled; run the same command to go on")
        return 130
    log.info("%d faces fetched in %.0f s; all are in %s", fetched, time.monotonic() - started, options.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
