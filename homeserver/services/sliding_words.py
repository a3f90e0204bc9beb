"""One room of a sliding sync as clients read it. Pure (MSC4186, "RoomResult")."""

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import Struct, field
from msgspec.structs import replace

from federation.protocol.types import JsonObject, StateKey, UserID
from federation.rooms.reader import Seen
from federation.rooms.required_state import MEMBER, Granted, Patterns, are_lazy, matches
from federation.rooms.room_news import BEGINNING, RoomNews, StoredEvent
from homeserver.services.sliding_connections import DIRECT
from homeserver.services.sliding_request import Form
from homeserver.services.sliding_sorting import Joined
from homeserver.tokens import StreamToken, page_token

NAME: StateKey = ("m.room.name", "")
AVATAR: StateKey = ("m.room.avatar", "")


class Telling(Struct):
    """What is read of a room that the user is in, to be told."""

    joined: Joined
    bump_stamp: int
    flags: int = 0
    news: RoomNews | None = None
    """The timeline, and what changed in the state since the client was told."""
    newest: Sequence[Seen] = ()
    """The end of a timeline that the client has, or is told, whose members it lacks."""
    read: list[StoredEvent] = field(default_factory=list)
    """State that is told although it did not change: it was not wanted before, or the room is new."""
    name: str | None = None
    avatar: str | None = None
    """Of rooms that are new, or whose names may have changed."""
    lazy_members: set[UserID] = field(default_factory=set)
    """Whose member events come with the timeline."""
    counts: tuple[int, int] | None = None
    """Joined and invited members, where they may have changed."""
    heroes: list[StoredEvent] | None = None
    is_read: bool = False
    """The user has read on."""
    unread: tuple[int, int] | None = None
    required: list[StoredEvent] = field(default_factory=list)
    removed: list[StateKey] = field(default_factory=list)
    timeline: list[bytes] = field(default_factory=list)
    state: list[bytes] = field(default_factory=list)

    @property
    def may_change_names(self) -> bool:
        """Whether the room's name, avatar, members or heroes may be others than the client was told."""
        news = self.news
        if news is None or self.joined.is_fresh:
            return False
        return self.is_renamed or bool(news.members) or any(key[0] == MEMBER for key in news.removed)

    @property
    def is_renamed(self) -> bool:
        """Whether the room's name or avatar may be another: a redaction takes it away, too, and may stand in a gap."""
        news = self.news
        return news is not None and bool(
            news.is_limited
            or any(each.event.type == "m.room.redaction" for each in news.timeline)
            or any((event.type, event.state_key) in (NAME, AVATAR) for event in news.state_after)
            or any(key in (NAME, AVATAR) for key in news.removed)
        )

    def take(self, read: Granted) -> None:
        """Take what was read of the room's state."""
        self.name = _text(read.entries.get(NAME), "name")
        self.avatar = _text(read.entries.get(AVATAR), "url")
        members = [read.entries.get((MEMBER, user_id)) for user_id in self.lazy_members]
        wanted = {event.position: event for event in (*read.wanted, *members) if event is not None}
        self.read = list(wanted.values())

    def choose_state(self) -> None:
        """What of the state is told: what was read, and of what changed what is wanted."""
        news, patterns = self.news, self.joined.rule.patterns
        if news is None or self.joined.is_fresh:
            self.required = self.read
        else:
            found = {(event.type, event.state_key): event for event in self.read}
            # Behind a gap clients forget the members that came with what was sent.
            with_members = are_lazy(patterns) and not news.is_limited
            for event in news.state_after:
                if _is_told(patterns, event.type, event.state_key or "", with_members=with_members):
                    # What is shared with other readers keeps the form that timelines need.
                    own = replace(event) if news.is_shared and event.client is None else event
                    found.setdefault((event.type, event.state_key), own)
            self.removed = [key for key in news.removed if _is_told(patterns, *key, with_members=with_members)]
            self.required = list(found.values())


def _is_told(patterns: Patterns, event_type: str, state_key: str, *, with_members: bool) -> bool:
    return (with_members and event_type == MEMBER) or matches(patterns, event_type, state_key)


def _text(event: StoredEvent | None, name: str) -> str | None:
    """A text in the content of an entry; None where there is none, it is empty or redacted."""
    if event is None or event.redacted_by is not None:
        return None
    value = event.content.get(name)
    return value if isinstance(value, str) and value else None


def tell(form: Form, telling: Telling, since: StreamToken | None) -> JsonObject:
    """What is told of a room; nothing where there is nothing to tell."""
    joined, news = telling.joined, telling.news
    told: JsonObject = {}
    if news is not None and (joined.is_fresh or joined.is_expanded or telling.timeline or news.is_limited):
        live_since = BEGINNING if since is None else since.position
        told |= timeline(news, telling.timeline, since=live_since, is_first=since is None)
        if joined.is_expanded:
            told[form.expanded_timeline_name] = True
    state: list[Any] = [orjson.Fragment(event) for event in telling.state]
    if form is Form.ACCEPTED:
        state.extend({"type": event_type, "state_key": state_key} for event_type, state_key in telling.removed)
    if state or joined.is_fresh:
        told["required_state"] = state
    _tell_names(telling, told)
    was_direct = joined.sent is not None and joined.sent.is_direct and not joined.is_fresh
    is_direct = bool(telling.flags & DIRECT)
    if is_direct != was_direct:
        told["is_dm"] = is_direct
    if not told and not telling.is_read:
        return {}
    if joined.is_fresh:
        told["initial"] = True
    if joined.is_fresh or telling.bump_stamp > joined.at:
        told["bump_stamp"] = telling.bump_stamp
    if telling.unread is not None and (news is not None or telling.is_read):
        told["notification_count"], told["highlight_count"] = telling.unread
    return told


def timeline(news: RoomNews, rendered: Sequence[bytes], *, since: int, is_first: bool = False) -> JsonObject:
    """The timeline, and what belongs to it. At the beginning of a connection nothing is live."""
    live = 0 if is_first else sum(each.event.position > since for each in news.timeline)
    return {
        "timeline": [orjson.Fragment(event) for event in rendered],
        "limited": news.is_limited,
        "prev_batch": page_token(news.before),
        "num_live": live,
    }


def _tell_names(telling: Telling, told: JsonObject) -> None:
    is_fresh = telling.joined.is_fresh
    if is_fresh or telling.is_renamed:
        # In what adds to what the client has, null says that there is none.
        if telling.name is not None or not is_fresh:
            told["name"] = telling.name
        if telling.avatar is not None or not is_fresh:
            told["avatar"] = telling.avatar
    if telling.counts is not None:
        told["joined_count"], told["invited_count"] = telling.counts
    if telling.heroes is not None:
        told["heroes"] = [_hero(event) for event in telling.heroes]


def _hero(event: StoredEvent) -> JsonObject:
    hero: JsonObject = {"user_id": event.state_key}
    if event.redacted_by is None:
        for name in ("displayname", "avatar_url"):
            value = event.content.get(name)
            if isinstance(value, str):
                hero[name] = value
    return hero
