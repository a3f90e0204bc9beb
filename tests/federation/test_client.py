"""Signed requests from one server to another: what the other sees, and what is made of its answers."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from federation.outbound.availability import MAX_SECONDS, Availability
from federation.outbound.client import FederationClient, path_of
from federation.outbound.name_lookup import Service
from federation.outbound.server_discovery import Ports, ServerDiscovery
from federation.protocol import request_signing
from federation.protocol.errors import PeerRefused, PeerUnreachable
from federation.protocol.request_signing import SignedRequest
from federation.protocol.signatures import SigningKey
from federation.protocol.types import ServerName
from homeserver import configured
from homeserver.config import Federation
from tests.client import Server
from tests.federation.authority import Authority
from tests.federation.https_servers import (
    AnswerFunction,
    Place,
    Request,
    Write,
    an_egress,
    https_server,
    json_answer,
    loopback_policy,
    redirect_to,
    whole_answer,
)
from tests.federation.servers import Pair, federating, free_port

KEY = SigningKey.from_seed("test", bytes(range(32)))
NEAR, FAR = ServerName("near.test"), ServerName("far.test")
PATH = "/_matrix/federation/v1/some"


def client_of(server: Server) -> FederationClient:
    """What the server asks others with."""
    return server.application.outbound.client


async def test_another_server_tells_its_version(pair: Pair) -> None:
    answer = await client_of(pair.near).get(ServerName(pair.far.name), "/_matrix/federation/v1/version")

    assert answer["server"]["name"] == "Hearth"


async def test_an_unknown_path_is_refused_with_the_error_of_the_other_server(pair: Pair) -> None:
    with pytest.raises(PeerRefused) as raised:
        await client_of(pair.near).get(ServerName(pair.far.name), "/_matrix/federation/v1/nothing")

    assert (raised.value.status, raised.value.errcode, raised.value.http_status) == (404, "M_UNRECOGNIZED", 502)


async def test_a_server_that_does_not_listen_is_left_alone_for_a_while(pair: Pair) -> None:
    nobody = ServerName(f"127.0.0.1:{free_port()}")
    client = client_of(pair.near)

    with pytest.raises(PeerUnreachable, match="onnect"):
        await client.get(nobody, "/_matrix/federation/v1/version")
    with pytest.raises(PeerUnreachable, match="left alone"):
        await client.get(nobody, "/_matrix/federation/v1/version")
    with pytest.raises(PeerUnreachable, match="onnect"):
        await client.get(nobody, "/_matrix/federation/v1/version", patient=True)


def test_segments_of_a_path_are_percent_encoded() -> None:
    assert path_of("/event/{}/{}", "$a/b?c", "ä") == "/event/%24a%2Fb%3Fc/%C3%A4"


async def test_a_request_is_signed_so_that_another_server_believes_it(pair: Pair) -> None:
    event = path_of("/_matrix/federation/v1/event/{}", "$" + "a" * 43)

    with pytest.raises(PeerRefused) as raised:
        await client_of(pair.near).get(ServerName(pair.far.name), event)

    assert raised.value.status in (403, 404)  # and not 401


@pytest.mark.parametrize("is_allowed", [False, True])
async def test_the_settings_say_where_requests_go_and_whom_they_trust(
    pair: Pair, maintenance_conninfo: str, authority: Authority, *, is_allowed: bool
) -> None:
    settings = Federation(notary_servers=(), allowed_ranges=(ip_network("127.0.0.0/8"),) if is_allowed else ())

    async with federating(maintenance_conninfo, authority, federation=settings) as other:
        with pytest.raises(PeerUnreachable, match=r"(?i)certificate" if is_allowed else "no request may go to"):
            await client_of(other).get(ServerName(pair.far.name), PATH)


# --- against servers that are not ours


@asynccontextmanager
async def a_client(
    authority: Authority, services: Mapping[str, Sequence[Service]] | None = None
) -> AsyncIterator[FederationClient]:
    """near.test's client; far.test is on loopback, and has no delegation."""
    async with an_egress(
        authority, {"far.test": ["127.0.0.1"], "one.test": ["127.0.0.1"]}, services=services
    ) as egress:
        discovery = ServerDiscovery(egress, ports=Ports(https=free_port()))
        yield FederationClient(
            NEAR, KEY, egress, discovery, Availability(), speaks_with=lambda name: name != "other.test"
        )
        await discovery.close()


