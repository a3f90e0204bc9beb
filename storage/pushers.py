"""Where users want to be told of what notifies them (table `pushers`).

A pusher that was set from a device ends with it. Whatever changes which pushers a user has goes through the log, with
an `Invalidated` of kind `PUSHERS`, or of kind `SESSIONS` where devices ended.
"""

from collections.abc import Collection

import orjson
from msgspec import Struct

from federation.protocol.types import DeviceID, JsonObject, UserID
from storage import strings
from storage.database import Row, Tx

HTTP, EMAIL = "http", "email"


class Pusher(Struct, frozen=True, kw_only=True):
    """One pusher."""

    number: int
    user_id: UserID
    kind: str
    app_id: str
    pushkey: str
    pushkey_ts: int
    """When it was last set, in milliseconds."""
    is_enabled: bool
    device_id: DeviceID | None
    description: JsonObject
    """What the client said besides: names, `lang`, `profile_tag`, `data`; checked when it was set."""

    @property
    def data(self) -> JsonObject:
        """What is for the gateway, and its URL."""
        data: JsonObject = self.description["data"]
        return data

    @property
    def url(self) -> str:
        """The gateway's."""
        url: str = self.data["url"]
        return url


class NewPusher(Struct, frozen=True, kw_only=True):
    """A pusher as a client sets it, checked."""

    kind: str
    app_id: str
    pushkey: str
    is_enabled: bool
    description: JsonObject
    token: str | None = None
    """In each mail of one by mail: with it anybody ends the pusher."""


_SELECT = (
    "select pusher, pushers.user_id, kind, app_id, pushkey, pushkey_ts, is_enabled, device_id, description"
    " from pushers left join devices on devices.device = pushers.device"
)


def _pusher(row: Row) -> Pusher:
    return Pusher(
        number=row[0],
        user_id=UserID(row[1]),
        kind=row[2],
        app_id=row[3],
        pushkey=row[4],
        pushkey_ts=row[5],
        is_enabled=row[6],
        device_id=row[7],
        description=orjson.loads(row[8]),
    )


async def list_of_user(tx: Tx, user_id: UserID) -> list[Pusher]:
    """All pushers of a user."""
    return [_pusher(row) for row in await tx.fetch(f"{_SELECT} where pushers.user_id = %s order by pusher", (user_id,))]


async def of_users(tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, list[Pusher]]:
    """The pushers of those of these users who may be told of anything: not of who is locked out."""
    rows = await tx.fetch(
        f"{_SELECT} join users on users.user_id = pushers.user_id"
        " where pushers.user_id = any(%s::text[]) and not is_locked and deactivated_ts is null order by pusher",
        (list(user_ids),),
    )
    found: dict[UserID, list[Pusher]] = {}
    for row in rows:
        found.setdefault(UserID(row[1]), []).append(_pusher(row))
    return found


async def by_number(tx: Tx, numbers: Collection[int]) -> dict[int, Pusher]:
    """Those of these pushers that there are, and whose users may be told of anything."""
    rows = await tx.fetch(
        f"{_SELECT} join users on users.user_id = pushers.user_id"
        " where pusher = any(%s::bigint[]) and not is_locked and deactivated_ts is null",
        (list(numbers),),
    )
    return {row[0]: _pusher(row) for row in rows}


async def all_users(tx: Tx) -> list[UserID]:
    """Everybody who has a pusher."""
    return [UserID(user_id) for (user_id,) in await tx.fetch("select distinct user_id from pushers")]


async def members_with(tx: Tx, rooms: Collection[int]) -> list[tuple[int, UserID, int]]:
    """The members of these rooms who have a pusher: room, user, and the room's version since which they are joined
    without any change to their member event."""
    rows = await tx.fetch(
        "select room_state.room, strings.value, since_version from room_state"
        " join strings on strings.id = room_state.state_key"
        " where room = any(%s::int[]) and type = %s and line = 0 and until_version is null and membership = 1"
        " and exists (select from pushers where user_id = strings.value)",
        (list(rooms), strings.MEMBER),
    )
    return [(room, UserID(user_id), since) for room, user_id, since in rows]


async def joined_rooms_of(tx: Tx, user_ids: Collection[UserID]) -> list[tuple[int, UserID, int]]:
    """As `members_with`, of these users in all of their rooms."""
    rows = await tx.fetch(
        "select room_state.room, strings.value, since_version from strings"
        " join room_state on room_state.state_key = strings.id"
        " where strings.value = any(%s::text[]) and line = 0 and until_version is null and membership is not null"
        " and membership = 1",
        (list(user_ids),),
    )
    return [(room, UserID(user_id), since) for room, user_id, since in rows]


