"""Who changed devices or cross-signing keys, and who has to hear of it (Client-Server API, "Tracking the device list
for a user").

A change concerns everybody who shares a room with its user, in rooms that the change names so that waiting syncs wake.
A signature that one user made about another concerns the signer alone: only they may see it.
"""

import json
from collections.abc import Collection, Sequence
from typing import ClassVar, Self

from msgspec import Struct

from federation.protocol.types import DeviceID, UserID
from storage import memberships, strings
from storage.database import Tx
from storage.memberships import Membership

_FEW = 500
"""Up to how many users are looked up one by one in the rooms of who asks."""


class DeviceListChanged(Struct, frozen=True):
    """The devices, device names or cross-signing keys of a user are not what they were."""

    user_id: UserID
    changed_in: Sequence[int]
    """The rooms that the user was joined to."""
    device_ids: Sequence[DeviceID] = ()
    """The devices; none where the cross-signing keys changed."""
    seen_by: UserID | None = None
    """The only user who may know of it: who signed a key of `user_id`, or replaced their own user-signing key."""

    kind: ClassVar[int] = 2
    width: ClassVar[int] = 1

    @property
    def rooms(self) -> Collection[int]:
        """The rooms whose members it concerns: none where one user alone may know of it."""
        return () if self.seen_by is not None else self.changed_in

    @property
    def held_bytes(self) -> int:
        """What it takes in memory, with its places in the indexes of all those rooms."""
        return 100 * len(self.changed_in)

    @property
    def users(self) -> Collection[UserID]:
        """The user's own other devices, or those of the only user who may know of it."""
        return (self.user_id if self.seen_by is None else self.seen_by,)

    @classmethod
    async def insert_many(cls, tx: Tx, rows: Sequence[tuple[int, Self]]) -> None:
        """One statement for all."""
        # PostgreSQL has no arrays of arrays of different lengths: the inner ones travel as text.
        await tx.execute(
            "insert into device_list_changes (position, user_id, device_ids, seen_by, rooms)"
            " select position, user_id, array(select jsonb_array_elements_text(device_ids::jsonb)), seen_by,"
            "  rooms::int[] from unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[])"
            " as change (position, user_id, device_ids, seen_by, rooms)",
            (
                [position for position, _ in rows],
                [change.user_id for _, change in rows],
                [json.dumps(list(change.device_ids)) for _, change in rows],
                [change.seen_by for _, change in rows],
                ["{" + ",".join(map(str, change.rooms)) + "}" for _, change in rows],
            ),
        )

    @classmethod
    async def read_range(cls, tx: Tx, after: int, upto: int) -> list[tuple[int, Self]]:
        """Those in (after, upto]."""
        rows = await tx.fetch(
            "select position, user_id, rooms, device_ids, seen_by from device_list_changes"
            " where position > %s and position <= %s order by position",
            (after, upto),
        )
        return [
            (position, cls(UserID(user_id), tuple(in_rooms), tuple(device_ids), seen_by))
            for position, user_id, in_rooms, device_ids, seen_by in rows
        ]


async def of_user(tx: Tx, user_id: UserID, device_ids: Sequence[DeviceID] = ()) -> DeviceListChanged:
    """The change to log when devices (without any: the cross-signing keys) of a user changed, in all their rooms."""
    return DeviceListChanged(user_id, tuple(await memberships.joined_rooms(tx, user_id)), tuple(device_ids))


async def changed_between(tx: Tx, user_id: UserID, after: int, upto: int) -> set[UserID]:
    """The users whose devices or keys changed in positions (after, upto], as far as `user_id` may know.

    These are the user, those whose keys the user signed, and those who share a joined room with the user now.
    """
    rows = await tx.fetch(
        "select distinct user_id, seen_by is not null from device_list_changes"
        " where position > %s and position <= %s and (seen_by is null or seen_by = %s)",
        (after, upto, user_id),
    )
    known = {UserID(changed) for changed, is_own_signature in rows if is_own_signature or changed == user_id}
    others = {UserID(changed) for changed, _ in rows} - known
    return known | await still_sharing(tx, user_id, others)


async def still_sharing(tx: Tx, user_id: UserID, others: Collection[UserID]) -> set[UserID]:
    """Those among `others` who are joined to a room that `user_id` is joined to, now."""
    if not others:
        return set()
    if len(others) > _FEW:
        return (await memberships.users_sharing_rooms(tx, user_id)).intersection(others)
    numbers = await strings.find(tx, {user_id, *others})
    own = numbers.get(user_id)
    names = {numbers[other]: other for other in others if other in numbers}
    if own is None or not names:
        return set()
    rows = await tx.fetch(
        "select distinct theirs.state_key from room_state mine"
        " join room_state theirs on theirs.room = mine.room and theirs.type = %s and theirs.line = 0"
        "  and theirs.until_version is null and theirs.membership = 1 and theirs.state_key = any(%s::int[])"
        " where mine.state_key = %s and mine.line = 0 and mine.until_version is null and mine.membership = 1",
        (strings.MEMBER, list(names), own),
    )
    return {names[number] for (number,) in rows}


