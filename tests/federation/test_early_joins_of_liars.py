"""Rooms that are used before their members are here, where somebody lies, or has what nobody can verify."""

import asyncio

import pytest

from federation.protocol.types import JsonObject, RoomID, ServerName
from federation.rooms.learning import learn_members
from storage import events, remote_joins, room_state
from storage.room_completeness import RoomCompleteness
from storage.strings import MEMBER
from tests.client import Server, quote
from tests.federation import servers
from tests.federation.authority import Authority
from tests.federation.remote_room import push
from tests.federation.servers import federating
from tests.federation.test_early_joins import LAZY, MEMBERS, SlowResident, members_of, slow
from tests.federation.test_joining import join, state_of
from tests.federation.test_remote_devices import eventually
from tests.homeserver.syncs import ids, joined, members, sync, timeline, token
from tests.rooms import create_room


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not quick gives the members later."""
    monkeypatch.setattr(servers, "PATIENCE_SECONDS", 0.1)


async def counted(server: Server, room_id: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many are joined and invited, as is noted and as is so."""
    async with server.application.database.read() as tx:
        row = await tx.fetch_one(
            "select joined_members, invited_members,"
            " (select count(*) from room_state where room = rooms.room and type = %s and line = 0"
            "   and until_version is null and membership = 1),"
            " (select count(*) from room_state where room = rooms.room and type = %s and line = 0"
            "   and until_version is null and membership = 2) from rooms where room_id = %s",
            (MEMBER, MEMBER, room_id),
        )
    assert row is not None
    return (row[0], row[1]), (row[2], row[3])


@pytest.mark.parametrize("how", ["unknown key", "too deep"])
async def test_members_who_cannot_be_verified_are_not_waited_for(
    maintenance_conninfo: str, authority: Authority, how: str
) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        lost = other.user("member9")

        def damaged(event: JsonObject) -> JsonObject:
            if event["state_key"] != lost:
                return event
            if how == "too deep":
                return {**event, "depth": 2**60}
            (signature,) = event["signatures"][other.name].values()
            return {**event, "signatures": {other.name: {"ed25519:lost": signature}}}

        def damage(answer: JsonObject) -> JsonObject:
            return {
                name: [damaged(each) for each in part] if name in ("state", "auth_chain", "pdus") else part
                for name, part in answer.items()
            }

        other.answer = other.answer_state = damage
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.may_give.set()
        server.application.incomplete.wait_seconds = 5

        found = members(await state_of(bob, other.room_id))

        assert found == {*members_of(other), bob.user_id} - {lost}
        noted, so = await counted(server, other.room_id)
        assert noted == so == (MEMBERS + 1, 0)


async def test_members_of_another_room_are_not_learned(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        alice, bob = await server.register("alice"), await server.register("bob")
        elsewhere = await server.application.writer.get_room(await create_room(alice))
        carl = other.user("carl")
        await alice.request("POST", f"/v3/rooms/{quote(elsewhere.room_id)}/invite", {"user_id": carl})
        database = server.application.database
        async with database.read() as tx:
            before = await room_state.history(tx, elsewhere.number, [("m.room.member", carl)])
            (position,) = [span.event for span in before["m.room.member", carl]]
            assert position is not None
            foreign = (await events.by_position(tx, elsewhere.number, [position]))[position]
        other.states[""] = {*other.states[""], foreign.event_id}
        assert (await join(bob, other.room_id, other.name)).status == 200

        await learn_members(database, ServerName(server.name), other.join().room_id, [foreign])

        async with database.read() as tx:
            assert await room_state.history(tx, elsewhere.number, [("m.room.member", carl)]) == before


async def test_a_process_that_has_not_heard_of_it_does_not_show_half_a_room(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        assert (await join(bob, other.room_id, other.name)).status == 200
        room = await server.application.writer.get_room(other.room_id)
        incomplete = server.application.incomplete
        incomplete.apply(0, RoomCompleteness(room.number, is_complete=True))  # as if it did not know

        waiting = asyncio.create_task(bob.get(f"/v3/rooms/{quote(other.room_id)}/joined_members"))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        other.may_give.set()

        assert len((await waiting).body["joined"]) == MEMBERS + 2


async def test_who_comes_back_is_told_of_all_whose_keys_matter_and_counts_nothing_twice(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        before = await token(bob, filter=LAZY)
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.join()
        await push(other, [other.say("eve", "welcome").json, other.say("member7", f"hello {bob.user_id}").json])
        early = await sync(bob, before, filter=LAZY)
        unread = joined(early, other.room_id)["unread_notifications"]
        other.may_give.set()
        await state_of(bob, other.room_id)

        late = await sync(bob, early["next_batch"], filter=LAZY)

        found = joined(late, other.room_id)
        assert found["unread_notifications"] == unread
        assert unread["notification_count"] == 2
        assert ids(timeline(late, other.room_id)) == ids(timeline(early, other.room_id))
        old = joined(early, other.room_id)["timeline"]
        assert (found["timeline"]["limited"], found["timeline"]["prev_batch"]) == (old["limited"], old["prev_batch"])
        for since in (before, early["next_batch"]):
            query = {"from": since, "to": late["next_batch"]}
            changes = await bob.ok("GET", "/v3/keys/changes", params=query)
            told = {*early["device_lists"]["changed"]} if since != before else set()
            assert {*changes["changed"]} | told >= members_of(other), (since == before, told)
        assert await counted(server, other.room_id) == ((MEMBERS + 2, 0), (MEMBERS + 2, 0))
        assert joined(await sync(bob, late["next_batch"], filter=LAZY), other.room_id) == {}


async def test_a_user_who_is_banned_meanwhile_is_out(maintenance_conninfo: str, authority: Authority) -> None:
    async with federating(maintenance_conninfo, authority) as server, slow(server, authority) as other:
        bob = await server.register("bob")
        since = await token(bob)
        assert (await join(bob, other.room_id, other.name)).status == 200
        other.room.state["m.room.member", bob.user_id] = other.join()
        ban = other.room.add("m.room.member", other.user("eve"), {"membership": "ban"}, bob.user_id)
        answer = await push(other, [ban.json])
        assert answer["pdus"] == {ban.event_id: {}}
        other.may_give.set()
        await eventually(lambda: is_over(server, other))

        late = await sync(bob, since)

        assert joined(late, other.room_id) == {}
        assert other.room_id in late["rooms"]["leave"]
        assert (await join(bob, other.room_id, other.name)).status != 200
        noted, so = await counted(server, other.room_id)
        assert noted == so


async def is_over(server: Server, other: SlowResident) -> bool:
    """Whether nothing is left of the join."""
    async with server.application.database.read() as tx:
        return await remote_joins.find(tx, RoomID(other.room_id)) is None
