"""The index of messages: which events have which words (Client-Server API, "Server Side Search").

A row of `search_messages` holds the words of one event as numbers, in a GIN index; no text. Rows are written in *bands*
of `BAND_SIZE` whose number is part of each of theirs, so that whoever looks for the newest matches looks through one
band after the other, and stops: a word that half of all messages have costs no more than a rare one. A band's row says
which positions it spans. Matches are candidates: two words may have the same number, and who searches checks each
event anyway.

Names and topics of rooms are few, so that all of them are candidates: `search_titles` says where they are.

Everything is written under the lock of the follower's row (`followers.hold`), by which what is indexed and what is
taken out follow each other: what was redacted before is not indexed, what is redacted later is taken out later.
"""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum, IntEnum, auto
from zlib import crc32

from msgspec import Struct

from storage.arrays import Int4, Int8, Texts
from storage.database import Later, Row, Tx
from storage.strings import WELL_KNOWN

FOLLOWER = "search"
"""The name of the follower that writes here."""
BAND_SIZE = 65_536
_BANDS = 32_768
"""Beyond so many their numbers begin anew, and two bands share what they hold."""
_BITS = 17
"""Of a word's number: with more of them the index is larger, with fewer more matches are none."""
_MASK = (1 << _BITS) - 1
MAX_ROOM_WORDS = 200
"""Rooms that the index is asked for; of more rooms each row found is looked at."""
_SKIMMED = 1_000
"""The newest events, which are looked at one by one before the index is asked."""
_SKIMMED_BANDS = 4
_PROBED = 32
"""Bands that are looked through at once."""
_TITLES = 500
"""Names and topics that are named at once."""

SEARCHED = frozenset(("m.room.message", "m.room.name", "m.room.topic", "m.room.redaction"))
"""Types of events that change what is to be found."""

NOWHERE, _EVERYTHING = -(1 << 62), 1 << 62


class Key(Enum):
    """What of an event is searched."""

    BODY = auto()
    NAME = auto()
    TOPIC = auto()


class Kind(IntEnum):
    """What a band is for. The numbers are stored."""

    NEW = 1
    """What comes, in the order of positions."""
    OLD = 2
    """What comes and belongs among what is older: it spans much."""
    REBUILT = 3
    """What was there before the index was, the newest first."""


class Document(Struct, frozen=True):
    """An event to be found."""

    room: int
    position: int
    key: Key
    words: Collection[str]
    sender: str
    edit: int | None = None
    """Where the edit stands from which the words come."""


class Match(Struct, frozen=True):
    """An event that seems to have all words."""

    position: int
    room: int
    edit: int | None
    is_title: bool = False
    """Nothing is known but that it is a name or a topic."""


class Found(Struct, frozen=True):
    """The newest matches below a position."""

    matches: Sequence[Match]
    low: int
    """Above it there are no more; `NOWHERE` once these are all."""
    looked_at: float
    left: float
    """About how many events of the index stand above and below `low`."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What is looked for: all words, in one of these rooms, by one of these senders if any, under one of these keys."""

    words: Collection[str]
    rooms: Collection[int]
    keys: Collection[Key]
    senders: Collection[str] | None = None


# --- numbers of words


def _number(band: int, word: str) -> int:
    return ((band % _BANDS) << _BITS | crc32(word.encode("utf-8", "replace")) & _MASK) - (1 << 31)


def _numbers(band: int, words: Iterable[str]) -> list[int]:
    first = _number(band, "")  # crc32 of nothing is 0
    return sorted({first + (crc32(word.encode("utf-8", "replace")) & _MASK) for word in words})


def _room_word(room: int) -> str:
    return f"\0r{room}"


def _sender_word(sender: str) -> str:
    return f"\0s{sender}"


def _literal(numbers: Iterable[int]) -> str:
    return f"{{{','.join(map(str, numbers))}}}"


# --- writing


async def prepare(tx: Tx, version: str, position: int) -> bool:
    """Empty the index, and note what it has to be filled with up to a position, unless it is of this version already;
    whether that was to be done. The caller holds the lock."""
    row = await tx.fetch_one("select version from index_versions where name = %s", (FOLLOWER,))
    if row is not None and row[0] == version:
        return False
    await clear(tx)
    await tx.execute("insert into index_versions (name, version) values (%s, %s)", (FOLLOWER, version))
    await tx.execute("insert into search_backlog (room, low, high) values (0, 0, %s)", (position,))
    return True


async def exists(tx: Tx) -> bool:
    """Whether there is an index, complete or not."""
    return await tx.fetch_one("select 1 from index_versions where name = %s", (FOLLOWER,)) is not None


