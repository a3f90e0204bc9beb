"""Receipts that moved since clients of sliding sync were told, in each room from where the client has it."""

from collections.abc import Mapping

from homeserver.services.sliding_lists import SlidingMoment
from storage import receipts
from storage.database import Database
from storage.receipts import ReceiptMoved
from storage.tail import Tail


async def receipts_since(
    database: Database, tail: Tail, moment: SlidingMoment, places: Mapping[int, int], *, own_only: bool = False
) -> list[ReceiptMoved]:
    """What the user may know of receipts that moved in these rooms, each after a place of its own, in order.

    With `own_only` at least their own.
    """
    moved: list[tuple[int, ReceiptMoved]] = []
    old = {room: at for room, at in places.items() if at < tail.floor}
    upto = moment.upto.position
    recent = {room: at for room, at in places.items() if room not in old}
    for room, at in recent.items():
        if tail.last_in_room(room) > at:
            moved.extend(
                (i, each) for i, each in tail.in_room(room, at) if isinstance(each, ReceiptMoved) and i <= upto
            )
    if recent:
        for i, each in tail.for_user(moment.view.user_id, min(recent.values())):
            if isinstance(each, ReceiptMoved) and recent.get(each.room, upto) < i <= upto:
                moved.append((i, each))
    moved.sort(key=lambda pair: pair[0])
    found = [each for _, each in moved]
    if old:
        async with database.read() as tx:
            found.extend(await receipts.moved_after(tx, moment.view.user_id, old, upto, own_only=own_only))
    return found
