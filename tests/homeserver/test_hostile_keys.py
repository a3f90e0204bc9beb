"""No body, however wrong, breaks an endpoint of keys, or is stored so that a later answer cannot be signed or read."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from federation.protocol import canonical_json
from tests.client import Client, quote
from tests.devices import CrossSigning, Device, query

WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    2**53,
    2**70,
    "",
    "\0",
    "@a:b.test",
    "x" * 300,
    "\U0001f642" * 70,
    "x" * 70_000,
    [],
    [[]],
    {},
    {"": ""},
    {"\0": "\0"},
    {"ed25519:A": {}},
    {"@a:b.test": {"ed25519:A": "A"}},
]
_DEEP: Any = {}
for _ in range(97):
    _DEEP = {"a": _DEEP}

BACKUP = "m.megolm_backup.v1.curve25519-aes-sha2"


def variants(value: Any) -> Iterator[Any]:
    """The value with each of its parts replaced by each wrong one, left out, or renamed."""
    yield from WRONG
    if isinstance(value, dict):
        for name, member in value.items():
            others = {other: value[other] for other in value if other != name}
            yield others
            for wrong_name in ("", "\0", "*", "y" * 300, "ed25519:\0"):
                yield {**others, wrong_name: member}
            for variant in variants(member):
                yield {**others, name: variant}
    if isinstance(value, list):
        for index, member in enumerate(value):
            for variant in variants(member):
                yield [*value[:index], variant, *value[index + 1 :]]


def upload(client: Client) -> Any:
    """/keys/upload with one of each."""
    device = Device(client)
    return {
        "device_keys": device.identity(),
        "one_time_keys": device.one_time_keys(1),
        "fallback_keys": device.fallback_key(),
    }


def cross_signing_keys(client: Client) -> Any:
    """/keys/device_signing/upload."""
    return CrossSigning(client).body()


def signatures(client: Client) -> Any:
    """/keys/signatures/upload, about keys that are published."""
    return {client.user_id: {client.device_id: Device(client).identity()}}


def backup(_client: Client) -> Any:
    """/room_keys/keys."""
    session = {"first_message_index": 0, "forwarded_count": 0, "is_verified": True, "session_data": {"a": 1}}
    return {"rooms": {"!r:hearth.test": {"sessions": {"s": session}}}}


BODIES: list[tuple[str, str, Callable[[Client], Any]]] = [
    ("POST", "/v3/keys/upload", upload),
    ("POST", "/v3/keys/query", lambda client: {"timeout": 10, "device_keys": {client.user_id: [client.device_id]}}),
    ("POST", "/v3/keys/claim", lambda client: {"one_time_keys": {client.user_id: {client.device_id: "curve25519"}}}),
    ("POST", "/v3/keys/device_signing/upload", cross_signing_keys),
    ("POST", "/v3/keys/signatures/upload", signatures),
    ("PUT", "/v3/sendToDevice/m.test/{}", lambda client: {"messages": {client.user_id: {"*": {"a": {"b": 1}}}}}),
    ("POST", "/v3/room_keys/version", lambda _: {"algorithm": BACKUP, "auth_data": {"signatures": {}}}),
    ("PUT", "/v3/room_keys/keys", backup),
]


@pytest.mark.parametrize(("method", "path", "body_of"), BODIES, ids=[path for _, path, _ in BODIES])
async def test_wrong_bodies_are_refused_or_harmless(
    alice: Client, bob: Client, method: str, path: str, body_of: Callable[[Client], Any]
) -> None:
    version = (await alice.ok("POST", "/v3/room_keys/version", {"algorithm": BACKUP, "auth_data": {}}))["version"]
    bodies = [*variants(body_of(alice)), {**body_of(alice), "more": _DEEP}]
    failed: list[Any] = []

    async def attempt(number: int, body: Any) -> None:
        answer = await alice.request(method, path.format(number), body, params={"version": version})
        if answer.status >= 500 or (
            answer.status >= 400 and "errcode" not in answer.body and "flows" not in answer.body
        ):
            failed.append((answer.status, answer.body, body))

    for start in range(0, len(bodies), 50):
        part = bodies[start : start + 50]
        await asyncio.gather(*(attempt(start + index, body) for index, body in enumerate(part)))

    assert not failed, (len(failed), failed[0])
    for asker in (alice, bob):
        found = await query(asker, alice)
        canonical_json.check_strict(found)
        assert set(found["device_keys"]) == {alice.user_id}
    await bob.ok("POST", "/v3/keys/claim", {"one_time_keys": {alice.user_id: {alice.device_id: "signed_curve25519"}}})
    await alice.ok("GET", f"/v3/room_keys/keys/{quote('!r:hearth.test')}", params={"version": version})
