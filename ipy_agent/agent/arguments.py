"""The text of a call's arguments, before it becomes values: what a strict reader refuses.

JSON leaves open what a key means that is there twice, and how deep and how long a text may be.
Readers differ there, and what the user was shown could be something else than what runs.

Rule 1: what is refused is told to the model in one line; a text that is no JSON at all is left
to the decoder, which says where.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NoReturn

from ipy_agent.agent.schemas import Misfit

__all__ = ["BYTES", "DEPTH", "check_size", "check_strictly"]

BYTES = 2**20
"""How long what a tool is called with may be."""
DEPTH = 64
"""How deep lists and objects may be nested."""

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def check_size(said: str) -> None:
    """Refuse what is too long.

    Raises:
        Misfit: it is.
    """
    size = len(said.encode("utf-8", "replace"))
    if size > BYTES:
        raise Misfit(f"{size:,} bytes are too many: at most {BYTES:,}")


def check_strictly(said: str) -> None:
    """Refuse JSON that is too long or too deep, or that does not mean one thing only.

    Raises:
        Misfit: it is; keys that are there twice, halves of surrogate pairs, `NaN`.
    """
    check_size(said)
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", said)):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH:
            raise Misfit(f"it is nested too deep: at most {DEPTH} levels")
    try:
        _encode(_decode(said)).encode()
    except Misfit:
        raise
    except UnicodeEncodeError:
        raise Misfit("half of a surrogate pair in it: write the whole character") from None
    except ValueError:  # it is no JSON
        return


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise Misfit(f"the key {twice[:80]!r} is there twice in one object")
    return made


def _refuse(name: str) -> NoReturn:
    raise Misfit(f"{name} is no JSON: use null, or a text")


# Numbers are left as they stand: one of a million digits takes long to be read.
_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse, parse_int=str, parse_float=str
).decode
_encode = json.JSONEncoder(ensure_ascii=False).encode
