"""Server-side key backups: which version may be written to, and the shape of what is kept."""

import orjson

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput, MatrixError, NotFound, TooLarge
from federation.protocol.types import JsonObject, UserID
from homeserver.services import key_checks
from storage import key_backups
from storage.database import Database, Tx
from storage.key_backups import BackedUpKey, Backup

ALGORITHMS = ("m.megolm_backup.v1.curve25519-aes-sha2", "org.matrix.msc3270.v1.aes-hmac-sha2")
"""What clients can be asked to read: the specification's, and MSC3270's, which matrix-js-sdk knows."""
MAX_AUTH_DATA_BYTES = 65_536
MAX_SESSION_DATA_BYTES = 65_536


class KeyBackupService:
    """One user's backups at a time; nobody but that user's clients ever hears of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, user_id: UserID, body: JsonObject) -> JsonObject:
        """Begin a new version, which alone can be written to from now on."""
        algorithm = key_checks.a_text(key_checks.required(body, "algorithm"), "algorithm")
        if algorithm not in ALGORITHMS:
            raise InvalidInput("Unknown backup algorithm")
        auth_data = _auth_data(body)
        async with self._database.transaction() as tx:
            version = await key_backups.create(tx, user_id, algorithm, auth_data)
        return {"version": str(version)}

    async def get_current(self, user_id: UserID) -> JsonObject:
        """The newest version; raises NotFound."""
        async with self._database.read() as tx:
            backup = await key_backups.find_current(tx, user_id)
        if backup is None:
            raise NotFound("No current backup version")
        return _description(backup)

    async def get(self, user_id: UserID, version: str) -> JsonObject:
        """A version by name; raises NotFound."""
        async with self._database.read() as tx:
            return _description(await _existing(tx, user_id, version))

    async def update(self, user_id: UserID, version: str, body: JsonObject) -> None:
        """Replace a version's `auth_data`; everything else must be what it is."""
        algorithm = key_checks.required(body, "algorithm")
        auth_data = _auth_data(body)
        if body.get("version", version) != version:
            raise InvalidInput("The version in the body is not the one in the path")
        async with self._database.transaction() as tx:
            backup = await _existing(tx, user_id, version, for_update=True)
            if algorithm != backup.algorithm:
                raise InvalidInput("The algorithm of a backup cannot change")
            await key_backups.set_auth_data(tx, user_id, backup.version, auth_data)

    async def delete(self, user_id: UserID, version: str) -> None:
        """Delete a version with its keys; raises NotFound if there never was one."""
        async with self._database.transaction() as tx:
            if not await key_backups.delete(tx, user_id, _number(version)):
                raise NotFound("Unknown backup version")

    async def put_keys(self, user_id: UserID, version: str | None, keys: list[BackedUpKey]) -> JsonObject:
        """Store keys in the current version, where they are better than what is there.

        Raises NotFound for an unknown version, M_WRONG_ROOM_KEYS_VERSION for one that is not the newest.
        """
        async with self._database.transaction() as tx:
            backup = await _existing(tx, user_id, version, for_update=True)
            current = await key_backups.find_current(tx, user_id)
            if current is not None and current.version != backup.version:
                raise MatrixError(
                    "M_WRONG_ROOM_KEYS_VERSION", "Wrong backup version", 403, {"current_version": str(current.version)}
                )
            totals = await key_backups.put_keys(tx, user_id, backup.version, keys)
        return {"etag": str(totals.etag), "count": totals.count}

    async def delete_keys(
        self, user_id: UserID, version: str | None, room_id: str | None = None, session_id: str | None = None
    ) -> JsonObject:
        """Delete all keys of a version, those of a room, or that of a session."""
        _check_names(room_id, session_id)
        async with self._database.transaction() as tx:
            backup = await _existing(tx, user_id, version, for_update=True)
            totals = await key_backups.delete_keys(tx, user_id, backup.version, room_id, session_id)
        return {"etag": str(totals.etag), "count": totals.count}

    async def get_rooms(self, user_id: UserID, version: str | None) -> JsonObject:
        """All keys of a version: `{"rooms": {...}}`."""
        rooms: JsonObject = {}
        for key in await self._list(user_id, version):
            rooms.setdefault(key.room_id, {"sessions": {}})["sessions"][key.session_id] = _key_data(key)
        return {"rooms": rooms}

    async def get_room(self, user_id: UserID, version: str | None, room_id: str) -> JsonObject:
        """The keys of a room, which may be none: `{"sessions": {...}}`."""
        keys = await self._list(user_id, version, room_id)
        return {"sessions": {key.session_id: _key_data(key) for key in keys}}

    async def get_session(self, user_id: UserID, version: str | None, room_id: str, session_id: str) -> JsonObject:
        """The key of a session; raises NotFound."""
        keys = await self._list(user_id, version, room_id, session_id)
        if not keys:
            raise NotFound("No such key in the backup")
        return _key_data(keys[0])

    async def _list(
        self, user_id: UserID, version: str | None, room_id: str | None = None, session_id: str | None = None
    ) -> list[BackedUpKey]:
        _check_names(room_id, session_id)
        async with self._database.read() as tx:
            backup = await _existing(tx, user_id, version)
            return await key_backups.list_keys(tx, user_id, backup.version, room_id, session_id)


