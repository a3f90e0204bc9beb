"""Device lists of other servers' users as we hold them (tables `remote_device_lists`, `remote_devices`).

A list is held for a user whose keys somebody here asked for, as long as they share a room: only then does the user's
server tell us of changes. A list that may lack one is stale until it was fetched anew. Who writes to a list, or to the
cross-signing keys of its user, has locked its row; several rows are only locked by who passes over those that are
locked already, as the log's appender holds any number of them.
"""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.types import DeviceID, ServerName, UserID
from storage import strings
from storage.database import Tx
from storage.end_to_end_keys import DeviceKeys

REMEMBERED = 32
"""Updates of a list that later ones may refer to."""


class RemoteList(Struct, frozen=True):
    """What is known of a user's list."""

    user_id: UserID
    stream_ids: tuple[int, ...]
    """The newest updates that it contains, in the order in which they came. The first is that with which the list was
    fetched: clients may have been told by its server what was before, so it counts as announced once it comes again."""
    position: int | None
    """Where the log was before it was fetched; None for one that never was."""
    is_stale: bool
    version: int
    """Other whenever something was heard that a list which is being fetched may lack."""
    failures: int
    """Since it was last fetched."""


_COLUMNS = "user_id, stream_ids, position, is_stale, version, failures"


async def lock(tx: Tx, user_id: UserID) -> RemoteList | None:
    """A user's list, for who is going to change it; None where none is held."""
    row = await tx.fetch_one(f"select {_COLUMNS} from remote_device_lists where user_id = %s for update", (user_id,))
    return None if row is None else RemoteList(UserID(row[0]), tuple(row[1]), *row[2:])


async def list_devices(tx: Tx, users: Collection[UserID]) -> list[DeviceKeys]:
    """All devices held of these users."""
    rows = await tx.fetch(
        "select user_id, device_id, json, display_name from remote_devices where user_id = any(%s::text[])",
        (list(users),),
    )
    return [
        DeviceKeys(UserID(user_id), DeviceID(device_id), bytes(json), name) for user_id, device_id, json, name in rows
    ]


async def fetched(tx: Tx, users: Collection[UserID]) -> set[UserID]:
    """Those of whom a list is held, however old."""
    rows = await tx.fetch(
        "select user_id from remote_device_lists where user_id = any(%s::text[]) and position is not null",
        (list(users),),
    )
    return {UserID(user_id) for (user_id,) in rows}


async def known_to(tx: Tx, asker: UserID, users: Collection[UserID]) -> set[UserID]:
    """Those whose list is complete, as they have been in a room with `asker` ever since it was fetched."""
    if not users:
        return set()
    held: dict[str, int] = {
        user_id: position
        for user_id, position in await tx.fetch(
            "select user_id, position from remote_device_lists"
            " where user_id = any(%s::text[]) and not is_stale and position is not null",
            (list(users),),
        )
    }
    numbers = await strings.find(tx, {asker, *held})
    own = numbers.get(asker)
    names = {numbers[user_id]: user_id for user_id in held if user_id in numbers}
    if own is None or not names:
        return set()
    rows = await tx.fetch(
        "select distinct theirs.state_key from room_state mine"
        " join room_state theirs on theirs.room = mine.room and theirs.type = %s and theirs.line = 0"
        "  and theirs.until_version is null and theirs.membership = 1 and theirs.state_key = any(%s::int[])"
        " join unnest(%s::int[], %s::bigint[]) as held (number, position) on held.number = theirs.state_key"
        " where mine.state_key = %s and mine.line = 0 and mine.until_version is null and mine.membership = 1"
        "  and greatest(mine.event, theirs.event) <= held.position",
        (strings.MEMBER, list(names), list(names), [held[name] for name in names.values()], own),
    )
    return {UserID(names[number]) for (number,) in rows}


# --- which are to be fetched


async def want(tx: Tx, users: Collection[UserID], now_ts: int) -> None:
    """Have the lists of these users fetched, whatever is held of them."""
    names = sorted(users)
    await tx.execute(
        "insert into remote_device_lists (user_id, stream_ids, retry_ts) select user_id, '{}'::bigint[], %s::bigint"
        " from unnest(%s::text[]) as wanted (user_id) on conflict do nothing",
        (now_ts, names),
    )
    await tx.execute(
        "update remote_device_lists set is_stale = true, version = version + 1, retry_ts = %s where user_id in"
        " (select user_id from remote_device_lists where user_id = any(%s::text[]) and not is_stale"
        "  for update skip locked)",
        (now_ts, names),
    )


async def note_missing(tx: Tx, user_id: UserID, now_ts: int) -> None:
    """A list that is locked lacks something that its server, which is there, told of."""
    await tx.execute(
        "update remote_device_lists set is_stale = true, version = version + 1, retry_ts = %s where user_id = %s",
        (now_ts, user_id),
    )


