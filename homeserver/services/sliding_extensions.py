"""What a sliding sync tells besides rooms: messages to the device, keys, account data, receipts, who types (MSC3884,
MSC3885, MSC3959, MSC3960, MSC3961), and which threads the user follows (MSC4308).

Each room is told of from where the client has it: one that is new to it, or for which the extension was not wanted
before, from the beginning.
"""

from collections.abc import Iterable
from typing import Any

import orjson
from msgspec import Struct, field

from federation.protocol.types import JsonObject, RoomID, UserID
from federation.rooms.incomplete_rooms import IncompleteRooms
from homeserver.services.account_data import AccountDataService, client_event, with_push_rules
from homeserver.services.receipts import receipt_events
from homeserver.services.requester import Requester
from homeserver.services.sliding_connections import (
    ACCOUNT_DATA,
    OWN_DATA,
    OWN_THREADS,
    RECEIPTS,
    TYPING,
    RoomKey,
    SentRoom,
)
from homeserver.services.sliding_lists import Arranged, SlidingMoment
from homeserver.services.sliding_receipts import receipts_since
from homeserver.services.sliding_request import SlidingRequest
from homeserver.services.sliding_rooms import RoomsPart
from homeserver.services.thread_subscriptions import ThreadSubscriptionService
from storage import account_data, device_lists, memberships, receipts, send_to_device
from storage.account_data import AccountDataChanged
from storage.append_events import RoomEvents
from storage.database import Database
from storage.device_lists import DeviceListChanged
from storage.end_to_end_keys import KeyCountCache
from storage.ephemeral import Typing
from storage.invalidations import Invalidated, Kind
from storage.log_entries import Change
from storage.memberships import Membership
from storage.receipts import ReceiptMoved
from storage.tail import Tail
from storage.thread_subscriptions import ThreadSubscription

THREADS = "io.element.msc4308.thread_subscriptions"
NEWEST_RECEIPTS = 200
"""Of a room whose timeline the client had before it asked for receipts."""
ALL = -1
"""Before every place in the log."""


class ExtensionsPart(Struct):
    """The extensions of an answer."""

    told: JsonObject = field(default_factory=dict)
    has_news: bool = False
    to_device_from: int | None = None
    """After this position there is nothing for the device; None where more may be there."""


class DeviceLists(Struct):
    """Whose devices changed, and who no longer shares a room with the user."""

    changed: set[UserID] = field(default_factory=set)
    left: set[UserID] = field(default_factory=set)


class ExtensionSources(Struct, frozen=True, kw_only=True):
    """Where extensions come from."""

    account_data: AccountDataService
    key_counts: KeyCountCache
    typing: Typing
    threads: ThreadSubscriptionService


