"""Events that are sent later unless their client says otherwise in time (MSC4140; Element Call leaves calls so).

An event is sent and taken from the waiting list in one entry of the log: each once, by whichever process is first,
and none is lost with a process. State that waits is given up when somebody else sets the same.
"""

import asyncio
import logging
import secrets
from collections.abc import Sequence

import orjson

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound, Unavailable
from federation.protocol.pdu import Draft
from federation.protocol.types import EventID, JsonObject, RoomID, UserID
from federation.rooms.append import RoomWriter
from homeserver.services.messages import Message, redaction_of
from homeserver.services.requester import Requester
from storage import accounts, delayed_events
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.delayed_events import DelayedEvent
from storage.log_entries import Change

logger = logging.getLogger(__name__)

MAX_DELAY_MS = 24 * 60 * 60 * 1000
MAX_PER_USER = 100
AT_ONCE = 50
POLL_SECONDS = 5.0
"""How soon a process sees what others have taken in."""
LEFT_ALONE_SECONDS = 30.0
"""A user's events in a room of which one could not be sent now, as where its policy server gives no answer."""
_UNDELAYED = frozenset(("m.room.member", "m.room.canonical_alias"))
"""What is checked in more than the authorisation rules when it is sent."""


class _Gone(NotFound):
    """It was sent or given up, or its delay has begun again."""

    def __init__(self) -> None:
        super().__init__("There is no such delayed event, or not any longer")


