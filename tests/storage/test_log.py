"""The log: batches, order, refusals, and what happens when the database goes away; the tail that follows it."""

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import psycopg
import pytest

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, Unavailable
from federation.protocol.types import UserID
from storage import tail as tail_module
from storage.bus import PostgresBus
from storage.database import Connection, Database, Memory, Row, Statement, Tx
from storage.log import CHANNEL, Log
from storage.log_entries import AlreadyWritten, Appended, Batch, Change, Conflict, Entry
from storage.newest import Newest
from storage.tail import Listener, Tail, View
from tests.scenarios.cutting_proxy import Cut, cutting_proxy

ALICE, BOB = UserID("@alice:example.org"), UserID("@bob:example.org")


@dataclass
class Note:
    """A kind of change as simple as can be: a text under a name that nobody else may take."""

    text: str
    room: int = 1
    user: UserID | None = None
    width: int = 1
    fails: str = ""
    held_bytes: int = 0
    kind: ClassVar[int] = 1 << 20

    @property
    def rooms(self) -> Collection[int]:
        return (self.room,)

    @property
    def users(self) -> Collection[UserID]:
        return () if self.user is None else (self.user,)

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        for position, note in rows:
            if note.fails == "bug":
                raise ZeroDivisionError
            await tx.execute(
                "insert into notes (position, room, text) values (%s, %s, %s)", (position, note.room, note.text)
            )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        rows = await tx.fetch(
            "select position, text, room from notes where position > %s and position <= %s", (after, upto)
        )
        return [(position, cls(text, room)) for position, text, room in rows]


@dataclass
class GuardedNote(Note):
    """A note that is refused where a note of the same text is there already."""

    kind: ClassVar[int] = 1 << 21

    @classmethod
    def preload(cls, _memory: Memory, _changes: Sequence[Self]) -> Sequence[Statement]:
        """Nothing."""
        return ()

    @classmethod
    async def admit(
        cls, tx: Tx, rows: Sequence[tuple[int, Self]], loaded: Sequence[Sequence[Row]]
    ) -> Sequence[MatrixError | None]:
        taken = {text for (text,) in await tx.fetch("select text from notes")}
        return [Conflict("taken") if note.text in taken else None for _, note in rows]

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        return []


class Follower:
    """A process: its log and tail, and what its tail was told in order."""

    def __init__(self, conninfo: str) -> None:
        self.database = Database(conninfo, max_connections=3)
        self.bus = PostgresBus(self.database)
        self.newest = Newest()
        self.tail = Tail(self.database, (Note,), newest=self.newest)
        self.batches: list[Batch] = []
        self.reading = self.tail.reading
        self.log = Log(self.database, self, self.bus, newest=self.newest)
        self.seen: list[tuple[int, str]] = []
        self.tail.add_view(self._view)

    async def on_commit(self, batch: Batch) -> None:
        self.batches.append(batch)
        await self.tail.on_commit(batch)

    async def catch_up(self) -> bool:
        return await self.tail.catch_up()

    def _view(self, position: int, change: Change) -> None:
        assert isinstance(change, Note)
        self.seen.append((position, change.text))

    async def write(self, *texts: str, **options: Any) -> list[Appended | BaseException]:
        """Append one note an entry, all at once."""
        futures = [self.log.enqueue(Entry(changes=[Note(text, **options)])) for text in texts]
        return await asyncio.gather(*futures, return_exceptions=True)


@asynccontextmanager
async def a_follower(conninfo: str, *, follows: bool = False) -> AsyncIterator[Follower]:
    follower = Follower(conninfo)
    await follower.database.open()
    await follower.tail.start()
    tasks = [asyncio.create_task(follower.log.run())]
    if follows:
        tasks.append(asyncio.create_task(follower.tail.run()))
        tasks.append(asyncio.create_task(follower.bus.run({CHANNEL: follower.tail.hear}, follower.tail.look)))
    try:
        yield follower
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await follower.log.close()
        await follower.database.close()


@pytest.fixture
def notes(connection: psycopg.Connection) -> psycopg.Connection:
    connection.execute("create table notes (position bigint primary key, room int, text text unique)")
    return connection


