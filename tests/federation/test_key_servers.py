"""Keys fetched from other servers over TLS: honest ones, those that are away, and those that lie."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from federation.outbound import keyring as keyrings
from federation.outbound.key_fetching import KeyFetcher
from federation.outbound.key_requests import KeyRequests
from federation.outbound.keyring import Keyring
from federation.protocol import event_format, server_keys
from federation.protocol.errors import MatrixError, Unauthorized
from federation.protocol.event_hashes import encode_base64
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.request_signing import SignedRequest, make_header, parse_header
from federation.protocol.room_versions import get_rules
from federation.protocol.server_keys import OldKey
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, KeyID, ServerName
from homeserver.signing_keys import OwnKeys
from tests.client import Server
from tests.federation.key_servers import KeyServer, key_server
from tests.federation.peer import Peer, now_ms
from tests.federation.servers import Pair
from tests.protocol.builders import a_room_id, an_event_id

DAY_MS = 24 * 3600 * 1000
OWN = "/_matrix/key/v2/server"


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def keyring(pair: Pair, clock: Clock) -> AsyncIterator[Keyring]:
    """A key ring of the near server that remembers nothing but what is in the database."""
    keyring = a_keyring(pair.near, clock)
    yield keyring
    await keyring.close()


@pytest_asyncio.fixture
async def origin(pair: Pair) -> AsyncIterator[KeyServer]:
    """A server that nobody has heard of."""
    async with key_server(pair.near, pair.authority) as origin:
        yield origin


def a_keyring(server: Server, clock: Clock, *notaries: str) -> Keyring:
    outbound = server.application.outbound
    return Keyring(
        server.application.database,
        KeyRequests(outbound.client),
        server_name=outbound.server_name,
        own_keys=outbound.keys.verify_keys(),
        notaries=[ServerName(name) for name in notaries],
        clock=clock,
    )


async def verify_request(keyring: Keyring, peer: Peer) -> None:
    """Verify a request of the peer; raises Unauthorized."""
    request = SignedRequest(
        method="GET", uri="/x", origin=peer.name, destination=ServerName("us.example"), content=None
    )
    await keyring.verify_request(parse_header(make_header(request, peer.key)), request)


def an_event(peer: Peer, version: str = "11", *, ts: int | None = None, **changes: Any) -> PDU:
    """A message of a user of the peer, signed by it."""
    rules = get_rules(version)
    prev = an_event_id(rules)
    template: JsonObject = {
        "room_id": a_room_id(rules),
        "type": "m.room.message",
        "sender": peer.user(),
        "content": {"body": "hello"},
        "prev_events": [[prev, {"sha256": "h"}]] if rules.references_carry_hashes else [prev],
        "auth_events": [],
        "depth": 5,
    }
    event = peer.finish(template, rules, **{"origin_server_ts": now_ms() if ts is None else ts, **changes})
    return event_format.parse(event, rules)


def is_verified(result: VerifiedPDU | MatrixError) -> bool:
    return isinstance(result, VerifiedPDU)


async def test_a_strangers_request_is_verified_once_its_key_was_fetched(pair: Pair, origin: KeyServer) -> None:
    path = "/_matrix/federation/v1/event/" + "$" + "x" * 43

    first = await origin.peer.request("GET", path)
    second = await origin.peer.request("GET", path)

    assert (first.status, second.status) == (404, 404)  # not 401
    assert origin.asked == [OWN]


async def test_a_request_for_another_server_makes_us_ask_nobody(pair: Pair, origin: KeyServer) -> None:
    path = "/_matrix/federation/v1/event/$" + "x" * 43
    header = origin.peer.header("GET", path).replace(pair.near.name, "elsewhere.example")

    assert (await origin.peer.send("GET", path, None, header)).status == 401
    assert origin.asked == []


async def test_many_who_want_a_key_at_once_make_one_request(keyring: Keyring, origin: KeyServer) -> None:
    origin.may_answer.clear()
    requests = [asyncio.create_task(verify_request(keyring, origin.peer)) for _ in range(20)]
    events = [asyncio.create_task(keyring.verify_events([an_event(origin.peer)])) for _ in range(20)]
    await asyncio.sleep(0.1)
    requests.pop().cancel()
    events.pop(0).cancel()
    origin.may_answer.set()

    await asyncio.gather(*requests)
    assert all(is_verified(result) for [result] in await asyncio.gather(*events))
    assert origin.asked == [OWN]


async def test_who_names_servers_that_never_answer_keeps_no_other_out(
    pair: Pair, keyring: Keyring, origin: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyrings, "MAX_ASKED", 20)
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(key_server(pair.near, pair.authority)) for _ in range(3)]
        for each in silent:
            each.may_answer.clear()
        events = asyncio.create_task(keyring.verify_events([an_event(each.peer) for each in silent]))
        await asyncio.sleep(0.2)

        await asyncio.wait_for(verify_request(keyring, origin.peer), 10)

        assert not events.done()
        for each in silent:
            each.may_answer.set()
        await events


async def test_there_is_no_end_to_names_but_to_whom_we_ask(pair: Pair) -> None:
    async def learn(_lists: object) -> None:
        """Nothing."""

    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(key_server(pair.near, pair.authority)) for _ in range(5)]
        for each in silent:
            each.may_answer.clear()
        fetcher = KeyFetcher(KeyRequests(pair.near.application.outbound.client), (), learn)
        wanted = {each.name: {KeyID("ed25519:a"): 0} for each in silent}
        first = asyncio.create_task(fetcher.fetch(wanted, pause=10, at_most=3))
        await asyncio.sleep(0.2)

        one_more = {ServerName("one.more.invalid"): {KeyID("ed25519:a"): 0}}
        await asyncio.wait_for(fetcher.fetch(one_more, pause=10, at_most=3), 1)

        for each in silent:
            each.may_answer.set()
        await first
        assert [len(each.asked) for each in silent] == [1, 1, 1, 0, 0]


async def test_who_asked_first_may_go_away(keyring: Keyring, origin: KeyServer) -> None:
    origin.may_answer.clear()
    first = asyncio.create_task(verify_request(keyring, origin.peer))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(verify_request(keyring, origin.peer))
    await asyncio.sleep(0)
    first.cancel()
    origin.may_answer.set()

    await second
    assert origin.asked == [OWN]


async def test_keys_are_kept_in_the_database(pair: Pair, keyring: Keyring, clock: Clock, origin: KeyServer) -> None:
    await verify_request(keyring, origin.peer)

    await verify_request(a_keyring(pair.near, clock), origin.peer)

    assert origin.asked == [OWN]


def _other_name(peer: Peer) -> JsonObject:
    return peer.key_answer(server_name="elsewhere.example")


def _changed(peer: Peer) -> JsonObject:
    return {**peer.key_answer(), "valid_until_ts": now_ms() + DAY_MS + 1}


def _unsigned(peer: Peer) -> JsonObject:
    return {**peer.key_answer(), "signatures": {}}


def _signed_under_another_name(peer: Peer) -> JsonObject:
    answer = peer.key_answer()
    return {**answer, "signatures": {"elsewhere.example": answer["signatures"][peer.name]}}


def _signed_by_an_old_key_only(peer: Peer) -> JsonObject:
    key = {"key": encode_base64(peer.key.public_key)}
    return peer.key_answer(verify_keys={}, old_verify_keys={peer.key.key_id: {**key, "expired_ts": now_ms() + DAY_MS}})


def _a_signature_that_is_wrong(peer: Peer) -> JsonObject:
    """Beside one that is right."""
    other = SigningKey.from_seed("other", b"o" * 32)
    keys = {key.key_id: {"key": encode_base64(key.public_key)} for key in (peer.key, other)}
    answer = peer.key_answer(verify_keys=keys)
    answer["signatures"][peer.name][other.key_id] = answer["signatures"][peer.name][peer.key.key_id]
    return answer


def _signed_by_a_key_that_is_not_listed(peer: Peer) -> JsonObject:
    answer = peer.key_answer()
    [signature] = answer["signatures"][peer.name].values()
    return {**answer, "signatures": {peer.name: {"ed25519:other": signature}}}


def _present_and_old(peer: Peer) -> JsonObject:
    """What a server calls an old key is one, wherever else it stands."""
    old = {"key": encode_base64(peer.key.public_key), "expired_ts": now_ms() - DAY_MS}
    return peer.key_answer(old_verify_keys={peer.key.key_id: old})


def _too_many_keys(peer: Peer) -> JsonObject:
    key = {"key": encode_base64(peer.key.public_key)}
    return peer.key_answer(verify_keys={peer.key.key_id: key, **{f"ed25519:{n}": key for n in range(201)}})


def _over(peer: Peer) -> JsonObject:
    return peer.key_answer(valid_until_ts=now_ms() - 1000)


LIES = [
    _other_name,
    _changed,
    _unsigned,
    _signed_under_another_name,
    _signed_by_an_old_key_only,
    _a_signature_that_is_wrong,
    _signed_by_a_key_that_is_not_listed,
    _present_and_old,
    _too_many_keys,
    _over,
    lambda peer: peer.key_answer(verify_keys={peer.key.key_id: {"key": "AAAA"}}),
    lambda peer: peer.key_answer(verify_keys={peer.key.key_id: {"key": 5}}),
    lambda peer: peer.key_answer(verify_keys={peer.key.key_id: "text"}),
    lambda peer: peer.key_answer(verify_keys=[]),
    lambda peer: peer.key_answer(old_verify_keys=[]),
    lambda peer: peer.key_answer(valid_until_ts="soon"),
    lambda peer: peer.key_answer(valid_until_ts=True),
    lambda peer: peer.key_answer(valid_until_ts=2**60),
    lambda peer: peer.key_answer(padding="x" * 70_000),
    lambda _peer: [],
    lambda _peer: "text",
    lambda _peer: None,
    lambda peer: [200, {**peer.key_answer(), "server_name": "elsewhere.example"}],
]


@pytest.mark.parametrize("lie", LIES)
async def test_a_list_of_keys_that_proves_nothing(keyring: Keyring, origin: KeyServer, lie: object) -> None:
    assert callable(lie)
    origin.answer = lie(origin.peer) or {}

    for _ in range(3):
        with pytest.raises(Unauthorized):
            await verify_request(keyring, origin.peer)
        assert not any(map(is_verified, await keyring.verify_events([an_event(origin.peer)])))

    assert origin.asked == [OWN]


@pytest.mark.parametrize("public_key", [b"\0" * 32, b"\1" + b"\0" * 31, b"\xff" * 32])
async def test_a_key_that_any_signature_may_fit_is_none(keyring: Keyring, origin: KeyServer, public_key: bytes) -> None:
    """The list itself is signed with another key."""
    name = "ed25519:weak"
    keys = {origin.peer.key.key_id: {"key": encode_base64(origin.peer.key.public_key)}}
    origin.answer = origin.peer.key_answer(verify_keys={**keys, name: {"key": encode_base64(public_key)}})

    await verify_request(keyring, origin.peer)
    [result] = await keyring.verify_events([_with_signature(an_event(origin.peer), origin.name, name)])

    assert is_verified(result)  # by the other key; had the weak one been taken, its signature would be wrong


def _with_signature(pdu: PDU, server_name: str, *key_ids: str) -> PDU:
    """The event with signatures that mean nothing added."""
    json = pdu.json
    made_up = dict.fromkeys(key_ids, "A" * 86)
    signatures = {**json["signatures"], server_name: {**json["signatures"].get(server_name, {}), **made_up}}
    return event_format.parse({**json, "signatures": signatures}, pdu.rules)


async def _endless(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" " * 100_000)


async def _failing(_request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response({"errcode": "M_UNKNOWN", "error": "broken"}, status=500)


async def _moved(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/elsewhere"})


async def _no_json(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"{", content_type="application/json")


async def _twice(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b'{"server_name": "a", "server_name": "b"}', content_type="application/json")


@pytest.mark.parametrize("respond", [_endless, _failing, _moved, _no_json, _twice])
async def test_a_server_that_gives_no_list(keyring: Keyring, origin: KeyServer, respond: object) -> None:
    origin.respond = respond  # type: ignore[assignment] # a responder

    for _ in range(3):
        with pytest.raises(Unauthorized):
            await verify_request(keyring, origin.peer)

    assert origin.asked == [OWN]


async def test_a_server_is_asked_again_after_a_while(keyring: Keyring, clock: Clock, origin: KeyServer) -> None:
    origin.answer = {}
    with pytest.raises(Unauthorized):
        await verify_request(keyring, origin.peer)
    origin.answer = None

    clock.now += 20
    assert not any(map(is_verified, await keyring.verify_events([an_event(origin.peer)])))
    await verify_request(keyring, origin.peer)

    assert origin.asked == [OWN, OWN]
    assert all(map(is_verified, await keyring.verify_events([an_event(origin.peer)])))


async def test_thousands_of_key_ids_make_one_request(keyring: Keyring, origin: KeyServer) -> None:
    """Although each of 50 events has 500 signatures by keys that do not exist."""
    events = [
        _with_signature(an_event(origin.peer), origin.name, *(f"ed25519:b{number}_{n}" for n in range(500)))
        for number in range(50)
    ]

    results = await keyring.verify_events(events)
    again = await keyring.verify_events(events)

    assert len(results) == len(again) == 50
    assert origin.asked == [OWN]


async def test_each_event_succeeds_or_fails_alone(keyring: Keyring, pair: Pair, origin: KeyServer) -> None:
    """In order, whether they are few, or many that are verified in a thread."""
    stranger = Peer(pair.near, "stranger.invalid")
    forged = event_format.parse({**an_event(origin.peer).json, "depth": 6}, get_rules("11"))
    wrong_hash = event_format.parse({**an_event(origin.peer).json, "content": {"body": "changed"}}, get_rules("11"))
    strange = an_event(
        origin.peer,
        type="m.room.member",
        state_key=origin.peer.user(),
        content={"membership": "join", "join_authorised_via_users_server": "nobody"},
    )
    events = [an_event(origin.peer), forged, an_event(stranger), wrong_hash, strange, an_event(origin.peer)]

    few = await keyring.verify_events(events)
    many = await keyring.verify_events(events * 10)

    assert [is_verified(result) for result in few] == [True, False, False, True, False, True]
    assert [is_verified(result) for result in many] == [True, False, False, True, False, True] * 10
    redacted = few[3]
    assert isinstance(redacted, VerifiedPDU)
    assert (redacted.event_id, redacted.content) == (wrong_hash.event_id, {})


async def test_the_server_of_who_authorised_a_join_signs_from_version_8(
    keyring: Keyring, pair: Pair, origin: KeyServer
) -> None:
    async with key_server(pair.near, pair.authority) as authoriser:
        member: JsonObject = {
            "type": "m.room.member",
            "state_key": origin.peer.user(),
            "content": {"membership": "join", "join_authorised_via_users_server": authoriser.peer.user("admin")},
        }
        by_one = {version: an_event(origin.peer, version, **member) for version in ("7", "8", "12")}
        by_both = {
            version: event_format.parse(authoriser.peer.add_signature(pdu.json, pdu.rules), pdu.rules)
            for version, pdu in by_one.items()
        }

        one = await keyring.verify_events(list(by_one.values()))
        both = await keyring.verify_events(list(by_both.values()))

    assert list(map(is_verified, one)) == [True, False, False]
    assert list(map(is_verified, both)) == [True, True, True]


async def test_the_server_in_the_event_id_signs_until_version_2(
    keyring: Keyring, pair: Pair, origin: KeyServer
) -> None:
    async with key_server(pair.near, pair.authority) as maker:
        event = an_event(origin.peer, "2", event_id=f"$made:{maker.name}")
        both = event_format.parse(maker.peer.add_signature(event.json, event.rules), event.rules)

        results = await keyring.verify_events([event, both])

    assert list(map(is_verified, results)) == [False, True]


async def test_a_third_party_invite_may_come_from_another_server(keyring: Keyring, origin: KeyServer) -> None:
    content = {"membership": "invite", "third_party_invite": {"signed": {}}}
    event = an_event(origin.peer, type="m.room.member", state_key="@x:else.example", content=content)
    unsigned = event_format.parse({**event.json, "signatures": {}}, event.rules)

    assert all(map(is_verified, await keyring.verify_events([unsigned])))
    assert origin.asked == []


# --- validity


@pytest.mark.parametrize("version", ["4", "5", "11"])
async def test_no_key_is_good_for_more_than_seven_days(keyring: Keyring, origin: KeyServer, version: str) -> None:
    origin.answer = origin.peer.key_answer(valid_until_ts=now_ms() + 365 * DAY_MS)

    soon, late = await keyring.verify_events(
        [an_event(origin.peer, version, ts=now_ms() + days * DAY_MS) for days in (6, 8)]
    )

    assert is_verified(soon)
    assert is_verified(late) is (version == "4")


async def test_a_list_that_is_over_is_fetched_anew(keyring: Keyring, clock: Clock, origin: KeyServer) -> None:
    origin.answer = origin.peer.key_answer(valid_until_ts=now_ms() - DAY_MS)
    old, new = an_event(origin.peer, ts=now_ms() - 2 * DAY_MS), an_event(origin.peer)
    results = await keyring.verify_events([old, new])
    assert list(map(is_verified, results)) == [True, False]

    clock.now += 100
    origin.answer = None

    assert all(map(is_verified, await keyring.verify_events([old, new])))
    await verify_request(keyring, origin.peer)
    assert origin.asked == [OWN, OWN]


async def test_an_old_key_is_good_for_what_was_signed_before(keyring: Keyring, clock: Clock, origin: KeyServer) -> None:
    retired = origin.peer.key
    before, after = (an_event(origin.peer, ts=now_ms() + days * DAY_MS) for days in (-2, 0))
    await verify_request(keyring, origin.peer)

    origin.peer.key = SigningKey.from_seed("newer", b"n" * 32)
    old_keys = {retired.key_id: {"key": encode_base64(retired.public_key), "expired_ts": now_ms() - DAY_MS}}
    origin.answer = origin.peer.key_answer(old_verify_keys=old_keys)
    clock.now += 100
    await verify_request(keyring, origin.peer)  # with the new key, which makes us fetch

    results = await keyring.verify_events([before, after])
    assert list(map(is_verified, results)) == [True, False]
    origin.peer.key = retired
    with pytest.raises(Unauthorized):
        await verify_request(keyring, origin.peer)
    assert origin.asked == [OWN, OWN]


async def test_what_one_process_heard_of_a_key_others_know_soon(
    pair: Pair, keyring: Keyring, clock: Clock, origin: KeyServer
) -> None:
    retired = origin.peer.key
    await verify_request(keyring, origin.peer)
    origin.peer.key = SigningKey.from_seed("newer", b"n" * 32)
    old_keys = {retired.key_id: {"key": encode_base64(retired.public_key), "expired_ts": now_ms() - 1}}
    origin.answer = origin.peer.key_answer(old_verify_keys=old_keys)
    await verify_request(a_keyring(pair.near, clock), origin.peer)
    origin.peer.key = retired
    await verify_request(keyring, origin.peer)

    clock.now += 601

    with pytest.raises(Unauthorized):
        await verify_request(keyring, origin.peer)
    assert origin.asked == [OWN, OWN]


async def test_an_old_key_counts_as_retired_now_at_the_latest(keyring: Keyring, origin: KeyServer) -> None:
    retired = origin.peer.key
    later = an_event(origin.peer, ts=now_ms() + DAY_MS)
    origin.peer.key = SigningKey.from_seed("newer", b"n" * 32)
    old_keys = {retired.key_id: {"key": encode_base64(retired.public_key), "expired_ts": now_ms() + 90 * DAY_MS}}
    origin.answer = origin.peer.key_answer(old_verify_keys=old_keys)

    assert not any(map(is_verified, await keyring.verify_events([later])))


async def test_our_own_events_are_verified_without_asking(pair: Pair, keyring: Keyring, origin: KeyServer) -> None:
    us = Peer(pair.near, pair.near.name)
    us.key = pair.near.application.outbound.keys.signing_key
    right = an_event(us)
    us.key = origin.peer.key
    wrong = an_event(us)

    results = await keyring.verify_events([right, wrong])

    assert list(map(is_verified, results)) == [True, False]


async def test_our_own_events_from_before_a_rotation_stay_valid(pair: Pair, origin: KeyServer) -> None:
    us, retired_ts = Peer(pair.near, pair.near.name), now_ms() - DAY_MS
    old = OldKey(key_id=us.key.key_id, public_key=us.key.public_key, expired_ts=retired_ts)
    new = SigningKey.from_seed("new", b"n" * 32)
    keyring = Keyring(
        pair.near.application.database,
        KeyRequests(pair.near.application.outbound.client),
        server_name=us.name,
        own_keys=OwnKeys(new, (old,)).verify_keys(),
    )
    before, after = (an_event(us, ts=retired_ts + shift) for shift in (0, 1))
    us.key = new
    since = an_event(us)

    assert list(map(is_verified, await keyring.verify_events([before, after, since]))) == [True, False, True]


# --- JSON


async def test_signed_json(keyring: Keyring, origin: KeyServer) -> None:
    json = origin.peer.key_answer(token="abc")

    await keyring.verify_json(origin.name, json)
    with pytest.raises(Unauthorized):
        await keyring.verify_json(origin.name, {**json, "token": "abd"})
    with pytest.raises(Unauthorized):
        await keyring.verify_json(ServerName("elsewhere.invalid"), json)
    with pytest.raises(Unauthorized):
        await keyring.verify_json(origin.name, {"signatures": {origin.name: "x"}})


# --- notaries


async def test_keys_of_a_server_that_is_gone_come_from_a_notary(pair: Pair, clock: Clock) -> None:
    async with key_server(pair.near, pair.authority) as origin:
        status, _ = await pair.far.anonymous.get(f"/_matrix/key/v2/query/{origin.name}")
        assert status == 200
    keyring = a_keyring(pair.near, clock, pair.far.name)

    await verify_request(keyring, origin.peer)
    assert all(map(is_verified, await keyring.verify_events([an_event(origin.peer)])))
    assert origin.asked == [OWN]


class CountingRequests(KeyRequests):
    """Notes whom it asks."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.application.outbound.client)
        self.asked: list[str] = []

    async def get_keys(self, server_name: ServerName, timeout: float) -> JsonObject:
        self.asked.append(server_name)
        return await super().get_keys(server_name, timeout)

    async def query_notary(self, notary: ServerName, body: JsonObject) -> JsonObject:
        self.asked.append(f"{notary} for {len(body['server_keys'])}")
        return await super().query_notary(notary, body)


