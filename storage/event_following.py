"""Reading back what other processes appended to rooms, for `append_events.py`."""

from collections.abc import Sequence

from federation.protocol.types import UserID
from storage import events, strings
from storage.database import Tx
from storage.events import StoredEvent, TrunkChange
from storage.memberships import Membership
from storage.unread import PersonalCount


async def personal_in(tx: Tx, after: int, upto: int) -> dict[int, list[PersonalCount]]:
    rows = await tx.fetch(
        "select position, user_id, notify, highlight from notifications where position > %s and position <= %s",
        (after, upto),
    )
    found: dict[int, list[PersonalCount]] = {}
    for position, user_id, notify, highlight in rows:
        count = PersonalCount(user_id=UserID(user_id), notify=notify, highlight=highlight)
        found.setdefault(position, []).append(count)
    return found


async def versions_within(tx: Tx, stored: Sequence[StoredEvent], after: int) -> dict[int, tuple[int, int]]:
    """For each room, the versions of its trunk before and after these events."""
    spans: dict[int, tuple[int, int]] = {}
    unknown: set[int] = set()
    for event in stored:
        low, _ = spans.get(event.room, (event.version, 0))
        if event.room not in spans and not (event.line == 0 and event.version >= event.trunk_version - 1):
            unknown.add(event.room)  # it stands beside the trunk, and does not tell
        spans[event.room] = (low, event.trunk_version)
    for room, version in (await events.trunk_versions_at(tx, unknown, after) if unknown else {}).items():
        spans[room] = (version, spans[room][1])
    return {room: span for room, span in spans.items() if span[0] < span[1]}


async def trunk_within(tx: Tx, spans: dict[int, tuple[int, int]]) -> dict[tuple[int, int], list[TrunkChange]]:
    """What each version of these rooms changed, for those after the first up to the second of their span."""
    if not spans:
        return {}
    found = await tx.fetch(
        "select room_state.room, type, state_key, event, since_version, membership from room_state"
        " join unnest(%s::int[], %s::int[], %s::int[]) as given(room, low, high) on room_state.room = given.room"
        " where line = 0 and since_version > low and since_version <= high",
        (list(spans), [span[0] for span in spans.values()], [span[1] for span in spans.values()]),
    )
    texts = await strings.values_of(tx, {number for row in found for number in (row[1], row[2])})
    answer: dict[tuple[int, int], list[TrunkChange]] = {}
    for room, type_, state_key, event, since, membership in found:
        answer.setdefault((room, since), []).append(
            TrunkChange(
                type=texts[type_],
                state_key=texts[state_key],
                event=event,
                since=since,
                membership=None if membership is None else Membership(membership),
            )
        )
    return answer
