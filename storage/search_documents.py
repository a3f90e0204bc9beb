"""What the index of messages is made of: texts in events, edits in their places, and what is no longer there.

An edited message is found by what its newest edit says, the edit itself is not. Encrypted rooms are left out.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from federation.protocol.types import EventID, JsonObject
from storage import events, related_events, search_index
from storage.database import Tx
from storage.events import COLUMNS, UNSEEN, StoredEvent, from_row
from storage.search_index import Backlog, Document, Key
from storage.search_words import Words, words_of
from storage.strings import WELL_KNOWN

MAX_TEXT = 32_768
"""Characters of a text that are indexed."""
SCANNED = 1_000
"""Events of the backlog that are looked at in one transaction."""
_EVERYBODY = related_events.Eyes(None)
_REMEMBERED = 50_000
_MESSAGE = "m.room.message"


class Text(NamedTuple):
    """What of an event is searched."""

    key: Key
    text: str


def find_text(event_type: str, state_key: str | None, content: JsonObject) -> Text | None:
    """The text in an event that is searched, if there is any."""
    found: object = None
    key = Key.BODY
    if event_type == _MESSAGE and state_key is None:
        found = content.get("body")
    elif event_type == "m.room.name" and state_key == "":
        key, found = Key.NAME, content.get("name")
    elif event_type == "m.room.topic" and state_key == "":
        texts = dict.fromkeys(text for text in (content.get("topic"), _plain_topic(content)) if isinstance(text, str))
        key, found = Key.TOPIC, "\n".join(texts)
    return Text(key, found[:MAX_TEXT]) if isinstance(found, str) and found else None


def _plain_topic(content: JsonObject) -> str | None:
    """The `text/plain` representation in `m.topic`."""
    block = content.get("m.topic")
    forms = block.get("m.text") if isinstance(block, dict) else None
    for form in forms if isinstance(forms, list) else ():
        if isinstance(form, dict) and form.get("mimetype", "text/plain") == "text/plain":
            body = form.get("body")
            return body if isinstance(body, str) else None
    return None


def edited_text(content: JsonObject) -> Text | None:
    """What an edit of a message says instead."""
    new = content.get("m.new_content")
    return find_text(_MESSAGE, None, new) if isinstance(new, dict) else None


def _edits(event: StoredEvent) -> EventID | None:
    """The message that this one edits, if it is an edit."""
    relation = event.content.get("m.relates_to")
    if event.type != _MESSAGE or not isinstance(relation, dict) or relation.get("rel_type") != "m.replace":
        return None
    parent = relation.get("event_id")
    return EventID(parent) if isinstance(parent, str) and "\0" not in parent else EventID("")


# --- words


class Breath:
    """Lets others run while many long texts are looked at."""

    __slots__ = ("_characters",)

    def __init__(self) -> None:
        self._characters = 0

    async def take(self, characters: int) -> None:
        """So many were looked at."""
        self._characters += characters
        if self._characters >= MAX_TEXT:
            self._characters = 0
            await asyncio.sleep(0)


class _Stems:
    """What dictionaries made of words."""

    __slots__ = ("known",)

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], str] = {}


async def stemmed(tx: Tx, dictionary: str | None, words: Collection[str]) -> Mapping[str, str]:
    """What these words are indexed as: forms of one word are the same, as far as the dictionary knows."""
    if dictionary is None:
        return {word: word for word in words}
    known = tx.memory.part(_Stems).known
    missing = {word for word in words if (dictionary, word) not in known}
    found = await search_index.stems(tx, dictionary, missing) if missing else {}
    answer = {word: found.get(word) or known[dictionary, word] for word in words}
    if len(known) + len(found) > _REMEMBERED:
        known.clear()
    for word, stem in found.items():
        known[dictionary, word] = stem
    return answer


# --- indexing


async def index(
    tx: Tx,
    stored: Iterable[StoredEvent],
    dictionary: str | None,
    *,
    redacted: Collection[EventID] = (),
    rebuilding: bool = False,
) -> None:
    """Index these events, and take those out that are redacted by now. The caller holds the lock of the index."""
    originals: dict[EventID, StoredEvent] = {}
    parents: dict[EventID, int] = {}
    for event in stored:
        if event.flags & UNSEEN or not event.is_readable:
            continue
        parent = _edits(event)
        if parent is not None:
            parents[parent] = event.room
        elif find_text(event.type, event.state_key, event.content) is not None:
            originals[event.event_id] = event
    gone = await events.by_id(tx, redacted) if redacted else {}
    gone |= {event_id: event for event_id, event in originals.items() if event.redacted_by is not None}
    await search_index.remove(tx, [(event.room, event.position) for event in gone.values()])
    for event in gone.values():
        parent = _edits(event)
        if parent is not None:
            parents[parent] = event.room
    missing = parents.keys() - originals.keys()
    for event in (await events.by_id(tx, missing)).values() if missing else ():
        is_original = event.room == parents[event.event_id] and not event.flags & UNSEEN and _edits(event) is None
        if is_original and find_text(event.type, event.state_key, event.content) is not None:
            originals[event.event_id] = event
    hidden = await search_index.encrypted(tx, {event.room for event in originals.values()}) if originals else set()
    shown = [event for event in originals.values() if event.redacted_by is None and event.room not in hidden]
    await _write(tx, shown, dictionary, rebuilding=rebuilding)


async def _write(tx: Tx, shown: Sequence[StoredEvent], dictionary: str | None, *, rebuilding: bool) -> None:
    if not shown:
        return
    bands = search_index.look_for_bands(tx)
    edits = await related_events.newest_edits(tx, _EVERYBODY, [event for event in shown if event.type == _MESSAGE])
    texts: list[tuple[StoredEvent, StoredEvent | None, Key, Words]] = []
    breath = Breath()
    for event in shown:
        edit = edits.get(event.position)
        found = edited_text(edit.content) if edit is not None else None
        edit = edit if found is not None else None
        found = found or find_text(event.type, event.state_key, event.content)
        if found is not None:
            texts.append((event, edit, found.key, words_of(found.text)))
            await breath.take(len(found.text))
    stems = await stemmed(tx, dictionary, {word for *_, words in texts for word in words.plain})
    await search_index.write(
        tx,
        [
            Document(
                room=event.room,
                position=event.position,
                key=key,
                words={*(stems[word] for word in words.plain), *words.exact},
                sender=event.sender,
                edit=None if edit is None else edit.position,
            )
            for event, edit, key, words in texts
        ],
        bands,
        rebuilding=rebuilding,
    )


_REDACTION = "m.room.redaction"


async def index_backlog(tx: Tx, backlog: Backlog, dictionary: str | None) -> None:
    """Index the newest part of what was not indexed when it came. The caller holds the lock of the index."""
    where = "position > %s and position <= %s" + (" and room = %s" if backlog.room else "")
    of_room = (backlog.room,) if backlog.room else ()
    types = [WELL_KNOWN[name] for name in search_index.SEARCHED]
    rows = await tx.fetch(
        f"with scanned as materialized (select room, position, type from events where {where}"
        "  order by position desc limit %s)"
        f" select bounds.low, bounds.looked_at, {COLUMNS} from"
        " (select min(position) as low, count(*) as looked_at from scanned) as bounds left join"
        " (scanned join events on events.room = scanned.room and events.position = scanned.position"
        f"  and scanned.type = any(%s::int[]) and events.flags & {UNSEEN:d} = 0) on true",
        (backlog.low, backlog.high, *of_room, SCANNED, types),
    )
    stored = [from_row(row[2:]) for row in rows if row[2] is not None]
    redactions = [event for event in stored if event.type == _REDACTION]
    named = {target for event in redactions for target in _targets(event)}
    targets = await events.by_id(tx, named) if named else {}
    redacted = {event_id for event_id, event in targets.items() if event.redacted_by is not None}
    await index(tx, stored, dictionary, redacted=redacted, rebuilding=True)
    low, looked_at = rows[0][0], rows[0][1]
    await search_index.shorten_backlog(tx, backlog, backlog.low if looked_at < SCANNED else low - 1)


def _targets(redaction: StoredEvent) -> list[str]:
    found = (redaction.json.get("redacts"), redaction.content.get("redacts"))
    return [target for target in found if isinstance(target, str) and "\0" not in target]
