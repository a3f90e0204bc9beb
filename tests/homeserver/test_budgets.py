"""What one account, or one address, can make the server store and compute is bounded by its budgets."""

import dataclasses
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from homeserver.config import RateLimit, RateLimits
from tests.client import Server, quote
from tests.servers import running

FEW = RateLimit(0.0001, 3)


@pytest_asyncio.fixture
async def limited(worker_conninfo: str) -> AsyncIterator[Server]:
    """A server of which little may be asked."""
    limits = RateLimits(requests=RateLimit(0.0001, 20), authentication=FEW, reports=FEW)
    async with running(worker_conninfo, rate_limits=limits) as server:
        yield server


async def test_large_bodies_cost_as_much_as_many_requests(limited: Server) -> None:
    alice = await limited.register("alice")
    path = f"/v3/user/{quote(alice.user_id)}/account_data/org.example.a"

    assert (await alice.put(path, {"a": "x" * 100_000})).status == 200
    assert (await alice.put(path, {"a": "x" * 100_000})).status == 429
    assert (await alice.put(path, {"a": "x"})).status == 200

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"a":"' + b"x" * 100_000 + b'"}'

    headers = {"Authorization": f"Bearer {alice.access_token}"}
    url = f"{alice.base_url}/_matrix/client{path}"
    async with alice.session.put(url, data=pieces(), headers=headers) as answer:
        assert answer.status == 429


async def test_who_has_not_logged_in_begins_few_authentications(limited: Server) -> None:
    anonymous = limited.anonymous
    statuses = [(await anonymous.post("/v3/register", {"username": f"u{n}"})).status for n in range(5)]
    assert statuses == [401, 401, 401, 429, 429]


async def test_an_authentication_goes_on_whatever_was_begun(limited: Server) -> None:
    alice = await limited.register("alice")
    begun = [await alice.delete(f"/v3/devices/{alice.device_id}", {}) for _ in range(4)]
    auth = alice.password_auth(begun[0].body["session"])

    assert [answer.status for answer in begun] == [401, 401, 401, 429]
    assert (await alice.delete(f"/v3/devices/{alice.device_id}", {"auth": auth})).status == 200


@pytest.mark.parametrize("what", ["users/{user}/report", "rooms/!unknown:hearth.test/report"])
async def test_the_administrators_are_not_flooded_with_reports(limited: Server, what: str) -> None:
    alice = await limited.register("alice")
    path = "/v3/" + what.format(user=quote(alice.user_id))

    assert [(await alice.post(path, {"reason": "spam"})).status for _ in range(4)] == [200, 200, 200, 429]


@pytest.mark.parametrize(
    "path",
    [
        "/v3/auth/m.login.dummy/fallback/web?session=x",
        "/_matrix/client/unstable/hearth.email/confirm?sid=a&token=b",
        "/_matrix/client/unstable/hearth.push/unsubscribe?token=a",
    ],
)
async def test_forms_are_posted_no_oftener_than_other_requests(limited: Server, path: str) -> None:
    anonymous = dataclasses.replace(limited.anonymous, is_held_to_specification=False)

    statuses = [(await anonymous.request("POST", path, b"session=x")).status for _ in range(25)]

    assert (statuses.count(429), 429 in statuses[:20]) == (5, False)
