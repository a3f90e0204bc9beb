"""Other servers' keys, and all that is verified with them ("Retrieving server keys", "Validating hashes and
signatures on received events").

Keys are looked for in memory, then in the database, then where they come from (`key_fetching.py`). A key that is still
published is good until its list's `valid_until_ts`, at most 7 days from when we read it; one that was retired, for
what was signed before.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from federation.outbound.key_fetching import KeyFetcher, KeySource
from federation.protocol import request_signing, signatures
from federation.protocol.errors import MatrixError, Unauthorized
from federation.protocol.identifiers import is_server_key_id
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.request_signing import Authorization, SignedRequest
from federation.protocol.server_keys import MAX_VALIDITY_MS, ServerKeys
from federation.protocol.signatures import VerifyKey
from federation.protocol.types import JsonObject, KeyID, ServerName
from storage import server_keys
from storage.database import Database
from storage.figures import Figures, Lookups
from storage.places import figures_of

EVENT_PAUSE_SECONDS = 60.0
"""A server that was asked for its keys is not asked again so soon because of events, which come from anywhere."""

REQUEST_PAUSE_SECONDS = 10.0
"""Nor so soon because of a request that claims to be from it."""

MAX_SIGNATURES = 20
"""Of so many signatures that an event has by one server the keys are looked for; nobody has more than two or three."""

IN_THREAD = 16
"""So many events are verified in a thread: each takes some 150 microseconds."""

MAX_ASKED = 20_000
"""Servers that are asked, or wait for their turn, because of events; of requests, which anybody makes up, a tenth."""

MAX_ASKED_FOR_OTHERS = 50
"""Who asks us as a notary makes us ask so many servers at most."""

MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""Of lists that are given out at once: more than a thousand usual ones."""

PATIENCE_FOR_OTHERS_SECONDS = 20.0

LISTS_KEPT_MS = 60 * 24 * 3600 * 1000
"""After its end a list is still given out for so long, to those who check old events."""

CACHED_SECONDS = 600.0
"""After that a key is read from the database again: another process may have heard that it was retired."""

_MAX_CACHED = 50_000

Name = tuple[ServerName, KeyID]

VerifyEvents = Callable[[Sequence[PDU]], Awaitable[list[VerifiedPDU | MatrixError]]]
"""`Keyring.verify_events`, for whoever needs nothing else of it."""


