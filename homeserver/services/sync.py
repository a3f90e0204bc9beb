"""`/sync`: what happened since a token, at once or as soon as something does (Client-Server API, "Syncing").

A sync first asks memory whether anything concerns its user at all; only then is an answer put together, from the
tail's window where that reaches back far enough, else from the database. The parts of rooms are made in
`sync_rooms.py`; here are the waiting, the token, and what belongs to no room.
"""

import asyncio
from collections.abc import Collection
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, UserID
from homeserver.services.account_data import AccountDataService, client_event
from homeserver.services.presence import content_of
from homeserver.services.requester import Requester
from homeserver.services.sync_filter import SyncFilter
from homeserver.services.sync_rooms import Moment, RoomSections, SyncRooms
from homeserver.services.sync_sorting import RoomsRequest
from homeserver.services.user_views import UserView, UserViews, without_invites
from homeserver.tokens import StreamToken
from storage import account_data, device_lists, memberships, send_to_device
from storage.account_data import AccountDataChanged
from storage.database import Database
from storage.device_lists import DeviceListChanged
from storage.end_to_end_keys import KeyCountCache
from storage.ephemeral import PresenceBoard, Typing, UserPresence
from storage.invalidations import Invalidated, Kind
from storage.tail import Tail

MAX_TIMEOUT_MS = 600_000
TO_DEVICE_LIMIT = 100


