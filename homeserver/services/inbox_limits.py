"""What devices that do not ask keep of other servers' to-device messages: so much, and for so long, then no more.

A transaction's answer cannot refuse one EDU, and a server whose transaction is refused would keep back all else that it
has for us. So what is beyond the bounds is dropped, oldest first: a flood costs the server that sends it its own
messages alone. Those of our own users are theirs until their device has them.
"""

import logging
import random
import time
from collections.abc import Sequence

from federation.protocol.types import ServerName
from storage import send_to_device
from storage.database import Database
from storage.send_to_device import ToDeviceMessage

logger = logging.getLogger(__name__)

MAX_MESSAGES = 50_000
"""Of one server for one device. A room key is one: who was away for three months, in hundreds of rooms that are busy on
one large server, has half as many."""
MAX_BYTES = 64 * 1024 * 1024
"""The same; without what the database needs for each."""
LOOK_BYTES = 1024 * 1024
"""After about so many bytes into an inbox it is looked at; by chance, so nothing is counted and shared by processes."""
LEAST_BYTES = 1024
"""What a message counts as at least, there."""
ROWS_AT_ONCE = 2_000


class InboxLimits:
    """Holds inboxes to their bounds."""

    def __init__(self, database: Database, *, message_lifetime_ms: int) -> None:
        self._database = database
        self._message_lifetime_ms = message_lifetime_ms
        self._dropped = 0

    def figures(self) -> dict[str, float]:
        """For `homeserver.metrics`."""
        return {"to_device_dropped_total": self._dropped}

    async def check(self, origin: ServerName, messages: Sequence[ToDeviceMessage]) -> None:
        """Once these are stored: look whether their inboxes hold too much of this server, now and then."""
        chosen = {message.device for message in messages if _is_chosen(len(message.json or b""))}
        if not chosen:
            return
        async with self._database.transaction() as tx:
            dropped = await send_to_device.drop_excess(
                tx, chosen, origin, max_messages=MAX_MESSAGES, max_bytes=MAX_BYTES
            )
        if dropped:
            number = sum(dropped.values())
            self._dropped += number
            logger.warning(
                "the %d oldest to-device messages of %s are dropped: %d devices have too many and do not ask",
                number,
                origin,
                len(dropped),
            )

    async def give_up(self) -> None:
        """Keep no other server's message for longer than the settings say; several processes may do it at once."""
        before_ts, count = time.time_ns() // 1_000_000 - self._message_lifetime_ms, ROWS_AT_ONCE
        while count == ROWS_AT_ONCE:
            async with self._database.transaction() as tx:
                given_up = await send_to_device.give_up(tx, before_ts, ROWS_AT_ONCE)
            for origin, number in given_up.items():
                logger.warning("%d to-device messages of %s are given up: nobody asked for them", number, origin)
            count = sum(given_up.values())
            self._dropped += count


def _is_chosen(size: int) -> bool:
    return random.random() * LOOK_BYTES < max(size, LEAST_BYTES)  # noqa: S311  # no secret
