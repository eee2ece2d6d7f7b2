"""Jupyter with its kernels, and a Chromium that looks at them in JupyterLab and Notebook 7."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

SECONDS = 40
TOKEN = "a-token-for-tests"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLACES = {"lab": "lab/tree", "notebook": "notebooks"}
THEMES = "@jupyterlab/apputils-extension"


class Jupyter:
    """A running server, which shows a folder in both front ends."""

    def __init__(self, url: str, root: Path, settings: Path) -> None:
        self.url = url
        self.root = root
        self._settings = settings / THEMES

    def place(self, app: str, name: str) -> str:
        """Return the address at which a front end opens a notebook."""
        return f"{self.url}{PLACES[app]}/{name}?reset&token={TOKEN}"

    def write(self, name: str, *cells: str) -> nbformat.NotebookNode:
        """Write a notebook with these cells, and return it."""
        code = [nbformat.v4.new_code_cell(cell) for cell in cells]
        notebook = nbformat.v4.new_notebook(cells=code)
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.root / name)
        return notebook

    def saved(self, name: str) -> nbformat.NotebookNode:
        """Return a notebook as it is on disk."""
        return nbformat.read(self.root / name, as_version=4)

    @contextlib.contextmanager
    def theme(self, name: str) -> Iterator[None]:
        """Within this context pages that are opened have a theme."""
        file = self._settings / "themes.jupyterlab-settings"
        file.write_text(json.dumps({"theme": f"JupyterLab {name}"}), "utf-8")
        try:
            yield
        finally:
            file.unlink()


class Notebook:
    """A notebook that is open in a page, and the ways of a user with it."""

    def __init__(self, page, jupyter: Jupyter, app: str, name: str) -> None:
        self.page = page
        self.app = app
        self.name = name
        page.goto(jupyter.place(app, name))
        self.ready()

    def ready(self) -> None:
        """Wait until the kernel is idle."""
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for()
        if self.app == "lab":  # which shows an indicator before there is a kernel
            self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()

    def cell(self, number: int):
        """Return a cell; the first one is 0."""
        return self.page.locator(".jp-CodeCell").nth(number)

    def outputs(self, number: int):
        """Return all that a cell shows."""
        return self.cell(number).locator(".jp-Cell-outputArea")

    def start(self, number: int):
        """Run a cell, without waiting for its end; return it.

        What is asked of a page that is still setting itself up is lost, and asked again.
        """
        from playwright.sync_api import TimeoutError as TooLate

        before = self.prompt(number)
        asked = self.cell(number).locator(".jp-InputPrompt").filter(has_not_text=before)
        for _ in range(5):
            self.cell(number).locator(".cm-content").click()
            self.page.keyboard.press("Control+Enter")
            with contextlib.suppress(TooLate):
                asked.wait_for(timeout=2_000)
                break
        return self.cell(number)

    def prompt(self, number: int) -> str:
        """Return what stands beside a cell: `[*]:` while it runs."""
        return self.cell(number).locator(".jp-InputPrompt").inner_text().strip()

    def finish(self, number: int) -> None:
        """Wait until a cell that was started has ended."""
        ended = re.compile(r"\[\d+\]:")
        self.cell(number).locator(".jp-InputPrompt", has_text=ended).wait_for()

    def run(self, number: int) -> str:
        """Run a cell to its end, and return the text that it shows."""
        self.start(number)
        self.finish(number)
        self.ready()
        return self.text(number)

    def text(self, number: int) -> str:
        """Return the text that a cell shows."""
        return "\n".join(self.outputs(number).locator(".jp-OutputArea-output").all_inner_texts())

    def save(self) -> None:
        """Save the notebook."""
        with self.page.expect_response(lambda response: response.request.method == "PUT"):
            self.page.keyboard.press("Control+s")


@pytest.fixture
def shot(page, tmp_path: Path):
    """Keep a picture of the page, in the folder of `IPY_AGENT_SHOTS` if that is set."""
    folder = Path(os.environ.get("IPY_AGENT_SHOTS") or tmp_path)

    def take(name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png")

    return take


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium of the system, for a module: its loop must not outlive the tests."""
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
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def serve(tmp_path: Path):
    """Return a function that serves a script, and returns its base URL."""
    started = []

    def start(script) -> str:
        file = tmp_path / f"script-{len(started)}.json"
        file.write_text(json.dumps(script), "utf-8")
        command = [sys.executable, "-m", "ipy_agent", "serve", "--engine", "scripted"]
        process = subprocess.Popen(
            [*command, "--script", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "IPY_AGENT_SERVER_TOKEN": TOKEN},
        )
        started.append(process)
        return process.stdout.readline().split()[-1]

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        process.stdout.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory) -> Iterator[Jupyter]:
    """A Jupyter server in a folder of its own."""
    home = tmp_path_factory.mktemp("jupyter")
    root, settings = home / "notebooks", home / "settings"
    root.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.endswith("API_KEY")},
        "TEST_TOKEN": TOKEN,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    (settings / THEMES).mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / THEMES / "notification.jupyterlab-settings").write_text(json.dumps(news), "utf-8")
    command = [sys.executable, "-m", "jupyter", "notebook", "--no-browser", "--allow-root"]
    command += [
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={root}",
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield Jupyter(_address(process, home / "runtime"), root, settings)
        finally:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)


@pytest.fixture
def opened(page, jupyter):
    """Return a function that opens a notebook in a front end."""
    return lambda app, name: Notebook(page, jupyter, app, name)


@pytest.fixture
def notebook(opened, jupyter, serve, request):
    """Return a function that opens a notebook whose first cell connects to a script's server."""

    def show(app: str, script, *cells: str) -> Notebook:
        name = f"{request.node.originalname.removeprefix('test_')[:40]}-{app}.ipynb"
        connect = f"%load_ext ipy_agent\n%agent connect {serve(script)} --key-env TEST_TOKEN"
        jupyter.write(name, connect, *cells)
        shown = opened(app, name)
        shown.run(0)
        return shown

    return show


def _address(process: subprocess.Popen[bytes], runtime: Path) -> str:
    """Return the server's address once it tells it and answers there."""
    file = runtime / f"jpserver-{process.pid}.json"
    waiting = threading.Event()
    for _ in range(SECONDS * 10):
        if file.exists():
            url = json.loads(file.read_text("utf-8"))["url"]
            with (
                contextlib.suppress(urllib.error.URLError),  # the file may be there before it is
                urllib.request.urlopen(f"{url}api?token={TOKEN}", timeout=SECONDS),
            ):
                return url
        assert process.poll() is None, "jupyter ended before it was ready"
        waiting.wait(0.1)
    raise AssertionError("jupyter did not start")
