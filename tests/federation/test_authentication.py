"""`inbound/authentication.py`: who sends a request, over HTTP (Server-Server API, "Request Authentication")."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import pytest_asyncio
import yarl
from msgspec.structs import replace

from federation import arriving
from federation.inbound import authentication
from federation.inbound.authentication import Authenticator, FederationCall, FederationRoute, build_federation_routes
from federation.protocol.errors import LimitExceeded
from federation.protocol.request_signing import SignedRequest
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, ServerName
from federation.web import Answer as WebAnswer
from federation.web import Call, Route
from homeserver.config import API, Listener
from homeserver.listening import Listening
from tests.client import Client, Server
from tests.federation.peer import Peer
from tests.servers import SIGNING_KEY

LARGE = "/_matrix/federation/v1/large"
ECHO = "/_matrix/federation/v1/echo/a%2Fb"


@dataclass
class Budget:
    """What is left of it for each key; `limit` at first."""

    spent: dict[str, int] = field(default_factory=dict)
    limit: int = 1000

    def check(self, key: str) -> None:
        if self.spent.get(key, 0) >= self.limit:
            raise LimitExceeded(1000)

    def spend(self, key: str, *, cost: int = 1) -> None:
        if self.spent.get(key, 0) + cost > self.limit:
            raise LimitExceeded(1000)
        self.spent[key] = self.spent.get(key, 0) + cost


@dataclass
class Echo:
    """A server that tells what it understood, and what it noted."""

    server: Server
    peer: Peer
    budget: Budget
    alive: list[ServerName]


@pytest_asyncio.fixture
async def echo(server: Server) -> AsyncIterator[Echo]:
    """The shared server's name and keys behind endpoints that echo."""

    async def tell(call: FederationCall) -> WebAnswer:
        return {"origin": call.origin, "json": call.json, "path": dict(call.path), "q": call.query_text("q")}

    async def greet(_call: Call) -> WebAnswer:
        return {"hello": "world"}

    budget, alive = Budget(), list[ServerName]()
    authenticator = Authenticator(
        ServerName(server.name),
        server.application.outbound.keyring.verify_request,
        budget,
        alive.append,
        tail=server.application.tail,
        speaks_with=lambda name: name != "excluded.test",
    )
    path = "/_matrix/federation/v1/echo/{name}"
    routes: list[FederationRoute | Route] = [
        *(FederationRoute(method, path, tell, max_bytes=10_000, max_depth=50) for method in ("GET", "PUT", "POST")),
        FederationRoute("PUT", LARGE, tell),
        Route("GET", "/_matrix/federation/v1/hello", greet),
    ]
    listening = Listening({API.FEDERATION: build_federation_routes(routes, authenticator)})
    await listening.start([Listener(port=0, apis=(API.FEDERATION,))])
    listener = Server(server.application, Client(f"http://127.0.0.1:{listening.ports[0]}", server.anonymous.session))
    yield Echo(listener, await Peer(listener).trust(), budget, alive)
    await listening.stop()


async def test_the_version_is_for_everybody(server: Server) -> None:
    answer = await server.anonymous.get("/_matrix/federation/v1/version")

    assert answer.status == 200
    assert answer.body["server"]["name"] == "Hearth"
    assert isinstance(answer.body["server"]["version"], str)


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_signed_body_arrives_with_its_origin(echo: Echo, method: str) -> None:
    body = {"b": [1, {"é": None}], "a": "\u0000"}

    answer = await echo.peer.request(method, ECHO, body, q="x y&z")

    assert answer.status == 200
    assert answer.body == {"origin": echo.peer.name, "json": body, "path": {"name": "a/b"}, "q": "x y&z"}
    assert echo.alive == [echo.peer.name]
    assert echo.budget.spent == {echo.peer.name: 1}


async def test_a_request_without_a_body(echo: Echo) -> None:
    answer = await echo.peer.request("GET", ECHO)

    assert (answer.status, answer.body["json"]) == (200, {})


