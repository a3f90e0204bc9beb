"""Searching messages (Client-Server API, "Server Side Search"): what the index names, behind the visibility gate.

Results are looked for from the newest to the oldest, within a bounded number of candidates and a bounded time; whoever
wants more goes on where the search stopped. So `rank` orders the newest `RANKED` results, then the next ones.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol.types import UserID
from federation.rooms.pages import Wanted as WantedEvents
from federation.rooms.reader import RoomReader, Seen, StoredEvent
from storage import event_pages, events, memberships, rooms, search_index
from storage.database import Tx
from storage.memberships import Membership
from storage.rooms import Room
from storage.search_documents import Breath, edited_text, find_text, stemmed
from storage.search_index import NOWHERE, Key, Match
from storage.search_words import Query, Words, fold, query_of, spellings, words_of

RANKED = 100
"""Results among which the most relevant come first."""
MAX_CANDIDATES = 2_000
"""That are loaded for one answer, beside names and topics."""
SECONDS = 1.0
"""After which no further part of the index is looked through for an answer that has something in it."""
END = 1 << 62


class Cursor(Struct, frozen=True):
    """Where a search goes on."""

    below: int = END
    """Among the events before this position."""
    floor: int | None = None
    """Among those above this one, ordered by rank."""
    skipped: int = 0
    """Of which so many were given."""
    given: int = 0
    """Results before all these."""
    room_id: str | None = None
    sender: str | None = None
    """Only results of this group."""


class SearchRequest(Struct, frozen=True, kw_only=True):
    """What somebody searches for."""

    user_id: UserID
    term: str
    keys: Collection[Key]
    by_rank: bool
    limit: int
    cursor: Cursor = Cursor()
    wanted: WantedEvents
    allows_room: Callable[[str], bool]
    """Whether results may come from the room."""
    only_rooms: Collection[str] | None = None
    ignored: Collection[UserID] = ()


class Hit(Struct, frozen=True):
    """An event with all that is searched for."""

    room: Room
    seen: Seen
    rank: float
    text: str
    """In which it stands."""


class Results(Struct, frozen=True):
    """A page of what was found."""

    hits: Sequence[Hit]
    count: int
    """About how many there are in all."""
    highlights: Collection[str]
    """As which the words stand in these."""
    next: Cursor | None
    groups: Callable[[str, str], Cursor]
    """Where to go on within a group: by `room_id` or `sender`, and which."""


class _Gathered(Struct):
    """What a search has found by now."""

    hits: list[Hit]
    low: int
    looked_at: float
    left: float
    counted: int = 0
    """With those that came to light beyond what was wanted."""
    is_all: bool = False
    """Whether nothing more is to be counted."""


class MessageSearch:
    """Searches on behalf of users."""

    def __init__(self, reader: RoomReader, *, dictionary: str | None) -> None:
        self._reader = reader
        self._dictionary = dictionary

    async def find(self, tx: Tx, request: SearchRequest) -> Results:
        """One page of results that the user may see. In a transaction."""
        query = query_of(request.term)
        cursor = request.cursor
        own = {} if query.is_empty else await self._own_rooms(tx, request)
        if not own:
            return Results((), 0, (), None, lambda _key, _value: cursor)
        wanted = search_index.Wanted(
            words=[*(await stemmed(tx, self._dictionary, query.plain)).values(), *query.exact],
            rooms=own,
            keys=request.keys,
            senders=[cursor.sender] if cursor.sender is not None else request.wanted.senders,
        )
        gathered = await self._gather(tx, request, query, wanted, own)
        hits = gathered.hits
        if request.by_rank:
            hits.sort(key=lambda hit: (-hit.rank, -hit.seen.event.position))
        shown = hits[cursor.skipped : cursor.skipped + request.limit]
        share = gathered.left / gathered.looked_at if gathered.looked_at else 0
        count = cursor.given + gathered.counted + (0 if gathered.is_all else round(gathered.counted * share))

        def in_group(key: str, value: str) -> Cursor:
            only = Cursor(below=cursor.below, room_id=cursor.room_id, sender=cursor.sender)
            only = replace(only, room_id=value) if key == "room_id" else replace(only, sender=value)
            of_group = [hit for hit in hits[: cursor.skipped + request.limit] if _group_of(hit, key) == value]
            if request.by_rank:
                return replace(only, floor=gathered.low, skipped=len(of_group))
            return replace(only, below=of_group[-1].seen.event.position)

        highlights = await self._highlights(tx, query, shown)
        return Results(shown, count, highlights, _next(request, gathered, shown), in_group)

    async def _own_rooms(self, tx: Tx, request: SearchRequest) -> dict[int, int]:
        """The rooms that are searched, each with the last position of which the user may know."""
        found = await memberships.rooms_of(tx, request.user_id, tuple(Membership))
        forgotten = await memberships.forgotten(tx, request.user_id)
        only = request.only_rooms
        if request.cursor.room_id is not None:
            only = {request.cursor.room_id} if only is None or request.cursor.room_id in only else ()
        if only is not None:
            named = set((await rooms.find_many(tx, only)).values())
            found = {room: standing for room, standing in found.items() if room in named}
        return {
            room: position if membership in (Membership.LEAVE, Membership.BAN) else END
            for room, (membership, position) in found.items()
            if room not in forgotten
        }

    async def _gather(
        self, tx: Tx, request: SearchRequest, query: Query, wanted: search_index.Wanted, own: Mapping[int, int]
    ) -> _Gathered:
        """Results from the cursor on: enough for the page, or for all that it is ordered among."""
        cursor, deadline = request.cursor, time.monotonic() + SECONDS
        enough = RANKED if request.by_rank else request.limit
        gathered = _Gathered([], cursor.below - 1, 0, 0)
        candidates = 0
        while True:
            missing = enough - len(gathered.hits)
            found = await search_index.search(
                tx,
                wanted,
                below=gathered.low + 1,
                limit=min(missing + max(missing // 4, 10), MAX_CANDIDATES),
                seconds=deadline - time.monotonic(),
            )
            matches, low = found.matches, found.low
            if cursor.floor is not None and low <= cursor.floor:
                matches, low = [match for match in matches if match.position > cursor.floor], cursor.floor
            matches = [match for match in matches if match.position <= own.get(match.room, NOWHERE)]
            candidates += sum(not match.is_title for match in matches)
            hits = await self._check(tx, request, query, matches)
            gathered.counted += len(hits)
            gathered.is_all = low == NOWHERE
            if cursor.floor is None and len(hits) > missing:
                hits = hits[:missing]
                low = hits[-1].seen.event.position - 1
            gathered.hits += hits
            gathered.low = low
            gathered.looked_at += found.looked_at
            gathered.left = found.left
            if low in (NOWHERE, cursor.floor) or candidates >= MAX_CANDIDATES or time.monotonic() > deadline:
                return gathered
            if cursor.floor is None and len(gathered.hits) >= enough:
                return gathered

    async def _check(self, tx: Tx, request: SearchRequest, query: Query, matches: Sequence[Match]) -> list[Hit]:
        """Those of these events that have all words, and that the user may see and wants."""
        if not matches:
            return []
        edits = {match.edit for match in matches if match.edit is not None}
        stored = await events.by_positions(tx, {match.position for match in matches} | edits)
        known = await rooms.get_many(tx, {match.room for match in matches})
        encrypted = await search_index.encrypted(tx, known)
        by_room: dict[Room, list[StoredEvent]] = {}
        for event in stored.values():
            room = known.get(event.room)
            is_hidden = event.room in encrypted or event.redacted_by is not None or event.flags & events.UNSEEN
            if room is not None and not is_hidden and request.allows_room(room.room_id):
                by_room.setdefault(room, []).append(event)
        visible = await self._reader.visible_in(tx, request.user_id, by_room)
        seen = {each.event.position: each for of_room in visible.values() for each in of_room}
        texts: list[tuple[Seen, str, Words]] = []
        breath = Breath()
        for match in matches:
            text = _text_of(match, seen, request)
            if text is not None:
                texts.append((seen[match.position], text, words_of(text)))
                await breath.take(len(text))
        related = await self._related(tx, request, [each.event for each, _, _ in texts])
        initials = query.initials
        alike = {word for _, _, words in texts for word in words.plain if word[:1] in initials}
        stems = await stemmed(tx, self._dictionary, {*query.plain, *alike})
        terms = {stems[word] for word in query.plain}
        hits: list[Hit] = []
        for each, text, words in texts:
            folded = fold(text)
            if related is not None and each.event.event_id not in related:
                continue
            if terms <= {stems[word] for word in words.plain if word in stems} and all(
                run in folded for run in query.runs
            ):
                hits.append(Hit(known[each.event.room], each, _rank(query, words, folded), text))
        return hits

    async def _highlights(self, tx: Tx, query: Query, hits: Sequence[Hit]) -> set[str]:
        found: set[tuple[str, str]] = set()
        breath, initials = Breath(), query.initials
        if query.plain:
            for hit in hits:
                found.update(pair for pair in spellings(hit.text) if pair[1][:1] in initials)
                await breath.take(len(hit.text))
        stems = await stemmed(tx, self._dictionary, {*query.plain, *(word for _, word in found)})
        terms = {stems[word] for word in query.plain}
        return {written for written, word in found if stems[word] in terms} | set(query.runs)

    async def _related(self, tx: Tx, request: SearchRequest, stored: Sequence[StoredEvent]) -> Collection[str] | None:
        """Those of these events that the filter's relations let pass; None: all."""
        wanted = request.wanted
        if wanted.related_by_senders is None and wanted.related_by_rel_types is None:
            return None
        return await event_pages.related_among(tx, stored, wanted.related_by_senders, wanted.related_by_rel_types)


