"""Who joins a room of another server reads what was before: fetched when they page back to it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from federation.protocol.errors import PeerUnreachable
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, JsonObject, ServerName
from federation.rooms.append import Outcome
from federation.rooms.backfill import Backfill
from federation.rooms.heads import to_pdu
from storage import event_pages, events, room_state
from storage import history as stored_history
from storage.events import Flag
from tests.client import Client, Server, quote
from tests.federation.servers import Pair, two_servers
from tests.homeserver.rooms import a_room, bodies, history, leave, page, redact, set_state, set_visibility
from tests.rooms import send

HISTORY = 60


async def join(client: Client, room_id: str, via: str) -> None:
    answer = await client.request("POST", f"/v3/join/{quote(room_id)}", {}, params=[("via", via)])
    assert answer.status == 200, answer.body


async def both(pair: Pair) -> tuple[Client, Client]:
    """A user of each server."""
    return await pair.near.register("alice"), await pair.far.register("bob")


async def a_room_with(alice: Client, count: int, **fields: Any) -> tuple[str, list[str]]:
    """A room in which somebody said things; the messages' IDs."""
    room_id = await a_room(alice, **fields)
    return room_id, [await send(alice, room_id, f"{number}") for number in range(count)]


def ids(events: list[Any]) -> list[str]:
    return [event["event_id"] for event in events]


def times(events: list[Any]) -> list[int]:
    return [event["origin_server_ts"] for event in events]


def backfill_of(server: Server) -> Backfill:
    return server.application.fetching.backfill


async def gaps_of(server: Server, room_id: str) -> list[stored_history.Gap]:
    room = await server.application.writer.get_room(room_id)
    async with server.application.database.read() as tx:
        return await stored_history.gaps(tx, room.number)


@pytest.mark.parametrize("version", ["1", "3", "11", "12"])
async def test_every_event_from_before_the_join_is_read_once_and_in_order(pair: Pair, version: str) -> None:
    alice, bob = await both(pair)
    room_id = await a_room(alice, room_version=version)
    for number in range(HISTORY):
        await send(alice, room_id, f"{number}")
        if number % 10 == 5:
            await set_state(alice, room_id, "m.room.topic", {"topic": f"{number}"})
    await join(bob, room_id, pair.near.name)

    pages = await history(bob, room_id, limit=7)
    again = await history(bob, room_id, limit=25)

    assert ids(pages) == ids(again)
    assert ids(pages) == ids(await history(alice, room_id, limit=100))
    forwards = await history(bob, room_id, dir="f", limit=9)
    assert ids(forwards) == ids(pages)[::-1]
    topics = [event for event in forwards if event["type"] == "m.room.topic"]
    assert [event["unsigned"].get("prev_content") for event in topics] == [
        None,
        *({"topic": f"{number}"} for number in range(5, HISTORY - 10, 10)),
    ]


