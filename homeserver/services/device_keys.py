"""Keys of devices: upload, query and claim ("Key management API").

Those of other servers' users are in `remote_keys.py`; a server that does not answer is named in `failures`.
"""

import time
from collections.abc import Sequence

import orjson
from msgspec import Struct

from federation.protocol.errors import InvalidInput, TooLarge
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import DeviceID, JsonObject, ServerName, UserID
from homeserver.services import key_checks
from homeserver.services.key_answers import answer_query
from homeserver.services.remote_keys import RemoteKeys
from homeserver.services.requester import Requester
from storage import cross_signing, device_lists, end_to_end_keys, send_to_device
from storage.database import Database, Tx
from storage.end_to_end_keys import Claim, Key
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry

MAX_USERS = 10_000
"""Users in one query or claim."""
MAX_CLAIMS = 10_000
"""Devices in one claim."""
MAX_HELD_KEYS = 5_000
"""One-time keys of a device."""
_CLAIMS_AT_ONCE = 500
"""Claims in one entry of the log, so that no append is long."""


class Upload(Struct, frozen=True):
    """What a device publishes, checked."""

    identity: bytes | None
    one_time: Sequence[Key]
    fallback: Sequence[Key]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store."""
        return self.identity is None and not self.one_time and not self.fallback


def parse_upload(body: JsonObject, user_id: UserID, device_id: DeviceID) -> Upload:
    """The keys in a body; members that are null are as good as absent, as some clients send them."""
    identity, one_time, fallback = (body.get(name) for name in ("device_keys", "one_time_keys", "fallback_keys"))
    return Upload(
        identity=None if identity is None else key_checks.device_keys(identity, user_id, device_id),
        one_time=() if one_time is None else key_checks.one_time_keys(one_time),
        fallback=() if fallback is None else key_checks.fallback_keys(fallback),
    )


class DeviceKeysService:
    """Uploads, queries and claims of keys."""

    def __init__(self, database: Database, log: Log, server_name: ServerName, remote: RemoteKeys) -> None:
        self._database = database
        self._log = log
        self._server_name = server_name
        self._remote = remote

    async def upload(self, requester: Requester, body: JsonObject) -> dict[str, int]:
        """Publish keys of the device that asks; the counts of its one-time keys afterwards."""
        device, device_id = requester.device, requester.device_id
        if device is None or device_id is None:
            raise InvalidInput("Keys belong to a device, and this access token has none")
        user_id = requester.user_id
        keys = parse_upload(body, user_id, device_id)
        if keys.is_empty:
            async with self._database.read() as tx:
                return (await end_to_end_keys.key_counts(tx, device)).one_time_keys

        entry = Entry(width=2)

        async def work(tx: Tx) -> dict[str, int]:
            changes: list[Change] = []
            if await store(tx, user_id, device_id, device, keys):
                changes.append(await device_lists.of_user(tx, user_id, [device_id]))
            if keys.one_time or keys.fallback:
                changes.append(Invalidated(Kind.KEY_COUNTS, user_id, device_id))
            entry.changes = changes
            return (await end_to_end_keys.key_counts(tx, device)).one_time_keys

        entry.work = work
        counts: dict[str, int] = (await self._log.append(entry)).result
        return counts

    async def query(self, requester: Requester, body: JsonObject) -> JsonObject:
        """The keys of devices and users, with the signatures that the requester may see."""
        wanted = wanted_devices(body)
        remote = {user_id: ids for user_id, ids in wanted.items() if server_name_of(user_id) != self._server_name}
        others = await self._remote.query(remote, requester.user_id)
        local = {user_id: wanted[user_id] for user_id in wanted.keys() - remote.keys()}
        async with self._database.read() as tx:
            found = await answer_query(tx, local, requester.user_id)
        for name, keys in others.answer.items():
            found[name] |= keys
        return {**found, "failures": others.failures}

    async def claim(self, body: JsonObject) -> JsonObject:
        """One key for each device that is asked for, as far as there are any."""
        claims = wanted_claims(body)
        local = [claim for claim in claims if server_name_of(claim.user_id) == self._server_name]
        remote = [claim for claim in claims if server_name_of(claim.user_id) != self._server_name]
        found = await self._remote.claim(remote)
        return {"one_time_keys": {**await self.claim_local(local), **found.answer}, "failures": found.failures}

    async def changes(self, requester: Requester, after: int, upto: int) -> JsonObject:
        """Whose keys the requester must look up again after a gap in its syncs, and whose it can forget."""
        async with self._database.read() as tx:
            changed = await device_lists.changed_between(tx, requester.user_id, after, upto)
            came, left = await device_lists.sharing_changes(tx, requester.user_id, after, upto)
        return {"changed": sorted((changed | came) - left), "left": sorted(left)}

    async def claim_local(self, claims: Sequence[Claim]) -> JsonObject:
        """Claim keys of this server's users: user -> device -> key ID -> key."""
        answer: JsonObject = {}
        for start in range(0, len(claims), _CLAIMS_AT_ONCE):
            for claim, key in await self._claim_some(claims[start : start + _CLAIMS_AT_ONCE]):
                devices = answer.setdefault(claim.user_id, {})
                devices[claim.device_id] = {f"{key.algorithm}:{key.key_id}": orjson.Fragment(key.json)}
        return answer

    async def _claim_some(self, claims: Sequence[Claim]) -> list[tuple[Claim, Key]]:
        entry = Entry(width=len(claims))

        async def work(tx: Tx) -> list[tuple[Claim, Key]]:
            found, changed = await end_to_end_keys.claim(tx, claims, _now_ts())
            entry.changes = [Invalidated(Kind.KEY_COUNTS, user_id, device_id) for user_id, device_id in sorted(changed)]
            return found

        entry.work = work
        found: list[tuple[Claim, Key]] = (await self._log.append(entry)).result
        return found


