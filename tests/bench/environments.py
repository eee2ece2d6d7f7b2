"""The peers' environments: each of its own, of pinned versions, made once and kept.

They are below the user's cache folder, in `ipy-agent/bench`.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

PINS = {
    "openai": ("openai==3.57.0", "websockets==15.0.1"),
    "openai-agents": ("openai-agents==0.24.0", "openai==3.57.0", "websockets==16.1.1"),
    "chatlas": ("chatlas[openai]==0.23.0", "openai==3.57.0"),
    "pydantic-ai": ("pydantic-ai-slim[openai]==2.68.0", "openai==3.57.0"),
}


class Missing(Exception):
    """An environment cannot be made here."""


@cache
def python(name: str) -> str:
    """Return the interpreter of an environment, which is made if need be.

    Raises:
        Missing: it cannot be.
    """
    if not name:
        return sys.executable
    folder = user_cache_path("ipy-agent") / "bench" / name
    stamp, interpreter = folder / "pins.txt", folder / "bin" / "python"
    pins = "\n".join(PINS[name])
    if not stamp.exists() or stamp.read_text("utf-8") != pins:
        print(f"making {folder}", flush=True)
        _make(folder, interpreter, PINS[name])
        stamp.write_text(pins, "utf-8")
    return str(interpreter)


def _make(folder: Path, interpreter: Path, pins: tuple[str, ...]) -> None:
    commands = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(interpreter), "-m", "pip", "install", "--quiet", *pins],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = (done.stderr or done.stdout).strip().splitlines()
            raise Missing(
                f"{folder.name} cannot be installed here: {told[-1] if told else command}"
            )
