"""Reports to the administrators (Client-Server API, "Reporting Content"), and what administrators see of them."""

import logging
import time

from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.protocol.identifiers import check_user_id, is_room_id
from federation.protocol.types import JsonObject
from federation.rooms.reader import RoomReader
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.user_names import UserNames
from storage import accounts, reports, rooms
from storage.database import Database
from storage.reports import Report

logger = logging.getLogger(__name__)

MAX_REASON = 8192
MAX_PAGE = 1000


class ModerationAPI:
    """Reports of events, rooms and users."""

    def __init__(self, database: Database, reader: RoomReader, names: UserNames) -> None:
        self._database = database
        self._reader = reader
        self._names = names

    async def report_event(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/report/{eventId}: only by who is in the room and may see the event."""
        who, body = requester(call), await call.body()
        score = body.get("score")
        if score is not None and (not isinstance(score, int) or isinstance(score, bool)):
            raise InvalidInput("score must be an integer")
        reason = _reason(body, required=False)
        async with self._database.read() as tx:
            try:
                access = await self._reader.access(tx, call.path["room_id"], who.user_id, may_peek=False)
            except Forbidden:
                raise NotFound("There is no such event") from None
            if not access.is_joined:
                raise NotFound("There is no such event")
            seen = await self._reader.event(tx, access, call.path["event_id"])
        await self._store(
            Report(
                received_ts=_now_ms(),
                reporter=who.user_id,
                reason=reason,
                score=score,
                room_id=call.path["room_id"],
                event_id=call.path["event_id"],
                user_id=seen.event.sender,
            )
        )
        return {}

    async def report_room(self, call: Call) -> Answer:
        """POST /rooms/{roomId}/report: by anybody; the answer does not tell whether we know the room."""
        who, room_id, reason = requester(call), call.path["room_id"], _reason(await call.body(), required=True)
        if not is_room_id(room_id):
            raise InvalidInput("This is not a room ID")
        async with self._database.read() as tx:
            room = await rooms.find(tx, room_id)
        if room is not None:
            await self._store(Report(received_ts=_now_ms(), reporter=who.user_id, reason=reason, room_id=room_id))
        return {}

    async def report_user(self, call: Call) -> Answer:
        """POST /users/{userId}/report: by anybody; the answer does not tell whether there is such a user."""
        who, reason = requester(call), _reason(await call.body(), required=True)
        user_id = check_user_id(call.path["user_id"])
        async with self._database.read() as tx:
            is_known = not self._names.is_local(user_id) or await accounts.find(tx, user_id) is not None
        if is_known:
            await self._store(Report(received_ts=_now_ms(), reporter=who.user_id, reason=reason, user_id=user_id))
        return {}

    async def _store(self, report: Report) -> None:
        async with self._database.transaction() as tx:
            number = await reports.insert(tx, report)
        logger.warning(
            "report %d by %s: room %s, event %s, user %s",
            number,
            report.reporter,
            report.room_id,
            report.event_id,
            report.user_id,
        )

    # --- for administrators, under /_synapse/admin/v1/event_reports

    async def list_reports(self, call: Call) -> Answer:
        """GET: the newest first; `from` and `limit` page."""
        offset = call.query_int("from", 0)
        limit = call.query_int("limit", 100, maximum=MAX_PAGE)
        async with self._database.read() as tx:
            found = await reports.list_newest(tx, offset=offset, limit=limit)
            total = await reports.count(tx)
        answer: JsonObject = {"event_reports": [_report_fields(report) for report in found], "total": total}
        if offset + len(found) < total:
            answer["next_token"] = offset + len(found)
        return answer

    async def get_report(self, call: Call) -> Answer:
        """GET .../{reportId}."""
        async with self._database.read() as tx:
            report = await reports.find(tx, _number(call))
        if report is None:
            raise NotFound("There is no such report")
        return _report_fields(report)

    async def delete_report(self, call: Call) -> Answer:
        """DELETE .../{reportId}."""
        async with self._database.transaction() as tx:
            if not await reports.delete(tx, _number(call)):
                raise NotFound("There is no such report")
        return {}


def _reason(body: JsonObject, *, required: bool) -> str:
    reason = body.get("reason")
    if reason is None:
        if required:
            raise InvalidInput("reason is required", "M_MISSING_PARAM")
        return ""
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise InvalidInput(f"reason must be a string of at most {MAX_REASON} characters")
    return reason


def _number(call: Call) -> int:
    text = call.path["report_id"]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidInput("The number of a report is an integer")
    return int(text)


def _report_fields(report: Report) -> JsonObject:
    return {
        "id": report.report,
        "received_ts": report.received_ts,
        "user_id": report.reporter,
        "reason": report.reason,
        "score": report.score,
        "room_id": report.room_id,
        "event_id": report.event_id,
        "sender": report.user_id,
    }


def _now_ms() -> int:
    return int(time.time() * 1000)
