"""A conversation in each room version, from either side."""

import pytest

from tests.client import quote
from tests.interop.people import Person

LEVELS = ("m.room.power_levels", "")
VERSIONS = [str(number) for number in range(1, 13)]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_conversation_in_every_room_version(host: Person, guest: Person, version: str) -> None:
    room_id = await host.create_room(preset="private_chat", room_version=version, invite=[guest], name="Versioned")
    await guest.sees_invite(room_id)
    await guest.join(room_id)
    await host.sees_member(room_id, guest)
    assert (await guest.state(room_id, "m.room.create")).get("room_version", "1") == version

    said = await host.says(room_id, "by the host")
    await guest.sees(room_id, said)
    answered = await guest.says(room_id, "by the guest")
    await host.sees(room_id, answered)
    await host.set_state(room_id, "m.room.name", {"name": "Renamed"})
    await guest.sees_state(room_id, "m.room.name", name="Renamed")
    redaction = await guest.redact(room_id, answered)
    for person in (host, guest):
        await person.sees(room_id, redaction)
        event = await person.ok("GET", f"/rooms/{quote(room_id)}/event/{quote(answered)}")
        assert event["content"] == {}

    levels = await host.state(room_id, "m.room.power_levels")
    levels.setdefault("users", {})[guest.user_id] = 50
    await guest.sees(room_id, await host.set_state(room_id, "m.room.power_levels", levels))
    await guest.set_state(room_id, "m.room.topic", {"topic": "by the guest"})
    await host.sees_state(room_id, "m.room.topic", topic="by the guest")
    await guest.leave(room_id)
    await host.sees_member(room_id, guest, "leave")
    assert await host.joined_members(room_id) == {host.user_id}


async def test_a_further_creator_has_all_power(host: Person, guest: Person) -> None:
    creators = {"additional_creators": [guest.user_id]}
    room_id = await host.create_room(room_version="12", creation_content=creators)
    await guest.join(room_id, via=[host])
    await host.sees_member(room_id, guest)

    levels = await guest.state(room_id, "m.room.power_levels")
    assert not {host.user_id, guest.user_id} & set(levels.get("users", {}))
    await host.sees(room_id, await guest.set_state(room_id, "m.room.power_levels", {**levels, "events_default": 150}))
    for person, other in ((host, guest), (guest, host)):
        await other.sees(room_id, await person.says(room_id, "only we may speak"))


@pytest.mark.parametrize(("old", "new"), [("9", "11"), ("11", "12")])
async def test_members_follow_an_upgraded_room(host: Person, guest: Person, old: str, new: str) -> None:
    room_id = await host.create_room(room_version=old, name="Old and new")
    await guest.join(room_id, via=[host])
    await host.sees_member(room_id, guest)

    answer = await host.ok("POST", f"/rooms/{quote(room_id)}/upgrade", {"new_version": new})

    tombstone = await guest.sees_state(room_id, "m.room.tombstone")
    replacement = tombstone["content"]["replacement_room"]
    assert replacement == answer["replacement_room"]
    await guest.until(lambda seen: seen.rooms[room_id].state[LEVELS]["content"]["events_default"] > 0)
    assert (await guest.try_to_say(room_id, "too late")).status == 403
    await guest.join(replacement, via=[host])
    created = await guest.sees_state(replacement, "m.room.create")
    assert created["content"]["room_version"] == new
    assert created["content"]["predecessor"]["room_id"] == room_id
    assert await guest.state(replacement, "m.room.name") == {"name": "Old and new"}
    await host.sees_member(replacement, guest)