class SlidingExtensions:
    """Tells of all that is no room."""

    def __init__(
        self,
        database: Database,
        tail: Tail,
        incomplete: IncompleteRooms,
        sources: ExtensionSources,
    ) -> None:
        self._database = database
        self._tail = tail
        self._incomplete = incomplete
        self._account_data = sources.account_data
        self._key_counts = sources.key_counts
        self._typing = sources.typing
        self._threads = sources.threads

    async def collect(
        self,
        request: SlidingRequest,
        moment: SlidingMoment,
        arranged: Arranged,
        rooms: RoomsPart,
        to_device_since: int,
    ) -> ExtensionsPart:
        """What is new of the extensions that are wanted. Adds to what the client will have, in `rooms`."""
        part, wanted = ExtensionsPart(), request.wanted.extensions
        if wanted.to_device is not None:
            await self._to_device(request.requester, moment, part, to_device_since, wanted.to_device)
        if wanted.e2ee:
            await self._e2ee(request.requester, moment, part)
        if wanted.account_data is not None:
            await self._tell_account_data(moment, arranged, rooms, part)
        else:
            self._put_aside(moment, rooms, OWN_DATA)
        if wanted.threads is not None:
            await self._tell_threads(moment, rooms, part, wanted.threads)
        else:
            self._put_aside(moment, rooms, OWN_THREADS)
        if wanted.receipts is not None:
            self._tell(part, "receipts", await self._receipts(moment, arranged, rooms))
        if wanted.typing is not None:
            self._tell(part, "typing", self._typists(moment, arranged, rooms))
        return part

    async def nothing(self, request: SlidingRequest, to_device_since: int) -> JsonObject:
        """What is told where nothing is new."""
        told: JsonObject = {}
        if request.wanted.extensions.to_device is not None:
            told["to_device"] = {"next_batch": str(to_device_since), "events": []}
        if request.wanted.extensions.e2ee:
            told["e2ee"] = await self._counts(request.requester)
        return told

    def _tell(self, part: ExtensionsPart, name: str, told: JsonObject) -> None:
        if told:
            part.told[name] = {"rooms": told}
            part.has_news = True

    def _put_aside(self, moment: SlidingMoment, rooms: RoomsPart, key: RoomKey) -> None:
        """What is not wanted for now stays as it is."""
        if (sent := moment.sent.get(key)) is not None:
            rooms.state[key] = SentRoom(self._place(moment, sent))

    def _place(self, moment: SlidingMoment, sent: SentRoom | None) -> int:
        """Up to where the client has a room."""
        if sent is None or moment.since is None:
            return ALL
        return moment.since.position if sent.upto is None else sent.upto

    def _places(self, moment: SlidingMoment, rooms: RoomsPart, flag: int) -> dict[int, int]:
        """The rooms for which an extension is wanted, and up to where the client has it of them."""
        places: dict[int, int] = {}
        for key, sent in rooms.state.items():
            if isinstance(key, int) and key in rooms.known and sent.flags & flag:
                before = moment.sent.get(key)
                has_it = before is not None and before.flags & flag and key not in rooms.fresh
                places[key] = self._place(moment, before) if has_it else ALL
        return places

    # --- of the device

    async def _to_device(
        self, requester: Requester, moment: SlidingMoment, part: ExtensionsPart, since: int, limit: int
    ) -> None:
        if requester.device is None:
            return
        upto = moment.upto.position
        found = None
        if since >= self._tail.floor and since >= moment.view.listener.known_from:
            changes = self._tail.for_user(moment.view.user_id, since)
            found = send_to_device.from_window(changes, requester.device, upto=upto, limit=limit)
        if found is None:
            async with self._database.read() as tx:
                events, last = await send_to_device.pending(tx, requester.device, since, upto, limit=limit)
        else:
            events, last = found[0], found[1] or upto
        if events:
            part.has_news = True
            moment.view.delivered[requester.device] = last
            # The client shows by the next `since` that it has them: what it is to send again must not move by itself.
            part.told["to_device"] = {"next_batch": str(last), "events": [orjson.Fragment(event) for event in events]}
        else:
            part.to_device_from = since
            part.told["to_device"] = {"next_batch": str(since), "events": []}

    async def _e2ee(self, requester: Requester, moment: SlidingMoment, part: ExtensionsPart) -> None:
        told = await self._counts(requester)
        if moment.since is not None:
            lists = await self._device_lists(moment, moment.since.position)
            if lists.changed or lists.left:
                told["device_lists"] = {"changed": sorted(lists.changed), "left": sorted(lists.left)}
                part.has_news = True
            part.has_news |= self._are_counts_due(requester, moment.since.position)
        part.told["e2ee"] = told

    async def _counts(self, requester: Requester) -> JsonObject:
        if requester.device is None or requester.device_id is None:
            return {}
        counts = await self._key_counts.get(requester.user_id, requester.device_id, requester.device)
        return {
            "device_one_time_keys_count": counts.one_time_keys,
            "device_unused_fallback_key_types": counts.unused_fallback_keys,
        }

    def _are_counts_due(self, requester: Requester, since: int) -> bool:
        """Whether the device's key counts changed, or may have."""
        return since < self._tail.floor or any(
            isinstance(change, Invalidated)
            and change.kind_of is Kind.KEY_COUNTS
            and change.detail == requester.device_id
            for _, change in self._tail.for_user(requester.user_id, since)
        )

    async def _device_lists(self, moment: SlidingMoment, since: int) -> DeviceLists:
        """Of everybody who shares a room with the user, whatever rooms the client follows."""
        found, user_id = DeviceLists(), moment.view.user_id
        joined = [room for room, member in moment.members.items() if member.membership is Membership.JOIN]
        completed = self._incomplete.completed_since(joined, since)
        have_members_changed = True
        if since >= self._tail.floor and since >= moment.view.listener.known_from:
            have_members_changed = _note(found, self._tail.for_user(user_id, since))
            for room in joined:
                if self._tail.last_in_room(room) > since:
                    have_members_changed |= _note(found, self._tail.in_room(room, since))
            if not have_members_changed and not completed:
                return found
        async with self._database.read() as tx:
            if since < self._tail.floor or since < moment.view.listener.known_from:
                found.changed |= await device_lists.changed_between(tx, user_id, since, moment.upto.position)
            came, found.left = await device_lists.sharing_changes(tx, user_id, since, moment.upto.position)
            found.changed |= came - {user_id}
            if completed:
                members = await memberships.members_of(tx, list(completed), (Membership.JOIN,))
                found.changed |= {member for _, member in members} - {user_id}
        found.changed -= found.left
        return found

    # --- account data

    async def _tell_account_data(
        self, moment: SlidingMoment, arranged: Arranged, rooms: RoomsPart, part: ExtensionsPart
    ) -> None:
        known = moment.sent.get(OWN_DATA)
        rooms.state[OWN_DATA] = SentRoom(None)
        places = self._places(moment, rooms, ACCOUNT_DATA)
        upto = moment.upto.position
        changes: list[AccountDataChanged] = []
        of_all = self._place(moment, known)
        if rooms.beside is not None:
            changes = with_push_rules(moment.view.user_id, rooms.beside.account_data)
            places = {}
        elif of_all == ALL:
            unseen = [room for room, at in places.items() if at == ALL]
            async with self._database.read() as tx:
                changes = await self._account_data.of_some(tx, moment.view.user_id, unseen)
            places = {room: at for room, at in places.items() if at != ALL}
        elif of_all < self._tail.floor:
            async with self._database.read() as tx:
                found = await account_data.changed_between(tx, moment.view.user_id, of_all, upto)
            changes = [change for change in found if change.room is None]
        old = {room: at for room, at in places.items() if at < self._tail.floor}
        if old:
            async with self._database.read() as tx:
                found = await account_data.in_rooms(tx, moment.view.user_id, old, upto)
            changes.extend(change for change in found if not (change.is_deleted and old.get(change.room or 0) == ALL))
        recent = {room: at for room, at in places.items() if room not in old}
        lowest = min((*recent.values(), max(of_all, self._tail.floor)))
        is_all_read = of_all == ALL and not recent
        for at, change in () if is_all_read else self._tail.for_user(moment.view.user_id, lowest):
            if isinstance(change, AccountDataChanged) and at <= upto:
                after = of_all if change.room is None else recent.get(change.room, upto)
                if self._tail.floor <= after < at:
                    changes.append(change)
        latest = {(change.room, change.type): change for change in changes}
        if latest:
            part.told["account_data"] = {
                "global": [_fragment(change) for change in latest.values() if change.room is None],
                "rooms": _by_room(rooms, (change for change in latest.values() if change.room is not None)),
            }
            part.has_news = True

    # --- threads

    async def _tell_threads(self, moment: SlidingMoment, rooms: RoomsPart, part: ExtensionsPart, limit: int) -> None:
        """Which threads the user began to follow, or no longer does: the newest, and where to ask for others."""
        after, user_id = self._place(moment, moment.sent.get(OWN_THREADS)), moment.view.user_id
        rooms.state[OWN_THREADS] = SentRoom(None)
        if after >= self._tail.floor and not any(
            isinstance(change, ThreadSubscription) for _, change in self._tail.for_user(user_id, after)
        ):
            return
        async with self._database.read() as tx:
            changes = await self._threads.changes(tx, user_id, after, moment.upto.position, limit=limit)
        if changes.told:
            part.told[THREADS] = changes.told if changes.end is None else {**changes.told, "prev_batch": changes.end}
            part.has_news = True

    # --- what passes

    async def _receipts(self, moment: SlidingMoment, arranged: Arranged, rooms: RoomsPart) -> JsonObject:
        places = {
            room: at
            for room, at in self._places(moment, rooms, RECEIPTS).items()
            if arranged.members[room].membership is Membership.JOIN
        }
        user_id, upto = moment.view.user_id, moment.upto.position
        shown = {room: rooms.shown[room] for room in places if room in rooms.shown}
        unshown = [room for room, at in places.items() if at == ALL and room not in shown]
        moved: list[ReceiptMoved] = []
        if rooms.beside is not None:
            moved, shown = rooms.beside.receipts, {}
        if shown or unshown:
            async with self._database.read() as tx:
                if shown:
                    moved.extend(await receipts.at_events(tx, user_id, shown, upto))
                if unshown:  # the client has their timelines already
                    moved.extend(await receipts.newest_in_rooms(tx, user_id, unshown, upto, limit=NEWEST_RECEIPTS))
        known = {room: at for room, at in places.items() if at != ALL}
        moved.extend(await receipts_since(self._database, self._tail, moment, known))
        of_room: dict[int, dict[Any, ReceiptMoved]] = {}
        for each in moved:
            if each.user_id not in moment.ignored:
                of_room.setdefault(each.room, {})[each.key] = each
        return {
            rooms.known[room].room_id: {"type": "m.receipt", "content": _receipt_content(newest.values())}
            for room, newest in of_room.items()
        }

    def _typists(self, moment: SlidingMoment, arranged: Arranged, rooms: RoomsPart) -> JsonObject:
        told: JsonObject = {}
        since = moment.since
        for room, at in self._places(moment, rooms, TYPING).items():
            if arranged.members[room].membership is not Membership.JOIN:
                continue
            users = [user_id for user_id in self._typing.users_in(room) if user_id not in moment.ignored]
            if since is not None and at == since.position:
                is_news = self._typing.changed_since(room, since.typing)
            else:
                is_news = bool(users) or (at != ALL and self._typing.changed_since(room, 0))
            if is_news:
                told[rooms.known[room].room_id] = {"type": "m.typing", "content": {"user_ids": users}}
        return told


