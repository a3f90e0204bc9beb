"""Asking for other servers' keys: themselves, and notaries (Server-Server API, "Retrieving server keys").

However many ask for whatever keys, a server is asked once at a time and then left alone for a while, whether it
answered or not: somebody who makes up key IDs or signatures makes us send next to nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from federation.protocol import server_keys, signatures
from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.server_keys import ServerKeys
from federation.protocol.types import JsonObject, KeyID, ServerName

logger = logging.getLogger(__name__)

DIRECT_AT_ONCE = 30
"""So many servers are asked at the same time."""

FEW = 5
"""Up to so many servers are asked themselves first; of more, notaries are asked first, in batches."""

BATCH = 100
"""A notary is asked for the keys of so many servers in one request."""

MAX_KEY_IDS = 20
"""A notary is asked for so many keys of one server."""

_MAX_REMEMBERED = 20_000


class KeySource(Protocol):
    """Sends the requests. Both raise MatrixError when there is no answer, or one that is no JSON object."""

    async def get_keys(self, server_name: ServerName) -> JsonObject:
        """What the server says of itself."""

    async def query_notary(self, notary: ServerName, body: JsonObject) -> JsonObject:
        """What a notary says of others."""


Wanted = Mapping[ServerName, Mapping[KeyID, int]]
"""Keys by server, each with the time at which it has to be valid."""

Learn = Callable[[Sequence[ServerKeys]], Awaitable[None]]
"""Gets every list of keys that was fetched and holds."""


class KeyFetcher:
    """Fetches lists of keys; each is handed to `learn` before whoever asked goes on."""

    def __init__(
        self,
        source: KeySource,
        notaries: Sequence[ServerName],
        learn: Learn,
        *,
        at_once: int = DIRECT_AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._notaries = tuple(notaries)
        self._learn = learn
        self._clock = clock
        self._direct = asyncio.Semaphore(at_once)
        self._under_way: dict[ServerName, asyncio.Task[None]] = {}
        self._asked_at: dict[ServerName, float] = {}

    async def fetch(self, wanted: Wanted, *, pause: float) -> None:
        """Ask for the keys of those servers that were not asked within `pause` seconds; wait for the answers.

        Whether there are any, `learn` knows. Requests go on for others who wait when this one is cancelled.
        """
        waiting = {task for name in wanted if (task := self._under_way.get(name)) is not None}
        now = self._clock()
        new = {
            name: keys
            for name, keys in wanted.items()
            if name not in self._under_way and self._asked_at.get(name, -pause) + pause <= now
        }
        for group in _groups(new):
            waiting.add(self._start({name: new[name] for name in group}))
        if waiting:
            await asyncio.shield(asyncio.gather(*waiting))

    async def close(self) -> None:
        """Stop asking."""
        tasks = set(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, wanted: Wanted) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._fetch(wanted), name="server keys")
        for name in wanted:
            self._under_way[name] = task

        def end(_task: "asyncio.Task[None]") -> None:
            now = self._clock()
            for name in wanted:
                del self._under_way[name]
                self._asked_at.pop(name, None)  # so that the dictionary's order is that of asking
                self._asked_at[name] = now
            while len(self._asked_at) > _MAX_REMEMBERED:
                del self._asked_at[next(iter(self._asked_at))]

        task.add_done_callback(end)
        return task

    async def _fetch(self, wanted: Wanted) -> None:
        if len(wanted) > FEW and self._notaries:
            wanted = await self._ask_notaries(wanted)
            await self._ask_directly(wanted)
        else:
            wanted = await self._ask_directly(wanted)
            await self._ask_notaries(wanted)

    async def _ask_directly(self, wanted: Wanted) -> Wanted:
        """Ask each server itself; what is still wanted then."""
        lists = await asyncio.gather(*(self._ask_server(name) for name in wanted))
        return await self._take(wanted, [each for each in lists if each is not None])

    async def _ask_server(self, name: ServerName) -> ServerKeys | None:
        try:
            async with self._direct:
                return server_keys.parse(await self._source.get_keys(name), name, _now_ms())
        except MatrixError as error:
            logger.info("no keys from %s: %s", name, error.message)
            return None

    async def _ask_notaries(self, wanted: Wanted) -> Wanted:
        """Ask one notary after the other for what is still wanted; what is still wanted after the last."""
        for notary in self._notaries:
            others = {name: keys for name, keys in wanted.items() if name != notary}
            if not others:
                break
            lists = await self._ask_notary(notary, others)
            wanted = await self._take(wanted, lists)
        return wanted

    async def _ask_notary(self, notary: ServerName, wanted: Wanted) -> list[ServerKeys]:
        try:
            async with self._direct:
                own = server_keys.parse(await self._source.get_keys(notary), notary, _now_ms())
                answer = await self._source.query_notary(notary, _query(wanted))
            return _read_notary(answer, own, wanted)
        except MatrixError as error:
            logger.info("no keys from the notary %s: %s", notary, error.message)
            return []

    async def _take(self, wanted: Wanted, lists: Sequence[ServerKeys]) -> Wanted:
        if lists:
            await self._learn(lists)
        by_name = {each.server_name: each for each in lists}
        return {name: keys for name, keys in wanted.items() if not _satisfies(by_name.get(name), keys)}


def _groups(wanted: Wanted) -> Iterable[Collection[ServerName]]:
    """Each of a few servers for itself; many in batches."""
    names = list(wanted)
    if len(names) <= FEW:
        return [[name] for name in names]
    return [names[start : start + BATCH] for start in range(0, len(names), BATCH)]


def _query(wanted: Wanted) -> JsonObject:
    return {
        "server_keys": {
            name: {key_id: {"minimum_valid_until_ts": ts} for key_id, ts in list(keys.items())[:MAX_KEY_IDS]}
            for name, keys in wanted.items()
        }
    }


def _read_notary(answer: JsonObject, own: ServerKeys, wanted: Wanted) -> list[ServerKeys]:
    """The lists in a notary's answer that are of servers which were asked for, and signed by both."""
    entries = answer.get("server_keys")
    if not isinstance(entries, list):
        raise InvalidInput("server_keys must be an array")
    newest: dict[ServerName, ServerKeys] = {}
    for entry in entries[: 4 * BATCH]:
        try:
            keys = _read_notary_entry(entry, own, wanted)
        except InvalidInput as error:
            logger.info("keys from the notary %s are refused: %s", own.server_name, error.message)
            continue
        known = newest.get(keys.server_name)
        if known is None:
            newest[keys.server_name] = keys
        else:  # a notary may answer with a list for each key that it was asked for
            newest[keys.server_name] = _joined(known, keys)
    return list(newest.values())