async def test_for_many_servers_the_notary_is_asked_first(pair: Pair) -> None:
    known = [await Peer(pair.far).trust() for _ in range(8)]  # by the far server; nobody listens there
    unknown = Peer(pair.near, "127.0.0.1:1")
    source, outbound = CountingRequests(pair.near), pair.near.application.outbound
    keyring = Keyring(
        pair.near.application.database,
        source,
        server_name=outbound.server_name,
        own_keys=outbound.keys.verify_keys(),
        notaries=[ServerName(pair.far.name)],
    )

    results = await keyring.verify_events([an_event(peer) for peer in [*known, unknown]])

    assert [is_verified(result) for result in results] == [True] * 8 + [False]
    assert source.asked == [pair.far.name, f"{pair.far.name} for 9", unknown.name]


async def test_of_many_servers_each_is_done_when_its_own_keys_are_there(
    pair: Pair, origin: KeyServer, keyring: Keyring
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(key_server(pair.near, pair.authority)) for _ in range(8)]
        for each in silent:
            each.may_answer.clear()
        events = [an_event(each.peer) for each in [*silent, origin]]
        all_of_them = asyncio.create_task(keyring.verify_events(events))
        await asyncio.sleep(0.1)

        await verify_request(keyring, origin.peer)

        assert not all_of_them.done()
        for each in silent:
            each.may_answer.set()
        assert all(map(is_verified, await all_of_them))
        assert all(each.asked == [OWN] for each in silent)