async def test_what_other_processes_did_is_known_before_a_server_is_answered(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail, is_known = echo.server.application.tail, asyncio.Event()

    async def hear() -> None:
        await asyncio.sleep(0.01)
        is_known.set()

    monkeypatch.setattr(tail, "is_behind", lambda: not is_known.is_set())
    monkeypatch.setattr(tail, "hear_neighbours", hear)

    assert (await echo.peer.request("GET", ECHO)).status == 200
    assert is_known.is_set()


async def test_a_put_needs_a_body(echo: Echo) -> None:
    answer = await echo.peer.request("PUT", ECHO)

    assert (answer.status, answer.body["errcode"]) == (400, "M_NOT_JSON")


async def test_a_body_that_is_not_canonical_is_verified_in_its_canonical_form(echo: Echo) -> None:
    header = echo.peer.header("PUT", ECHO, b'{"a":1,"b":[2]}')

    answer = await echo.peer.send("PUT", ECHO, b' { "b" : [ 2 ], "a" : 1 }\n', header)

    assert (answer.status, answer.body["json"]) == (200, {"a": 1, "b": [2]})


async def test_a_number_that_cannot_be_written_again_is_verified_as_it_came(echo: Echo) -> None:
    content = b'{"a":100000000000000000000000000000000}'

    answer = await echo.peer.send("PUT", ECHO, content, echo.peer.header("PUT", ECHO, content))

    assert answer.status == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "X-Matrix",
        "X-Matrix ",
        "Bearer abc",
        'X-Matrix origin="a.example"',
        'X-Matrix origin="a.example",key="ed25519:1"',
        'X-Matrix origin="not a name",key="ed25519:1",sig="abc"',
        'X-Matrix origin="a.example",key="nonsense",sig="abc"',
        'X-Matrix origin="a.example",origin="a.example",key="ed25519:1",sig="abc"',
        'X-Matrix origin="a.example,key="ed25519:1",sig="abc"',
    ],
)
async def test_a_header_that_claims_nothing(echo: Echo, header: str | None) -> None:
    answer = await echo.peer.send("GET", ECHO, None, *([] if header is None else [header]))

    assert (answer.status, answer.body["errcode"]) == (401, "M_UNAUTHORIZED")
    assert not echo.alive


CONTENT = b'{"a":1}'


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "POST"},
        {"uri": "/_matrix/federation/v1/echo/a/b"},
        {"uri": "/_matrix/federation/v1/echo/other"},
        {"uri": ECHO + "?q=1"},
        {"uri": ECHO + "?"},
        {"content": b'{"a":2}'},
        {"content": None},
        {"destination": ServerName("elsewhere.example")},
        {"origin": ServerName("elsewhere.example")},
    ],
)
async def test_a_signature_of_something_else(echo: Echo, changes: JsonObject) -> None:
    """As when a request is replayed with another path, query, method or body, or one to another server is."""
    peer = echo.peer
    request = SignedRequest(
        method="PUT", uri=ECHO, origin=peer.name, destination=ServerName(echo.server.name), content=CONTENT
    )
    signature = peer.key.sign(replace(request, **changes).signed_bytes())
    header = f'X-Matrix origin="{peer.name}",destination="{echo.server.name}",key="{peer.key.key_id}",sig="{signature}"'

    answer = await peer.send("PUT", ECHO, CONTENT, header)

    assert (answer.status, answer.body["errcode"]) == (401, "M_UNAUTHORIZED")
    assert not echo.alive


async def test_a_replayed_request_with_another_query(echo: Echo) -> None:
    header = echo.peer.header("GET", ECHO + "?q=1", None)

    right = await echo.peer.send("GET", ECHO + "?q=1", None, header)
    wrong = await echo.peer.send("GET", ECHO + "?q=2", None, header)

    assert (right.status, wrong.status) == (200, 401)


