"""What the bus carries to other processes is what they would read from the database."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict

from homeserver.app import KINDS
from storage import announcements, carrying
from storage.announcements import Announcement
from storage.append_events import RoomEvents
from storage.bus import PostgresBus
from storage.database import Memory, Statement, Tx
from storage.log_entries import Change
from tests.client import Server
from tests.homeserver.stories import Story
from tests.rooms import create_room
from tests.servers import running

STEPS = 150

pytestmark = pytest.mark.one_process("what it announces")


async def read_back(tx: Tx, announced: Announcement) -> list[tuple[int, Change]]:
    changes: list[tuple[int, Change]] = []
    for kind in KINDS:
        if announced.kinds & kind.kind:
            changes.extend(await kind.read_range(tx, announced.before, announced.position))
    return sorted(changes, key=lambda pair: pair[0])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Announcement]:
    """What a server announces, which nobody hears."""
    found: list[Announcement] = []

    def keep(_bus: PostgresBus, _subject: str, message: bytes) -> Sequence[Statement]:
        announced = announcements.parse(message)
        assert announced is not None
        found.append(announced)
        return ()

    monkeypatch.setattr(PostgresBus, "with_commit", keep)
    monkeypatch.setattr(PostgresBus, "is_heard", lambda _bus, _listeners: True)
    return found


async def compare(server: Server, told: list[Announcement]) -> list[bool]:
    """For each batch that was announced, whether it was carried; then it must equal what is stored."""
    answers = []
    async with server.application.database.read() as tx:
        for announced in told:
            changes = carrying.decode(announced.body, Memory())
            answers.append(changes is not None)
            if changes is not None:
                stored = await read_back(tx, announced)
                assert [(at, content(each)) for at, each in changes] == [(at, content(each)) for at, each in stored]
    return answers


def content(change: Change) -> Any:
    """What two changes have to have in common: not what is remembered beside it."""
    if not isinstance(change, RoomEvents):
        return change
    events = [{**asdict(event), "_json": None} for event in change.stored]
    return {**asdict(change), "stored": events, "at_end": None}


async def test_what_is_carried_equals_what_is_read(conninfo: str, told: list[Announcement]) -> None:
    async with running(conninfo, presence=False) as server:
        server.application.bus.carried_bytes = 7_900
        users = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
        rooms = [await create_room(users[0], preset="public_chat") for _ in range(3)]
        story = Story(1, users, rooms)
        carried: list[bool] = []
        for _ in range(STEPS):
            told.clear()
            await story.step()
            carried.extend(await compare(server, told))

        assert sum(carried) > 0.9 * len(carried) > 50


@given(cut=st.integers(0, 400), put=st.binary(max_size=20), kind=st.sampled_from([each.kind for each in KINDS]))
def test_what_was_damaged_is_read_from_the_database(cut: int, put: bytes, kind: int) -> None:
    body = b'[1,[%d,7,[4],1,"@a:b","m.read","main","$e",3,5]]\ntext' % kind
    for damaged in (body[:cut] + put, put + body[cut:], body[:cut] + put + body[cut + len(put) :]):
        found = carrying.decode(damaged, Memory())
        assert found is None or all(isinstance(position, int) for position, _ in found)


def test_what_another_release_carries_is_read_from_the_database() -> None:
    assert carrying.decode(b"[%d]\n" % (carrying.FORM + 1), Memory()) is None
    assert carrying.decode(b"", Memory()) is None
    assert announcements.parse(b"something else") is None
