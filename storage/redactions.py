"""Which events are redacted, by what (column `events.redacted_by`, table `pending_redactions`)."""

from collections.abc import Sequence

from msgspec import Struct

from federation.protocol.identifiers import server_name_of
from federation.protocol.types import EventID, ServerName
from storage import relations
from storage.database import Tx
from storage.events import COLUMNS, Flag, StoredEvent, from_row


class Redaction(Struct, frozen=True):
    """A redaction that is being appended, and what it takes away."""

    event: StoredEvent
    target: EventID
    only_of: ServerName | None
    """It redacts what this server's users sent, and nothing else; None: anything."""
    is_shown: bool
    """Whether clients see it even where it redacts nothing: so before room version 3."""


async def apply(tx: Tx, redactions: Sequence[Redaction]) -> dict[EventID, int]:
    """Redact what is here, and keep the rest until it comes; by what each of the events here is redacted now.

    Those that redact nothing yet are not shown to clients until they do (Room Versions 3, "Handling redactions").
    """
    rows = await tx.fetch(
        "with given as (select * from unnest(%s::int[], %s::text[], %s::bigint[], %s::text[])"
        "  as given(room, target, position, only_of)),"
        " done as (update events set redacted_by = coalesce(redacted_by, given.position) from given, strings"
        "  where events.event_id = target and events.room = given.room and strings.id = events.sender"
        "  and (only_of is null or only_of = substr(strings.value, strpos(strings.value, ':') + 1))"
        f"  returning {COLUMNS}),"
        " kept as (insert into pending_redactions (room, event_id, position, only_of)"
        "  select room, target, position, only_of from given"
        "  where not exists (select from events where events.event_id = target) on conflict do nothing)"
        " select * from done",
        (
            [redaction.event.room for redaction in redactions],
            [redaction.target for redaction in redactions],
            [redaction.event.position for redaction in redactions],
            [redaction.only_of for redaction in redactions],
        ),
    )
    redacted = [from_row(row) for row in rows]
    await relations.forget(tx, redacted)
    applied = {event.event_id: event.redacted_by or 0 for event in redacted}
    unapplied = [each.event for each in redactions if each.target not in applied and not each.is_shown]
    if unapplied:
        for event in unapplied:
            event.flags |= Flag.UNAPPLIED
        await _set_flags(tx, unapplied)
    return applied


async def _set_flags(tx: Tx, stored: Sequence[StoredEvent]) -> None:
    await tx.execute(
        "update events set flags = given.flags from unnest(%s::int[], %s::bigint[], %s::smallint[])"
        " as given(room, position, flags) where events.room = given.room and events.position = given.position",
        (
            [event.room for event in stored],
            [event.position for event in stored],
            [int(event.flags) for event in stored],
        ),
    )


async def apply_pending(tx: Tx, arrived: Sequence[StoredEvent]) -> None:
    """Close the gaps that these events were, and redact those that come after their redactions; the first that came,
    should there be several."""
    pending = await tx.fetch(
        "with given as (select * from unnest(%s::int[], %s::text[]) as given(room, event_id)),"
        " closed as (delete from missing_events where (room, event_id) in (select * from given))"
        " delete from pending_redactions where (room, event_id) in (select * from given)"
        " returning event_id, position, only_of",
        ([stored.room for stored in arrived], [stored.event_id for stored in arrived]),
    )
    by_id = {stored.event_id: stored for stored in arrived}
    applied: list[StoredEvent] = []
    for event_id, position, only_of in sorted(pending, key=lambda row: row[1]):
        stored = by_id[event_id]
        if stored.redacted_by is None and (only_of is None or only_of == server_name_of(stored.sender)):
            stored.redacted_by = position
            applied.append(stored)
    if applied:
        await tx.execute(
            "with shown as (update events set flags = flags & ~%s::smallint"
            "  from unnest(%s::int[], %s::bigint[]) as given(room, position)"
            "  where events.room = given.room and events.position = given.position)"
            " update events set redacted_by = given.position from unnest(%s::text[], %s::bigint[])"
            " as given(event_id, position) where events.event_id = given.event_id and redacted_by is null",
            (
                int(Flag.UNAPPLIED),
                [stored.room for stored in applied],
                [stored.redacted_by for stored in applied],
                [stored.event_id for stored in applied],
                [stored.redacted_by for stored in applied],
            ),
        )
        await relations.forget(tx, applied)


async def targets_of(tx: Tx, stored: Sequence[StoredEvent]) -> dict[EventID, int]:
    """By what the events are redacted that the redactions among these name, as far as they are."""
    named = {target for event in stored if event.is_a("m.room.redaction") for target in _named(event)}
    if not named:
        return {}
    rows = await tx.fetch(
        "select event_id, redacted_by from events where event_id = any(%s::text[]) and redacted_by is not null",
        (list(named),),
    )
    return {EventID(event_id): position for event_id, position in rows}


def _named(redaction: StoredEvent) -> list[str]:
    """What a redaction names, in either place: which of them counts was decided when it was applied."""
    found = (redaction.json.get("redacts"), redaction.content.get("redacts"))
    return [target for target in found if isinstance(target, str) and "\0" not in target]
