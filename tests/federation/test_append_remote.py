"""Another server's event finds its place: what is asked for first, what is refused, what redacts."""

from collections.abc import AsyncIterator, Sequence

import pytest

from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import StateKey, UserID
from federation.rooms.append import Outcome
from federation.rooms.history import HistoryAppender
from federation.rooms.state import Graph, MissingEvents, View
from storage import events, history, room_state, rooms
from storage.events import Flag, StoredEvent
from storage.rooms import Room as StoredRoom
from tests.federation.processes import Process, a_process
from tests.federation.stored_rooms import ids_of
from tests.protocol.builders import ALICE, BOB, EVE, NOW, Room, a_room, a_signed_event

VERSIONS = ["1", "3", "11", "12"]


@pytest.fixture
async def process(conninfo: str) -> AsyncIterator[Process]:
    async with a_process(conninfo) as process:
        yield process


async def store(process: Process, room: Room, pdus: Sequence[VerifiedPDU] | None = None) -> StoredRoom:
    """Bring in events of a room, all of its events if not told which; all must be accepted."""
    async with process.database.transaction() as tx:
        stored = await rooms.create(tx, room.events[0].room_id, room.rules)
    for pdu in room.events if pdus is None else pdus:
        received = await process.writer.append_remote(pdu)
        assert received.outcome is Outcome.ACCEPTED, received
    return stored


def a_joined_room(version: str = "11") -> Room:
    room = a_room(version)
    for user_id in (BOB, EVE):
        room.add("m.room.member", user_id, {"membership": "join"}, user_id)
    return room


async def event_of(process: Process, pdu: VerifiedPDU) -> StoredEvent:
    async with process.database.read() as tx:
        return (await events.by_id(tx, [pdu.event_id]))[pdu.event_id]


async def extremities(process: Process, room: StoredRoom) -> set[str]:
    async with process.database.read() as tx:
        return set((await rooms.rows(tx, [room.number]))[room.number].extremities)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_event_that_is_here_is_a_duplicate(process: Process, version: str) -> None:
    room = a_joined_room(version)
    await store(process, room)
    position = process.tail.position

    assert (await process.writer.append_remote(room.events[-1])).outcome is Outcome.DUPLICATE
    assert process.tail.position == position


async def test_missing_events_are_named(process: Process) -> None:
    room = a_joined_room()
    await store(process, room)
    unseen = room.add("m.room.topic", ALICE, {"topic": "unseen"}, "")
    later = room.add("m.room.message", EVE, {"body": "x"})
    levels = room.add("m.room.power_levels", ALICE, {"users": {ALICE: 100, EVE: 50}}, "")
    name = room.add("m.room.name", EVE, {"name": "x"}, "", prev_events=[room.events[5]])

    with pytest.raises(MissingEvents) as missing:
        await process.writer.append_remote(later)
    assert missing.value.prev == {unseen.event_id}
    with pytest.raises(MissingEvents) as missing:
        await process.writer.append_remote(name)
    assert missing.value.auth == {levels.event_id}


async def test_a_gap_is_filled_later_and_is_no_end_of_the_room(process: Process) -> None:
    room = a_joined_room()
    stored = await store(process, room)
    state = {key: pdu.event_id for key, pdu in room.state.items()}
    unseen = room.add("m.room.message", ALICE, {"body": "unseen"})
    later = room.add("m.room.message", EVE, {"body": "later"})
    await process.writer.append_remote(later, state_before=state)
    async with process.database.read() as tx:
        assert await tx.fetch("select event_id from missing_events") == [(unseen.event_id,)]
        assert (await rooms.rows(tx, [stored.number]))[stored.number].last_line == 0  # the state was ours
    assert await extremities(process, stored) == {later.event_id, room.events[5].event_id}

    assert (await process.writer.append_remote(unseen)).outcome is Outcome.ACCEPTED
    assert await extremities(process, stored) == {later.event_id}
    async with process.database.read() as tx:
        assert await tx.fetch("select event_id from missing_events") == []


async def test_a_second_create_event_is_rejected(process: Process) -> None:
    room = a_joined_room("10")
    stored = await store(process, room)
    again = a_signed_event(
        "10",
        type="m.room.create",
        content={"creator": ALICE, "room_version": "10"},
        state_key="",
        prev_events=[],
        room_id=room.room_id,
        origin_server_ts=NOW + 5,
    )

    assert (await process.writer.append_remote(again)).outcome is Outcome.REJECTED
    async with process.database.read() as tx:
        current = await room_state.current(tx, stored.number, [("m.room.create", "")])
        position = (await events.by_id(tx, [room.events[0].event_id]))[room.events[0].event_id].position
    assert current == {("m.room.create", ""): position}


