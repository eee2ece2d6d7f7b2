"""What many rows begin with: taken in once a connection, on a lane of its own that stands still."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from ipy_agent.endpoints import ENDPOINTS, Endpoint, Limits
from ipy_agent.protocol.events import TERMINAL, Error
from ipy_agent.protocol.items import EMPTY, text, user
from ipy_agent.protocol.requests import Fields, Request
from ipy_agent.trace import RequestSent, Throttled
from ipy_agent.transport.clock import Clock
from ipy_agent.transport.recovery import Recovery
from ipy_agent.transport.websocket import WebSocketTransport

STRICT = Limits(lanes=32, keeps_all=False)
UNKNOWN = Limits()
FIELDS = Fields({"model": "m", "store": False, "instructions": "Be brief."})
SAID = EMPTY.extend([user("the conversation so far, " * 40)])


class Host:
    """An endpoint as hosted ones are, that counts what it hears; it echoes the last user.

    Attributes:
        heard: the requests of each connection, in order.
        raw: the bytes of each request that is no warm-up.
        codes: the error codes that it answered with.

    Args:
        lanes: whether it tells lanes apart.
        keeps: the peer keeps `all` responses, the `latest` of each lane, or `off`, none.
        act: told of each request and its connection's number, may return an error frame, a close
            code, or `hang`, to be done in place of an answer.
        reforks: a lane that was used may go on from another's response.
    """

    def __init__(self, *, lanes=True, keeps="latest", act=lambda *_: None, reforks=True):
        self.heard, self.raw, self.codes = [], [], []
        self._number = 0
        self._lanes, self._keeps, self._act, self._reforks = lanes, keeps, act, reforks
        self.gate = asyncio.Event()
        self.gate.set()
        self.warm_gate = asyncio.Event()
        self.warm_gate.set()

    @property
    def warm_ups(self):
        return [[one for one in heard if one.get("generate") is False] for heard in self.heard]

    @property
    def rows(self):
        return [one for heard in self.heard for one in heard if one.get("generate") is not False]

    async def __aenter__(self):
        self._server = await serve(self._serve, "127.0.0.1", 0, compression=None, max_size=None)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = Endpoint.named(f"http://127.0.0.1:{port}/v1")
        return self

    async def __aexit__(self, *_):
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, socket):
        number, held, latest, queues = len(self.heard), {}, {}, {}
        self.heard.append([])
        tasks = set()
        try:
            async for frame in socket:
                asked = json.loads(frame)
                self.heard[number].append(asked)
                if asked.get("generate") is not False:
                    self.raw.append(frame)
                lane = asked.get("stream_id") if self._lanes else None
                lock = queues.setdefault(lane, asyncio.Lock())
                answer = self._answer(socket, number, asked, lane, lock, held, latest)
                task = asyncio.create_task(answer)
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except ConnectionClosed:
            pass
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, socket, number, asked, lane, lock, held, latest):
        async with lock:
            try:
                await (self.warm_gate if is_warm_up(asked) else self.gate).wait()
                said = self._said(number, asked, lane, held, latest)
                if said == "hang":
                    return
                if isinstance(said, int):
                    await socket.close(said)
                    return
                if said["type"] == "error":
                    self.codes.append(said["error"]["code"])
                await socket.send(json.dumps(said if lane is None else said | {"stream_id": lane}))
            except ConnectionClosed:
                pass

    def _said(self, number, asked, lane, held, latest):
        if (said := self._act(asked, number)) is not None:
            return said
        parent = asked.get("previous_response_id")
        used = lane in latest and latest[lane] != parent and not self._reforks
        if parent is not None and (parent not in held or used):
            return refusal("previous_response_not_found", 400)
        items = held.get(parent, []) + asked["input"]
        self._number += 1
        name, output = f"resp_{self._number}", []
        if asked.get("generate") is not False:
            words = [{"type": "output_text", "text": text(items[-1])}]
            output = [{"type": "message", "role": "assistant", "content": words}]
        if self._keeps == "latest":
            held.pop(latest.get(lane), None)
        if self._keeps != "off":
            held[name] = items + output
        latest[lane] = name
        response = {"id": name, "status": "completed", "output": output}
        return {"type": "response.completed", "response": response}


def refusal(code, status, param=None, **headers):
    error = {"code": code, "message": "no", "param": param, "headers": headers}
    return {"type": "error", "status": status, "error": error}


def is_warm_up(asked):
    return asked.get("generate") is False


class Rows:
    """Many rows over one transport, with so many lanes."""

    def __init__(self, endpoint, limits=STRICT, *, shared=SAID, diagnoses=False, **more):
        self.endpoint = dataclasses.replace(endpoint, limits=limits, diagnoses=diagnoses)
        self.transport = WebSocketTransport(self.endpoint, **more)
        self.way = Recovery(self.transport, self.endpoint, clock=more.get("clock"))
        self.shared, self.fields = shared, FIELDS
        self.sent = []

    async def row(self, number, lane):
        """Ask a row, see that its answer is its own, and return all that came."""
        items = self.shared.extend([user(f"row {number}")])
        request = Request(
            fields=self.fields, input=items, stream_id=f"each.{lane}", shared=self.shared
        )
        events = [event async for event in self.way.stream(request)]
        assert isinstance(events[-2], TERMINAL), events
        assert text(events[-2].response.output[0]) == f"row {number}"
        self.sent += [event for event in events if isinstance(event, RequestSent)]
        return events

    async def row_of_main(self):
        """Go on with the conversation itself, on the default lane."""
        items = self.shared.extend([user("go on")])
        async for _ in self.way.stream(Request(fields=self.fields, input=items)):
            pass

    async def ask(self, count, lanes):
        """Ask so many rows on so many lanes; one that is free takes the next."""
        left = iter(range(count))

        async def on(lane):
            for number in left:
                await self.row(number, lane)

        await asyncio.gather(*map(on, range(lanes)))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self.way.aclose()

    @property
    def limits(self):
        return self.transport._pool.limits


def test_rows_fork_from_one_warm_up_on_lanes_that_are_used_again(run):
    """Forty rows on sixteen lanes of a strict peer: one warm-up, none whole, none refused."""

    async def main():
        async with Host() as host, Rows(host.endpoint) as rows:
            await rows.ask(40, 16)
            return host, rows.sent

    host, sent = run(main())
    ((warm_up,),) = host.warm_ups
    assert (warm_up["stream_id"], len(warm_up["input"])) == ("each", 1)
    assert len(host.rows) == 40
    assert {row["stream_id"] for row in host.rows} == {f"each.{n}" for n in range(16)}
    assert {row["previous_response_id"] for row in host.rows} == {"resp_1"}
    assert all(b"so far" not in frame.encode() and len(frame) < 400 for frame in host.raw)
    assert {(one.held_items, one.sent_items, one.resent) for one in sent} == {(1, 1, None)}
    assert host.codes == []


def test_a_warm_up_is_compared_with_nothing(run):
    """Where an endpoint tells why its prompt cache missed, only rows are asked about."""

    async def main():
        async with Host() as host, Rows(host.endpoint, diagnoses=True) as rows:
            await rows.ask(2, 1)
            rows.fields = Fields({"model": "m", "store": False, "instructions": "Be long."})
            await rows.ask(2, 1)
            return host

    ((*warm_ups,),) = run(main()).warm_ups
    assert len(warm_ups) == 2
    assert not any("prompt_cache_options" in one for one in warm_ups)


def test_our_own_strict_server_lets_used_lanes_fork_again(run, served):
    """Every row of the embedded server that keeps the latest only goes on from one response."""
    endpoint = served(cache="latest")

    async def main():
        async with Rows(endpoint) as rows:
            await rows.ask(96, 16)
            return rows.sent

    sent = run(main())
    assert len(sent) == 96
    assert len({one.previous_response_id for one in sent}) == 1
    assert {(one.held_items, one.resent, one.attempt) for one in sent} == {(1, None, 0)}


def test_more_rows_than_fit_on_a_socket_have_another_that_is_warmed_too(run):
    """Twenty at once with sixteen in flight: two sockets, a warm-up each, all rows short."""

    async def main():
        async with Host() as host, Rows(host.endpoint) as rows:
            host.gate.clear()
            asking = asyncio.create_task(rows.ask(20, 20))
            while len(host.rows) < 20:  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            host.gate.set()
            await asking
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1, 1]
    assert [len(heard) for heard in host.heard] == [17, 5]
    assert {one.held_items for one in sent} == {1}


def test_a_warm_up_under_way_takes_no_rows_place(run):
    """Sixteen rows fit on a socket with sixteen in flight, however many come while it is warmed."""

    async def main():
        async with Host() as host, Rows(host.endpoint) as rows:
            host.warm_gate.clear()
            asking = [asyncio.create_task(rows.row(0, 0))]
            while not (host.heard and host.heard[0]):  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            asking += [asyncio.create_task(rows.row(number, number)) for number in range(1, 16)]
            await asyncio.sleep(0)
            host.warm_gate.set()
            await asyncio.gather(*asking)
            return host, rows.sent

    host, sent = run(main())
    assert [len(heard) for heard in host.heard] == [17]
    assert {one.held_items for one in sent} == {1}


def test_a_branch_that_was_warmed_is_no_place_to_fork_rows_from(run):
    """It may move on at any moment: while it has a turn rows are short all the same."""

    def act(asked, _):
        return "hang" if "stream_id" not in asked and not is_warm_up(asked) else None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint) as rows:
            warm = Request(fields=FIELDS, input=SAID, generate=False)
            async for _ in rows.way.stream(warm):
                pass
            await rows.ask(2, 1)
            turn = asyncio.create_task(rows.row_of_main())
            while len(host.rows) < 3:  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            await rows.ask(2, 1)
            turn.cancel()
            await asyncio.wait([turn])
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [2]
    assert [one.held_items for one in sent] == [1] * 4


def test_nothing_said_yet_is_worth_a_warm_up(run):
    """Instructions and tools are taken in by themselves; `EMPTY` is one object for all fields."""
    other = Fields({"model": "m", "store": False, "instructions": "Be long."})

    async def main():
        async with Host() as host, Rows(host.endpoint, shared=EMPTY) as rows:
            await rows.ask(6, 3)
            rows.fields = other
            await rows.ask(6, 3)
            return host

    host = run(main())
    ((first, second),) = host.warm_ups
    assert (first["input"], second["input"]) == ([], [])
    assert (first["instructions"], second["instructions"]) == ("Be brief.", "Be long.")
    assert [row["previous_response_id"] for row in host.rows] == ["resp_1"] * 6 + ["resp_8"] * 6
    assert host.codes == []


def test_a_peer_that_is_tried_out_is_so_by_its_warm_up(run):
    """Where nobody told whether there are lanes the rows wait for it, and share its socket."""

    async def main():
        async with Host() as host, Rows(host.endpoint, UNKNOWN) as rows:
            await rows.ask(40, 16)
            return host, rows.limits

    host, limits = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    assert all("previous_response_id" in row for row in host.rows)
    assert limits.lanes == 32
    assert host.codes == []


@pytest.mark.parametrize("limits", [Limits(lanes=0, keeps_all=True), UNKNOWN], ids=["told", "new"])
def test_connections_without_lanes_are_warmed_each_where_all_is_kept(run, limits):
    """Every row on every one of them goes on from its connection's warm-up."""

    async def main():
        async with Host(lanes=False, keeps="all") as host, Rows(host.endpoint, limits) as rows:
            await rows.ask(12, 3)
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1, 1, 1]
    assert len(host.rows) == 12
    assert {one.held_items for one in sent} == {1}
    assert host.codes == []