def stored(notes: psycopg.Connection) -> list[tuple[int, str]]:
    return [(row[0], row[1]) for row in notes.execute("select position, text from notes order by position")]


async def test_entries_in_flight_are_committed_together_and_in_order(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process:
        answers = await process.write("a", "b", "c")

        assert [answer.position for answer in answers if isinstance(answer, Appended)] == [1, 2, 3]
        assert stored(notes) == process.seen == [(1, "a"), (2, "b"), (3, "c")]
        assert len(process.batches) == 1


async def test_an_entry_takes_the_positions_that_it_reserves(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process:
        wide = await process.log.append(Entry(changes=[Note("wide", width=3), Note("next")], width=6))
        empty = await process.log.append(Entry())
        await process.write("last")

        assert (wide.position, empty.position) == (6, 7)
        assert stored(notes) == [(1, "wide"), (4, "next"), (8, "last")]


async def test_a_refused_entry_leaves_nothing_and_the_rest_is_written(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process:
        await process.write("taken")
        refused: list[str] = []
        futures = [
            process.log.enqueue(Entry(changes=[Note("before")])),
            process.log.enqueue(
                Entry(changes=[GuardedNote("taken"), Note("with it")], on_refused=lambda: refused.append("told"))
            ),
            process.log.enqueue(Entry(changes=[GuardedNote("free")])),
        ]
        answers = await asyncio.gather(*futures, return_exceptions=True)

        assert [type(answer) for answer in answers] == [Appended, Conflict, Appended]
        assert [text for _, text in stored(notes)] == ["taken", "before", "free"]
        assert process.seen == stored(notes)
        assert refused == ["told"]
        assert len(process.batches) == 2


@pytest.mark.parametrize("waits", ["nothing", "what refuses", "all"])
async def test_work_that_raises_refuses_its_own_entry_alone(
    conninfo: str, notes: psycopg.Connection, waits: str
) -> None:
    """Also where its statements wait for others, which never come."""

    async def refuse(tx: Tx) -> None:
        if waits != "all":
            await tx.execute("insert into notes values (1000, 1, 'by work')")
        if waits != "nothing":
            tx.later("insert into notes values (1001, 1, 'by work, later')")
        raise Forbidden("no")

    async def agree(tx: Tx) -> str:
        tx.later("insert into notes values (2000, 1, 'other work')")
        return "result"

    async with a_follower(conninfo) as process:
        futures = [
            process.log.enqueue(Entry(changes=[Note("refused")], work=refuse)),
            process.log.enqueue(Entry(changes=[Note("kept")], work=agree)),
        ]
        refused, kept = await asyncio.gather(*futures, return_exceptions=True)

        assert isinstance(refused, Forbidden)
        assert isinstance(kept, Appended)
        assert kept.result == "result"
        assert stored(notes) == [(2, "kept"), (2000, "other work")]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Note("a"), AlreadyWritten),
        (Note("bug", fails="bug"), MatrixError),
        (Note("nul\0"), MatrixError),
        (Note(random.Random(1).randbytes(50_000).hex()), InvalidInput),  # longer than its index takes
    ],
    ids=["taken", "bug", "nul", "long"],
)
async def test_a_bad_entry_fails_alone(
    conninfo: str, notes: psycopg.Connection, bad: Note, error: type[MatrixError]
) -> None:
    async with a_follower(conninfo) as process:
        entries = [Entry(changes=[Note(text)]) for text in "abc"]
        entries.insert(2, Entry(changes=[bad]))
        answers = await asyncio.gather(*map(process.log.enqueue, entries), return_exceptions=True)

        assert [isinstance(answer, Appended) for answer in answers] == [True, True, False, True]
        assert isinstance(answers[2], error)
        assert [text for _, text in stored(notes)] == ["a", "b", "c"]
        assert process.seen == stored(notes)
        assert [answer.position for answer in answers if isinstance(answer, Appended)] == [
            position for position, _ in stored(notes)
        ]