def at(place: Place, host: str = "far.test") -> ServerName:
    """The server's name with its port."""
    return ServerName(f"{host}:{place.port}")


async def test_the_signature_covers_method_path_query_and_body(authority: Authority) -> None:
    async with (
        https_server(authority, "far.test", answer=json_answer({"a": 1})) as place,
        a_client(authority) as client,
    ):
        far = at(place)
        await client.get(far, PATH, [("q", "ä b&c"), ("q", "/+")])
        await client.put(far, PATH, {"b": "é", "a": [1, None]})
        await client.post(far, PATH, {})

    get, put, post = place.requests
    assert (get.path, get.body, "content-type" in get.headers) == (f"{PATH}?q=%C3%A4%20b%26c&q=%2F%2B", b"", False)
    assert (put.body, put.headers["content-type"]) == ('{"a":[1,null],"b":"é"}'.encode(), "application/json")
    assert (post.method, post.body) == ("POST", b"{}")
    for request in place.requests:
        signed = SignedRequest(
            method=request.method, uri=request.path, origin=NEAR, destination=far, content=request.body or None
        )
        authorization = request_signing.parse_header(request.headers["authorization"])
        assert authorization.destination == far
        request_signing.verify(authorization, signed, KEY.public_key)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_a_server_whose_name_is_an_ipv6_address(authority: Authority) -> None:
    policy = loopback_policy(["::1/128"])
    async with (
        https_server(authority, "::1", answer=json_answer({"a": 1}), address="::1") as place,
        an_egress(authority, policy=policy) as egress,
    ):
        client = FederationClient(
            NEAR, KEY, egress, ServerDiscovery(egress), Availability(), speaks_with=lambda _name: True
        )
        assert await client.get(at(place, "[::1]"), PATH) == {"a": 1}
    assert place.requests[0].headers["host"] == f"[::1]:{place.port}"


async def test_the_place_of_a_service_is_asked_for_the_server(authority: Authority) -> None:
    async with https_server(authority, "far.test", answer=json_answer({})) as place:
        services = {"_matrix-fed._tcp.far.test": [Service("one.test", free_port()), Service("one.test", place.port)]}
        async with a_client(authority, services) as client:
            assert await client.get(FAR, PATH) == {}

    assert place.requests[0].headers["host"] == "far.test"
    assert place.tls_names == ["far.test"]


async def test_the_place_of_a_service_must_prove_the_servers_name(authority: Authority) -> None:
    async with https_server(authority, "one.test", answer=json_answer({})) as place:
        services = {"_matrix-fed._tcp.far.test": [Service("one.test", place.port)]}
        async with a_client(authority, services) as client:
            with pytest.raises(PeerUnreachable):
                await client.get(FAR, PATH)
    assert place.requests == []


async def test_another_place_is_not_tried_once_a_request_was_sent(authority: Authority) -> None:
    async def hang_up(_request: Request, _write: Write) -> None:
        raise ConnectionError

    async with (
        https_server(authority, "far.test", answer=hang_up) as first,
        https_server(authority, "far.test", answer=json_answer({})) as second,
    ):
        services = {"_matrix-fed._tcp.far.test": [Service("one.test", first.port), Service("one.test", second.port)]}
        async with a_client(authority, services) as client:
            with pytest.raises(PeerUnreachable):
                await client.post(FAR, PATH, {})
    assert second.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        whole_answer(b""),
        whole_answer(b"{"),
        whole_answer(b"[]"),
        whole_answer(b"null"),
        whole_answer(b'{"a":1,"a":2}'),
        whole_answer(b'{"a":NaN}'),
        whole_answer(b'{"a":"\xff"}'),
        whole_answer(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        whole_answer(b"{}", content_type="text/html"),
        whole_answer(b"{}" + b" " * 1_000_000),
    ],
)
async def test_a_malformed_answer_is_none_but_the_server_lives(authority: Authority, answer: AnswerFunction) -> None:
    async with https_server(authority, "far.test", answer=answer) as place, a_client(authority) as client:
        for _ in range(2):
            with pytest.raises(PeerUnreachable) as raised:
                await client.get(at(place), PATH, max_bytes=600_000)
            assert "left alone" not in str(raised.value)
            assert raised.value.message == f"The server {at(place)} cannot be reached"


