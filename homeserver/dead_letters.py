"""What `hearth federation dead-letters` shows: other servers' events that could not be processed."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from storage import dead_letters
from storage.database import Database
from storage.dead_letters import DeadLetter


async def show(database: Database, limit: int) -> list[str]:
    """The newest letters as lines of text, after one that counts them all."""
    async with database.read() as tx:
        total, given_up = await dead_letters.count(tx)
        letters = await dead_letters.listed(tx, limit)
    if not total:
        return ["Every event that other servers sent was processed."]
    head = f"{total} events of other servers could not be processed, of which {given_up} are not tried any more."
    return [head, *_described(letters)]


async def retry(database: Database) -> str:
    """Have all of them tried again at once."""
    async with database.transaction() as tx:
        count = await dead_letters.retry_all(tx, time.time_ns() // 1_000_000)
    return f"{count} events are tried again by the server, as soon as it runs."


def _described(letters: Sequence[DeadLetter]) -> list[str]:
    lines: list[str] = []
    for letter in letters:
        again = "is not tried any more" if letter.retry_ts is None else f"is tried again at {_time(letter.retry_ts)}"
        lines += [
            "",
            f"{letter.event_id} in {letter.room_id} from {letter.origin}",
            f"  came at {_time(letter.received_ts)}, failed {letter.attempts} times, {again}",
            f"  {letter.reason}",
        ]
    return lines


def _time(ts: int) -> str:
    return datetime.fromtimestamp(ts / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
