"""What a message costs in a room of very many local members, with nobody waiting, and with pushers."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures import Figure, Load, Quantity
from benchmarks.hearth import Hearth
from benchmarks.matrix import User, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes
from tests.federation.authority import Authority
from tests.push_gateway import Gateway, a_gateway

_SMALL = 2
_SHARE = 0.01
"""Of the members of the large room who have a pusher, where some have."""
_PUSHER = {
    "kind": "http",
    "app_id": "bench",
    "app_display_name": "Bench",
    "device_display_name": "Bench",
    "lang": "en",
}


@dataclass(slots=True)
class _Place:
    """A room, who sends there, and what messages have cost."""

    name: str
    sender: User
    room_id: str
    members: Sequence[User]
    meter: Meter


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Rounds over all rooms in turn: a message each time that the last one is answered, by one sender.

    Nobody waits in a sync. Each member with a pusher is told by a request to a gateway on this machine, over TLS, of
    the event's ID alone, as phones ask for; the gateway is in the load's own process.
    """
    if not isinstance(server, Hearth):
        return []
    authority = Authority(server.cluster.directory)
    server.trusted_authority = authority.certificate
    await server.restart()
    large = sizes.push_members
    places = [
        await _make(server, _SMALL, f"send, {_SMALL} members, nobody waiting"),
        await _make(server, large, f"send, {large:,} members, nobody waiting"),
    ]
    async with a_gateway(authority) as gateway:
        told = await _make(server, large, f"send, {large:,} members, {_SHARE:.0%} with pushers")
        pushers = max(1, round(_SHARE * large))
        for member in told.members[:pushers]:
            await _set_pusher(member, gateway)
        for _ in range(sizes.push_rounds):
            for place in (*places, told):
                await _send(server, sizes, place)
        taken = sum(len(each) for each in gateway.told.values())
    small, many, pushing = (place.meter.load(place.name) for place in (*places, told))
    return [
        *(small, many, pushing),
        Quantity(
            name="growth of send, members without pushers",
            value=_cost(many) / _cost(small),
            unit="times",
            note=f"server and PostgreSQL, {_SMALL} to {large:,} local members",
        ),
        Quantity(
            name="a push, server and PostgreSQL",
            value=(_cost(pushing) - _cost(many)) / pushers,
            unit="ms",
            note=f"{pushers} of {large:,} members have a pusher; gateways were told {taken:,} times",
        ),
    ]


async def _make(server: Server, count: int, name: str) -> _Place:
    members = await server.add_users(count)
    room_id = await room_with(members[0], members[1:], joins_at_once=64 if count > 100 else 4)
    return _Place(name, members[-1], room_id, members, Meter(server))


async def _set_pusher(member: User, gateway: Gateway) -> None:
    data = {"url": gateway.url, "format": "event_id_only"}
    await member.request("POST", "/v3/pushers/set", {**_PUSHER, "pushkey": member.user_id, "data": data})


async def _send(server: Server, sizes: Sizes, place: _Place) -> None:
    for _ in range(3):
        await place.sender.send(place.room_id)
    await quiet(server)
    timed = place.meter.timed(place.sender.send)
    async with place.meter.running():
        for _ in range(sizes.push_messages):
            await timed(place.room_id)


def _cost(load: Load) -> float:
    return load.server_ms + load.postgres_ms
