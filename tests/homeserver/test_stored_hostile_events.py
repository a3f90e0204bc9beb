"""Rows that somebody else wrote into the database: they break nothing but themselves."""

import json
from dataclasses import replace
from typing import Any

import pytest

from storage.event_bytes import pack
from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, act, bodies, history, join, leave, page, set_state, set_visibility
from tests.rooms import send
from tests.servers import running

EVENT: dict[str, Any] = {
    "type": "m.room.message",
    "sender": "@a:hearth.test",
    "content": {"body": "hostile"},
    "origin_server_ts": 1,
}


def changed(**fields: Any) -> bytes:
    """An event with other fields."""
    return json.dumps(EVENT | fields).encode()


def nested(depth: int) -> bytes:
    """An event that is nested this deeply."""
    return changed(content={"a": 0}).replace(b'{"a": 0}', b'{"a":' * depth + b"0" + b"}" * depth)


HOSTILE = {
    "nothing": b"",
    "no JSON": b"{",
    "damaged": b"\x01damaged",
    "packed, but null": pack(b"null"),
    "of a later version": b"\x7f{}",
    "no UTF-8": b'{"type":"\xff"}',
    "null": b"null",
    "an array": b"[]",
    "an empty object": b"{}",
    "no content": json.dumps({"type": "t", "sender": "@a:b", "origin_server_ts": 1}).encode(),
    "null content": changed(content=None),
    "content as an array": changed(content=["hostile"]),
    "null type": changed(type=None),
    "NUL in the type": changed(type="hostile\0"),
    "sender as a number": changed(sender=17),
    "state key as an object": changed(state_key={"a": "hostile"}),
    "NUL in the state key": changed(state_key="hostile\0"),
    "time as a text": changed(origin_server_ts="hostile"),
    "time as a float": changed(origin_server_ts=1.5),
    "a time beyond 64 bits": changed(origin_server_ts=10**30),
    "300 levels": nested(300),
    "100,000 levels": nested(100_000),
}


async def overwrite(server: Server, event_id: str, json_bytes: bytes) -> None:
    """What an attacker with the database's password could do."""
    async with server.application.database.transaction() as tx:
        assert await tx.execute("update events set json = %s where event_id = %s", (json_bytes, event_id)) == 1


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_message_spoils_only_itself(server: Server, alice: Client, bob: Client, name: str) -> None:
    room_id = await a_room(alice, bob)
    await send(alice, room_id, "before")
    event_id = await send(alice, room_id, "hostile")
    after = await send(alice, room_id, "after")
    await overwrite(server, event_id, HOSTILE[name])

    for limit in (1, 100):
        assert bodies(await history(bob, room_id, limit=limit)) == ["after", "before"]
        assert bodies(await history(bob, room_id, dir="f", limit=limit, filter='{"types": ["m.room.message"]}')) == [
            "before",
            "after",
        ]
    room = f"/v3/rooms/{quote(room_id)}"
    assert (await bob.get(f"{room}/event/{quote(event_id)}")).status == 404
    assert (await bob.get(f"{room}/context/{quote(event_id)}")).status == 404
    context = (await bob.get(f"{room}/context/{quote(after)}")).body
    assert bodies(context["events_before"]) == ["before"]
    assert bodies((await bob.get(f"{room}/initialSync")).body["messages"]["chunk"]) == ["before", "after"]
    synced = (await bob.get("/v3/sync")).body["rooms"]["join"][room_id]
    assert bodies(synced["timeline"]["events"]) == ["before", "after"]
    assert (await bob.get(f"/v1{room[3:]}/timestamp_to_event", dir="f", ts=0)).status == 200


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_state_spoils_only_itself(server: Server, alice: Client, bob: Client, name: str) -> None:
    room_id = await a_room(alice, bob, name="first")
    hostile_name = await set_state(alice, room_id, "m.room.name", {"name": "hostile"})
    await send(alice, room_id, "between")
    room = f"/v3/rooms/{quote(room_id)}"
    member = (await alice.get(f"{room}/state/m.room.member/{quote(bob.user_id)}", format="event")).body["event_id"]
    await overwrite(server, hostile_name, HOSTILE[name])
    await overwrite(server, member, HOSTILE[name])

    state = (await alice.get(f"{room}/state")).body
    assert {"m.room.create", "m.room.power_levels"} <= {event["type"] for event in state}
    assert "m.room.name" not in {event["type"] for event in state}
    assert (await alice.get(f"{room}/state/m.room.name")).status == 404
    assert [e["state_key"] for e in (await alice.get(f"{room}/members")).body["chunk"]] == [alice.user_id]
    assert (await alice.get(f"{room}/joined_members")).body["joined"].keys() == {alice.user_id}
    lazy = await page(alice, room_id, limit=100, filter='{"lazy_load_members": true}')
    assert bodies(lazy["chunk"]) == ["between"]
    assert (await alice.get("/v3/sync")).body["rooms"]["join"][room_id]["timeline"]["events"]
    assert (await alice.get("/v3/initialSync")).status == 200