class SyncRequest(Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    requester: Requester
    since: StreamToken | None
    filter: SyncFilter
    timeout_ms: int = 0
    full_state: bool = False
    use_state_after: bool = False
    is_msc4222: bool = False
    """The client knows `state_after` by its unstable name."""


class _Part(Struct):
    """An answer in the making."""

    request: SyncRequest
    view: UserView
    upto: StreamToken
    to_device: list[bytes]
    account_data: list[AccountDataChanged]
    presence: list[UserPresence]
    changed: set[UserID]
    left: set[UserID]
    rooms: RoomSections
    is_due: bool = False
    """The answer may not wait, although it holds no news: key counts changed, or may have."""


class SyncSources(Struct, frozen=True, kw_only=True):
    """Where the parts of an answer come from."""

    rooms: SyncRooms
    account_data: AccountDataService
    key_counts: KeyCountCache
    typing: Typing
    presence: PresenceBoard


class SyncService:
    """Answers syncs."""

    def __init__(self, database: Database, tail: Tail, views: UserViews, sources: SyncSources) -> None:
        self._database = database
        self._tail = tail
        self._views = views
        self._rooms = sources.rooms
        self._account_data = sources.account_data
        self._key_counts = sources.key_counts
        self._typing = sources.typing
        self._presence = sources.presence

    async def sync(self, request: SyncRequest) -> bytes:
        """The answer, as soon as it holds anything, or when the time is up."""
        since = request.since
        if since is not None and since.position > self._tail.position:
            await self._tail.catch_up(since.position)
            if since.position > self._tail.position:
                raise InvalidInput("This token is from another server, or from before this one lost its database")
        view = await self._views.get(request.requester.user_id)
        if view.presence_from < 0:
            view.presence_from = self._presence.serial
        if since is not None:
            self._typing.lift(since.typing)
            self._presence.lift(since.presence)
        if since is None or request.full_state:
            return await self._answer(await self._collect(request, view))
        await self._delete_received(request, since)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(request.timeout_ms, MAX_TIMEOUT_MS) / 1000
        looked_at = since
        while True:
            if self._concerns(view, looked_at):
                part = await self._collect(request, view)
                if _has_news(part):
                    return await self._answer(part)
                looked_at = part.upto
            remaining = deadline - loop.time()
            is_quiet = not self._concerns(view, looked_at)
            if remaining <= 0 or self._tail.is_closing:
                # The token of who is not concerned moves along, so that it does not fall out of the window.
                return await self._answer(self._nothing(request, view, self._now(since) if is_quiet else looked_at))
            if is_quiet:
                await view.listener.wait(remaining)

    def _concerns(self, view: UserView, seen: StreamToken) -> bool:
        """Whether anything may have come for the user after `seen`: from memory alone."""
        listener = view.listener
        if (
            seen.position < listener.known_from
            or listener.concerned_at > seen.position
            or seen.to_device < seen.position
        ):
            return True
        if self._typing.serial > seen.typing and self._typing.rooms_changed_since(view.listener.rooms, seen.typing):
            return True
        return self._presence.told > seen.presence and (
            seen.presence < view.presence_from or any(serial > seen.presence for serial in listener.presence.values())
        )

    def _now(self, since: StreamToken | None) -> StreamToken:
        """Up to where this process knows of everything, or another that `since` comes from."""
        position = self._tail.position
        typing, presence = (0, 0) if since is None else (since.typing, since.presence)
        return StreamToken(position, position, max(self._typing.serial, typing), max(self._presence.told, presence))

    def _nothing(self, request: SyncRequest, view: UserView, upto: StreamToken) -> _Part:
        return _Part(request, view, upto, [], [], [], set(), set(), RoomSections())

    # --- collecting

    async def _collect(self, request: SyncRequest, view: UserView) -> _Part:
        """Everything after the request's token, up to now; what is much, for a few requests of a user at a time."""
        since = request.since
        if since is not None and not request.full_state and since.position >= self._tail.floor:
            return await self._collect_now(request, view)
        async with view.large_syncs:
            return await self._collect_now(request, view)

    async def _collect_now(self, request: SyncRequest, view: UserView) -> _Part:
        ignored = await self._ignored(view.user_id)
        # From one moment, without waiting between: how far the log is read, and the user's rooms there.
        since = request.since
        part, members, outside = self._nothing(request, view, self._now(since)), dict(view.rooms), dict(view.outside)
        if await self._account_data.hides_invites(view.user_id, members, outside):
            members, outside = without_invites(members), without_invites(outside)
        if since is None:
            await self._collect_first(part)
        else:
            await self._collect_account_data(part, since)
            await self._collect_presence(part, since)
        await self._collect_to_device(part, since)
        moment = Moment(
            view=view,
            upto=part.upto,
            members=members,
            outside=outside,
            ignored=ignored,
            changed_data=part.account_data,
        )
        part.rooms = await self._rooms.collect(_rooms_request(request), moment)
        if since is not None:
            await self._collect_device_lists(part, since)
        part.account_data = [
            change
            for change in part.account_data
            if change.room is None and request.filter.account_data.allows(change.type)
        ]
        return part

    async def _ignored(self, user_id: UserID) -> frozenset[UserID]:
        known = self._account_data.known_ignored_users(user_id)
        if known is not None:
            return known
        async with self._database.read() as tx:
            return await self._account_data.ignored_users(tx, user_id)

    async def _collect_first(self, part: _Part) -> None:
        async with self._database.read() as tx:
            part.account_data = await self._account_data.all_of(tx, part.view.user_id)
            if self._presence.serial:
                sharing = await memberships.users_sharing_rooms(tx, part.view.user_id)
                part.presence = self._presence.changed_since(0, sharing)

    async def _collect_account_data(self, part: _Part, since: StreamToken) -> None:
        user_id = part.view.user_id
        if since.position >= self._tail.floor:
            latest: dict[tuple[int | None, str], AccountDataChanged] = {}
            device_id = part.request.requester.device_id
            for _, change in self._tail.for_user(user_id, since.position):
                if isinstance(change, AccountDataChanged):
                    latest[change.room, change.type] = change
                elif isinstance(change, Invalidated) and change.kind_of is Kind.KEY_COUNTS:
                    part.is_due |= change.detail == device_id
            part.account_data = list(latest.values())
        else:
            async with self._database.read() as tx:
                part.account_data = await account_data.changed_between(tx, user_id, since.position, part.upto.position)
            part.is_due = True

    async def _collect_presence(self, part: _Part, since: StreamToken) -> None:
        if since.presence < part.view.presence_from and self._presence.told > since.presence:
            async with self._database.read() as tx:
                sharing = await memberships.users_sharing_rooms(tx, part.view.user_id)
            part.presence = self._presence.changed_since(since.presence, sharing)
            return
        listener = part.view.listener
        wanted = [user_id for user_id, serial in listener.presence.items() if serial > since.presence]
        if wanted:
            part.presence = self._presence.changed_since(since.presence, wanted)

    async def _collect_to_device(self, part: _Part, since: StreamToken | None) -> None:
        device = part.request.requester.device
        if device is None:
            return
        after = 0 if since is None else since.to_device
        if since is not None and after >= self._tail.floor and after >= part.view.listener.known_from:
            found = send_to_device.from_window(
                self._tail.for_user(part.view.user_id, after),
                device,
                upto=part.upto.position,
                limit=TO_DEVICE_LIMIT,
            )
            if found is not None:
                part.to_device = found[0]
                if part.to_device:
                    part.view.delivered[device] = part.upto.to_device
                return
        async with self._database.read() as tx:
            part.to_device, last = await send_to_device.pending(
                tx, device, after, part.upto.position, limit=TO_DEVICE_LIMIT
            )
        part.upto = replace(part.upto, to_device=last)
        if part.to_device:
            part.view.delivered[device] = last

    async def _delete_received(self, request: SyncRequest, since: StreamToken) -> None:
        """A token proves that what was handed out before it has arrived."""
        view = await self._views.get(request.requester.user_id)
        device = request.requester.device
        if device is None:
            return
        delivered = view.delivered.get(device, 0)  # 0: this process does not know what was handed out
        if delivered is None or delivered > since.to_device:
            return
        async with self._database.read() as tx:
            await send_to_device.delete_upto(tx, device, since.to_device)
        view.delivered[device] = None

    async def _collect_device_lists(self, part: _Part, since: StreamToken) -> None:
        """Whose devices changed, who now shares a room, and who no longer does."""
        view = part.view
        if since.position >= self._tail.floor:
            seen: set[int] = set()
            for room in view.joined():
                if room not in part.rooms.entered and self._tail.last_in_room(room) > since.position:
                    _note_changed(part, self._tail.in_room(room, since.position), seen)
            _note_changed(part, self._tail.for_user(view.user_id, since.position), seen)
        else:
            async with self._database.read() as tx:
                part.changed = await device_lists.changed_between(tx, view.user_id, since.position, part.upto.position)
        part.changed |= part.rooms.met - {view.user_id}
        left = part.rooms.parted_from - {view.user_id}
        if left:
            async with self._database.read() as tx:
                part.left = left - await device_lists.still_sharing(tx, view.user_id, left)
            part.changed -= part.left

    # --- the answer

    async def _answer(self, part: _Part) -> bytes:
        request = part.request
        answer: JsonObject = {"next_batch": str(part.upto)}
        requester = request.requester
        if requester.device is not None and requester.device_id is not None:
            counts = await self._key_counts.get(requester.user_id, requester.device_id, requester.device)
            answer["device_one_time_keys_count"] = counts.one_time_keys
            answer["device_unused_fallback_key_types"] = counts.unused_fallback_keys
            answer["org.matrix.msc2732.device_unused_fallback_key_types"] = counts.unused_fallback_keys
        if part.account_data:
            events = [orjson.Fragment(client_event(change)) for change in part.account_data]
            answer["account_data"] = {"events": events}
        presence = [_presence_event(each) for each in part.presence]
        presence = [event for event in presence if request.filter.presence.allows("m.presence", event["sender"])]
        if presence:
            answer["presence"] = {"events": presence}
        if part.to_device:
            answer["to_device"] = {"events": [orjson.Fragment(json) for json in part.to_device]}
        if part.changed or part.left:
            answer["device_lists"] = {"changed": sorted(part.changed), "left": sorted(part.left)}
        rooms = part.rooms.answer()
        if rooms:
            answer["rooms"] = rooms
        return orjson.dumps(answer)


def _rooms_request(request: SyncRequest) -> RoomsRequest:
    return RoomsRequest(
        since=request.since,
        filter=request.filter,
        device=request.requester.device,
        full_state=request.full_state,
        use_state_after=request.use_state_after,
        is_msc4222=request.is_msc4222,
    )


def _note_changed(part: _Part, changes: Collection[tuple[int, Any]], seen: set[int]) -> None:
    for position, change in changes:
        if isinstance(change, DeviceListChanged) and position not in seen:
            seen.add(position)
            part.changed.add(change.user_id)


def _has_news(part: _Part) -> bool:
    return bool(
        part.to_device
        or part.account_data
        or part.presence
        or part.changed
        or part.left
        or not part.rooms.is_empty
        or part.is_due
    )


def _presence_event(presence: UserPresence) -> JsonObject:
    return {"type": "m.presence", "sender": presence.user_id, "content": content_of(presence)}
