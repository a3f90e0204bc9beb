"""Signing in by QR code: the place where two devices leave messages for each other."""

import asyncio
import dataclasses
from email.utils import parsedate_to_datetime
from typing import Any

import psycopg
import pytest

from federation.protocol.errors import LimitExceeded
from homeserver.services.rendezvous import RendezvousService
from tests.client import Answer, Client, Server
from tests.servers import running

OLD = "/unstable/org.matrix.msc4108/rendezvous"
NEW = "/unstable/io.element.msc4388/rendezvous"
TEXT = {"Content-Type": "text/plain"}


async def ask(client: Client, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.request(method, path, body, headers=named)


async def begin(client: Client, body: bytes = b"first") -> Answer:
    answer = await ask(client, "POST", OLD, body, Content_Type="text/plain")
    assert answer.status == 201
    return answer


def path_of(client: Client, created: Answer) -> str:
    url: str = created.body["url"]
    assert url.startswith("http")
    return OLD + "/" + url.rpartition("/")[2]


def check_headers(answer: Answer) -> None:
    """What each answer has to say of the session."""
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Pragma"] == "no-cache"
    modified, expires = (parsedate_to_datetime(answer.headers[name]) for name in ("Last-Modified", "Expires"))
    assert 60 <= (expires - modified).total_seconds() <= 300
    assert answer.headers["ETag"].startswith('"')
    assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


async def test_two_devices_talk_by_http(server: Server) -> None:
    one = other = server.anonymous
    created = await begin(one)
    path = path_of(one, created)

    read = await ask(other, "GET", path)
    assert (read.status, read.body, read.headers["ETag"]) == (200, b"first", created.headers["ETag"])
    assert read.headers["Content-Type"].startswith("text/plain")
    assert (await ask(one, "GET", path, If_None_Match=created.headers["ETag"])).status == 304

    answered = await ask(other, "PUT", path, b"second", Content_Type="text/plain", If_Match=read.headers["ETag"])
    assert (answered.status, answered.body) == (202, b"")
    assert answered.headers["Expires"] == created.headers["Expires"]
    news = await ask(one, "GET", path, If_None_Match=created.headers["ETag"])
    assert (news.status, news.body, news.headers["ETag"]) == (200, b"second", answered.headers["ETag"])
    late = await ask(one, "PUT", path, b"third", Content_Type="text/plain", If_Match=created.headers["ETag"])
    assert (late.status, late.body["errcode"]) == (412, "M_UNKNOWN")
    assert late.body["org.matrix.msc4108.errcode"] == "M_CONCURRENT_WRITE"
    for answer in (created, read, answered, news, late):
        check_headers(answer)

    assert (await ask(one, "DELETE", path)).status == 204
    for method in ("GET", "DELETE"):
        gone = await ask(one, method, path)
        assert (gone.status, gone.body["errcode"]) == (404, "M_NOT_FOUND")


async def test_browsers_may_ask(server: Server) -> None:
    allowed = await ask(server.anonymous, "OPTIONS", f"{OLD}/x", Origin="https://app.example.org")

    assert {"If-Match", "If-None-Match"} <= set(allowed.headers["Access-Control-Allow-Headers"].split(", "))
    assert {"PUT", "DELETE"} <= set(allowed.headers["Access-Control-Allow-Methods"].split(", "))


@pytest.mark.parametrize(
    ("body", "headers", "status", "errcode"),
    [
        (b"x" * 4097, TEXT, 413, "M_TOO_LARGE"),
        (b"x", {"Content-Type": "text/html"}, 400, "M_INVALID_PARAM"),
        (b"\xff\xfe", TEXT, 400, "M_INVALID_PARAM"),
    ],
)
async def test_what_is_no_message(
    server: Server, body: bytes, headers: dict[str, str], status: int, errcode: str
) -> None:
    path = path_of(server.anonymous, await begin(server.anonymous, b"x" * 4096))

    for method, where in (("POST", OLD), ("PUT", path)):
        named = {**headers, "If-Match": '"1"'}
        answer = await server.anonymous.request(method, where, body, headers=named)
        assert (answer.status, answer.body["errcode"]) == (status, errcode)
    missing = await server.anonymous.request("PUT", path, b"x", headers=TEXT)
    assert (missing.status, missing.body["errcode"]) == (400, "M_MISSING_PARAM")


async def test_two_devices_talk_in_json(server: Server, alice: Client) -> None:
    new = server.anonymous
    assert (await new.get(NEW)).body == {"create_available": True}
    created = await alice.ok("POST", NEW, {"data": "first"})
    path, seen = f"{NEW}/{created['id']}", created["sequence_token"]

    read = await new.ok("GET", path)
    assert (read["data"], read["sequence_token"]) == ("first", seen)
    assert 0 < read["expires_in_ms"] <= created["expires_in_ms"] <= 300_000
    answered = await new.ok("PUT", path, {"data": "zweitens ä", "sequence_token": seen})
    assert (await alice.ok("GET", path))["data"] == "zweitens ä"
    late = await alice.put(path, {"data": "third", "sequence_token": seen})
    assert (late.status, late.body["errcode"]) == (409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE")
    await alice.ok("PUT", path, {"data": "third", "sequence_token": answered["sequence_token"]})

    assert (await ask(new, "GET", path, Sec_Fetch_Mode="navigate")).status == 403
    assert (await new.put(path, {"data": "x" * 4097, "sequence_token": "1"})).status == 413
    assert (await new.put(path, {"data": "x"})).status == 400
    assert (await new.post(NEW, {"data": 5})).status == 400
    assert (await new.delete(path)).body == {}
    assert (await new.get(path)).body["errcode"] == (await new.delete(path)).body["errcode"] == "M_NOT_FOUND"


async def test_a_repeated_transaction_has_the_answer_that_it_had(server: Server) -> None:
    created = await server.anonymous.ok("POST", NEW, {"data": "first"})
    path = f"{NEW}/{created['id']}"
    one = {"data": "one", "sequence_token": created["sequence_token"]}

    first = await server.anonymous.ok("PUT", f"{path}/a", one)
    assert await server.anonymous.ok("PUT", f"{path}/a", one) == first
    other = await server.anonymous.ok("PUT", f"{path}/b", {"data": "other", **first})
    assert await server.anonymous.ok("PUT", f"{path}/a", one) == first
    assert (await server.anonymous.put(f"{path}/c", one)).status == 409

    read = await server.anonymous.ok("GET", path)
    assert (read["data"], read["sequence_token"]) == ("other", other["sequence_token"])


async def test_a_session_ends_by_itself(conninfo: str, connection: psycopg.Connection) -> None:
    async with running(conninfo) as server:
        created = await server.anonymous.ok("POST", NEW, {"data": "x"})
        path = f"{NEW}/{created['id']}"
        connection.execute("update rendezvous set expires_ts = 1")

        body = {"data": "y", "sequence_token": created["sequence_token"]}
        for answer in (await server.anonymous.get(path), await server.anonymous.put(path, body)):
            assert (answer.status, answer.body["errcode"]) == (404, "M_NOT_FOUND")
        await server.anonymous.ok("POST", NEW, {"data": "x"})
        assert connection.execute("select count(*) from rendezvous").fetchone() == (1,)


@pytest.mark.one_process("each of its two servers is one")
async def test_any_process_answers_and_one_writes(conninfo: str) -> None:
    async with running(conninfo) as one, running(conninfo) as other:
        created = await one.anonymous.ok("POST", NEW, {"data": "x"})
        path = f"{NEW}/{created['id']}"
        body: dict[str, Any] = {"sequence_token": created["sequence_token"]}
        answers = await asyncio.gather(
            *(server.anonymous.put(path, {**body, "data": str(n)}) for n, server in enumerate([one, other] * 4))
        )
        assert sorted(answer.status for answer in answers) == [200] + [409] * 7


async def test_there_are_only_so_many(conninfo: str) -> None:
    async with running(conninfo) as server:
        sessions = RendezvousService(server.application.database, max_sessions=2)
        first, _ = await sessions.create(b"a"), await sessions.create(b"b")
        with pytest.raises(LimitExceeded):
            await sessions.create(b"c")
        await sessions.delete(first.id)
        await sessions.create(b"c")


async def test_it_is_not_advertised(alice: Client) -> None:
    flags = (await dataclasses.replace(alice).ok("GET", "/versions"))["unstable_features"]

    assert not [name for name in flags if "4108" in name or "4388" in name]  # there is no device grant
