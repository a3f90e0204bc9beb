"""What a mail says of messages that somebody has not read. Pure.

What others wrote is escaped, and never part of the subject or of a link.
"""

import html
from collections.abc import Sequence

from federation.rooms.notices import Notice
from homeserver.services.mail import Mail

UNSUBSCRIBE_PATH = "/_matrix/client/unstable/hearth.push/unsubscribe"
MAX_LINES = 30
"""Messages that are quoted."""
MAX_TEXT = 200

_Rooms = Sequence[tuple[str, Sequence[str]]]
"""Names, and lines."""


def digest(recipient: str, waiting: Sequence[Notice], total: int, *, server: str, unsubscribe: str) -> Mail:
    """The newest of what waits, by room, the oldest first."""
    by_room: dict[str, list[Notice]] = {}
    for notice in waiting[-MAX_LINES:]:
        by_room.setdefault(notice.room_id, []).append(notice)
    subject = f"{total} unread message{'' if total == 1 else 's'} at {server}"
    rooms = [(_room(found), [_line(notice) for notice in found]) for found in by_room.values()]
    return Mail(
        recipient=recipient,
        subject=subject,
        text=_text(rooms, total, unsubscribe),
        html=_html(subject, rooms, total, unsubscribe),
        headers={"List-Unsubscribe": f"<{unsubscribe}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"},
    )


def _room(found: Sequence[Notice]) -> str:
    newest = found[-1]
    return _short(newest.room_name or newest.room_alias or newest.sender_display_name or newest.sender)


def _line(notice: Notice) -> str:
    sender = _short(notice.sender_display_name or notice.sender)
    body = notice.content.get("body")
    if notice.type == "m.room.member" and notice.content.get("membership") == "invite":
        return f"{sender} invites you"
    if notice.type == "m.room.encrypted":
        return f"{sender}: an encrypted message"
    if notice.type == "m.room.message" and isinstance(body, str):
        return f"{sender}: {_short(body)}"
    return f"{sender}: something else than a message"


def _short(text: str) -> str:
    """On one line."""
    line = " ".join(text.replace("\0", " ").split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 1]}\u2026"


def _more(rooms: _Rooms, total: int) -> int:
    return total - sum(len(lines) for _, lines in rooms)


def _text(rooms: _Rooms, total: int, unsubscribe: str) -> str:
    parts = ["\n".join((f"{room}:", *(f"  {line}" for line in lines))) for room, lines in rooms]
    if _more(rooms, total) > 0:
        parts.append(f"And {_more(rooms, total)} more.")
    parts.append(f"To get no more of these mails: {unsubscribe}")
    return "\n\n".join(parts) + "\n"


def _html(subject: str, rooms: _Rooms, total: int, unsubscribe: str) -> str:
    parts = [
        f"<h3>{html.escape(room)}</h3><p>{'<br>'.join(html.escape(line) for line in lines)}</p>"
        for room, lines in rooms
    ]
    if _more(rooms, total) > 0:
        parts.append(f"<p>And {_more(rooms, total)} more.</p>")
    parts.append(f'<p><a href="{html.escape(unsubscribe)}">Get no more of these mails</a></p>')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(subject)}</title></head>'
        f'<body style="font:16px/1.5 sans-serif">{"".join(parts)}</body></html>'
    )