async def test_floats_and_depth_are_for_the_reader_of_events(authority: Authority) -> None:
    body = b'{"events":[{"x":1.5,"deep":' + b"[" * 200 + b"]" * 200 + b"}]}"
    async with https_server(authority, "far.test", answer=whole_answer(body)) as place, a_client(authority) as client:
        assert (await client.get(at(place), PATH))["events"][0]["x"] == 1.5


async def test_the_old_form_of_an_answer(authority: Authority) -> None:
    async with (
        https_server(authority, "far.test", answer=json_answer([200, {"a": 1}])) as place,
        a_client(authority) as client,
    ):
        assert await client.put(at(place), PATH, {}) == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "status", "errcode", "error"),
    [
        (json_answer({"errcode": "M_FORBIDDEN", "error": "no", "x": 1}, status=403), 403, "M_FORBIDDEN", "no"),
        (json_answer({"errcode": "M_FORBIDDEN"}, status=500), 500, "M_FORBIDDEN", "status 500"),
        (json_answer({"errcode": ["x"], "error": 5}, status=400), 400, "M_UNKNOWN", "status 400"),
        (json_answer({"errcode": "<script>", "error": "x" * 1000}, status=400), 400, "M_UNKNOWN", "x" * 500),
        (whole_answer(b"<html>", status=404, content_type="text/html"), 404, "M_UNKNOWN", "status 404"),
        (whole_answer(b"x" * 200_000, status=429), 429, "M_UNKNOWN", "status 429"),
        (redirect_to("https://one.test/"), 302, "M_UNKNOWN", "status 302"),
        (whole_answer(status=204), 204, "M_UNKNOWN", "status 204"),
    ],
)
async def test_a_refusal(authority: Authority, answer: AnswerFunction, status: int, errcode: str, error: str) -> None:
    async with https_server(authority, "far.test", answer=answer) as place, a_client(authority) as client:
        for _ in range(2):
            with pytest.raises(PeerRefused) as raised:
                await client.get(at(place), PATH)
            refused = raised.value
            assert (refused.status, refused.errcode, refused.error) == (status, errcode, error)