async def put(tx: Tx, user_id: UserID, device: int | None, new: NewPusher, *, now_ts: int, at_most: int) -> bool:
    """Set a pusher of a user; False where they would have too many. It belongs to the device, if there is one."""
    await tx.execute("select from users where user_id = %s for no key update", (user_id,))
    written = await tx.execute(
        "insert into pushers"
        " (created_ts, pushkey_ts, device, user_id, kind, app_id, pushkey, is_enabled, description, token,"
        "  mail_after_ts, mail_pause_ms)"
        " select %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 0, 0"
        " where (select count(*) from pushers where user_id = %s) < %s"
        "  or exists (select from pushers where user_id = %s and app_id = %s and pushkey = %s)"
        " on conflict (user_id, app_id, pushkey) do update set pushkey_ts = excluded.pushkey_ts,"
        "  device = excluded.device, kind = excluded.kind, is_enabled = excluded.is_enabled,"
        "  description = excluded.description, token = coalesce(pushers.token, excluded.token)",
        (
            *(now_ts, now_ts, device, user_id, new.kind, new.app_id, new.pushkey, new.is_enabled),
            *(orjson.dumps(new.description), new.token, user_id, at_most, user_id, new.app_id, new.pushkey),
        ),
    )
    return written > 0


async def delete(tx: Tx, user_id: UserID, app_id: str, pushkey: str) -> bool:
    """End a user's pusher; whether there was one."""
    return (
        await tx.execute(
            "delete from pushers where user_id = %s and app_id = %s and pushkey = %s", (user_id, app_id, pushkey)
        )
        > 0
    )


async def delete_of_others(tx: Tx, user_id: UserID, app_id: str, pushkey: str) -> list[UserID]:
    """End the pushers of everybody else with the same app and key, which is one device's; whose they were."""
    rows = await tx.fetch(
        "delete from pushers where app_id = %s and pushkey = %s and user_id <> %s returning user_id",
        (app_id, pushkey, user_id),
    )
    return [UserID(user) for (user,) in rows]


async def delete_of_user(tx: Tx, user_id: UserID) -> int:
    """End all pushers of a user; how many there were."""
    return await tx.execute("delete from pushers where user_id = %s", (user_id,))


async def delete_of_sessions(tx: Tx, user_id: UserID, *, keep: DeviceID | None) -> int:
    """End the pushers that a user set with a session, but for those of one device; how many there were."""
    return await tx.execute(
        "delete from pushers using devices where devices.device = pushers.device and pushers.user_id = %s"
        " and device_id is distinct from %s",
        (user_id, keep),
    )


# --- by mail


class DueDigest(Struct, frozen=True):
    """A user is to be told by mail of what waits."""

    pusher: int
    user_id: UserID
    address: str
    pause_ms: int
    token: str


async def due_digests(tx: Tx, shards: Collection[int], *, now_ts: int, delay_ms: int, limit: int) -> list[DueDigest]:
    """Those for whom something has waited for so long, as far as the address still is the account's; locked."""
    rows = await tx.fetch(
        "select pusher, pushers.user_id, pushkey, mail_pause_ms, token from pushers"
        " join users on users.user_id = pushers.user_id"
        " where kind = 'email' and is_enabled and mail_after_ts <= %s and not is_locked and deactivated_ts is null"
        " and exists (select from pushes where shard = any(%s::smallint[]) and pushes.pusher = pushers.pusher"
        "  and pushes.created_ts <= %s)"
        " and exists (select from identifiers where identifiers.user_id = pushers.user_id and medium = 'email'"
        "  and address = lower(btrim(pushkey))) order by mail_after_ts limit %s for update of pushers skip locked",
        (now_ts, list(shards), now_ts - delay_ms, limit),
    )
    return [DueDigest(row[0], UserID(row[1]), row[2], row[3], row[4]) for row in rows]


async def note_mailed(tx: Tx, pusher: int, *, after_ts: int, pause_ms: int) -> None:
    """A digest was sent; the next one not before, and the one after it after such a pause."""
    await tx.execute(
        "update pushers set mail_after_ts = %s, mail_pause_ms = %s where pusher = %s", (after_ts, pause_ms, pusher)
    )


async def find_by_token(tx: Tx, token: str) -> Pusher | None:
    """The pusher whose mails have this token."""
    row = await tx.fetch_one(f"{_SELECT} where token = %s", (token,))
    return None if row is None else _pusher(row)
