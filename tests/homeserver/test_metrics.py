"""What Prometheus is told, by one process and by several together."""

import asyncio

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from homeserver.config import API, Listener
from tests.clients import Server
from tests.rooms import create_room, send
from tests.scenarios.hearth_process import a_visitor, serving
from tests.servers import running

EVENTS = 7
SEND = "/_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}"


async def read_figures(base_url: str) -> dict[tuple[str, ...], float]:
    """Each figure by its name and the values of its labels in the order of their names."""
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/metrics") as answer:
        assert answer.status == 200
        text = await answer.text()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_requests_and_the_log_are_counted(conninfo: str) -> None:
    listener = Listener(address="127.0.0.1", port=0, apis=(API.CLIENT, API.METRICS))
    async with running(conninfo, listeners=(listener,)) as server:
        alice = await server.register("alice")
        room_id = await create_room(alice)
        before = await read_figures(server.base_url)
        for number in range(EVENTS):
            await send(alice, room_id, f"message {number}")
        assert (await alice.get(f"/v3/rooms/{room_id}/nothing")).status == 404
        after = await read_figures(server.base_url)

    assert after["hearth_request_seconds_count", SEND, "PUT", "200"] == EVENTS
    assert after["hearth_request_seconds_count", "", "", "404"] == 1
    assert after["hearth_log_entries_total",] - before["hearth_log_entries_total",] >= EVENTS
    assert after["hearth_log_position",] > before["hearth_log_position",]
    assert after["hearth_database_connections",] >= 1
    assert after["hearth_cpu_seconds_total",] > 0


async def test_nobody_is_told_where_it_is_not_configured(server: Server) -> None:
    answer = await server.anonymous.get("/metrics")
    assert (answer.status, answer.body["errcode"]) == (404, "M_UNRECOGNIZED")


async def test_any_of_several_workers_answers_for_all() -> None:
    async with serving(arguments=("--workers", "2"), apis="[client, metrics]") as server:
        async with a_visitor(server) as visitor:
            alice = await visitor.register_as("alice")
            room_id = await create_room(alice)
        for number in range(EVENTS):
            async with a_visitor(server) as other:  # by any of them
                elsewhere = type(alice)(other.base_url, other.session, alice.user_id, access_token=alice.access_token)
                await send(elsewhere, room_id, f"message {number}")

        async with asyncio.timeout(30):
            for _ in range(6):
                found = await read_figures(server.base_url)
                assert found["hearth_request_seconds_count", SEND, "PUT", "200"] == EVENTS
                assert found["hearth_memory_bytes",] > 80e6  # of two processes
