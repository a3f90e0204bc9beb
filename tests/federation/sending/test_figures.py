"""What an operator is told of sending to other servers, and of what they send."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from storage.figures import Figures, Tally
from tests.client import Client, Server, quote
from tests.federation.listening_peer import ListeningPeer, until_left_alone
from tests.federation.resident_rooms import SharedRoom
from tests.federation.servers import Pair
from tests.rooms import create_room, send

pytestmark = pytest.mark.one_process("what each counts")


def figures(server: Server) -> Figures:
    application = server.application
    return {
        **application.sender.figures(),
        **application.outbound.availability.figures(),
        **application.reception.transactions.figures(),
        **application.reception.dead_letters.figures(),
    }


def read(found: Figures, name: str, label: str | None = None) -> Any:
    value: Any = found[name] if label is None else found[name][label]  # type: ignore[index]  # those have labels
    return sum(value.counts) if isinstance(value, Tally) else value


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110  # of a server
            await asyncio.sleep(0.02)


async def test_what_is_taken_is_counted(server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    before = figures(server)
    tally = read(before, "federation_send_seconds")
    delivered = read(before, "federation_transactions_total", "delivered")
    events = read(before, "federation_sent_total", "event")
    for number in range(5):
        await send(alice, room.room_id, f"message {number}")
    await peer.until_messages(f"message {number}" for number in range(5))

    await until(lambda: read(figures(server), "federation_sent_total", "event") >= events + 5)
    await until(lambda: read(figures(server), "federation_transactions_total", "delivered") > delivered)
    assert read(figures(server), "federation_send_seconds") > tally


async def test_what_waits_is_told_by_lane(server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom) -> None:
    await send(alice, room.room_id, "first")
    await peer.until_messages(["first"])
    peer.answers.clear()
    for number in range(4):
        await send(alice, room.room_id, f"message {number}")
    await until(lambda: read(figures(server), "federation_waiting", "events") >= 3)

    during = figures(server)
    assert read(during, "federation_sending") >= 1
    assert read(during, "federation_destinations") >= 1
    assert 0 < read(during, "federation_stalled_seconds") < 15

    peer.answers.set()
    await peer.until_messages(f"message {number}" for number in range(4))
    await until(lambda: read(figures(server), "federation_waiting", "events") == 0)


async def test_a_server_that_is_away_is_no_alarm(
    server: Server, alice: Client, peer: ListeningPeer, room: SharedRoom
) -> None:
    before = read(figures(server), "federation_transactions_total", "unreachable")
    await peer.stop()
    await send(alice, room.room_id, "nobody there")
    await until_left_alone(server, peer)

    found = figures(server)
    assert read(found, "federation_transactions_total", "unreachable") > before
    assert read(found, "federation_back_offs") >= 1
    assert read(found, "federation_destinations_behind") >= 1
    assert read(found, "federation_stalled_seconds") < 5  # it is left alone, and not forgotten


async def test_what_comes_is_counted(pair: Pair) -> None:
    alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await bob.ok("POST", f"/v3/join/{quote(room_id)}", {}, params={"via": pair.near.name})
    before = figures(pair.far)
    taken = read(before, "federation_received_events_total", "taken")
    transactions = read(before, "federation_receive_seconds")
    for number in range(3):
        await send(alice, room_id, f"message {number}")

    await until(lambda: read(figures(pair.far), "federation_received_events_total", "taken") == taken + 3)
    assert read(figures(pair.far), "federation_receive_seconds") > transactions
    await until(lambda: read(figures(pair.far), "federation_receiving") == 0)
    joins = pair.far.application.handshaking.joins.figures()
    assert read(joins, "remote_joins_ended_total", "joined") >= 1
