"""Sending events: transaction IDs, relations, state that is so already (Client-Server API v1.19, "Sending events").

The hot path: a message into a room whose head is in memory costs no query before its entry in the log.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.errors import InvalidInput, MatrixError
from federation.protocol.identifiers import fits, is_event_id, is_room_alias
from federation.protocol.pdu import Draft, VerifiedPDU
from federation.protocol.relations import ANNOTATION, THREAD, related_event
from federation.protocol.types import EventID, JsonObject, RoomAlias, RoomID, StateKey
from federation.rooms.append import RoomWriter, content_of
from federation.rooms.contention import Contention
from federation.rooms.sent import AT_ONCE, BEGINNING, Annotation, SentEvents
from homeserver.services.requester import Requester
from storage.log_entries import AlreadyWritten, Conflict
from storage.rooms import Room

REMEMBERED_TRANSACTIONS = 20_000
REMEMBERED_ROOTS = 5_000
MAX_NEW_ALIASES = 100
MAX_RELATED_REDACTIONS = 1_000
"""By one request."""
ANY_RELATION = "*"
ALIASES_AT_ONCE = 10
"""That are looked up, some of them by asking other servers."""

ResolveAlias = Callable[[RoomAlias], Awaitable[RoomID | None]]
"""The room that an alias of any server stands for; None where it stands for none."""

_Transaction = tuple[int, str, str, str, str]
"""Device, room, event type, what is redacted, transaction ID."""


class Message(Struct, frozen=True, kw_only=True):
    """An event that a client wants to send."""

    room_id: str
    type: str
    content: JsonObject
    txn_id: str | None = None
    redacts: str | None = None
    origin_server_ts: int | None = None


class MessageService:
    """Sends what clients ask for."""

    def __init__(self, writer: RoomWriter, sent: SentEvents, resolve_alias: ResolveAlias) -> None:
        self._writer = writer
        self._sent = sent
        self._resolve_alias = resolve_alias
        self._transactions: OrderedDict[_Transaction, asyncio.Future[EventID]] = OrderedDict()
        self._roots: OrderedDict[tuple[int, EventID], None] = OrderedDict()
        self._annotating: set[tuple[int, Annotation]] = set()

    async def send(self, who: Requester, message: Message) -> EventID:
        """Send an event that is not state; a repeated transaction ID gets the first one's answer.

        Requests with the same ID that are under way together share one event, and one failure.
        """
        if message.txn_id is not None and (not fits(message.txn_id) or "\0" in message.txn_id):
            raise InvalidInput("A transaction ID has at most 255 bytes")
        device = who.device
        if device is None:
            device = await self._sent.scope_without_device(who.user_id)
        if device is None or message.txn_id is None:
            return await self._send(who, message)
        who = replace(who, device=device) if who.device is None else who
        key = (device, message.room_id, message.type, message.redacts or "", message.txn_id)
        first = self._transactions.get(key)
        if first is not None:
            return await asyncio.shield(first)
        future: asyncio.Future[EventID] = asyncio.get_running_loop().create_future()
        self._transactions[key] = future
        try:
            event_id = await self._send(who, message)
        except BaseException as error:
            del self._transactions[key]
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # nobody else may wait: it is seen
            raise
        future.set_result(event_id)
        if len(self._transactions) > REMEMBERED_TRANSACTIONS:
            self._forget_transactions()
        return event_id

    def _forget_transactions(self) -> None:
        """Drop the oldest that are answered; the database knows them."""
        while len(self._transactions) > REMEMBERED_TRANSACTIONS:
            key, future = self._transactions.popitem(last=False)
            if not future.done():
                self._transactions[key] = future
                return

    async def _send(self, who: Requester, message: Message) -> EventID:
        room = await self._writer.get_room(message.room_id)
        contention = Contention()
        while True:
            try:
                return await self._send_new(who, room, message)
            except MatrixError as error:
                if who.device is None or message.txn_id is None:
                    raise
                earlier = await self._sent.find_transaction(room, who.device, message.txn_id, message.type)
                if earlier is not None:
                    await self._writer.catch_up()  # and whoever asks next is to find it
                    return earlier
                if not isinstance(error, AlreadyWritten):
                    raise
                await contention.give_way(error)  # the same text in the same millisecond by another process

    async def _send_new(self, who: Requester, room: Room, message: Message) -> EventID:
        content, redacts = message.content, message.redacts
        if message.type == "m.room.redaction":
            content, redacts = redaction_of(message)
        if who.is_suspended and (redacts is None or not await self._sent.is_by(room, redacts, who.user_id)):
            who.check_not_suspended()
        draft = Draft(
            room_id=room.room_id,
            type=message.type,
            sender=who.user_id,
            content=content,
            redacts=None if redacts is None else EventID(redacts),
            origin_server_ts=message.origin_server_ts,
        )
        if "m.relates_to" not in content:
            return await self._append(who, draft, message.txn_id)
        return await self._send_related(who, room, draft, message.txn_id)

    async def _append(self, who: Requester, draft: Draft, txn_id: str | None) -> EventID:
        sent = await self._writer.append([draft], device=who.device, txn_id=None if who.device is None else txn_id)
        return sent.events[0].event_id

    async def _send_related(self, who: Requester, room: Room, draft: Draft, txn_id: str | None) -> EventID:
        """Refuse threads within threads, and what somebody has annotated already with the same."""
        relation = related_event(draft.content)
        if relation is not None and relation.type == THREAD:
            await self._check_root(room, relation.parent)
        if relation is None or relation.type != ANNOTATION:
            return await self._append(who, draft, txn_id)
        annotation = Annotation(draft.sender, draft.type, relation.parent, relation.key)
        pending = (room.number, annotation)
        if pending in self._annotating:
            raise _duplicate()
        self._annotating.add(pending)
        try:
            if await self._sent.has_annotated(room, annotation):
                raise _duplicate()
            return await self._append(who, draft, txn_id)
        finally:
            self._annotating.discard(pending)

    async def _check_root(self, room: Room, event_id: EventID) -> None:
        key = (room.number, event_id)
        if key in self._roots:
            self._roots.move_to_end(key)
            return
        if await self._sent.is_child(room, event_id):
            raise InvalidInput("A thread cannot start at an event that relates to another", "M_UNKNOWN")
        self._roots[key] = None
        if len(self._roots) > REMEMBERED_ROOTS:
            self._roots.popitem(last=False)

    async def redact_related(
        self, who: Requester, room_id: str, event_id: str, rel_types: Collection[str], reason: JsonObject
    ) -> None:
        """Redact what relates to an event in these ways, as far as the user may (MSC3912): at most so much of it.

        What is redacted relates to nothing any more, so a repeat goes on where this ended.
        """
        content = {name: value for name, value in reason.items() if name != "redacts"}
        room = await self._writer.get_room(room_id)
        levels = await self._writer.power_levels(room)
        sender = who.user_id if who.is_suspended or levels.of_user(who.user_id) < levels.redact else None
        types = None if ANY_RELATION in rel_types else rel_types
        last = BEGINNING
        for _ in range(MAX_RELATED_REDACTIONS // AT_ONCE):
            found = await self._sent.redactable(room, EventID(event_id), types, sender=sender, after=last)
            if not found:
                return
            last = found[-1][1]
            drafts = [
                Draft(
                    room_id=room.room_id, type="m.room.redaction", sender=who.user_id, content=content, redacts=target
                )
                for target, _ in found
            ]
            await self._writer.append(drafts, device=who.device)

    # --- state

    async def send_state(self, who: Requester, message: Message, state_key: str) -> EventID:
        """Set one entry of a room's state. Memberships go through `MembershipService`.

        The entry that the same user has set to the same content before is the answer as it is.
        """
        who.check_not_suspended()
        room = await self._writer.get_room(message.room_id)
        key: StateKey = (message.type, state_key)
        contention = Contention()
        while True:
            current = (await self._writer.state_for(room, [key])).get(key)
            if await self._is_so(who, room, message, current) and await self._writer.catch_up():
                current = (await self._writer.state_for(room, [key])).get(key)
            if current is not None and await self._is_so(who, room, message, current):
                return current.event_id
            try:
                return await self._set_state(who, room, message, key, current)
            except Conflict as error:  # maybe by this very request, which was answered by nobody and came again
                await contention.give_way(error)

    async def _set_state(
        self, who: Requester, room: Room, message: Message, key: StateKey, current: VerifiedPDU | None
    ) -> EventID:
        """Set an entry of the state whose event is this one now; raises Conflict where it is another by then."""
        if key == ("m.room.canonical_alias", ""):
            await self._check_aliases(room, content_of(current), message.content)
        draft = Draft(
            room_id=room.room_id,
            type=message.type,
            sender=who.user_id,
            content=message.content,
            state_key=key[1],
            origin_server_ts=message.origin_server_ts,
        )
        return (await self._writer.append([draft], decided_by={key: current})).events[0].event_id

    async def _is_so(self, who: Requester, room: Room, message: Message, current: VerifiedPDU | None) -> bool:
        """Whether this state event is what the user, who is in the room, set to this content."""
        if current is None or current.sender != who.user_id or current.content != message.content:
            return False
        own: StateKey = ("m.room.member", who.user_id)
        member = (await self._writer.state_for(room, [own])).get(own)
        return content_of(member).get("membership") == "join" and not await self._sent.is_redacted(
            room, current.event_id
        )

    async def _check_aliases(self, room: Room, old: JsonObject, new: JsonObject) -> None:
        """Aliases that come new into `m.room.canonical_alias` must be aliases, of this room."""
        added = sorted(_aliases_of(new) - _aliases_of(old))
        if len(added) > MAX_NEW_ALIASES:
            raise InvalidInput(f"At most {MAX_NEW_ALIASES} aliases can be added at once")
        aliases = [alias for alias in added if is_room_alias(alias)]
        for alias in added:
            if not is_room_alias(alias):
                raise InvalidInput(f"{alias!r} is no room alias")
        at_once = asyncio.Semaphore(ALIASES_AT_ONCE)

        async def resolve(alias: RoomAlias) -> RoomID | None:
            async with at_once:
                return await self._resolve_alias(alias)

        found = await asyncio.gather(*map(resolve, aliases))
        for alias, room_id in zip(aliases, found, strict=True):
            if room_id != room.room_id:
                raise InvalidInput(f"{alias} does not stand for this room", "M_BAD_ALIAS")


def _duplicate() -> InvalidInput:
    return InvalidInput("You have annotated the event with this already", "M_DUPLICATE_ANNOTATION")


def _aliases_of(content: JsonObject) -> set[str]:
    """The aliases of an `m.room.canonical_alias`; raises M_BAD_JSON where they are none that could be."""
    alias, others = content.get("alias"), content.get("alt_aliases")
    found = [*(others if isinstance(others, list) else []), *([alias] if alias else [])]
    if not all(isinstance(each, str) for each in found) or not isinstance(others, list | None):
        raise InvalidInput("alias must be a string and alt_aliases an array of strings", "M_BAD_JSON")
    return set(found)


def redaction_of(message: Message) -> tuple[JsonObject, str]:
    """The content without `redacts`, and what is redacted: by the endpoint's path, or by the content."""
    content = {name: value for name, value in message.content.items() if name != "redacts"}
    redacts = message.redacts if message.redacts is not None else message.content.get("redacts")
    if redacts is None:
        raise InvalidInput("A redaction names in redacts what it redacts", "M_BAD_JSON")
    if not is_event_id(redacts):
        raise InvalidInput("redacts is no event ID", "M_BAD_JSON")
    return content, redacts
