"""Whatever holds a picture becomes a part of a message; what holds none is told in a line."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ipy_agent.agent.pictures import picture
from ipy_agent.errors import UsageError

MIMES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


def drawn(kind):
    into = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(into, kind)
    return into.getvalue()


def held(part):
    """Return the kind and the bytes of the picture in a part."""
    assert part["type"] == "input_image"
    head, _, data = part["image_url"].partition(",")
    assert head.startswith("data:")
    assert head.endswith(";base64")
    return head[5:-7], base64.b64decode(data, validate=True)


@pytest.mark.parametrize("kind", MIMES)
def test_a_file_is_known_by_what_is_in_it(kind, tmp_path):
    """Its name may say anything; a path may be a text."""
    path = tmp_path / "picture.txt"
    path.write_bytes(drawn(kind))

    assert held(picture(path)) == (MIMES[kind], drawn(kind))
    assert picture(str(path)) == picture(path)


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    """`~` is the user's folder, as in a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(drawn("PNG"))

    assert held(picture("~/a.png"))[0] == "image/png"


@pytest.mark.parametrize("hold", [bytes, bytearray, memoryview])
def test_bytes_are_a_picture(hold):
    """They go as they are."""
    assert held(picture(hold(drawn("JPEG")))) == ("image/jpeg", drawn("JPEG"))


def test_a_figure_is_drawn():
    """A matplotlib figure goes as the PNG that it would save."""
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])

    kind, data = held(picture(figure))
    assert kind == "image/png"
    assert Image.open(io.BytesIO(data)).size == (mpl.rcParams["figure.dpi"],) * 2


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_an_image_is_written(mode):
    """A PIL image goes as a PNG of its size."""
    kind, data = held(picture(Image.new(mode, (3, 2))))

    assert kind == "image/png"
    assert Image.open(io.BytesIO(data)).size == (3, 2)


class Broken:
    def savefig(self, _into, **_):
        raise RuntimeError("no\ncanvas")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("nowhere.png", "'nowhere.png': No such file"),
        ("", "directory"),
        ("a\0b", "null"),
        ("x" * 5_000, "too long"),
        (b"", "no picture"),
        (b"%PDF-1.7", "PNG, JPEG, GIF or WebP"),
        (b"RIFF\0\0\0\0WAVE", "no picture"),
        (b"<svg/>", "no picture"),
        (3, "a value of type int is no picture"),
        (None, "a value of type NoneType is no picture"),
        (np.zeros((2, 2)), "a value of type ndarray is no picture"),
        (Figure, "a value of type type is no picture"),
        (Broken(), "this Broken cannot be drawn as a PNG: RuntimeError: no canvas"),
        (Image.new("CMYK", (1, 1)), "CMYK"),
    ],
    ids=range(14),
)
def test_what_is_no_picture_is_told_in_a_line(source, why):
    """The line says what it was, and what would do."""
    with pytest.raises(UsageError, match=why) as error:
        picture(source)

    assert "\n" not in str(error.value)


def test_a_file_that_is_no_picture_is_named(tmp_path):
    """Nor is one of a picture's name."""
    path = tmp_path / "notes.png"
    path.write_text("Dear diary")

    with pytest.raises(UsageError, match=r"notes\.png"):
        picture(path)
