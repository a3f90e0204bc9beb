"""Reading rooms over HTTP: pages, single events, context, timestamps."""

import json
from typing import Any

import pytest

from federation.rooms import pages
from storage.database import Tx
from tests.client import Client, Server, quote
from tests.homeserver.rooms import a_room, bodies, history, join, leave, page, redact, set_state, set_visibility
from tests.queries import is_answering
from tests.rooms import send, send_event

ALL = [f"m{number}" for number in range(9)]


async def a_talk(owner: Client, *joined: Client) -> tuple[str, list[str]]:
    """A room with nine messages, by turns of all users."""
    room_id = await a_room(owner, *joined)
    speakers = [owner, *joined]
    return room_id, [await send(speakers[n % len(speakers)], room_id, text) for n, text in enumerate(ALL)]


# --- pages


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_join_to_the_whole_in_both_directions(alice: Client, limit: int) -> None:
    room_id, _ = await a_talk(alice)

    backwards = await history(alice, room_id, dir="b", limit=limit)
    forwards = await history(alice, room_id, dir="f", limit=limit)

    assert bodies(backwards) == ALL[::-1]
    assert [event["event_id"] for event in forwards] == [event["event_id"] for event in reversed(backwards)]
    assert forwards[0]["type"] == "m.room.create"


async def test_a_page_ends_at_its_limit_and_says_where_to_go_on(alice: Client) -> None:
    room_id, _ = await a_talk(alice)

    first = await page(alice, room_id, limit=4)
    second = await page(alice, room_id, limit=2, from_=first["end"])

    assert bodies(first["chunk"]) == ["m8", "m7", "m6", "m5"]
    assert bodies(second["chunk"]) == ["m4", "m3"]
    assert second["start"] == first["end"]
    assert "state" not in first


async def test_a_page_that_takes_exactly_the_rest_has_no_end(alice: Client) -> None:
    room_id, _ = await a_talk(alice)
    whole = await history(alice, room_id)

    assert "end" not in await page(alice, room_id, limit=len(whole))
    assert "end" in await page(alice, room_id, limit=len(whole) - 1)


async def test_a_page_stops_at_to(alice: Client) -> None:
    room_id, _ = await a_talk(alice)
    first = await page(alice, room_id, limit=4)

    assert bodies((await page(alice, room_id, limit=100, to=first["end"]))["chunk"]) == ["m8", "m7", "m6", "m5"]
    forwards = await page(alice, room_id, dir="f", limit=100, from_=first["end"])
    assert bodies(forwards["chunk"]) == ["m5", "m6", "m7", "m8"]
    assert "end" not in forwards


async def test_the_start_of_a_first_page_leads_the_other_way(alice: Client) -> None:
    room_id, _ = await a_talk(alice)
    start = (await page(alice, room_id, limit=1))["start"]
    await send(alice, room_id, "later")

    assert bodies((await page(alice, room_id, dir="f", from_=start))["chunk"]) == ["later"]


async def test_no_limit_means_ten_and_zero_means_none(alice: Client) -> None:
    room_id, _ = await a_talk(alice)

    assert len((await page(alice, room_id))["chunk"]) == 10
    nothing = await page(alice, room_id, limit=0)
    assert nothing["chunk"] == []
    assert bodies((await page(alice, room_id, limit=1, from_=nothing["end"]))["chunk"]) == ["m8"]


@pytest.mark.parametrize(
    ("query", "errcode"),
    [
        ({}, "M_MISSING_PARAM"),
        ({"dir": "x"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "-1"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "ten"}, "M_INVALID_PARAM"),
        ({"dir": "b", "limit": "1" * 30}, "M_INVALID_PARAM"),
        ({"dir": "b", "from_": "nonsense"}, "M_INVALID_PARAM"),
        ({"dir": "b", "from_": "t1t2"}, "M_INVALID_PARAM"),
        ({"dir": "b", "from_": "t" + "9" * 40}, "M_INVALID_PARAM"),
        ({"dir": "b", "from_": "t'; drop table events"}, "M_INVALID_PARAM"),
        ({"dir": "b", "to": "s1"}, "M_INVALID_PARAM"),
        ({"dir": "b", "filter": "{"}, "M_NOT_JSON"),
        ({"dir": "b", "filter": "17"}, "M_BAD_JSON"),
        ({"dir": "b", "filter": "5"}, "M_BAD_JSON"),
        ({"dir": "b", "filter": '{"types": "m.room.message"}'}, "M_BAD_JSON"),
        ({"dir": "b", "filter": '{"senders": [1]}'}, "M_BAD_JSON"),
        ({"dir": "b", "filter": '{"contains_url": "yes"}'}, "M_BAD_JSON"),
    ],
)
async def test_bad_parameters_are_refused(alice: Client, query: dict[str, str], errcode: str) -> None:
    room_id = await a_room(alice)

    answer = await alice.get(f"/v3/rooms/{quote(room_id)}/messages", **query)

    assert (answer.status, answer.body["errcode"]) == (400, errcode)


