"""Followers of the log: told of everything in order, by one process at a time, wherever one dies."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
import pytest

from federation.protocol.errors import Unavailable
from storage import background, followers
from storage import tail as tail_module
from storage.database import Tx
from storage.followers import Followers, Work
from storage.log_entries import Change, Entry
from tests.storage.test_log import Follower as Process
from tests.storage.test_log import Note, a_follower, notes, text_of

__all__ = ["notes"]

NAMES = ("one", "two", "three", "four")


class Reader:
    """A follower that notes in the database what it is told, and in which process."""

    kinds = (Note,)
    gathers_seconds = 0.0

    def __init__(self, name: str, process: str, fails: Callable[[Sequence[str]], Exception | None]) -> None:
        self.name = name
        self.process = process
        self.begun_at: list[int] = []
        self.batches: list[list[str]] = []
        self._fails = fails

    async def begin(self, position: int) -> None:
        self.begun_at.append(position)

    async def act(self, changes: Sequence[tuple[int, Change]], upto: int) -> Work | None:
        texts = [text_of(change) for _, change in changes]
        error = self._fails(texts)
        if error is not None:
            raise error
        if not texts:
            return None
        self.batches.append(texts)

        async def note(tx: Tx) -> None:
            for text in texts:
                await tx.execute(
                    "insert into told (follower, process, text) values (%s, %s, %s)", (self.name, self.process, text)
                )

        return note

    @property
    def told(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


def never(texts: Sequence[str]) -> Exception | None:
    return None


class Running:
    """The followers of one process."""

    def __init__(self, process: Process, name: str, fails: Callable[[Sequence[str]], Exception | None] = never) -> None:
        self.process = process
        self.readers = {each: Reader(each, name, fails) for each in NAMES}
        self.busy: set[str] = set()
        """The followers for which something is under way."""
        self.followers = Followers(
            process.database, process.tail, list(self.readers.values()), is_busy=lambda name: name in self.busy
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.followers.start()
        self._task = asyncio.create_task(self.followers.run())

    async def stop(self) -> None:
        if self._task is not None:
            await background.end([self._task])

    @property
    def held(self) -> set[str]:
        return {name for name in NAMES if self.followers.runs(name)}


@asynccontextmanager
async def followed(
    process: Process, name: str = "a", fails: Callable[[Sequence[str]], Exception | None] = never
) -> AsyncIterator[Running]:
    running = Running(process, name, fails)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@pytest.fixture
def told(notes: psycopg.Connection) -> psycopg.Connection:
    notes.execute(
        "create table told (number bigint generated always as identity, follower text, process text, text text)"
    )
    return notes


def texts_told(told: psycopg.Connection, follower: str = "one") -> list[str]:
    return [text for (text,) in told.execute("select text from told where follower = %s order by number", (follower,))]


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.01)


async def test_a_follower_is_told_of_everything_since_it_is_known_in_order(
    conninfo: str, told: psycopg.Connection
) -> None:
    async with a_follower(conninfo) as process:
        await process.write("before it was known")
        async with followed(process) as running:
            await process.write("a", "b")
            await process.write("c")

            await until(lambda: texts_told(told) == ["a", "b", "c"])
            assert running.readers["one"].begun_at == [1]


async def test_it_goes_on_where_it_was_and_reads_what_the_window_does_not_hold_from_the_database(
    conninfo: str, told: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "WINDOW", 4)
    monkeypatch.setattr(followers, "SCANNED", 3)
    async with a_follower(conninfo) as process:
        async with followed(process):
            await process.write("first")
            await until(lambda: texts_told(told) == ["first"])
        texts = [f"{number}" for number in range(20)]
        for text in texts:
            await process.write(text)
        await process.log.append(Entry(width=1_000_000))
        await process.write("after a hole", "a", "b", "c", "d")

        async with followed(process) as running:
            await until(lambda: texts_told(told) == ["first", *texts, "after a hole", "a", "b", "c", "d"])
            assert running.readers["one"].begun_at == [1]


async def test_two_processes_share_the_followers_and_the_one_that_stops_leaves_its_own_to_the_other(
    conninfo: str, told: psycopg.Connection
) -> None:
    async with (
        a_follower(conninfo, follows=True) as first,
        a_follower(conninfo, follows=True) as second,
        followed(first, "first") as one,
    ):
        await until(lambda: one.held == set(NAMES))
        async with followed(second, "second") as two:
            for number in range(50):
                await (first, second)[number % 2].write(f"{number}")
                await asyncio.sleep(0.05)
            await until(lambda: one.held | two.held == set(NAMES) and not one.held & two.held)
        await until(lambda: one.held == set(NAMES), 5)
        await second.write("last")

        expected = [*(f"{number}" for number in range(50)), "last"]
        await until(lambda: all(texts_told(told, name) == expected for name in NAMES))


async def test_nobody_has_a_follower_before_what_is_under_way_for_it_has_ended(
    conninfo: str, told: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(("left", "right"))  # by which each has a share
    monkeypatch.setattr("storage.followers.secrets.token_urlsafe", lambda _: next(names))
    async with (
        a_follower(conninfo, follows=True) as first,
        a_follower(conninfo, follows=True) as second,
        followed(first, "first") as one,
    ):
        await until(lambda: one.held == set(NAMES))
        one.busy.update(NAMES)
        async with followed(second, "second") as two:
            await until(lambda: one.held < set(NAMES))  # it begins nothing more
            await first.write("a")
            await asyncio.sleep(2.5)
            assert not two.held
            one.busy.clear()
            await until(lambda: one.held | two.held == set(NAMES))
            await until(lambda: all(texts_told(told, name) == ["a"] for name in NAMES))

            two.busy.update(NAMES)
            stopping = asyncio.create_task(two.stop())
            await asyncio.sleep(1.5)
            assert not two.held
            assert one.held < set(NAMES)
            two.busy.clear()
            await stopping
        await until(lambda: one.held == set(NAMES))


async def test_who_dies_is_followed_by_another_within_seconds(conninfo: str, told: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process:
        await process.write("nothing")
        running = Running(process, "dies")
        await running.followers.start()
        told.execute("update followers set process = 'dead'")
        told.execute(
            "insert into follower_processes values"
            " ('dead', (extract(epoch from clock_timestamp()) * 1000)::bigint + %s)",
            (followers.LEASE_MS,),
        )
        async with followed(process, "lives") as living:
            await process.write("a")
            await asyncio.sleep(1.5)
            assert texts_told(told) == []
            await until(lambda: living.held == set(NAMES), 10)
            await until(lambda: texts_told(told) == ["a"])


async def test_who_lost_a_follower_writes_nothing_for_it_any_more(conninfo: str, told: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process, followed(process) as running:
        await process.write("mine")
        await until(lambda: texts_told(told) == ["mine"])
        told.execute("update followers set process = 'another' where name = 'one'")
        told.execute("insert into follower_processes values ('another', 9000000000000000)")
        await process.write("another's")

        await until(lambda: texts_told(told, "two") == ["mine", "another's"])
        await until(lambda: "one" not in running.held)
        assert texts_told(told) == ["mine"]
        row = told.execute("select process, position from followers where name = 'one'").fetchone()
        assert row == ("another", 1)


async def test_what_cannot_be_acted_on_is_passed_over_alone(conninfo: str, told: psycopg.Connection) -> None:
    def fails(texts: Sequence[str]) -> Exception | None:
        return ZeroDivisionError("a bug") if "bad" in texts else None

    async with a_follower(conninfo) as process, followed(process, fails=fails):
        await process.write("a", "b", "bad", "c", "d")

        await until(lambda: texts_told(told) == ["a", "b", "c", "d"])


async def test_a_database_that_is_away_costs_no_change(conninfo: str, told: psycopg.Connection) -> None:
    failures = iter(range(8))

    def fails(texts: Sequence[str]) -> Exception | None:
        return Unavailable("away", retry_after_ms=1) if texts and next(failures, None) is not None else None

    async with a_follower(conninfo) as process, followed(process, fails=fails):
        await process.write("a")

        await until(lambda: texts_told(told) == ["a"])


async def test_a_cursor_moves_though_nothing_concerns_the_follower(conninfo: str, told: psycopg.Connection) -> None:
    async with a_follower(conninfo) as process, followed(process):
        await process.log.append(Entry(width=5))

        await until(lambda: told.execute("select min(position) from followers").fetchone() == (5,))
