"""Ways into a room on another server and out of it. Each story is told twice: the host's server is either of them."""

from typing import Any

from tests.client import quote
from tests.interop.border import Border
from tests.interop.people import Person


async def a_shared_room(host: Person, guest: Person, **fields: Any) -> str:
    """A public room that both are in, and know it."""
    room_id = await host.create_room(**fields)
    await guest.join(room_id, via=[host])
    await host.sees_member(room_id, guest)
    await guest.sees_member(room_id, host)
    return room_id


def join_rule(rule: str, **content: Any) -> dict[str, Any]:
    """A state event for `initial_state`."""
    return {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": rule, **content}}


async def test_an_invited_guest_sees_what_it_is_about_and_joins(host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="private_chat", name="Tea at five", invite=[guest])

    shown = await guest.sees_invite(room_id)
    assert shown["m.room.name"]["content"] == {"name": "Tea at five"}
    assert shown["m.room.member"]["sender"] == host.user_id
    assert shown["m.room.create"]["sender"] == host.user_id

    await guest.join(room_id)

    await host.sees_member(room_id, guest)
    assert await guest.state(room_id, "m.room.name") == {"name": "Tea at five"}
    assert await host.joined_members(room_id) == await guest.joined_members(room_id) == {host.user_id, guest.user_id}


async def test_a_direct_chat_is_told_to_be_one(host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="trusted_private_chat", is_direct=True, invite=[guest])

    shown = await guest.sees_invite(room_id)

    assert shown["m.room.member"]["content"]["is_direct"] is True


async def test_an_invite_into_a_room_that_is_there_already(host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="private_chat")
    await host.says(room_id, "before")

    await host.invite(room_id, guest, reason="we miss you")

    assert (await guest.sees_invite(room_id))["m.room.member"]["content"]["reason"] == "we miss you"
    await guest.join(room_id)
    event_id = await guest.says(room_id, "here I am")
    assert (await host.sees(room_id, event_id))["content"]["body"] == "here I am"


async def test_a_guest_rejects_an_invite_and_may_be_asked_again(host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="private_chat", invite=[guest])
    await guest.sees_invite(room_id)

    await guest.leave(room_id, reason="no time")

    assert (await host.sees_member(room_id, guest, "leave"))["content"]["reason"] == "no time"
    await host.invite(room_id, guest)
    await guest.sees_invite(room_id)
    await guest.join(room_id)
    await host.sees_member(room_id, guest)


async def test_a_host_takes_an_invite_back(host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="private_chat", invite=[guest])
    await guest.sees_invite(room_id)

    await host.kick(room_id, guest, reason="a mistake")

    await guest.sees_leave(room_id)
    assert (await guest.try_join(room_id, via=[host])).status == 403


async def test_a_guest_joins_a_public_room_by_its_id(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    assert await guest.joined_members(room_id) == {host.user_id, guest.user_id}


async def test_nobody_joins_a_private_room_uninvited(host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="private_chat")

    status, body = await guest.try_join(room_id, via=[host])

    assert (status, body["errcode"]) == (403, "M_FORBIDDEN")


async def test_a_second_guest_of_the_same_server_joins_at_once(border: Border, host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)
    friend = await border.friend_of(guest)

    await friend.join(room_id, via=[host])

    for person in (host, guest):
        await person.sees_member(room_id, friend)


async def test_a_guest_leaves_and_joins_again(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    await guest.leave(room_id)
    await host.sees_member(room_id, guest, "leave")
    await guest.sees_leave(room_id)
    await host.says(room_id, "you missed this")
    await guest.join(room_id, via=[host])
    await host.sees_member(room_id, guest)

    event_id = await host.says(room_id, "welcome back")
    await guest.sees(room_id, event_id)


async def test_the_host_leaves_and_comes_back_by_way_of_the_guest(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    await host.leave(room_id)
    await guest.sees_member(room_id, host, "leave")
    await guest.says(room_id, "alone now")
    await host.join(room_id, via=[guest])

    await guest.sees_member(room_id, host)
    event_id = await guest.says(room_id, "good that you are back")
    await host.sees(room_id, event_id)


async def test_a_kicked_guest_is_out_and_may_come_back(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    await host.kick(room_id, guest, reason="shouting")

    await guest.sees_leave(room_id)
    assert guest.seen.rooms[room_id].state["m.room.member", guest.user_id]["content"]["reason"] == "shouting"
    assert (await guest.try_to_say(room_id, "!")).status == 403
    await guest.join(room_id, via=[host])
    await host.sees_member(room_id, guest)


async def test_a_banned_guest_stays_out_until_the_ban_is_lifted(host: Person, guest: Person) -> None:
    room_id = await a_shared_room(host, guest)

    await host.ban(room_id, guest)
    await guest.sees_leave(room_id)
    assert (await guest.try_join(room_id, via=[host])).status == 403

    await host.unban(room_id, guest)
    await guest.join(room_id, via=[host])
    await host.sees_member(room_id, guest)
    event_id = await guest.says(room_id, "sorry")
    await host.sees(room_id, event_id)


async def test_a_guest_with_power_bans_on_the_hosts_server(border: Border, host: Person, guest: Person) -> None:
    friend = await border.friend_of(host)
    room_id = await a_shared_room(host, guest)
    await friend.join(room_id)
    await friend.sees_member(room_id, friend)  # a first sync would not tell of a room that they are out of
    levels = await host.state(room_id, "m.room.power_levels")
    levels["users"][guest.user_id] = 60
    event_id = await host.set_state(room_id, "m.room.power_levels", levels)
    await guest.sees(room_id, event_id)
    await guest.sees_member(room_id, friend)

    await guest.ban(room_id, friend, reason="spam")

    await friend.sees_leave(room_id)
    await host.sees_member(room_id, friend, "ban")


async def test_a_banned_stranger_never_gets_in(host: Person, guest: Person) -> None:
    room_id = await host.create_room(initial_state=[join_rule("knock")])

    await host.ban(room_id, guest)

    assert (await guest.try_join(room_id, via=[host])).status == 403
    knock = await guest.client.post(f"/v3/knock/{quote(room_id)}", via=host.server_name)
    assert knock.status == 403, knock
    assert (await host.state(room_id, "m.room.member", guest.user_id))["membership"] == "ban"


async def test_a_guest_invites_users_of_every_server(border: Border, host: Person, guest: Person) -> None:
    room_id = await host.create_room(preset="private_chat", invite=[guest])
    await guest.sees_invite(room_id)
    await guest.join(room_id)
    newcomers = (await border.friend_of(host), await border.friend_of(guest), await border.somebody_third())

    for newcomer in newcomers:
        await guest.invite(room_id, newcomer)
        assert (await newcomer.sees_invite(room_id))["m.room.member"]["sender"] == guest.user_id
        await newcomer.join(room_id)

    for person in (host, guest):
        for newcomer in newcomers:
            await person.sees_member(room_id, newcomer)


async def test_a_guest_joins_although_the_first_server_named_is_not_there(host: Person, guest: Person) -> None:
    room_id = await host.create_room()

    params = [(name, server) for name in ("via", "server_name") for server in ("localhost:9", host.server_name)]
    await guest.ok("POST", f"/join/{quote(room_id)}", {}, params=params)

    await host.sees_member(room_id, guest)


async def test_an_invite_is_rejected_while_the_host_cannot_be_reached(
    border: Border, host: Person, guest: Person
) -> None:
    room_id = await host.create_room(preset="private_chat", invite=[guest])
    await guest.sees_invite(room_id)
    here, there = border.server_of(guest), border.server_of(host)
    border.links.set_cut({(here, there), (there, here)})
    try:
        await guest.leave(room_id)
        await guest.sees_leave(room_id)
    finally:
        border.links.set_cut(set())

    friend = await border.friend_of(guest)
    assert (await guest.sync()).invites == {}
    await a_shared_room(host, friend)  # they speak with one another again


async def test_a_knock_is_answered_with_an_invite(host: Person, guest: Person) -> None:
    room_id = await host.create_room(name="Library", initial_state=[join_rule("knock")])

    await guest.knock(room_id, via=[host], reason="may I?")

    assert (await host.sees_member(room_id, guest, "knock"))["content"]["reason"] == "may I?"
    stripped = await guest.until(lambda seen: seen.knocks.get(room_id))
    assert {"name": "Library"} in [event["content"] for event in stripped]
    await host.invite(room_id, guest)
    await guest.sees_invite(room_id)
    await guest.join(room_id)
    await host.sees_member(room_id, guest)


async def test_a_knock_is_refused(host: Person, guest: Person) -> None:
    room_id = await host.create_room(initial_state=[join_rule("knock")])
    await guest.knock(room_id, via=[host])
    await host.sees_member(room_id, guest, "knock")

    await host.kick(room_id, guest, reason="not today")

    await host.sees_member(room_id, guest, "leave")
    assert (await guest.try_join(room_id, via=[host])).status == 403


async def test_a_knock_is_taken_back(alice: Person, bob: Person) -> None:
    # Only this way: Synapse tells nobody of a knock that its user takes back.
    room_id = await bob.create_room(initial_state=[join_rule("knock")])
    await alice.knock(room_id, via=[bob])
    await bob.sees_member(room_id, alice, "knock")

    await alice.leave(room_id)

    await bob.sees_member(room_id, alice, "leave")


async def test_members_of_one_room_may_join_another(border: Border, host: Person, guest: Person) -> None:
    lobby = await a_shared_room(host, guest)
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    room_id = await host.create_room(initial_state=[join_rule("restricted", allow=allow)])
    stranger = await border.friend_of(guest)

    assert (await stranger.try_join(room_id, via=[host])).status == 403
    await guest.join(room_id, via=[host])

    member = await host.sees_member(room_id, guest)
    assert member["content"]["join_authorised_via_users_server"] == host.user_id
    await guest.sees_member(room_id, host)


async def test_a_guest_who_may_invite_vouches_for_others_of_their_server(
    border: Border, host: Person, guest: Person
) -> None:
    lobby = await a_shared_room(host, guest)
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    rule = join_rule("restricted", allow=allow)
    room_id = await host.create_room(initial_state=[rule], power_level_content_override={"invite": 0})
    await guest.join(room_id, via=[host])
    friend = await border.friend_of(guest)
    await friend.join(lobby, via=[host])
    await host.sees_member(lobby, friend)

    await friend.join(room_id)  # nobody else is asked

    for person in (host, guest):
        member = await person.sees_member(room_id, friend)
        assert member["content"]["join_authorised_via_users_server"] == guest.user_id


async def test_who_is_not_in_the_lobby_may_still_knock(host: Person, guest: Person) -> None:
    lobby = await host.create_room(preset="private_chat")
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    room_id = await host.create_room(initial_state=[join_rule("knock_restricted", allow=allow)])

    assert (await guest.try_join(room_id, via=[host])).status == 403
    await guest.knock(room_id, via=[host])

    await host.sees_member(room_id, guest, "knock")
    await host.invite(room_id, guest)
    await guest.sees_invite(room_id)
    await guest.join(room_id)
    await host.sees_member(room_id, guest)


async def test_a_guest_of_a_restricted_room_lets_nobody_in_without_the_host(
    border: Border, host: Person, guest: Person
) -> None:
    lobby = await a_shared_room(host, guest)
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    rule = join_rule("knock_restricted", allow=allow)
    room_id = await host.create_room(initial_state=[rule], power_level_content_override={"invite": 50})
    await guest.join(room_id, via=[host])
    friend = await border.friend_of(guest)
    await friend.join(lobby, via=[host])
    await host.sees_member(lobby, friend)

    # Their own server has nobody in the room who may invite, so it asks the host's.
    await friend.join(room_id, via=[host])

    for person in (host, guest):
        member = await person.sees_member(room_id, friend)
        assert member["content"]["join_authorised_via_users_server"] == host.user_id
