"""Files of media, stored so that nobody removes them meanwhile (`storage/media_content.py`)."""

import asyncio

from federation.protocol.errors import Unavailable
from storage import media_content
from storage.database import Database, Tx
from storage.media_files import Content, Incoming, MediaStore

_POLLS = 20
_POLL_SECONDS = 0.25
"""How long to wait where a file is just being removed that is to be stored again."""


async def keep(database: Database, files: MediaStore, incoming: Incoming) -> Content:
    """Make what arrived durable; it has to be confirmed soon. Raises Unavailable."""
    await incoming.flush()
    for _ in range(_POLLS):
        async with database.write() as tx:
            is_claimed = await media_content.claim(tx, incoming.digest(), database.now_ms())
        if is_claimed:
            return await files.keep(incoming)
        await asyncio.sleep(_POLL_SECONDS)
    raise _removed()


async def confirm(tx: Tx, content: Content) -> None:
    """There is media with this content, as of this transaction; raises Unavailable where that came too late."""
    if not await media_content.confirm(tx, content.sha256):
        raise _removed()


def _removed() -> Unavailable:
    return Unavailable("The server removes the same media just now, try again")