async def test_an_event_without_previous_events_is_rejected(process: Process) -> None:
    room = a_joined_room()
    await store(process, room)
    rootless = room.add("m.room.message", EVE, {"body": "x"}, prev_events=[])

    assert (await process.writer.append_remote(rootless)).outcome is Outcome.REJECTED


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_evades_a_ban_is_soft_failed_and_not_followed(process: Process, version: str) -> None:
    room = a_joined_room(version)
    stored = await store(process, room)
    before = dict(room.state)
    ban = room.add("m.room.member", ALICE, {"membership": "ban"}, EVE)
    evading = room.add(
        "m.room.message",
        EVE,
        {"body": "still here"},
        prev_events=[room.events[5]],
        auth_events=[before[key] for key in _auth_keys(EVE, version)],
    )
    await store(process, room, [ban])

    assert (await process.writer.append_remote(evading)).outcome is Outcome.SOFT_FAILED
    assert await extremities(process, stored) == {ban.event_id}


def _auth_keys(user_id: UserID, version: str) -> list[StateKey]:
    keys: list[StateKey] = [("m.room.power_levels", ""), ("m.room.member", user_id)]
    return keys if version == "12" else [("m.room.create", ""), *keys]


# --- redactions


def redaction(room: Room, sender: UserID, target: VerifiedPDU, prev: VerifiedPDU | None = None) -> VerifiedPDU:
    prev = prev or room.events[-1]
    keys = _auth_keys(sender, room.rules.version)
    auth = [room.state[key].event_id for key in keys]
    pdu = a_signed_event(
        room.rules.version,
        type="m.room.redaction",
        sender=sender,
        content={},
        redacts=target.event_id,
        room_id=room.room_id,
        prev_events=[prev.event_id],
        auth_events=auth,
        depth=50,
        origin_server_ts=NOW + len(room.events),
        event_id_localpart=f"redaction{len(room.events)}",
    )
    room.events.append(pdu)
    return pdu


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("order", ["redaction last", "redaction first"])
@pytest.mark.parametrize(
    ("sender", "author", "applies"),
    [(ALICE, EVE, True), (BOB, ALICE, True), (EVE, EVE, True), (EVE, BOB, False), (BOB, EVE, False)],
    ids=["by power", "same server", "own", "other server", "powerless"],
)
async def test_a_redaction_applies_when_both_are_here(
    process: Process, version: str, order: str, sender: UserID, author: UserID, *, applies: bool
) -> None:
    room = a_joined_room(version)
    await store(process, room)
    fork = room.events[-1]
    target = room.add("m.room.message", author, {"body": "regretted"})
    redacts = redaction(room, sender, target, fork)
    arriving = [target, redacts] if order == "redaction last" else [redacts, target]
    outcomes = [(await process.writer.append_remote(pdu)).outcome for pdu in arriving]

    if not room.rules.redactions_are_authorised:
        assert outcomes == [Outcome.ACCEPTED] * 2
    position = (await event_of(process, redacts)).position
    assert (await event_of(process, target)).redacted_by == (position if applies else None)


async def test_a_redaction_that_is_soft_failed_redacts_nothing(process: Process) -> None:
    room = a_joined_room()
    target = room.add("m.room.message", EVE, {"body": "stays"})
    fork = room.events[-1]
    await store(process, room)
    redacts = redaction(room, EVE, target, fork)
    ban = room.add("m.room.member", ALICE, {"membership": "ban"}, EVE, prev_events=[fork])
    await store(process, room, [ban])

    assert (await process.writer.append_remote(redacts)).outcome is Outcome.SOFT_FAILED
    assert (await event_of(process, target)).redacted_by is None


# --- outliers that come once more


async def outlier_and_rest(process: Process, version: str) -> tuple[Room, StoredRoom, VerifiedPDU]:
    """A room with a gap: a topic that is known from the state after it alone, and a message that follows it."""
    room = a_joined_room(version)
    stored = await store(process, room)
    room.add("m.room.message", ALICE, {"body": "unseen"})
    topic = room.add("m.room.topic", ALICE, {"topic": "held"}, "")
    state = {key: pdu.event_id for key, pdu in room.state.items()}
    later = room.add("m.room.message", EVE, {"body": "later"})
    assert await process.writer.append_outliers(stored, [topic]) == {topic.event_id}
    assert (await process.writer.append_remote(later, state_before=state)).outcome is Outcome.ACCEPTED
    return room, stored, topic


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_outlier_that_comes_once_more_gets_its_place(process: Process, version: str) -> None:
    room, stored, topic = await outlier_and_rest(process, version)
    held = await event_of(process, topic)
    assert held.flags & Flag.OUTLIER
    before = {key: pdu.event_id for key, pdu in room.state.items() if key[0] != "m.room.topic"}
    ends = await extremities(process, stored)

    with pytest.raises(MissingEvents):
        await process.writer.append_remote(topic)
    received = await process.writer.append_remote(topic, state_before=before)
    assert received.outcome is Outcome.ACCEPTED

    placed = await event_of(process, topic)
    assert not placed.flags & events.UNSEEN
    assert placed.position == held.position
    async with process.database.read() as tx:
        points = [(placed.line, placed.version), placed.point_after]
        states = await room_state.at(tx, stored.number, points)
        assert await ids_of(tx, states[points[0]]) == before
        assert await ids_of(tx, states[points[1]]) == {**before, ("m.room.topic", ""): topic.event_id}
        current = await room_state.current(tx, stored.number, [("m.room.topic", "")])
        assert current == {("m.room.topic", ""): held.position}
        missing = await tx.fetch("select event_id from missing_events")
    assert missing == [(topic.prev_event_ids[0],)]
    assert await extremities(process, stored) == ends
    assert (await process.writer.append_remote(topic)).outcome is Outcome.DUPLICATE


