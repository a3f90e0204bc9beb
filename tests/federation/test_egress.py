"""The one HTTP client against real TLS servers that are wrong, hostile or slow."""

import asyncio
import datetime
import gzip
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from federation.outbound.egress import (
    PLACES,
    AddressDenied,
    AnswerTooLarge,
    Crowded,
    Egress,
    EgressError,
    EgressRequest,
    NotConnected,
    WrongContentType,
)
from federation.outbound.turns import Places
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
from tests.federation.servers import free_port

HERE = {"near.test": ["127.0.0.1"], "far.test": ["127.0.0.1"]}


@pytest_asyncio.fixture
async def egress(authority: Authority) -> AsyncIterator[Egress]:
    """A client that may reach loopback, where near.test and far.test are."""
    async with an_egress(authority, HERE) as egress:
        yield egress


def a_request(port: int, host: str = "near.test", **changes: Any) -> EgressRequest:
    """GET of a small answer."""
    return EgressRequest(**{"url": f"https://{host}:{port}/path", "max_bytes": 10_000, "timeout": 20.0, **changes})


# --- certificates


async def test_a_server_that_proves_its_name_is_answered(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "near.test", answer=json_answer({"a": 1})) as place:
        response = await egress.fetch(a_request(place.port, headers={"X-Some": "thing"}))

    assert (response.status, response.body) == (200, b'{"a":1}')
    assert response.headers["content-type"] == "application/json"
    assert place.requests[0].headers["x-some"] == "thing"
    assert place.requests[0].headers["host"] == f"near.test:{place.port}"
    assert place.tls_names == ["near.test"]


async def test_a_certificate_for_another_name_is_refused(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "far.test", "127.0.0.2", answer=json_answer({})) as place:
        with pytest.raises(NotConnected, match=r"(?i)certificate"):
            await egress.fetch(a_request(place.port))
        with pytest.raises(NotConnected, match=r"(?i)certificate"):
            await egress.fetch(a_request(place.port, "127.0.0.1"))
    assert place.requests == []


async def test_an_expired_certificate_is_refused(authority: Authority, egress: Egress) -> None:
    expired = authority.issue("near.test", lifetime=datetime.timedelta(hours=-1))
    async with https_server(authority, answer=json_answer({}), certificate=expired) as place:
        with pytest.raises(NotConnected, match=r"(?i)certificate"):
            await egress.fetch(a_request(place.port))


async def test_a_certificate_of_another_authority_is_refused(egress: Egress, tmp_path: Path) -> None:
    async with https_server(Authority(tmp_path), "near.test", answer=json_answer({})) as place:
        with pytest.raises(NotConnected, match=r"(?i)certificate"):
            await egress.fetch(a_request(place.port))


async def test_without_further_authorities_only_those_of_the_system_are_trusted(authority: Authority) -> None:
    async with https_server(authority, "near.test", answer=json_answer({})) as place, an_egress(None, HERE) as egress:
        with pytest.raises(NotConnected, match=r"(?i)certificate"):
            await egress.fetch(a_request(place.port))


async def test_a_certificate_for_an_address(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "127.0.0.1", answer=json_answer({})) as place:
        assert (await egress.fetch(a_request(place.port, "127.0.0.1"))).status == 200
    assert place.tls_names in ([], [None])


async def test_another_name_may_have_to_be_proved_than_the_host_of_the_url(
    authority: Authority, egress: Egress
) -> None:
    async with https_server(authority, "served.test", answer=json_answer({})) as place:
        request = a_request(place.port, host_header="served.test", tls_name="served.test")
        assert (await egress.fetch(request)).status == 200
        with pytest.raises(NotConnected, match=r"(?i)certificate"):  # and not by the connection that is open
            await egress.fetch(a_request(place.port, tls_name="other.test"))

    assert place.requests[0].headers["host"] == "served.test"
    assert place.tls_names == ["served.test", "other.test"]