async def test_five_hundred_events_come_in_several_stretches(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id = await a_room(alice)
    for number in range(470):
        if number % 40 == 0:
            await alice.ok("PUT", f"/v3/profile/{alice.user_id}/displayname", {"displayname": f"Alice {number}"})
        await send(alice, room_id, f"{number}")
    await join(bob, room_id, pair.near.name)

    pages = await history(bob, room_id, limit=50)

    assert bodies(pages) == [f"{number}" for number in range(469, -1, -1)]
    assert ids(pages) == ids(await history(alice, room_id, limit=100))
    (gap,) = await gaps_of(pair.far, room_id)
    assert (gap.frontier, gap.is_first) == ((), True)


async def test_a_lazy_page_has_the_senders_as_they_were(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id = await a_room(alice)
    await alice.ok("PUT", f"/v3/profile/{alice.user_id}/displayname", {"displayname": "Then"})
    for number in range(5):
        await send(alice, room_id, f"{number}")
    await alice.ok("PUT", f"/v3/profile/{alice.user_id}/displayname", {"displayname": "Now"})
    await join(bob, room_id, pair.near.name)

    first = await page(bob, room_id, limit=2)
    second = await page(bob, room_id, limit=3, from_=first["end"], filter='{"lazy_load_members": true}')

    assert bodies(second["chunk"]) == ["4", "3", "2"]
    assert [event["content"]["displayname"] for event in second["state"]] == ["Then"]


async def test_history_is_no_news(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id, said = await a_room_with(alice, 10)
    await join(bob, room_id, pair.near.name)
    since = (await bob.get("/v3/sync")).body["next_batch"]

    assert said[0] in ids(await history(bob, room_id))

    assert "rooms" not in (await bob.get("/v3/sync", since=since, timeout=0)).body
    fresh = (await bob.get("/v3/sync")).body["rooms"]["join"][room_id]
    assert [event["state_key"] for event in fresh["timeline"]["events"]] == [bob.user_id]
    assert fresh["timeline"]["limited"] is True
    assert ("m.room.create", "") in {(event["type"], event["state_key"]) for event in fresh["state"]["events"]}
    older = await page(bob, room_id, limit=3, from_=fresh["timeline"]["prev_batch"])
    assert bodies(older["chunk"]) == ["9", "8", "7"]


@pytest.mark.parametrize("visibility", ["world_readable", "shared", "invited", "joined"])
async def test_fetched_history_is_shown_to_those_who_may_see_it(pair: Pair, visibility: str) -> None:
    alice, bob = await both(pair)
    room_id = await a_room(alice)
    await send(alice, room_id, "for all")
    await set_visibility(alice, room_id, visibility)
    await send(alice, room_id, "later")
    await join(bob, room_id, pair.near.name)
    carol = await pair.far.register("carol")

    shown = bodies(await history(bob, room_id))

    assert shown == ["later", "for all"] if visibility in ("world_readable", "shared") else shown == ["for all"]
    if visibility == "world_readable":
        assert bodies(await history(carol, room_id)) == ["later"]
    else:
        assert (await carol.get(f"/v3/rooms/{quote(room_id)}/messages", dir="b")).status == 403


async def test_what_was_redacted_before_the_join_comes_redacted(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id, said = await a_room_with(alice, 3)
    await redact(alice, room_id, said[1])
    await join(bob, room_id, pair.near.name)

    events = {event["event_id"]: event for event in await history(bob, room_id)}

    assert events[said[1]]["content"] == {}
    assert events[said[2]]["content"]["body"] == "2"


async def test_who_comes_back_reads_what_happened_meanwhile_in_its_place(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 3)
    await join(bob, room_id, pair.near.name)
    mine = await send(bob, room_id, "mine")
    await until(lambda: has(alice, room_id, mine))
    await leave(bob, room_id)
    await until(lambda: has_left(alice, room_id, bob))
    for number in range(20):
        await send(alice, room_id, f"meanwhile {number}")
    await set_state(alice, room_id, "m.room.name", {"name": "Another"})
    await join(bob, room_id, pair.near.name)

    pages = await history(bob, room_id, limit=6)

    assert bodies(pages) == [*(f"meanwhile {number}" for number in range(19, -1, -1)), "mine", "2", "1", "0"]
    assert ids(pages) == ids(await history(alice, room_id))
    assert len(await gaps_of(pair.far, room_id)) == 2


@pytest.mark.one_process("it is cut off here")
async def test_what_was_missed_meanwhile_is_fetched_into_its_place(
    maintenance_conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_servers(maintenance_conninfo, tmp_path) as pair:
        alice, bob = await both(pair)
        room_id, _ = await a_room_with(alice, 2)
        await join(bob, room_id, pair.near.name)
        mine = await send(bob, room_id, "mine")
        await until(lambda: has(alice, room_id, mine))
        since = (await bob.get("/v3/sync")).body["next_batch"]

        async def away(*_arguments: Any, **_options: Any) -> JsonObject:
            raise PeerUnreachable(ServerName(pair.far.name), "it is away")

        monkeypatch.setattr(pair.near.application.outbound.client, "put", away)
        missed = [await send(alice, room_id, f"missed {number}") for number in range(8)]
        await arrive_alone(pair, room_id, missed[-1])

        synced = (await bob.get("/v3/sync", since=since)).body["rooms"]["join"][room_id]["timeline"]
        assert (ids(synced["events"]), synced["limited"]) == ([missed[-1]], True)
        older = await page(bob, room_id, limit=5, from_=synced["prev_batch"])
        assert ids(older["chunk"]) == missed[-2:-7:-1]
        assert ids(await history(bob, room_id, limit=4)) == ids(await history(alice, room_id))
        later = (await bob.get("/v3/sync", since=since)).body["rooms"]["join"][room_id]["timeline"]
        assert (ids(later["events"]), later["limited"]) == ([missed[-1]], True)


async def arrive_alone(pair: Pair, room_id: str, event_id: str) -> None:
    """An event of the near server comes to the far one, without what precedes it, but with the state before it."""
    near, far = pair.near.application, pair.far.application
    room = await far.writer.get_room(room_id)
    async with near.database.read() as tx:
        stored = (await events.by_id(tx, [event_id]))[EventID(event_id)]
    async with far.database.read() as tx:
        positions = await room_state.current_whole(tx, room.number)
        held = await events.ids_of(tx, room.number, list(positions.values()))
    state = {key: held[position] for key, position in positions.items()}
    received = await far.writer.append_remote(to_pdu(stored, room), state_before=state)
    assert received.outcome is Outcome.ACCEPTED


async def test_the_context_of_the_first_known_event_reaches_back(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id, said = await a_room_with(alice, 12)
    await join(bob, room_id, pair.near.name)
    own_join = (await page(bob, room_id, limit=1))["chunk"][0]["event_id"]

    answer = (await bob.get(f"/v3/rooms/{quote(room_id)}/context/{quote(own_join)}", limit=10)).body

    assert ids(answer["events_before"]) == said[:6:-1]
    older = await page(bob, room_id, limit=2, from_=answer["start"])
    assert ids(older["chunk"]) == said[6:4:-1]


async def test_events_are_found_by_time_before_anybody_paged_to_them(pair: Pair) -> None:
    alice, bob = await both(pair)
    room_id, said = await a_room_with(alice, 30)
    everything = {event["event_id"]: event for event in await history(alice, room_id)}
    await join(bob, room_id, pair.near.name)
    path = f"/v1/rooms/{quote(room_id)}/timestamp_to_event"

    async def find(event_id: str, direction: str) -> str:
        answer = await bob.get(path, ts=everything[event_id]["origin_server_ts"], dir=direction)
        assert answer.status == 200, answer.body
        found: str = answer.body["event_id"]
        return found

    ts = {event_id: everything[event_id]["origin_server_ts"] for event_id in said}
    for wanted, direction in ((said[10], "f"), (said[20], "b")):
        assert ts[await find(wanted, direction)] == ts[wanted]
    found = await find(said[10], "f")
    context = (await bob.get(f"/v3/rooms/{quote(room_id)}/context/{quote(found)}", limit=6)).body
    index = said.index(found)
    assert ids(context["events_before"]) == said[index - 3 : index][::-1]
    pages = await history(bob, room_id, limit=8)
    assert ids(pages) == ids(await history(alice, room_id))


# --- what others ask, and what they answer


@pytest.mark.one_process("what it asks is counted here")
async def test_many_who_page_back_at_once_share_what_is_fetched(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 20)
    await join(bob, room_id, pair.near.name)
    questions = backfill_of(pair.far)._questions
    asked: list[int] = []
    backfill = questions.backfill

    async def counted(*arguments: Any) -> list[JsonObject]:
        asked.append(1)
        return await backfill(*arguments)

    monkeypatch.setattr(questions, "backfill", counted)

    pages = await asyncio.gather(*(page(bob, room_id, limit=10) for _ in range(8)))

    assert len(asked) == 1
    assert {tuple(ids(each["chunk"])) for each in pages} == {tuple(ids(pages[0]["chunk"]))}
    assert len(pages[0]["chunk"]) == 10


@pytest.mark.one_process("what it asks is counted here")
async def test_a_server_that_gives_nothing_is_not_asked_all_the_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 5)
    await join(bob, room_id, pair.near.name)
    questions = backfill_of(pair.far)._questions
    asked: list[int] = []

    async def away(*_arguments: Any) -> list[JsonObject]:
        asked.append(1)
        raise PeerUnreachable(ServerName(pair.near.name), "it is away")

    with monkeypatch.context() as patched:
        patched.setattr(questions, "backfill", away)
        for _ in range(3):
            answer = await page(bob, room_id, limit=10)
            assert [event["state_key"] for event in answer["chunk"]] == [bob.user_id]
            assert "end" not in answer
    assert len(asked) == 1
    backfill_of(pair.far)._failed_at.clear()  # a minute later

    assert len((await page(bob, room_id, limit=10))["chunk"]) == 10


@pytest.mark.one_process("it is cut off here")
async def test_a_gap_is_tried_again_once_its_server_is_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 5)
    await join(bob, room_id, pair.near.name)
    name, availability = ServerName(pair.near.name), pair.far.application.outbound.availability

    async def away(*_arguments: Any) -> list[JsonObject]:
        availability.failed(name)
        raise PeerUnreachable(name, "it is away")

    with monkeypatch.context() as patched:
        patched.setattr(backfill_of(pair.far)._questions, "backfill", away)
        assert len((await page(bob, room_id, limit=10))["chunk"]) == 1
    assert len((await page(bob, room_id, limit=10))["chunk"]) == 1

    availability.alive(name)

    assert len((await page(bob, room_id, limit=10))["chunk"]) == 10


# --- what came by other ways


async def pdus_of_room(server: Server, room_id: str) -> list[VerifiedPDU]:
    """All events of a room of which nothing is missing, the oldest first."""
    room = await server.application.writer.get_room(room_id)
    async with server.application.database.read() as tx:
        return [to_pdu(each, room) for each in (await event_pages.preceding(tx, room.number, 1 << 62, 1_000))[::-1]]


async def test_missing_events_from_before_the_join_stay_where_history_belongs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 2)
    await join(bob, room_id, pair.near.name)
    far = pair.far.application
    # The far server has ends that others do not know: they go back from what they are asked for to the very beginning.
    pdus = await pdus_of_room(pair.near, room_id)

    async def everything(*_arguments: Any, latest: list[EventID], **_options: Any) -> list[JsonObject]:
        return [pdu.json for pdu in await pdus_of_room(pair.near, room_id) if pdu.event_id not in latest]

    async def away(*_arguments: Any, **_options: Any) -> JsonObject:
        raise PeerUnreachable(ServerName(pair.far.name), "it is away")

    with monkeypatch.context() as patched:
        patched.setattr(pair.near.application.outbound.client, "put", away)
        missed = [await send(alice, room_id, f"missed {number}") for number in range(2)]
        patched.setattr(far.fetching.missing._questions, "missing_events", everything)
        room = await far.writer.get_room(room_id)
        (last,) = [pdu for pdu in await pdus_of_room(pair.near, room_id) if pdu.event_id == missed[-1]]
        results = await far.reception.receiver.receive_room(ServerName(pair.near.name), room, [last])
    assert results == {last.event_id: None}
    async with far.database.read() as tx:
        held = await events.flags_of(tx, [pdu.event_id for pdu in pdus[:-1]])
    assert all(flags & Flag.OUTLIER for _, flags in held.values())

    assert ids(await history(bob, room_id, limit=4)) == ids(await history(alice, room_id))


@pytest.mark.parametrize("count", [1, 5, 100])
async def test_what_got_its_place_by_other_ways_is_shown(pair: Pair, count: int) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 3)
    await set_state(alice, room_id, "m.room.topic", {"topic": "before"})
    await join(bob, room_id, pair.near.name)
    held = [pdu for pdu in await pdus_of_room(pair.near, room_id) if pdu.state_key is not None][:-1]
    topic = held.pop()
    state = {pdu.state_pair: pdu.event_id for pdu in held}
    for pdu in held[:count]:
        await pair.far.application.writer.append_remote(pdu)
    if count > len(held):
        await pair.far.application.writer.append_remote(topic, state_before=state)

    assert sorted(ids(await history(bob, room_id, limit=4))) == sorted(ids(await history(alice, room_id)))
    (gap,) = await gaps_of(pair.far, room_id)
    assert gap.frontier == ()
    again = await history(bob, room_id, limit=100)
    assert len(again) == len(set(ids(again)))


LIES = ["foreign", "unsigned", "not asked for", "forged body", "no events", "endless"]


@pytest.mark.one_process("what it is told is replaced here")
@pytest.mark.parametrize("lie", LIES)
async def test_hostile_history_is_not_believed(pair: Pair, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 8)
    _, foreign = await a_room_with(alice, 3)
    await join(bob, room_id, pair.near.name)
    questions = backfill_of(pair.far)._questions
    backfill = questions.backfill

    async def lying(server: Any, room: Any, event_ids: list[EventID], limit: int) -> list[JsonObject]:
        honest = await backfill(server, room, event_ids, limit)
        match lie:
            case "foreign":
                (event,) = await questions.event(server, EventID(foreign[0]))
                return [event] * 3
            case "unsigned":
                return [{**event, "signatures": {}} for event in honest]
            case "not asked for":
                return honest[3:]
            case "forged body":
                return [{**event, "content": {**event["content"], "body": "forged"}} for event in honest]
            case "endless":
                return [{**honest[0], "depth": 1_000 + number} for number in range(300)]
            case _:
                return []

    with monkeypatch.context() as patched:
        patched.setattr(questions, "backfill", lying)
        shown = await history(bob, room_id)
    assert "forged" not in {event["content"].get("body") for event in shown}
    assert set(ids(shown)).isdisjoint(foreign)
    if lie != "forged body":  # which comes redacted, as its signature says
        assert len(shown) == 1
        backfill_of(pair.far)._failed_at.clear()
        assert ids(await history(bob, room_id)) == ids(await history(alice, room_id))


async def has(client: Client, room_id: str, event_id: str) -> bool:
    return (await client.get(f"/v3/rooms/{quote(room_id)}/event/{quote(event_id)}")).status == 200


async def has_left(client: Client, room_id: str, other: Client) -> bool:
    members = (await client.get(f"/v3/rooms/{quote(room_id)}/joined_members")).body["joined"]
    return other.user_id not in members


async def until(is_so: Any) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(15):
        while not await is_so():  # noqa: ASYNC110  # another server, which tells nobody
            await asyncio.sleep(0.05)


@pytest.mark.one_process("what it asks is counted here")
async def test_messages_alone_need_no_state_from_others(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = await both(pair)
    room_id, _ = await a_room_with(alice, 150)
    await join(bob, room_id, pair.near.name)
    questions = backfill_of(pair.far)._questions
    asked: list[str] = []
    backfill, state_ids = questions.backfill, questions.state_ids

    async def counted(*arguments: Any) -> list[JsonObject]:
        asked.append("history")
        return await backfill(*arguments)

    async def counted_state(*arguments: Any) -> Any:
        asked.append("state")
        return await state_ids(*arguments)

    monkeypatch.setattr(questions, "backfill", counted)
    monkeypatch.setattr(questions, "state_ids", counted_state)

    pages = await history(bob, room_id, limit=20)

    assert bodies(pages) == [f"{number}" for number in range(149, -1, -1)]
    assert asked == ["history", "history"]  # the second reaches the room's creation, before which is no state
    assert ids(pages) == ids(await history(alice, room_id))