async def test_an_outlier_that_nothing_follows_is_news_when_it_comes(process: Process) -> None:
    room = a_joined_room("11")
    stored, last = await store(process, room), room.events[-1]
    joined = room.state["m.room.member", EVE]
    ban = room.add("m.room.member", ALICE, {"membership": "ban"}, EVE)
    evading = room.add("m.room.member", EVE, {"membership": "join", "displayname": "E"}, EVE, prev_events=[last])
    assert ban.event_id in evading.auth_event_ids
    await process.writer.append_outliers(stored, [ban])  # because the event that tells of it cites it
    assert (await process.writer.append_remote(evading)).outcome is Outcome.REJECTED
    held = await event_of(process, ban)
    room.state["m.room.member", EVE] = joined
    still_here = room.add("m.room.message", EVE, {"body": "still here"}, prev_events=[last])

    received = await process.writer.append_remote(ban)

    assert (received.outcome, received.position > held.position) == (Outcome.ACCEPTED, True)
    placed = await event_of(process, ban)
    assert (placed.position, placed.arrival, placed.flags) == (received.position, held.position, Flag.NONE)
    assert await extremities(process, stored) == {ban.event_id}
    async with process.database.read() as tx:
        current = await room_state.current(tx, stored.number, [("m.room.member", EVE)])
    assert current == {("m.room.member", EVE): received.position}
    assert (await process.writer.append_remote(still_here)).outcome is Outcome.SOFT_FAILED
    assert (await process.writer.append_remote(ban)).outcome is Outcome.DUPLICATE


async def test_what_came_after_an_outlier_that_got_its_place_much_later_is_found(process: Process) -> None:
    room = a_joined_room("11")
    stored = await store(process, room)
    before, last = {key: pdu.event_id for key, pdu in room.state.items()}, room.events[-1]
    room.add("m.room.message", ALICE, {"body": "unseen"})
    topic = room.add("m.room.topic", ALICE, {"topic": "held"}, "")
    await process.writer.append_outliers(stored, [topic])
    name = room.add("m.room.name", ALICE, {"name": "n"}, "", prev_events=[last])
    avatar = room.add("m.room.avatar", ALICE, {"url": "mxc://a/b"}, "", prev_events=[name])
    await store(process, room, [name, avatar])
    state = {key: pdu.event_id for key, pdu in room.state.items()}
    later = room.add("m.room.message", EVE, {"body": "later"}, prev_events=[avatar, topic])
    await process.writer.append_remote(later, state_before=state)
    async with process.database.read() as tx:
        (gap,) = await history.gaps(tx, stored.number)
    appender, states = HistoryAppender(process.database), {topic.event_id: before}
    assert await appender.append(stored, gap, [topic], states, first_place=gap.bottom - 1) == [topic.event_id]
    assert (await event_of(process, topic)).flags == Flag.HISTORY

    async with process.database.read() as tx:
        graph = Graph(tx, stored)
        await graph.load([topic.event_id])
        version = (await rooms.rows(tx, [stored.number]))[stored.number].state_version
        recent = await graph.recent(View((room_state.TRUNK, version)), graph.arrivals[topic.event_id])

    assert set(recent) == {name.event_id, avatar.event_id}


async def test_an_outlier_with_a_place_is_no_gap_for_others(process: Process) -> None:
    room, _stored, topic = await outlier_and_rest(process, "11")
    before = {key: pdu.event_id for key, pdu in room.state.items() if key[0] != "m.room.topic"}
    fork = room.add("m.room.message", BOB, {"body": "fork"}, prev_events=[topic])
    with pytest.raises(MissingEvents):
        await process.writer.append_remote(fork)
    await process.writer.append_remote(topic, state_before=before)

    assert (await process.writer.append_remote(fork)).outcome is Outcome.ACCEPTED


async def test_an_outlier_that_may_not_be_sent_any_more_stays_one(process: Process) -> None:
    room, _stored, topic = await outlier_and_rest(process, "11")
    before = {key: pdu.event_id for key, pdu in room.state.items() if key[0] != "m.room.topic"}
    levels = {"users": {ALICE: 50}, "events": {"m.room.topic": 100}}
    await process.writer.append_remote(room.add("m.room.power_levels", ALICE, levels, ""))

    received = await process.writer.append_remote(topic, state_before=before)
    assert received.outcome is Outcome.SOFT_FAILED
    assert (await event_of(process, topic)).flags == Flag.OUTLIER