async def test_what_else_a_refusal_says_can_be_read(authority: Authority) -> None:
    body = {"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "no", "room_version": "99"}
    async with (
        https_server(authority, "far.test", answer=json_answer(body, status=400)) as place,
        a_client(authority) as client,
    ):
        with pytest.raises(PeerRefused) as raised:
            await client.get(at(place), PATH)
    assert raised.value.answer["room_version"] == "99"


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_proxy_that_says_that_the_server_is_away(authority: Authority, status: int) -> None:
    async with (
        https_server(authority, "far.test", answer=whole_answer(status=status)) as place,
        a_client(authority) as client,
    ):
        with pytest.raises(PeerRefused):
            await client.get(at(place), PATH)
        with pytest.raises(PeerUnreachable, match="left alone"):
            await client.get(at(place), PATH)


async def test_a_server_that_is_too_slow_is_left_alone_until_it_answers(authority: Authority) -> None:
    is_slow = True

    async def answer(request: Request, write: Write) -> None:
        if is_slow:
            await asyncio.sleep(3600)
        await json_answer({})(request, write)

    async with https_server(authority, "far.test", answer=answer) as place, a_client(authority) as client:
        with pytest.raises(PeerUnreachable, match="too long"):
            await client.get(at(place), PATH, timeout=0.3)
        is_slow = False
        with pytest.raises(PeerUnreachable, match="left alone"):
            await client.get(at(place), PATH)
        assert await client.get(at(place), PATH, patient=True) == {}
        assert await client.get(at(place), PATH) == {}


async def test_a_server_does_not_ask_itself(authority: Authority) -> None:
    async with a_client(authority) as client:
        with pytest.raises(PeerUnreachable, match="this server"):
            await client.get(NEAR, PATH)


async def test_a_server_that_the_settings_exclude_is_not_asked(authority: Authority) -> None:
    async with a_client(authority) as client:
        with pytest.raises(PeerUnreachable, match="settings"):
            await client.get(ServerName("other.test"), PATH, patient=True)


async def test_a_stream_comes_in_pieces(authority: Authority) -> None:
    body = orjson.dumps({"state": ["x" * 1000] * 1000})
    async with https_server(authority, "far.test", answer=whole_answer(body)) as place, a_client(authority) as client:
        async with client.stream("PUT", at(place), PATH, {"a": 1}) as stream:
            pieces = [chunk async for chunk in stream.chunks()]
        with pytest.raises(PeerUnreachable, match=r"more than|of at most"):
            await _drain(client, at(place), max_bytes=1000)

    assert len(pieces) > 1
    assert b"".join(pieces) == body
    assert place.requests[0].body == b'{"a":1}'


async def test_a_stream_is_refused_like_any_request(authority: Authority) -> None:
    answer = json_answer({"errcode": "M_FORBIDDEN", "error": "no"}, status=403)
    async with https_server(authority, "far.test", answer=answer) as place, a_client(authority) as client:
        with pytest.raises(PeerRefused, match="no"):
            await _drain(client, at(place))


async def _drain(client: FederationClient, destination: ServerName, **options: Any) -> None:
    async with client.stream("GET", destination, PATH, **options) as stream:
        async for _ in stream.chunks():
            pass


# --- availability


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def _pause(availability: Availability, clock: Clock) -> float:
    before = clock.seconds
    while True:
        try:
            availability.check(FAR)
        except PeerUnreachable:
            clock.seconds += 0.25
        else:
            return clock.seconds - before


def test_pauses_double_up_to_an_hour_and_end_with_a_sign_of_life() -> None:
    clock = Clock()
    availability = Availability(now=clock)
    availability.check(FAR)
    pauses = []
    for _ in range(13):
        availability.failed(FAR)
        availability.failed(FAR)  # another request that was under way
        pauses.append(_pause(availability, clock))

    assert 4 <= pauses[0] <= 6.25
    assert all(1.3 < after / before < 3.2 for before, after in pairwise(pauses[:9]))
    assert max(pauses) <= MAX_SECONDS * 1.2 + 1
    assert min(pauses[-3:]) >= MAX_SECONDS * 0.8

    availability.failed(FAR)
    availability.alive(FAR)
    availability.check(FAR)
    availability.failed(FAR)
    assert _pause(availability, clock) <= 6.25


def test_servers_are_left_alone_one_by_one() -> None:
    availability = Availability(now=Clock())
    availability.failed(FAR)

    availability.check(NEAR)
    with pytest.raises(PeerUnreachable):
        availability.check(FAR)


@pytest.mark.one_process("each leaves alone whom it cannot reach")
async def test_a_request_from_a_server_ends_its_pause(pair: Pair) -> None:
    far = pair.far.application.outbound
    near = ServerName(pair.near.name)
    far.availability.failed(near)

    with pytest.raises(PeerRefused):
        await client_of(pair.near).get(
            ServerName(pair.far.name), path_of("/_matrix/federation/v1/event/{}", "$" + "a" * 43)
        )

    far.availability.check(near)


@pytest.mark.parametrize(
    ("settings", "permitted"),
    [
        ({}, {"a.test", "b.a.test:1", "127.0.0.1:2"}),
        ({"allowed_servers": ("*.a.test", "127.0.0.1")}, {"b.a.test:1", "127.0.0.1:2"}),
        ({"denied_servers": ("*.A.test",)}, {"a.test", "127.0.0.1:2"}),
        ({"allowed_servers": ()}, set()),
        ({"enabled": False}, set()),
    ],
)
def test_the_settings_say_which_servers_are_spoken_with(settings: dict[str, Any], permitted: set[str]) -> None:
    speaks_with = configured.speaks_with(Federation(**settings))

    names = [ServerName("a.test"), ServerName("b.a.test:1"), ServerName("127.0.0.1:2")]
    assert {name for name in names if speaks_with(name)} == permitted