async def test_what_is_not_https_is_refused_unless_asked_for(egress: Egress) -> None:
    with pytest.raises(EgressError, match="not https"):
        await egress.fetch(a_request(1, url="http://near.test/"))
    with pytest.raises(EgressError, match="not https"):
        await egress.fetch(a_request(1, url="file:///etc/passwd", allows_http=True))
    with pytest.raises(NotConnected):
        await egress.fetch(a_request(1, url=f"http://near.test:{free_port()}/", allows_http=True))


@pytest.mark.parametrize(
    "url", ["", "/path", "https://", "https://[::1", "https://a:b@near.test/", "https://near.test:99999/"]
)
async def test_a_url_that_is_none_is_refused(egress: Egress, url: str) -> None:
    with pytest.raises(EgressError):
        await egress.fetch(a_request(1, url=url))


# --- addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "near.test", "mapped.test"])  # noqa: S104  # refused
async def test_no_request_goes_to_a_denied_address(authority: Authority, host: str) -> None:
    names = {**HERE, "mapped.test": ["::ffff:127.0.0.1", "::1"]}
    async with (
        https_server(authority, "near.test", "127.0.0.1", answer=json_answer({})) as place,
        an_egress(authority, names, policy=loopback_policy([])) as egress,
    ):
        with pytest.raises(AddressDenied):
            await egress.fetch(a_request(place.port, host))
    assert place.connections == 0


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "017700000001"])
async def test_an_address_in_an_old_form_is_no_way_around(authority: Authority, host: str) -> None:
    async with (
        https_server(authority, answer=json_answer({}), certificate=authority.issue("127.0.0.1")) as place,
        an_egress(authority, {host: ["127.0.0.1"]}, policy=loopback_policy([])) as egress,
    ):
        with pytest.raises(EgressError):
            await egress.fetch(a_request(place.port, host))
    assert place.connections == 0


async def test_of_several_addresses_only_the_permitted_are_tried(authority: Authority) -> None:
    names = {"near.test": ["127.0.0.2", "127.0.0.1"]}
    async with (
        https_server(authority, "near.test", answer=json_answer({}), address="127.0.0.1") as place,
        an_egress(authority, names, policy=loopback_policy(["127.0.0.1/32"])) as egress,
    ):
        assert (await egress.fetch(a_request(place.port))).status == 200


async def test_the_next_address_is_tried_when_one_does_not_answer(authority: Authority) -> None:
    async with (
        https_server(authority, "near.test", answer=json_answer({})) as place,
        an_egress(authority, {"near.test": ["127.0.0.3", "127.0.0.1"]}) as egress,
    ):
        assert (await egress.fetch(a_request(place.port))).status == 200


async def test_a_redirect_to_a_denied_address_is_not_followed(authority: Authority) -> None:
    policy = loopback_policy(["127.0.0.1/32"])
    names = {"near.test": ["127.0.0.1"], "inner.test": ["127.0.0.2"]}
    async with https_server(authority, "inner.test", "127.0.0.2", answer=json_answer({}), address="127.0.0.2") as inner:
        for host in ("inner.test", "127.0.0.2", "[::ffff:127.0.0.2]"):
            answer = redirect_to(f"https://{host}:{inner.port}/secret")
            async with (
                https_server(authority, "near.test", answer=answer) as place,
                an_egress(authority, names, policy=policy) as egress,
            ):
                with pytest.raises(AddressDenied):
                    await egress.fetch(a_request(place.port, redirects=3))
                assert len(place.requests) == 1
    assert inner.connections == 0


async def test_a_name_without_address_is_not_connected(egress: Egress) -> None:
    with pytest.raises(NotConnected, match=r"there is no nowhere\.test"):
        await egress.fetch(a_request(1, "nowhere.test"))