async def test_tokens_of_any_place_show_only_this_room(alice: Client) -> None:
    room_id = await a_room(alice)
    await send(alice, await a_room(alice), "elsewhere")

    assert bodies(await history(alice, room_id, from_=f"t{10**17}")) == []
    assert bodies(await history(alice, room_id, dir="f", from_=f"t-{10**17}")) == []


async def test_tokens_of_syncs_are_places_in_rooms(alice: Client, bob: Client) -> None:
    room_id, _ = await a_talk(alice, bob)
    first = (await alice.get("/v3/sync", filter='{"room":{"timeline":{"limit":3}}}')).body
    await send(bob, room_id, "later")

    timeline = first["rooms"]["join"][room_id]["timeline"]
    assert bodies(timeline["events"]) == ["m6", "m7", "m8"]
    older = await page(alice, room_id, limit=2, from_=timeline["prev_batch"])
    assert bodies(older["chunk"]) == ["m5", "m4"]
    newer = await page(alice, room_id, dir="f", from_=first["next_batch"])
    assert bodies(newer["chunk"]) == ["later"]
    between = await page(alice, room_id, from_=first["next_batch"], to=timeline["prev_batch"])
    assert bodies(between["chunk"]) == ["m8", "m7", "m6"]
    assert "end" not in between


# --- filters


async def test_filters_by_type_sender_and_url(alice: Client, bob: Client) -> None:
    room_id, _ = await a_talk(alice, bob)
    await send(bob, room_id, "picture", url="mxc://a/b")
    await send_event(bob, room_id, "m.reaction", {"body": "reaction"})

    async def filtered(**wanted: Any) -> list[str]:
        events = await history(alice, room_id, filter=json.dumps(wanted), limit=3)
        return [event["content"].get("body", event["type"]) for event in events]

    assert await filtered(types=["m.room.message"], not_senders=[alice.user_id]) == ["picture", "m7", "m5", "m3", "m1"]
    assert await filtered(types=["m.room.message"], senders=[alice.user_id]) == ["m8", "m6", "m4", "m2", "m0"]
    assert await filtered(types=["m.rea*"]) == ["reaction"]
    assert await filtered(types=["m.reaction", "m.room.create"]) == ["reaction", "m.room.create"]
    assert await filtered(not_types=["m.room.*"]) == ["reaction"]
    assert await filtered(contains_url=True) == ["picture"]
    assert await filtered(types=["org.example.unheard-of"]) == []
    assert await filtered(senders=["@nobody:elsewhere.test"]) == []
    assert await filtered(rooms=["!other:hearth.test"]) == []
    assert await filtered(not_rooms=[room_id]) == []
    assert await filtered(types=[]) == []
    assert len(await filtered(rooms=[room_id], types=["m.room.message"])) == 10


async def test_the_filter_may_set_the_limit(alice: Client) -> None:
    room_id, _ = await a_talk(alice)

    assert bodies((await page(alice, room_id, filter='{"limit": 2}'))["chunk"]) == ["m8", "m7"]


async def test_lazy_loading_adds_the_members_who_sent_the_page(alice: Client, bob: Client, server: Server) -> None:
    carol = await server.register("carol")
    room_id = await a_room(alice, bob, carol)
    await send(alice, room_id, "one")
    await send(bob, room_id, "two")
    await send(bob, room_id, "three")
    lazy = '{"lazy_load_members": true}'

    newest = await page(alice, room_id, limit=2, filter=lazy)
    older = await page(alice, room_id, limit=1, filter=lazy, from_=newest["end"])

    assert [(e["type"], e["state_key"]) for e in newest["state"]] == [("m.room.member", bob.user_id)]
    assert [e["state_key"] for e in older["state"]] == [alice.user_id]


