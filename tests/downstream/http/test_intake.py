"""gateway/downstream/http/intake.py: how many connections are read in one turn of the event loop."""

import asyncio

from gateway.downstream.http.intake import READS_PER_TURN, Intake
from tests.downstream.harness import Harness
from tests.downstream.raw import connect, parsed, read_all, reset

REQUEST = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Connection:
    """A connection that records when it may continue to read."""

    def __init__(self, name: str, order: list[str]) -> None:
        self._name, self._order = name, order

    def read_on(self) -> None:
        self._order.append(self._name)


async def test_turn_admits_a_bounded_number_and_reads_the_oldest_and_the_newest_of_the_others() -> None:
    """Waiting connections are read a few per turn: the one that waited longest, and then those that came last."""
    intake, order = Intake(reads_per_turn=3), list[str]()
    admitted = [intake.admits(Connection(name, order)) for name in "...abcdef"]
    assert admitted == [True] * 3 + [False] * 6
    assert order == []

    await asyncio.sleep(0)
    assert order == ["a", "f", "e"]
    assert not intake.admits(Connection("g", order))
    for _ in range(4):
        await asyncio.sleep(0)
    assert order == ["a", "f", "e", "b", "g", "d", "c"]


async def test_oldest_connection_is_read_although_others_keep_coming() -> None:
    """A connection waits for those before it, a turn for each, and not for those that come later."""
    intake, order = Intake(reads_per_turn=2), list[str]()
    _ = [intake.admits(Connection(name, order)) for name in "..abc"]
    for turn in range(3):
        _ = [intake.admits(Connection(f"{turn}{number}", order)) for number in range(3)]
        await asyncio.sleep(0)

    assert order == ["a", "02", "b", "12", "c", "22"]


async def test_writes_go_before_waiting_reads() -> None:
    """What a reader waits for is written before the next connections are read, and a bug in one write stops no other."""
    intake, order = Intake(reads_per_turn=1), list[str]()
    failures: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    _ = [intake.admits(Connection(name, order)) for name in ".ab"]
    intake.write_soon(lambda: order.append(str(1 / 0)))
    intake.write_soon(lambda: order.append("written"))
    await asyncio.sleep(0)

    assert order == ["written", "a"]
    assert [type(failure["exception"]) for failure in failures] == [ZeroDivisionError]


async def test_write_that_asks_for_another_is_followed_by_it_in_the_next_turn() -> None:
    """A write needs no read to be called."""
    intake, order = Intake(), list[str]()
    intake.write_soon(lambda: intake.write_soon(lambda: order.append("second")))
    await asyncio.sleep(0)
    assert order == []

    await asyncio.sleep(0)
    assert order == ["second"]


async def test_next_turn_admits_again() -> None:
    """Connections that send less than the limit per turn never wait."""
    intake, order = Intake(reads_per_turn=2), list[str]()
    for _ in range(5):
        assert all(intake.admits(Connection("x", order)) for _ in range(2))
        await asyncio.sleep(0)

    assert order == []


async def test_requests_that_arrive_together_are_all_answered(harness: Harness) -> None:
    """More requests than one turn reads arrive in two pieces each: every client gets its response, whether it waits
    or half-closes."""
    clients = [await connect(harness.url) for _ in range(3 * READS_PER_TURN)]
    for piece in (REQUEST[:20], REQUEST[20:]):
        for _, writer in clients:
            writer.write(piece)
        await asyncio.sleep(0)
    for _, writer in clients[::2]:
        writer.write_eof()
    answers = await asyncio.gather(*(asyncio.wait_for(read_all(reader), 10) for reader, _ in clients))
    for _, writer in clients:
        writer.close()

    assert [parsed(answer).status for answer in answers] == [200] * len(clients)


async def test_client_that_resets_while_its_request_waits_disturbs_nobody(harness: Harness) -> None:
    """Its request is dropped, and the others are answered."""
    clients = [await connect(harness.url) for _ in range(2 * READS_PER_TURN)]
    for _, writer in clients:
        writer.write(REQUEST)
    reset(clients[-1][1])
    answers = await asyncio.gather(*(asyncio.wait_for(read_all(reader), 10) for reader, _ in clients[:-1]))
    for _, writer in clients:
        writer.close()

    assert [parsed(answer).status for answer in answers] == [200] * (len(clients) - 1)
