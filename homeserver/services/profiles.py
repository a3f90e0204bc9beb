"""Profiles: names, avatars and any other field (Client-Server API v1.16, "Profiles")."""

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound
from federation.protocol.identifiers import is_user_id, parse_mxc, server_name_of
from federation.protocol.types import JsonObject, ServerName, UserID
from storage import profiles
from storage.database import Database, Tx
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry

MAX_PROFILE_BYTES = 65_535
MAX_KEY_BYTES = 255
MAX_NAME_LENGTH = 1000
MAX_REMEMBERED = 20_000
PROPAGATED = frozenset(("displayname", "avatar_url"))
"""The fields that stand in the user's member events, too."""

Propagate = Callable[[UserID, JsonObject], Awaitable[None]]
QueryRemote = Callable[[UserID, str | None], Awaitable[JsonObject]]


class MemberFields:
    """What of a local user's profile stands in their member events."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[UserID, JsonObject] = {}
        self._changes = 0

    def on_change(self, _position: int, change: Change) -> None:
        """Forget what a change makes stale: a view of the tail."""
        if isinstance(change, Invalidated) and change.kind_of is Kind.PROFILE:
            self._changes += 1
            self._known.pop(change.user_id, None)

    async def get(self, user_id: UserID) -> JsonObject:
        """Name and avatar, as far as they are set; nothing for who is no user of ours. Not to be changed."""
        known = self._known.get(user_id)
        if known is not None:
            return known
        changes = self._changes
        async with self._database.read() as tx:
            fields = await profiles.find_fields(tx, user_id)
        found = {key: fields[key] for key in PROPAGATED if key in fields}
        if changes == self._changes:  # else what was read may be older than the change
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[user_id] = found
        return found


class ProfileService:
    """The profiles of local users, and those of others by asking."""

    def __init__(
        self,
        database: Database,
        log: Log,
        *,
        server_name: ServerName,
        propagate: Propagate,
        query_remote: QueryRemote,
    ) -> None:
        """`propagate` gets a local user's whole profile after its name or avatar changed, and sends member events."""
        self._database = database
        self._log = log
        self._server_name = server_name
        self._propagate = propagate
        self._query_remote = query_remote

    async def get(self, user_id: str, *, may_ask_others: bool) -> JsonObject:
        """All fields of a user of any server; raises M_NOT_FOUND.

        `may_ask_others` is for who is logged in: nobody else makes this server send requests.
        """
        return await self._get(user_id, None, may_ask_others)

    async def get_field(self, user_id: str, key: str, *, may_ask_others: bool) -> Any:  # noqa: ANN401 - any JSON
        """One field of a user of any server; raises M_NOT_FOUND where it is not set."""
        fields = await self._get(user_id, key, may_ask_others)
        if key not in fields:
            raise NotFound("There is no such profile field")
        return fields[key]

    async def get_local(self, user_id: UserID) -> JsonObject:
        """All fields of a user of ours; raises M_NOT_FOUND. For queries of other servers, too."""
        async with self._database.read() as tx:
            fields = await profiles.find(tx, user_id)
        if fields is None:
            raise NotFound("Profile not found")
        return fields

    async def _get(self, user_id: str, key: str | None, may_ask_others: bool) -> JsonObject:
        if not is_user_id(user_id):
            raise InvalidInput("This is not a user ID")
        if server_name_of(user_id) != self._server_name:
            if not may_ask_others:
                raise Forbidden("Log in to see profiles of other servers")
            return await self._query_remote(user_id, key)
        return await self.get_local(user_id)

    async def put_field(self, user_id: UserID, key: str, body: JsonObject) -> None:
        """Set a field to what `body` holds under its name."""
        _check_key(key)
        if key not in body:
            raise InvalidInput(f"The body must hold {key}", "M_MISSING_PARAM")
        value = body[key]
        if key in PROPAGATED and (value is None or value == ""):
            await self.delete_field(user_id, key)
            return
        _check_value(key, value)

        def edit(fields: JsonObject) -> None:
            fields[key] = value
            if len(orjson.dumps(fields)) > MAX_PROFILE_BYTES:
                raise MatrixError("M_PROFILE_TOO_LARGE", "A profile must be under 64 KiB", 400)

        await self._change(user_id, key, edit)

    async def delete_field(self, user_id: UserID, key: str) -> None:
        """Remove a field, if it is set."""
        _check_key(key)
        await self._change(user_id, key, lambda fields: fields.pop(key, None))

    async def _change(self, user_id: UserID, key: str, edit: Callable[[JsonObject], Any]) -> None:
        entry = Entry(width=1)

        async def work(tx: Tx) -> JsonObject | None:
            fields = await profiles.lock(tx, user_id)
            before = dict(fields)
            edit(fields)
            if fields == before:
                return None
            await profiles.put(tx, user_id, fields)
            entry.changes.append(Invalidated(Kind.PROFILE, user_id, key))
            return fields

        entry.work = work
        changed: JsonObject | None = (await self._log.append(entry)).result
        if changed is not None and key in PROPAGATED:
            await self._propagate(user_id, changed)


def _check_key(key: str) -> None:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise MatrixError("M_KEY_TOO_LARGE", "The name of a profile field may have 255 bytes", 400)
    if not key or "\0" in key:
        raise InvalidInput("This is not the name of a profile field")


def _check_value(key: str, value: object) -> None:
    if key == "displayname":
        if not isinstance(value, str):
            raise InvalidInput("displayname must be a string", "M_BAD_JSON")
        if len(value) > MAX_NAME_LENGTH:
            raise InvalidInput("The name is too long")
    elif key == "avatar_url":
        if not isinstance(value, str):
            raise InvalidInput("avatar_url must be a string", "M_BAD_JSON")
        if len(value) > MAX_NAME_LENGTH:
            raise InvalidInput("The avatar's URL is too long")
        parse_mxc(value)
    elif key == "m.tz" and (not isinstance(value, str) or len(value) > 255):
        raise InvalidInput("m.tz must be the name of a time zone", "M_BAD_JSON")