@pytest.mark.parametrize("direction", ["b", "f"])
async def test_lazy_loading_knows_who_came_within_the_page(alice: Client, bob: Client, direction: str) -> None:
    room_id = await a_room(alice)
    await send(alice, room_id, "one")
    await join(bob, room_id)
    await send(bob, room_id, "two")

    whole = await page(alice, room_id, dir=direction, limit=100, filter='{"lazy_load_members": true}')

    assert {event["state_key"] for event in whole["state"]} == {alice.user_id, bob.user_id}


async def test_messages_of_ignored_users_are_left_out(alice: Client, bob: Client) -> None:
    room_id, ids = await a_talk(alice, bob)
    path = f"/v3/user/{quote(alice.user_id)}/account_data/m.ignored_user_list"
    await alice.ok("PUT", path, {"ignored_users": {bob.user_id: {}}})

    events = await history(alice, room_id, limit=2)

    assert bodies(events) == ["m8", "m6", "m4", "m2", "m0"]
    assert any(event["type"] == "m.room.member" and event["sender"] == bob.user_id for event in events)
    context = (await alice.get(f"/v3/rooms/{quote(room_id)}/context/{quote(ids[4])}", limit=2)).body
    assert bodies(context["events_before"] + context["events_after"]) == ["m2", "m6"]


# --- what members may see


async def test_history_before_the_join_follows_the_visibility_of_its_time(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, visibility="shared")
    await send(alice, room_id, "shared")
    await set_visibility(alice, room_id, "joined")
    await send(alice, room_id, "for members")
    await set_visibility(alice, room_id, "world_readable")
    await send(alice, room_id, "for everybody")
    await set_visibility(alice, room_id, "invited")
    await send(alice, room_id, "for the invited")
    await alice.ok("POST", f"/v3/rooms/{quote(room_id)}/invite", {"user_id": bob.user_id})
    await send(alice, room_id, "after the invite")
    await set_visibility(alice, room_id, "joined")
    await send(alice, room_id, "before the join")
    await join(bob, room_id)
    await send(alice, room_id, "after the join")

    expected = ["shared", "for everybody", "after the invite", "after the join"]
    for limit in (1, 2, 3, 50):
        assert bodies(await history(bob, room_id, dir="f", limit=limit)) == expected
        assert bodies(await history(bob, room_id, dir="b", limit=limit)) == expected[::-1]


async def test_who_left_sees_up_to_the_leave_and_after_coming_back_all_that_is_shared(
    alice: Client, bob: Client
) -> None:
    room_id = await a_room(alice, bob)
    await send(alice, room_id, "before")
    await leave(bob, room_id)
    await send(alice, room_id, "after")

    events = await history(bob, room_id)
    assert bodies(events) == ["before"]
    assert (events[0]["type"], events[0]["content"]["membership"]) == ("m.room.member", "leave")
    await join(bob, room_id)
    assert bodies(await history(bob, room_id)) == ["after", "before"]


async def test_hidden_stretches_do_not_end_pagination(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, visibility="shared")
    await send(alice, room_id, "oldest")
    await set_visibility(alice, room_id, "joined")
    for number in range(30):
        await send(alice, room_id, f"hidden {number}")
    await join(bob, room_id)

    first = await page(bob, room_id, limit=1)
    assert first["chunk"][0]["state_key"] == bob.user_id
    rest = await history(bob, room_id, limit=5, from_=first["end"])
    assert bodies(rest) == ["oldest"]
    assert rest[-1]["type"] == "m.room.create"


async def test_the_membership_at_each_event_is_told(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice)
    await send(alice, room_id, "before")
    await join(bob, room_id)
    await send(alice, room_id, "during")

    events = await history(bob, room_id)

    told = {e["content"].get("body"): e["unsigned"]["membership"] for e in events if e["type"] == "m.room.message"}
    assert told == {"before": "leave", "during": "join"}
    assert events[1]["unsigned"]["membership"] == "join"  # the join itself


# --- unsigned


