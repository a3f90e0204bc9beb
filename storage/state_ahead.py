"""A room's state before it counts: written in parts under a version of the trunk that the room has not reached yet.

That is for rooms that nobody of ours is in: what is read of them without a version is of no consequence then. It counts
once the room is at that version, by an entry of the log that says so and nothing else. Until then the room's row tells
what is ahead, and whoever begins anew takes it away.
"""

from collections.abc import Sequence

from storage import state_writes, strings
from storage.database import Tx
from storage.events import StateWrite
from storage.state_writes import Standing

_BY_KEY = "set local enable_hashjoin = off; set local enable_mergejoin = off; set local enable_seqscan = off"
"""As for the appender: what is replaced is found by its key, whatever the planner knows."""


async def write(tx: Tx, room: int, writes: Sequence[StateWrite], members: Standing) -> dict[str, int]:
    """Write some entries of the trunk, and add to the counts in `members` who joins and who is invited by them.

    Answers the numbers of the strings used, which are final once this is committed.
    """
    numbers = await strings.intern(tx, {text for entry in writes for text in (entry.type, entry.state_key)})
    await tx.run(_BY_KEY)
    await state_writes.write(tx, [(room, entry) for entry in writes], {room: members}, numbers)
    return numbers


async def discard(tx: Tx, room: int) -> None:
    """Take away what somebody wrote for a version of the room's trunk that it did not come to."""
    reached = f"(select state_version from rooms where room = {room:d})"
    await tx.run(
        f"delete from room_state where room = {room:d} and line = 0 and since_version > {reached};"
        f" update room_state set until_version = null where room = {room:d} and line = 0 and until_version > {reached}"
    )