async def store(tx: Tx, user_id: UserID, device_id: DeviceID, device: int, keys: Upload) -> bool:
    """Store what a device publishes; whether its identity keys are other than before. Under the log's lock."""
    is_changed = keys.identity is not None and await _put_identity(tx, user_id, device_id, device, keys.identity)
    if keys.one_time:
        await _add_one_time_keys(tx, device, keys.one_time)
    if keys.fallback:
        await end_to_end_keys.put_fallback_keys(tx, device, keys.fallback)
    return is_changed


async def devices_changed(tx: Tx, user_id: UserID, device_ids: Sequence[DeviceID]) -> list[Change]:
    """What to log when devices were renamed or deleted, in the same transaction.

    Keys go with the rows of `devices` by cascade, and inboxes later (`key_upkeep.py`); this deletes what else names
    deleted devices.
    """
    there = (await send_to_device.devices_of(tx, [user_id])).get(user_id, {})
    gone = [device_id for device_id in device_ids if device_id not in there]
    if gone:
        await cross_signing.delete_signatures_about(tx, [(user_id, device_id) for device_id in gone])
        await cross_signing.delete_signatures_by_devices(tx, user_id, gone)
    return [await device_lists.of_user(tx, user_id, device_ids)]


async def _put_identity(tx: Tx, user_id: UserID, device_id: DeviceID, device: int, json: bytes) -> bool:
    before = await end_to_end_keys.find_device_keys(tx, device)
    if before == json:
        return False
    if before is not None and not key_checks.is_same_key(orjson.loads(before), orjson.loads(json)):
        await cross_signing.delete_signatures_about(tx, [(user_id, device_id)])
        await cross_signing.delete_signatures_by_devices(tx, user_id, [device_id])
    await end_to_end_keys.put_device_keys(tx, device, json)
    return True


async def _add_one_time_keys(tx: Tx, device: int, keys: Sequence[Key]) -> None:
    refused = await end_to_end_keys.add_one_time_keys(tx, device, keys, _now_ts())
    if refused:
        name = f"{refused[0].algorithm}:{refused[0].key_id}"
        raise InvalidInput(f"There is another one-time key {name} already")
    counts = await end_to_end_keys.key_counts(tx, device)
    if sum(counts.one_time_keys.values()) > MAX_HELD_KEYS:
        raise InvalidInput(f"A device may have at most {MAX_HELD_KEYS} one-time keys")


def wanted_devices(body: JsonObject) -> dict[UserID, frozenset[str]]:
    """The users and devices that a body of /keys/query names; no devices stand for all."""
    asked = key_checks.an_object(key_checks.required(body, "device_keys"), "device_keys")
    _check_timeout(body)
    if len(asked) > MAX_USERS:
        raise TooLarge(f"More than {MAX_USERS} users")
    wanted: dict[UserID, frozenset[str]] = {}
    for user_id in key_checks.user_ids(asked):
        devices = asked[user_id]
        if not isinstance(devices, list) or not all(isinstance(device_id, str) for device_id in devices):
            raise key_checks.malformed("device_keys must map user IDs to lists of device IDs")
        wanted[user_id] = frozenset(devices)
    return wanted


def wanted_claims(body: JsonObject) -> list[Claim]:
    """The devices of which a body of /keys/claim wants keys."""
    wanted = key_checks.an_object(key_checks.required(body, "one_time_keys"), "one_time_keys")
    claims: list[Claim] = []
    for user_id in key_checks.user_ids(wanted):
        devices = key_checks.an_object(wanted[user_id], "one_time_keys of a user")
        for device_id, algorithm in devices.items():
            key_checks.a_text(algorithm, "An algorithm")
            claims.append(Claim(user_id, DeviceID(key_checks.a_text(device_id, "A device ID")), algorithm))
            if len(claims) > MAX_CLAIMS:
                raise TooLarge(f"More than {MAX_CLAIMS} devices")
    return claims


def _check_timeout(body: JsonObject) -> None:
    timeout = body.get("timeout", 0)
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        raise key_checks.malformed("timeout must be a number of milliseconds")


def _now_ts() -> int:
    return int(time.time() * 1000)
