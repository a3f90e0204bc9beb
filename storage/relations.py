"""How events relate to each other, as far as it counts (table `relations`): written with the events, gone with their
redaction. What readers are shown of it is in `related_events.py`.

As `storage/events.py`, only for `federation.rooms` and `storage`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from federation.protocol.relations import REPLACE, THREAD, holds_replacement, related_event
from federation.protocol.types import EventID
from storage import strings
from storage.arrays import Int4, Int8, Texts
from storage.database import Tx
from storage.events import HIDDEN, NewEvent, StoredEvent

REFERENCES, EDITS, REPLIES = 21, 22, 23
"""The numbers of `m.reference`, `m.replace` and `m.thread`: what is bundled with an event, next to each other."""
ANNOTATIONS = 24
assert [strings.WELL_KNOWN[name] for name in ("m.reference", REPLACE, THREAD, "m.annotation")] == [21, 22, 23, 24]


class Standing(Struct, frozen=True):
    """Where an event with a relation stands."""

    event: NewEvent
    room: int
    position: int
    place: int


async def insert(tx: Tx, standing: Iterable[Standing], numbers: Mapping[str, int]) -> None:
    """Note what events relate to, where they do and are shown: one statement, or none.

    A redaction relates to nothing: it may not be shown before what it redacts is here. No state is in a thread.
    """
    found = [
        (each, each.event.relation)
        for each in standing
        if each.event.relation is not None
        and not each.event.flags & HIDDEN
        and each.event.pdu.type != "m.room.redaction"
        and (each.event.relation.type != THREAD or each.event.thread is not None)
    ]
    if not found:
        return
    await tx.execute(
        "insert into relations (place, position, edited_ts, room, type, sender, event_type, parent, key)"
        " select * from unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::int[], %s::int[], %s::int[], %s::int[],"
        " %s::text[], %s::text[]) on conflict do nothing",
        (
            Int8(each.place for each, _ in found),
            Int8(None if each.position == each.place else each.position for each, _ in found),
            Int8(_edited_ts(each.event) for each, _ in found),
            Int4(each.room for each, _ in found),
            Int4(numbers[relation.type] for _, relation in found),
            Int4(numbers[each.event.pdu.sender] for each, _ in found),
            Int4(numbers[each.event.pdu.type] for each, _ in found),
            Texts(relation.parent for _, relation in found),
            Texts(relation.key for _, relation in found),
        ),
    )


def _edited_ts(event: NewEvent) -> int | None:
    is_edit = event.relation is not None and event.relation.type == REPLACE and holds_replacement(event.pdu.json)
    return event.pdu.origin_server_ts if is_edit else None


async def forget(tx: Tx, redacted: Collection[StoredEvent]) -> None:
    """Undo what events that are redacted now relate to: one statement, or none."""
    found = [
        (event, relation)
        for event in redacted
        if event.is_readable and (relation := related_event(event.content)) is not None
    ]
    if found:
        await tx.execute(
            "delete from relations using unnest(%s::int[], %s::text[], %s::text[], %s::bigint[])"
            " as given(room, parent, type, place), strings where strings.value = given.type"
            " and relations.room = given.room and relations.parent = given.parent and relations.type = strings.id"
            " and relations.place = given.place",
            (
                Int4(event.room for event, _ in found),
                Texts(relation.parent for _, relation in found),
                Texts(relation.type for _, relation in found),
                Int8(event.place for event, _ in found),
            ),
        )


class AnnotationKey(Struct, frozen=True, kw_only=True):
    """What makes two annotations of one room the same; sender and type as numbers."""

    sender: int
    type: int
    parent: EventID
    key: str | None


async def has_annotated(tx: Tx, room: int, annotation: AnnotationKey) -> bool:
    """Whether there is such an annotation that still stands."""
    row = await tx.fetch_one(
        f"select exists (select from relations where room = %s and parent = %s and type = {ANNOTATIONS:d}"
        " and sender = %s and event_type = %s and key is not distinct from %s)",
        (room, annotation.parent, annotation.sender, annotation.type, annotation.key),
    )
    return row is not None and bool(row[0])


async def note_threads(tx: Tx, room: int, roots: Sequence[str]) -> None:
    """Have threads listed that history brought: nothing in them is news."""
    if roots:
        await tx.execute(
            "insert into threads (room, thread, last_position, notify_total, highlight_total)"
            " select distinct %s::int, root, 0::bigint, 0, 0 from unnest(%s::text[]) as given(root)"
            " on conflict do nothing",
            (room, Texts(roots)),
        )
