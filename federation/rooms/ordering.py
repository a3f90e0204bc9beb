"""Events in the order of what they refer to, whoever made them and however they came."""

from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from federation.protocol.pdu import PDU
from federation.protocol.types import EventID

P = TypeVar("P", bound=PDU)


def in_order(
    pdus: Iterable[P], references: Callable[[P], Iterable[EventID]], held: Collection[EventID] | None = None
) -> list[P]:
    """These events, each after those of them that it refers to; else in the order in which they came.

    With `held`, what refers to an event that is neither here nor among those is left out, and so is what refers to
    that. What refers to itself in a circle, as event IDs of the sender's choice allow, always is.
    """
    given = {pdu.event_id: pdu for pdu in pdus}
    referring: dict[EventID, list[P]] = {}
    still_open: dict[EventID, int] = {}
    ready: list[P] = []
    for pdu in given.values():
        if held is None:
            awaited = {event_id for event_id in references(pdu) if event_id in given}
        else:
            awaited = {event_id for event_id in references(pdu) if event_id not in held}
        still_open[pdu.event_id] = len(awaited)
        for event_id in awaited:
            referring.setdefault(event_id, []).append(pdu)
        if not awaited:
            ready.append(pdu)
    for pdu in ready:  # it grows on the way
        for each in referring.get(pdu.event_id, ()):
            still_open[each.event_id] -= 1
            if not still_open[each.event_id]:
                ready.append(each)
    return ready


def connected(start: Iterable[EventID], pdus: Iterable[P], references: Callable[[P], Iterable[EventID]]) -> list[P]:
    """Those of these events that are reached from `start` by way of what they refer to."""
    given = {pdu.event_id: pdu for pdu in pdus}
    reached: dict[EventID, P] = {}
    frontier = list(start)
    while frontier:
        event_id = frontier.pop()
        pdu = given.get(event_id)
        if pdu is not None and event_id not in reached:
            reached[event_id] = pdu
            frontier.extend(references(pdu))
    return list(reached.values())


def prev_of(pdu: PDU) -> tuple[EventID, ...]:
    """What the event follows."""
    return pdu.prev_event_ids


def cited_by(pdu: PDU) -> tuple[EventID, ...]:
    """What authorises the event, the create event included where its ID is not among them but in the room's."""
    if pdu.rules.create_in_auth_events or pdu.type == "m.room.create":
        return pdu.auth_event_ids
    return (*pdu.auth_event_ids, EventID("$" + pdu.room_id[1:]))