class Keyring:
    """The keys of all servers, our own included."""

    def __init__(
        self,
        database: Database,
        source: KeySource,
        *,
        server_name: ServerName,
        own_keys: Mapping[KeyID, VerifyKey],
        notaries: Sequence[ServerName] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._server_name = server_name
        self._own_keys = dict(own_keys)
        others = [name for name in notaries if name != server_name]
        self._fetcher = KeyFetcher(source, others, self._learn, clock=clock)
        self._fetcher_for_others = KeyFetcher(source, (), self._learn, at_once=10, clock=clock)
        self._cache: dict[Name, tuple[VerifyKey, float]] = {}
        self._clock = clock
        self._lookups = Lookups("server_keys")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        places = (*self._fetcher.places, *self._fetcher_for_others.places)
        return {**self._lookups.figures(len(self._cache)), **figures_of(places)}

    async def close(self) -> None:
        """Stop asking for keys."""
        await self._fetcher.close()
        await self._fetcher_for_others.close()

    async def forget_old_lists(self) -> None:
        """Keep no lists for notaries that were over long ago; the keys themselves stay."""
        async with self._database.transaction() as tx:
            await server_keys.delete_answers(tx, _now_ms() - LISTS_KEPT_MS)

    async def verify_events(self, pdus: Sequence[PDU]) -> list[VerifiedPDU | MatrixError]:
        """Each event verified, redacted if its content hash does not match, or why it is dropped; in the same order.

        The keys of all are looked for together. Events fail one by one, unless the database is away.
        """
        wanted: dict[Name, int] = {}
        errors: dict[int, MatrixError] = {}
        for index, pdu in enumerate(pdus):
            try:
                names = _keys_of(pdu)
            except MatrixError as error:
                errors[index] = error
                continue
            # Until room version 5 any key that was ever published for now will do.
            ts = pdu.origin_server_ts if pdu.rules.enforces_key_validity else 0
            for name in names:
                wanted[name] = max(ts, wanted.get(name, 0))
        keys = await self._get(wanted, now_used=False)
        if len(pdus) < IN_THREAD:
            return _verify_all(pdus, errors, keys)
        return await asyncio.to_thread(_verify_all, pdus, errors, keys)

    async def verify_request(self, authorization: Authorization, request: SignedRequest) -> None:
        """Raise Unauthorized unless the origin signed the request with a key that it uses now."""
        name = (authorization.origin, authorization.key_id)
        now = _now_ms()
        key = (await self._get({name: now}, now_used=True)).get(name)
        if key is None or key.expired_ts is not None or not key.is_valid_at(now):
            raise Unauthorized("The key that the request is signed with is not known or not valid", "M_UNAUTHORIZED")
        request_signing.verify(authorization, request, key.public_key)

    async def verify_json(self, server_name: ServerName, json: JsonObject) -> None:
        """Raise Unauthorized unless the object is signed by the server with a key that it uses now."""
        all_signatures = json.get("signatures")
        by_server = all_signatures.get(server_name) if isinstance(all_signatures, dict) else None
        names = _first_names(server_name, by_server if isinstance(by_server, dict) else ())
        now = _now_ms()
        keys = await self._get(dict.fromkeys(names, now), now_used=True)
        for name in names:
            key = keys.get(name)
            if key is None or key.expired_ts is not None or not key.is_valid_at(now):
                continue
            if signatures.verify_json(json, server_name, name[1], key.public_key):
                return
        raise Unauthorized(f"The object is not signed by {server_name} with a key that is known", "M_UNAUTHORIZED")

    async def find_lists(self, wanted: Mapping[ServerName, tuple[Mapping[KeyID, int], int]]) -> list[JsonObject]:
        """The newest list of keys that each of these servers signed, as a notary gives it out.

        A server is asked again, within limits, for a key that is not in its list, when the list is not valid until the
        given time, or half of the time is over for which it was valid; if it does not answer, the old list stands.
        """
        async with self._database.read() as tx:
            known = await server_keys.find_answers(tx, wanted.keys(), MAX_ANSWER_BYTES)
        now = _now_ms()
        ask = {
            name: dict.fromkeys(keys, least_ts)
            for name, (keys, least_ts) in wanted.items()
            if name not in known or not known[name].is_fresh(now, keys, least_ts)
        }
        if ask:
            first = dict(list(ask.items())[:MAX_ASKED_FOR_OTHERS])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_FOR_OTHERS_SECONDS):
                    await self._fetcher_for_others.fetch(first, pause=EVENT_PAUSE_SECONDS, at_most=200)
            async with self._database.read() as tx:
                known = {**known, **await server_keys.find_answers(tx, first.keys(), MAX_ANSWER_BYTES)}
        return [known[name].json for name in wanted if name in known]

    async def _get(self, wanted: Mapping[Name, int], *, now_used: bool) -> dict[Name, VerifyKey]:
        """Those of these keys that there are, fetched anew where one has to be valid for longer than it is."""
        found, missing = self._sort(wanted, {})
        if not missing:
            return found
        async with self._database.read() as tx:
            stored = await server_keys.find(tx, missing.keys())
        self._remember(stored)
        found, missing = self._sort(wanted, stored)
        ask: dict[ServerName, dict[KeyID, int]] = {}
        latest = _now_ms() + MAX_VALIDITY_MS
        for (server_name, key_id), ts in missing.items():
            if ts <= latest or (server_name, key_id) not in found:
                ask.setdefault(server_name, {})[key_id] = ts
        if ask:
            if now_used:
                await self._fetcher.fetch(ask, pause=REQUEST_PAUSE_SECONDS, at_most=MAX_ASKED // 10, present_only=True)
            else:
                await self._fetcher.fetch(ask, pause=EVENT_PAUSE_SECONDS, at_most=MAX_ASKED)
            found, _ = self._sort(wanted, stored)
        return found

    def _sort(
        self, wanted: Mapping[Name, int], stored: Mapping[Name, VerifyKey]
    ) -> tuple[dict[Name, VerifyKey], dict[Name, int]]:
        """The keys that are known, and those that have to be looked for as they are not, or not for long enough."""
        found: dict[Name, VerifyKey] = {}
        missing: dict[Name, int] = {}
        for name, ts in wanted.items():
            is_own = name[0] == self._server_name
            key = self._own_keys.get(name[1]) if is_own else self._find_cached(name) or stored.get(name)
            if key is not None:
                found[name] = key
            if not is_own and (key is None or (key.expired_ts is None and not key.is_valid_at(ts))):
                missing[name] = ts
        return found, missing

    def _find_cached(self, name: Name) -> VerifyKey | None:
        key, until = self._cache.get(name, (None, 0.0))
        is_known = until > self._clock()
        self._lookups.note(is_hit=is_known)
        return key if is_known else None

    def _remember(self, keys: Mapping[Name, VerifyKey]) -> None:
        until = self._clock() + CACHED_SECONDS
        for name, key in keys.items():
            known, _ = self._cache.pop(name, (None, 0.0))
            self._cache[name] = (key if known is None or _version(known) <= _version(key) else known), until
        while len(self._cache) > _MAX_CACHED:
            del self._cache[next(iter(self._cache))]

    async def _learn(self, lists: Sequence[ServerKeys]) -> None:
        async with self._database.transaction() as tx:
            await server_keys.save(tx, lists)
        self._remember({(each.server_name, key_id): key for each in lists for key_id, key in each.keys.items()})


def _keys_of(pdu: PDU) -> list[Name]:
    by_server: dict[ServerName, list[KeyID]] = {}
    for server_name, key_id in signatures.required_keys(pdu):
        by_server.setdefault(server_name, []).append(key_id)
    return [name for server_name, ids in by_server.items() for name in _first_names(server_name, sorted(ids))]


def _first_names(server_name: ServerName, key_ids: Iterable[str]) -> list[Name]:
    names = [(server_name, key_id) for key_id in key_ids if key_id.startswith("ed25519:") and is_server_key_id(key_id)]
    return names[:MAX_SIGNATURES]


def _verify_all(
    pdus: Sequence[PDU], errors: Mapping[int, MatrixError], keys: Mapping[Name, VerifyKey]
) -> list[VerifiedPDU | MatrixError]:
    return [errors[index] if index in errors else _verify(pdu, keys) for index, pdu in enumerate(pdus)]


def _verify(pdu: PDU, keys: Mapping[Name, VerifyKey]) -> VerifiedPDU | MatrixError:
    try:
        return signatures.verify(pdu, keys)
    except MatrixError as error:
        return error


def _version(key: VerifyKey) -> int:
    return key.valid_until_ts or 0


def _now_ms() -> int:
    return int(time.time() * 1000)
