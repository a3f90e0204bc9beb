"""Typing and presence in memory, and how processes tell each other."""

import asyncio
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from federation.protocol.types import UserID
from storage import ephemeral
from storage.bus import PostgresBus
from storage.database import Database
from storage.ephemeral import (
    IDLE_AFTER_MS,
    MAX_TYPING,
    PresenceBoard,
    Typing,
    UserPresence,
    load_presence,
    now_ms,
)
from storage.exchange import CHANNEL, Exchange

ALICE, BOB, CAROL = UserID("@alice:hearth.test"), UserID("@bob:hearth.test"), UserID("@carol:hearth.test")


async def test_typing_starts_and_stops() -> None:
    woken: list[int] = []
    typing = Typing(woken.append)

    typing.start(1, ALICE, 60_000)
    typing.start(1, BOB, 60_000)
    first = typing.serial
    typing.start(1, ALICE, 60_000)
    assert (typing.users_in(1), typing.serial) == ([ALICE, BOB], first)
    typing.stop(1, ALICE)
    typing.stop(2, ALICE)

    assert typing.users_in(1) == [BOB]
    assert woken == [1, 1, 1]
    assert typing.rooms_changed_since([1, 2], first) == [1]
    assert typing.rooms_changed_since([1, 2], typing.serial) == []
    assert typing.changed_since(1, first)
    assert not typing.changed_since(2, 0)
    typing.close()
    assert typing.users_in(1) == []


async def test_typing_ends_by_itself() -> None:
    typing = Typing(lambda room: None)

    typing.start(1, ALICE, 20)
    serial = typing.serial
    await asyncio.sleep(0.1)

    assert typing.users_in(1) == []
    assert typing.changed_since(1, serial)


async def test_a_serial_of_a_former_process_is_not_ahead() -> None:
    before = Typing(lambda room: None)
    before.start(1, ALICE, 20_000)
    await asyncio.sleep(0.002)
    after = Typing(lambda room: None)
    after.start(1, BOB, 20_000)

    assert after.changed_since(1, before.serial)
    before.close()
    after.close()


async def test_only_what_others_see_is_a_change_of_presence() -> None:
    board = PresenceBoard()
    now_ts = now_ms()
    online = UserPresence(ALICE, "online", now_ts)

    assert board.put(online)
    serial = board.serial
    assert not board.put(replace(online, last_active_ts=now_ts + 1000))
    assert board.changed_since(serial, [ALICE]) == []
    assert board.put(replace(online, status_msg="busy"))

    assert [each.status_msg for each in board.changed_since(serial, {ALICE, BOB})] == ["busy"]
    assert board.changed_since(serial, [BOB]) == []
    assert set(await board.wait_for_news()) == {ALICE}


async def test_of_many_who_type_the_first_are_told() -> None:
    typing = Typing(lambda room: None)
    everybody = [UserID(f"@user{number}:hearth.test") for number in range(MAX_TYPING + 1)]
    for user_id in everybody:
        typing.start(1, user_id, 20_000)
    typing.start(2, everybody[-1], 20_000)

    assert typing.users_in(1) == everybody[:-1]
    assert typing.users_in(2) == everybody[-1:]
    typing.stop(1, everybody[0])
    typing.start(1, everybody[-1], 20_000)
    assert typing.users_in(1) == everybody[1:]
    typing.close()


async def test_of_very_many_users_those_are_known_who_were_heard_of_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemeral, "MAX_KNOWN", 2)
    board = PresenceBoard()
    now_ts = now_ms()
    for user_id in (ALICE, BOB, ALICE, CAROL):
        board.put(UserPresence(user_id, "online", now_ts))

    assert board.find(BOB) is None
    assert {each.user_id for each in board.changed_since(0, {ALICE, BOB, CAROL})} == {ALICE, CAROL}