def test_one_connection_without_lanes_is_warmed_where_the_latest_is_kept(run):
    """It primes the prompt cache: one row goes on from it, the others wait for it and are whole."""
    limits = Limits(lanes=0, keeps_all=False)

    async def main():
        async with Host(lanes=False) as host, Rows(host.endpoint, limits) as rows:
            await rows.ask(12, 3)
            return host, rows.sent

    host, sent = run(main())
    assert sorted(len(warm_ups) for warm_ups in host.warm_ups) == [0, 0, 1]
    assert len(host.rows) == 12
    assert [one.held_items for one in sent].count(1) == 1
    assert host.codes == []


def test_that_a_connection_without_lanes_keeps_the_latest_only_is_learnt_by_one_row(run):
    """Nothing was told of the endpoint: a second row is refused once, and no more are."""

    async def main():
        async with Host(lanes=False) as host, Rows(host.endpoint, UNKNOWN) as rows:
            await rows.ask(6, 1)
            return host, rows.limits

    host, limits = run(main())
    assert host.codes == ["previous_response_not_found"]
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    assert (limits.lanes, limits.keeps_all) == (0, False)


def test_a_connection_that_is_lost_in_the_middle_is_followed_by_a_warm_one(run):
    """No row is lost, and only those that were under way are asked again."""
    lost = []

    def act(asked, number):
        if not lost and not is_warm_up(asked) and text(asked["input"][-1]) == "row 20":
            lost.append(number)
            return 1011
        return None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint) as rows:
            await rows.ask(40, 8)
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1, 1]
    asked = [text(row["input"][-1]) for row in host.rows]
    assert set(asked) == {f"row {n}" for n in range(40)}
    assert 1 <= len(asked) - 40 <= 8
    assert {one.held_items for one in sent} == {1}


