"""What came before `/sync`, and serves room previews still (Client-Server API v1.19, "Room Previews", `/initialSync`,
`/events`). Room events alone are streamed: no typing, no receipts, no presence."""

import asyncio
from collections.abc import Collection
from typing import Any

import orjson
from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.types import UserID
from federation.rooms.pages import Page, PageRequest
from federation.rooms.room_news import BEGINNING, Reading, Span
from federation.rooms.timelines import Timelines
from federation.web import Answer, Call
from homeserver.client_api.reading_events import DEFAULT_LIMIT, RoomReading, fragments
from homeserver.client_api.routing import ClientRoute, requester
from homeserver.services.account_data import client_event
from homeserver.services.presence import content_of
from homeserver.services.requester import Requester
from homeserver.services.sync_filter import EVERYTHING
from homeserver.services.sync_outside import client_form
from homeserver.services.user_views import UserViews
from homeserver.tokens import page_token, parse_page_token
from storage import memberships, outside_memberships, room_directory, rooms
from storage.database import Tx
from storage.ephemeral import PresenceBoard
from storage.memberships import Membership

MAX_LIMIT = 100
MAX_EVENTS = 100
"""In one answer of `/events`."""
DEFAULT_TIMEOUT_MS = 30_000
MAX_TIMEOUT_MS = 120_000
_PRESENT = (Membership.JOIN, Membership.INVITE)
_GONE = (Membership.LEAVE, Membership.BAN)


class _Overview(Struct):
    """What `/initialSync` tells of all rooms."""

    rooms: list[dict[str, Any]]
    account_data: list[orjson.Fragment]


