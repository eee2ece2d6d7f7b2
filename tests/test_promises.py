"""The table of promises in this folder's README names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMED = re.findall(r"`([\w/]+\.py(?:::\w+)?)`", (HERE / "README.md").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMED)
def test_a_promise_has_its_test(name):
    """Renamed or taken away, a test leaves a promise that nobody keeps."""
    file, _, wanted = name.partition("::")
    tree = ast.parse((HERE / file).read_text("utf-8"))

    found = {node.name for node in tree.body if hasattr(node, "name")}
    assert wanted in found | {""}


def test_the_promises_are_read():
    """The pattern above finds them."""
    assert len(NAMED) > 90