def _text_of(match: Match, seen: Mapping[int, Seen], request: SearchRequest) -> str | None:
    """What of the event is searched, if the user may see it, edit and all, and wants it."""
    if match.position not in seen or (match.edit is not None and match.edit not in seen):
        return None
    event = seen[match.position].event
    if event.state_key is None and event.sender in request.ignored:
        return None
    if request.cursor.sender not in (None, event.sender):
        return None
    if not request.wanted.allows_event(event.type, event.sender, event.content):
        return None
    found = find_text(event.type, event.state_key, event.content)
    if match.edit is not None:
        edit = seen[match.edit].event
        found = edited_text(edit.content) if edit.sender == event.sender else None
    return found.text if found is not None and found.key in request.keys else None


def _rank(query: Query, words: Words, folded: str) -> float:
    """How relevant a text is: one that says it often, and little else; best in the query's own words."""
    length = len(words.plain) + len(words.exact) / 2
    damping = 1.2 * (0.25 + 0.75 * length / 20)
    rank = 0.0
    for run in query.runs:
        often = min(folded.count(run), 100)
        rank += 2.2 * often / (often + damping)
    for word in query.plain:
        often = min(folded.count(word), 100) or 1
        rank += (2.2 if word in words.plain else 1.8) * often / (often + damping)
    if len(query.plain) > 1 and " ".join(query.plain) in folded:
        rank += 1.0
    return round(rank, 4)


def _group_of(hit: Hit, key: str) -> str:
    return hit.room.room_id if key == "room_id" else hit.seen.event.sender


def _next(request: SearchRequest, gathered: _Gathered, shown: Sequence[Hit]) -> Cursor | None:
    """Where the next page begins; None where there is nothing more."""
    cursor = request.cursor
    end = cursor.skipped + len(shown)
    if request.by_rank and end < len(gathered.hits):
        return replace(cursor, floor=gathered.low, skipped=end)
    if gathered.low == NOWHERE:
        return None
    given = cursor.given + len(gathered.hits)
    return replace(cursor, below=gathered.low + 1, floor=None, skipped=0, given=given)
