"""Keys of other servers' users, asked for while a client waits ("Key management API").

What a server says is taken over only where it is about its own users, was asked for, and is as good as what clients
may upload here. A server that does not answer in time is named in `failures`.
"""

import asyncio
import logging
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

from federation.outbound.device_requests import DeviceRequests
from federation.protocol.errors import InvalidInput, MatrixError, PeerFailed
from federation.protocol.identifiers import is_device_id, server_name_of
from federation.protocol.types import DeviceID, JsonObject, ServerName, UserID
from homeserver.services import key_checks
from homeserver.services.key_answers import with_signatures
from storage import cross_signing
from storage.cross_signing import CrossSigningKey, KeySignature, Usage
from storage.database import Database
from storage.end_to_end_keys import Claim

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Servers that one request asks at the same time."""
MAX_NAME = 1000
"""Of a device, in characters."""

_Asked = TypeVar("_Asked")

Wanted = Mapping[UserID, Collection[str]]


@dataclass(slots=True)
class Found:
    """An answer for a client, and the servers that gave none."""

    answer: JsonObject
    failures: JsonObject = field(default_factory=dict)


class RemoteKeys:
    """Asks other servers."""

    def __init__(self, database: Database, requests: DeviceRequests) -> None:
        self._database = database
        self._requests = requests
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def query(self, wanted: Wanted, asker: UserID) -> Found:
        """Keys of users, with the asker's own signatures of them."""
        found = Found({"device_keys": {}, "master_keys": {}, "self_signing_keys": {}})
        if not wanted:
            return found

        async def ask(server: ServerName, users: Wanted) -> None:
            answer = await self._requests.query(server, users)
            for name, keys in checked_answer(answer, users).items():
                found.answer[name] |= keys

        await self._ask_all(found, {server: ask(server, users) for server, users in _by_server(wanted).items()})
        async with self._database.read() as tx:
            signed = await cross_signing.list_signatures(tx, list(found.answer["master_keys"]), asker)
        _add_signatures(found.answer["master_keys"], signed)
        return found

    async def claim(self, claims: Sequence[Claim]) -> Found:
        """One-time keys: user -> device -> key ID -> key."""
        found = Found({})
        wanted: dict[UserID, dict[DeviceID, str]] = {}
        for claim in claims:
            wanted.setdefault(claim.user_id, {})[claim.device_id] = claim.algorithm

        async def ask(server: ServerName, users: Mapping[UserID, Mapping[DeviceID, str]]) -> None:
            found.answer.update(checked_claims(await self._requests.claim(server, users), users))

        await self._ask_all(found, {server: ask(server, users) for server, users in _by_server(wanted).items()})
        return found

    async def _ask_all(self, found: Found, asking: Mapping[ServerName, Coroutine[Any, Any, None]]) -> None:
        async def ask(server: ServerName, asked: Coroutine[Any, Any, None]) -> None:
            async with self._slots:
                try:
                    await asked
                except PeerFailed as error:
                    logger.info("keys of users of %s could not be had: %s", server, error)
                    found.failures[server] = {"errcode": error.errcode, "error": error.message}
                except MatrixError as error:
                    logger.warning("%s answers about keys what is no answer: %s", server, error.message)
                    found.failures[server] = {"errcode": "M_UNKNOWN", "error": f"The server {server} answers badly"}

        async with asyncio.TaskGroup() as group:
            for server, asked in asking.items():
                group.create_task(ask(server, asked))


def _by_server(wanted: Mapping[UserID, _Asked]) -> dict[ServerName, dict[UserID, _Asked]]:
    servers: dict[ServerName, dict[UserID, _Asked]] = {}
    for user_id, asked in wanted.items():
        servers.setdefault(server_name_of(user_id), {})[user_id] = asked
    return servers


# --- what they answer


def checked_answer(answer: JsonObject, wanted: Wanted) -> JsonObject:
    """What of an answer to /user/keys/query was asked for and is well made. Raises InvalidInput if it is none."""
    by_user = key_checks.an_object(answer.get("device_keys"), "device_keys")
    checked: JsonObject = {"device_keys": {}, "master_keys": {}, "self_signing_keys": {}}
    for user_id, device_ids in wanted.items():
        if not isinstance(by_user.get(user_id), dict):
            continue
        devices = checked["device_keys"][user_id] = {}
        for device_id, keys in by_user[user_id].items():
            if not device_ids or device_id in device_ids:
                device = checked_device(keys, user_id, device_id)
                if device is not None:
                    devices[device_id] = device
        for key in checked_keys(user_id, *(_member(answer, f"{usage}_keys", user_id) for usage in _SHOWN)):
            checked[f"{key.usage}_keys"][user_id] = orjson.loads(key.json)
    return checked


def checked_device(value: object, user_id: UserID, device_id: object) -> JsonObject | None:
    """A device's keys as a client may see them; None for what is none."""
    try:
        if not is_device_id(device_id) or not isinstance(value, dict):
            return None
        json: JsonObject = orjson.loads(key_checks.device_keys(value, user_id, device_id))
    except InvalidInput as error:
        logger.info("keys of the device %.255r of %s are malformed: %s", device_id, user_id, error.message)
        return None
    unsigned = value.get("unsigned")
    name = unsigned.get("device_display_name") if isinstance(unsigned, dict) else None
    json["unsigned"] = {"device_display_name": name[:MAX_NAME]} if isinstance(name, str) else {}
    return json


_SHOWN = (Usage.MASTER, Usage.SELF_SIGNING)


def checked_keys(user_id: UserID, master: object, self_signing: object) -> list[CrossSigningKey]:
    """A user's cross-signing keys as another server gave them: those that are well made."""
    keys: list[CrossSigningKey] = []
    for usage, value in zip(_SHOWN, (master, self_signing), strict=True):
        if value is None:
            continue
        try:
            keys.append(key_checks.cross_signing_key(value, user_id, usage))
        except InvalidInput as error:
            logger.info("the %s key of %s is malformed: %s", usage, user_id, error.message)
    return keys


def checked_claims(answer: JsonObject, wanted: Mapping[UserID, Mapping[DeviceID, str]]) -> JsonObject:
    """What of an answer to /user/keys/claim was asked for and is well made. Raises InvalidInput if it is none."""
    by_user = key_checks.an_object(answer.get("one_time_keys"), "one_time_keys")
    checked: JsonObject = {}
    for user_id, devices in wanted.items():
        for device_id, algorithm in devices.items():
            keys = _member(by_user, user_id, device_id)
            if not isinstance(keys, dict) or len(keys) != 1:
                continue
            ((name, value),) = keys.items()
            try:
                key = key_checks.claimed_key(name, value, algorithm)
            except InvalidInput as error:
                logger.info("a key of the device %.255r of %s is malformed: %s", device_id, user_id, error.message)
                continue
            checked.setdefault(user_id, {})[device_id] = {name: orjson.Fragment(key.json)}
    return checked


def _member(json: JsonObject, name: str, member: str) -> object:
    inner = json.get(name)
    return inner.get(member) if isinstance(inner, dict) else None


def _add_signatures(masters: JsonObject, signed: Sequence[KeySignature]) -> None:
    for signature in signed:
        master = masters[signature.user_id]
        if f"ed25519:{signature.key_name}" in master["keys"]:
            with_signatures(master, [signature])
