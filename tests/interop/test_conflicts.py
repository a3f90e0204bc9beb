"""What people do who cannot hear of one another: afterwards both servers decide alike what counts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.hearth import Hearth
from tests.client import quote
from tests.interop.border import Border, retry_all
from tests.interop.people import Person
from tests.interop.test_membership import a_shared_room

RESOLUTIONS = ["1", "2", "12"]
"""A room version with each way to resolve conflicts."""


@asynccontextmanager
async def apart(border: Border, one: Person, other: Person) -> AsyncIterator[None]:
    """In the block nothing passes between their servers."""
    servers = (border.server_of(one), border.server_of(other))
    border.links.set_cut({servers, servers[::-1]})
    try:
        yield
    finally:
        border.links.set_cut(set())
        for server in servers:
            if isinstance(server, Hearth):
                await asyncio.to_thread(retry_all, server)


async def state_ids(person: Person, room_id: str) -> dict[tuple[str, str], str]:
    """The room's state as their server has it."""
    state = await person.ok("GET", f"/rooms/{quote(room_id)}/state")
    return {(event["type"], event["state_key"]): event["event_id"] for event in state}


@pytest.mark.parametrize("version", RESOLUTIONS)
async def test_what_somebody_changed_before_they_heard_that_they_lost_power_does_not_count(
    border: Border, host: Person, guest: Person, version: str
) -> None:
    room_id = await a_shared_room(host, guest, room_version=version, name="At first")
    levels = await host.state(room_id, "m.room.power_levels")
    levels.setdefault("users", {})[guest.user_id] = 50
    await guest.sees(room_id, await host.set_state(room_id, "m.room.power_levels", levels))

    async with apart(border, host, guest):
        levels["users"][guest.user_id] = 0
        await host.set_state(room_id, "m.room.power_levels", levels)
        await guest.set_state(room_id, "m.room.name", {"name": "By the guest"})
        await guest.set_state(room_id, "m.room.join_rules", {"join_rule": "invite"})
    for person, other in ((host, guest), (guest, host)):
        await other.sees(room_id, await person.says(room_id, "There you are"))

    async def agree() -> bool:
        return await state_ids(host, room_id) == await state_ids(guest, room_id)

    await border.eventually(agree)
    assert await guest.state(room_id, "m.room.name") == {"name": "At first"}
    assert (await guest.state(room_id, "m.room.join_rules"))["join_rule"] == "public"
    assert (await guest.try_to_say(room_id, "I may still speak")).status == 200


async def test_what_a_guest_says_before_they_hear_of_their_ban_is_not_shown(
    border: Border, host: Person, guest: Person
) -> None:
    room_id = await a_shared_room(host, guest)
    other = await a_shared_room(guest, host)

    async with apart(border, host, guest):
        await host.ban(room_id, guest)
        await guest.says(room_id, "I am still here")
        await guest.leave(room_id)
    await guest.sees(other, await host.says(other, "of something else"))
    await host.sees(other, await guest.says(other, "of something else"))

    await border.eventually(lambda: is_banned(host, room_id, guest))
    assert "I am still here" not in await host.texts(room_id)
    assert (await guest.try_join(room_id, via=[host])).status == 403


async def is_banned(person: Person, room_id: str, other: Person) -> bool:
    """By what their server says."""
    return bool((await person.state(room_id, "m.room.member", other.user_id))["membership"] == "ban")
