"""What is bundled with events (Client-Server API, "Aggregations of child events")."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from federation.protocol.pdu import Draft
from federation.protocol.types import RoomID, UserID
from federation.rooms.aggregations import Onlooker
from storage.database import Tx
from tests.client import Client, Server, quote
from tests.homeserver.relating import bundle, bundle_of, bundles, edit, event, ignore, react, refer, relates_to, reply
from tests.homeserver.rooms import a_room, history, join, leave, page, redact, set_visibility
from tests.homeserver.syncs import joined, set_state, sync, token
from tests.queries import is_answering
from tests.rooms import send, send_event

# --- edits


async def test_the_newest_edit_is_bundled_whole_and_the_content_is_left_alone(alice: Client) -> None:
    room_id = await a_room(alice)
    original = await send(alice, room_id, "first")
    await edit(alice, room_id, original, "second")
    last = await edit(alice, room_id, original, "third")

    found = await event(alice, room_id, original)

    assert found["content"]["body"] == "first"
    bundled = bundle_of(found)["m.replace"]
    plain = await event(alice, room_id, last)
    assert {**bundled, "unsigned": None} == {**plain, "unsigned": None}
    assert bundled["unsigned"].keys() >= {"age", "transaction_id"}
    assert list(bundle_of(found)) == ["m.replace"]


async def test_the_newest_edit_is_that_of_the_latest_time_and_then_of_the_greatest_id(
    server: Server, alice: Client
) -> None:
    room_id = await a_room(alice)
    original = await send(alice, room_id, "first")
    content = {"msgtype": "m.text", "body": "* edit", "m.new_content": {}, **relates_to("m.replace", original)}
    sent = [
        await _send_at(server, alice, room_id, {**content, "n": number}, ts)
        for number, ts in enumerate((3000, 5000, 5000, 5000, 4000))
    ]

    assert (await bundle(alice, room_id, original))["m.replace"]["event_id"] == max(sent[1:4])


async def _send_at(server: Server, client: Client, room_id: str, content: Any, ts: int) -> str:
    """An event of a given time, as an application service may send it."""
    draft = Draft(
        room_id=RoomID(room_id),
        type="m.room.message",
        sender=UserID(client.user_id),
        content=content,
        origin_server_ts=ts,
    )
    return (await server.application.writer.append([draft])).events[0].event_id


async def test_what_is_no_valid_edit_replaces_nothing(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    original = await send(alice, room_id, "first")
    new = {"m.new_content": {"body": "x"}}
    await edit(bob, room_id, original, "of another sender")
    await send_event(alice, room_id, "org.example.other", {**new, **relates_to("m.replace", original)})
    await send(alice, room_id, "without content", **relates_to("m.replace", original))
    await set_state(alice, room_id, "m.room.message", {**new, **relates_to("m.replace", original)})

    assert await bundle(alice, room_id, original) == {}

    real = await edit(alice, room_id, original, "second")
    await edit(alice, room_id, real, "an edit of an edit")
    assert (await bundle(alice, room_id, original))["m.replace"]["event_id"] == real
    assert await bundle(alice, room_id, real) == {}


async def test_encrypted_events_are_replaced_by_encrypted_ones(alice: Client) -> None:
    room_id = await a_room(alice)
    secret = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "y"}
    original = await send_event(alice, room_id, "m.room.encrypted", secret)
    await edit(alice, room_id, original, "not encrypted")
    assert await bundle(alice, room_id, original) == {}

    encrypted = await send_event(alice, room_id, "m.room.encrypted", {**secret, **relates_to("m.replace", original)})

    assert (await bundle(alice, room_id, original))["m.replace"]["event_id"] == encrypted


async def test_a_state_event_is_given_no_bundle(alice: Client) -> None:
    room_id = await a_room(alice)
    name = await set_state(alice, room_id, "m.room.name", {"name": "A"})
    await reply(alice, room_id, name)
    await refer(alice, room_id, name)

    assert await bundle(alice, room_id, name) == {}


async def test_redacting_an_edit_brings_back_the_one_before_and_redacting_the_original_ends_all(alice: Client) -> None:
    room_id = await a_room(alice)
    original = await send(alice, room_id, "first")
    second = await edit(alice, room_id, original, "second")
    third = await edit(alice, room_id, original, "third")

    await redact(alice, room_id, third)
    assert (await bundle(alice, room_id, original))["m.replace"]["event_id"] == second
    await redact(alice, room_id, second)
    assert await bundle(alice, room_id, original) == {}

    await edit(alice, room_id, original, "fourth")
    await redact(alice, room_id, original)
    assert await bundle(alice, room_id, original) == {}


# --- threads and references


async def test_a_thread_tells_its_newest_reply_with_its_edit_and_who_took_part(alice: Client, bob: Client) -> None:
    carol = await alice.register("carol")
    room_id = await a_room(alice, bob, carol)
    root = await send(alice, room_id, "root")
    await reply(bob, room_id, root, "one")
    last = await reply(bob, room_id, root, "two")
    edited = await edit(bob, room_id, last, "two, edited")
    await refer(bob, room_id, last)

    for reader, participated in ((alice, True), (bob, True), (carol, False)):
        thread = (await bundle(reader, room_id, root))["m.thread"]
        assert (thread["count"], thread["current_user_participated"]) == (2, participated)
        assert thread["latest_event"]["event_id"] == last
        inner = bundle_of(thread["latest_event"])
        assert inner["m.replace"]["event_id"] == edited
        assert len(inner["m.reference"]["chunk"]) == 1
    assert (await bundle(bob, room_id, last)).keys() == {"m.replace", "m.reference"}


async def test_redacted_replies_are_not_counted_and_the_thread_of_a_redacted_root_stays(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    first, second = [await reply(alice, room_id, root) for _ in range(2)]
    await redact(alice, room_id, second)

    thread = (await bundle(alice, room_id, root))["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (1, first)
    await redact(alice, room_id, root)
    assert (await bundle(alice, room_id, root))["m.thread"]["count"] == 1

    await redact(alice, room_id, first)
    assert await bundle(alice, room_id, root) == {}


async def test_references_are_listed_and_reactions_are_not(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    poll = await send(alice, room_id, "poll")
    votes = [await refer(client, room_id, poll) for client in (alice, bob)]
    await react(bob, room_id, poll)

    assert await bundle(alice, room_id, poll) == {
        "m.reference": {"chunk": [{"event_id": vote} for vote in votes]},
    }
    await redact(bob, room_id, votes[1])
    assert await bundle(alice, room_id, poll) == {"m.reference": {"chunk": [{"event_id": votes[0]}]}}


async def test_what_ignored_users_sent_counts_for_nobody_who_ignores_them(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    root = await send(alice, room_id, "root")
    own = await reply(alice, room_id, root)
    await reply(bob, room_id, root)
    await refer(bob, room_id, root)
    await ignore(alice, bob)

    found = await bundle(alice, room_id, root)
    assert found.keys() == {"m.thread"}
    assert (found["m.thread"]["count"], found["m.thread"]["latest_event"]["event_id"]) == (1, own)
    assert (await bundle(bob, room_id, root))["m.thread"]["count"] == 2

    await ignore(alice)
    assert (await bundle(alice, room_id, root))["m.thread"]["count"] == 2


# --- who may see what


async def test_what_came_after_somebody_left_is_not_bundled_for_them(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    root = await send(alice, room_id, "root")
    seen_edit = await edit(alice, room_id, root, "before")
    seen_reply = await reply(alice, room_id, root)
    seen_vote = await refer(alice, room_id, root)
    await leave(bob, room_id)
    await edit(alice, room_id, root, "after")
    await reply(alice, room_id, root)
    await refer(alice, room_id, root)

    for found in (await bundle(bob, room_id, root), (await bundles(bob, room_id))[root]):
        assert found["m.replace"]["event_id"] == seen_edit
        assert (found["m.thread"]["count"], found["m.thread"]["latest_event"]["event_id"]) == (1, seen_reply)
        assert found["m.reference"]["chunk"] == [{"event_id": seen_vote}]
    assert (await bundle(alice, room_id, root))["m.thread"]["count"] == 2


async def test_what_was_sent_between_two_stays_is_not_bundled_where_only_members_may_see_it(
    alice: Client, bob: Client
) -> None:
    room_id = await a_room(alice, bob, visibility="joined")
    root = await send(alice, room_id, "root")
    await leave(bob, room_id)
    await reply(alice, room_id, root)
    await edit(alice, room_id, root, "between")
    await join(bob, room_id)
    assert await bundle(bob, room_id, root) == {}

    later = await reply(alice, room_id, root)

    thread = (await bundle(bob, room_id, root))["m.thread"]
    assert (thread["count"], thread["latest_event"]["event_id"]) == (1, later)


async def test_who_came_later_is_told_of_shared_history_and_not_of_what_was_hidden(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, visibility="shared")
    root = await send(alice, room_id, "root")
    await set_visibility(alice, room_id, "joined")
    await reply(alice, room_id, root)
    await set_visibility(alice, room_id, "shared")
    last = await reply(alice, room_id, root)
    await join(bob, room_id)

    thread = (await bundle(bob, room_id, root))["m.thread"]

    assert (thread["count"], thread["latest_event"]["event_id"]) == (1, last)


# --- where


async def test_every_way_to_read_an_event_bundles_the_same(alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    await reply(alice, room_id, root)
    await edit(alice, room_id, root, "edited")
    await refer(alice, room_id, root)
    expected = _plain(await bundle(alice, room_id, root))
    assert expected.keys() == {"m.replace", "m.thread", "m.reference"}

    context = await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/context/{quote(root)}")
    around = await alice.ok("GET", f"/v3/rooms/{quote(room_id)}/context/{quote(await send(alice, room_id, 'x'))}")
    found = [
        *[each for each in await history(alice, room_id) if each["event_id"] == root],
        *[each for each in await history(alice, room_id, dir="f") if each["event_id"] == root],
        context["event"],
        *[each for each in around["events_before"] if each["event_id"] == root],
        *(await alice.ok("GET", f"/v1/rooms/{quote(room_id)}/threads"))["chunk"],
    ]

    assert [_plain(bundle_of(each)) for each in found] == [expected] * 5


def _plain(bundled: Any) -> Any:
    """A bundle without what changes from one answer to the next."""
    return json.loads(json.dumps(bundled), object_hook=lambda found: {k: v for k, v in found.items() if k != "age"})


async def test_a_sync_bundles_where_a_timeline_is_cut_off_alone(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    root = await send(alice, room_id, "root")
    last = await reply(alice, room_id, root)
    await edit(alice, room_id, last, "edited")

    whole = joined(await sync(bob, since), room_id)["timeline"]
    cut = joined(await sync(bob, since, filter={"room": {"timeline": {"limit": 2}}}), room_id)["timeline"]

    assert (whole["limited"], [bundle_of(each) for each in whole["events"]]) == (False, [{}] * 3)
    assert cut["limited"]
    assert [list(bundle_of(each)) for each in cut["events"]] == [["m.replace"], []]
    first = joined(await sync(bob, filter={"room": {"timeline": {"limit": 3}}}), room_id)["timeline"]
    assert [list(bundle_of(each)) for each in first["events"]] == [["m.thread"], ["m.replace"], []]
    as_sent = {"event_format": "federation", "room": {"timeline": {"limit": 2}}}
    events = joined(await sync(bob, since, filter=as_sent), room_id)["timeline"]["events"]
    assert "m.relations" not in json.dumps(events)


async def test_a_sync_bundles_nothing_that_the_next_one_tells_of(server: Server, alice: Client) -> None:
    room_id = await a_room(alice)
    root = await send(alice, room_id, "root")
    first = await edit(alice, room_id, root, "first")
    answer = await reply(alice, room_id, root)
    application = server.application
    upto = application.tail.position
    await edit(alice, room_id, root, "second")
    await reply(alice, room_id, root)

    async with application.database.read() as tx:
        access = await application.reader.access(tx, room_id, UserID(alice.user_id))
        seen = await application.reader.event(tx, access, root)
        onlooker = Onlooker(UserID(alice.user_id), upto=upto)
        bundles = await application.rooms.reading.aggregations.bundle(tx, onlooker, [seen])

    found = json.loads(bundles[seen.event.position])
    assert found["m.replace"]["event_id"] == first
    assert (found["m.thread"]["count"], found["m.thread"]["latest_event"]["event_id"]) == (1, answer)


async def test_filters_by_relations_leave_out_what_was_redacted(alice: Client) -> None:
    room_id = await a_room(alice)
    kept, dropped = [await send(alice, room_id, text) for text in ("kept", "dropped")]
    await react(alice, room_id, kept)
    reaction = await react(alice, room_id, dropped)
    await redact(alice, room_id, reaction)

    wanted = json.dumps({"related_by_rel_types": ["m.annotation"]})
    chunk = (await page(alice, room_id, limit=100, filter=wanted))["chunk"]

    assert [each["event_id"] for each in chunk] == [kept]
    await react(alice, room_id, dropped)  # the same as before, which no longer stands


# --- what it costs


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What requests ask the database."""
    asked: list[str] = []

    def count(name: str) -> None:
        original: Callable[..., Awaitable[Any]] = getattr(Tx, name)

        async def counted(tx: Tx, sql: str, *params: Any) -> Any:
            if is_answering():
                asked.append(sql)
            return await original(tx, sql, *params)

        monkeypatch.setattr(Tx, name, counted)

    for name in ("fetch", "execute"):
        count(name)
    return asked


@pytest.mark.one_process("its queries are counted here")
async def test_a_sync_of_plain_messages_asks_the_database_nothing(
    alice: Client, bob: Client, statements: list[str]
) -> None:
    room_id = await a_room(alice, bob)
    since = await token(bob)
    since = (await sync(bob, since))["next_batch"]
    for _ in range(3):
        await send(alice, room_id, "plain")
    statements.clear()

    assert len(joined(await sync(bob, since), room_id)["timeline"]["events"]) == 3

    assert statements == []


@pytest.mark.one_process("its queries are counted here")
async def test_bundles_cost_as_many_queries_for_many_events_as_for_few(alice: Client, statements: list[str]) -> None:
    room_id = await a_room(alice)
    for number in range(12):
        root = await send(alice, room_id, f"root {number}")
        await edit(alice, room_id, await reply(alice, room_id, root), "edited")
        await edit(alice, room_id, root, "edited")
        await refer(alice, room_id, root)

    async def cost(limit: int) -> int:
        await page(alice, room_id, limit=limit)
        statements.clear()
        assert sum(bool(bundle_of(each)) for each in (await page(alice, room_id, limit=limit))["chunk"]) >= limit // 3
        return len(statements)

    assert await cost(60) == await cost(10) <= 16
