"""Who is told of what is new, by push: a follower of the log for each shard of users (`docs/how-it-works.md`).

For each event it looks at those members of its room who have pushers, whose rules decide; what gateways are to be told
is written to the table `pushes` with the move of the cursor, so exactly once, and handed to `push_delivery.py`. Events
that clients are not shown are never told, nor is history that was fetched, which is no news to the log.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import orjson
from msgspec import Struct

from federation.protocol.types import EventID, JsonObject, UserID
from federation.rooms.notices import Notice, RoomFacts
from federation.rooms.reader import RoomReader
from homeserver.followers import push_evaluation
from homeserver.followers.push_badges import Badges
from homeserver.followers.push_delivery import PushDelivery
from homeserver.followers.push_evaluation import Recipients
from homeserver.followers.push_recipients import PushRecipients
from homeserver.services import push_gateway
from homeserver.services.account_data import AccountDataService
from homeserver.services.push import PushRuleService
from homeserver.services.push_counting import invited_user
from homeserver.services.push_rules import Outcome
from homeserver.services.receipts import MAIN
from storage import pushes, read_marks
from storage.append_events import RoomEvents
from storage.database import Database, Tx
from storage.followers import Work
from storage.invalidations import Invalidated, Kind
from storage.log_entries import Change
from storage.memberships import Membership
from storage.outside_memberships import OutsideMembership
from storage.pushers import HTTP, Pusher
from storage.pushes import BADGE, Push
from storage.receipts import ReceiptMoved
from storage.room_completeness import RoomCompleteness

GATHERS_SECONDS = 0.05
"""So that what comes at once is looked at together, and what is read at once is never told."""
MAX_TOLD = 5_000
"""Notifications that are kept until the cursor moves; where there are more, they are written before."""


class PushParts(Struct, frozen=True, kw_only=True):
    """What the followers of all shards share."""

    database: Database
    reader: RoomReader
    rules: PushRuleService
    account_data: AccountDataService
    badges: Badges
    delivery: PushDelivery


class _Notification(Struct, frozen=True):
    """An event notifies a user."""

    user_id: UserID
    position: int
    room: int
    thread: str
    outcome: Outcome
    counts: bool
    """Whether it is among the unread events of the user's rooms: not an invite."""


class _ToTell(Struct, frozen=True):
    """What is to be told, and the pushers with a gateway that it is for, by number."""

    pushers: Mapping[int, Pusher]
    pushes: Sequence[Push]

    def hand_to(self, delivery: PushDelivery) -> None:
        """It is written: have gateways told."""
        delivery.add(self.pushers, [push for push in self.pushes if push.pusher in self.pushers])


def name_of(shard: int) -> str:
    """What the follower of a shard is called."""
    return f"push/{shard}"