def test_a_warm_up_that_is_refused_is_no_rows_failure(run):
    """They are sent whole there, and nobody asks for it again."""

    def act(asked, _):
        return refusal("server_error", 500) if is_warm_up(asked) else None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint) as rows:
            await rows.ask(12, 4)
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    assert [(one.held_items, one.attempt) for one in sent] == [(0, 0)] * 12
    assert [len(row["input"]) for row in host.rows] == [2] * 12


class Hurried(Clock):
    """A clock whose sleeps are over at once: it is that much later then."""

    def __init__(self):
        self.slept = []

    def now(self):
        return super().now() + sum(self.slept)

    async def sleep(self, seconds):
        self.slept.append(seconds)


def test_an_endpoint_with_too_much_to_do_is_warmed_when_there_is_time(run):
    """A warm-up that is refused with 429 is tried again, but not by every row that waits."""
    busy = refusal("rate_limit_exceeded", 429, **{"Retry-After": "7"})
    clock = Hurried()

    def act(*_):
        return None if clock.slept else busy

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint, clock=clock) as rows:
            events = await rows.row(0, 0)
            await rows.ask(8, 4)
            return host, rows.sent, [one for one in events if isinstance(one, Throttled)]

    host, sent, throttled = run(main())
    assert [one.seconds for one in throttled] == [7.0]
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [2]
    assert [one.held_items for one in sent] == [0] + [1] * 9