async def test_proxies_of_the_environment_are_ignored(
    authority: Authority, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with https_server(authority, "near.test", answer=json_answer({})) as place:
        assert (await egress.fetch(a_request(place.port))).status == 200


# --- redirects


async def test_redirects_are_followed_only_where_asked_for(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "far.test", answer=json_answer({"far": 1})) as far:
        answer = redirect_to(f"https://far.test:{far.port}/there")
        async with https_server(authority, "near.test", answer=answer) as near:
            plain = await egress.fetch(a_request(near.port))
            followed = await egress.fetch(a_request(near.port, redirects=1))
            posted = await egress.fetch(a_request(near.port, redirects=1, method="POST", body=b"{}"))

    assert (plain.status, posted.status) == (302, 302)
    assert (followed.status, followed.body, followed.url) == (200, b'{"far":1}', f"https://far.test:{far.port}/there")
    assert [request.path for request in far.requests] == ["/there"]


async def test_another_place_gets_no_authorization_host_or_name(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "far.test", answer=json_answer({})) as far:
        answer = redirect_to(f"https://far.test:{far.port}/there")
        async with https_server(authority, "served.test", answer=answer) as near:
            await egress.fetch(
                a_request(
                    near.port,
                    redirects=1,
                    headers={"Authorization": "secret", "Accept": "x/y"},
                    host_header="served.test",
                    tls_name="served.test",
                )
            )

    assert "authorization" not in far.requests[0].headers
    assert far.requests[0].headers["accept"] == "x/y"
    assert far.requests[0].headers["host"] == f"far.test:{far.port}"
    assert far.tls_names == ["far.test"]


async def test_a_relative_redirect_stays_there(authority: Authority, egress: Egress) -> None:
    async def answer(request: Request, write: Write) -> None:
        await (redirect_to("/b?c#d") if request.path == "/path" else json_answer({}))(request, write)

    async with https_server(authority, "near.test", answer=answer) as place:
        response = await egress.fetch(a_request(place.port, redirects=1, headers={"Authorization": "secret"}))

    assert response.status == 200
    assert place.requests[1].path == "/b?c"
    assert place.requests[1].headers["authorization"] == "secret"


async def test_a_loop_of_redirects_ends(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "near.test", answer=redirect_to("/path")) as place:
        with pytest.raises(EgressError, match="redirects more than 4 times"):
            await egress.fetch(a_request(place.port, redirects=4))
    assert len(place.requests) == 5


@pytest.mark.parametrize(
    "location", ["http://far.test/", "ftp://far.test/", "https://a:b@far.test/", "https://[/", "//"]
)
async def test_a_redirect_to_no_https_address_fails(authority: Authority, egress: Egress, location: str) -> None:
    async with https_server(authority, "near.test", answer=redirect_to(location)) as place:
        with pytest.raises(EgressError):
            await egress.fetch(a_request(place.port, redirects=4))


# --- bodies


def _endless(head: bytes, piece: bytes, pause: float = 0.0) -> AnswerFunction:
    async def answer(_request: Request, write: Write) -> None:
        await write(head)
        while True:
            await write(piece)
            await asyncio.sleep(pause)

    return answer


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "piece"), [(CHUNKED, b"400\r\n" + b"x" * 1024 + b"\r\n"), (UNTIL_CLOSED, b"x" * 1024)]
)
async def test_an_endless_body_is_cut(authority: Authority, egress: Egress, head: bytes, piece: bytes) -> None:
    async with https_server(authority, "near.test", answer=_endless(head, piece)) as place:
        with pytest.raises(AnswerTooLarge):
            await egress.fetch(a_request(place.port))


