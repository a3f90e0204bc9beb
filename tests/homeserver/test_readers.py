"""Every endpoint that reads rooms, with every kind of reader, under every history visibility."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.client import Answer, Client, Server, quote
from tests.homeserver.rooms import a_room, act, join, leave, set_state
from tests.rooms import send

VISIBILITIES = ("world_readable", "shared", "invited", "joined")
UNKNOWN_ROOM = "!there-is-no-such-room:hearth.test"
FORMER = ("left", "banned", "kicked, then banned", "left, then invited", "left, invited, declined")
OUTSIDERS = ("never joined", "guest", "invited", "invited, declined", "banned unseen", "forgot")


@dataclass
class Story:
    """A room in which a reader was (or not) while something was said, and not when more was said."""

    room_id: str
    early: str
    during: str
    late: str
    latecomer: str


async def tell(owner: Client, reader: Client, kind: str, visibility: str, latecomer: Client) -> Story:
    """The reader comes after `early`, and goes before `late`, unless they stay or never come."""
    room_id = await a_room(owner, visibility=visibility, name="name-early")
    early = await send(owner, room_id, "said-early")
    if kind in (*FORMER, "joined", "forgot"):
        await join(reader, room_id)
    during = await send(owner, room_id, "said-during")
    await _go(owner, reader, kind, room_id)
    await set_state(owner, room_id, "m.room.name", {"name": "name-late"})
    await join(latecomer, room_id)
    late = await send(owner, room_id, "said-late")
    if kind in ("left, then invited", "left, invited, declined"):
        await act(owner, "invite", room_id, reader)
    if kind == "left, invited, declined":
        await leave(reader, room_id)
    if kind == "kicked, then banned":
        await act(owner, "ban", room_id, reader)
    return Story(room_id, early, during, late, latecomer.user_id)


async def _go(owner: Client, reader: Client, kind: str, room_id: str) -> None:
    if kind.startswith("left") or kind == "forgot":
        await leave(reader, room_id)
    if kind.startswith("banned"):
        await act(owner, "ban", room_id, reader)
    if kind.startswith("kicked"):
        await act(owner, "kick", room_id, reader)
    if kind.startswith("invited"):
        await act(owner, "invite", room_id, reader)
    if kind == "invited, declined":
        await leave(reader, room_id)
    if kind == "forgot":
        await reader.ok("POST", f"/v3/rooms/{quote(room_id)}/forget", {})


def endpoints(room_id: str, story: Story) -> dict[str, str]:
    """What to read of a room, by a name."""
    room = f"/v3/rooms/{quote(room_id)}"
    paths = {
        "messages b": f"{room}/messages?dir=b&limit=100",
        "messages f": f"{room}/messages?dir=f&limit=100",
        "messages lazy": f"{room}/messages?dir=b&limit=100&filter=%7B%22lazy_load_members%22%3Atrue%7D",
        "state": f"{room}/state",
        "name": f"{room}/state/m.room.name",
        "name event": f"{room}/state/m.room.name/?format=event",
        "members": f"{room}/members",
        "members at the end": f"{room}/members?at=t999999999",
        "joined members": f"{room}/joined_members",
        "initialSync": f"{room}/initialSync",
        "events": f"/v3/events?room_id={quote(room_id)}&from=t0&timeout=0",
        "timestamp b": f"/v1/rooms/{quote(room_id)}/timestamp_to_event?dir=b&ts=99999999999999",
        "timestamp f": f"/v1/rooms/{quote(room_id)}/timestamp_to_event?dir=f&ts=0",
    }
    for name, event_id in (("early", story.early), ("during", story.during), ("late", story.late)):
        paths[f"event {name}"] = f"{room}/event/{quote(event_id)}"
        paths[f"context {name}"] = f"{room}/context/{quote(event_id)}?limit=100"
    return paths


async def read_all(reader: Client, story: Story) -> dict[str, Answer]:
    """The answers of all endpoints."""
    return {name: await reader.get(path) for name, path in endpoints(story.room_id, story).items()}


def said(answers: dict[str, Answer]) -> set[str]:
    """What was learnt of what was said, over all answers."""
    text = json.dumps([answer.body for answer in answers.values()])
    return {word for word in ("early", "during", "late") if f"said-{word}" in text}


def statuses(answers: dict[str, Answer]) -> dict[str, int]:
    return {name: answer.status for name, answer in answers.items()}


async def a_reader(server: Server, kind: str) -> Client:
    if kind == "guest":
        return server.anonymous.logged_in(
            await server.anonymous.ok("POST", "/v3/register", {}, params={"kind": "guest"})
        )
    return await server.register("reader")


@pytest.mark.parametrize("visibility", VISIBILITIES)
async def test_a_member_reads_what_the_visibility_allows(
    server: Server, alice: Client, bob: Client, visibility: str
) -> None:
    reader = await a_reader(server, "joined")
    story = await tell(alice, reader, "joined", visibility, bob)

    answers = await read_all(reader, story)

    sees_early = visibility in ("shared", "world_readable")
    assert said(answers) == ({"early", "during", "late"} if sees_early else {"during", "late"})
    hidden = set() if sees_early else {"event early", "context early"}
    assert {name for name, answer in answers.items() if answer.status != 200} == hidden
    assert all(answers[name].body["errcode"] == "M_NOT_FOUND" for name in hidden)
    assert answers["name"].body == {"name": "name-late"}
    assert answers["name event"].body["content"] == {"name": "name-late"}
    assert story.latecomer in answers["joined members"].body["joined"]
    first = (await reader.get(f"/v3/rooms/{quote(story.room_id)}/messages", dir="f", limit=1)).body["chunk"][0]
    assert answers["timestamp f"].body["event_id"] == first["event_id"]
    assert answers["timestamp b"].body["event_id"] == story.late


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("kind", FORMER)
async def test_a_former_member_reads_up_to_their_leave(
    server: Server, alice: Client, bob: Client, kind: str, visibility: str
) -> None:
    reader = await a_reader(server, kind)
    story = await tell(alice, reader, kind, visibility, bob)

    answers = await read_all(reader, story)

    expected = {
        "world_readable": {"early", "during", "late"},
        "shared": {"early", "during"},
        "invited": {"during"},
        "joined": {"during"},
    }[visibility]
    assert said(answers) == expected
    refused = {f"{what} {word}" for what in ("event", "context") for word in {"early", "during", "late"} - expected}
    assert {name for name, answer in answers.items() if answer.status != 200} == {"joined members", *refused}
    assert answers["joined members"].body["errcode"] == "M_FORBIDDEN"
    assert all(answers[name].body["errcode"] == "M_NOT_FOUND" for name in refused)
    # the state is that of the leave, wherever it is shown without an event that is later
    own = {"state", "name", "name event", "members", "members at the end", "joined members"}
    if visibility != "world_readable":
        own = set(answers)
    for name in own:
        text = json.dumps(answers[name].body)
        assert "name-late" not in text, name
        assert story.latecomer not in text, name
    members = {event["state_key"]: event["content"]["membership"] for event in answers["members"].body["chunk"]}
    assert members[reader.user_id] == ("ban" if kind == "banned" else "leave")


@pytest.mark.parametrize("visibility", VISIBILITIES[1:])
@pytest.mark.parametrize("kind", OUTSIDERS)
async def test_an_outsider_learns_nothing_not_even_that_the_room_is(
    server: Server, alice: Client, bob: Client, kind: str, visibility: str
) -> None:
    reader = await a_reader(server, kind)
    story = await tell(alice, reader, "banned" if kind == "banned unseen" else kind, visibility, bob)
    if kind == "banned unseen":
        reader = await a_reader(server, kind)
        await act(alice, "ban", story.room_id, reader)

    answers = await read_all(reader, story)

    for name, answer in answers.items():
        assert answer.body["errcode"] in ("M_FORBIDDEN", "M_NOT_FOUND", "M_GUEST_ACCESS_FORBIDDEN"), name
        assert answer.status == (404 if name.startswith("event ") else 403), name
        unknown = await reader.get(endpoints(UNKNOWN_ROOM, story)[name])
        assert (answer.status, answer.body) == (unknown.status, unknown.body), name
    for event_id in (story.early, story.during, story.late):
        assert (await reader.get(f"/v3/events/{quote(event_id)}")).status == 404


@pytest.mark.parametrize("kind", OUTSIDERS)
async def test_everybody_looks_into_a_world_readable_room(
    server: Server, alice: Client, bob: Client, kind: str
) -> None:
    reader = await a_reader(server, kind)
    story = await tell(alice, reader, kind, "world_readable", bob)

    answers = await read_all(reader, story)

    assert said(answers) == {"early", "during", "late"}
    refused = {"joined members", *(("timestamp b", "timestamp f") if kind == "guest" else ())}
    assert {name for name, answer in answers.items() if answer.status != 200} == refused
    assert answers["name"].body == {"name": "name-late"}
    assert (await reader.get(f"/v3/events/{quote(story.late)}")).body["event_id"] == story.late


async def test_world_readable_times_stay_readable_only_while_the_room_may_be_looked_into(
    server: Server, alice: Client, bob: Client
) -> None:
    reader = await a_reader(server, "never joined")
    story = await tell(alice, reader, "never joined", "world_readable", bob)
    await set_state(alice, story.room_id, "m.room.history_visibility", {"history_visibility": "shared"})
    assert {answer.status for answer in (await read_all(reader, story)).values()} == {403, 404}

    await set_state(alice, story.room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    hidden = await send(alice, story.room_id, "seen again")
    assert (await reader.get(f"/v3/rooms/{quote(story.room_id)}/event/{quote(hidden)}")).status == 200


@pytest.mark.parametrize("path", sorted(endpoints("!r:hearth.test", Story("", "$a", "$b", "$c", "")).values()))
async def test_nobody_reads_without_a_token(server: Server, path: str) -> None:
    answer: Any = await server.anonymous.get(path)
    assert (answer.status, answer.body["errcode"]) == (401, "M_MISSING_TOKEN")
