"""Who may see an event (Client-Server API, "Room History Visibility", server behaviour).

All questions are about the state before the event, which is what a store has at hand; what the event itself changes
is read from the event.
"""

from collections.abc import Collection, Mapping
from typing import Final, Literal

from federation.protocol.identifiers import server_name_of
from federation.protocol.pdu import PDU
from federation.protocol.types import JsonObject, ServerName, UserID

HistoryVisibility = Literal["world_readable", "shared", "invited", "joined"]

_BY_NAME: Final[Mapping[object, HistoryVisibility]] = {
    "world_readable": "world_readable",
    "shared": "shared",
    "invited": "invited",
    "joined": "joined",
}


def get_visibility(content: JsonObject | None) -> HistoryVisibility:
    """What the content of an `m.room.history_visibility`, or its absence, says: `shared` when it is not understood."""
    value = None if content is None else content.get("history_visibility")
    return _BY_NAME.get(value, "shared") if isinstance(value, str) else "shared"


def may_see(visibility: HistoryVisibility, membership: object, *, joins_later: bool) -> bool:
    """Rules 1 to 5 for one visibility and one membership; `joins_later`: the user joined at any point after."""
    if visibility == "world_readable" or membership == "join":
        return True
    if visibility == "shared":
        return joins_later
    return visibility == "invited" and membership == "invite"


def may_user_see(
    pdu: PDU, user_id: UserID, visibility: HistoryVisibility, membership: object, *, joins_later: bool
) -> bool:
    """Whether a user may see an event, given the visibility and their membership (None: none) before it.

    A change of visibility, and of the user's own membership, is seen by who may see it before or after the change.
    """
    memberships = {membership, pdu.membership} if _is_member_event(pdu) and pdu.state_key == user_id else {membership}
    return _may_any_see(_visibilities(pdu, visibility), memberships, joins_later=joins_later)


def may_server_see(
    pdu: PDU,
    server_name: ServerName,
    visibility: HistoryVisibility,
    memberships: Collection[object],
    *,
    joins_later: bool,
) -> bool:
    """Whether any user of a server may see an event.

    `memberships` are those of the server's users before the event; `joins_later`: any of them joined after it.
    """
    known = set(memberships)
    if _is_member_event(pdu) and pdu.state_key is not None and server_name_of(UserID(pdu.state_key)) == server_name:
        known.add(pdu.membership)
    return _may_any_see(_visibilities(pdu, visibility), known or {None}, joins_later=joins_later)


def _is_member_event(pdu: PDU) -> bool:
    return pdu.type == "m.room.member" and isinstance(pdu.membership, str)


def _visibilities(pdu: PDU, before: HistoryVisibility) -> set[HistoryVisibility]:
    if pdu.type == "m.room.history_visibility" and pdu.state_key == "":
        return {before, get_visibility(pdu.content)}
    return {before}


def _may_any_see(
    visibilities: Collection[HistoryVisibility], memberships: Collection[object], *, joins_later: bool
) -> bool:
    return any(
        may_see(visibility, membership, joins_later=joins_later)
        for visibility in visibilities
        for membership in memberships
    )