class PushFollower:
    """Follows the log for the users of one shard."""

    kinds: Collection[type[Change]] = (Invalidated, ReceiptMoved, OutsideMembership, RoomCompleteness, RoomEvents)
    gathers_seconds = GATHERS_SECONDS

    def __init__(self, shard: int, parts: PushParts) -> None:
        self.name = name_of(shard)
        self._shard = shard
        self._database = parts.database
        self._reader = parts.reader
        self._rules = parts.rules
        self._account_data = parts.account_data
        self._badges = parts.badges
        self._delivery = parts.delivery
        self._recipients = PushRecipients(parts.database, shard)

    async def begin(self, _position: int) -> None:
        """As `storage.followers.Follower` says."""
        await self._recipients.begin()
        for user_id in self._recipients.users:
            self._badges.forget(user_id)
        await self._delivery.resume(self._shard)

    async def act(self, changes: Sequence[tuple[int, Change]], _upto: int) -> Work | None:
        """Look who is to be told, and hand out what is to be told of these changes."""
        await self._follow_pushers([change for _, change in changes if isinstance(change, Invalidated)])
        if not self._recipients.users:
            return None
        have_read = await self._follow_reading(changes)
        new = await self._look(changes, have_read)
        for _, change in changes:
            if isinstance(change, RoomCompleteness):
                self._recipients.forget_room(change.room)
        self._recipients.drop_oldest()
        return self._writing(new) if new.pushes else None

    async def _look(self, changes: Sequence[tuple[int, Change]], have_read: Collection[UserID]) -> _ToTell:
        found = [(at, change) for at, change in changes if isinstance(change, RoomEvents | OutsideMembership)]
        if have_read or any(self._concerns_us(change) for _, change in found):
            async with self._database.read() as tx:
                return await self._to_tell(tx, await self._look_at(tx, found), have_read)
        for _, change in found:
            if isinstance(change, RoomEvents):
                self._recipients.apply(change)
        return _ToTell({}, [])

    def _concerns_us(self, change: RoomEvents | OutsideMembership) -> bool:
        """Whether anybody of ours may be told of it: not so in a room of which it is known that nobody may."""
        users = self._recipients.users
        if isinstance(change, OutsideMembership):
            return change.user_id in users
        return (
            not self._recipients.knows_of_nobody(change.room.number)
            or any(user_id in users for user_id in change.users)
            or any(entry.state_key in users for entry in change.trunk)
        )

    def _writing(self, new: _ToTell) -> Work:
        async def work(tx: Tx) -> Callable[[], None]:
            await pushes.insert(tx, new.pushes)
            return lambda: new.hand_to(self._delivery)

        return work

    # --- what changes who is told

    async def _follow_pushers(self, invalidated: Sequence[Invalidated]) -> None:
        changed = {
            change.user_id
            for change in invalidated
            if (change.kind_of is Kind.PUSHERS and (not change.user_id or self._is_ours(change.user_id)))
            or (change.kind_of is Kind.SESSIONS and self._may_change(change))
        }
        if changed:
            for user_id in await self._recipients.look_again(changed):
                self._badges.note_told(user_id, 0)
            for user_id in changed:
                self._delivery.look_again(user_id)

    def _may_change(self, change: Invalidated) -> bool:
        """Whether a device may have ended that has a pusher, or the user be locked out, or let in again."""
        return change.user_id in self._recipients.users or (not change.detail and self._is_ours(change.user_id))

    def _is_ours(self, user_id: UserID) -> bool:
        return pushes.shard_of(user_id) == self._shard

    async def _follow_reading(self, changes: Sequence[tuple[int, Change]]) -> set[UserID]:
        """Those who read something, so that they need not be told of it, and maybe of another count."""
        users, have_read = self._recipients.users, set[UserID]()
        for _, change in changes:
            if isinstance(change, ReceiptMoved):
                if change.user_id in users:
                    have_read.add(change.user_id)
                    await self._delivery.drop_read(change.user_id, change.room, change.thread, change.event)
            elif isinstance(change, RoomEvents):
                if change.redacted:
                    self._delivery.forget_notices(change.room.number, change.redacted)
                for event in change.visible:
                    if event.sender in users:  # whoever sends has read what came before
                        have_read.add(event.sender)
                        thread = MAIN if event.thread is None else event.thread
                        await self._delivery.drop_read(event.sender, change.room.number, thread, event.position)
                for entry in change.trunk:
                    if entry.membership not in (None, Membership.JOIN, Membership.INVITE):
                        await self._note_gone(UserID(entry.state_key), change.room.number, entry.event or 0, have_read)
        for user_id in have_read:
            self._badges.forget(user_id)
        return have_read

    async def _note_gone(self, user_id: UserID, room: int, position: int, have_read: set[UserID]) -> None:
        """Who is no longer in a room is not told of what happened there."""
        if user_id in self._recipients.users:
            have_read.add(user_id)
            await self._delivery.drop_read(user_id, room, "", position)

    # --- who is notified

    async def _look_at(
        self, tx: Tx, found: Sequence[tuple[int, RoomEvents | OutsideMembership]]
    ) -> list[_Notification]:
        """Whom these notify: a fixed number of queries, and more only for events beside their room's trunk."""
        rooms = {change.room.number for _, change in found if isinstance(change, RoomEvents) and change.visible}
        await self._recipients.load(tx, rooms)
        await self._recipients.load_facts(tx, rooms)
        told: list[_Notification] = []
        for position, change in found:
            if isinstance(change, OutsideMembership):
                told.extend(await self._look_at_invite(tx, position, change))
            else:
                told.extend(await self._look_at_events(tx, change))
                self._recipients.apply(change)
            if len(told) >= MAX_TOLD:  # too many to be kept until the cursor moves
                new = await self._to_tell(tx, told, ())
                if new.pushes:
                    await pushes.insert(tx, new.pushes)
                    new.hand_to(self._delivery)
                told = []
        return told

    async def _look_at_events(self, tx: Tx, change: RoomEvents) -> list[_Notification]:
        told: list[_Notification] = []
        room = self._recipients.in_room(change.room.number)
        for event in change.visible:
            if event.redacted_by is not None or not event.is_readable:
                continue
            invited = invited_user(event.json)
            wanted = list(room.members)
            is_invite = invited in self._recipients.users and invited not in room.members
            if invited is not None and is_invite and not await self._account_data.is_blocking_invites(tx, invited):
                wanted.append(invited)
            if not wanted:
                continue
            if room.facts is None:  # somebody has just come
                await self._recipients.load_facts(tx, [change.room.number])
            json = {**event.json, "room_id": change.room.room_id}
            outcomes = await self._evaluate(tx, json, room.facts or RoomFacts(0), wanted)
            doubtful = [
                user_id
                for user_id in outcomes
                if user_id in room.members and (event.line != 0 or room.members[user_id] > event.version)
            ]
            if doubtful:
                kept = await self._reader.told_members(tx, change.room, event, doubtful)
                outcomes = {user: each for user, each in outcomes.items() if user not in doubtful or user in kept}
            thread = MAIN if event.thread is None else event.thread
            told.extend(
                _Notification(user_id, event.position, change.room.number, thread, outcome, user_id in room.members)
                for user_id, outcome in outcomes.items()
            )
            if outcomes:
                self._keep_notice(change.room.number, event.position, event.event_id, json)
        return told

    async def _look_at_invite(self, tx: Tx, position: int, change: OutsideMembership) -> list[_Notification]:
        if change.membership is not Membership.INVITE or change.user_id not in self._recipients.users:
            return []
        json = {**orjson.loads(change.json), "room_id": change.room_id}
        outcomes = await self._evaluate(tx, json, RoomFacts(0), [change.user_id])
        self._keep_notice(0, position, change.event_id, json)
        return [
            _Notification(user_id, position, 0, MAIN, outcome, counts=False) for user_id, outcome in outcomes.items()
        ]

    async def _evaluate(
        self, tx: Tx, event: JsonObject, facts: RoomFacts, user_ids: Collection[UserID]
    ) -> dict[UserID, Outcome]:
        rulesets = await self._rules.rulesets(tx, user_ids)
        ignored = await self._account_data.ignored_by_many(tx, user_ids)
        return await push_evaluation.notified(event, facts, Recipients(user_ids, rulesets, ignored))

    def _keep_notice(self, room: int, position: int, event_id: EventID, event: JsonObject) -> None:
        notice = Notice(
            event_id=event_id,
            room_id=event["room_id"],
            type=event["type"],
            sender=event["sender"],
            is_whole=False,
        )
        self._delivery.keep_notice(room, position, notice)

    # --- what is told

    async def _to_tell(self, tx: Tx, told: Sequence[_Notification], have_read: Collection[UserID]) -> _ToTell:
        """What gateways are to be told."""
        users = {each.user_id for each in told}
        marks = await read_marks.of_users_in(tx, users, {each.room for each in told}) if users else {}
        told = [
            each for each in told if not read_marks.is_read(marks, each.user_id, each.room, each.thread, each.position)
        ]
        for each in told:
            if each.counts:
                self._badges.add(each.user_id, each.position)
        users = {each.user_id for each in told}
        of_users = await self._recipients.pushers_of(tx, {*users, *have_read})
        wanting = {user_id: _usable(of_user) for user_id, of_user in of_users.items()}
        with_gateway = [user_id for user_id, usable in wanting.items() if any(each.kind == HTTP for each in usable)]
        counts = await self._badges.load(tx, with_gateway)
        now_ts = self._database.now_ms()
        owned: dict[int, Pusher] = {}
        new: list[Push] = []
        for each in told:
            tweaks = push_evaluation.tweaks_of(each.outcome)
            for pusher in wanting[each.user_id]:
                if pusher.kind == HTTP:  # others are told by mail, later
                    owned[pusher.number] = pusher
                new.append(
                    Push(
                        pusher=pusher.number,
                        position=each.position,
                        room=each.room,
                        shard=self._shard,
                        thread=each.thread,
                        tweaks=tweaks,
                        created_ts=now_ts,
                    )
                )
        for user_id in have_read:
            told_before = self._badges.told(user_id)
            is_less = user_id in counts and (told_before is None or counts[user_id] < told_before)
            if user_id in users or not is_less:  # what makes it more is told by itself
                continue
            for pusher in wanting[user_id]:
                if pusher.kind == HTTP and push_gateway.wants_badge(pusher):
                    owned[pusher.number] = pusher
                    new.append(_badge(pusher, self._shard, now_ts))
        return _ToTell(owned, new)


def _usable(of_user: Sequence[Pusher]) -> list[Pusher]:
    return [pusher for pusher in of_user if pusher.is_enabled]


def _badge(pusher: Pusher, shard: int, now_ts: int) -> Push:
    return Push(pusher=pusher.number, position=BADGE, room=0, shard=shard, thread=MAIN, tweaks="{}", created_ts=now_ts)
