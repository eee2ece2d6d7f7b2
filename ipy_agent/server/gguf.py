"""A GGUF model in memory: llama.cpp's slots, through xllamacpp.

`Gguf` knows tokens and slots and nothing of conversations. Its methods block; any thread may
call them, and threads on different slots run side by side.

Rule 1: every request names its slot. One that does not takes somebody's cache.
Rule 2: prompts are ids, never text: xllamacpp would read control tokens out of a text.
Rule 3: xllamacpp's own port is a unix socket in a folder of ours, and no TCP at all.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ipy_agent.errors import MissingExtra, ModelUnavailable, ResponseFailed
from ipy_agent.server.machine import cores, folder_in_memory, memory_available

# Threads that spin for long take the cores from whoever they wait for: beside one busy process
# a model decoded at 6.6 tokens/s, with this at 12.6; not to spin at all costs half of the speed
# on a quiet machine, this little costs a seventh. OpenMP reads it when it is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

try:
    import xllamacpp
except ImportError as missing:
    raise MissingExtra("the local model", "local") from missing

__all__ = ["Completion", "Counts", "Gguf"]

_BATCH = 64
"""Tokens between two chances to stop a prefill: about a second on two busy cores, where 128 took
up to 4.5; the prefill itself is as fast."""

_COMPACT = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}
"""A small model that may put white space between JSON's tokens sometimes puts nothing else."""

_CONTEXTS = (8192, 4096, 2048)
_KV_BYTES = 32 * 2**10
_OVERHEAD_BYTES = 400 * 2**20
_SOCKET = "llama.sock"


@dataclass(slots=True)
class Counts:
    """What a model has done since it was loaded, in tokens."""

    prefilled: int = 0
    generated: int = 0


@dataclass(slots=True)
class Completion:
    """What came of one request. `ended` is `stop`, `length`, or `None` if it was stopped.

    `read` is how much of the prompt the slot holds now; 0 if the model did not get to it.
    """

    read: int = 0
    ids: list[int] = field(default_factory=list)
    timings: dict[str, Any] = field(default_factory=dict)
    ended: str | None = None


class Gguf:
    """A loaded model; loading takes some seconds.

    Args:
        path: the model's file.
        slots: how many KV caches it has.
        context: tokens a slot; `None` for what the memory allows, 8192 at most.
        threads: computing threads; `None` for one a core.
        options: llama.cpp's own, by their names in xllamacpp, such as `n_ubatch`; those of a part
            have its name before a dot.

    Raises:
        ModelUnavailable: no such file, no such format, or not enough memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        slots: int,
        context: int | None = None,
        threads: int | None = None,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        context = _context(path, slots, context)
        self.counts = Counts()
        self._folder = tempfile.TemporaryDirectory(
            prefix="ipy-agent-", dir=folder_in_memory(context * _KV_BYTES)
        )
        try:
            params = _params(path, slots, context, threads or cores(), self._folder.name)
            for name, value in options.items():
                part, _, last = name.rpartition(".")
                setattr(getattr(params, part) if part else params, last, value)
            self._llama: Any = xllamacpp.Server(params)
        except RuntimeError:
            self._folder.cleanup()
            raise ModelUnavailable(f"{path} is no model that llama.cpp can load") from None
        settings = self._ask("GET", "/props")["default_generation_settings"]
        self.window: int = settings["n_ctx"]
        """Tokens a slot really has: never more than the model was trained for."""
        # What llama.cpp makes of a vocabulary for its first schema takes up to 1.5 s: not a turn's.
        self.complete(0, self.tokenise(["{"])[:1], schema={"type": "object"}, max_tokens=1)
        self.counts = Counts()

    def tokenise(self, parts: Sequence[str | int]) -> list[int]:
        """Return the ids of texts, in which nothing is a control token; ids stay as they are."""
        body = {"content": list(parts), "add_special": False, "parse_special": False}
        return list(self._ask("POST", "/tokenize", body)["tokens"])

    def control(self, token: str) -> int | None:
        """Return the id of a control token, if the vocabulary has it."""
        body = {"content": token, "add_special": False, "parse_special": True}
        ids = self._ask("POST", "/tokenize", body)["tokens"]
        return int(ids[0]) if len(ids) == 1 else None

    def complete(
        self,
        slot: int,
        prompt: Sequence[int],
        *,
        take: Callable[[str], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
        schema: dict[str, Any] | None = None,
        **options: Any,
    ) -> Completion:
        """Run a prompt on a slot to its end.

        Args:
            slot: which one.
            prompt: what to begin with.
            take: gets the text as it comes.
            stop: asked between tokens, and between batches of the prompt.
            schema: the JSON schema that the text has to fit; one that llama.cpp cannot use is
                silently not kept to.
            options: further ones of llama.cpp's, such as `max_tokens` and `cache_prompt`.

        Raises:
            ResponseFailed: llama.cpp refused the request.
        """
        done, heard = Completion(), _Hearing(self.counts, take, stop)
        if not stop():
            asked = {"prompt": list(prompt), "id_slot": slot, "stream": True, "logprobs": 1}
            asked |= {"json_schema": {**schema, **_COMPACT}} if schema else {}
            self._llama.handle_completions({**asked, "return_progress": True, **options}, heard)
        if heard.refusal is not None:
            raise ResponseFailed(
                f"llama.cpp refused: {heard.refusal.get('message')}",
                status=heard.refusal.get("code") or 500,
            )
        done.read, done.ended, done.timings = heard.read, heard.ended, heard.timings
        done.ids = self._whole(heard.said, heard.timings.get("predicted_n"))
        return done

    def copy(self, source: int, target: int) -> bool:
        """Give a slot what another one holds; both must be idle.

        llama.cpp does so by way of a file, which lives as long as that takes: some hundredths
        of a second for a thousand tokens.

        Returns whether it worked. If not (no room for the file, say), nobody knows what the
        target holds, and its next prompt finds out.
        """
        file = Path(self._folder.name, f"{target}.kv")
        name = {"filename": file.name}
        try:
            saved = self._ask("POST", f"/slots/{source}?action=save", name)
            return bool(saved.get("n_saved")) and bool(
                self._ask("POST", f"/slots/{target}?action=restore", name).get("n_restored")
            )
        except OSError:
            return False
        finally:
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Unload. Nothing may be running."""
        self._llama = None
        gc.collect()
        self._folder.cleanup()

    def _whole(self, said: list[tuple[str, int]], count: int | None) -> list[int]:
        """Return the ids of an answer.

        Of a character that took several tokens only the last one's id is told: the others are
        found again, and if that does not add up, the whole text is tokenised.
        """
        ids = [token for _, token in said]
        if count is None or len(ids) == count:
            return ids
        ids = []
        for text, token in said:
            again = [] if text.isascii() else self.tokenise([text])
            ids += again if again[-1:] == [token] else [token]
        return ids if len(ids) == count else self.tokenise(["".join(text for text, _ in said)])

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with contextlib.closing(_Line(f"{self._folder.name}/{_SOCKET}")) as line:
            said = None if body is None else json.dumps(body)
            line.request(method, path, said, {"Content-Type": "application/json"})
            return json.loads(line.getresponse().read())


