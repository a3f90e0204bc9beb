"""Media that administrators put into quarantine or remove, under the paths that existing dashboards use.

What is in quarantine is out of everybody's sight; whatever else has the same content goes with it, and stays out of
sight when it is uploaded again.
"""

import logging
import time
from collections.abc import Collection

from federation.protocol.errors import InvalidInput, NotFound
from federation.protocol.identifiers import is_room_id
from federation.protocol.types import JsonObject, ServerName, UserID
from federation.rooms.room_media import MediaName, media_of_room, parse
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.media_cache import MediaCache
from homeserver.services.user_names import UserNames
from storage import content_repository
from storage.database import Database

logger = logging.getLogger(__name__)

BATCH = 1000


class MediaAdministrationAPI:
    """Below `/_synapse/admin/v1/`."""

    def __init__(self, database: Database, cache: MediaCache, names: UserNames, server_name: ServerName) -> None:
        self._database = database
        self._cache = cache
        self._names = names
        self._server_name = server_name

    async def quarantine(self, call: Call) -> Answer:
        """POST /media/quarantine/{serverName}/{mediaId}; media of another server need not have been fetched."""
        name = _named(call)
        if name[0] == self._server_name:
            await self._existing(name)
        await self._quarantine(requester(call).user_id, [name])
        return {}

    async def release(self, call: Call) -> Answer:
        """POST /media/unquarantine/{serverName}/{mediaId}."""
        server_name, media_id = _named(call)
        async with self._database.transaction() as tx:
            if not await content_repository.release(tx, server_name, media_id):
                raise _unknown()
        logger.info("mxc://%s/%s is released by %s", server_name, media_id, requester(call).user_id)
        return {}

    async def quarantine_of_user(self, call: Call) -> Answer:
        """POST /user/{userId}/media/quarantine: all that a user of this server has uploaded."""
        user_id = UserID(call.path["user_id"])
        if not self._names.is_local(user_id):
            raise InvalidInput("This is not a user of this server")
        async with self._database.read() as tx:
            media_ids = await content_repository.list_uploaded(tx, user_id)
        names = [(str(self._server_name), media_id) for media_id in media_ids]
        return {"num_quarantined": await self._quarantine(requester(call).user_id, names)}

    async def quarantine_of_room(self, call: Call) -> Answer:
        """POST /room/{roomId}/media/quarantine: all that its events show in the clear."""
        total = 0
        async for names in media_of_room(self._database, _room(call)):
            total += await self._quarantine(requester(call).user_id, names)
        return {"num_quarantined": total}

    async def list_of_room(self, call: Call) -> Answer:
        """GET /room/{roomId}/media: what its events show in the clear."""
        found: set[MediaName] = set()
        async for names in media_of_room(self._database, _room(call)):
            found |= names
        uris: JsonObject = {"local": [], "remote": []}
        for server_name, media_id in sorted(found):
            kind = "local" if server_name == self._server_name else "remote"
            uris[kind].append(f"mxc://{server_name}/{media_id}")
        return uris

    async def delete(self, call: Call) -> Answer:
        """DELETE /media/{serverName}/{mediaId}; what is in quarantine stays."""
        server_name, media_id = _named(call)
        if not await self._cache.delete(server_name, media_id):
            raise _unknown()
        logger.info("mxc://%s/%s is removed by %s", server_name, media_id, requester(call).user_id)
        return {"deleted_media": [media_id], "total": 1}

    async def purge_cache(self, call: Call) -> Answer:
        """POST /purge_media_cache: what came from elsewhere and nobody has seen since `before_ts`."""
        before_ts = call.query_int("before_ts", -1)
        if before_ts < 0:
            raise InvalidInput("before_ts is required", "M_MISSING_PARAM")
        return {"deleted": await self._cache.forget_unseen(before_ts)}

    async def _existing(self, name: MediaName) -> None:
        async with self._database.read() as tx:
            if await content_repository.find(tx, ServerName(name[0]), name[1]) is None:
                raise _unknown()

    async def _quarantine(self, admin: UserID, names: Collection[MediaName]) -> int:
        ordered, total = sorted(names), 0
        for start in range(0, len(ordered), BATCH):
            async with self._database.transaction() as tx:
                total += await content_repository.quarantine(
                    tx, ordered[start : start + BATCH], admin, int(time.time() * 1000)
                )
        logger.info("%s puts %d media into quarantine", admin, total)
        return total


def _named(call: Call) -> MediaName:
    name = parse(f"mxc://{call.path['server_name']}/{call.path['media_id']}")
    if name is None:
        raise InvalidInput("This is not the name of media")
    return name


def _room(call: Call) -> str:
    room_id = call.path["room_id"]
    if not is_room_id(room_id):
        raise InvalidInput("This is not a room ID")
    return room_id


def _unknown() -> NotFound:
    return NotFound("There is no such media")