async def test_a_request_that_is_meant_for_another_server(echo: Echo) -> None:
    header = echo.peer.header("GET", ECHO, None).replace(echo.server.name, "elsewhere.example")

    answer = await echo.peer.send("GET", ECHO, None, header)

    assert (answer.status, answer.body["errcode"]) == (401, "M_UNAUTHORIZED")


async def test_older_servers_leave_the_destination_out_of_the_header(echo: Echo) -> None:
    destination = f'destination="{echo.server.name}",'
    header = echo.peer.header("GET", ECHO, None)
    assert destination in header

    answer = await echo.peer.send("GET", ECHO, None, header.replace(destination, ""))

    assert answer.status == 200


async def test_a_key_that_nobody_knows(echo: Echo) -> None:
    echo.peer.key = SigningKey.from_seed("other", b"x" * 32)

    answer = await echo.peer.request("GET", ECHO)

    assert (answer.status, answer.body["errcode"]) == (401, "M_UNAUTHORIZED")


async def test_a_server_does_not_speak_for_another(echo: Echo) -> None:
    victim = await Peer(echo.server).trust()

    assert (await echo.peer.request_as(victim.name, "GET", ECHO)).status == 401


async def test_nobody_speaks_for_us(echo: Echo) -> None:
    assert (await echo.peer.request_as(echo.server.name, "GET", ECHO)).status == 401


async def test_our_own_signature_is_not_another_servers(echo: Echo) -> None:
    echo.peer.key = SIGNING_KEY

    assert (await echo.peer.request_as(echo.server.name, "GET", ECHO)).status == 401


@pytest.mark.parametrize(
    ("content", "status", "errcode"),
    [
        (b"{", 400, "M_NOT_JSON"),
        (b"[]", 400, "M_BAD_JSON"),
        (b'{"a":NaN}', 400, "M_NOT_JSON"),
        (b'{"a":Infinity}', 400, "M_NOT_JSON"),
        (b'{"a":"\xff"}', 400, "M_NOT_JSON"),
        (b'{"a":"\\ud800"}', 400, "M_NOT_JSON"),
        (b'{"a":1,"a":1}', 400, "M_BAD_JSON"),
        (b'{"a":' + b"[" * 51 + b"]" * 51 + b"}", 400, "M_BAD_JSON"),
        (b'{"a":"' + b"x" * 10_000 + b'"}', 413, "M_TOO_LARGE"),
    ],
)
async def test_a_body_that_is_refused_although_it_is_signed(
    echo: Echo, content: bytes, status: int, errcode: str
) -> None:
    answer = await echo.peer.send("PUT", ECHO, content, echo.peer.header("PUT", ECHO, content))

    assert (answer.status, answer.body["errcode"]) == (status, errcode)


async def test_a_header_for_each_key_of_which_one_holds(echo: Echo) -> None:
    holds = echo.peer.header("GET", ECHO)
    echo.peer.key = SigningKey.from_seed("newer", b"n" * 32)
    unknown = echo.peer.header("GET", ECHO)

    assert (await echo.peer.send("GET", ECHO, None, unknown, holds)).status == 200
    assert (await echo.peer.send("GET", ECHO, None, holds, unknown)).status == 200
    assert (await echo.peer.send("GET", ECHO, None, unknown, unknown)).status == 401
    assert (await echo.peer.send("GET", ECHO, None, *[holds] * 11)).status == 401


async def test_headers_of_two_servers(echo: Echo) -> None:
    other = await Peer(echo.server).trust()

    answer = await echo.peer.send("GET", ECHO, None, echo.peer.header("GET", ECHO), other.header("GET", ECHO))

    assert answer.status == 401


