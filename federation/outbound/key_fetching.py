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
from federation.protocol.errors import InvalidInput, MatrixError, Unavailable
from federation.protocol.server_keys import ServerKeys
from federation.protocol.types import JsonObject, KeyID, ServerName
from storage import background
from storage.places import Places

logger = logging.getLogger(__name__)

DIRECT_AT_ONCE = 200
"""So many servers are asked at the same time: most of those that do not answer take until the time-out."""

NOTARY_AT_ONCE = 4
"""So many requests notaries get at the same time."""

SECONDS = 15.0
"""For an answer."""

SECONDS_OF_MANY = 6.0
"""The same where many are asked, of which notaries know nothing: most of them are gone for good."""

FEW = 5
"""Up to so many servers are asked themselves first; of more, notaries are asked first, in batches."""

BATCH = 100
"""A notary is asked for the keys of so many servers in one request."""

MAX_KEY_IDS = 20
"""A notary is asked for so many keys of one server."""

NOTARY_KEYS_MS = 3600 * 1000
"""For so long a notary's own keys are used."""

_MAX_REMEMBERED = 20_000


class KeySource(Protocol):
    """Sends the requests. Both raise MatrixError when there is no answer, or one that is no JSON object."""

    async def get_keys(self, server_name: ServerName, timeout: float) -> JsonObject:
        """What the server says of itself, within so many seconds."""

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
        # Whoever sends events names servers that never answer; nobody's request is to wait behind those.
        self._slots = {present_only: Places("server_keys", at_once) for present_only in (False, True)}
        self._notary_slots = Places("notaries", NOTARY_AT_ONCE)
        self.places = (*self._slots.values(), self._notary_slots)
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: dict[ServerName, asyncio.Future[MatrixError | None]] = {}
        self._at_work = {False: 0, True: 0}
        """How many of them are asked for the sake of events, and of requests."""
        self._asked_at: dict[ServerName, float] = {}
        self._notary_keys: dict[ServerName, ServerKeys] = {}

    async def fetch(self, wanted: Wanted, *, pause: float, at_most: int, present_only: bool = False) -> None:
        """Ask for the keys of those servers that were not asked within `pause` seconds; wait for the answers.

        Whether there are any, `learn` knows; its failure is raised. `present_only` says that the keys are in use now,
        as those of requests, so that a server which answers need not be doubted. Where `at_most` servers are asked
        already on such an account, or wait for their turn, nobody else is. Requests go on for others when this one is
        cancelled.
        """
        now = self._clock()
        waiting = {self._under_way[name] for name in wanted if name in self._under_way}
        new = {
            name: keys
            for name, keys in wanted.items()
            if name not in self._under_way and self._asked_at.get(name, -pause) + pause <= now
        }
        room = max(0, at_most - self._at_work[present_only])
        for group in _groups(dict(list(new.items())[:room])):
            waiting |= self._start({name: new[name] for name in group}, present_only=present_only)
        if waiting:
            await asyncio.wait(waiting)
            for future in waiting:
                error = future.result()
                if error is not None:
                    raise error

    async def close(self) -> None:
        """Stop asking."""
        await background.end(self._tasks)

    def _start(self, wanted: Wanted, *, present_only: bool) -> "set[asyncio.Future[MatrixError | None]]":
        loop = asyncio.get_running_loop()
        futures = {name: loop.create_future() for name in wanted}
        self._under_way |= futures
        self._at_work[present_only] += len(futures)
        for future in futures.values():
            future.add_done_callback(lambda _future: self._note_done(present_only=present_only))
        task = loop.create_task(self._run(dict(wanted), present_only=present_only), name="server keys")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return set(futures.values())

    def _note_done(self, *, present_only: bool) -> None:
        self._at_work[present_only] -= 1

    async def _run(self, wanted: dict[ServerName, Mapping[KeyID, int]], *, present_only: bool) -> None:
        """Ask for these, which nobody else asks for; what was answered is taken away from `wanted` at once."""
        names = list(wanted)
        failure: MatrixError | None = None
        slots = self._slots[present_only]
        try:
            if len(wanted) > FEW:
                await self._ask_notaries(wanted)
                await self._ask_directly(wanted, slots, present_only=True, timeout=SECONDS_OF_MANY)
            else:
                await self._ask_directly(wanted, slots, present_only=present_only, timeout=SECONDS)
                await self._ask_notaries(wanted)
        except* Unavailable:  # raised by `learn`, one for each server
            failure = Unavailable("Keys cannot be stored at the moment, try again")
        finally:
            self._finish(names, failure)

    def _finish(self, names: Iterable[ServerName], failure: MatrixError | None = None) -> None:
        """Let those go on who wait for these servers, unless they do so already."""
        now = self._clock()
        for name in names:
            future = self._under_way.pop(name, None)
            if future is None:
                continue
            if failure is None:
                self._asked_at.pop(name, None)  # so that the dictionary's order is that of asking
                self._asked_at[name] = now
            future.set_result(failure)
        while len(self._asked_at) > _MAX_REMEMBERED:
            del self._asked_at[next(iter(self._asked_at))]

    async def _ask_directly(
        self,
        wanted: dict[ServerName, Mapping[KeyID, int]],
        slots: Places,
        *,
        present_only: bool,
        timeout: float,
    ) -> None:
        """Ask each server itself."""

        async def ask(name: ServerName) -> None:
            try:
                async with slots:
                    answer = await self._source.get_keys(name, timeout)
                keys = server_keys.parse(answer, name, _now_ms())
            except MatrixError as error:
                logger.info("no keys from %s: %s", name, error.message)
                return
            await self._take(wanted, [keys], present_only=present_only)

        async with asyncio.TaskGroup() as group:
            for name in list(wanted):
                group.create_task(ask(name))

    async def _ask_notaries(self, wanted: dict[ServerName, Mapping[KeyID, int]]) -> None:
        """Ask one notary after the other for what is still wanted."""
        for notary in self._notaries:
            others = {name: keys for name, keys in wanted.items() if name != notary}
            if not others:
                break
            try:
                async with self._notary_slots:
                    own = await self._keys_of_notary(notary)
                    answer = await self._source.query_notary(notary, _query(others))
                lists = _read_notary(answer, own, others)
            except MatrixError as error:
                logger.info("no keys from the notary %s: %s", notary, error.message)
                continue
            if lists:
                await self._take(wanted, lists, present_only=False)

    async def _keys_of_notary(self, notary: ServerName) -> ServerKeys:
        known = self._notary_keys.get(notary)
        now = _now_ms()
        if known is None or known.valid_until_ts <= now or known.read_ts + NOTARY_KEYS_MS <= now:
            known = server_keys.parse(await self._source.get_keys(notary, SECONDS), notary, now)
            self._notary_keys[notary] = known
        return known

    async def _take(
        self,
        wanted: dict[ServerName, Mapping[KeyID, int]],
        lists: Sequence[ServerKeys],
        *,
        present_only: bool,
    ) -> None:
        await self._learn(lists)
        done = [
            keys.server_name
            for keys in lists
            if keys.server_name in wanted and (present_only or _satisfies(keys, wanted[keys.server_name]))
        ]
        for name in done:
            del wanted[name]
        self._finish(done)


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
        read_ts=newer.read_ts,
        json=newer.json,
    )


def _satisfies(keys: ServerKeys, wanted: Mapping[KeyID, int]) -> bool:
    """Whether nothing is left to ask others for: every key is there and as valid as it has to be, or is an old one."""
    return all(
        (key := keys.keys.get(key_id)) is not None and (key.expired_ts is not None or key.is_valid_at(ts))
        for key_id, ts in wanted.items()
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