def _read_notary_entry(entry: object, own: ServerKeys, wanted: Wanted) -> ServerKeys:
    name = entry.get("server_name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or name not in wanted:
        raise InvalidInput("these were not asked for")
    now_ms = _now_ms()
    signed = any(
        signatures.verify_json(entry, own.server_name, key_id, key.public_key)
        for key_id, key in own.keys.items()
        if key.is_valid_at(now_ms)
    )
    if not signed:
        raise InvalidInput("they are not signed by the notary")
    return server_keys.parse(entry, ServerName(name), now_ms)


def _joined(one: ServerKeys, other: ServerKeys) -> ServerKeys:
    newer, older = (one, other) if one.valid_until_ts >= other.valid_until_ts else (other, one)
    return ServerKeys(
        server_name=newer.server_name,
        keys={**older.keys, **newer.keys},
        valid_until_ts=newer.valid_until_ts,
        json=newer.json,
    )


def _satisfies(keys: ServerKeys | None, wanted: Mapping[KeyID, int]) -> bool:
    """Whether nothing is left to ask others for: every key is there and as valid as it has to be, or is an old one."""
    if keys is None:
        return False
    return all(
        (key := keys.keys.get(key_id)) is not None and (key.expired_ts is not None or key.is_valid_at(ts))
        for key_id, ts in wanted.items()
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