async def test_a_server_that_asks_too_much_is_told_to_wait(echo: Echo) -> None:
    echo.budget.limit = 2

    answers = [await echo.peer.request("GET", ECHO) for _ in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[-1].body["errcode"] == "M_LIMIT_EXCEEDED"
    assert echo.budget.spent == {echo.peer.name: 2}


async def test_an_address_that_guesses_signatures_is_not_listened_to(echo: Echo) -> None:
    echo.budget.limit = 2

    answers = [await echo.peer.send("GET", ECHO, None, "X-Matrix nonsense") for _ in range(3)]

    assert [answer.status for answer in answers] == [401, 401, 429]
    assert echo.budget.spent == {"127.0.0.1": 2}
    assert (await echo.peer.request("GET", ECHO)).status == 429  # not even looked at


async def test_large_bodies_cost_more(echo: Echo) -> None:
    body = {"a": "x" * 250_000}

    answer = await echo.peer.request("PUT", LARGE, body)

    assert answer.status == 200
    assert echo.budget.spent == {echo.peer.name: 3}


async def test_a_large_body_is_not_read_before_its_origin_may_spend_that_much(echo: Echo) -> None:
    echo.budget.limit = 2
    content = b'{"a":"' + b"x" * 250_000  # which is no JSON

    answer = await echo.peer.send("PUT", LARGE, content, echo.peer.header("PUT", LARGE, content))

    assert (answer.status, answer.body["errcode"]) == (429, "M_LIMIT_EXCEEDED")


async def test_a_large_body_that_nobody_signed_costs_its_address_before_it_is_read(echo: Echo) -> None:
    content = b'{ "a": "' + b"x" * 250_000 + b'"}'

    answer = await echo.peer.send("PUT", LARGE, content, echo.peer.header("PUT", LARGE, b"{}"))

    assert answer.status == 401
    assert echo.budget.spent == {"127.0.0.1": 3}


async def test_few_requests_of_one_address_wait_at_a_time(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """For bodies that do not come, or for keys."""
    monkeypatch.setattr(authentication, "MAX_PENDING", 2)
    body_is_there = asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b"{"
        await body_is_there.wait()
        yield b"}"

    session = echo.server.anonymous.session
    url = yarl.URL(echo.server.base_url + ECHO, encoded=True)
    headers = {"Authorization": echo.peer.header("PUT", ECHO, b"{}")}
    slow = [asyncio.create_task(session.put(url, data=slow_body(), headers=headers)) for _ in range(2)]
    await asyncio.sleep(0.1)

    assert (await echo.peer.request("GET", ECHO)).status == 429
    body_is_there.set()
    assert [(await request).status for request in slow] == [200, 200]
    assert (await echo.peer.request("GET", ECHO)).status == 200


async def test_bodies_of_whoever_take_so_much_memory_and_the_oldest_are_given_up(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "MAX_BYTES", 250_000)
    never = asyncio.Event()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b'{"a":"' + b"x" * 100_000
        await never.wait()

    session = echo.server.anonymous.session
    url = yarl.URL(echo.server.base_url + LARGE, encoded=True)
    headers = {"Authorization": echo.peer.header("PUT", LARGE, b"{}")}
    slow = []
    for _ in range(4):
        slow.append(asyncio.create_task(session.put(url, data=slow_body(), headers=headers)))
        await asyncio.sleep(0.1)
    ended, held = await asyncio.wait(slow, timeout=0.5)
    assert ended == set(slow[:2])
    assert {(await request).status for request in ended} == {429}

    answer = await echo.peer.request("PUT", LARGE, {"a": "x" * 100_000})
    assert answer.status == 200
    for request in held:
        request.cancel()
    await asyncio.gather(*held, return_exceptions=True)


async def test_what_needs_no_signature_spends_from_the_budget_of_the_address(echo: Echo) -> None:
    echo.budget.limit = 1
    hello = "/_matrix/federation/v1/hello"

    answers = [await echo.peer.send("GET", hello, None) for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 429]


async def test_a_server_that_the_settings_exclude(echo: Echo) -> None:
    excluded = await Peer(echo.server, "excluded.test").trust()

    answer = await excluded.request("GET", "/v1/echo/x")

    assert (answer.status, answer.body["errcode"]) == (403, "M_FORBIDDEN")
    assert "excluded.test" not in echo.alive
