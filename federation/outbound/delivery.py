"""One transaction to one server: what is in it, and what its answer means (Server-Server API, "Transactions").

In a transaction come, in this order, to-device messages, device lists, room events, receipts, and what is short-lived.
Its ID follows from what it holds, so that it is the same when it is sent again, also by another process.
"""

import asyncio
import hashlib
import logging
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Sequence

import orjson
from msgspec import Struct, field

from federation.outbound import outgoing_edus
from federation.outbound.client import FederationClient, path_of
from federation.outbound.destinations import Destination, QueuedEvent, Share, room_for_messages
from federation.outbound.outgoing_edus import KeysOf
from federation.protocol import canonical_json, transactions
from federation.protocol.errors import MatrixError, PeerRefused
from federation.protocol.identifiers import server_name_of
from federation.protocol.server_acl import is_allowed
from federation.protocol.types import JsonObject, ServerName, UserID
from storage import destinations, device_lists, outbox, outbox_leases
from storage.database import Database, Tx
from storage.destinations import Undeliverable
from storage.figures import Figures
from storage.outbox import OutgoingDeviceChange, OutgoingEvent, OutgoingReceipt

logger = logging.getLogger(__name__)

SECONDS = 60.0
"""For a transaction: its receiver may have to fetch events before it answers."""
MAX_ANSWER_BYTES = 1024 * 1024
MAX_PDU_BYTES = 65_536
SCANNED = 2_000
"""Positions of the log that are read at once for a server that is behind."""
SCANS = 20
"""How often that is done before others have their turn: an empty share leads on from there."""
GIVEN_UP_AT_ONCE = 1_000
_MEANT_FOR_THE_ITEM = frozenset((400, 413, 422))
"""What a server answers that reaches us well and does not like what we sent."""


class _Parcel(Struct):
    """A transaction about to be sent."""

    share: Share
    pdus: list[QueuedEvent] = field(default_factory=list)
    edus: list[JsonObject] = field(default_factory=list)
    """Those that are sent again if this fails."""
    short_lived: list[JsonObject] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)

    @property
    def items(self) -> int:
        return len(self.pdus) + len(self.edus)


