"""Two Dask workers against one: `python tests/bench/workers.py [ROUNDS [ROWS]]`.

`Session.map(..., client=Client(...))` on the scripted engine with 50 ms to think, each worker a
process with 16 rows under way. In each round both clusters take their turn, with a server made anew
for each, on one core; scheduler, client and workers take what cores there are. Told is how busy the
server was: where that is near a whole core, it is what is measured. Three rounds take a minute.
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import msgspec
import pandas as pd
from distributed import Client, LocalCluster
from servers import KEY, seconds_of, started

from ipy_agent import Endpoint, Session

ROUNDS, ROWS, LANES, THINKING_MS = 3, 2_560, 16, 50
WORKERS = (1, 2)
TARGET = 1.8


class Took(NamedTuple):
    """What a map took: its seconds, and the server's share of a core."""

    seconds: float
    busy: float


def measured(client: Client, rows: int) -> Took:
    """Ask so many rows on a cluster, and return what that took."""
    frame = pd.DataFrame({"note": [f"note {number}" for number in range(rows)]})
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.json")
        entry = {"text": "west", "delay_ms": THINKING_MS}
        script.write_bytes(msgspec.json.encode([entry] * rows))
        command = (sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted")
        with started(*command, "--script", script, core=0, IPY_AGENT_SERVER_TOKEN=KEY) as server:
            session = Session(Endpoint.named(server.stdout.readline().split()[-1], key_env="KEY"))
            spent, began = seconds_of(server), time.perf_counter()
            result = session.map(frame, "Where? {note}", concurrency=LANES, client=client)
            seconds = time.perf_counter() - began
            busy = (seconds_of(server) - spent) / seconds
            session.close()
    if not (result["answer"] == "west").all():
        raise RuntimeError(f"not all rows were answered: {result['error'].dropna().unique()[:3]}")
    return Took(seconds, busy)


def main(rounds: int, rows: int) -> None:
    """Measure both in alternation, and print the ratio of each round's times."""
    os.environ["KEY"] = KEY
    logging.getLogger("distributed").setLevel(logging.WARNING)
    clients = {}
    for count in WORKERS:
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        )
        clients[count] = Client(cluster, set_as_default=False)
        measured(clients[count], 4 * LANES * count)  # what is loaded is loaded
    found = [{count: measured(clients[count], rows) for count in WORKERS} for _ in range(rounds)]
    for client in clients.values():
        client.close()
        client.cluster.close()
    ratios = [took[1].seconds / took[2].seconds for took in found]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
        f", dask {version('dask')}; {rounds} rounds of {rows:,} rows"
    )
    for count in WORKERS:
        seconds = statistics.median(took[count].seconds for took in found)
        busy = statistics.median(took[count].busy for took in found)
        print(f"{count} at work {rows / seconds:8,.0f} rows/s, the server's core {busy:.0%}")
    print(
        f"two workers / one {statistics.median(ratios):8.2f} × "
        f"({min(ratios):.2f} to {max(ratios):.2f}); target ≥ {TARGET}"
    )


if __name__ == "__main__":
    told = [int(text) for text in sys.argv[1:]]
    main(*(told + [ROUNDS, ROWS][len(told) :]))
