"""Other servers' events that could not be processed (table `dead_letters`): kept, visible, tried again.

One that was tried often enough stays for the operator to see, without a time for the next attempt.
"""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol import canonical_json
from federation.protocol.types import EventID, JsonObject, RoomID, ServerName
from storage.database import Tx

MAX_PER_ORIGIN = 2_000
"""Of one server's letters the oldest are dropped beyond that."""
MAX_REASON = 500
FIRST_PAUSE_MS = 60_000
LONGEST_PAUSE_MS = 6 * 3600 * 1000
MAX_ATTEMPTS = 12
"""The last of them comes about a day after the first."""
KEPT_MS = 30 * 24 * 3600 * 1000


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One event, as it came."""

    origin: ServerName
    room_id: RoomID
    event_id: EventID
    json: JsonObject
    reason: str
    attempts: int = 1
    received_ts: int = 0
    retry_ts: int | None = None
    """When it is tried again; None: never."""


def pause_ms(attempts: int) -> int | None:
    """How long to wait after so many attempts; None where it is not tried any more."""
    if attempts >= MAX_ATTEMPTS:
        return None
    return min(FIRST_PAUSE_MS << (attempts - 1), LONGEST_PAUSE_MS)


async def keep(tx: Tx, letters: Sequence[DeadLetter], now_ts: int, first_pause_ms: int = FIRST_PAUSE_MS) -> None:
    """Keep events that failed for the first time; those that are kept already stay as they are."""
    await tx.execute(
        "insert into dead_letters (origin, room_id, event_id, reason, attempts, received_ts, retry_ts, json)"
        " select origin, room_id, event_id, reason, 1, %s, %s, json"
        " from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::bytea[])"
        " as given(origin, room_id, event_id, reason, json) on conflict do nothing",
        (
            now_ts,
            now_ts + first_pause_ms,
            [letter.origin for letter in letters],
            [letter.room_id for letter in letters],
            [letter.event_id for letter in letters],
            [letter.reason.replace("\0", "")[:MAX_REASON] for letter in letters],
            [canonical_json.encode(letter.json) for letter in letters],
        ),
    )
    await tx.execute(
        "delete from dead_letters where letter = any(array(select letter from dead_letters"
        " where origin = any(%s::text[]) order by letter desc offset %s))",
        (list({letter.origin for letter in letters}), MAX_PER_ORIGIN),
    )


async def delete(tx: Tx, event_ids: Collection[EventID]) -> None:
    """Forget letters that arrived after all."""
    await tx.execute("delete from dead_letters where event_id = any(%s::text[])", (list(event_ids),))


async def delete_refused(tx: Tx, letters: Sequence[DeadLetter]) -> None:
    """Forget letters that will never be right. What another server sent under the same event ID may be."""
    await tx.execute(
        "delete from dead_letters using unnest(%s::text[], %s::text[]) as given(event_id, origin)"
        " where dead_letters.event_id = given.event_id and dead_letters.origin = given.origin",
        ([letter.event_id for letter in letters], [letter.origin for letter in letters]),
    )


async def take_due(tx: Tx, now_ts: int, limit: int, lease_ms: int) -> list[DeadLetter]:
    """The oldest letters of the room whose turn it is, which no other process takes for as long as the lease."""
    rows = await tx.fetch(
        "update dead_letters set retry_ts = %s where letter = any(array("
        " select letter from dead_letters where room_id ="
        "  (select room_id from dead_letters where retry_ts <= %s order by retry_ts limit 1)"
        " and retry_ts <= %s order by letter limit %s for update skip locked))"
        " returning letter, origin, room_id, event_id, reason, attempts, received_ts, retry_ts, json",
        (now_ts + lease_ms, now_ts, now_ts, limit),
    )
    return [_from_row(row[1:]) for row in sorted(rows)]


async def note_failures(tx: Tx, failures: Sequence[tuple[DeadLetter, str]], now_ts: int) -> None:
    """Letters that failed once more, each with the reason."""
    pauses = [pause_ms(letter.attempts + 1) for letter, _ in failures]
    await tx.execute(
        "update dead_letters set attempts = attempts + 1, reason = given.reason, retry_ts = given.retry_ts"
        " from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[]) as given(event_id, origin, reason, retry_ts)"
        " where dead_letters.event_id = given.event_id and dead_letters.origin = given.origin",
        (
            [letter.event_id for letter, _ in failures],
            [letter.origin for letter, _ in failures],
            [reason.replace("\0", "")[:MAX_REASON] for _, reason in failures],
            [None if pause is None else now_ts + pause for pause in pauses],
        ),
    )


async def rest(tx: Tx, origin: ServerName, until_ts: int) -> None:
    """Try none of a server's letters before then."""
    await tx.execute(
        "update dead_letters set retry_ts = %s where origin = %s and retry_ts < %s", (until_ts, origin, until_ts)
    )


async def listed(tx: Tx, limit: int) -> list[DeadLetter]:
    """The newest letters, the newest first."""
    rows = await tx.fetch(
        "select origin, room_id, event_id, reason, attempts, received_ts, retry_ts, json from dead_letters"
        " order by letter desc limit %s",
        (limit,),
    )
    return [_from_row(row) for row in rows]


async def count(tx: Tx) -> tuple[int, int]:
    """How many letters there are, and how many of them are not tried any more."""
    row = await tx.fetch_one("select count(*), count(*) filter (where retry_ts is null) from dead_letters")
    return (0, 0) if row is None else (row[0], row[1])


async def retry_all(tx: Tx, now_ts: int) -> int:
    """Have every letter tried again soon, as if for the first time; how many."""
    return await tx.execute("update dead_letters set retry_ts = %s, attempts = 1", (now_ts,))


async def retry_room(tx: Tx, room_id: RoomID, now_ts: int) -> int:
    """As `retry_all`, for the letters of one room."""
    return await tx.execute("update dead_letters set retry_ts = %s, attempts = 1 where room_id = %s", (now_ts, room_id))


async def delete_old(tx: Tx, before_ts: int, limit: int) -> int:
    """Forget up to `limit` letters that came before then; how many."""
    return await tx.execute(
        "delete from dead_letters where ctid = any(array("
        " select ctid from dead_letters where received_ts < %s limit %s for update skip locked))",
        (before_ts, limit),
    )


def _from_row(row: Sequence[object]) -> DeadLetter:
    origin, room_id, event_id, reason, attempts, received_ts, retry_ts, json = row
    return DeadLetter(
        origin=ServerName(str(origin)),
        room_id=RoomID(str(room_id)),
        event_id=EventID(str(event_id)),
        reason=str(reason),
        attempts=int(str(attempts)),
        received_ts=int(str(received_ts)),
        retry_ts=None if retry_ts is None else int(str(retry_ts)),
        json=_parsed(json),
    )


def _parsed(json: object) -> JsonObject:
    parsed = canonical_json.loads(bytes(json), max_depth=None) if isinstance(json, (bytes, memoryview)) else None
    return parsed if isinstance(parsed, dict) else {}
