"""Room aliases of this server and the published room directory (tables `room_aliases`, `published_rooms`)."""

from collections.abc import Collection

from msgspec import Struct

from federation.protocol.types import RoomAlias, RoomID, UserID
from storage.database import Tx


class Alias(Struct, frozen=True):
    """What an alias stands for."""

    room_id: RoomID
    creator: UserID


class Published(Struct, frozen=True):
    """A room of the directory."""

    number: int
    room_id: RoomID
    joined_members: int


async def insert_alias(tx: Tx, alias: RoomAlias, room_id: RoomID, creator: UserID, now_ts: int) -> bool:
    """Give a room an alias; False when it stands for a room already."""
    return (
        await tx.execute(
            "insert into room_aliases (alias, room_id, creator, created_ts) values (%s, %s, %s, %s)"
            " on conflict do nothing",
            (alias, room_id, creator, now_ts),
        )
        == 1
    )


async def find_alias(tx: Tx, alias: str) -> Alias | None:
    """What the alias stands for."""
    row = await tx.fetch_one("select room_id, creator from room_aliases where alias = %s", (alias,))
    return None if row is None else Alias(row[0], row[1])


async def delete_alias(tx: Tx, alias: str) -> bool:
    """Take an alias away; whether there was one."""
    return await tx.execute("delete from room_aliases where alias = %s", (alias,)) == 1


async def list_aliases(tx: Tx, room_id: str) -> list[RoomAlias]:
    """The room's aliases on this server, oldest first."""
    rows = await tx.fetch("select alias from room_aliases where room_id = %s order by created_ts, alias", (room_id,))
    return [RoomAlias(alias) for (alias,) in rows]


async def move_aliases(tx: Tx, old: RoomID, new: RoomID) -> None:
    """Have all aliases of one room stand for another."""
    await tx.execute("update room_aliases set room_id = %s where room_id = %s", (new, old))


async def publish(tx: Tx, room: int, network: str = "") -> None:
    """List a room in the directory."""
    await tx.execute(
        "insert into published_rooms (room, network) values (%s, %s) on conflict do nothing", (room, network)
    )


async def unpublish(tx: Tx, room: int, network: str = "") -> bool:
    """Take a room off the directory; whether it was there."""
    return await tx.execute("delete from published_rooms where room = %s and network = %s", (room, network)) == 1


async def is_published(tx: Tx, room: int) -> bool:
    """Whether the room is in the directory proper."""
    row = await tx.fetch_one("select 1 from published_rooms where room = %s and network = ''", (room,))
    return row is not None


async def published_among(tx: Tx, rooms: Collection[int]) -> set[int]:
    """Those of these rooms that are in the directory proper."""
    rows = await tx.fetch(
        "select room from published_rooms where room = any(%s::int[]) and network = ''", (list(rooms),)
    )
    return {room for (room,) in rows}


async def count_published(tx: Tx) -> int:
    """How many rooms the directory has."""
    row = await tx.fetch_one("select count(*) from published_rooms where network = ''")
    return 0 if row is None else int(row[0])


async def page(
    tx: Tx, networks: Collection[str] | None, after: tuple[int, int] | None, *, limit: int, backwards: bool
) -> list[Published]:
    """Rooms of the directory beyond `after` (its joined members, its number), those with most members first.

    `networks` None stands for all of them. Backwards, the page ends before `after` and the nearest room comes first.
    """
    conditions = ["true"]
    params: list[object] = []
    if networks is not None:
        conditions.append("network = any(%s::text[])")
        params.append(list(networks))
    if after is not None:
        conditions.append(f"(joined_members, -room) {'>' if backwards else '<'} (%s::int, %s::int)")
        params.extend((after[0], -after[1]))
    order = "asc" if backwards else "desc"
    rows = await tx.fetch(
        "select distinct room, room_id, joined_members, -room from rooms join published_rooms using (room)"
        f" where {' and '.join(conditions)} order by joined_members {order}, -room {order} limit %s",
        (*params, limit),
    )
    return [Published(row[0], row[1], row[2]) for row in rows]
