"""What must not be seen, and how it is kept out of whatever is shown, kept or sent.

A `Secret` shows itself to nobody but who asks for it with `reveal`, at the moment of use.
`redacted` masks what is known to be secret wherever text comes in: what an endpoint says, what a
tool puts out, the message of an error. So it is in no answer, no conversation, no record, and
neither is it sent. What is shown, tables and the journal are searched once more, since a value may
have become known after it was said.

Known are every `Secret` of this process (the keys of endpoints in use, a server's token), each
variable of the environment whose name has a word that ends in KEY, SECRET, TOKEN, PASSWORD, PASSWD
or CREDENTIALS (but for names of files, addresses, identifiers and the like), and the password in a
variable that is a URL. They are found as they are, as JSON, Python, URLs and HTML escape them, and
inside of base64. A beginning that is half of a value, and 20 characters, counts as the value.

What does not hold: a word or a number that might stand anywhere is not masked, nor what has less
than 8 characters, nor what somebody has taken apart or encoded in another way.

Rule 1: a value here is `Hidden`: IPython's verbose tracebacks print arguments and variables.
Rule 2: with nothing known nothing is done; what is done costs what the new text costs, no more.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from ipy_agent.secrets.search import MASK, SHORTEST, Hidden, Known, cut, raw, spans

__all__ = [
    "MASK",
    "Secret",
    "anything_is_secret",
    "clean_environment",
    "holds_key",
    "holds_secret",
    "learn",
    "masked",
    "redacted",
    "shown_so_far",
]

WORDY = 24
"""Below so many characters a value that is words or a number is none that can be looked for."""


class Secret:
    """A value that is masked however it is looked at; a copy is the same thing.

    Args:
        value: the value, or a secret that has it.
    """

    __slots__ = ("_read",)

    def __init__(self, value: Secret | str) -> None:
        # A method of the value in place of the value: whatever walks through objects finds that.
        self._read: Callable[[], str] = (
            value.reveal if isinstance(value, Secret) else Hidden(value).__str__
        )
        if not isinstance(value, Secret):
            _made.add(Hidden(value))
            _know()

    @classmethod
    def named(cls, variable: str) -> Secret | None:
        """Return what a variable of the environment holds; `None`, if that is nothing."""
        return cls(os.environ[variable].strip()) if os.environ.get(variable, "").strip() else None

    def reveal(self) -> str:
        """Return the value. It belongs into an expression, not into a variable."""
        return self._read()

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return MASK

    def __dir__(self) -> list[str]:
        return ["reveal"]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(raw(self._read()), raw(other._read()))

    def __hash__(self) -> int:
        return hash(self._read())

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled: read it again where it is needed")


def redacted(text: str) -> str:
    """Return a text with a mask for everything in it that is known to be secret."""
    known = _known
    if known.search is None or known.search(text) is None:
        return text
    return cut(text, spans(text, known))


def shown_so_far(text: str) -> tuple[str, str]:
    """Return what of a text that grows can be shown, redacted, and its end that has to wait.

    What waits may be the beginning of a value, and is never longer than one. Shown at the text's
    end all the same, it is no whole value.
    """
    known = _known
    if known.search is None:
        return text, ""
    at = known.open_at(text)
    if known.search(text) is None:
        return text[:at], text[at:]
    found = list(spans(text, known))
    # What is whole is not taken apart because its end looks like a beginning.
    at = next((end for start, end in found if start < at < end), at)
    return cut(text[:at], [(start, end) for start, end in found if end <= at]), text[at:]


def masked(text: str) -> str:
    """Return a text, such as an error's, without secrets and without what looks like a key."""
    return _LOOKS.sub(MASK, redacted(text))


def anything_is_secret() -> bool:
    """Whether anything is known to be secret."""
    return _known.search is not None


def holds_secret(text: str) -> bool:
    """Whether a text holds something that is known to be secret."""
    return _known.search is not None and _known.search(text) is not None


def holds_key(text: str) -> bool:
    """Whether a text holds something that is known to be secret, or that looks like a key."""
    return holds_secret(text) or _LOOKS.search(text) is not None


def learn() -> None:
    """Take note of what the environment holds now; who runs code of others may have changed it."""
    global _environment, _looked_at  # noqa: PLW0603 (what a process knows is one thing)
    fingerprint = _fingerprint()
    if fingerprint is not None and fingerprint == _looked_at:
        return
    _environment = frozenset(_told(os.environ))
    _looked_at = fingerprint
    _know()


def clean_environment(*kept: str) -> dict[str, str]:
    """Return the environment for a process that we start: none whose name speaks of secrets.

    Args:
        kept: beginnings of names that stay whatever they speak of.
    """
    names = [name for name in os.environ if name.startswith(kept) or not _SPEAKS.search(name)]
    return {name: os.environ[name] for name in names}


_SPEAKS = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)

_NAMES = re.compile(
    r"(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL)S?\d*(?:_|$)"
    r"(?!(?:.*_)?(?:FILE|PATH|DIR|URL|URI|HOST|NAME|ID|TYPE)$)",
    re.IGNORECASE,
)

_LOOKS = re.compile(
    r"(?<![\w-])(?:"
    r"(?:sk-|sk_live_|sk_test_|rk_live_|xai-|hf_|gsk_|AIza|gh[opsru]_|github_pat_|glpat-|xox[abprs]-"
    r"|pplx-|r8_|nvapi-|vck_|npm_|pypi-|dop_v1_)(?=[\w-]*\d)[\w-]{16,}"
    r"|A[KS]IA[A-Z0-9]{16}\b"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}(?:\.[\w-]+)?"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----)",
    re.ASCII,
)

_ORDINARY = re.compile(r"[A-Za-z][a-z]*(?:[-_. ]+[A-Za-z][a-z]*)*|[A-Z_]+|[\d.,:-]+")
_PLAIN_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^@\s]*")


def _fingerprint() -> int | None:
    """Return what tells one environment from another; `None` where nothing does.

    Python keeps the environment as bytes, whose hashes it keeps too: to go through the texts of all
    variables would take 20 times as long.
    """
    kept = getattr(os.environ, "_data", None)
    return None if kept is None else hash(frozenset(kept.items()))


def _told(environment: Iterable[str]) -> Iterator[Hidden]:
    """Yield the values of variables that are secret."""
    for name in environment:
        value = Hidden(os.environ.get(name, "").strip())
        if _NAMES.search(name):
            if not _is_path(value):
                yield value
        elif "://" in value and "@" in value:
            with contextlib.suppress(ValueError):
                found = Hidden(urllib.parse.urlsplit(value).password or "")
                yield found
                yield Hidden(urllib.parse.unquote(found))


def _is_path(value: str) -> bool:
    if value.startswith(("/", "~", ".")):
        with contextlib.suppress(OSError, RuntimeError):
            return Path(value).expanduser().exists()
    return False


def _can_be_found(value: str) -> bool:
    wordy = len(value) < WORDY and _ORDINARY.fullmatch(value)
    return len(value) >= SHORTEST and not wordy and not _PLAIN_URL.fullmatch(value)


def _know() -> None:
    """Look for what is secret now, if that is not what was looked for already.

    Without a lock, which a signal or a fork could meet: who sets what is known looks again, so that
    nobody's older view stays.
    """
    global _known  # noqa: PLW0603 (what a process knows is one thing)
    while (values := frozenset(filter(_can_be_found, _made | _environment))) != _known.values:
        _known = Known.of(values)


_made: set[Hidden] = set()
_environment: frozenset[Hidden] = frozenset()
_looked_at: int | None = None
_known = Known()
