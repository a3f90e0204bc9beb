"""Paging back through a room's history, page by page, as a reader who scrolls up does."""

from collections.abc import Sequence

from benchmarks.figures import Figure
from benchmarks.matrix import User, at_once, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.server import Server
from benchmarks.sizes import Sizes

_PAGE = 50


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """Each reader goes back through all messages; on a server that was just started, so that memory does not help."""
    users = await server.add_users(8 + sizes.page_readers)
    room_id = await room_with(users[0], users[1:])
    each = sizes.page_messages // 8

    async def talk(user: User) -> None:
        for _ in range(each):
            await user.send(room_id)

    await at_once(8, users[:8], talk)
    await server.restart()
    meter = Meter(server)
    for reader in users[8:]:
        await reader.messages(room_id, dir="b", limit=1)
        await quiet(server)
        async with meter.running():
            await _read_all(meter, reader, room_id, 8 * each)
    note = "" if sizes.page_messages == 2000 else f"of {sizes.page_messages} messages"
    return [meter.load(f"page back, {_PAGE} events", note)]


async def _read_all(meter: Meter, reader: User, room_id: str, messages: int) -> None:
    seen: set[str] = set()
    position = ""

    async def turn(_page: int) -> None:
        nonlocal position
        query: dict[str, str | int] = {"dir": "b", "limit": _PAGE}
        answer = await reader.messages(room_id, **(query | {"from": position} if position else query))
        seen.update(event["event_id"] for event in answer["chunk"] if event["type"] == "m.room.message")
        position = answer.get("end", "")

    timed = meter.timed(turn)
    for page in range(messages // _PAGE):
        await timed(page)
    if len(seen) < (messages // _PAGE) * _PAGE - _PAGE:
        raise AssertionError(f"only {len(seen)} of {messages} messages were there")