def keys_of_rooms(body: JsonObject) -> list[BackedUpKey]:
    """The keys in the body of `PUT /room_keys/keys`."""
    rooms = key_checks.an_object(key_checks.required(body, "rooms"), "rooms")
    return [key for room_id, room in rooms.items() for key in keys_of_room(room_id, room)]


def keys_of_room(room_id: str, value: object) -> list[BackedUpKey]:
    """The keys in the body of `PUT /room_keys/keys/{roomId}`."""
    room = key_checks.an_object(value, "A room's keys")
    sessions = key_checks.an_object(key_checks.required(room, "sessions"), "sessions")
    return [key_of_session(room_id, session_id, key) for session_id, key in sessions.items()]


def key_of_session(room_id: str, session_id: str, value: object) -> BackedUpKey:
    """The key in the body of `PUT /room_keys/keys/{roomId}/{sessionId}`."""
    _check_names(room_id, session_id)
    json = key_checks.an_object(value, "A key")
    is_verified = key_checks.required(json, "is_verified")
    if not isinstance(is_verified, bool):
        raise key_checks.malformed("is_verified must be a boolean")
    session_data = key_checks.an_object(key_checks.required(json, "session_data"), "session_data")
    return BackedUpKey(
        room_id=room_id,
        session_id=session_id,
        is_verified=is_verified,
        first_message_index=_count(json, "first_message_index"),
        forwarded_count=_count(json, "forwarded_count"),
        session_data=_encoded(session_data, "session_data", MAX_SESSION_DATA_BYTES),
    )


def _count(json: JsonObject, name: str) -> int:
    value = key_checks.required(json, name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= canonical_json.MAX_INTEGER:
        raise key_checks.malformed(f"{name} must be an integer that is not negative")
    return value


def _auth_data(body: JsonObject) -> bytes:
    return _encoded(
        key_checks.an_object(key_checks.required(body, "auth_data"), "auth_data"), "auth_data", MAX_AUTH_DATA_BYTES
    )


def _encoded(value: JsonObject, name: str, max_bytes: int) -> bytes:
    encoded = orjson.dumps(value)
    if len(encoded) > max_bytes:
        raise TooLarge(f"{name} is larger than {max_bytes} bytes")
    return encoded


def _check_names(*names: str | None) -> None:
    for name in names:
        if name is not None:
            key_checks.a_text(name, "A room or session ID")


async def _existing(tx: Tx, user_id: UserID, version: str | None, *, for_update: bool = False) -> Backup:
    if version is None:
        raise key_checks.missing("version")
    backup = await key_backups.find(tx, user_id, _number(version), for_update=for_update)
    if backup is None:
        raise NotFound("Unknown backup version")
    return backup


def _number(version: str) -> int:
    """A version as we number them; raises NotFound for what can be none."""
    if not version.isascii() or not version.isdigit() or len(version) > 18:
        raise NotFound("Unknown backup version")
    return int(version)


def _description(backup: Backup) -> JsonObject:
    return {
        "algorithm": backup.algorithm,
        "auth_data": orjson.Fragment(backup.auth_data),
        "count": backup.count,
        "etag": str(backup.etag),
        "version": str(backup.version),
    }


def _key_data(key: BackedUpKey) -> JsonObject:
    return {
        "first_message_index": key.first_message_index,
        "forwarded_count": key.forwarded_count,
        "is_verified": key.is_verified,
        "session_data": orjson.Fragment(key.session_data),
    }
