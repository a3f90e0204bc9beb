"""What a new event adds to unread counts, decided before it is appended (`docs/how-it-works.md`).

Everybody with the default rules whom an event does not name counts it alike, so the room's running count serves them
all. Rows are made only for those whom it names, and for local members with rules of their own or who ignore somebody;
who these are, and in which rooms, is kept in memory by following the log.
"""

import asyncio
import logging
from collections.abc import Collection

from federation.protocol.errors import Unavailable
from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import VerifiedPDU
from federation.protocol.power_levels import PowerLevels
from federation.protocol.types import ServerName, UserID
from federation.rooms.counting import NOT_COUNTED, Counted
from homeserver.services.account_data import IGNORED_USERS, ignored_in
from homeserver.services.push import PUSH_RULES, build_ruleset
from homeserver.services.push_conditions import MAX_EFFORT, Situation
from homeserver.services.push_counting import Counts, default_outcome, mentioned_users
from homeserver.services.push_rules import Ruleset
from storage import account_data, memberships
from storage.account_data import AccountDataChanged
from storage.append_events import RoomEvents
from storage.database import Database
from storage.log_entries import Change
from storage.memberships import Membership
from storage.rooms import Room
from storage.unread import PersonalCount

logger = logging.getLogger(__name__)

MAX_NAMED = 500
"""Users whom one event may name with an effect."""
TOTAL_EFFORT = 100_000
"""For all patterns of all members of a room on one event (`push_patterns.py`), some tens of milliseconds: it is counted
in the event loop, for each message of whoever sends many."""
LEAST_EFFORT = 2_000
"""Each member's rules may cost this much, which is enough for dozens of them on an ordinary message."""


class EventCounter:
    """Counts events for the writer; a view of the tail."""

    def __init__(self, database: Database, server_name: ServerName) -> None:
        self._database = database
        self._server_name = server_name
        self._rulesets: dict[UserID, Ruleset] = {}
        self._ignored: dict[UserID, frozenset[UserID]] = {}
        self._rooms: dict[UserID, set[int]] = {}
        self._special_in: dict[int, set[UserID]] = {}
        self._unplaced: set[UserID] = set()
        self._has_unplaced = asyncio.Event()
        self._placing = asyncio.Lock()

    async def start(self) -> None:
        """Learn who has rules of their own, or ignores somebody, and which rooms they are in."""
        async with self._database.read() as tx:
            rules = await account_data.all_of_type(tx, PUSH_RULES)
            ignored = await account_data.all_of_type(tx, IGNORED_USERS)
        for user_id, content in rules.items():
            self._rulesets[user_id] = build_ruleset(user_id, content)
        for user_id, content in ignored.items():
            self._ignored[user_id] = ignored_in(content)
        await self._load_rooms({*self._rulesets, *self._ignored})

    async def follow(self, user_id: UserID) -> None:
        """Learn which rooms a user is in whose rules, or list of ignored users, just ceased to be the default."""
        if user_id not in self._rooms and (user_id in self._rulesets or user_id in self._ignored):
            await self._load_rooms([user_id])

    async def run(self) -> None:
        """Place users whom other processes made special, until cancelled."""
        while True:
            await self._has_unplaced.wait()
            self._has_unplaced.clear()
            try:
                await self.settle()
            except Unavailable:  # logged where it arose
                self._has_unplaced.set()
                await asyncio.sleep(1)

    async def settle(self) -> None:
        """Know the rooms of all of whom the log has told that they are special; raises Unavailable."""
        while self._unplaced:
            async with self._placing:
                users = set(self._unplaced)
                try:
                    await self._load_rooms(users - self._rooms.keys())
                except Unavailable:
                    raise
                except Exception:
                    logger.exception("users with rules of their own could not be placed")
                self._unplaced -= users

    async def _load_rooms(self, user_ids: Collection[UserID]) -> None:
        async with self._database.read() as tx:
            found = await memberships.joined_rooms_of_many(tx, user_ids)
        for user_id in user_ids:
            known = self._rooms.setdefault(user_id, set())
            known.update(found.get(user_id, ()))
            for room in known:
                self._special_in.setdefault(room, set()).add(user_id)

    def apply(self, _position: int, change: Change) -> None:
        """Follow the log."""
        if isinstance(change, RoomEvents):
            for entry in change.trunk:
                if entry.type == "m.room.member" and entry.state_key in self._rooms:
                    self._move(UserID(entry.state_key), change.room.number, entry.membership)
        elif isinstance(change, AccountDataChanged) and change.room is None:
            if change.type == PUSH_RULES:
                self._rulesets[change.user_id] = build_ruleset(change.user_id, change.content or None)
            elif change.type == IGNORED_USERS:
                self._ignored[change.user_id] = ignored_in(change.content or None)
            else:
                return
            if change.user_id not in self._rooms:
                self._unplaced.add(change.user_id)
                self._has_unplaced.set()

    def _move(self, user_id: UserID, room: int, membership: Membership | None) -> None:
        if membership is Membership.JOIN:
            self._rooms[user_id].add(room)
            self._special_in.setdefault(room, set()).add(user_id)
        else:
            self._rooms[user_id].discard(room)
            self._special_in.get(room, set()).discard(user_id)

    def count(self, room: Room, pdu: VerifiedPDU, power_levels: PowerLevels | None, member_count: int) -> Counted:
        """What the event adds to the unread counts of the room's local members."""
        event = pdu.json
        sender_level = None if power_levels is None else power_levels.of_user(pdu.sender)

        def may_notify(key: str) -> bool:
            return (
                power_levels is not None and sender_level is not None and sender_level >= power_levels.notification(key)
            )

        everybody = default_outcome(event, may_notify_room="m.mentions" in pdu.content and may_notify("room"))
        special = self._special_in.get(room.number)
        if not special and "m.mentions" not in pdu.content:
            return Counted(everybody.notify, everybody.highlight) if everybody.notify else NOT_COUNTED
        own: dict[UserID, Counts] = {}
        for user_id in sorted(mentioned_users(event))[:MAX_NAMED]:
            if user_id != pdu.sender and _server_name_of(user_id) == self._server_name:
                own[user_id] = Counts(True, True)
        if special:
            effort = min(MAX_EFFORT, max(LEAST_EFFORT, TOTAL_EFFORT // len(special)))
            situation = Situation({**event, "room_id": room.room_id}, member_count, may_notify, max_effort=effort)
            for user_id in special:
                if user_id != pdu.sender:
                    default = own.get(user_id, everybody)
                    own[user_id] = self._evaluate(user_id, pdu.sender, room, situation, default)
        return Counted(
            everybody.notify,
            everybody.highlight,
            [
                PersonalCount(
                    user_id=user_id,
                    notify=counts.notify - everybody.notify,
                    highlight=counts.highlight - everybody.highlight,
                )
                for user_id, counts in own.items()
                if counts != everybody
            ],
        )

    def _evaluate(self, user_id: UserID, sender: UserID, room: Room, situation: Situation, default: Counts) -> Counts:
        if sender in self._ignored.get(user_id, ()):
            return Counts(False, False)
        ruleset = self._rulesets.get(user_id)
        if ruleset is None or not ruleset.differs_in(room.room_id):
            return default
        return Counts(*ruleset.evaluate(situation).counts)


def _server_name_of(user_id: UserID) -> ServerName | None:
    return server_name_of(user_id) if ":" in user_id else None
