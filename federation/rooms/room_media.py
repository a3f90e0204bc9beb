"""The media that a room's events name, whoever may see them: for administrators."""

from collections.abc import AsyncIterator, Iterator

from federation.protocol.identifiers import is_media_id, is_server_name
from federation.protocol.types import JsonObject
from storage import event_pages, rooms
from storage.database import Database
from storage.event_pages import Scan

SCANNED = 500
"""Events that are looked at in one statement."""

_EVERYWHERE = (-(1 << 62), 1 << 62)

MediaName = tuple[str, str]
"""Server and ID of an `mxc://` URI."""


async def media_of_room(database: Database, room_id: str) -> AsyncIterator[set[MediaName]]:
    """What the events of a room name, a part at a time, the oldest first; nothing of a room that is not known.

    Encrypted events show nothing.
    """
    async with database.read() as tx:
        room = await rooms.find(tx, room_id)
    first, last = _EVERYWHERE
    while room is not None:
        wanted = Scan(ranges=[(first, last)], newest_first=False, budget=SCANNED, limit=SCANNED)
        async with database.read() as tx:
            scanned = await event_pages.scan(tx, room.number, wanted)
        found = {name for event in scanned.events for name in named_by(event.content)}
        if found:
            yield found
        if scanned.last is None:
            return
        first = scanned.last


def named_by(content: JsonObject) -> Iterator[MediaName]:
    """What an event's content shows: files, images of rooms, thumbnails of both, encrypted ones, and edits of them."""
    for shown in (content, content.get("m.new_content")):
        if not isinstance(shown, dict):
            continue
        info = shown.get("info")
        holders = [(shown, "url"), (shown.get("file"), "url")]
        if isinstance(info, dict):
            holders += [(info, "thumbnail_url"), (info.get("thumbnail_file"), "url")]
        for holder, key in holders:
            name = parse(holder.get(key)) if isinstance(holder, dict) else None
            if name is not None:
                yield name


def parse(uri: object) -> MediaName | None:
    """What an `mxc://` URI names."""
    if not isinstance(uri, str) or not uri.startswith("mxc://"):
        return None
    server_name, _, media_id = uri.removeprefix("mxc://").partition("/")
    return (server_name, media_id) if is_server_name(server_name) and is_media_id(media_id) else None
