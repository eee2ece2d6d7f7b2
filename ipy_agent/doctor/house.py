"""This Python and what is installed around it: packages, kernels, front end, our own line."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ipy_agent import install
from ipy_agent.doctor.finding import Finding, Look
from ipy_agent.secrets import clean_environment

__all__ = ["DISTRIBUTION", "LOOKS", "judged"]

DISTRIBUTION = "ipy-agent-live"
IMPORT_SECONDS = 30

_IN_A_FOLDER = 2
_IMPORT = """\
import importlib, sys
for name in sys.argv[1:]:
    reason = ""
    try:
        importlib.import_module(name)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    print(name, reason, sep="\\t", flush=True)
"""


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok", "python", f"{version}, {sys.executable}")
    yield Finding("ok", "ipy-agent", f"{_version(DISTRIBUTION)}, {Path(install.__file__).parent}")


def _packages() -> Iterator[Finding]:
    bad, good = judged("")
    for said, remedy in bad:
        yield Finding("missing", "packages", said, remedy)
    yield Finding("ok", "packages", ", ".join(good))


def judged(extra: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return which of an extra's packages do not work, each with its remedy, and which do."""
    from packaging.requirements import Requirement  # noqa: PLC0415 (a broken one is a line)

    bad, fitting = [], {}
    for line in importlib.metadata.requires(DISTRIBUTION) or ():
        wanted = Requirement(line)
        if not (wanted.marker.evaluate({"extra": extra}) if wanted.marker else not extra):
            continue
        version = _version(wanted.name)
        if version and wanted.specifier.contains(version, prereleases=True):
            fitting[wanted.name] = version
        else:
            said = f"{wanted.name} {version or 'is not installed'}"
            bad.append((said, f"pip install '{wanted.name}{wanted.specifier}'"))
    for name, reason in _broken(fitting):
        said = f"{name} {fitting.pop(name)} cannot be imported ({reason})"
        bad.append((said, f"pip install --force-reinstall {name}"))
    return bad, [f"{name} {version}" for name, version in fitting.items()]


def _broken(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the packages that cannot be imported, each with the reason."""
    modules = {name: module for name in names if (module := _module(name))}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, *modules.values()],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=IMPORT_SECONDS,
        check=False,
    )
    told = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    broken = [(name, told[module]) for name, module in modules.items() if told.get(module)]
    silent = [name for name, module in modules.items() if module not in told]
    # The first one ended the process, and of those behind it nothing is known.
    return broken + [(name, f"it ends Python with {done.returncode}") for name in silent[:1]]


def _module(name: str) -> str | None:
    """Return what a package is imported as, where its list of files tells it."""
    for file in importlib.metadata.files(name) or ():
        if file.name == "__init__.py" and len(file.parts) == _IN_A_FOLDER:
            return file.parts[0]
    return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernels() -> Iterator[Finding]:
    from jupyter_client.kernelspec import KernelSpecManager  # noqa: PLC0415 (as above)

    specs = KernelSpecManager().get_all_specs()
    ours = sorted(name for name, spec in specs.items() if _runs_here(spec["spec"]["argv"]))
    others = len(specs) - len(ours)
    if ours:
        yield Finding("ok", "kernels", f"{', '.join(ours)} with this Python, {others} with others")
    else:
        make = f"{sys.executable} -m ipykernel install --user --name NAME"
        yield Finding("note", "kernels", f"none of {others} has this Python", make)


def _runs_here(argv: list[str]) -> bool:
    """Whether a kernel's command is this Python; its bare name is that of whoever starts it."""
    command = Path(argv[0]) if argv else Path()
    if command.parent == Path():
        return command.name in {"python", "python3"}
    return command.parent.resolve() == Path(sys.executable).parent.resolve()


def _extension() -> Iterator[Finding]:
    files = [file for file in (install.environment_file(), install.user_file()) if file.exists()]
    found = [str(file) for file in files if install.is_in(file)]
    if found:
        yield Finding("ok", "extension", f"%%agent is in every kernel by {' and '.join(found)}")
    else:
        ways = "%load_ext ipy_agent in each, or once `ipy-agent install --sys-prefix`"
        yield Finding("note", "extension", "kernels start without %%agent", ways)


def _widgets() -> Iterator[Finding]:
    from jupyter_core.paths import jupyter_path  # noqa: PLC0415 (as above)

    places = jupyter_path("labextensions")
    folders = [Path(place, "@jupyter-widgets/jupyterlab-manager") for place in places]
    if found := next((folder for folder in folders if folder.is_dir()), None):
        yield Finding("ok", "widgets", f"JupyterLab can show them, {found}")
    elif _version("jupyterlab"):
        remedy = f"{sys.executable} -m pip install 'jupyterlab_widgets>=3'"
        yield Finding("note", "widgets", "JupyterLab cannot show the live panel", remedy)
    else:
        said = "no JupyterLab is here; the live panel needs 'jupyterlab_widgets>=3' where it is"
        yield Finding("note", "widgets", said)


LOOKS: dict[str, Look] = {
    "python": _python,
    "packages": _packages,
    "kernels": _kernels,
    "extension": _extension,
    "widgets": _widgets,
}
