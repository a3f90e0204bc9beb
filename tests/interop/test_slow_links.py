"""A room whose members take long to come over the link."""

import asyncio
import json

from tests.client import quote
from tests.interop.border import Border
from tests.interop.links import SWIFT_BYTES
from tests.interop.people import Person

MEMBERS = 12
_LAZY = json.dumps({"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 50}}})


async def test_the_room_is_used_before_its_members_are_here(border: Border, alice: Person, bob: Person) -> None:
    room_id = await bob.create_room(name="Large")
    padding = "x" * (SWIFT_BYTES // MEMBERS)
    friends = [await border.friend_of(bob) for _ in range(MEMBERS)]
    for friend in friends:
        await friend.join(room_id)
        content = {"membership": "join", "displayname": "Friend", "padding": padding}
        await friend.set_state(room_id, "m.room.member", content, friend.user_id)
    members = {person.user_id for person in (alice, bob, *friends)}
    synapse = border.server_of(bob)
    with border.links.holding_up(synapse):
        await alice.join(room_id, via=[bob])

        listing = asyncio.create_task(alice.joined_members(room_id))
        hello = await alice.says(room_id, "hello")
        assert (await bob.sees(room_id, hello))["content"]["body"] == "hello"
        said = [await person.says(room_id, "welcome") for person in (bob, friends[0])]

        async def shown() -> bool:
            synced = await alice.ok("GET", "/sync", params={"filter": _LAZY, "timeout": "0"})
            events = synced["rooms"]["join"][room_id]["timeline"]["events"]
            return {hello, *said} <= {event["event_id"] for event in events}

        await border.eventually(shown)
        assert not listing.done()
    assert await listing == members
    assert await bob.joined_members(room_id) == members
    path = f"/rooms/{quote(room_id)}/state"
    states = [await person.ok("GET", path) for person in (alice, bob)]
    assert len({frozenset(event["event_id"] for event in state) for state in states}) == 1
