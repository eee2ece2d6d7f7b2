"""A summary that stands for a conversation, as the item that carries it.

The API calls such an item's content encrypted: only who made it reads it. Here it is a text
that came from this machine's own model, so it is wrapped and not hidden.

Rule 1: what another server sealed is not taken for a summary of ours.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from ipy_agent.protocol.items import Item

__all__ = ["sealed", "summary_of"]

_MARK = b"ipy_agent summary:"


def sealed(summary: str) -> Item:
    """Return the item that carries a summary; equal summaries make equal items."""
    content = summary.encode()
    return {
        "type": "compaction",
        "id": f"cmp_{hashlib.sha256(content).hexdigest()[:24]}",
        "encrypted_content": base64.b64encode(_MARK + content).decode(),
    }


def summary_of(item: Item) -> str | None:
    """Return the summary that an item carries, or `None` if it carries none of ours."""
    content = item.get("encrypted_content")
    if item.get("type") != "compaction" or not isinstance(content, str):
        return None
    try:
        raw = base64.b64decode(content, validate=True)
        return raw.removeprefix(_MARK).decode() if raw.startswith(_MARK) else None
    except (binascii.Error, ValueError):
        return None
