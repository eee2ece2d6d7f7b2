"""What the local server needs: a private folder, packages, weights, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from ipy_agent.doctor.finding import Finding, looked
from ipy_agent.doctor.house import DISTRIBUTION, judged
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import ModelUnavailable

__all__ = ["examined"]

_BESIDE_WEIGHTS = 720 * 2**20
"""What a model takes beside its weights, at the smallest context that `server/gguf.py` tries."""


def examined(endpoint: Endpoint) -> Iterator[Finding]:
    """Look at what the local server needs; without it, other endpoints do as well."""
    elsewhere = bool(endpoint.url)
    for found in looked("local", partial(_parts, None if elsewhere else endpoint.model)):
        yield found._replace(mark="note") if elsewhere and found.mark == "missing" else found


def _parts(model: str | None) -> Iterator[Finding]:
    from ipy_agent.transport.local import Local  # noqa: PLC0415 (a broken one is a line)
    from ipy_agent.transport.runtime import runtime_folder  # noqa: PLC0415 (the same)

    folder = runtime_folder()
    yield Finding("ok", "local", f"runtime folder {folder}, only yours")
    server = Local.read(folder / "server.json")
    if server is not None and server.answers():
        yield Finding("ok", "local", f"{server.model} runs at {server.url}, process {server.pid}")
        return
    bad, _ = judged("local")
    if bad:
        lacking = ", ".join(said for said, _ in bad)
        yield Finding("missing", "local", lacking, f"pip install '{DISTRIBUTION}[local]'")
        return
    yield Finding("ok", "local", "no server runs; the first use starts one")
    yield from _weights(model)


def _weights(model: str | None) -> Iterator[Finding]:
    from ipy_agent.server import machine, weights  # noqa: PLC0415 (a broken one is a line)

    named = next((known for known in weights.MODELS if known.name == model), weights.DEFAULT)
    size = named.size
    try:
        file = weights.path(model)
    except ModelUnavailable as error:
        own = os.environ.get("IPY_AGENT_GGUF") or (model or "").endswith(".gguf")
        if own:
            raise
        yield Finding("note", "model", f"the first use fetches {size / 1e6:,.0f} MB", str(error))
    else:
        size = file.stat().st_size
        yield Finding("ok", "model", f"{file}")
    free, need = machine.memory_available(), size + _BESIDE_WEIGHTS
    if free < need:
        said = f"{free / 1e9:.1f} GB are free and the model needs {need / 1e9:,.1f} GB"
        yield Finding("missing", "memory", said, "close something, or take a smaller model")
    else:
        yield Finding("ok", "memory", f"enough for the model, which needs {need / 1e9:.1f} GB")