async def clear(tx: Tx) -> None:
    """Forget the whole index."""
    await tx.execute("truncate search_bands, search_messages, search_titles, search_backlog")
    await tx.execute("delete from index_versions where name = %s", (FOLLOWER,))


async def write(tx: Tx, documents: Sequence[Document], open_bands: Later, *, rebuilding: bool = False) -> None:
    """Index these events, or index them anew, except those that are redacted, by the commit at the latest. The caller
    holds the lock."""
    _write_titles(tx, [document for document in documents if document.key is not Key.BODY])
    documents = [document for document in documents if document.key is Key.BODY]
    if not documents:
        return
    bands = _read_bands(await tx.rows_of(open_bands))
    new = bands.get(Kind.NEW)
    by_kind: dict[Kind, list[Document]] = {}
    for document in documents:
        is_old = new is not None and document.position < new.low
        kind = Kind.REBUILT if rebuilding else Kind.OLD if is_old else Kind.NEW
        by_kind.setdefault(kind, []).append(document)
    rows: list[tuple[Document, list[int]]] = []
    for kind, of_kind in by_kind.items():
        band = bands.get(kind)
        number = await _extend(tx, None if band is None else band.number, kind, of_kind)
        rows += (
            (each, _numbers(number, [*each.words, _room_word(each.room), _sender_word(each.sender)]))
            for each in of_kind
        )
    tx.later(
        "insert into search_messages (position, edit, room, words)"
        " select given.position, edit, given.room, words::int[]"
        " from unnest(%s::bigint[], %s::bigint[], %s::int[], %s::text[]) as given(position, edit, room, words)"
        " join events on events.room = given.room and events.position = given.position and redacted_by is null"
        " on conflict (position) do update set edit = excluded.edit, words = excluded.words",
        (
            Int8(document.position for document, _ in rows),
            Int8(document.edit for document, _ in rows),
            Int4(document.room for document, _ in rows),
            Texts(_literal(numbers) for _, numbers in rows),
        ),
    )


def _write_titles(tx: Tx, documents: Sequence[Document]) -> None:
    if documents:
        tx.later(
            "insert into search_titles (room, position) select given.room, given.position"
            " from unnest(%s::int[], %s::bigint[]) as given(room, position)"
            " join events on events.room = given.room and events.position = given.position and redacted_by is null"
            " on conflict do nothing",
            (Int4(document.room for document in documents), Int8(document.position for document in documents)),
        )


class _Band(Struct, frozen=True):
    number: int
    low: int
    high: int
    messages: int

    def messages_below(self, position: int) -> float:
        """About how many."""
        span = self.high - self.low + 1
        return self.messages * min(max(position - self.low, 0), span) / span


def look_for_bands(tx: Tx) -> Later:
    """Have looked for the bands that are written to, which `write` needs."""
    return tx.later(
        "select distinct on (kind) kind, band, low, high, messages from search_bands order by kind, band desc"
    )


def _read_bands(rows: Iterable[Row]) -> dict[Kind, _Band]:
    """The band of each kind that is written to; none where it is full."""
    return {
        Kind(kind): _Band(band, low, high, messages) for kind, band, low, high, messages in rows if messages < BAND_SIZE
    }


async def _extend(tx: Tx, band: int | None, kind: Kind, documents: Sequence[Document]) -> int:
    """Make room for documents in a band, or in a new one; its number."""
    low, high = min(each.position for each in documents), max(each.position for each in documents)
    if band is None:
        row = await tx.fetch_one(
            "insert into search_bands (kind, low, high, messages) values (%s, %s, %s, %s) returning band",
            (int(kind), low, high, len(documents)),
        )
        return 0 if row is None else int(row[0])
    tx.later(
        "update search_bands set low = least(low, %s), high = greatest(high, %s), messages = messages + %s"
        " where band = %s",
        (low, high, len(documents), band),
    )
    return band


async def remove(tx: Tx, places: Collection[tuple[int, int]]) -> None:
    """Take the events with these rooms and positions out of the index. The caller holds the lock."""
    if places:
        rooms, positions = Int4(room for room, _ in places), Int8(position for _, position in places)
        await tx.execute("delete from search_messages where position = any(%s::bigint[])", (positions,))
        await tx.execute(
            "delete from search_titles using unnest(%s::int[], %s::bigint[]) as gone(room, position)"
            " where search_titles.room = gone.room and search_titles.position = gone.position",
            (rooms, positions),
        )


