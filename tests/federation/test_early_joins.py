"""A large room is usable before its members are here: the join counts, and they follow."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from psycopg.conninfo import make_conninfo

from federation.protocol import canonical_json, event_format
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.types import EventID, JsonObject, RoomID
from federation.rooms import joining
from federation.rooms.incomplete_rooms import IncompleteRooms
from homeserver.app import KINDS
from storage import events, room_state, rooms
from storage.events import Flag
from storage.room_state import TRUNK
from storage.tail import Tail
from tests.client import Server, quote
from tests.clusters import TEMPLATE, create_database, drop_database
from tests.federation import servers
from tests.federation.authority import Authority
from tests.federation.lying_resident import LyingResident, resident, whole
from tests.federation.peer import path_of
from tests.federation.remote_room import push
from tests.federation.servers import federating, federating_on
from tests.federation.test_interrupted_joins import same, status_of
from tests.federation.test_joining import join, state_of, until_synced
from tests.homeserver.syncs import ids, joined, members, state, sync, timeline, token
from tests.rooms import send

MEMBERS = 300
FOUNDED = MEMBERS + 4
"""Events by which the room came to be."""
LAZY = {"room": {"state": {"lazy_load_members": True}}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not quick gives the members later."""
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.1)


class SlowResident(LyingResident):
    """It gives the whole state only when it may."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.may_give = asyncio.Event()
        self.add_members(MEMBERS)
        self.servers_in_room = [self.name]
        self.stream = self._slowly
        self.states = {"": {pdu.event_id for pdu in self.room.state.values()}}
        """Before its events; of what is not here as before the join."""
        self.length = len(self.room.events)
        """When our user came."""

    def routes(self, application: web.Application) -> None:
        super().routes(application)
        v1 = "/_matrix/federation/v1"
        application.router.add_get(v1 + "/event_auth/{room_id}/{event_id}", self._event_auth)
        application.router.add_get(v1 + "/event/{event_id}", self._event)
        application.router.add_post(v1 + "/get_missing_events/{room_id}", self._missing_events)

    async def _event_auth(self, _request: web.Request) -> web.Response:
        """What authorises any of them, all the same."""
        return web.json_response({"auth_chain": [pdu.json for pdu in self.room.events if pdu.state_key is not None]})

    async def _backfill(self, _request: web.Request) -> web.Response:
        """What was there before our user came, but for the first members."""
        pdus = [pdu.json for pdu in reversed(self.room.events[FOUNDED : self.length])]
        return web.json_response({"origin": self.name, "origin_server_ts": 1, "pdus": pdus})

    async def _event(self, request: web.Request) -> web.Response:
        pdus = [pdu.json for pdu in self.room.events if pdu.event_id == request.match_info["event_id"]]
        return web.json_response({"origin": self.name, "origin_server_ts": 1, "pdus": pdus})

    async def _missing_events(self, _request: web.Request) -> web.Response:
        return web.json_response({"events": []})

    async def _state_ids(self, request: web.Request) -> web.Response:
        event_id = request.query["event_id"]
        self.asked.append(f"state_ids {event_id}")
        chain = [pdu.event_id for pdu in self.room.events[:FOUNDED] if pdu.state_key is not None]
        state = self.states.get(event_id, self.states[""])
        return web.json_response({"pdu_ids": sorted(state), "auth_chain_ids": chain})

    def say(self, name: str, body: str, prev: Sequence[VerifiedPDU] | None = None) -> VerifiedPDU:
        """One of its users says something."""
        content = {"msgtype": "m.text", "body": body}
        return self.room.add("m.room.message", self.user(name), content, prev_events=prev)

    def rename(self, name: str, prev: Sequence[VerifiedPDU] | None = None) -> VerifiedPDU:
        """One of its users has a new name."""
        content = {"membership": "join", "displayname": "M"}
        return self.room.add("m.room.member", self.user(name), content, self.user(name), prev_events=prev)

    @property
    def numbers(self) -> dict[EventID, int]:
        """Its events by their order."""
        return {pdu.event_id: number for number, pdu in enumerate(self.room.events)}

    def begin(self) -> None:
        """Our user may come now."""
        self.states[""] = {pdu.event_id for pdu in self.room.state.values()}
        self.length = len(self.room.events)

    async def _slowly(self, response: web.StreamResponse, body: bytes) -> None:
        if b"members_omitted" not in body:
            await response.write(body[: len(body) // 2])
            await self.may_give.wait()
            body = body[len(body) // 2 :]
        await whole(response, body)

    def join(self) -> VerifiedPDU:
        """Our user's join; what it sends from now on comes after it."""
        self.join_event = self.take(self.sent)
        return self.join_event

    def member(self, number: int) -> EventID:
        """How one of the members came in."""
        user_id = self.user(f"member{number}")
        return next(pdu.event_id for pdu in self.room.events if pdu.state_key == user_id)

    def take(self, event: JsonObject) -> VerifiedPDU:
        """An event that it was sent; what it sends from now on comes after it."""
        rules = self.room.rules
        event_id = event_format.parse(event, rules).event_id
        pdu = event_format.from_stored(canonical_json.encode(event), event_id, RoomID(self.room_id), rules)
        self.room.events.append(pdu)
        return pdu