async def test_a_notary_that_is_not_asked_for_more_than_it_knows(keyring: Keyring, pair: Pair, clock: Clock) -> None:
    nobody = Peer(pair.near, "nobody.invalid")

    with pytest.raises(Unauthorized):
        await verify_request(a_keyring(pair.near, clock, pair.far.name), nobody)


@pytest.mark.parametrize("lie", ["unsigned", "by another", "changed", "of another", "no array", "nothing", "own key"])
async def test_a_notary_that_lies(pair: Pair, clock: Clock, lie: str) -> None:
    victim = Peer(pair.near, "victim.invalid")
    async with key_server(pair.near, pair.authority) as notary:
        keys = victim.key_answer()
        other = Peer(pair.near)
        answers: dict[str, object] = {
            "unsigned": {"server_keys": [keys]},
            "by another": {"server_keys": [other.sign_json(keys)]},
            "changed": {"server_keys": [notary.peer.sign_json({**keys, "valid_until_ts": now_ms() + 1})]},
            "of another": {"server_keys": [notary.peer.sign_json(other.key_answer())]},
            "no array": {"server_keys": {}},
            "nothing": {"server_keys": [None, 5, {}, {"server_name": []}]},
            "own key": {"server_keys": [{**notary.peer.key_answer(), "server_name": victim.name}]},
        }

        async def respond(request: web.BaseRequest) -> web.StreamResponse:
            is_query = request.path.endswith("/query")
            return web.json_response(answers[lie] if is_query else notary.peer.key_answer())

        notary.respond = respond
        keyring = a_keyring(pair.near, clock, notary.name)

        with pytest.raises(Unauthorized):
            await verify_request(keyring, victim)
        with pytest.raises(Unauthorized):
            await verify_request(keyring, victim)

        assert notary.asked == [OWN, "/_matrix/key/v2/query"]
        assert await keyring.find_lists({other.name: ({}, 0)}) == []


