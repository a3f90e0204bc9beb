"""Dehydrated devices (MSC3814): a device without a login that receives room keys for its user's next login.

It is a device like others, with keys and an inbox; nobody is logged in on it. A user has one at most.
"""

import time
from collections.abc import Sequence

import orjson

from federation.protocol.errors import Forbidden, InvalidInput, NotFound, TooLarge
from federation.protocol.identifiers import check_device_id
from federation.protocol.types import DeviceID, JsonObject, UserID
from homeserver.services import device_keys, key_checks
from homeserver.services.sessions import check_display_name
from storage import cross_signing, dehydrated_devices, devices, send_to_device
from storage.database import Database, Tx
from storage.dehydrated_devices import DehydratedDevice
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry
from storage.tail import Tail

MAX_DEVICE_DATA_BYTES = 65_536
EVENTS_AT_ONCE = 100


class DehydratedDeviceService:
    """One user's dehydrated device."""

    def __init__(self, database: Database, log: Log, tail: Tail) -> None:
        self._database = database
        self._log = log
        self._tail = tail

    async def put(self, user_id: UserID, body: JsonObject) -> DeviceID:
        """Create the dehydrated device with its keys, in the place of the one before."""
        device_id = check_device_id(key_checks.required(body, "device_id"))
        device_data = _device_data(body)
        display_name = check_display_name(body.get("initial_device_display_name"))
        key_checks.required(body, "device_keys")
        keys = device_keys.parse_upload(body, user_id, device_id)
        if keys.identity is None:
            raise key_checks.malformed("device_keys must be an object")
        entry = Entry(width=3)

        async def work(tx: Tx) -> None:
            before = await dehydrated_devices.find(tx, user_id)
            if before is not None:
                await devices.delete(tx, user_id, [before.device_id])
            if await devices.find(tx, user_id, device_id) is not None:
                raise InvalidInput("There is a device with this ID, and somebody is logged in on it")
            if await cross_signing.is_cross_signing_key(tx, user_id, device_id):
                raise Forbidden("A device cannot have the name of a cross-signing key")
            device = await devices.ensure(tx, user_id, device_id, display_name, int(time.time() * 1000))
            await dehydrated_devices.insert(tx, user_id, device, device_data)
            await device_keys.store(tx, user_id, device_id, device, keys)
            changed = [device_id] if before is None else [before.device_id, device_id]
            entry.changes = await _ended(tx, user_id, changed)

        entry.work = work
        await self._log.append(entry)
        return device_id

    async def get(self, user_id: UserID) -> JsonObject:
        """The device's ID and what it is made of; raises NotFound."""
        async with self._database.read() as tx:
            found = await _existing(tx, user_id)
        return {"device_id": found.device_id, "device_data": orjson.Fragment(found.device_data)}

    async def delete(self, user_id: UserID) -> DeviceID:
        """Delete the device with its keys and inbox; raises NotFound."""
        entry = Entry(width=3)

        async def work(tx: Tx) -> DeviceID:
            found = await _existing(tx, user_id)
            await devices.delete(tx, user_id, [found.device_id])
            entry.changes = await _ended(tx, user_id, [found.device_id])
            return found.device_id

        entry.work = work
        device_id: DeviceID = (await self._log.append(entry)).result
        return device_id

    async def events(self, user_id: UserID, device_id: str, start: str | None) -> JsonObject:
        """A page of the device's to-device messages, which it keeps; `next_batch` is there while there are more."""
        upto = self._tail.position
        after = min(_position(start, "from"), upto)
        async with self._database.read() as tx:
            device = (await _existing(tx, user_id, device_id)).device
            events, position = await send_to_device.pending(tx, device, after, upto, EVENTS_AT_ONCE)
        more = {"next_batch": str(position)} if position < upto else {}
        return {"events": [orjson.Fragment(event) for event in events], **more}

    async def take_events(self, user_id: UserID, device_id: str, body: JsonObject) -> JsonObject:
        """The same as clients asked once: those that `next_batch` proves received are deleted."""
        upto = self._tail.position
        after = min(_position(body.get("next_batch"), "next_batch"), upto)
        async with self._database.transaction() as tx:
            device = (await _existing(tx, user_id, device_id)).device
            if after:
                await send_to_device.delete_upto(tx, device, after)
            events, position = await send_to_device.pending(tx, device, after, upto, EVENTS_AT_ONCE)
        return {"events": [orjson.Fragment(event) for event in events], "next_batch": str(position)}


async def _ended(tx: Tx, user_id: UserID, device_ids: Sequence[DeviceID]) -> list[Change]:
    """What to log; somebody may have logged in on the device by its ID, which ends with it."""
    ended = [Invalidated(Kind.SESSIONS, user_id, device_id) for device_id in device_ids]
    return [*ended, *await device_keys.devices_changed(tx, user_id, device_ids)]


async def _existing(tx: Tx, user_id: UserID, device_id: str | None = None) -> DehydratedDevice:
    """Raises NotFound, also where it is another than `device_id`."""
    found = await dehydrated_devices.find(tx, user_id)
    if found is None:
        raise NotFound("No dehydrated device")
    if device_id not in (None, found.device_id):
        raise NotFound("This is not your dehydrated device")
    return found


def _device_data(body: JsonObject) -> bytes:
    value = key_checks.an_object(key_checks.required(body, "device_data"), "device_data")
    key_checks.a_text(key_checks.required(value, "algorithm"), "device_data.algorithm")
    encoded = orjson.dumps(value)
    if len(encoded) > MAX_DEVICE_DATA_BYTES:
        raise TooLarge(f"device_data is larger than {MAX_DEVICE_DATA_BYTES} bytes")
    return encoded


def _position(value: object, name: str) -> int:
    if value is None:
        return 0
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 18:
        raise InvalidInput(f"{name} is not a token of this server")
    return int(value)