@asynccontextmanager
async def slow(server: Server, authority: Authority) -> AsyncIterator[SlowResident]:
    peer = SlowResident(server, authority)
    await peer.trust()
    await peer.start()
    try:
        yield peer
    finally:
        peer.may_give.set()
        await peer.stop()


def members_of(other: LyingResident) -> set[str]:
    return {key[1] for key in other.room.state if key[0] == "m.room.member"}


async def test_a_user_is_in_the_room_before_its_members_are_here(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        lazy, plain = await token(bob, filter=LAZY), await token(bob)

        answer = await join(bob, other.room_id, other.name)

        assert answer.status == 200, answer.body
        joined_by = other.join()
        said = await send(bob, other.room_id, "hello")
        lazily = await sync(bob, lazy, filter=LAZY)
        assert ids(timeline(lazily, other.room_id)) == [joined_by.event_id, said]
        assert ("m.room.join_rules", "") in state(lazily, other.room_id)
        assert "summary" not in joined(lazily, other.room_id)
        assert joined(await sync(bob, plain), other.room_id) == {}
        (line,) = [line for line in await status_of(server) if "joins" in line]
        assert "the user is in the room, its members are to come" in line

        waiting = asyncio.create_task(state_of(bob, other.room_id))
        plainly = asyncio.create_task(sync(bob, (await sync(bob, plain))["next_batch"], timeout=20_000))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert not plainly.done()
        other.may_give.set()

        expected = {key: pdu.event_id for key, pdu in other.room.state.items()}
        assert await waiting == {**expected, ("m.room.member", bob.user_id): joined_by.event_id}
        assert ids(timeline(await plainly, other.room_id)) == [joined_by.event_id, said]
        for since, found in ((plain, {}), (lazily["next_batch"], LAZY)):
            now = await sync(bob, since, **({"filter": found} if found else {}))
            assert ids(timeline(now, other.room_id)) == [joined_by.event_id, said]
            assert joined(now, other.room_id)["summary"]["m.joined_member_count"] == MEMBERS + 2
            assert set(now["device_lists"]["changed"]) == members_of(other)
            assert len(members(state(now, other.room_id))) == (5 if found else MEMBERS + 1)  # the room has no name
        assert not [line for line in await status_of(server) if "joins" in line]


async def test_members_who_are_known_or_become_so_may_speak(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.join()
        since = await token(bob, filter=LAZY)

        told = await push(other, [other.say("eve", "welcome").json, other.say("member7", "hello").json])

        assert set(map(str, told["pdus"].values())) == {"{}"}
        now = await sync(bob, since, filter=LAZY)
        said = timeline(now, other.room_id)
        assert [event["content"]["body"] for event in said] == ["welcome", "hello"]
        assert members(state(now, other.room_id)) == {other.user("eve"), other.user("member7")}
        renamed = other.rename("member8")
        topic = other.room.add("m.room.topic", other.user("eve"), {"topic": "new"}, "")
        stranger = other.room.add("m.room.member", other.user("carl"), {"membership": "join"}, other.user("carl"))
        hidden = other.say("carl", "I am new")
        changed = (other.join_event, renamed, topic, stranger)
        replaced = other.member(8)
        other.states[hidden.event_id] = {*other.states[""], *(pdu.event_id for pdu in changed)} - {replaced}

        told = await push(other, [pdu.json for pdu in (renamed, topic, stranger, hidden)])

        assert {event_id for event_id, result in told["pdus"].items() if result} == {stranger.event_id, hidden.event_id}
        assert told["pdus"][stranger.event_id] == {"error": "The room is being joined"}
        other.may_give.set()
        found = await state_of(bob, other.room_id)
        assert found["m.room.topic", ""] == topic.event_id
        assert found["m.room.member", other.user("member8")] == renamed.event_id
        await until_synced(bob, other.room_id, hidden.event_id)
        found = await state_of(bob, other.room_id)
        assert found["m.room.member", other.user("carl")] == stranger.event_id
        assert len(members(found)) == MEMBERS + 3
        then = await sync(bob)
        assert joined(then, other.room_id)["summary"]["m.joined_member_count"] == MEMBERS + 3


async def test_what_needs_an_unknown_member_waits_for_them(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob, carol = await server.register("bob"), await server.register("carol")
        assert (await join(bob, other.room_id, other.name)).status == 200
        room = f"/v3/rooms/{quote(other.room_id)}"

        waiting = [
            asyncio.create_task(each)
            for each in (
                join(carol, other.room_id, other.name),
                bob.request("POST", f"{room}/kick", {"user_id": other.user("member1")}),
                bob.request("POST", f"{room}/invite", {"user_id": carol.user_id}),
                bob.get(f"{room}/members"),
                bob.get(f"{room}/joined_members"),
                bob.get(f"{room}/state/m.room.member/{quote(other.user('member3'))}"),
            )
        ]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        own = await bob.ok("GET", f"{room}/state/m.room.member/{quote(bob.user_id)}")
        assert own["membership"] == "join"
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.may_give.set()
        answers = await asyncio.gather(*waiting)

        assert [answer.status for answer in answers[:2]] == [200, 403]  # bob has no power
        assert answers[2].status in (200, 403)  # carol may be in by then
        assert len(answers[3].body["chunk"]) in (MEMBERS + 2, MEMBERS + 3)
        assert len(answers[4].body["joined"]) in (MEMBERS + 2, MEMBERS + 3)
        assert answers[5].body["displayname"] == "M 3"


async def test_servers_that_ask_about_the_room_are_told_to_ask_others(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        assert (await join(bob, other.room_id, other.name)).status == 200
        join_id = other.join().event_id
        questions = [
            path_of("/v1/state_ids/{}?event_id={}", other.room_id, join_id),
            path_of("/v1/state/{}?event_id={}", other.room_id, join_id),
            path_of("/v1/event_auth/{}/{}", other.room_id, join_id),
            path_of("/v1/backfill/{}?v={}&limit=5", other.room_id, join_id),
            path_of("/v1/event/{}", join_id),
            path_of("/v1/make_join/{}/{}?ver=11", other.room_id, other.user("carl")),
        ]

        early = [await other.request("GET", question) for question in questions]
        other.may_give.set()
        await state_of(bob, other.room_id)
        late = [await other.request("GET", question) for question in questions]

        assert [(answer.status, answer.body["errcode"]) for answer in early] == [(404, "M_NOT_FOUND")] * len(questions)
        assert [answer.status for answer in late] == [200] * len(questions)


async def test_nobody_waits_for_ever(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        assert (await join(bob, other.room_id, other.name)).status == 200
        server.application.incomplete.wait_seconds = 0.1

        answer = await bob.get(f"/v3/rooms/{quote(other.room_id)}/members")

        assert (answer.status, answer.body["errcode"]) == (503, "M_UNKNOWN")


async def test_the_servers_in_the_room_are_told_of_what_is_said(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with (
        federating(maintenance_conninfo, authority) as server,
        slow(server, authority) as other,
        resident(server, authority) as another,
    ):
        other.servers_in_room.append(another.name)
        bob = await server.register("bob")
        assert (await join(bob, other.room_id, other.name)).status == 200

        await send(bob, other.room_id, "hello")

        for peer in (other, another):
            await peer.until_messages(["hello"])


async def test_the_members_come_after_a_restart_from_any_server_in_the_room(
    maintenance_conninfo: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "RETRY_SECONDS", 0)
    database = "hearth_early_joins"
    create_database(maintenance_conninfo, database, TEMPLATE)
    conninfo = make_conninfo(maintenance_conninfo, dbname=database)
    try:
        async with federating_on(conninfo, authority, "127.0.0.1", {}) as first:
            bob = await first.register("bob")
            other, another = SlowResident(first, authority), LyingResident(first, authority)
            another.room = other.room
            other.servers_in_room.append(another.name)
            for peer in (other, another):
                await peer.trust()
                await peer.start()
            assert (await join(bob, other.room_id, other.name)).status == 200
            settings = same(first)
        other.stream, other.answer_state = whole, lambda _: None

        async with federating_on(conninfo, authority, "127.0.0.1", settings) as second:
            bob.base_url, bob.session = second.base_url, second.anonymous.session
            assert members(await state_of(bob, other.room_id)) == {*members_of(other), bob.user_id}
            assert another.asked == [f"state {other.join().event_id}"]
            told = joined(await sync(bob), other.room_id)
            assert told["summary"]["m.joined_member_count"] == MEMBERS + 2
        for peer in (other, another):
            await peer.stop()
    finally:
        drop_database(maintenance_conninfo, database)


def without_a_member(answer: JsonObject) -> JsonObject:
    return {name: part[:-1] if name in ("pdus", "state") else part for name, part in answer.items()}


@pytest.mark.one_process("its patience is shortened here")
async def test_a_state_with_other_members_than_it_had_is_not_taken(
    maintenance_conninfo: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(joining, "LEASE_SECONDS", 1)
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        other.answer = lambda answer: answer if "members_omitted" in answer else without_a_member(answer)
        other.answer_state = without_a_member
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.may_give.set()
        server.application.incomplete.wait_seconds = 1
        waited = await bob.get(f"/v3/rooms/{quote(other.room_id)}/members")
        assert waited.status == 503
        async with asyncio.timeout(15):
            while f"state {other.join().event_id}" not in other.asked:  # noqa: ASYNC110  # it tells nobody
                await asyncio.sleep(0.02)
        server.application.incomplete.wait_seconds = 30

        other.answer_state = lambda answer: answer

        assert members(await state_of(bob, other.room_id)) == {*members_of(other), bob.user_id}


@pytest.mark.one_process("what it logs is read here")
async def test_an_operator_hears_of_a_join_that_should_not_have_been(
    maintenance_conninfo: str, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        ban = other.room.add("m.room.member", other.user("eve"), {"membership": "ban"}, bob.user_id)
        other.begin()

        def without_ban(answer: JsonObject) -> JsonObject:
            auth = [each for each in answer["event"]["auth_events"] if each != ban.event_id]
            return {**answer, "event": {**answer["event"], "auth_events": auth}}

        other.template = without_ban
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.may_give.set()
        await state_of(bob, other.room_id)

        (told,) = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        assert told.startswith(f"{bob.user_id} has joined {other.room_id}, and may not have: ")


async def seen_of(server: Server, other: SlowResident, joined_members: int, flags: int = 0) -> dict[int, list[int]]:
    """The state before each event of the room that has these flags, and at its end (-1): events by their numbers."""
    numbers = other.numbers
    found: dict[int, list[int]] = {}
    async with server.application.database.read() as tx:
        room = await rooms.find(tx, other.room_id)
        assert room is not None
        row = (await rooms.rows(tx, [room.number]))[room.number]
        stored = await events.by_id(tx, numbers)
        points = {numbers[each.event_id]: (each.line, each.version) for each in stored.values() if each.flags == flags}
        for number, point in {**points, -1: (TRUNK, row.state_version)}.items():
            positions = (await room_state.at(tx, room.number, [point]))[point].values()
            ids = await events.ids_of(tx, room.number, list(positions))
            found[number] = sorted(numbers[event_id] for event_id in ids.values())
        assert row.joined_members == joined_members
    return found


@pytest.mark.parametrize("is_early", [True, False])
async def test_the_room_is_as_if_all_had_come_at_once(
    maintenance_conninfo: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, *, is_early: bool
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.1 if is_early else 600)
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        if not is_early:
            other.may_give.set()
        assert (await join(bob, other.room_id, other.name)).status == 200
        eve, told = other.user("eve"), []
        before = sorted(other.room.events.index(pdu) for pdu in other.room.state.values())
        joined_by = len(other.room.events)
        other.room.state["m.room.member", bob.user_id] = other.join()
        told.append(other.room.add("m.room.name", eve, {"name": "Large"}, ""))
        told.append(other.say("member5", "hello"))
        left = other.user("member5")
        told.append(other.room.add("m.room.member", left, {"membership": "leave"}, left))
        if is_early:
            await push(other, [pdu.json for pdu in told])
            assert server.application.incomplete.are_any
            other.may_give.set()
        else:
            await push(other, [pdu.json for pdu in told])
        await state_of(bob, other.room_id)

        seen = await seen_of(server, other, MEMBERS + 1)

        after = sorted([*before, joined_by])
        named = [*after, joined_by + 1]
        without = other.room.events.index(next(p for p in other.room.events if p.state_key == left))
        end = sorted([*(each for each in named if each != without), joined_by + 3])
        assert seen == {joined_by: before, joined_by + 1: after, joined_by + 2: named, joined_by + 3: named, -1: end}


@pytest.mark.parametrize("is_early", [True, False])
async def test_what_was_said_before_the_join_can_be_read(
    maintenance_conninfo: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, *, is_early: bool
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.1 if is_early else 600)
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        first = other.say("member1", "first")
        other.states[first.event_id] = set(other.states[""])
        renamed, last = other.rename("member2"), other.say("member3", "last")
        other.begin()
        before = sorted(other.room.events.index(pdu) for pdu in other.room.state.values())
        if not is_early:
            other.may_give.set()
        assert (await join(bob, other.room_id, other.name)).status == 200
        joined_by = other.join()

        page = await bob.ok("GET", f"/v3/rooms/{quote(other.room_id)}/messages", params={"dir": "b", "limit": "10"})

        assert server.application.incomplete.are_any == is_early
        assert ids(page["chunk"]) == [joined_by.event_id, last.event_id, renamed.event_id, first.event_id]
        assert ("end" in page) == is_early  # of the rest it cannot be said yet that nobody has it
        other.may_give.set()
        await state_of(bob, other.room_id)
        found = await seen_of(server, other, MEMBERS + 2, flags=int(Flag.HISTORY))
        then = sorted({*before, other.numbers[other.member(2)]} - {other.numbers[renamed.event_id]})
        assert found == {
            other.numbers[first.event_id]: then,
            other.numbers[renamed.event_id]: then,
            other.numbers[last.event_id]: before,
            -1: sorted([*before, other.numbers[joined_by.event_id]]),
        }


@pytest.mark.parametrize("is_early", [True, False])
async def test_what_was_said_beside_the_join_finds_its_place(
    maintenance_conninfo: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, *, is_early: bool
) -> None:
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.1 if is_early else 600)
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        if not is_early:
            other.may_give.set()
        assert (await join(bob, other.room_id, other.name)).status == 200
        start = len(other.room.events)
        last = other.room.events[-1]
        before = sorted(other.room.events.index(pdu) for pdu in other.room.state.values())
        joined_by = other.join()
        other.room.state["m.room.member", bob.user_id] = joined_by
        beside = other.say("member5", "beside", [last])
        after = other.say("member6", "after", [joined_by, beside])
        change = other.rename("member8", [last])
        follows = other.say("member8", "renamed", [change])
        merging = other.say("eve", "both", [after, follows])
        told = [beside, after, change, follows, merging]

        answer = await push(other, [pdu.json for pdu in told])

        assert not any(answer["pdus"].values()), answer
        assert server.application.incomplete.are_any == is_early
        other.may_give.set()
        await state_of(bob, other.room_id)
        found = await seen_of(server, other, MEMBERS + 2)
        numbers = other.numbers
        with_join = sorted([*before, start])
        changed = sorted({*before, numbers[change.event_id]} - {numbers[other.member(8)]})
        assert found == {
            start: before,
            numbers[beside.event_id]: before,
            numbers[after.event_id]: with_join,
            numbers[change.event_id]: before,
            numbers[follows.event_id]: changed,
            numbers[merging.event_id]: sorted([*changed, start]),
            -1: sorted([*changed, start]),
        }


async def test_who_left_meanwhile_may_come_back(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.room.state["m.room.member", bob.user_id] = other.join()
        await bob.ok("POST", f"/v3/rooms/{quote(other.room_id)}/leave", {})
        await other.until(lambda: any(pdu["content"].get("membership") == "leave" for pdu in other.pdus))
        (left,) = [pdu for pdu in other.pdus if pdu["content"].get("membership") == "leave"]
        other.room.state["m.room.member", bob.user_id] = other.take(left)
        other.stream = whole

        assert (await join(bob, other.room_id, other.name)).status == 200

        back = other.join().event_id
        found = await state_of(bob, other.room_id)
        assert found["m.room.member", bob.user_id] == back
        assert members(found) == members_of(other)
        assert joined(await sync(bob), other.room_id)["summary"]["m.joined_member_count"] == MEMBERS + 2
        assert not server.application.incomplete.are_any


async def test_other_processes_know_which_rooms_lack_members(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        database = server.application.database
        tail, late = Tail(database, KINDS), IncompleteRooms()
        tail.add_view(late.apply)
        await tail.start()
        assert (await join(bob, other.room_id, other.name)).status == 200
        room = await server.application.writer.get_room(other.room_id)
        begun = IncompleteRooms()

        await tail.catch_up()
        await begun.start(database)

        assert late.has(room.number)
        assert begun.has(room.number)
        position = tail.position
        other.may_give.set()
        await state_of(bob, other.room_id)
        await tail.catch_up()
        await begun.start(database)
        for incomplete in (late, begun):
            assert incomplete.completed_since([room.number], position) == {room.number}
        assert not late.has(room.number)
