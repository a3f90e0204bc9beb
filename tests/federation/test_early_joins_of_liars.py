"""Rooms that are used before their members are here, where somebody lies, or has what nobody can verify."""

import asyncio

import pytest

from federation.protocol.types import JsonObject, ServerName
from federation.rooms.learning import learn_members
from storage import events, room_state
from storage.room_completeness import RoomCompleteness
from storage.strings import MEMBER
from tests.clients import Server, quote
from tests.federation import servers
from tests.federation.authority import Authority
from tests.federation.servers import federating
from tests.federation.test_early_joins import MEMBERS, members_of, slow
from tests.federation.test_joining import join, state_of
from tests.homeserver.syncs import members
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
