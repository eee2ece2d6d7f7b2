"""How many turns a second a server answers: `python tests/bench/servers.py [ROUNDS [NAME …]]`.

The embedded server on its scripted engine, fastresponses with an agent that echoes, and LiteLLM's
proxy by its own WebSocket route in front of an endpoint that echoes at once: each alone on one
core, the load (and that endpoint) on another, one after another in several rounds. 32 connections
hold conversations of 20 turns; instructions and tools of 20 kB travel with every turn.

The rivals live in environments of their own below the cache folder, made at the first run.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import platformdirs

HERE = Path(__file__).parent / "rivals"
CACHE = Path(platformdirs.user_cache_dir("ipy-agent")) / "bench"
CONNECTIONS, SECONDS, ROUNDS = 32, 6.0, 3
KEY = f"sk-{secrets.token_hex(32)}"
TICKS = os.sysconf("SC_CLK_TCK")
FASTRESPONSES = ("fastresponses==0.1.0", "uvicorn[standard]==0.54.0")
LITELLM = ("litellm[proxy]==1.108.6",)
CONFIG = """
model_list:
  - model_name: scripted
    litellm_params: {model: openai/scripted, api_base: "%s", api_key: none}
"""


class Running(NamedTuple):
    """A server that listens, and the process that is measured."""

    url: str
    process: subprocess.Popen


class Figures(NamedTuple):
    """One round of one server."""

    rate: float
    """Turns a second."""
    cost: float
    """Milliseconds of the server's CPU a turn."""
    busy: float
    """The share of a core that the load took: near 1 it was the load that was measured."""


def environment(name: str, packages: tuple[str, ...]) -> Path:
    """Return the folder of programs of an environment that has these packages."""
    folder = CACHE / name
    mark = folder / "packages.txt"
    if not mark.exists() or mark.read_text() != "\n".join(packages):
        print(f"{name}: making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *packages], check=True)
        mark.write_text("\n".join(packages))
    return folder / "bin"


@contextlib.contextmanager
def started(*command: object, core: int | None, **more: str) -> Iterator[subprocess.Popen]:
    """Run a program on one core, or on all of them, and end it."""
    cores = sorted(os.sched_getaffinity(0))
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **more},
    ) as process:
        if core is not None:
            os.sched_setaffinity(process.pid, {cores[core % len(cores)]})
        try:
            yield process
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def await_answer(url: str, process: subprocess.Popen) -> None:
    """Wait until a server answers at all."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"nobody answers at {url}")


@contextlib.contextmanager
def ours() -> Iterator[Running]:
    """The embedded server."""
    command = (sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted")
    with started(*command, core=0, IPY_AGENT_SERVER_TOKEN=KEY) as process:
        yield Running(process.stdout.readline().split()[-1], process)


@contextlib.contextmanager
def fastresponses() -> Iterator[Running]:
    """Fastresponses, by its own command."""
    port, programs = free_port(), environment("fastresponses", FASTRESPONSES)
    command = (programs / "fastresponses", "serve", f"{HERE / 'agent.py'}:agent", "--port", port)
    with started(*command, "--log-level", "warning", core=0) as process:
        await_answer(f"http://127.0.0.1:{port}/health", process)
        yield Running(f"http://127.0.0.1:{port}/v1", process)


@contextlib.contextmanager
def litellm() -> Iterator[Running]:
    """LiteLLM's proxy, by its own command, and what it forwards to."""
    port, programs = free_port(), environment("litellm", LITELLM)
    with tempfile.TemporaryDirectory() as folder:
        config, cert = Path(folder, "config.yaml"), Path(folder, "cert.pem")
        certify(cert, Path(folder, "key.pem"))
        own = {
            "SSL_CERT_FILE": str(cert),
            "LITELLM_MASTER_KEY": KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        command = (programs / "litellm", "--config", config, "--host", "127.0.0.1", "--port", port)
        with started(sys.executable, HERE / "upstream.py", folder, core=1) as upstream:
            config.write_text(CONFIG % upstream.stdout.readline().strip())
            with started(*command, core=0, **own) as process:
                await_answer(f"http://127.0.0.1:{port}/health/liveliness", process)
                yield Running(f"http://127.0.0.1:{port}/v1", process)


def certify(cert: Path, key: Path) -> None:
    """Make a certificate of this machine for itself."""
    asked = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    asked += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    subprocess.run(asked.split(), check=True, capture_output=True)


SERVERS = {"ipy_agent": ours, "fastresponses": fastresponses, "LiteLLM": litellm}


def seconds_of(process: subprocess.Popen) -> float:
    """Return the CPU time that a process took so far."""
    told = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / TICKS


def measured(name: str) -> Figures:
    """Return what one server does in one round."""
    with SERVERS[name]() as server:
        url = server.url.replace("http", "ws", 1) + "/responses"
        asks = (sys.executable, HERE / "load.py", url, CONNECTIONS, SECONDS)
        with started(*asks, core=1, KEY=KEY) as load:
            load.stdout.readline()
            before = seconds_of(server.process)
            load.stdout.readline()
            spent = seconds_of(server.process) - before
            told = json.loads(load.stdout.readline())
    turns, seconds = told["turns"], told["seconds"]
    return Figures(turns / seconds, spent / turns * 1_000, told["busy"] / seconds)


def main(rounds: int, names: list[str]) -> None:
    """Measure all in alternation, and print their medians beside ours."""
    found: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(measured(name))
    middle = {
        name: Figures(*(statistics.median(each) for each in zip(*figures, strict=True)))
        for name, figures in found.items()
    }
    packages = ", ".join(f"{name} {version(name)}" for name in ("uvicorn", "websockets", "msgspec"))
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"ours: {packages}; rivals: {', '.join((*FASTRESPONSES, *LITELLM))}")
    print(f"{rounds} rounds of {SECONDS:g} s, {CONNECTIONS} connections; target: ahead of both")
    print(
        "server           turns/s (rounds)           ours is  CPU ms a turn  ours is  load's core"
    )
    best = middle[names[0]]
    for name, figures in found.items():
        rates = [each.rate for each in figures]
        rate, cost, busy = middle[name]
        print(
            f"{name:14} {rate:9,.0f} ({min(rates):7,.0f} to {max(rates):7,.0f})"
            f" {best.rate / rate:8.1f} × {cost:13.2f} {cost / best.cost:8.1f} × {busy:10.0%}"
        )


if __name__ == "__main__":
    main(int((sys.argv[1:] or [ROUNDS])[0]), sys.argv[2:] or list(SERVERS))