async def remove_rooms(tx: Tx, rooms: Collection[int], *, limit: int) -> int:
    """Take some of what is indexed of these rooms out of it; how many. The caller holds the lock."""
    await tx.execute("delete from search_titles where room = any(%s::int[])", (list(rooms),))
    bands = [band.number for band in await _bands_below(tx, _EVERYTHING)]
    numbers = sorted({_number(band, _room_word(room)) for band in bands for room in rooms})
    await tx.execute("set local enable_seqscan to off")
    return await tx.execute(
        "delete from search_messages where position in"
        " (select position from search_messages where words && %s::int[] and room = any(%s::int[]) limit %s)",
        (Int4(numbers), list(rooms), limit),
    )


async def encrypted(tx: Tx, rooms: Collection[int]) -> set[int]:
    """Those of these rooms that are encrypted: they are not searched."""
    rows = await tx.fetch(
        "select room from room_state where room = any(%s::int[]) and line = 0 and until_version is null"
        " and event is not null and type = %s and state_key = %s",
        (list(rooms), WELL_KNOWN["m.room.encryption"], WELL_KNOWN[""]),
    )
    return {room for (room,) in rows}


# --- what is still to be indexed


class Backlog(Struct, frozen=True):
    """A part of a room's history, or of that of all rooms, that is to be indexed."""

    room: int
    """0: of all rooms."""
    low: int
    high: int
    """Positions: after the first, up to the second."""


async def note_history(tx: Tx, room: int, positions: Collection[int]) -> None:
    """Have events indexed that came without being told of: history."""
    await tx.execute(
        "insert into search_backlog (room, low, high) select %s, %s, %s from index_versions where name = %s"
        " on conflict (room, high) do update set low = least(search_backlog.low, excluded.low)",
        (room, min(positions) - 1, max(positions), FOLLOWER),
    )


async def has_backlog(tx: Tx) -> bool:
    """Whether something is still to be indexed."""
    return await tx.fetch_one("select 1 from search_backlog limit 1") is not None


async def next_backlog(tx: Tx) -> Backlog | None:
    """What is to be indexed next: the newest. The caller holds the lock."""
    row = await tx.fetch_one("select room, low, high from search_backlog order by high desc, room desc limit 1")
    return None if row is None else Backlog(*row)


async def shorten_backlog(tx: Tx, backlog: Backlog, upto: int) -> None:
    """What of it stands above a position is indexed. The caller holds the lock."""
    await tx.execute("delete from search_backlog where room = %s and high = %s", (backlog.room, backlog.high))
    if upto > backlog.low:
        await tx.execute(
            "insert into search_backlog (room, low, high) values (%s, %s, %s)"
            " on conflict (room, high) do update set low = least(search_backlog.low, excluded.low)",
            (backlog.room, backlog.low, upto),
        )


# --- searching


async def search(tx: Tx, wanted: Wanted, *, below: int, limit: int, seconds: float) -> Found:
    """The newest matches below a position: `limit` of them or more, if there are; fewer when the time is up."""
    deadline = time.monotonic() + seconds
    bands: Sequence[_Band] = ()
    found: Sequence[Match] = ()
    low = NOWHERE
    if Key.BODY in wanted.keys:
        bands = await _bands_below(tx, below)
        await tx.execute("set local enable_seqscan to off")
        found, low = await _skim(tx, wanted, bands, below, limit)
        if len(found) < limit and low != NOWHERE:
            found, low = await _look_through(tx, wanted, bands, below, limit, deadline)
    if any(key is not Key.BODY for key in wanted.keys):
        found, low = await _with_titles(tx, wanted, found, below, low)
    left = sum(band.messages_below(low) for band in bands)
    return Found(found, low, sum(band.messages_below(below) for band in bands) - left, left)


async def _with_titles(
    tx: Tx, wanted: Wanted, found: Sequence[Match], below: int, low: int
) -> tuple[Sequence[Match], int]:
    """These matches with the names and topics among them; and above which position these are all."""
    rows = await tx.fetch(
        "select position, room from search_titles where room = any(%s::int[]) and position < %s and position > %s"
        " order by position desc limit %s",
        (list(wanted.rooms), below, low, _TITLES),
    )
    if len(rows) == _TITLES:
        low = rows[-1][0] - 1
    titles = [Match(position, room, None, is_title=True) for position, room in rows]
    both = [*(match for match in found if match.position > low), *titles]
    return sorted(both, key=lambda match: -match.position), low


async def _look_through(
    tx: Tx, wanted: Wanted, bands: Sequence[_Band], below: int, limit: int, deadline: float
) -> tuple[Sequence[Match], int]:
    """The newest matches of these bands, and above which position there are no more."""
    pending: list[Match] = []
    first, size, cut_at = 0, 1, NOWHERE
    low = NOWHERE
    while first < len(bands):
        group = bands[first : first + size]
        for of_band in (await _probe(tx, wanted, [band.number for band in group], below, limit)).values():
            if len(of_band) == limit:  # there may be more of it
                cut_at = max(cut_at, of_band[-1].position - 1)
            pending.extend(of_band)
        first, size = first + size, min(2 * size, _PROBED)
        low = max(cut_at, bands[first].high if first < len(bands) else NOWHERE)
        is_enough = sum(match.position > low for match in pending) >= limit
        if is_enough or (time.monotonic() > deadline and low < below - 1):
            break
    return sorted((match for match in pending if match.position > low), key=lambda match: -match.position), low


