"""A user's settings of a room, carried over to the room that replaces it ("Room Upgrades", server behaviour).

Tags, push rules for the room, and its place among direct chats; what the user has set for the new room stays.
"""

from typing import Any

import orjson

from federation.protocol.types import JsonObject, UserID
from homeserver.services.account_data import TAGS
from homeserver.services.push import PUSH_RULES
from storage import account_data
from storage.account_data import AccountDataChanged
from storage.database import Database, Tx
from storage.log import Log
from storage.log_entries import Entry
from storage.rooms import Room

DIRECT = "m.direct"


class RoomSettings:
    """Copies settings from room to room."""

    def __init__(self, database: Database, log: Log) -> None:
        self._database = database
        self._log = log

    async def carry_over(self, user_id: UserID, old: Room, new: Room) -> None:
        """Give the user's settings of one room to another, too; all devices hear of it."""
        async with self._database.read() as tx:
            if not await _changes(tx, user_id, old, new):
                return
        entry = Entry(width=3)

        async def work(tx: Tx) -> None:
            for change in await _changes(tx, user_id, old, new):
                await account_data.write(tx, change)
                entry.changes.append(change)

        entry.work = work
        await self._log.append(entry)


async def _changes(tx: Tx, user_id: UserID, old: Room, new: Room) -> list[AccountDataChanged]:
    """What is to be written, at most one of each kind."""
    changes: list[AccountDataChanged] = []
    tags = await account_data.find(tx, user_id, old.number, TAGS)
    if tags is not None and await account_data.find(tx, user_id, new.number, TAGS) is None:
        changes.append(AccountDataChanged(user_id, new.number, TAGS, tags))
    for name, edit in ((PUSH_RULES, with_push_rules), (DIRECT, with_direct_chat)):
        content = await account_data.find(tx, user_id, None, name)
        if content is not None:
            before = orjson.loads(content)
            after = edit(before, old.room_id, new.room_id)
            if after != before:
                changes.append(AccountDataChanged(user_id, None, name, orjson.dumps(after)))
    return changes


def with_push_rules(stored: JsonObject, old: str, new: str) -> JsonObject:
    """The stored rules, those named after the old room also for the new one."""
    result = dict(stored)
    for kind in ("override", "room"):
        rules = stored.get(kind, [])
        found = next((rule for rule in rules if rule.get("rule_id") == old), None)
        if found is None or any(rule.get("rule_id") == new for rule in rules):
            continue
        copy: dict[str, Any] = {**found, "rule_id": new}
        if "conditions" in found:
            copy["conditions"] = [
                {**condition, "pattern": new} if condition.get("pattern") == old else condition
                for condition in found["conditions"]
            ]
        result[kind] = [copy, *rules]
    return result


def with_direct_chat(stored: JsonObject, old: str, new: str) -> JsonObject:
    """`m.direct`, with the new room wherever the old one is listed."""
    return {user_id: _with_room(room_ids, old, new) for user_id, room_ids in stored.items()}


def _with_room(room_ids: object, old: str, new: str) -> object:
    if not isinstance(room_ids, list) or old not in room_ids or new in room_ids:
        return room_ids
    return [*room_ids, new]