async def test_who_does_nothing_becomes_unavailable() -> None:
    board = PresenceBoard()
    now_ts = now_ms()
    board.put(UserPresence(ALICE, "online", now_ts))
    board.put(UserPresence(BOB, "offline", 0))

    assert board.idle(now_ts + IDLE_AFTER_MS) == []
    assert board.idle(now_ts + IDLE_AFTER_MS + 1) == [UserPresence(ALICE, "unavailable", now_ts)]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def test_processes_tell_each_other(database: Database) -> None:
    sides = [(Typing(lambda room: None), PresenceBoard()) for _ in range(2)]
    buses = [PostgresBus(database) for _ in sides]
    exchanges = [Exchange(database, bus, *side) for bus, side in zip(buses, sides, strict=True)]
    listening: list[bool] = []
    tasks = [
        asyncio.create_task(bus.run({CHANNEL: exchange.hear}, lambda: listening.append(True)))
        for bus, exchange in zip(buses, exchanges, strict=True)
    ]
    try:
        await until(lambda: len(listening) == 2)
        await exchanges[0].announce_typing(7, ALICE, 30_000)
        await exchanges[0].announce_presence(UserPresence(BOB, "online", 5, "hi \0 there"), store=True)
        await until(lambda: sides[1][1].find(BOB) is not None)

        assert sides[1][0].users_in(7) == [ALICE]
        assert sides[1][1].find(BOB) == UserPresence(BOB, "online", 5, "hi \0 there")
        assert sides[0][0].users_in(7) == [ALICE]
        async with database.read() as tx:
            assert [each.status_msg for each in await load_presence(tx, [ALICE, BOB])] == ["hi  there"]

        await exchanges[1].announce_typing(7, ALICE, 0)
        await until(lambda: not sides[0][0].users_in(7))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_typing_has_the_same_serial_everywhere_and_a_stop_reaches_who_did_not_know() -> None:
    here, there, new = (Typing(lambda room: None) for _ in range(3))

    here.start(7, ALICE, 30_000)
    there.start(7, ALICE, 30_000, here.serial)
    assert here.serial == there.serial

    assert here.stop(7, ALICE)
    there.stop(7, ALICE, here.serial)
    new.stop(7, ALICE, here.serial)
    assert here.serial == there.serial == new.serial
    assert new.changed_since(7, here.serial - 1)
    assert not here.stop(7, BOB)
    assert here.serial == there.serial


async def test_changes_come_after_those_of_a_process_whose_clock_is_ahead() -> None:
    slow = Typing(lambda room: None)
    ahead = now_ms() + 60_000

    slow.lift(ahead)
    slow.start(1, ALICE, 20_000)

    assert slow.changed_since(1, ahead)
    slow.lift(now_ms() * 2)  # nobody's clock
    assert slow.serial == ahead + 1
    slow.close()


async def test_nothing_is_told_where_nobody_else_listens(database: Database) -> None:
    buses = [PostgresBus(database) for _ in range(2)]
    heard: list[bytes] = []
    tasks: list[asyncio.Task[None]] = []
    async with await database.connect() as listening:
        await listening.execute(f"listen {CHANNEL}")
        try:
            for bus in buses:
                listens = asyncio.Event()
                tasks.append(asyncio.create_task(bus.run({CHANNEL: heard.append}, listens.set)))
                await asyncio.wait_for(listens.wait(), 10)
                await buses[0].tell(CHANNEL, b"%d here" % len(tasks))
            sent = await anext(listening.notifies(timeout=10))
            assert sent.payload.endswith(" 2 here")
            await until(lambda: heard == [b"2 here"])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_syncs_is_told_with_few_messages(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bytes] = []

    async def tell(_bus: PostgresBus, _subject: str, message: bytes) -> None:
        told.append(message)

    monkeypatch.setattr(PostgresBus, "tell", tell)
    bus = PostgresBus(database)
    here, there = (Exchange(database, bus, Typing(lambda room: None), PresenceBoard()) for _ in range(2))
    users = [UserID(f"@u{number}:{'x' * (number % 200)}") for number in range(2000)]
    await here.announce_syncing(users)
    for message in told:
        there.hear(message)

    assert there.strangers == set(users)
    assert max(map(len, told)) < 7_900
    assert len(told) < sum(len(user_id) + 3 for user_id in users) / 7_000
