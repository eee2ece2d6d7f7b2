"""What works on this machine, line by line, and what to do about what does not.

Rule 1: a look starts nothing and sends no key to an endpoint. It connects once, within
`way.CONNECT_SECONDS`, since whether somebody answers is what was asked. It leaves nothing but
the empty runtime folder.
Rule 2: a variable is told by its name; what it holds is never shown, and its length neither.
Rule 3: a look that fails is a line. Packages are imported by another process: one that is
broken may end it, and a kernel should not hold what only the doctor looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ipy_agent.doctor import house, kernel, local, way
from ipy_agent.doctor.finding import Finding, fault, looked
from ipy_agent.endpoints import Endpoint

__all__ = ["Finding", "examined", "examined_kernel"]


def examined(goal: Callable[[], Endpoint] | None = None) -> Iterator[Finding]:
    """Yield what was found, as it is found.

    Args:
        goal: gives the endpoint of a session; by default that of the environment is looked at.
    """
    for topic, look in house.LOOKS.items():
        yield from looked(topic, look)
    try:
        endpoint = goal() if goal else Endpoint.default()
    except Exception as error:  # noqa: BLE001 (a session brings in half of what may be broken)
        yield fault("endpoint", error)
        return
    why = "this session's" if goal else way.why()
    yield from looked("endpoint", partial(way.endpoint, endpoint, why))
    for topic, look_at in (way.LOOKS if endpoint.url else {}).items():
        yield from looked(topic, partial(look_at, endpoint))
    yield from local.examined(endpoint)


def examined_kernel(shell: Any) -> Iterator[Finding]:
    """Yield what only the kernel of a running cell knows."""
    return looked("kernel", partial(kernel.look, shell))