async def test_only_the_sending_device_is_told_the_transaction(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    path = f"/v3/rooms/{quote(room_id)}/send/m.room.message/my-own-txn"
    await alice.ok("PUT", path, {"msgtype": "m.text", "body": "hi"})
    phone = await alice.login()

    async def transaction(client: Client) -> Any:
        return (await page(client, room_id, limit=1))["chunk"][0]["unsigned"].get("transaction_id")

    assert await transaction(alice) == "my-own-txn"
    assert await transaction(phone) is None
    assert await transaction(bob) is None


async def test_state_says_what_it_replaced(alice: Client) -> None:
    room_id = await a_room(alice, name="old")
    await set_state(alice, room_id, "m.room.name", {"name": "new"})

    newer, older = [event for event in await history(alice, room_id) if event["type"] == "m.room.name"]

    assert newer["unsigned"]["prev_content"] == {"name": "old"}
    assert newer["unsigned"]["replaces_state"] == older["event_id"]
    assert "prev_content" not in older["unsigned"]
    assert isinstance(newer["unsigned"]["age"], int)


async def test_a_redacted_message_is_empty_and_says_why(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "secret")
    redaction = await redact(alice, room_id, event_id)

    event = (await bob.get(f"/v3/rooms/{quote(room_id)}/event/{quote(event_id)}")).body

    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == redaction
    assert "secret" not in json.dumps(await history(bob, room_id))


# --- one event, and what is around it


async def test_an_event_by_its_id(alice: Client) -> None:
    room_id, ids = await a_talk(alice)
    elsewhere = await a_room(alice)

    by_room = (await alice.get(f"/v3/rooms/{quote(room_id)}/event/{quote(ids[3])}")).body
    by_id = (await alice.get(f"/v3/events/{quote(ids[3])}")).body

    assert (by_room["content"]["body"], by_room["room_id"]) == ("m3", room_id)
    assert by_id["event_id"] == ids[3]
    for path in (f"rooms/{quote(elsewhere)}/event/{quote(ids[3])}", f"rooms/{quote(room_id)}/event/$none", "events/$x"):
        answer = await alice.get(f"/v3/{path}")
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_context_splits_its_limit_around_the_event(alice: Client) -> None:
    room_id, ids = await a_talk(alice)
    path = f"/v3/rooms/{quote(room_id)}/context/{quote(ids[4])}"

    context = (await alice.get(path, limit=4)).body

    assert context["event"]["event_id"] == ids[4]
    assert bodies(context["events_before"]) == ["m3", "m2"]
    assert bodies(context["events_after"]) == ["m5", "m6"]
    assert bodies((await page(alice, room_id, limit=1, from_=context["start"]))["chunk"]) == ["m1"]
    assert bodies((await page(alice, room_id, dir="f", limit=1, from_=context["end"]))["chunk"]) == ["m7"]
    alone = (await alice.get(path, limit=0)).body
    assert (alone["events_before"], alone["events_after"]) == ([], [])
    assert alone["event"]["event_id"] == ids[4]


async def test_context_has_the_state_of_its_last_event(alice: Client) -> None:
    room_id = await a_room(alice, name="first")
    event_id = await send(alice, room_id, "here")
    await set_state(alice, room_id, "m.room.name", {"name": "second"})
    await send(alice, room_id, "there")
    await set_state(alice, room_id, "m.room.name", {"name": "third"})

    async def name(limit: int) -> str:
        path = f"/v3/rooms/{quote(room_id)}/context/{quote(event_id)}"
        state = (await alice.get(path, limit=limit)).body["state"]
        return str(next(e["content"]["name"] for e in state if e["type"] == "m.room.name"))

    assert [await name(limit) for limit in (0, 4, 100)] == ["first", "second", "third"]


async def test_lazy_context_has_only_the_members_who_speak(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, bob)
    event_id = await send(alice, room_id, "alone")

    path = f"/v3/rooms/{quote(room_id)}/context/{quote(event_id)}"
    lazy = (await alice.get(path, limit=0, filter='{"lazy_load_members": true}')).body["state"]
    whole = (await alice.get(path, limit=0)).body["state"]
    names = (await alice.get(path, limit=0, filter='{"types": ["m.room.create"]}')).body["state"]

    assert [e["state_key"] for e in lazy if e["type"] == "m.room.member"] == [alice.user_id]
    assert {e["state_key"] for e in whole if e["type"] == "m.room.member"} == {alice.user_id, bob.user_id}
    assert len(lazy) == len(whole) - 1
    assert [e["type"] for e in names] == ["m.room.create"]


async def test_the_event_nearest_to_a_time(alice: Client, bob: Client) -> None:
    room_id, ids = await a_talk(alice)
    event = (await alice.get(f"/v3/rooms/{quote(room_id)}/event/{quote(ids[8])}")).body
    path, ts = f"/v1/rooms/{quote(room_id)}/timestamp_to_event", event["origin_server_ts"]

    at = (await alice.get(path, ts=ts, dir="b")).body
    assert (at["event_id"], at["origin_server_ts"]) == (ids[8], ts)
    assert (await alice.get(path, ts=ts + 10**6, dir="b")).body["event_id"] == ids[8]
    create = (await alice.get(path, ts=0, dir="f")).body["event_id"]
    assert create == (await page(alice, room_id, dir="f", limit=1))["chunk"][0]["event_id"]
    for query in ({"ts": ts + 10**6, "dir": "f"}, {"ts": 0, "dir": "b"}):
        answer = await alice.get(path, **query)
        assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")
    for bad in ({"dir": "f"}, {"ts": "soon", "dir": "f"}, {"ts": ts}, {"ts": ts, "dir": "up"}):
        assert (await alice.get(path, **bad)).status == 400


async def test_a_time_before_the_join_finds_only_what_may_be_seen(alice: Client, bob: Client) -> None:
    room_id = await a_room(alice, visibility="joined")
    first = await send(alice, room_id, "hidden")
    ts = (await alice.get(f"/v3/rooms/{quote(room_id)}/event/{quote(first)}")).body["origin_server_ts"]
    await join(bob, room_id)

    found = (await bob.get(f"/v1/rooms/{quote(room_id)}/timestamp_to_event", ts=ts, dir="f")).body["event_id"]

    event = (await bob.get(f"/v3/rooms/{quote(room_id)}/event/{quote(found)}")).body
    assert event.get("state_key") == bob.user_id


async def test_filters_by_what_relates_to_an_event(alice: Client, bob: Client) -> None:
    room_id, ids = await a_talk(alice, bob)
    for sender, event_id, rel_type in ((bob, ids[1], "m.annotation"), (alice, ids[2], "m.reference")):
        relation = {"rel_type": rel_type, "event_id": event_id, "key": "+1"}
        await send_event(sender, room_id, "m.reaction", {"body": "related", "m.relates_to": relation})

    async def filtered(**wanted: Any) -> list[str]:
        return bodies(await history(alice, room_id, filter=json.dumps(wanted)))

    assert await filtered(related_by_senders=[bob.user_id]) == ["m1"]
    assert await filtered(related_by_rel_types=["m.reference"]) == ["m2"]
    assert await filtered(related_by_rel_types=["m.reference", "m.annotation"]) == ["m2", "m1"]
    assert await filtered(related_by_senders=[bob.user_id], related_by_rel_types=["m.reference"]) == []
    assert await filtered(related_by_rel_types=["org.unheard-of"]) == []


@pytest.mark.one_process("its queries are counted here")
async def test_a_page_costs_the_same_few_queries_whatever_its_length(
    alice: Client, bob: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = await a_room(alice, bob)
    for number in range(60):
        event_id = await send(alice if number % 2 else bob, room_id, f"m{number}")
        if number % 10 == 0:
            await set_state(alice, room_id, "m.room.name", {"name": f"n{number}"})
            await redact(alice, room_id, event_id)
    queries: list[str] = []
    fetch = Tx.fetch

    async def counted(tx: Tx, sql: str, params: Any = ()) -> Any:
        if is_answering():
            queries.append(sql)
        return await fetch(tx, sql, params)

    monkeypatch.setattr(Tx, "fetch", counted)

    async def cost(limit: int) -> int:
        queries.clear()
        answer = await page(alice, room_id, limit=limit, filter='{"lazy_load_members": true}')
        assert len(answer["chunk"]) == limit
        return len(queries)

    await cost(1)  # whom the reader ignores is remembered from then on
    assert 0 < await cost(60) == await cost(15) <= 10


@pytest.mark.one_process("its pages are shortened here")
@pytest.mark.parametrize("direction", ["b", "f"])
async def test_a_page_of_large_events_is_shorter(
    alice: Client, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 5_000)
    room_id = await a_room(alice)
    sent = [await send(alice, room_id, "x" * 2_000) for _ in range(7)]
    found: list[str] = []
    place: dict[str, str] = {}
    for _ in range(20):
        path, params = f"/v3/rooms/{quote(room_id)}/messages", {"dir": direction, "limit": "100", **place}
        answer = await alice.ok("GET", path, params=params)
        events = [event["event_id"] for event in answer["chunk"] if event["type"] == "m.room.message"]
        assert len(events) <= 3
        found += events
        if "end" not in answer:
            break
        place = {"from": answer["end"]}

    assert found == (sent if direction == "f" else sent[::-1])
