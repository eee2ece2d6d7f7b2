"""Pictures for the model: whatever holds one in a notebook, as a part of a message.

Files and bytes are known by how they begin, not by a name. Figures and images are known by the
method that writes them, so nothing here imports what draws.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from ipy_agent.errors import UsageError
from ipy_agent.protocol.items import Item, image

__all__ = ["picture"]

_BEGINS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def picture(source: Any) -> Item:
    """Return the content part that shows a picture to the model.

    Args:
        source: the path or the bytes of a PNG, JPEG, GIF or WebP, a matplotlib figure, or a
            PIL image.

    Raises:
        UsageError: there is no picture in it.
    """
    held = _bytes_of(source)
    kind = _kind_of(held)
    if kind is None:
        named = f"{str(source)!r}" if isinstance(source, (str, Path)) else "that"
        raise UsageError(f"{named} is no picture that a model takes: use PNG, JPEG, GIF or WebP")
    return image(f"data:{kind};base64,{base64.b64encode(held).decode()}")


def _bytes_of(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, Path)):
        return _read(source)
    for method in ("savefig", "save"):
        write = getattr(source, method, None)
        if callable(write) and not isinstance(source, type):
            return _drawn(write, type(source).__name__)
    raise UsageError(
        f"a value of type {type(source).__name__} is no picture: "
        "use a path, bytes, a figure or an image"
    )


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"there is no picture at {str(path)!r}: {why}") from None


def _drawn(write: Any, name: str) -> bytes:
    """Return as PNG what draws itself into a file."""
    into = io.BytesIO()
    try:
        write(into, format="png")
    except Exception as error:  # noqa: BLE001 (drawing is others' code, and may raise anything)
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"this {name} cannot be drawn as a PNG: {why}") from None
    return into.getvalue()


def _kind_of(held: bytes) -> str | None:
    if held[:4] == b"RIFF" and held[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for begin, kind in _BEGINS if held.startswith(begin)), None)