async def test_a_hostile_newest_event_does_not_close_the_room(
    server: Server, alice: Client, worker_conninfo: str
) -> None:
    room_id = await a_room(alice)
    await overwrite(server, await send(alice, room_id, "newest"), HOSTILE["null"])

    async with running(worker_conninfo) as restarted:
        again = replace(alice, base_url=restarted.base_url, session=restarted.anonymous.session)
        await send(again, room_id, "after")
        assert bodies(await history(again, room_id)) == ["after"]


async def copy(server: Server, event_id: str, count: int, flags: int) -> None:
    """Many copies of an event, on positions from 1,000,001 that nobody else uses, and one more that is shown."""
    async with server.application.database.transaction() as tx:
        await tx.execute(
            "insert into events (position, origin_server_ts, room, line, version, trunk_version, type, sender,"
            " notify_total, highlight_total, flags, event_id, json)"
            " select 1000000 + n, 1, room, line, version, trunk_version, type, sender, notify_total, highlight_total,"
            " case when n > %s then 0 else %s end, event_id || n, json from events, generate_series(1, %s) as n"
            " where event_id = %s",
            (count, flags, count + 1, event_id),
        )


async def test_a_state_entry_that_points_to_another_event_is_none(server: Server, alice: Client) -> None:
    room_id = await a_room(alice, name="first")
    room = f"/v3/rooms/{quote(room_id)}"
    event_id = (await alice.get(f"{room}/state/m.room.name", format="event")).body["event_id"]
    await overwrite(server, event_id, changed(type="m.room.power_levels", state_key=""))

    assert (await alice.get(f"{room}/state/m.room.name")).status == 404
    state = (await alice.get(f"{room}/state")).body
    assert [e["content"] for e in state if e["type"] == "m.room.power_levels"] != [{"body": "hostile"}] * 2
    assert len([e for e in state if e["type"] == "m.room.power_levels"]) == 1


async def test_much_that_is_hidden_is_skipped_at_once_and_without_loss(
    server: Server, alice: Client, bob: Client
) -> None:
    room_id = await a_room(alice, visibility="joined")
    for visibility in ("world_readable", "joined", "shared", "invited", "joined"):
        await send(alice, room_id, f"before {visibility}")
        await set_visibility(alice, room_id, visibility)
    await act(alice, "invite", room_id, bob)
    await join(bob, room_id)
    await send(alice, room_id, "during")
    await leave(bob, room_id)
    hidden = await send(alice, room_id, "hidden")
    await act(alice, "ban", room_id, bob)
    everything = await history(bob, room_id, limit=100)
    await copy(server, hidden, 5000, 0)

    first = await page(bob, room_id, from_="t2000000", limit=100)

    assert [event["content"].get("membership") for event in everything[:2]] == ["ban", "leave"]
    assert bodies(everything) == ["during", "before invited", "before joined"]
    assert [event["event_id"] for event in first["chunk"]] == [event["event_id"] for event in everything]
    assert "end" not in first
    for limit in (1, 3):
        slow = await history(bob, room_id, from_="t2000000", limit=limit)
        assert [event["event_id"] for event in slow] == [event["event_id"] for event in everything]
    forwards = await history(bob, room_id, dir="f", limit=2)
    assert [event["event_id"] for event in forwards] == [event["event_id"] for event in everything[::-1]]


async def test_a_rare_match_is_found_far_away(server: Server, alice: Client) -> None:
    room_id = await a_room(alice)
    await send(alice, room_id, "picture", url="mxc://hearth.test/a")
    await copy(server, await send(alice, room_id, "text"), 1500, 0)

    found = await page(alice, room_id, from_="t2000000", filter='{"contains_url": true}', limit=1)
    texts = await history(alice, room_id, from_="t2000000", filter='{"types": ["m.room.mess*"]}', limit=700)

    assert bodies(found["chunk"]) == ["picture"]
    assert len({event["event_id"] for event in texts}) == len(texts) == 1503


async def test_what_ends_one_look_does_not_begin_the_next(server: Server, alice: Client) -> None:
    room_id = await a_room(alice)
    source = await send(alice, room_id, "text")
    await send(alice, room_id, "picture", url="mxc://hearth.test/a")
    await copy(server, source, 198, 0)  # 199 of them: the picture is the 200th that is looked at

    for limit in (1, 5, 50):
        answer = await history(alice, room_id, from_="t2000000", filter='{"contains_url": true}', limit=limit)
        assert bodies(answer) == ["picture"]


async def test_pages_of_rejected_events_do_not_end_pagination(server: Server, alice: Client) -> None:
    room_id = await a_room(alice)
    await send(alice, room_id, "before")
    await copy(server, await send(alice, room_id, "rejected"), 5000, 1)

    chunks: list[Any] = []
    answer = await page(alice, room_id, from_="t2000000", limit=50)
    while "end" in answer:
        chunks.append(bodies(answer["chunk"]))
        answer = await page(alice, room_id, from_=answer["end"], limit=50)
    chunks.append(bodies(answer["chunk"]))

    assert chunks[0] == ["rejected"]
    assert [body for chunk in chunks for body in chunk] == ["rejected", "rejected", "before"]
    assert 3 <= len(chunks) <= 5  # one request looks at about 2,000 events
    rare = await page(alice, room_id, from_="t2000000", filter='{"types": ["m.room.create"]}')
    assert rare["chunk"] == []
    assert len(await history(alice, room_id, from_="t2000000", filter='{"types": ["m.room.create"]}')) == 1
