"""Which policy server a room uses, and asking it (Server-Server API v1.18, "Policy Servers").

A room uses the server that its current `m.room.policy` names as long as one of that server's users is joined. Who
appends events has the state event at hand (`heads.py`), so a room without one costs nothing. Whether a user is joined
is remembered; as a view of the log it is forgotten with what changes it.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from federation.protocol import policy_server
from federation.protocol.errors import MatrixError
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.policy_server import PolicyServer, is_endorsed
from federation.protocol.types import EventID, JsonObject, ServerName
from storage import events, memberships, remote_joins
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.log_entries import Change
from storage.memberships import Membership
from storage.room_completeness import RoomCompleteness
from storage.rooms import Room

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 10_000


class Sign(Protocol):
    """`PolicyRequests.sign`."""

    async def __call__(self, destination: ServerName, event: JsonObject, *, patient: bool) -> JsonObject:
        """The policy server's answer."""


class Unendorsed(Exception):
    """The event lacks the signature of the policy server that its room uses: it is to be asked for."""

    def __init__(self, policy: PolicyServer) -> None:
        super().__init__(policy.server_name)
        self.policy = policy


class _Remembered(Struct, frozen=True):
    event_id: EventID
    """The `m.room.policy`."""
    server_name: ServerName
    is_used: bool


class PolicyServers:
    """Finds and asks them."""

    def __init__(self, database: Database, sign: Sign) -> None:
        self._database = database
        self._sign = sign
        self._remembered: OrderedDict[int, _Remembered] = OrderedDict()
        self._changes = 0

    def apply(self, _position: int, change: Change) -> None:
        """A view of the log."""
        if isinstance(change, RoomCompleteness):
            self._changes += 1
            self._remembered.pop(change.room, None)
        if not isinstance(change, RoomEvents) or not (change.trunk or change.redacted):
            return
        self._changes += 1
        known = self._remembered.get(change.room.number)
        if known is None:
            return
        if known.event_id in change.redacted or any(
            each.type == "m.room.member"
            and is_user_id(each.state_key)
            and server_name_of(each.state_key) == known.server_name
            and not (known.is_used and each.membership is Membership.JOIN)
            for each in change.trunk
        ):
            del self._remembered[change.room.number]

    # --- which

    async def find(self, room: Room, event: PDU | None) -> PolicyServer | None:
        """The policy server that the room uses; `event` is its current `m.room.policy`. Without a query, mostly."""
        policy = None if event is None else policy_server.read(event.content)
        if event is None or policy is None:
            return None
        known = self._known(room, event)
        if known is None:
            async with self._database.read() as tx:
                known = await self._load(tx, room, event, policy)
        return policy if known else None

    async def find_in(self, tx: Tx, room: Room, event: PDU | None) -> PolicyServer | None:
        """As `find`, for who has a transaction at hand."""
        policy = None if event is None else policy_server.read(event.content)
        if event is None or policy is None:
            return None
        known = self._known(room, event)
        if known is None:
            known = await self._load(tx, room, event, policy)
        return policy if known else None

    def _known(self, room: Room, event: PDU) -> bool | None:
        known = self._remembered.get(room.number)
        if known is None or known.event_id != event.event_id:
            return None
        self._remembered.move_to_end(room.number)
        return known.is_used

    async def _load(self, tx: Tx, room: Room, event: PDU, policy: PolicyServer) -> bool:
        changes = self._changes
        stored = (await events.by_id(tx, [event.event_id])).get(event.event_id)
        members: Sequence[object] = await memberships.local_members(tx, room.number, policy.server_name, limit=1)
        if not members:  # where they are still to come, their server was named
            members = (await remote_joins.servers_named(tx, [room.number])).get(room.number, ())
            members = [name for name in members if name == policy.server_name]
        is_redacted = stored is not None and stored.redacted_by is not None
        is_used = bool(members) and not is_redacted
        if changes == self._changes and stored is not None:  # else what was read may be older than what was forgotten
            self._remembered[room.number] = _Remembered(event.event_id, policy.server_name, is_used)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return is_used

    # --- asking

    async def endorse(self, policy: PolicyServer, pdu: VerifiedPDU, *, patient: bool = False) -> VerifiedPDU:
        """The event with the policy server's signature. Raises what it refused with, PeerFailed where it gave no
        answer, Forbidden where what it answered is no signature that holds."""
        if is_endorsed(pdu, policy):
            return pdu
        try:
            answer = await self._sign(policy.server_name, pdu.json, patient=patient)
            return policy_server.endorsed(pdu, policy, answer)
        except MatrixError as error:
            logger.info(
                "%s of %s is not recommended by %s: %s", pdu.event_id, pdu.room_id, policy.server_name, error.message
            )
            raise

    async def endorse_all(self, room: Room, event: PDU | None, pdus: Sequence[VerifiedPDU]) -> list[VerifiedPDU]:
        """Events of our users with the signature of the policy server that the room uses, if it uses one.

        Raises as `endorse`. Asks even a server that did not answer lately, since a client waits.
        """
        policy = await self.find(room, event)
        return list(pdus) if policy is None else [await self.endorse(policy, pdu, patient=True) for pdu in pdus]