async def test_a_body_that_is_announced_too_large_is_not_read(authority: Authority, egress: Egress) -> None:
    async def answer(_request: Request, write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\nContent-Length: 10001\r\n\r\n")

    async with https_server(authority, "near.test", answer=answer) as place:
        with pytest.raises(AnswerTooLarge):
            await egress.fetch(a_request(place.port))


async def test_a_body_of_just_the_size_is_read(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "near.test", answer=whole_answer(b"x" * 10_000)) as place:
        assert len((await egress.fetch(a_request(place.port))).body) == 10_000


async def test_a_body_that_unpacks_to_too_much_is_cut(authority: Authority, egress: Egress) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    answer = whole_answer(bomb, headers=["Content-Encoding: gzip"])
    async with https_server(authority, "near.test", answer=answer) as place:
        with pytest.raises(AnswerTooLarge):
            await egress.fetch(a_request(place.port, max_bytes=100_000, allows_compression=True))
        with pytest.raises(AnswerTooLarge):  # nor when nobody asked for it
            await egress.fetch(a_request(place.port, max_bytes=100_000))
    assert [request.headers["accept-encoding"] for request in place.requests] == ["gzip, deflate", "identity"]


async def test_a_body_that_comes_slowly_is_given_up(authority: Authority, egress: Egress) -> None:
    started = time.monotonic()
    async with https_server(authority, "near.test", answer=_endless(CHUNKED, b"1\r\nx\r\n", 0.05)) as place:
        with pytest.raises(EgressError, match="too long"):
            await egress.fetch(a_request(place.port, timeout=0.5))
    assert time.monotonic() - started < 15


async def test_a_body_that_stops_is_given_up_before_all_time_is_spent(
    authority: Authority, egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federation.outbound.egress.IDLE_SECONDS", 0.2)

    async def answer(_request: Request, write: Write) -> None:
        await asyncio.sleep(0.4)  # before the answer, that is the request's own time
        await write(CHUNKED + b"1\r\nx\r\n")
        await asyncio.sleep(3600)

    async with https_server(authority, "near.test", answer=answer) as place:
        with pytest.raises(EgressError, match="sends nothing any more"):
            await egress.fetch(a_request(place.port))


async def test_headers_that_do_not_come_are_given_up(authority: Authority, egress: Egress) -> None:
    started = time.monotonic()
    async with https_server(authority, "near.test", answer=_endless(b"HTTP/1.1 200 OK\r\n", b"", 0.05)) as place:
        with pytest.raises(EgressError, match="too long"):
            await egress.fetch(a_request(place.port, timeout=0.5))
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    "pieces", [(b"X-Many: %d\r\n" % number for number in itertools.count()), iter([b"X-Long: ", *[b"x" * 1000] * 100])]
)
async def test_endless_headers_are_refused(authority: Authority, egress: Egress, pieces: Any) -> None:
    async def answer(_request: Request, write: Write) -> None:
        await write(b"HTTP/1.1 200 OK\r\n")
        for piece in pieces:
            await write(piece)

    async with https_server(authority, "near.test", answer=answer) as place:
        with pytest.raises(EgressError, match=r"(?i)header|bytes|line"):
            await egress.fetch(a_request(place.port))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Encoding: gzip\r\n\r\nplain",
    ],
)
async def test_a_broken_answer_is_an_error(authority: Authority, egress: Egress, data: bytes) -> None:
    async def answer(_request: Request, write: Write) -> None:
        await write(data)
        raise ConnectionError

    async with https_server(authority, "near.test", answer=answer) as place:
        with pytest.raises(EgressError):
            await egress.fetch(a_request(place.port))


@pytest.mark.parametrize(
    ("given", "permitted", "is_right"),
    [
        ("application/json", ("application/json",), True),
        ("Application/JSON; charset=utf-8", ("application/json",), True),
        ("image/png", ("image/*", "text/html"), True),
        ("text/html", ("application/json",), False),
        ("application/json-seq", ("application/json",), False),
        ("image/png", ("image/gif",), False),
    ],
)
async def test_content_types(
    authority: Authority, egress: Egress, given: str, permitted: tuple[str, ...], *, is_right: bool
) -> None:
    async with https_server(authority, "near.test", answer=whole_answer(b"{}", content_type=given)) as place:
        request = a_request(place.port, content_types=permitted)
        if is_right:
            assert (await egress.fetch(request)).body == b"{}"
        else:
            with pytest.raises(WrongContentType):
                await egress.fetch(request)


async def test_a_stream_gives_pieces_as_they_arrive(authority: Authority, egress: Egress) -> None:
    go_on = asyncio.Event()

    async def answer(_request: Request, write: Write) -> None:
        await write(CHUNKED + b"3\r\none\r\n")
        await go_on.wait()
        await write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with (
        https_server(authority, "near.test", answer=answer) as place,
        egress.stream(a_request(place.port)) as stream,
    ):
        chunks = stream.chunks()
        first = await anext(chunks)
        go_on.set()
        rest = [chunk async for chunk in chunks]
    assert (first, b"".join(rest)) == (b"one", b"two")


