"""The Autobahn cases, as `kosoku` has them: our server's WebSocket against its library alone.

The cases talk to an echo, so one is put behind our server's protocols, with all its limits; the
library's own server echoes beside it. Each case has to end here as well as it does there.
"""

from __future__ import annotations

import asyncio
from collections import Counter

import kosoku
import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from ipy_agent.server.process import MAX_FRAME
from ipy_agent.server.scripted import ScriptedEngine

SAMPLE = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.2.*", "6.3.*", "7.*", "10.*"]
ALL = [*SAMPLE, "6.*", "9.*"]  # 12 and 13 are deflate, which is off


async def echo(_, receive, send):
    """Say everything back, as an ASGI app."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def say_back(client):
    try:
        async for message in client:
            await client.send(message)
    except ConnectionClosed:
        pass


async def results(port, cases):
    try:
        found = await kosoku.run_fuzzingclient(f"ws://127.0.0.1:{port}", cases)
    except kosoku.FailureError as failed:
        found = failed.results
    return {each.case_id: each for each in found}


@pytest.mark.long
def test_every_case_that_the_library_passes_is_passed(listening, amount, figure):
    """Framing, fragments, UTF-8, pings and closes: what stands around the library spoils none."""
    cases = amount(SAMPLE, ALL)

    async def main():
        async with listening(ScriptedEngine()) as served:
            served.server.config.loaded_app = echo
            ours = await results(served.port, cases)
        async with serve(say_back, "127.0.0.1", 0, compression=None, max_size=MAX_FRAME) as bare:
            return ours, await results(bare.sockets[0].getsockname()[1], cases)

    ours, alone = asyncio.run(main())

    for name, found in (("our server", ours), ("the library alone", alone)):
        counts = Counter(each.behavior.value for each in found.values())
        passed = sum(each.passed for each in found.values())
        figure(f"{name} passes {passed} of {len(found)}: {dict(counts)}")
    worse = [name for name, each in alone.items() if each.passed and not ours[name].passed]
    assert len(ours) == len(alone) > 100
    assert worse == []
