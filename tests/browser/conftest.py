"""JupyterLab with its kernel, and a Chromium that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SECONDS = 90
TOKEN = "a-token-for-tests"
ARTEFACTS = Path(__file__).parents[2] / "artefacts"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Lab(NamedTuple):
    """A running JupyterLab: its address, and the folder that it shows."""

    url: str
    root: Path

    def tree(self, name: str) -> str:
        """Return the address at which a file is open."""
        return f"{self.url}lab/tree/{name}?token={TOKEN}"


@pytest.fixture
def shot(page):
    """Keep a picture of the page among the artefacts."""

    def take(name: str) -> None:
        ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTEFACTS / f"{name}.png")

    return take


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium of the system; its event loop must not outlive these tests."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page of its own, as wide as a laptop's screen."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(SECONDS * 1000)
    yield context.new_page()
    context.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The scripted server, slow enough to look on; the value is its base URL."""
    file = tmp_path / "script.json"
    file.write_text(json.dumps(SCRIPT), "utf-8")
    command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
    process = subprocess.Popen(
        [*command, "--script", str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "IPY_AGENT_SERVER_TOKEN": TOKEN},
    )
    yield process.stdout.readline().split()[-1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    process.stdout.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A JupyterLab in a folder of its own."""
    root = tmp_path / "notebooks"
    root.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.endswith("API_KEY")},
        "TEST_TOKEN": TOKEN,
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
    }
    silent = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    silent.mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (silent / "notification.jupyterlab-settings").write_text(json.dumps(news), "utf-8")
    log = (tmp_path / "lab.log").open("wb")
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += [
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        f"--IdentityProvider.token={TOKEN}",
    ]
    command += [f"--ServerApp.root_dir={root}"]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield Lab(_address(process, tmp_path / "runtime"), root)
    finally:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)
        log.close()


def _address(process: subprocess.Popen[bytes], runtime: Path) -> str:
    """Return the server's address once it tells it and answers there."""
    file = runtime / f"jpserver-{process.pid}.json"
    waiting = threading.Event()
    for _ in range(SECONDS * 10):
        if file.exists():
            url = json.loads(file.read_text("utf-8"))["url"]
            with urllib.request.urlopen(f"{url}api?token={TOKEN}", timeout=SECONDS):
                return url
        assert process.poll() is None, "jupyter lab ended before it was ready"
        waiting.wait(0.1)
    raise AssertionError("jupyter lab did not start")


SCRIPT = [
    *(
        {
            "tool_calls": [{"name": "python", "arguments": {"code": code}}],
            "delay_ms": 700,
        }
        for code in (
            "import pandas as pd\nmasses = pd.Series([3750, 3800, 3250, 4675], name='body_mass_g')",
            "masses.describe()",
            "import time\ntime.sleep(0.4)\nheavy = masses[masses > 3500]\nheavy.mean()",
        )
    ),
    {
        "text": "The three heavy ones weigh **4,075 g** on average.\n\n"
        "| measure | g |\n|---|---|\n| mean | 4,075 |\n| heaviest | 4,675 |\n",
        "chunk_chars": 4,
        "delay_ms": 40,
    },
]
