"""WebSocket against HTTP, measured: the same tool loop in each mode, side by side.

A round has a loop of each mode, and each round begins with another one. What is slow at one
time is so for all of them, and a ratio is of loops of one round.

Rule 1: a mode that is not there is told with its reason, never measured as another one.
Rule 2: servers of the bench's own are ended with it, whatever ends it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ipy_agent.bench.course import Course, Lacking, loop
from ipy_agent.bench.modes import MODES, Mode, lack
from ipy_agent.bench.outcome import Outcome
from ipy_agent.endpoints import Endpoint
from ipy_agent.errors import AgentError, Interrupted, UsageError
from ipy_agent.secrets import Secret
from ipy_agent.server.memory import Cache
from ipy_agent.tables.comparison import Loop
from ipy_agent.transport.address import Locate, local_address
from ipy_agent.transport.local import end_server, local_server

__all__ = ["MODES", "Outcome", "run"]

TURNS = 20
ROUNDS, LOCAL_ROUNDS = 3, 1
CHARS, LOCAL_CHARS = 4_000, 120
"""Without a cache a local model reads all of a conversation anew in each turn: of twenty turns,
minutes. So on `local` one round, and short outputs, unless more is asked for."""

IDLE_SECONDS = 4 * 3_600
"""While one server is measured the other waits, and a loop without a cache can take long."""

_SERVE = (sys.executable, "-m", "ipy_agent", "serve")

Tell = Callable[[str], None]


def run(
    endpoint: Endpoint,
    *,
    model: str | None = None,
    effort: str | None = None,
    turns: int | None = None,
    rounds: int | None = None,
    chars: int | None = None,
    modes: Sequence[str] | None = None,
    tell: Tell = lambda _: None,
    serve: Sequence[str] = _SERVE,
) -> Outcome:
    """Measure the modes of an endpoint, and return what was measured. Blocks.

    Interrupted, it returns the loops that were complete by then, if there are any.

    Args:
        endpoint: which one; `local` gets servers of its own.
        model: the model, unless the endpoint's own.
        effort: how hard a reasoning model thinks.
        turns: turns of a loop, with a tool call each.
        rounds: how often each mode is measured.
        chars: characters of a tool's output.
        modes: names of `MODES`; by default all.
        tell: is told in a line what goes on.
        serve: the command that starts a server of the bench's own.

    Raises:
        UsageError: a number that is not above 0, or a mode that there is not.
        Interrupted: no loop was complete yet.
        AgentError: the first loop went wrong; of a later one it is that loop's reason.
    """
    local = not endpoint.url
    course = Course(
        turns=_amount("turns", turns, TURNS),
        chars=_amount("chars", chars, LOCAL_CHARS if local else CHARS),
        model=None if local else model,
        effort=effort,
    )
    rounds = _amount("rounds", rounds, LOCAL_ROUNDS if local else ROUNDS)
    lacks = {name: lack(mode, endpoint) for name, mode in _named(modes).items()}
    loops = [Loop(mode=name, reason=reason) for name, reason in lacks.items() if reason]
    present = {name: MODES[name] for name, reason in lacks.items() if not reason}
    times = f"{rounds} round{'' if rounds == 1 else 's'} of {', '.join(present) or 'no mode'}"
    each = f"{course.turns} turns a loop, tool outputs of {course.chars:,} characters"
    tell(f"{endpoint.name}: {times}; {each}")
    try:
        with _places(endpoint, model, present.values(), serve) as places:
            target = dataclasses.replace(endpoint, model=None) if local else endpoint
            # One by one: what was added stays, also when the next one is interrupted.
            loops.extend(_measured(course, rounds, present, target, places, tell))
    except KeyboardInterrupt:
        if not any(loop.turns for loop in loops):
            raise Interrupted("interrupted") from None
        tell("interrupted: this is what was measured until then")
    loops.sort(key=lambda loop: list(MODES).index(loop.mode))
    return Outcome(loops, course, endpoint)


def _amount(name: str, value: int | None, usual: int) -> int:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number above 0, not {value!r}")
    return value


def _named(modes: Sequence[str] | None) -> dict[str, Mode]:
    """Return the modes of these names, in the order of the table."""
    wanted = [*MODES] if modes is None else modes
    unknown = [name for name in wanted if name not in MODES]
    if unknown or not wanted:
        said = repr(unknown[0]) if unknown else "nothing"
        raise UsageError(f"{said} is no mode: there are {', '.join(MODES)}")
    return {name: mode for name, mode in MODES.items() if name in wanted}


def _measured(
    course: Course,
    rounds: int,
    modes: dict[str, Mode],
    endpoint: Endpoint,
    places: dict[Cache, Locate],
    tell: Tell,
) -> Iterator[Loop]:
    """Yield each loop as it is done; a mode that turns out not to be there comes once.

    Before the first round there is a turn in each mode that nobody measures: what loads late is
    loaded then, and what is not there is known early.
    """
    gone, began = set(), False
    for number, name in _order(rounds, list(modes)):
        if name in gone:
            continue
        place = f"round {number} of {rounds}, {name}" if number else f"warm-up, {name}"
        tell(f"{place} …")
        locate = places.get(modes[name].cache, local_address)
        each = course if number else course._replace(turns=1)
        try:
            done = loop(each, (name, modes[name]), endpoint, locate, tell)
        except Lacking as error:
            gone.add(name)
            yield Loop(mode=name, reason=str(error))
            continue
        except AgentError as error:
            if isinstance(error, Interrupted) or not began:
                raise
            yield Loop(mode=name, round=number, reason=str(error))
            continue
        if number:
            began = True
            tell(f"{place}: {course.turns} turns in {(done.elapsed_ms or 0) / 1_000:,.1f} s")
            yield msgspec.structs.replace(done, round=number)


def _order(rounds: int, modes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the loops as they follow each other: a round's number and a mode, 0 for the warm-up."""
    for number in range(rounds + 1):
        first = max(0, number - 1) % max(1, len(modes))
        yield from ((number, name) for name in (*modes[first:], *modes[:first]))


@contextlib.contextmanager
def _places(
    endpoint: Endpoint, model: str | None, modes: Iterable[Mode], serve: Sequence[str]
) -> Iterator[dict[Cache, Locate]]:
    """Give a server of its own to each cache that modes of `local` need; elsewhere none."""
    caches = [] if endpoint.url else list(dict.fromkeys(mode.cache for mode in modes))
    wanted = model or endpoint.model
    with contextlib.ExitStack() as servers:
        yield {
            cache: servers.enter_context(
                _own_server([*serve, "--slots", "1", "--cache", cache], wanted)
            )
            for cache in caches
        }


@contextlib.contextmanager
def _own_server(command: Sequence[str], wanted: str | None) -> Iterator[Locate]:
    """Give what starts a server at the first request; end the server."""
    with tempfile.TemporaryDirectory(prefix="ipy-agent-bench-") as name:
        folder = Path(name)

        async def locate(notice: Tell, **_: Any) -> tuple[str, Secret | None]:
            # The requests name no model, since a file has another name than its path.
            found = await local_server(
                notice, model=wanted, command=command, folder=folder, idle_exit=IDLE_SECONDS
            )
            return found.url, found.token

        try:
            yield locate
        finally:
            end_server(folder)