async def sharing_changes(tx: Tx, user_id: UserID, after: int, upto: int) -> tuple[set[UserID], set[UserID]]:
    """Who may have begun to share a room with `user_id` in positions (after, upto] and does, and who no longer does."""
    here = await memberships.rooms_of(tx, user_id, (Membership.JOIN, Membership.LEAVE, Membership.BAN))
    joined = {room for room, (membership, _) in here.items() if membership is Membership.JOIN}
    left = {room for room, (membership, at) in here.items() if membership is not Membership.JOIN and after < at <= upto}
    entered = {room for room in joined if after < here[room][1]}
    entered -= await memberships.joined_throughout(tx, user_id, list(entered), after)
    came: set[UserID] = set()
    went: set[UserID] = set()
    for member, membership in await _member_events(tx, [*joined, *left], after, upto):
        (came if membership is Membership.JOIN else went).add(member)
    came |= {member for _, member in await memberships.members_of(tx, list(entered), (Membership.JOIN,))}
    went |= {member for _, member in await memberships.members_of(tx, list(left), (Membership.JOIN,))}
    sharing = await still_sharing(tx, user_id, (came | went) - {user_id})
    return came & sharing, went - sharing - {user_id}


async def _member_events(tx: Tx, rooms: Sequence[int], after: int, upto: int) -> list[tuple[UserID, Membership]]:
    rows = await tx.fetch(
        "select strings.value, room_state.membership from events join room_state on room_state.room = events.room"
        "  and room_state.type = events.type and room_state.state_key = events.state_key and room_state.line = 0"
        "  and room_state.event = events.position"
        " join strings on strings.id = events.state_key"
        " where events.room = any(%s::int[]) and events.position > %s and events.position <= %s and events.type = %s"
        "  and room_state.membership = any(%s::smallint[])",
        (list(rooms), after, upto, strings.MEMBER, [int(Membership.JOIN), int(Membership.LEAVE), int(Membership.BAN)]),
    )
    return [(UserID(member), Membership(membership)) for member, membership in rows]


async def delete_superseded(tx: Tx, after: int, upto: int) -> int:
    """Delete changes that one in positions (after, upto] repeats; how many. Any token still finds the later one."""
    return await tx.execute(
        "delete from device_list_changes old using device_list_changes new"
        " where new.position > %s and new.position <= %s and old.user_id = new.user_id and old.position < new.position"
        " and new.seen_by is not distinct from old.seen_by and new.device_ids = old.device_ids",
        (after, upto),
    )


async def stream_ids_of(tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, int]:
    """What other servers call the newest change of each user's devices (`stream_id`); missing where there is none."""
    rows = await tx.fetch(
        "select user_id, max(position) from device_list_changes"
        " where user_id = any(%s::text[]) and seen_by is null and device_ids <> '{}' group by user_id",
        (list(user_ids),),
    )
    return {UserID(user_id): position for user_id, position in rows}


async def newest_changes(tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, tuple[int, Sequence[DeviceID]]]:
    """The newest `stream_id` of each user, with the devices that changed then."""
    rows = await tx.fetch(
        "select distinct on (user_id) user_id, position, device_ids from device_list_changes"
        " where user_id = any(%s::text[]) and seen_by is null and device_ids <> '{}' order by user_id, position desc",
        (list(user_ids),),
    )
    return {UserID(user_id): (position, tuple(device_ids)) for user_id, position, device_ids in rows}


async def previous_stream_ids(tx: Tx, changes: Sequence[tuple[UserID, int]]) -> dict[tuple[UserID, int], int]:
    """For each (user, `stream_id`) the one before it, where there is one that still counts."""
    rows = await tx.fetch(
        "select given.user_id, given.position, max(before.position)"
        " from unnest(%s::text[], %s::bigint[]) as given (user_id, position)"
        " join device_list_changes before on before.user_id = given.user_id and before.position < given.position"
        "  and before.seen_by is null and before.device_ids <> '{}' group by given.user_id, given.position",
        ([user_id for user_id, _ in changes], [position for _, position in changes]),
    )
    return {(UserID(user_id), position): previous for user_id, position, previous in rows}
