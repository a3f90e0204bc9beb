"""What was there before a follower was, worked off in small parts beside everything else."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from federation.protocol.errors import Unavailable

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""How often a process looks whether there is something."""
PAUSE = 1.0
"""As long as a part took, times this, it rests."""


async def work_off(part: Callable[[], Awaitable[bool]]) -> None:
    """Do one part after the other for as long as `part` says that there was one, and look again later, until cancelled.

    What fails is logged and tried again.
    """
    while True:
        began, was_any = time.monotonic(), False
        try:
            was_any = await part()
        except Unavailable:  # logged where it arose
            pass
        except Exception:
            logger.exception("what is left of an index could not be worked off; the next turn tries again")
        await asyncio.sleep(PAUSE * (time.monotonic() - began) if was_any else LOOK_SECONDS)
