"""Sending to-device messages ("Send-to-Device messaging")."""

import secrets
import time
from collections.abc import Iterator, Mapping

import orjson

from federation.protocol import canonical_json, edu
from federation.protocol.errors import MatrixError, TooLarge
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import DeviceID, JsonObject, ServerName, UserID
from homeserver.services import key_checks
from homeserver.services.inbox_limits import InboxLimits
from homeserver.services.requester import Requester
from storage import send_to_device
from storage.database import Tx
from storage.log import Log
from storage.log_entries import Entry
from storage.outbox import OutgoingMessage, OutgoingMessages
from storage.send_to_device import ToDeviceMessage, ToDeviceMessages

MAX_MESSAGE_BYTES = 65_536
MAX_MESSAGES = 5_000
"""Devices that one request may reach."""
MAX_TOTAL_BYTES = 16 * 1024 * 1024
"""Of all that one request puts into inboxes: a content for all devices of a user is copied into each of them."""
MAX_EDU_BYTES = 256 * 1024
"""Of what goes to another server at once, but for a single message that is larger."""
ALL_DEVICES = "*"

Contents = Mapping[UserID, Mapping[str, JsonObject]]
"""User -> device ID or `*` -> content."""


class SendToDeviceService:
    """Puts messages into inboxes."""

    def __init__(self, log: Log, server_name: ServerName, limits: InboxLimits) -> None:
        self._log = log
        self._server_name = server_name
        self._limits = limits

    async def send(self, requester: Requester, event_type: str, txn_id: str, body: JsonObject) -> None:
        """Send a client's messages, once for each transaction ID of its device and event type."""
        contents = _contents(key_checks.required(body, "messages"))
        remote = outgoing(requester.user_id, event_type, contents, self._server_name)
        local = {user_id: of for user_id, of in contents.items() if server_name_of(user_id) == self._server_name}
        device = requester.device
        entry = Entry(width=2)

        async def work(tx: Tx) -> None:
            entry.changes = []
            if device is not None:
                now_ts = int(time.time() * 1000)
                if not await send_to_device.note_transaction(tx, device, event_type, txn_id, now_ts):
                    return
            messages = await addressed(tx, requester.user_id, event_type, local)
            entry.changes = [ToDeviceMessages(messages)] if messages else []
            if remote:
                entry.changes.append(OutgoingMessages(remote))

        entry.work = work
        await self._log.append(entry)

    async def receive(self, message: edu.DirectToDevice) -> None:
        """Put what another server's user sent to ours into their inboxes, once for each message ID."""
        contents: dict[UserID, dict[str, JsonObject]] = {
            user_id: dict(of.items()) for user_id, of in message.messages.items() if self._is_ours(user_id)
        }
        for by_device in contents.values():
            for content in by_device.values():
                check_content(content)
        origin = server_name_of(message.sender)
        entry = Entry(width=1)
        stored: tuple[ToDeviceMessage, ...] = ()

        async def work(tx: Tx) -> None:
            nonlocal stored
            entry.changes, stored = [], ()
            messages = await addressed(tx, message.sender, message.type, contents)
            if not messages:  # nothing is kept of what reaches nobody, its ID neither
                return
            if await send_to_device.note_received(tx, message.sender, message.message_id, int(time.time() * 1000)):
                entry.changes, stored = [ToDeviceMessages(messages, origin)], messages

        if contents:
            entry.work = work
            await self._log.append(entry)
            await self._limits.check(origin, stored)

    def _is_ours(self, user_id: UserID) -> bool:
        return server_name_of(user_id) == self._server_name


def outgoing(
    sender: UserID, event_type: str, contents: Contents, server_name: ServerName
) -> tuple[OutgoingMessage, ...]:
    """The EDUs that carry messages to users of other servers (Server-Server API, "Send-to-device messaging")."""
    by_server: dict[ServerName, list[dict[str, dict[str, JsonObject]]]] = {}
    sizes: dict[ServerName, int] = {}
    for user_id, by_device in contents.items():
        server = server_name_of(user_id)
        if server == server_name:
            continue
        parts = by_server.setdefault(server, [{}])
        for device_id, content in by_device.items():
            size = len(orjson.dumps(content))
            if parts[-1] and sizes[server] + size > MAX_EDU_BYTES:
                parts.append({})
                sizes[server] = 0
            parts[-1].setdefault(user_id, {})[device_id] = content
            sizes[server] = sizes.get(server, 0) + size
    return tuple(
        OutgoingMessage(server, _edu(sender, event_type, part)) for server, parts in by_server.items() for part in parts
    )


def _edu(sender: UserID, event_type: str, messages: dict[str, dict[str, JsonObject]]) -> bytes:
    content = {"sender": sender, "type": event_type, "message_id": secrets.token_urlsafe(18), "messages": messages}
    return orjson.dumps({"edu_type": "m.direct_to_device", "content": content})


async def addressed(tx: Tx, sender: UserID, event_type: str, contents: Contents) -> tuple[ToDeviceMessage, ...]:
    """The message for each device that there is; whoever is unknown gets none. Raises TooLarge for too many."""
    if not contents:
        return ()
    known = await send_to_device.devices_of(tx, list(contents))
    messages: list[ToDeviceMessage] = []
    for user_id, devices in known.items():
        for device_id, json in _by_device(contents[user_id], devices, sender, event_type):
            messages.append(ToDeviceMessage(user_id, device_id, devices[device_id], json))
    if len(messages) > MAX_MESSAGES:
        raise TooLarge(f"More than {MAX_MESSAGES} devices")
    if sum(len(message.json or b"") for message in messages) > MAX_TOTAL_BYTES:
        raise TooLarge(f"The messages to all devices are together larger than {MAX_TOTAL_BYTES} bytes")
    return tuple(messages)


def _by_device(
    contents: Mapping[str, JsonObject], devices: Mapping[DeviceID, int], sender: UserID, event_type: str
) -> Iterator[tuple[DeviceID, bytes]]:
    """A message for a device by name goes before one for all."""
    encoded = {
        name: orjson.dumps({"content": content, "sender": sender, "type": event_type})
        for name, content in contents.items()
    }
    for device_id in devices:
        json = encoded.get(device_id, encoded.get(ALL_DEVICES))
        if json is not None:
            yield device_id, json


def _contents(value: object) -> Contents:
    contents: dict[UserID, dict[str, JsonObject]] = {}
    count = 0
    by_user = key_checks.an_object(value, "messages")
    for user_id in key_checks.user_ids(by_user):
        by_device = key_checks.an_object(by_user[user_id], "messages of a user")
        for device_id, content in by_device.items():
            key_checks.a_text(device_id, "A device ID")
            check_content(key_checks.an_object(content, "A message"))
        contents[user_id] = by_device
        count += len(by_device)
    if count > MAX_MESSAGES:
        raise TooLarge(f"More than {MAX_MESSAGES} messages")
    return contents


def check_content(content: JsonObject) -> None:
    """Raise unless a message's content may be sent: canonical JSON of a limited size."""
    canonical_json.check_strict(content)
    if len(canonical_json.encode_checked(content)) > MAX_MESSAGE_BYTES:
        raise MatrixError("M_TOO_LARGE", f"A message is larger than {MAX_MESSAGE_BYTES} bytes", 413)
