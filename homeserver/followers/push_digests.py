"""Telling users by mail of what they have not read for a while (pushers of kind `email`).

What waits is in the table `pushes`, as for gateways. A mail is written into the database in the transaction that
deletes it there, so that it is sent exactly once, whatever dies. Mails become rarer while nobody reads.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from urllib.parse import urlencode

from msgspec import Struct

from federation.protocol.errors import Unavailable
from federation.rooms import notices
from federation.rooms.notices import Notice
from homeserver.services import push_mail
from homeserver.services.email_addresses import canonical_email
from homeserver.services.mail import Mailer
from storage import pushers, pushes, read_marks
from storage.database import Database, Tx
from storage.pushers import DueDigest
from storage.pushes import SHARDS, Push

logger = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
DELAY_MS = 600_000
"""For so long a message may wait to be read before a mail tells of it."""
FIRST_PAUSE_MS = 3_600_000
LONGEST_PAUSE_MS = 12 * 3_600_000
"""Less than what waits is kept for."""
AT_ONCE = 20
READ_AT_ONCE = 500


class DigestSettings(Struct, frozen=True, kw_only=True):
    """What mails say of the server."""

    server_name: str
    base_url: str


class PushDigests:
    """Sends them, of the shards that this process sees to."""

    def __init__(
        self, database: Database, mailer: Mailer, settings: DigestSettings, *, sees_to: Callable[[int], bool]
    ) -> None:
        self._database = database
        self._mailer = mailer
        self._settings = settings
        self._sees_to = sees_to

    async def run(self) -> None:
        """Send what is due until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                while await self._send_due() == AT_ONCE:
                    pass
            except Unavailable:  # logged where it arose
                continue
            except Exception:
                logger.exception("mail of unread messages could not be written; the next turn tries again")

    async def _send_due(self) -> int:
        """Write some mails; how many were due."""
        shards = [shard for shard in range(SHARDS) if self._sees_to(shard)]
        if not shards:
            return 0
        now_ts = self._database.now_ms()
        async with self._database.transaction() as tx:
            due = await pushers.due_digests(tx, shards, now_ts=now_ts, delay_ms=DELAY_MS, limit=AT_ONCE)
            for each in due:
                await self._write(tx, each, now_ts)
        if due:
            self._mailer.wake()
        return len(due)

    async def _write(self, tx: Tx, due: DueDigest, now_ts: int) -> None:
        waiting = await pushes.of_pusher(tx, pushes.shard_of(due.user_id), due.pusher, limit=READ_AT_ONCE)
        unread = await self._unread(tx, due, waiting)
        told = await _notices(tx, unread[-push_mail.MAX_LINES :])
        if told:
            query = urlencode({"token": due.token})
            mail = push_mail.digest(
                canonical_email(due.address),
                told,
                len(unread),
                server=self._settings.server_name,
                unsubscribe=f"{self._settings.base_url}{push_mail.UNSUBSCRIBE_PATH}?{query}",
            )
            await self._mailer.put(tx, mail)
            pause_ms = max(due.pause_ms, FIRST_PAUSE_MS)
            # Who has read something since the last mail is told as soon again as at first.
            following_ms = FIRST_PAUSE_MS if len(unread) < len(waiting) else min(2 * pause_ms, LONGEST_PAUSE_MS)
            await pushers.note_mailed(tx, due.pusher, after_ts=now_ts + pause_ms, pause_ms=following_ms)
        await pushes.delete(tx, [push.key for push in waiting])

    async def _unread(self, tx: Tx, due: DueDigest, waiting: Sequence[Push]) -> list[Push]:
        marks = await read_marks.of_users_in(tx, [due.user_id], {push.room for push in waiting})
        return [
            push
            for push in waiting
            if not read_marks.is_read(marks, due.user_id, push.room, push.thread, push.position)
        ]


async def _notices(tx: Tx, told: Sequence[Push]) -> list[Notice]:
    of_rooms = await notices.notices_of(tx, [(push.room, push.position) for push in told if push.room])
    outside = await notices.notices_from_outside(tx, [push.position for push in told if not push.room])
    found = [of_rooms.get((push.room, push.position)) or outside.get(push.position) for push in told]
    return [notice for notice in found if notice is not None]
