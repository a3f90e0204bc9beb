"""What a collector is told of transactions between servers, and what other servers are not."""

from pathlib import Path

from homeserver.config import Tracing
from tests.client import quote
from tests.collector import attributes, collecting
from tests.federation.authority import Authority
from tests.federation.listening_peer import listening
from tests.federation.resident_rooms import SharedRoom
from tests.federation.servers import federating, two_servers
from tests.rooms import create_room, send

RECEIVE = "PUT /_matrix/federation/v1/send/{txn_id}"


async def test_a_message_is_traced_on_both_sides(maintenance_conninfo: str, tmp_path: Path) -> None:
    async with collecting() as collector:
        tracing = Tracing(collector.url, sample_ratio=1.0)
        async with two_servers(maintenance_conninfo, tmp_path, tracing=tracing) as pair:
            alice, bob = await pair.near.register("alice"), await pair.far.register("bob")
            room_id = await create_room(alice, preset="public_chat")
            await bob.ok("POST", f"/v3/join/{quote(room_id)}", {}, params={"via": pair.near.name})
            token = (await bob.ok("GET", "/v3/sync"))["next_batch"]
            event_id = await send(alice, room_id, "hello")
            while event_id not in str(answer := await bob.ok("GET", f"/v3/sync?since={token}&timeout=10000")):
                token = answer["next_batch"]
            near, far = pair.near.name, pair.far.name

    by_id = {span.span_id: span for span in collector.spans}
    sent = [span for span in collector.named("send transaction") if attributes(span)["server.address"] == far]
    asked = [by_id[span.parent_span_id] for span in collector.named("ask another server") if span.parent_span_id]
    assert any(span in asked for span in sent)
    received = [span for span in collector.named("receive transaction") if attributes(span)["hearth.origin"] == near]
    assert received
    for span in received:
        request = by_id[span.parent_span_id]
        assert request.name == RECEIVE
        assert attributes(request)["hearth.origin"] == near
        assert not request.parent_span_id  # a trace of its own: what others send is not believed
    appended = {span.parent_span_id for span in collector.named("append")}
    assert any(span.span_id in appended for span in received)


async def test_no_other_server_is_told_of_a_trace(maintenance_conninfo: str, authority: Authority) -> None:
    async with collecting() as collector:
        tracing = Tracing(collector.url, sample_ratio=1.0)
        async with (
            federating(maintenance_conninfo, authority, tracing=tracing) as server,
            listening(server, authority) as peer,
        ):
            alice = await server.register("alice")
            shared = await SharedRoom.made(server, alice, peer)
            await shared.join(peer.user())
            await send(alice, shared.room_id, "hello")
            await peer.until_messages(["hello"])

    assert collector.named("send transaction")
    for headers in peer.headers:
        assert not headers & {"traceparent", "tracestate", "baggage", "b3"}