class _Hearing:
    """What llama.cpp calls with each chunk; it goes on until this returns true."""

    def __init__(
        self, counts: Counts, take: Callable[[str], None], stop: Callable[[], bool]
    ) -> None:
        self.said: list[tuple[str, int]] = []
        self.timings: dict[str, Any] = {}
        self.ended: str | None = None
        self.read = 0
        self.refusal: dict[str, Any] | None = None
        self._counts = counts
        self._take = take
        self._stop = stop
        self._prefilled = 0

    def __call__(self, chunk: dict[str, Any]) -> bool:
        if "error" in chunk:
            self.refusal = chunk["error"]
            return True
        choice = chunk["choices"][0]
        text = choice["text"]
        if progress := chunk.get("prompt_progress"):
            self.read = progress["processed"]
            done = self.read - progress["cache"]
            self._counts.prefilled += done - self._prefilled
            self._prefilled = done
        for token in (choice["logprobs"] or {}).get("content", ()):
            self._counts.generated += 1
            self.said.append((text, token["id"]))
        self.ended = choice["finish_reason"] or self.ended
        self.timings = chunk.get("timings") or self.timings
        if self._stop():
            return True
        if text:
            self._take(text)
        return False


class _Line(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def _context(path: Path, slots: int, asked: int | None) -> int:
    """Return the tokens a slot, the most that there is room for unless they were asked for."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            known = file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from None
    if not known:
        raise ModelUnavailable(f"{path} is no GGUF file")
    free = memory_available()
    for context in (asked,) if asked else _CONTEXTS:
        need = size + _OVERHEAD_BYTES + (slots + 1) * context * _KV_BYTES  # one on its way
        if need <= free:
            return context
    raise ModelUnavailable(
        f"the model needs about {need / 2**30:.1f} GB of memory and {free / 2**30:.1f} GB are "
        "free: close something, or take a smaller model or fewer slots"
    )


def _params(path: Path, slots: int, context: int, threads: int, folder: str) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.n_batch = params.n_ubatch = _BATCH
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames = [f"{folder}/{_SOCKET}"]
    params.slot_save_path = f"{folder}/"
    params.verbosity = -1
    # Without these four a slot's cache is lost to another slot's prompt.
    params.kv_unified = False
    params.slot_prompt_similarity = 0.0
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    for part in ("ui", "fit_params", "endpoint_slots"):
        setattr(params, part, False)
    return params