class Delivery:
    """Sends what destinations have coming."""

    def __init__(
        self,
        *,
        database: Database,
        server_name: ServerName,
        client: FederationClient,
        keys_of: KeysOf,
        with_device_names: bool,
        message_lifetime_ms: int,
    ) -> None:
        self._database = database
        self._server_name = server_name
        self._client = client
        self._keys_of = keys_of
        self._with_device_names = with_device_names
        self._message_lifetime_ms = message_lifetime_ms
        self._sent = {"event": 0, "edu": 0}
        self._set_aside_count = self._given_up_count = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {
            "federation_sent_total": self._sent,
            "federation_set_aside_total": self._set_aside_count,
            "federation_to_device_given_up_total": self._given_up_count,
        }

    async def deliver(self, destination: Destination) -> None:
        """Send one transaction, if there is anything to send. What it held is then confirmed.

        Raises PeerUnreachable or PeerRefused where all of it is to be sent again later, and Unavailable.
        """
        with self._client.spans.begin("send transaction", {"server.address": destination.server}):
            await self._deliver(destination)

    async def _deliver(self, destination: Destination) -> None:
        share = await self._next_share(destination)
        had_messages = destination.has_messages
        try:
            parcel = await self._pack(destination, share)
            if (parcel.items or parcel.short_lived) and not await self._is_settled(destination, parcel):
                return
            if parcel.messages:
                async with self._database.transaction() as tx:
                    await outbox.delete_messages(tx, parcel.messages)
        except BaseException:
            destination.has_messages = destination.has_messages or had_messages
            raise
        destination.confirm(share)

    async def _is_settled(self, destination: Destination, parcel: _Parcel) -> bool:
        """Send it; False where it is to be sent again in smaller parts."""
        try:
            await self._send(destination.server, parcel)
        except PeerRefused as error:
            if error.status not in _MEANT_FOR_THE_ITEM or not parcel.items:
                raise
            return await self._set_apart(destination, parcel, error)
        return True

    # --- what is in it

    async def _next_share(self, destination: Destination) -> Share:
        if destination.is_behind:
            return (await self._read_share(destination)).fitting(alone=bool(destination.is_alone_until))
        return destination.next_share()

    async def _read_share(self, destination: Destination) -> Share:
        """The next part of the log in which there is something for a server that is behind; or where it was looked for
        in vain.
        """
        server, after, end = destination.server, destination.cursor, destination.latest
        share = Share(after)
        async with self._database.read() as tx:
            rooms = await outbox.rooms_of_server(tx, server)
            for scan in range(SCANS):
                if scan:
                    after = await outbox.end_of_nothing(tx, after, end)
                upto = min(end, after + SCANNED)
                share = Share(upto)
                events = await outbox.events_between(
                    tx, self._server_name, after, upto, limit=transactions.MAX_PDUS, destination=server
                )
                if len(events) == transactions.MAX_PDUS:
                    share.upto = upto = events[-1].position
                share.events = [queued(event) for event in await self._addressed(tx, server, events)]
                share.device_changes = await outbox.device_changes_between(tx, self._server_name, rooms, after, upto)
                receipts = await outbox.receipts_between(tx, self._server_name, rooms, after, upto)
                share.receipts = await _readable(tx, server, receipts)
                if len(share) or upto == end:
                    break
                after = upto
        return share

    async def _addressed(self, tx: Tx, server: ServerName, events: Sequence[OutgoingEvent]) -> list[OutgoingEvent]:
        """Those of the events that the server gets; see `sender.py`."""
        joins = [event for event in events if came_by_others(event, self._server_name)]
        before = await outbox.servers_between(tx, [(event.room, event.low, event.low) for event in joins])
        elsewhere = {
            event.position for event in joins if self._server_name not in before[event.room, event.low, event.low]
        }
        acls = await outbox.server_acls(tx, {(event.room, event.high) for event in events})
        allowed = {at: acl is None or is_allowed(acl, server) for at, acl in acls.items()}
        inside = await outbox.servers_between(
            tx, [(event.room, event.low, event.high) for event in events if is_about(event, server)]
        )
        return [
            event
            for event in events
            if event.position not in elsewhere
            and allowed[event.room, event.high]
            and server_name_of(event.sender) != server
            and (
                not is_about(event, server) or server in inside[event.room, event.low, event.high] or takes_away(event)
            )
        ]

    async def _pack(self, destination: Destination, share: Share) -> _Parcel:
        parcel = _Parcel(share)
        alone = bool(destination.is_alone_until)
        damaged = [event for event in share.events if not 0 < len(event.canonical) <= MAX_PDU_BYTES]
        parcel.pdus = [event for event in share.events if event not in damaged]
        if damaged:
            await self._set_aside(
                [Undeliverable(destination.server, "event", event.event_id, "stored damaged") for event in damaged]
            )
        announced = {event.announces for event in share.events if event.announces is not None}
        if share.device_changes or share.receipts or announced:
            async with self._database.read() as tx:
                changes = await self._announced(tx, announced, share.device_changes)
                parcel.edus += await self._device_changes(tx, destination.server, changes)
                parcel.edus += await outgoing_edus.receipts(tx, share.receipts)
        if not alone:
            typing, presence = destination.take_short_lived()
            parcel.short_lived = [
                outgoing_edus.typing(room_id, user_id, is_typing=is_typing) for (room_id, user_id), is_typing in typing
            ]
            if presence:
                parcel.short_lived.append(outgoing_edus.presence(presence))
        if destination.has_messages and not (alone and parcel.items):
            limit = 1 if alone else room_for_messages(len(parcel.edus) + len(parcel.short_lived))
            destination.has_messages = False
            async with self._database.read() as tx:
                stored = await outbox.stored_messages(tx, destination.server, limit)
            if len(stored) == limit:
                destination.has_messages = True
            parcel.messages = [sequence for sequence, _ in stored]
            edus = [orjson.loads(json) for _, json in stored]
            parcel.edus[:0] = await self._encodable(destination.server, edus, "message_id")
        return parcel

    async def _announced(
        self, tx: Tx, users: set[UserID], changes: Sequence[OutgoingDeviceChange]
    ) -> list[OutgoingDeviceChange]:
        """The changes, after the newest of each of these users: who knows their devices as they are finds no gap."""
        newest = await device_lists.newest_changes(tx, users - {change.user_id for change in changes}) if users else {}
        known = [OutgoingDeviceChange(position, user_id, ids) for user_id, (position, ids) in newest.items()]
        return [*known, *changes]

    async def _device_changes(
        self, tx: Tx, server: ServerName, changes: Sequence[OutgoingDeviceChange]
    ) -> list[JsonObject]:
        if not changes:
            return []
        edus = await outgoing_edus.device_changes(tx, changes, self._keys_of, with_names=self._with_device_names)
        return await self._encodable(server, edus, "user_id")

    async def _encodable(self, server: ServerName, edus: Sequence[JsonObject], name: str) -> list[JsonObject]:
        """Those that are canonical JSON, as all should be; the others are set aside."""
        good = []
        for edu in edus:
            try:
                canonical_json.encode(edu)
            except (MatrixError, ValueError) as error:
                item = Undeliverable(server, str(edu["edu_type"]), str(edu["content"].get(name)), str(error))
                await self._set_aside([item])
            else:
                good.append(edu)
        return good

    # --- sending it

    async def _send(self, server: ServerName, parcel: _Parcel) -> None:
        pdus = [event.canonical for event in parcel.pdus]
        if len(pdus) > 1 or sum(map(len, pdus)) > 100_000:
            await asyncio.sleep(0)
        durable = hashlib.sha256()
        for part in (*pdus, *map(orjson.dumps, parcel.edus)):
            durable.update(part)
        txn_id = urlsafe_b64encode(durable.digest()[:18]).decode() if parcel.items else secrets.token_urlsafe(18)
        body = transactions.encode(
            self._server_name, time.time_ns() // 1_000_000, pdus, [*parcel.edus, *parcel.short_lived]
        )
        answer = await self._put(server, txn_id, body)
        logger.debug("%s has %d events, %d EDUs", server, len(pdus), len(parcel.edus) + len(parcel.short_lived))
        self._sent["event"] += len(pdus)
        self._sent["edu"] += len(parcel.edus) + len(parcel.short_lived)
        _report_refused(server, answer)

    async def _put(self, server: ServerName, txn_id: str, body: bytes) -> JsonObject:
        return await self._client.put(
            server,
            path_of("/_matrix/federation/v1/send/{}", txn_id),
            body,
            timeout=SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
        )

    async def _set_apart(self, destination: Destination, parcel: _Parcel, error: PeerRefused) -> bool:
        """The server refused this transaction as it is; whether it is to count as delivered.

        It is sent again one thing at a time. A thing that is refused alone, by a server that takes a transaction
        without anything, is set aside.
        """
        server = destination.server
        if parcel.items > 1:
            logger.warning("%s refuses a transaction of %d things: %s", server, parcel.items, error.message)
            destination.is_alone_until = max(parcel.share.upto, 1)
            destination.has_messages = destination.has_messages or bool(parcel.messages)
            if not destination.is_behind:
                destination.return_share(parcel.share)
            return False
        empty = transactions.encode(self._server_name, time.time_ns() // 1_000_000, [], [])
        try:
            await self._put(server, secrets.token_urlsafe(18), empty)
        except PeerRefused:
            raise error from None
        if parcel.pdus:
            item = Undeliverable(server, "event", parcel.pdus[0].event_id, error.message)
        else:
            content = parcel.edus[0].get("content", {})
            name = content.get("message_id") or content.get("user_id") or ""
            item = Undeliverable(server, str(parcel.edus[0].get("edu_type")), str(name), error.message)
        await self._set_aside([item])
        return True

    async def give_up_old(self) -> None:
        """Keep nothing apart for a server that has not taken it for as long as the settings say.

        That is to-device messages, and which events of others we pass on: those it finds by what came after them.
        """
        before_ts, count = time.time_ns() // 1_000_000 - self._message_lifetime_ms, GIVEN_UP_AT_ONCE
        while count == GIVEN_UP_AT_ONCE:
            async with self._database.transaction() as tx:
                given_up = await outbox.give_up_messages(tx, before_ts, GIVEN_UP_AT_ONCE)
            for server, number in given_up.items():
                logger.warning("%d to-device messages for %s are given up: it has not taken them", number, server)
            count = sum(given_up.values())
            self._given_up_count += count
        count = GIVEN_UP_AT_ONCE
        while count == GIVEN_UP_AT_ONCE:
            async with self._database.transaction() as tx:
                count = await outbox_leases.give_up_relayed(tx, before_ts, GIVEN_UP_AT_ONCE)
            if count:
                logger.warning("%d events of other servers are passed on no longer: some have not taken them", count)

    async def _set_aside(self, items: Sequence[Undeliverable]) -> None:
        self._set_aside_count += len(items)
        for item in items:
            logger.error("set aside for %s: %s %s: %s", item.destination, item.kind, item.name, item.reason)
        async with self._database.transaction() as tx:
            await destinations.set_aside(tx, items, time.time_ns() // 1_000_000)


def _report_refused(server: ServerName, answer: JsonObject) -> None:
    """Say which events the server did not take; sending them again would not help."""
    results = answer.get("pdus")
    for event_id, result in results.items() if isinstance(results, dict) else ():
        error = result.get("error") if isinstance(result, dict) else None
        if error:
            logger.warning("%s did not take the event %.255s: %.500s", server, event_id, error)


# --- whom an event or a receipt concerns


async def _readable(tx: Tx, server: ServerName, receipts: list[OutgoingReceipt]) -> list[OutgoingReceipt]:
    """Those of rooms whose access control list does not deny the server."""
    if not receipts:
        return receipts
    acls = await outbox.server_acls_now(tx, {receipt.room for receipt in receipts})
    denied = {room for room, acl in acls.items() if not is_allowed(acl, server)}
    return [receipt for receipt in receipts if receipt.room not in denied]


def queued(event: OutgoingEvent) -> QueuedEvent:
    """The event as it waits."""
    is_join = event.target == event.sender and _membership(event) == "join"
    return QueuedEvent(event.position, event.event_id, event.canonical, event.sender if is_join else None)


def came_by_others(event: OutgoingEvent, own: ServerName) -> bool:
    """Whether another server may have made the event known: what a user does to their own membership."""
    return event.target == event.sender and server_name_of(event.sender) == own


def is_about(event: OutgoingEvent, server: ServerName) -> bool:
    """Whether it is about the membership of a user of this server."""
    return event.target is not None and server_name_of(event.target) == server


def takes_away(event: OutgoingEvent) -> bool:
    """Whether it ends a membership: an invite that is taken back concerns a server that is not in the room."""
    return _membership(event) in ("leave", "ban")


def _membership(event: OutgoingEvent) -> object:
    try:
        return orjson.loads(event.canonical)["content"]["membership"]
    except (ValueError, LookupError, TypeError):
        return None
