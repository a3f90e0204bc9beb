"""Keys of other servers' users, for clients that wait for them ("Key management API").

Those whose devices we follow without a gap are answered from what we hold; for all others their servers are asked, all
at once and each for a limited time. A server that does not answer is named in `failures`, and then what is held of its
users has to do.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import Struct, field

from federation.outbound.device_requests import DeviceRequests
from federation.protocol.errors import MatrixError, PeerFailed
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import DeviceID, JsonObject, ServerName, UserID
from homeserver.services.key_answers import answer_about, with_signatures
from homeserver.services.remote_devices import RemoteDevices
from homeserver.services.remote_key_checks import checked_answer, checked_claims
from storage import cross_signing, remote_devices
from storage.cross_signing import KeySignature
from storage.database import Database, Tx
from storage.end_to_end_keys import Claim

logger = logging.getLogger(__name__)

AT_ONCE = 32
"""Requests to other servers for one of a client."""
USERS_AT_ONCE = 250
"""In one request to another server, whose answer may not be too large."""

_Asked = TypeVar("_Asked")

Wanted = Mapping[UserID, Collection[str]]


class Found(Struct):
    """An answer for a client, and the servers that gave none."""

    answer: JsonObject
    failures: JsonObject = field(default_factory=dict)


class RemoteKeys:
    """Asks other servers where that is needed."""

    def __init__(self, database: Database, requests: DeviceRequests, lists: RemoteDevices) -> None:
        self._database = database
        self._requests = requests
        self._lists = lists

    async def query(self, wanted: Wanted, asker: UserID) -> Found:
        """Keys of users, with the asker's own signatures of them."""
        if not wanted:
            return Found({})
        async with self._database.read() as tx:
            known = await remote_devices.known_to(tx, asker, wanted.keys())
            found = Found(await _held(tx, {user_id: wanted[user_id] for user_id in known}, asker))
        unknown = {user_id: wanted[user_id] for user_id in wanted.keys() - known}
        if unknown:
            _add(found.answer, await self._ask_about(unknown, asker, found.failures))
            await self._lists.want(asker, unknown)
        return found

    async def _ask_about(self, wanted: Wanted, asker: UserID, failures: JsonObject) -> JsonObject:
        """What their servers say, or else what is held."""
        told: JsonObject = {"device_keys": {}, "master_keys": {}, "self_signing_keys": {}, "user_signing_keys": {}}

        async def ask(server: ServerName, users: Wanted) -> None:
            _add(told, checked_answer(await self._requests.query(server, users), users))

        await _ask_all(failures, [(server, ask(server, users)) for server, users in _by_server(wanted)])
        silent = [
            user_id for user_id in wanted if server_name_of(user_id) in failures and user_id not in told["device_keys"]
        ]
        async with self._database.read() as tx:
            _add_signatures(
                told["master_keys"], await cross_signing.list_signatures(tx, list(told["master_keys"]), asker)
            )
            if silent:
                held = await remote_devices.fetched(tx, silent)
                _add(told, await _held(tx, {user_id: wanted[user_id] for user_id in held}, asker))
        return told

    async def claim(self, claims: Sequence[Claim]) -> Found:
        """One-time keys: user -> device -> key ID -> key."""
        found = Found({})
        wanted: dict[UserID, dict[DeviceID, str]] = {}
        for claim in claims:
            wanted.setdefault(claim.user_id, {})[claim.device_id] = claim.algorithm

        async def ask(server: ServerName, users: Mapping[UserID, Mapping[DeviceID, str]]) -> None:
            found.answer.update(checked_claims(await self._requests.claim(server, users), users))

        await _ask_all(found.failures, [(server, ask(server, users)) for server, users in _by_server(wanted)])
        return found


async def _ask_all(failures: JsonObject, asking: Sequence[tuple[ServerName, Coroutine[Any, Any, None]]]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def ask(server: ServerName, asked: Coroutine[Any, Any, None]) -> None:
        async with slots:
            try:
                await asked
            except PeerFailed as error:
                logger.info("keys of users of %s could not be had: %s", server, error)
                failures[server] = {"errcode": error.errcode, "error": error.message}
            except MatrixError as error:
                logger.warning("%s answers about keys what is no answer: %s", server, error.message)
                failures[server] = {"errcode": "M_UNKNOWN", "error": f"The server {server} answers badly"}

    async with asyncio.TaskGroup() as group:
        for server, asked in asking:
            group.create_task(ask(server, asked))


async def _held(tx: Tx, wanted: Wanted, asker: UserID) -> JsonObject:
    return await answer_about(tx, wanted, asker, await remote_devices.list_devices(tx, wanted.keys()))


def _by_server(wanted: Mapping[UserID, _Asked]) -> Iterator[tuple[ServerName, dict[UserID, _Asked]]]:
    """What to ask of each server, in several requests where it is much."""
    servers: dict[ServerName, list[UserID]] = {}
    for user_id in wanted:
        servers.setdefault(server_name_of(user_id), []).append(user_id)
    for server, users in servers.items():
        for start in range(0, len(users), USERS_AT_ONCE):
            yield server, {user_id: wanted[user_id] for user_id in users[start : start + USERS_AT_ONCE]}


def _add(answer: JsonObject, more: JsonObject) -> None:
    for name, keys in more.items():
        answer[name] |= keys


def _add_signatures(masters: JsonObject, signed: Sequence[KeySignature]) -> None:
    for signature in signed:
        master = masters[signature.user_id]
        if f"ed25519:{signature.key_name}" in master["keys"]:
            with_signatures(master, [signature])