async def take_due(
    tx: Tx, *, now_ts: int, leased_until_ts: int, limit: int, besides: Collection[ServerName] = ()
) -> list[RemoteList]:
    """Stale lists whose time has come, but for users of some servers; nobody else fetches them until the lease ends,
    unless more is heard."""
    rows = await tx.fetch(
        "update remote_device_lists set retry_ts = %s where user_id in"
        " (select user_id from remote_device_lists where is_stale and retry_ts <= %s"
        "  and substr(user_id, strpos(user_id, ':') + 1) <> all(%s::text[]) order by retry_ts limit %s"
        f"  for update skip locked) returning {_COLUMNS}",
        (leased_until_ts, now_ts, list(besides), limit),
    )
    return [RemoteList(UserID(row[0]), tuple(row[1]), *row[2:]) for row in rows]


async def note_failure(tx: Tx, user_id: UserID, retry_ts: int) -> None:
    """A list could not be fetched."""
    await tx.execute(
        "update remote_device_lists set failures = failures + 1, retry_ts = %s where user_id = %s and is_stale",
        (retry_ts, user_id),
    )


async def hasten(tx: Tx, servers: Collection[ServerName], now_ts: int) -> None:
    """These servers are there again: what they did not answer is asked now."""
    await tx.execute(
        "update remote_device_lists set retry_ts = %s where user_id in"
        " (select user_id from remote_device_lists where is_stale and failures > 0 and retry_ts > %s"
        "  and substr(user_id, strpos(user_id, ':') + 1) = any(%s::text[]) for update skip locked)",
        (now_ts, now_ts, list(servers)),
    )


async def note_fetched(tx: Tx, user_id: UserID, stream_ids: Sequence[int], position: int, *, is_current: bool) -> None:
    """A list that is locked was fetched; it stays stale where something was heard meanwhile."""
    await tx.execute(
        "update remote_device_lists set stream_ids = %s::bigint[], position = %s, is_stale = %s, failures = 0,"
        " retry_ts = 0 where user_id = %s",
        (list(stream_ids), position, not is_current, user_id),
    )


async def note_update(tx: Tx, user_id: UserID, stream_id: int) -> None:
    """A list that is locked contains an update of which clients are told."""
    await tx.execute(
        "update remote_device_lists set stream_ids ="
        " (stream_ids || %s::bigint)[greatest(1, cardinality(stream_ids) + 2 - %s) :] where user_id = %s",
        (stream_id, REMEMBERED, user_id),
    )


# --- their devices; the list is locked


async def put(tx: Tx, device: DeviceKeys, limit: int) -> bool:
    """Store a device in the place of what was held of it; False where it would be one too many."""
    return (
        await tx.execute(
            "insert into remote_devices (user_id, device_id, json, display_name)"
            " select %s::text, %s::text, %s::bytea, %s::text"
            " where (select count(*) from remote_devices where user_id = %s and device_id <> %s) < %s"
            " on conflict (user_id, device_id) do update"
            " set json = excluded.json, display_name = excluded.display_name",
            (
                device.user_id,
                device.device_id,
                device.json,
                device.display_name,
                device.user_id,
                device.device_id,
                limit,
            ),
        )
        == 1
    )


async def remove(tx: Tx, user_id: UserID, device_id: DeviceID) -> None:
    """Forget a device."""
    await tx.execute("delete from remote_devices where user_id = %s and device_id = %s", (user_id, device_id))


async def replace(tx: Tx, user_id: UserID, devices: Sequence[DeviceKeys]) -> bool:
    """Hold these devices of a user and no others; whether anything is other than before."""
    gone = await tx.execute(
        "delete from remote_devices where user_id = %s and device_id <> all(%s::text[])",
        (user_id, [device.device_id for device in devices]),
    )
    changed = await tx.execute(
        "insert into remote_devices as held (user_id, device_id, json, display_name)"
        " select %s, given.* from unnest(%s::text[], %s::bytea[], %s::text[]) as given (device_id, json, display_name)"
        " on conflict (user_id, device_id) do update set json = excluded.json, display_name = excluded.display_name"
        " where (held.json, held.display_name) is distinct from (excluded.json, excluded.display_name)",
        (
            user_id,
            [device.device_id for device in devices],
            [device.json for device in devices],
            [device.display_name for device in devices],
        ),
    )
    return gone + changed > 0


async def drop_unshared(tx: Tx) -> int:
    """Forget the lists and keys of who shares no room with any of our users; how many.

    Signatures of such keys stay: they hold again when the user comes back.
    """
    rows = await tx.fetch(
        "with ours as ("
        "  select distinct room from users join strings on value = users.user_id"
        "  join room_state on state_key = strings.id and type = %s and line = 0 and until_version is null"
        "   and membership = 1"
        " ), gone as ("
        "  select user_id from remote_device_lists lists where not exists ("
        "   select from strings join room_state on state_key = strings.id and type = %s and line = 0"
        "    and until_version is null and membership = 1"
        "   join ours on ours.room = room_state.room where strings.value = lists.user_id)"
        "  for update of lists skip locked"
        " ), keys as (delete from cross_signing_keys using gone where cross_signing_keys.user_id = gone.user_id)"
        " delete from remote_device_lists using gone where remote_device_lists.user_id = gone.user_id"
        " returning gone.user_id",
        (strings.MEMBER, strings.MEMBER),
    )
    return len(rows)