# --- connections


async def test_a_connection_is_used_again(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "near.test", answer=json_answer({})) as place:
        for _ in range(5):
            await egress.fetch(a_request(place.port))
    assert (place.connections, len(place.requests)) == (1, 5)


async def test_a_connection_with_an_unread_body_is_not(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "near.test", answer=whole_answer(b"x" * 200_000)) as place:
        for _ in range(2):
            with pytest.raises(AnswerTooLarge):
                await egress.fetch(a_request(place.port))
    assert place.connections == 2


async def test_one_host_gets_so_many_connections_at_once(authority: Authority, egress: Egress) -> None:
    all_busy = asyncio.Event()

    async def answer(request: Request, write: Write) -> None:
        if len(place.requests) == 1 + PLACES.per_host:
            asyncio.get_running_loop().call_later(0.3, all_busy.set)  # time for one more to arrive
        if len(place.requests) > 1:
            await all_busy.wait()
        await json_answer({})(request, write)

    async with https_server(authority, "near.test", answer=answer) as place:
        await egress.fetch(a_request(place.port))
        requests = [egress.fetch(a_request(place.port, timeout=60.0)) for _ in range(3 * PLACES.per_host)]
        responses = await asyncio.gather(*requests)

    assert {response.status for response in responses} == {200}
    assert place.most_connections == PLACES.per_host


# --- many


async def test_connections_to_few_hosts_are_kept(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.outbound.egress.MAX_KEPT_HOSTS", 3)
    names = {f"host{number}.test": ["127.0.0.1"] for number in range(8)}
    async with (
        https_server(authority, *names, answer=json_answer({})) as place,
        an_egress(authority, names) as egress,
    ):
        for host in (*names, *names):
            assert (await egress.fetch(a_request(place.port, host))).status == 200
        await until_open(place, 3)

    assert place.connections == 3 + 2 * 5


async def test_few_connections_to_one_host_are_kept(authority: Authority, egress: Egress) -> None:
    async with https_server(authority, "near.test", answer=json_answer({})) as place:
        await egress.fetch(a_request(place.port))
        await asyncio.gather(*(egress.fetch(a_request(place.port)) for _ in range(PLACES.per_host)))
        await until_open(place, 4)


async def until_open(place: Place, count: int) -> None:
    """Wait until so many connections are left."""
    async with asyncio.timeout(5):
        while place.open_connections != count:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.02)


# --- many that are slow


async def test_dozens_of_silent_hosts_hold_up_nobody(authority: Authority) -> None:
    silent = {f"silent{number}.test": ["127.0.0.1"] for number in range(36)}
    few = Places(prompt=96, prompt_seconds=0.5, slow=48, per_host=5, unproven=2)

    async def answer(request: Request, write: Write) -> None:
        await (json_answer({}) if request.headers["host"].startswith("near.test") else _silence)(request, write)

    async with (
        https_server(authority, "near.test", *silent, answer=answer) as place,
        an_egress(authority, HERE | silent, places=few) as egress,
    ):
        held = [
            asyncio.create_task(egress.fetch(a_request(place.port, host, timeout=60)))
            for host in silent
            for _ in range(few.per_host)
        ]
        seconds = []
        for _ in range(10):
            started = time.monotonic()
            assert (await egress.fetch(a_request(place.port))).status == 200
            seconds.append(time.monotonic() - started)
            await asyncio.sleep(0.1)
        given_up = [task for task in held if task.done()]
        for task in held:
            task.cancel()
        ends = await asyncio.gather(*held, return_exceptions=True)

    assert given_up
    assert max(seconds) < 10, "most of which are the silent hosts' handshakes, in this process"
    assert all(isinstance(end, Crowded) for task, end in zip(held, ends, strict=True) if task in given_up)


async def _silence(_request: Request, _write: Write) -> None:
    await asyncio.sleep(3600)