@pytest.mark.one_process("each remembers whom it asked")
async def test_a_notary_fetches_again_what_is_asked_for(pair: Pair, origin: KeyServer) -> None:
    query = f"/_matrix/key/v2/query/{origin.name}"
    origin.answer = origin.peer.key_answer(valid_until_ts=now_ms() + 3600_000)

    first = await pair.near.anonymous.get(query)
    second = await pair.near.anonymous.get(query)
    later = await pair.near.anonymous.get(f"{query}?minimum_valid_until_ts={now_ms() + DAY_MS}")

    assert first.body == second.body == later.body  # within a minute it is not asked again
    assert first.body["server_keys"][0]["valid_until_ts"] == origin.answer["valid_until_ts"]
    assert origin.asked == [OWN]


async def test_a_notary_has_cached_lists_of_servers_that_are_gone(pair: Pair) -> None:
    async with key_server(pair.near, pair.authority) as origin:
        origin.answer = origin.peer.key_answer(valid_until_ts=now_ms() + 1)
        body = {"server_keys": {origin.name: {origin.peer.key.key_id: {"minimum_valid_until_ts": now_ms()}}}}
        first = await pair.near.anonymous.post("/_matrix/key/v2/query", body)
    second = await pair.near.anonymous.post("/_matrix/key/v2/query", body)

    assert len(first.body["server_keys"]) == 1
    assert first.body == second.body
    assert server_keys.parse(second.body["server_keys"][0], origin.name, now_ms()).keys
