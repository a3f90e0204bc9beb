"""Events of other servers that could not be processed: set aside, and tried again (`storage/dead_letters.py`)."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from federation.protocol import event_format
from federation.protocol.errors import MatrixError, Unavailable
from federation.protocol.pdu import PDU
from federation.protocol.types import EventID, ServerName
from federation.rooms.incomplete_rooms import BeingJoined
from federation.rooms.receive import Receiver, is_passing
from storage import dead_letters, received_transactions, send_to_device
from storage.database import Database
from storage.dead_letters import DeadLetter
from storage.figures import Figures
from storage.rooms import Room

logger = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
LONG_LOOK_SECONDS = 60.0
"""For those who help: others call them."""
SWEEP_SECONDS = 3600.0
ATTEMPT_SECONDS = 180.0
WORKERS = 4
AT_ONCE = 50
SLOW_SECONDS = 5.0
RESTS = 20
"""A server whose letters took longer than that to try has the others wait so many times as long: else a few that make
us wait would have all who try letters do nothing else.
"""
SWEPT_AT_ONCE = 10_000
SOON_MS = 5_000
"""What only lacked the time is tried again after that."""


class DeadLetters:
    """The list, and who works on it."""

    def __init__(self, database: Database, receiver: Receiver) -> None:
        self._database = database
        self._receiver = receiver
        self._is_due = asyncio.Event()
        self._kept = self._settled = 0

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"dead_letters_kept_total": self._kept, "dead_letters_settled_total": self._settled}

    def look(self) -> None:
        """Some are due at once."""
        self._is_due.set()

    async def keep(
        self,
        origin: ServerName,
        room: Room,
        pdus: Sequence[PDU],
        results: Mapping[EventID, MatrixError | None],
    ) -> None:
        """Set aside those of these events that failed for a reason that may pass, or were not reached in time."""
        failed: list[DeadLetter] = []
        late: list[DeadLetter] = []
        for pdu in pdus:
            if pdu.event_id not in results:
                late.append(_letter(origin, room, pdu, "There was no time for it yet"))
                continue
            error = results[pdu.event_id]
            if isinstance(error, BeingJoined):  # the join may be over by now
                late.append(_letter(origin, room, pdu, error.message))
            elif error is not None and is_passing(error):
                failed.append(_letter(origin, room, pdu, error.message))
        if failed or late:
            self._kept += len(failed) + len(late)
            now_ts = self._database.now_ms()
            async with self._database.transaction() as tx:
                if failed:
                    await dead_letters.keep(tx, failed, now_ts)
                if late:
                    await dead_letters.keep(tx, late, now_ts, SOON_MS)
            logger.warning(
                "%d events of %s from %s could not be processed and are kept",
                len(failed) + len(late),
                room.room_id,
                origin,
            )

    async def run(self) -> None:
        """Try what is due, and forget what is old, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._work(LOOK_SECONDS, sweeps=True))
            for _ in range(WORKERS - 1):
                group.create_task(self._work(LONG_LOOK_SECONDS, sweeps=False))

    async def _work(self, look_seconds: float, *, sweeps: bool) -> None:
        swept_at = 0.0
        while True:
            self._is_due.clear()
            try:
                while await self.retry_due():
                    self._is_due.set()  # there may be more than one can do
                if sweeps and time.monotonic() - swept_at > SWEEP_SECONDS:
                    swept_at = time.monotonic()
                    await self.sweep()
            except Unavailable:
                pass  # logged where it arose
            except Exception:
                logger.exception("dead letters could not be tried; the next turn tries again")
            with suppress(TimeoutError):
                async with asyncio.timeout(look_seconds):
                    await self._is_due.wait()

    async def retry_due(self) -> bool:
        """Try the letters of one room whose time has come; False when there are none."""
        async with self._database.transaction() as tx:
            letters = await dead_letters.take_due(tx, self._database.now_ms(), AT_ONCE, int(ATTEMPT_SECONDS * 2000))
        by_origin: dict[ServerName, list[DeadLetter]] = {}
        for letter in letters:
            by_origin.setdefault(letter.origin, []).append(letter)
        for origin, of_origin in by_origin.items():
            await self._retry(origin, of_origin)
        return bool(letters)

    async def _retry(self, origin: ServerName, letters: Sequence[DeadLetter]) -> None:
        results: dict[EventID, MatrixError | None] = {}
        began = time.monotonic()
        try:
            room = await self._receiver.get_expected_room(letters[0].room_id)
            pdus = [event_format.parse(letter.json, room.rules) for letter in letters]
            self._receiver.forget_hopeless(room)
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await self._receiver.receive_room(origin, room, pdus, results)
        except TimeoutError:
            pass
        except Unavailable:
            raise
        except MatrixError as error:
            results = {letter.event_id: error for letter in letters}
        late = MatrixError("M_UNKNOWN", "There was no time for it yet", 503)
        errors = {letter.event_id: results.get(letter.event_id, late) for letter in letters}
        arrived: list[EventID] = []
        refused: list[DeadLetter] = []
        again: list[tuple[DeadLetter, str]] = []
        for letter in letters:
            failure = errors[letter.event_id]
            if failure is None:
                arrived.append(letter.event_id)
            elif is_passing(failure):
                again.append((letter, failure.message))
            else:
                refused.append(letter)
        async with self._database.transaction() as tx:
            await dead_letters.note_failures(tx, again, self._database.now_ms())
            await dead_letters.delete(tx, arrived)
            await dead_letters.delete_refused(tx, refused)
            if (seconds := time.monotonic() - began) > SLOW_SECONDS:
                await dead_letters.rest(tx, origin, self._database.now_ms() + int(seconds * RESTS * 1000))
        self._settled += len(letters) - len(again)
        logger.info(
            "dead letters of %s: %d arrived, %d were dropped, %d remain",
            room_of(letters),
            len(arrived),
            len(refused),
            len(again),
        )

    async def sweep(self) -> None:
        """Forget old letters, answered transactions and received to-device messages."""
        now_ts = self._database.now_ms()
        async with self._database.write() as tx:
            while await dead_letters.delete_old(tx, now_ts - dead_letters.KEPT_MS, SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
                pass
            before = now_ts - received_transactions.KEPT_MS
            while await received_transactions.delete_old(tx, before, SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
                pass
            before = now_ts - send_to_device.KEPT_RECEIVED_MS
            while await send_to_device.delete_old_received(tx, before, SWEPT_AT_ONCE) == SWEPT_AT_ONCE:
                pass


def room_of(letters: Sequence[DeadLetter]) -> str:
    """The room that all of them are of."""
    return letters[0].room_id


def _letter(origin: ServerName, room: Room, pdu: PDU, reason: str) -> DeadLetter:
    return DeadLetter(origin=origin, room_id=room.room_id, event_id=pdu.event_id, json=pdu.json, reason=reason)