class DelayedEventService:
    """Takes events in, and sends them when they are due; a view of the tail."""

    def __init__(self, database: Database, writer: RoomWriter) -> None:
        self._database = database
        self._writer = writer
        self._wake = asyncio.Event()
        self._rooms: set[str] = set()
        self._busy: set[tuple[UserID, RoomID]] = set()
        """Whose events are being sent where, one after the other, or left alone for a while."""
        self._set: list[tuple[str, str, str, UserID]] = []

    # --- what clients ask for

    async def delay(self, who: Requester, message: Message, state_key: str | None, delay_ms: int) -> str:
        """Have an event sent when the delay is over: the ID by which it is restarted, cancelled or sent."""
        who.check_not_suspended()
        if delay_ms > MAX_DELAY_MS:
            raise MatrixError(
                "M_INVALID_PARAM",
                f"The delay may be {MAX_DELAY_MS} ms long",
                400,
                {
                    "org.matrix.msc4140.errcode": "M_MAX_DELAY_EXCEEDED",
                    "org.matrix.msc4140.max_delay": MAX_DELAY_MS,
                },
            )
        if message.type in _UNDELAYED:
            raise InvalidInput(f"{message.type} cannot be delayed")
        room = await self._writer.get_room(message.room_id)
        event = DelayedEvent(
            delay_id=secrets.token_urlsafe(18),
            user_id=who.user_id,
            room_id=room.room_id,
            type=message.type,
            state_key=state_key,
            content=orjson.dumps(message.content),
            delay_ms=delay_ms,
            running_since_ts=self._database.now_ms(),
        )
        async with self._database.transaction() as tx:
            if not await delayed_events.insert(tx, event, at_most=MAX_PER_USER):
                raise MatrixError(
                    "M_UNKNOWN",
                    f"At most {MAX_PER_USER} events can wait",
                    400,
                    {"org.matrix.msc4140.errcode": "M_MAX_DELAYED_EVENTS_EXCEEDED"},
                )
        if state_key is not None:
            self._rooms.add(room.room_id)
        self._wake.set()
        return event.delay_id

    async def list_waiting(self, user_id: UserID) -> list[JsonObject]:
        """What the user has waiting, as the API tells it."""
        async with self._database.read() as tx:
            found = await delayed_events.list_of_user(tx, user_id)
        return [
            {
                "delay_id": event.delay_id,
                "room_id": event.room_id,
                "type": event.type,
                **({} if event.state_key is None else {"state_key": event.state_key}),
                "delay": event.delay_ms,
                "running_since": event.running_since_ts,
                "content": orjson.loads(event.content),
            }
            for event in found
        ]

    async def restart(self, delay_id: str) -> None:
        """Let the delay begin again; raises NotFound once the event was sent or given up."""
        async with self._database.transaction() as tx:
            if not await delayed_events.restart(tx, delay_id, self._database.now_ms()):
                raise _Gone
        self._wake.set()

    async def cancel(self, delay_id: str) -> None:
        """Give the event up."""
        async with self._database.transaction() as tx:
            if not await delayed_events.delete(tx, delay_id):
                raise _Gone

    async def send(self, delay_id: str) -> None:
        """Send the event now; raises what keeps it from being sent."""
        async with self._database.read() as tx:
            event = await delayed_events.find(tx, delay_id)
        if event is None:
            raise _Gone
        await self._send(event, None)

    # --- in the background

    def on_change(self, _position: int, change: Change) -> None:
        """A view of the tail: note who sets what state in rooms for which state waits."""
        if not isinstance(change, RoomEvents) or change.room.room_id not in self._rooms:
            return
        for event in change.stored:
            if event.state_key is not None:
                self._set.append((change.room.room_id, event.type, event.state_key, event.sender))
                self._wake.set()

    async def run(self) -> None:
        """Send what is due until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            await self._run(tasks)

    async def _run(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            try:
                pause = await self._look(tasks)
            except Unavailable:  # logged where it arose
                pause = POLL_SECONDS
            except Exception:
                logger.exception("looking for delayed events failed; the next turn tries again")
                pause = POLL_SECONDS
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _look(self, tasks: asyncio.TaskGroup) -> float:
        """Have what is due sent; the seconds until there may be more."""
        set_by_others, self._set = self._set, []
        if set_by_others:
            try:
                async with self._database.transaction() as tx:
                    await delayed_events.delete_overtaken(tx, set_by_others)
            except Unavailable:
                self._set = [*set_by_others, *self._set]
                raise
        async with self._database.read() as tx:
            due = await delayed_events.list_due(tx, self._database.now_ms(), self._busy, limit=AT_ONCE)
            next_ts = await delayed_events.find_next_ts(tx, self._busy)
            self._rooms |= await delayed_events.rooms_with_state(tx)
        of_places: dict[tuple[UserID, RoomID], list[DelayedEvent]] = {}
        for event in due:
            of_places.setdefault((event.user_id, event.room_id), []).append(event)
        for place, events in of_places.items():
            self._busy.add(place)
            tasks.create_task(self._send_all(place, events))
        if due:
            return 0.0
        return POLL_SECONDS if next_ts is None else min(max(next_ts - self._database.now_ms(), 0) / 1000, POLL_SECONDS)

    async def _send_all(self, place: tuple[UserID, RoomID], events: Sequence[DelayedEvent]) -> None:
        """Send a user's events in a room; whoever has a room where that takes long holds up nobody else."""
        is_done = False
        try:
            for event in events:
                is_done = await self._send_due(event)
                if not is_done:
                    break
        except Unavailable:  # logged where it arose
            pass
        except Exception:
            logger.exception("delayed events of %s in %s could not be sent; they are tried again", *place)
        asyncio.get_running_loop().call_later(0.0 if is_done else LEFT_ALONE_SECONDS, self._release, place)

    def _release(self, place: tuple[UserID, RoomID]) -> None:
        self._busy.discard(place)
        self._wake.set()

    async def _send_due(self, event: DelayedEvent) -> bool:
        """Send an event or give it up; False when it has to wait on."""
        try:
            await self._send(event, event.running_since_ts)
        except _Gone:  # another process was first, or its client
            pass
        except MatrixError as error:
            if error.http_status >= 500:
                logger.warning("a delayed event in %s waits on: %s", event.room_id, error.message)
                return False
            logger.info("a delayed event in %s is given up: %s", event.room_id, error.message)
            async with self._database.transaction() as tx:
                await delayed_events.delete(tx, event.delay_id, running_since_ts=event.running_since_ts)
        return True

    async def _check_may_send(self, user_id: UserID) -> None:
        """Raise where the account may no longer send: it was asked when the event was taken in, long ago."""
        async with self._database.read() as tx:
            account = await accounts.find(tx, user_id)
        if account is None or account.is_deactivated or account.is_locked or account.is_suspended:
            raise Forbidden("The account may not send events")

    async def _send(self, event: DelayedEvent, running_since_ts: int | None) -> None:
        """Send an event; raises NotFound where it is no longer there, or its delay has begun again since."""
        await self._check_may_send(event.user_id)
        content: JsonObject = orjson.loads(event.content)
        redacts: str | None = None
        if event.type == "m.room.redaction" and event.state_key is None:
            content, redacts = redaction_of(Message(room_id=event.room_id, type=event.type, content=content))
        draft = Draft(
            room_id=event.room_id,
            type=event.type,
            sender=event.user_id,
            content=content,
            state_key=event.state_key,
            redacts=None if redacts is None else EventID(redacts),
        )

        async def take(tx: Tx) -> None:
            if not await delayed_events.delete(tx, event.delay_id, running_since_ts=running_since_ts):
                raise _Gone

        await self._writer.append([draft], work=take)