async def test_what_work_adds_is_added_once_though_its_batch_failed(conninfo: str, notes: psycopg.Connection) -> None:
    entry = Entry(width=3)

    async def add(_tx: Tx) -> None:
        entry.changes.append(Note("added"))

    entry.work = add
    async with a_follower(conninfo) as process:
        futures = [process.log.enqueue(entry), process.log.enqueue(Entry(changes=[Note("bug", fails="bug")]))]
        await asyncio.gather(*futures, return_exceptions=True)

        assert stored(notes) == [(1, "added")]


@pytest.mark.parametrize("adds", [False, True])
async def test_work_is_undone_when_a_change_of_its_entry_is_refused(
    conninfo: str, notes: psycopg.Connection, *, adds: bool
) -> None:
    entry = Entry(changes=[] if adds else [GuardedNote("taken")], width=1)

    async def work(tx: Tx) -> None:
        await tx.execute("insert into notes values (1000, 1, 'by work')")
        if adds:
            entry.changes.append(GuardedNote("taken"))

    entry.work = work
    async with a_follower(conninfo) as process:
        await process.write("taken")
        futures = [
            process.log.enqueue(each) for each in (Entry(changes=[Note("x")]), entry, Entry(changes=[Note("y")]))
        ]
        answers = await asyncio.gather(*futures, return_exceptions=True)

        assert [type(answer) for answer in answers] == [Appended, Conflict, Appended]
        assert [text for _, text in stored(notes)] == ["taken", "x", "y"]


async def test_a_lost_connection_is_unavailable_and_the_next_entry_is_written(
    conninfo: str, notes: psycopg.Connection
) -> None:
    async def kill(tx: Tx) -> None:
        await tx.execute("select pg_terminate_backend(pg_backend_pid())")

    async with a_follower(conninfo) as process:
        await process.write("before")
        refused: list[str] = []
        entry = Entry(changes=[Note("lost")], work=kill, on_refused=lambda: refused.append("told"))
        with pytest.raises(Unavailable):
            await process.log.append(entry)
        await process.write("after")

        assert refused == ["told"]
        assert [text for _, text in stored(notes)] == ["before", "after"]
        assert process.seen == stored(notes)


async def test_neighbours_know_of_a_commit_whose_answer_was_lost(conninfo: str, notes: psycopg.Connection) -> None:
    async with cutting_proxy(conninfo) as proxy, a_follower(proxy.conninfo) as process:
        await process.write("before")
        proxy.arm(Cut.AFTER)
        (answer,) = await process.write("lost")

        assert isinstance(answer, Unavailable)
        assert process.newest.position == stored(notes)[-1][0] == 2