async def _skim(tx: Tx, wanted: Wanted, bands: Sequence[_Band], below: int, limit: int) -> tuple[Sequence[Match], int]:
    """Matches among the newest events, one by one: what many of them have is found so, without collecting them all."""
    looked_at, rest = bands[:_SKIMMED_BANDS], bands[_SKIMMED_BANDS:]
    floor = rest[0].high if rest else NOWHERE
    if not looked_at or floor >= below - 1:
        return (), below - 1 if bands else NOWHERE
    matching: list[str] = []
    values: list[object] = []
    for band in looked_at:
        all_of, _, by_senders = _asked(wanted, band.number)
        matching.append("words @> %s::int[]" + ("" if wanted.senders is None else " and words && %s::int[]"))
        values += [Int4(all_of)] if wanted.senders is None else [Int4(all_of), Int4(by_senders)]
    rows = await tx.fetch(
        "with newest as materialized (select position, room, edit, words from search_messages"
        "  where position < %s and position > %s order by position desc limit %s)"
        " select bounds.low, bounds.looked_at, found.position, found.room, found.edit"
        " from (select min(position) as low, count(*) as looked_at from newest) as bounds"
        " left join (select position, room, edit from newest where room = any(%s::int[])"
        f"  and ({' or '.join(f'({each})' for each in matching)})"
        "  order by position desc limit %s) as found on true order by found.position desc",
        (
            *(below, floor, _SKIMMED),
            *(list(wanted.rooms), *values, limit),
        ),
    )
    found = [Match(*row[2:]) for row in rows if row[2] is not None]
    if len(found) == limit:
        return found, found[-1].position - 1
    return found, floor if rows[0][1] < _SKIMMED else rows[0][0] - 1


async def _bands_below(tx: Tx, below: int) -> list[_Band]:
    rows = await tx.fetch(
        "select band, low, high, messages from search_bands where low < %s order by high desc", (below,)
    )
    return [_Band(*row) for row in rows]


def _asked(wanted: Wanted, band: int) -> tuple[list[int], list[int], list[int]]:
    """The numbers in a band that a match has all of; those of rooms, if these are few, and of senders: it has one."""
    in_rooms = [_room_word(room) for room in wanted.rooms] if len(wanted.rooms) <= MAX_ROOM_WORDS else []
    return (
        _numbers(band, wanted.words),
        _numbers(band, in_rooms),
        _numbers(band, [_sender_word(sender) for sender in wanted.senders or ()]),
    )


async def _probe(tx: Tx, wanted: Wanted, bands: Sequence[int], below: int, limit: int) -> Mapping[int, Sequence[Match]]:
    """For each of these bands its newest matches below a position, newest first."""
    conditions = "words @> probe.all_of"
    if len(wanted.rooms) <= MAX_ROOM_WORDS:
        conditions += " and words && probe.in_rooms"
    if wanted.senders is not None:
        conditions += " and words && probe.by_senders"
    values: list[object] = [value for band in bands for value in (band, *map(Int4, _asked(wanted, band)))]
    probes = ", ".join(["(%s::int, %s::int[], %s::int[], %s::int[])"] * len(bands))
    rows = await tx.fetch(
        "select band, found.position, found.room, found.edit"
        f" from (values {probes}) as probe(band, all_of, in_rooms, by_senders), lateral"
        # By its words alone (`offset 0`): in the order of positions PostgreSQL might look at every row there is.
        "  (select position, room, edit from (select position, room, edit from search_messages"
        f"   where {conditions} offset 0) as candidates where room = any(%s::int[]) and position < %s"
        "  order by position desc limit %s) as found order by band, found.position desc",
        (*values, list(wanted.rooms), below, limit),
    )
    answer: dict[int, list[Match]] = {}
    for band, *match in rows:
        answer.setdefault(band, []).append(Match(*match))
    return answer


async def stems(tx: Tx, dictionary: str, words: Collection[str]) -> dict[str, str]:
    """What PostgreSQL's dictionary makes of words: forms of one word become the same. What it would leave out stays."""
    rows = await tx.fetch(
        "select word, coalesce((ts_lexize(%s::regdictionary, word))[1], word) from unnest(%s::text[]) as word",
        (dictionary, Texts(words)),
    )
    return {word: stem for word, stem in rows}