def test_an_endpoint_that_is_busy_hears_one_warm_up_until_its_time_is_over(run):
    """Other rows are sent as they are meanwhile."""
    busy = refusal("rate_limit_exceeded", 429, **{"Retry-After": "7"})

    def act(asked, _):
        return busy if is_warm_up(asked) else None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint, clock=Hurried()) as rows:
            await rows.ask(8, 4)
            return host

    host = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    assert len(host.rows) == 8


@pytest.mark.parametrize(("lanes", "hung"), [(32, [1]), (0, [1, 1, 0])])
def test_a_warm_up_that_is_never_answered_is_waited_for_as_long_as_a_turn(run, lanes, hung):
    """Then the row comes; a lane that is the only one is not used with an answer outstanding."""
    limits = Limits(lanes=lanes, keeps_all=lanes == 0)

    def act(asked, _):
        return "hang" if is_warm_up(asked) else None

    async def main():
        host = Host(lanes=bool(lanes), keeps="all", act=act)
        async with host, Rows(host.endpoint, limits, first_event=0.1) as rows:
            await rows.ask(3, 1)
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == hung
    assert [one.attempt for one in sent] == [0, 0, 0]


def test_an_endpoint_that_hangs_up_at_warm_ups_is_not_asked_for_more_than_two(run):
    """Whoever shares it goes on without, on a connection that stays."""

    def act(asked, _):
        return 1011 if is_warm_up(asked) else None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint) as rows:
            await rows.ask(12, 4)
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1, 1, 0]
    assert [one.attempt for one in sent] == [0] * 12


def test_a_warm_up_that_is_interrupted_leaves_nothing_behind(run):
    """Its connection takes no more turns; who waited for it has another, which is warmed."""
    hung = []

    def act(asked, _):
        if is_warm_up(asked) and not hung:
            hung.append(asked)
            return "hang"
        return None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint) as rows:
            first = asyncio.create_task(rows.row(0, 0))
            second = asyncio.create_task(rows.row(1, 1))
            while not hung:  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            await second
            return host, rows.sent

    host, sent = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1, 1]
    assert [(one.connection, one.held_items) for one in sent] == [(2, 1)]