async def test_neighbours_know_what_one_finds_in_the_log(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as one, a_follower(conninfo) as other:
        await one.write("by one that died before it told anybody")
        assert other.newest.position == 0
        await other.tail.catch_up()

        assert other.newest.position == stored(notes)[-1][0] == 1


async def test_a_deadlock_is_tried_again(conninfo: str, notes: psycopg.Connection) -> None:
    attempts: list[int] = []

    async def work(_tx: Tx) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise psycopg.errors.DeadlockDetected

    async with a_follower(conninfo) as process:
        await process.log.append(Entry(changes=[Note("a")], work=work))

        assert stored(notes) == [(1, "a")]


async def test_what_is_committed_is_not_written_again_when_the_tail_cannot_take_it(
    conninfo: str, notes: psycopg.Connection
) -> None:
    async with a_follower(conninfo) as process:
        failures = [Unavailable("away")] * 3  # the second batch offers what the first one wrote, too
        take = process.tail.on_commit

        async def fail_first(batch: Batch) -> None:
            if failures:
                raise failures.pop()
            await take(batch)

        process.tail.on_commit = fail_first  # type: ignore[method-assign]  # stands for a database that goes away
        assert all(isinstance(answer, Appended) for answer in await process.write("a", "b"))
        assert isinstance((await process.write("c"))[0], Appended)
        assert process.seen == []
        await process.write("d")

        assert process.seen == stored(notes) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


async def test_a_stopped_log_writes_what_waits_and_then_refuses(conninfo: str, notes: psycopg.Connection) -> None:
    started = asyncio.Event()

    async def hang(_tx: Tx) -> None:
        started.set()
        await asyncio.sleep(30)

    process = Follower(conninfo)
    await process.database.open()
    await process.tail.start()
    running = asyncio.create_task(process.log.run())
    hanging = process.log.enqueue(Entry(changes=[Note("hangs")], work=hang))
    await started.wait()
    waiting = process.log.enqueue(Entry(changes=[Note("waits")]))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await process.log.close()
    await process.database.close()

    assert isinstance(hanging.exception(), Unavailable)
    assert (await waiting).position == 1
    assert stored(notes) == [(1, "waits")]
    with pytest.raises(Unavailable):
        process.log.enqueue(Entry())


async def test_a_stop_while_it_connects_leaves_no_connection(
    conninfo: str, notes: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Follower(conninfo)
    await process.database.open()
    await process.tail.start()
    connections: list[Connection] = []
    connect = process.database.connect

    async def connect_and_stop() -> Connection:
        connections.append(await connect())
        asyncio.get_running_loop().call_soon(running.cancel)
        return connections[-1]

    monkeypatch.setattr(process.database, "connect", connect_and_stop)
    running = asyncio.create_task(process.log.run())
    pending = process.log.enqueue(Entry(changes=[Note("waits")]))
    await asyncio.gather(running, return_exceptions=True)
    await process.log.close()
    await process.database.close()

    assert (await pending).position == 1
    assert stored(notes) == [(1, "waits")]
    assert [connection.closed for connection in connections] == [True, True]


async def test_two_processes_see_one_order(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo, follows=True) as one, a_follower(conninfo, follows=True) as two:
        writes = [
            process.write(f"{name} {number}") for number in range(30) for name, process in (("1", one), ("2", two))
        ]
        await asyncio.gather(*writes)
        await one.tail.catch_up()
        await two.tail.catch_up()

        assert one.seen == two.seen == stored(notes)
        assert len(one.seen) == 60


async def test_another_process_is_told_without_asking(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as one, a_follower(conninfo, follows=True) as two:
        await asyncio.sleep(0.1)  # until it listens
        listener = Listener(ALICE, two.tail.position)
        listener.rooms.add(7)
        two.tail.register(listener)
        waiting = asyncio.create_task(listener.wait(10))
        await asyncio.sleep(0)
        await one.write("hello", room=7)
        await asyncio.wait_for(waiting, 3)

        assert two.seen == [(1, "hello")]
        assert listener.concerned_at == 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # of many kinds
            await asyncio.sleep(0.005)


async def test_nothing_is_announced_while_nobody_else_listens(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo, follows=True) as one, await one.database.connect() as ear:
        await until(lambda: one.bus.figures()["bus_up"])
        await ear.execute(f"listen {CHANNEL}")  # without being counted
        await one.write("a")
        async with a_follower(conninfo, follows=True) as two:
            await until(lambda: two.bus.figures()["bus_up"])
            await one.write("b")
            await until(lambda: two.seen[-1:] == [(2, "b")])
        await one.write("c")

        assert await _heard(ear) == ["1 2"]


async def test_a_listener_that_died_is_forgotten_when_another_comes(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo, follows=True) as one, await one.database.connect() as ear:
        await until(lambda: one.bus.figures()["bus_up"])
        await ear.execute(f"listen {CHANNEL}")
        notes.execute("update log_head set listeners = array_append(listeners, 99999999)")
        await one.write("a")
        async with a_follower(conninfo, follows=True) as two:
            await until(lambda: two.bus.figures()["bus_up"])
            notes.execute("select pg_terminate_backend(pid) from unnest((select listeners from log_head)) as pid")
            await until(lambda: not one.bus.figures()["bus_up"] and not two.bus.figures()["bus_up"])
            await until(lambda: one.bus.figures()["bus_up"] and two.bus.figures()["bus_up"])
            await two.write("b")
            await until(lambda: one.seen[-1:] == [(2, "b")])
        await one.write("c")

        assert await _heard(ear) == ["0 1", "1 2"]


async def _heard(ear: Connection) -> list[str]:
    announced = [each.payload.split("\n")[0].split(" ") async for each in ear.notifies(timeout=0.3)]
    return [f"{before} {position}" for _, before, position, _ in announced]


async def test_who_comes_while_others_write_misses_nothing(
    conninfo: str, notes: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "POLL_SECONDS", 60.0)  # which would find what was missed
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(a_follower(conninfo, follows=True))
        everybody = [one]
        for number in range(12):
            everybody.append(await stack.enter_async_context(a_follower(conninfo, follows=True)))
            for _ in range(number):  # it connects, listens, is counted
                await asyncio.sleep(0.001)
            await everybody[number // 2].write(*(f"{number} {each}" for each in range(3)))
            expected = stored(notes)
            for each in everybody:
                await until(functools.partial(_has_come_to, each, expected[-1][0]))
                assert each.seen == [note for note in expected if note >= each.seen[0]]


def _has_come_to(follower: Follower, position: int) -> bool:
    return follower.tail.position == position


@dataclass
class PlainNote(Note):
    """A note after which little is different."""

    is_plain: bool = True
    kind: ClassVar[int] = 1 << 22


async def test_a_view_is_told_of_the_kinds_that_it_asks_for(conninfo: str, notes: psycopg.Connection) -> None:
    told: dict[str, list[tuple[int, Change]]] = {"all": [], "notes": [], "grave notes": [], "plain notes": []}
    async with a_follower(conninfo) as process:

        def view(name: str) -> View:
            return lambda position, change: told[name].append((position, change))

        process.tail.add_view(view("all"))
        process.tail.add_view(view("notes"), Note, PlainNote)
        process.tail.add_view(view("grave notes"), Note, PlainNote, plain=False)
        await process.log.append(Entry(changes=[a := Note("a"), b := PlainNote("b")]))
        process.tail.add_view(view("plain notes"), PlainNote)
        await process.log.append(Entry(changes=[c := PlainNote("c"), d := PlainNote("d", is_plain=False)]))

    everything = [(1, a), (2, b), (3, c), (4, d)]
    assert told == {
        "all": everything,
        "notes": everything,
        "grave notes": [(1, a), (4, d)],
        "plain notes": [(3, c), (4, d)],
    }


async def test_a_tail_follows_again_after_all_its_connections_were_lost(
    conninfo: str, notes: psycopg.Connection
) -> None:
    async with a_follower(conninfo) as one, a_follower(conninfo, follows=True) as two:
        await asyncio.sleep(0.1)
        notes.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        await one.write("hello")

        assert await two.tail.wait_beyond(0, 10)
        assert two.seen == [(1, "hello")]


async def test_the_window_holds_what_came_after_its_floor(
    conninfo: str, notes: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "WINDOW", 4)
    async with a_follower(conninfo) as process:
        for number in range(6):
            user = ALICE if number % 2 else BOB
            await process.log.append(Entry(changes=[Note(f"{number}", room=number % 2, user=user, width=2)]))

        tail = process.tail
        assert (tail.position, tail.floor) == (12, 4)
        assert [text_of(change) for _, change in tail.since(tail.floor)] == ["2", "3", "4", "5"]
        assert [text_of(change) for _, change in tail.since(8)] == ["4", "5"]
        assert [text_of(change) for _, change in tail.in_room(0, 4)] == ["2", "4"]
        assert [text_of(change) for _, change in tail.in_room(0, 6)] == ["4"]
        assert [text_of(change) for _, change in tail.in_room(0, 10)] == []
        assert [text_of(change) for _, change in tail.for_user(ALICE, 8)] == ["5"]
        assert [text_of(change) for _, change in tail.for_user(UserID("@x:y"), 0)] == []


async def test_the_window_holds_fewer_changes_that_are_large(
    conninfo: str, notes: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "WINDOW_BYTES", 1000)
    async with a_follower(conninfo) as process:
        for number, size in enumerate((100, 700, 200, 0, 300, 0)):
            await process.log.append(Entry(changes=[Note(f"{number}", held_bytes=size)]))
        tail = process.tail

        assert [text_of(change) for _, change in tail.since(0)] == ["2", "3", "4", "5"]
        assert tail.floor == 2
        await process.log.append(Entry(changes=[Note("larger than all", held_bytes=2000)]))
        assert [list(tail.since(0)), tail.floor, tail.last_in_room(1)] == [[], 7, 0]


def text_of(change: Change) -> str:
    assert isinstance(change, Note)
    return change.text


async def test_listeners_are_woken_by_their_rooms_and_by_their_name_alone(
    conninfo: str, notes: psycopg.Connection
) -> None:
    async with a_follower(conninfo) as process:
        alice, bob = Listener(ALICE, 0), Listener(BOB, 0)
        alice.rooms.add(1)
        for listener in (alice, bob):
            process.tail.register(listener)
        await process.write("in room 1", room=1)
        assert (alice.concerned_at, bob.concerned_at) == (1, 0)
        await process.write("names bob", room=2, user=BOB)
        assert (alice.concerned_at, bob.concerned_at) == (1, 2)
        process.tail.leave(alice, 1)
        process.tail.enter(bob, 1)
        await process.write("again", room=1)
        assert (alice.concerned_at, bob.concerned_at) == (1, 3)
        process.tail.unregister(bob)
        await process.write("nobody listens", room=1, user=BOB)
        assert bob.concerned_at == 3
        assert process.tail.listeners_in(1) == frozenset()


async def test_waiting_ends_when_its_time_is_up(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process:
        listener = Listener(ALICE, 0)
        process.tail.register(listener)
        await asyncio.wait_for(listener.wait(0.01), 2)
        assert not await process.tail.wait_beyond(0, 0.01)
        assert listener.concerned_at == 0


async def test_nothing_is_visible_before_the_tail_can_be_handed_it(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process:
        async with process.tail.reading:
            appended = process.log.enqueue(Entry(changes=[Note("a")]))
            await asyncio.sleep(0.2)
            assert stored(notes) == []

        assert (await appended).position == process.tail.position == 1


def waiting_for_locks(notes: psycopg.Connection) -> list[int]:
    """Who waits in this database: others of the cluster, which tests share, wait too, and so does its housekeeping."""
    rows = notes.execute(
        "select pid from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        " and backend_type = 'client backend'"
    )
    return [pid for (pid,) in rows]


async def test_what_comes_while_others_write_goes_with_the_next_batch(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as one, a_follower(conninfo) as other:
        await one.write("first")
        await other.write("of another process")
        await one.write("now it knows of the other")
        with psycopg.connect(conninfo) as writer:
            writer.execute("update log_head set position = position + 1")
            waiting = [one.log.enqueue(Entry(changes=[Note("waits")]))]
            async with asyncio.timeout(30):
                while not waiting_for_locks(notes):  # noqa: ASYNC110  # elsewhere
                    await asyncio.sleep(0.01)
            waiting.append(one.log.enqueue(Entry(changes=[Note("comes meanwhile")])))
            writer.commit()
        await asyncio.gather(*waiting)

        assert [text_of(note) for _, note in one.batches[-1].changes] == ["waits", "comes meanwhile"]


async def test_a_connection_that_is_lost_with_the_lock_is_replaced(conninfo: str, notes: psycopg.Connection) -> None:
    async with a_follower(conninfo) as one, a_follower(conninfo) as other:
        await one.write("first")
        await other.write("of another process")
        await one.write("now it knows of the other")
        with psycopg.connect(conninfo) as writer:
            writer.execute("update log_head set position = position + 1")
            waiting = one.log.enqueue(Entry(changes=[Note("waits")]))
            async with asyncio.timeout(30):
                while not (pids := waiting_for_locks(notes)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            notes.execute("select pg_terminate_backend(%s)", pids[:1])
            await asyncio.sleep(0.1)
            writer.commit()

        assert (await waiting).position > 0
        assert [text for _, text in stored(notes)][-1] == "waits"