def _note(found: DeviceLists, changes: Iterable[tuple[int, Change]]) -> bool:
    """Note whose devices changed; whether anybody's membership did."""
    have_members_changed = False
    for _, change in changes:
        if isinstance(change, DeviceListChanged):
            found.changed.add(change.user_id)
        elif isinstance(change, RoomEvents):
            have_members_changed |= any(entry.type == "m.room.member" for entry in change.trunk)
    return have_members_changed


def _fragment(change: AccountDataChanged) -> orjson.Fragment:
    return orjson.Fragment(client_event(change))


def _by_room(rooms: RoomsPart, changes: Iterable[AccountDataChanged]) -> dict[RoomID, list[orjson.Fragment]]:
    told: dict[RoomID, list[orjson.Fragment]] = {}
    for change in changes:
        if change.room is not None:
            told.setdefault(rooms.known[change.room].room_id, []).append(_fragment(change))
    return told


def _receipt_content(moved: Iterable[ReceiptMoved]) -> JsonObject:
    """The receipts of a room in one event. Where a user has several at one event, that of no thread counts: it is of
    all of them."""
    content: JsonObject = {}
    for of_thread in receipt_events(sorted(moved, key=lambda receipt: receipt.thread, reverse=True)):
        for event_id, by_type in of_thread["content"].items():
            for receipt_type, by_user in by_type.items():
                content.setdefault(event_id, {}).setdefault(receipt_type, {}).update(by_user)
    return content
