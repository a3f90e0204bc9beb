"""What a user was, or would have been, notified of (Client-Server API v1.19, "Listing Notifications").

Nobody keeps a row for each notification: the user's rules, as they are now, are asked about the events of the user's
rooms, the newest first. A page looks at so many events at most; where few of them notify, it is short, and has a token.
"""

import asyncio
from weakref import WeakValueDictionary

import orjson

from federation.protocol.types import JsonObject, UserID
from federation.rooms import notified_events
from federation.rooms.notified_events import Candidate
from federation.rooms.reader import RoomReader
from homeserver.services.account_data import AccountDataService
from homeserver.services.push import PushRuleService
from homeserver.services.push_conditions import Situation
from homeserver.services.push_rules import Outcome, Ruleset
from homeserver.services.receipts import MAIN
from storage import read_marks
from storage.database import Database, Tx

LOOKED_AT_ONCE = 100
"""Events."""
LOOKS = 5
"""For one page."""
EFFORT = 4_000
"""For all of the user's patterns on one event."""
NEWEST = 1 << 62

_Notifying = tuple[Candidate, Outcome]


class NotificationService:
    """Lists notifications."""

    def __init__(
        self, database: Database, reader: RoomReader, rules: PushRuleService, account_data: AccountDataService
    ) -> None:
        self._database = database
        self._reader = reader
        self._rules = rules
        self._account_data = account_data
        self._turns: WeakValueDictionary[UserID, asyncio.Lock] = WeakValueDictionary()

    async def page(
        self, user_id: UserID, *, before: int = NEWEST, limit: int, only_highlights: bool
    ) -> tuple[list[JsonObject], int | None]:
        """Notifications of events below a position, the newest first, and where the next page begins, if there may be
        more. One page at a time for a user: it may take half a second to find."""
        turn = self._turns.setdefault(user_id, asyncio.Lock())
        async with turn, self._database.read() as tx:
            ruleset = (await self._rules.rulesets(tx, [user_id]))[user_id]
            ignored = await self._account_data.ignored_users(tx, user_id)
            found: list[_Notifying] = []
            place: int | None = before
            for _ in range(LOOKS):
                if place is None or len(found) >= limit:
                    break
                candidates = await notified_events.read(tx, self._reader, user_id, place, LOOKED_AT_ONCE)
                place = candidates.before
                for candidate in candidates.found:
                    if candidate.seen.event.sender in ignored:
                        continue
                    outcome = _evaluate(ruleset, candidate)
                    if outcome.notify and (outcome.highlight or not only_highlights):
                        found.append((candidate, outcome))
                    await asyncio.sleep(0)
            if len(found) > limit:
                del found[limit:]
                place = found[-1][0].seen.event.position
            return await self._render(tx, user_id, found), place

    async def _render(self, tx: Tx, user_id: UserID, found: list[_Notifying]) -> list[JsonObject]:
        marks = await read_marks.of_users_in(tx, [user_id], {candidate.room.number for candidate, _ in found})
        answer: list[JsonObject] = []
        for candidate, outcome in found:
            rendered = await self._reader.render(tx, [candidate.seen])
            event, room = candidate.seen.event, candidate.room
            thread = MAIN if event.thread is None else event.thread
            if rendered:
                answer.append(
                    {
                        "actions": list(outcome.actions),
                        "event": orjson.Fragment(rendered[0]),
                        "read": read_marks.is_read(marks, user_id, room.number, thread, event.position),
                        "room_id": room.room_id,
                        "ts": event.json["origin_server_ts"],
                    }
                )
        return answer


def _evaluate(ruleset: Ruleset, candidate: Candidate) -> Outcome:
    event = candidate.seen.event
    situation = Situation(
        {**event.json, "room_id": candidate.room.room_id},
        candidate.facts.member_count,
        lambda key: candidate.facts.may_notify(event.sender, key),
        max_effort=EFFORT,
    )
    return ruleset.evaluate(situation)