def test_a_row_that_fails_keeps_what_it_shares(run):
    """Its own lane forgets; the next row there forks from the same warm-up."""
    failed = []

    def act(asked, _):
        if not is_warm_up(asked) and not failed:
            failed.append(asked)
            return refusal("server_error", 500)
        return None

    async def main():
        async with Host(act=act) as host, Rows(host.endpoint) as rows:
            items = SAID.extend([user("fails")])
            request = Request(fields=FIELDS, input=items, stream_id="each.0", shared=SAID)
            events = [event async for event in rows.way.stream(request)]
            await rows.ask(3, 1)
            return host, events

    host, events = run(main())
    assert any(isinstance(event, Error) for event in events)
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    assert {row["previous_response_id"] for row in host.rows} == {"resp_1"}


def test_that_used_lanes_may_not_fork_is_learnt_by_one_row(run):
    """The lane that found out is sent whole from then on, and so are others that were used."""

    async def main():
        async with Host(reforks=False) as host, Rows(host.endpoint) as rows:
            await rows.ask(4, 1)
            await rows.row(4, 1)
            return host, rows.sent, rows.limits

    host, sent, limits = run(main())
    assert host.codes == ["previous_response_not_found"]
    assert not limits.reforks
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    told = [(1, 0), (1, 0), (0, 1), (0, 0), (0, 0), (1, 0)]
    assert [(one.held_items, one.attempt) for one in sent] == told


def test_a_peer_that_holds_nothing_is_asked_to_once(run):
    """A connection whose peer does not know its own warm-up is not given another."""

    async def main():
        async with Host(keeps="off") as host, Rows(host.endpoint, UNKNOWN) as rows:
            await rows.ask(8, 4)
            return host

    host = run(main())
    assert [len(warm_ups) for warm_ups in host.warm_ups] == [1]
    assert set(host.codes) == {"previous_response_not_found"}
    assert len(host.codes) <= 4


def test_the_conversation_itself_goes_on_from_its_own_lane(run):
    """What rows share is where the main branch stands too; its next turn is no fork."""

    async def main():
        async with Host() as host, Rows(host.endpoint) as rows:
            one = Request(fields=FIELDS, input=SAID)
            events = [event async for event in rows.way.stream(one)]
            said = SAID.extend(events[-2].response.output)
            rows.shared = said
            await rows.ask(4, 2)
            await rows.row_of_main()
            return host

    host = run(main())
    ((warm_up,),) = host.warm_ups
    assert (warm_up["previous_response_id"], warm_up["input"]) == ("resp_1", [])
    *_, last = host.rows
    assert "stream_id" not in last
    assert last["previous_response_id"] == "resp_1"
    assert host.codes == []


def test_a_connection_whose_names_are_nearly_used_up_keeps_one_for_what_rows_share(run):
    """With three names a connection has two rows, and the lane that they fork from."""

    async def main():
        limits = Limits(lanes=3, keeps_all=False)
        async with Host() as host, Rows(host.endpoint, limits) as rows:
            host.gate.clear()
            asking = asyncio.create_task(rows.ask(4, 4))
            while len(host.rows) < 4:  # noqa: ASYNC110 (no bell rings)
                await asyncio.sleep(0)
            host.gate.set()
            await asking
            return host, rows.sent

    host, sent = run(main())
    assert [len(heard) for heard in host.heard] == [3, 3]
    assert {one.held_items for one in sent} == {1}


def test_where_one_name_is_left_a_row_goes_to_another_connection(run):
    """Branches have taken the others: there it could only be sent whole."""

    async def main():
        limits = Limits(lanes=3, keeps_all=False)
        async with Host() as host, Rows(host.endpoint, limits) as rows:
            for branch in "ab":
                alone = Request(fields=FIELDS, input=SAID, stream_id=branch)
                async for _ in rows.way.stream(alone):
                    pass
            await rows.ask(3, 1)
            return host, rows.sent

    host, sent = run(main())
    assert [len(heard) for heard in host.heard] == [2, 4]
    assert {one.held_items for one in sent} == {1}


def test_the_local_endpoint_suits_as_many_rows_as_it_has_slots():
    """Elsewhere as many as one connection takes at the same time."""
    assert ENDPOINTS["local"].limits.at_once == 4
    assert {one.limits.at_once for name, one in ENDPOINTS.items() if name != "local"} == {None}