class OldSyncAPI:
    """Snapshots and the stream of room events."""

    def __init__(self, reading: RoomReading, timelines: Timelines, views: UserViews, presence: PresenceBoard) -> None:
        self._reading = reading
        self._database = reading.database
        self._tail = reading.tail
        self._reader = reading.reader
        self._pages = reading.pages
        self._account_data = reading.account_data
        self._timelines = timelines
        self._views = views
        self._presence = presence

    def routes(self) -> list[ClientRoute]:
        """The endpoints."""
        return [
            ClientRoute(
                method="GET", path="v3/events", endpoint=self.get_events, guests=True, limit="requests", waits=True
            )
        ] + [
            ClientRoute(method="GET", path=path, endpoint=endpoint, guests=True, limit="requests")
            for path, endpoint in (
                ("v3/initialSync", self.get_overview),
                ("v3/rooms/{room_id}/initialSync", self.get_room),
            )
        ]

    # --- snapshots

    async def get_room(self, call: Call) -> Answer:
        """GET /rooms/{roomId}/initialSync: one room as it is now, or as it was when the reader left."""
        who = requester(call)
        limit = call.query_int("limit", DEFAULT_LIMIT, maximum=MAX_LIMIT)
        await self._reading.until_complete(call.path["room_id"])
        position = self._tail.position
        async with self._database.read() as tx:
            access = await self._reader.access(tx, call.path["room_id"], who.user_id)
            ignored = await self._account_data.ignored_users(tx, who.user_id)
            request = PageRequest(backwards=True, start=position, limit=limit, ignored=ignored)
            page = await self._pages.read(tx, access, request)
            state = await self._reader.state(tx, access)
            own = await self._account_data.all_of(tx, who.user_id)
            published = await room_directory.published_among(tx, [access.room.number])
            chunk = await self._reader.render(tx, page.seen[::-1], who.device)
            answer: dict[str, Any] = {
                "room_id": access.room.room_id,
                "messages": _chunk(chunk, page.end, position),
                "state": fragments(await self._reader.render_state(tx, state, who.device)),
                "visibility": "public" if published else "private",
                "account_data": [
                    orjson.Fragment(client_event(change)) for change in own if change.room == access.room.number
                ],
                "presence": [],
                "receipts": [],
            }
        if access.membership is not None:
            answer["membership"] = access.membership.text
        return orjson.dumps(answer)

    async def get_overview(self, call: Call) -> Answer:
        """GET /initialSync: all rooms of the user."""
        who = requester(call)
        limit = call.query_int("limit", DEFAULT_LIMIT, maximum=MAX_LIMIT)
        is_archived = call.query_bool("archived")
        position = self._tail.position
        async with self._database.read() as tx:
            overview = await self._overview(tx, who, Span(BEGINNING, position, limit), is_archived=is_archived)
            sharing = await memberships.users_sharing_rooms(tx, who.user_id)
        presence = [
            {"type": "m.presence", "sender": each.user_id, "content": content_of(each)}
            for each in self._presence.changed_since(0, sharing)
        ]
        return orjson.dumps(
            {
                "end": page_token(position),
                "rooms": overview.rooms,
                "presence": presence,
                "account_data": overview.account_data,
                "receipts": [],
            }
        )

    async def _overview(self, tx: Tx, who: Requester, span: Span, *, is_archived: bool) -> _Overview:
        found = await memberships.rooms_of(tx, who.user_id, (*_PRESENT, *_GONE) if is_archived else _PRESENT)
        forgotten = await memberships.forgotten(tx, who.user_id) if is_archived else set()
        found = {number: each for number, each in found.items() if number not in forgotten}
        found = {number: each for number, each in found.items() if not self._reading.incomplete.has(number)}
        known = await rooms.get_many(tx, list(found))
        joined = [known[number] for number, (membership, _) in found.items() if membership is Membership.JOIN]
        invited = {number: at for number, (membership, at) in found.items() if membership is Membership.INVITE}
        ignored = await self._account_data.ignored_users(tx, who.user_id)
        news = await self._timelines.fresh(tx, Reading(who.user_id, EVERYTHING.timeline, ignored), joined, span)
        invites = await self._reader.invites_at(tx, invited.values())
        published = await room_directory.published_among(tx, list(found))
        own = await self._account_data.all_of(tx, who.user_id)
        overview = _Overview([], [orjson.Fragment(client_event(each)) for each in own if each.room is None])
        hides_invites = await self._account_data.is_blocking_invites(tx, who.user_id)
        for number, (membership, position) in found.items():
            if membership is Membership.INVITE and (hides_invites or _sender(invites.get(position)) in ignored):
                continue
            entry: dict[str, Any] = {
                "room_id": known[number].room_id,
                "membership": membership.text,
                "visibility": "public" if number in published else "private",
                "account_data": [orjson.Fragment(client_event(each)) for each in own if each.room == number],
            }
            if number in invited and position in invites:
                entry["inviter"], invite = invites[position]
                entry["invite"] = orjson.Fragment(invite)
            elif number in news:
                each = news[number]
                chunk = await self._timelines.render(each.timeline, who.device)
                entry["messages"] = _chunk(chunk, each.before, span.upto)
                entry["state"] = fragments(await self._timelines.render_state(each.state_after, who.device))
            overview.rooms.append(entry)
        if not hides_invites:
            outside = await _outside(tx, who.user_id)
            overview.rooms += [entry for entry in outside if entry["inviter"] not in ignored]
        return overview

    # --- the stream

    async def get_events(self, call: Call) -> Answer:
        """GET /events: what happens in the user's rooms, or in one that they may look into."""
        who = requester(call)
        since = call.query_text("from")
        room_id = call.query_text("room_id")
        timeout = call.query_int("timeout", DEFAULT_TIMEOUT_MS, maximum=MAX_TIMEOUT_MS) / 1000
        start = self._tail.position if not since else parse_page_token(since)
        if start > self._tail.position:
            await self._tail.catch_up(start)
            if start > self._tail.position:
                raise InvalidInput("This token is from another server")
        deadline = asyncio.get_running_loop().time() + timeout
        looked_at = start
        while True:
            upto = self._tail.position
            page = await self._since(who, room_id, looked_at, upto)
            looked_at = upto if page.end is None else page.end
            remaining = deadline - asyncio.get_running_loop().time()
            if page.seen or (remaining <= 0 and page.end is None):
                break
            if page.end is None:
                await self._wait(who, room_id, upto, max(remaining, 0))
        async with self._database.read() as tx:
            chunk = fragments(await self._reader.render(tx, page.seen, who.device))
        return orjson.dumps({"start": since or page_token(start), "end": page_token(looked_at), "chunk": chunk})

    async def _since(self, who: Requester, room_id: str | None, after: int, upto: int) -> Page:
        """What of the log after one place and up to another the user may see."""
        async with self._database.read() as tx:
            ignored = await self._account_data.ignored_users(tx, who.user_id)
            request = PageRequest(backwards=False, start=after, stop=upto, limit=MAX_EVENTS, ignored=ignored)
            if room_id is not None:
                access = await self._reader.access(tx, room_id, who.user_id)
                return await self._pages.read(tx, access, request)
            if after >= upto:
                return Page(after)
            numbers = await memberships.rooms_of(tx, who.user_id, (Membership.JOIN, *_GONE))
            return await self._pages.read_rooms(tx, who.user_id, _current(numbers, after), request)

    async def _wait(self, who: Requester, room_id: str | None, upto: int, seconds: float) -> None:
        """Until something may have happened after a place in the log, or the time is up."""
        if room_id is None:
            listener = (await self._views.get(who.user_id)).listener
            if listener.concerned_at <= upto:
                await listener.wait(seconds)
            return
        room = rooms.known(self._database.memory, room_id)
        deadline = asyncio.get_running_loop().time() + seconds
        while room is not None and seconds > 0 and self._tail.last_in_room(room.number) <= upto:
            await self._tail.wait_beyond(self._tail.position, seconds)
            seconds = deadline - asyncio.get_running_loop().time()


async def _outside(tx: Tx, user_id: UserID) -> list[dict[str, Any]]:
    """Rooms of other servers to which the user is invited."""
    wanted = [
        room_id
        for room_id, (membership, _) in (await outside_memberships.of_user(tx, user_id)).items()
        if membership is Membership.INVITE
    ]
    found = await outside_memberships.get_many(tx, user_id, wanted) if wanted else []
    entries: list[dict[str, Any]] = []
    for each in found:
        event = client_form(each, orjson.loads(each.json))
        entry = {"room_id": each.room_id, "membership": each.membership.text, "visibility": "private"}
        entries.append({**entry, "account_data": [], "inviter": event["sender"], "invite": event})
    return entries


def _sender(invite: tuple[UserID, bytes] | None) -> UserID | None:
    return None if invite is None else invite[0]


def _current(found: dict[int, tuple[Membership, int]], after: int) -> Collection[int]:
    """The rooms that the user is in, and those left after a place in the log."""
    return [
        number for number, (membership, position) in found.items() if membership is Membership.JOIN or position > after
    ]


def _chunk(events: list[bytes], before: int | None, upto: int) -> dict[str, Any]:
    chunk: dict[str, Any] = {"chunk": fragments(events), "end": page_token(upto)}
    if before is not None:
        chunk["start"] = page_token(before)
    return chunk
