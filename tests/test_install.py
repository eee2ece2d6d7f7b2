"""`%%agent` in every kernel: one line in IPython's configuration, and its undoing."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
from IPython.core.application import ENV_CONFIG_DIRS, SYSTEM_CONFIG_DIRS
from IPython.paths import get_ipython_dir
from traitlets.config.loader import PyFileConfigLoader

from ipy_agent import install
from ipy_agent.errors import AgentError

CONTENTS = {
    "empty": b"",
    "with c": b"c = get_config()\nc.TerminalInteractiveShell.autocall = 1\n",
    "without c": b"get_config().TerminalInteractiveShell.autocall = 1\n",
    "no line break at the end": b"c = get_config()",
    "a comment at the end": b"c = get_config()\n# the end",
    "a list": b"c = get_config()\nc.InteractiveShellApp.extra_extensions = ['math']\n",
    "appended": b"c = get_config()\nc.InteractiveShellApp.extra_extensions.append('math')\n",
    "other extensions": b"c = get_config()\nc.InteractiveShellApp.extensions = ['math']\n",
    "within a block": b"c = get_config()\nif c:\n    pass",
    "carriage returns": b"c = get_config()\r\nx = 1\r\n",
    "carriage returns, none at the end": b"c = get_config()\r\nx = 1",
    "carriage returns alone": b"c = get_config()\rx = 1\r",
    "mixed": b"c = get_config()\r\nx = 1\ny = 2",
    "blank lines": b"\n\nc = get_config()\n\n\n",
    "a byte order mark": b"\xef\xbb\xbfc = get_config()\n",
    "Latin-1": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
}


@pytest.fixture
def file(tmp_path):
    """Return where the configuration is, or will be."""
    return tmp_path / "etc" / "ipython" / "ipython_config.py"


@pytest.fixture
def written(file):
    """Return a function that makes the file."""

    def write(content):
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
        return file

    return write


def extensions(file):
    """Return what IPython's own loader makes of a file."""
    config = PyFileConfigLoader(file.name, path=str(file.parent)).load_config()
    found = config.InteractiveShellApp.extra_extensions
    return found if isinstance(found, list) else found.get_value([])


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_whatever_was_there_stays_and_comes_back_byte_for_byte(written, content):
    """The line stands at the end, once, and runs; undoing leaves the bytes that were there."""
    file = written(content)

    assert install.add(file)
    added = file.read_bytes()
    assert added.startswith(content)
    assert added.count(install.LINE) == 1
    assert extensions(file) == ["math"] * (b"extra" in content) + ["ipy_agent"]
    assert install.is_in(file)

    assert not install.add(file)
    assert file.read_bytes() == added

    assert install.remove(file)
    assert file.read_bytes() == content
    assert not install.is_in(file)
    assert not install.remove(file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_was_not_there_is_made_and_removed(file):
    """It holds the line alone, and may be read by whom a new file may be read by."""
    assert not install.is_in(file)
    assert not install.remove(file)

    assert install.add(file)

    other = file.with_name("other")
    other.touch()
    assert file.read_bytes() == install.LINE + b"\n"
    assert file.stat().st_mode == other.stat().st_mode
    assert extensions(file) == ["ipy_agent"]
    assert install.remove(file)
    assert not file.exists()


def test_what_was_written_after_it_stays(file):
    """Undoing takes out the line, and nothing that somebody added since."""
    install.add(file)
    file.write_bytes(b"a = 1\n" + file.read_bytes() + b"b = 2")

    assert install.remove(file)
    assert file.read_bytes() == b"a = 1\nb = 2"


def test_a_line_that_was_commented_out_is_not_ours_any_more(written):
    """It does not run, so it counts for nothing and is left alone."""
    content = b"# " + install.LINE + b"\n"
    file = written(content)

    assert not install.is_in(file)
    assert install.add(file)
    assert extensions(file) == ["ipy_agent"]
    assert install.remove(file)
    assert file.read_bytes() == content


def test_without_the_package_the_line_does_nothing(file, monkeypatch):
    """A kernel whose Python has no ipy_agent, or no longer, starts without a word."""

    class Nothing:
        @staticmethod
        def find_spec(*_):
            return None

    install.add(file)
    monkeypatch.delitem(sys.modules, "ipy_agent")
    monkeypatch.setattr(sys, "meta_path", [Nothing])

    assert extensions(file) == []


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path, there):
    """What it points to is changed, with its mode, and comes back."""
    target, link = tmp_path / "dotfiles" / "config.py", tmp_path / "ipython_config.py"
    link.symlink_to(target)
    if there:
        target.parent.mkdir()
        target.write_bytes(b"x = 1\n")
        target.chmod(0o640)

    assert install.add(link)
    assert link.is_symlink()
    assert install.is_in(target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640 or not there
    assert install.remove(link)
    assert link.is_symlink()
    assert target.exists() is there


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"x = 1\ny = = 2\n", ", line 2"),
        (b"x = '\xe9'\n", ""),
        ("x = 1\n".encode("utf-16"), ""),
        (b"x = 1 \\\n", ", line 1"),
    ],
)
def test_a_file_that_ipython_cannot_run_is_refused(written, content, where):
    """Its end would never be reached: the line says where it is broken, and nothing is changed."""
    file = written(content)

    with pytest.raises(AgentError) as refused:
        install.add(file)

    assert str(refused.value).startswith(f"{file}{where}")
    assert str(refused.value).endswith("is not Python: mend it first")
    assert file.read_bytes() == content


def test_a_file_that_is_read_only_is_left_alone(written):
    """The line names the file and the other way; nothing lies beside it."""
    file = written(b"x = 1\n")
    file.chmod(0o444)

    with pytest.raises(AgentError, match=r"cannot be written .*read-only.*--sys-prefix"):
        install.add(file)

    assert file.read_bytes() == b"x = 1\n"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_cannot_be_a_file_is_a_line(tmp_path):
    """A folder in its place, a file where its folder should be, and links in a circle."""
    folder = tmp_path / "folder.py"
    folder.mkdir()
    (tmp_path / "taken").touch()
    circle = tmp_path / "circle.py"
    circle.symlink_to(circle)

    for file in (folder, tmp_path / "taken" / "config.py", circle):
        for change in (install.add, install.remove):
            with pytest.raises(AgentError) as failed:
                change(file)
            assert str(file) in str(failed.value)
            assert len(str(failed.value).splitlines()) == 1


@pytest.mark.parametrize(
    "variables",
    [{}, {"IPYTHONDIR": "{}/mine"}, {"IPYTHONDIR": "~/mine"}, {"XDG_CONFIG_HOME": "{}/xdg"}],
)
@pytest.mark.parametrize("old", ["", ".config/ipython", "xdg/ipython"])
def test_the_users_file_is_where_ipython_looks(tmp_path, monkeypatch, variables, old):
    """With variables and without, and with a folder of very old versions."""
    for name in ("IPYTHONDIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / old).mkdir(parents=True, exist_ok=True)

    assert install.user_file().parents[1] == Path(get_ipython_dir())


def test_the_environments_file_is_where_ipython_looks():
    """It is one of the folders that IPython reads in every environment."""
    folder = install.environment_file().parent

    assert os.fspath(folder) in ENV_CONFIG_DIRS + SYSTEM_CONFIG_DIRS
