"""Entries that are written together, for `log.py`: what is loaded for them, which may be written, who is answered."""

import asyncio
import contextvars
import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, field

from storage.database import Memory, Row, Statement, Tx
from storage.log_entries import Appended, Change, Entry


class Pending(Struct):
    entry: Entry
    future: asyncio.Future[Appended]
    given: Sequence[Change]
    """The entry's changes before its work added any."""
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Of who appends it, for what the log has to say of it."""
    since: float = field(default_factory=time.monotonic)
    first: int = 0
    result: Any = None
    is_settled: bool = False
    was_retried: bool = False


def split_alone(batch: Sequence[Pending]) -> list[list[Pending]]:
    """The batch in order, each entry that stands alone in a part of its own."""
    parts: list[list[Pending]] = [[]]
    for pending in batch:
        if pending.entry.stands_alone:
            parts.extend(([pending], []))
        else:
            parts[-1].append(pending)
    return [part for part in parts if part]


def fail(batch: Sequence[Pending], error: Exception) -> None:
    for pending in batch:
        refuse(pending, error)


def accept(pending: Pending) -> None:
    pending.is_settled = True
    if not pending.future.done():
        pending.future.set_result(Appended(pending.first + pending.entry.reserved - 1, pending.result))


def refuse(pending: Pending, error: Exception) -> None:
    if pending.is_settled:
        return
    pending.is_settled = True
    if pending.entry.on_refused is not None:
        pending.entry.on_refused()
    if not pending.future.done():
        pending.future.set_exception(error)


def preloads(memory: Memory, batch: Sequence[Pending]) -> dict[Any, Sequence[Statement]]:
    """What to load with the lock, by kind of change."""
    if any(pending.entry.work is not None for pending in batch):
        return {}
    conditional: dict[Any, list[Change]] = {}
    for pending in batch:
        for change in pending.entry.changes:
            if hasattr(change, "preload"):
                conditional.setdefault(type(change), []).append(change)
    return {kind: kind.preload(memory, changes) for kind, changes in conditional.items()}


def by_preload(
    preloaded: Mapping[Any, Sequence[Statement]], answers: Sequence[Sequence[Row]]
) -> dict[Any, Sequence[Sequence[Row]]]:
    """The answers to all those statements, in their order, by kind of change."""
    found: dict[Any, Sequence[Sequence[Row]]] = {}
    for kind, statements in preloaded.items():
        found[kind], answers = answers[: len(statements)], answers[len(statements) :]
    return found


async def admit(
    tx: Tx, batch: Sequence[Pending], refused: dict[int, Exception], loaded: Mapping[Any, Sequence[Sequence[Row]]]
) -> list[tuple[int, Change]]:
    """The changes that may be written, with their positions; adds the entries that may not to `refused`."""
    conditional: dict[Any, list[tuple[Pending, tuple[int, Change]]]] = {}
    placed: list[tuple[Pending, int, Change]] = []
    for pending in batch:
        if id(pending) in refused:
            continue
        position = pending.first
        for change in pending.entry.changes:
            placed.append((pending, position, change))
            if hasattr(change, "admit"):
                conditional.setdefault(type(change), []).append((pending, (position, change)))
            position += change.width
    for kind, rows in conditional.items():
        found = loaded.get(kind)
        if found is None:  # work came in between
            found = await tx.fetch_each(*kind.preload(tx.memory, [change for _, (_, change) in rows]))
        errors = await kind.admit(tx, [row for _, row in rows], found)
        for (pending, _), error in zip(rows, errors, strict=True):
            if error is not None:
                refused[id(pending)] = error
    return [(position, change) for pending, position, change in placed if id(pending) not in refused]


def by_kind(changes: Sequence[tuple[int, Change]]) -> dict[type[Change], list[tuple[int, Change]]]:
    grouped: dict[type[Change], list[tuple[int, Change]]] = {}
    for position, change in changes:
        grouped.setdefault(type(change), []).append((position, change))
    return grouped
