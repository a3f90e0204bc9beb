"""What a collector of OpenTelemetry is told, over HTTP as a real one would be."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from homeserver.config import Secret, Tracing
from homeserver.config_loading import ConfigurationError, parse
from homeserver.tracing import Tracer
from tests.client import Client, Server
from tests.collector import Collector, attributes, collecting
from tests.rooms import create_room, send
from tests.servers import running

pytestmark = pytest.mark.one_process("what each is at")

SEND = "PUT /_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}"


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


async def test_a_request_and_its_append_are_one_trace(conninfo: str, collector: Collector) -> None:
    tracing = Tracing(collector.url, Secret("Bearer for-the-collector"), 1.0)
    async with running(conninfo, tracing=tracing) as server:
        alice = await server.register("alice")
        room_id = await create_room(alice)
        answer = await alice.put(f"/v3/rooms/{room_id}/send/m.room.message/1", {"msgtype": "m.text", "body": "secret"})
        await alice.request("GET", "/v3/account/whoami", params={"access_token": "wrong"})
    # what is left is sent when the server ends

    [span] = collector.named(SEND)
    [append] = [each for each in collector.named("append") if each.trace_id == span.trace_id]
    assert append.parent_span_id == span.span_id
    assert span.start_time_unix_nano <= append.start_time_unix_nano < append.end_time_unix_nano
    assert append.end_time_unix_nano <= span.end_time_unix_nano
    assert attributes(span) == {
        "http.request.method": "PUT",
        "http.route": SEND.removeprefix("PUT "),
        "http.response.status_code": 200,
        "hearth.request_id": answer.headers["X-Request-ID"],
        "hearth.user_id": alice.user_id,
        "hearth.room_id": room_id,
    }
    assert len({each.trace_id for each in collector.spans if not each.parent_span_id}) > 3  # each request its own
    assert collector.headers[0]["Authorization"] == "Bearer for-the-collector"
    assert collector.resources[0]["service.name"] == "hearth"
    told = str(collector.spans)
    for secret in (alice.access_token, "wrong", alice.password):
        assert secret not in told


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
async def test_one_in_so_many_is_traced(
    conninfo: str, collector: Collector, ratio: float, least: int, most: int
) -> None:
    async with running(conninfo, tracing=Tracing(collector.url, sample_ratio=ratio)) as server:
        for _ in range(200):
            await server.anonymous.get("/versions")

    assert least <= len(collector.named("GET /_matrix/client/versions")) <= most


async def test_nobody_outside_has_a_part_in_traces(conninfo: str, collector: Collector) -> None:
    theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running(conninfo, tracing=Tracing(collector.url, sample_ratio=1.0)) as server:
        answer = await server.anonymous.request("GET", "/versions", headers={"traceparent": theirs})

    [span] = collector.named("GET /_matrix/client/versions")
    assert span.trace_id.hex() not in theirs
    assert not span.parent_span_id
    assert not {"traceparent", "tracestate", "traceresponse"} & {name.lower() for name in answer.headers}


async def test_what_outlives_a_request_is_a_trace_of_its_own(collector: Collector) -> None:
    tracer = Tracer(Tracing(collector.url, sample_ratio=1.0), "hearth.test")
    with tracer.begin("request", {}):
        may_go_on = asyncio.Event()

        async def outlive() -> None:
            with tracer.begin("during", {}):
                pass
            await may_go_on.wait()
            with tracer.within("no part of anything", {}):
                pass
            with tracer.begin("after", {}):
                pass

        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    may_go_on.set()
    await task
    await tracer.close()

    [request], [during], [after] = (collector.named(name) for name in ("request", "during", "after"))
    assert during.trace_id == request.trace_id
    assert after.trace_id != request.trace_id
    assert not after.parent_span_id
    assert not collector.named("no part of anything")


async def test_a_collector_that_is_away_harms_nobody(conninfo: str) -> None:
    async with running(conninfo, tracing=Tracing("http://127.0.0.1:9/v1/traces", sample_ratio=1.0)) as server:
        alice = await server.register("alice")
        room_id = await create_room(alice)
        await send(alice, room_id, "all the same")
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 20


async def test_failures_are_marked(conninfo: str, collector: Collector) -> None:
    async with running(conninfo, tracing=Tracing(collector.url, sample_ratio=1.0)) as server:
        await server.application.database.close()
        status, _ = await Client(server.base_url, server.anonymous.session, access_token="x").get("/v3/account/whoami")

    [span] = collector.named("GET /_matrix/client/v3/account/whoami")
    assert status == 503
    assert span.status.code == 2


def test_a_server_without_a_collector_imports_nothing_of_it(server: Server) -> None:
    assert server.application.tracer is None
    code = "import sys, homeserver.app, homeserver.worker; print(any('opentelemetry' in name for name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"tracing\.endpoint: no address"):
        parse("server_name: a.example\ntracing: collector:4318", file="config.yaml", directory=Path())
