"""Two servers of one kind that share a room: what an event costs on either side, how long it takes, remote joins."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from benchmarks.cluster import Cluster
from benchmarks.figures import Figure
from benchmarks.http_client import RequestFailedError
from benchmarks.matrix import User, at_once, room_with
from benchmarks.measuring import Meter, quiet
from benchmarks.peering import Peering
from benchmarks.server import PREPARED, Server, free_port
from benchmarks.sizes import Sizes
from tests.federation.authority import Authority

_SENDERS = 8
_A_SECOND = 5
_JOINS_AT_ONCE = 16
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class _Pair:
    """Where things happen, and who hears of them."""

    near: Server
    far: Server

    def meters(self) -> tuple[Meter, Meter]:
        """One for each."""
        return Meter(self.near), Meter(self.far)

    async def quiet(self) -> None:
        """Return when neither has anything to do."""
        await quiet(self.near)
        await quiet(self.far)


async def run(server: Server, sizes: Sizes) -> Sequence[Figure]:
    """The given server idles beside them."""
    async with _two(server) as pair:
        return [
            *await _replicate(pair, sizes),
            *await _replicate_slowly(pair, sizes),
            *[
                figure
                for members, rooms in sizes.remote_members.items()
                for figure in await _join(pair, members, rooms)
            ],
        ]


@asynccontextmanager
async def _two(server: Server) -> AsyncIterator[_Pair]:
    """Each on a cluster of its own, so that the cost of each one's PostgreSQL is known."""
    async with AsyncExitStack() as stack:
        clusters = [stack.enter_context(Cluster()) for _ in range(2)]
        authority = Authority(clusters[0].directory)
        servers = []
        for name, cluster in zip(("near", "far"), clusters, strict=True):
            cluster.create_database(PREPARED)
            one = server.another(cluster, f"{server.name}-{name}", Peering.of(authority, free_port()))
            stack.push_async_callback(one.stop)
            await one.start()
            servers.append(one)
        yield _Pair(servers[0], servers[1])


async def _join_remotely(user: User, room_id: str, resident: Server) -> None:
    name = quote(resident.server_name, safe="")
    path = f"/v3/join/{quote(room_id, safe='')}?via={name}&server_name={name}"
    await user.request("POST", path, {})


async def _shared_room(pair: _Pair, senders: int) -> tuple[Sequence[User], User, str]:
    """Users near who are in a room, somebody far who is in it too, and its ID."""
    users = await pair.near.add_users(senders)
    (reader,) = await pair.far.add_users(1)
    room_id = await room_with(users[0], users[1:], joins_at_once=4)
    await _join_remotely(reader, room_id, pair.near)
    return users, reader, room_id


async def _arrival(reader: User, room_id: str, event_id: str) -> None:
    path = f"/v3/rooms/{quote(room_id, safe='')}/event/{quote(event_id, safe='')}"
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            try:
                await reader.request("GET", path)
            except RequestFailedError:
                await asyncio.sleep(0.05)
            else:
                return


async def _replicate(pair: _Pair, sizes: Sizes) -> Sequence[Figure]:
    """Near, eight users send, each its next message when its last one was answered; it ends when all have arrived."""
    users, reader, room_id = await _shared_room(pair, _SENDERS)
    near, far = pair.meters()

    async def send(user: User) -> None:
        await user.send(room_id)

    timed = near.timed(send)

    async def send_all(user: User) -> None:
        for _ in range(sizes.replicated // _SENDERS):
            await timed(user)

    for _ in range(max(1, sizes.warm_up // _SENDERS)):
        await at_once(_SENDERS, users, send)
    await _arrival(reader, room_id, await users[0].send(room_id))
    await pair.quiet()
    async with near.running(), far.running():
        await at_once(_SENDERS, users, send_all)
        await _arrival(reader, room_id, await users[0].send(room_id))
    far.waits = near.waits
    note = "waiting times are those of who sends"
    return [
        near.load("replicate one event, sending server", note),
        far.load("replicate one event, receiving server", note),
    ]


async def _replicate_slowly(pair: _Pair, sizes: Sizes) -> Sequence[Figure]:
    """Near, five messages a second; far, somebody waits in /sync. The wait is from sending to the sync's answer."""
    (user,), reader, room_id = await _shared_room(pair, 1)
    token = (await reader.sync())["next_batch"]
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}

    async def read(token: str) -> None:
        while len(seen) < sizes.replicated_slowly:
            answer = await reader.sync(timeout=30_000, since=token)
            now, token = time.perf_counter(), answer["next_batch"]
            room = answer.get("rooms", {}).get("join", {}).get(room_id, {})
            for event in room.get("timeline", {}).get("events", []):
                if event["type"] == "m.room.message":
                    seen[event["event_id"]] = now

    await pair.quiet()
    near, far = pair.meters()
    async with near.running(), far.running(), asyncio.timeout(_PATIENCE_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(read(token))
        for _ in range(sizes.replicated_slowly):
            begin = time.perf_counter()
            sent[await user.send(room_id)] = begin
            await asyncio.sleep(max(0, begin + 1 / _A_SECOND - time.perf_counter()))
    near.waits = far.waits = [seen[event_id] - begin for event_id, begin in sent.items()]
    return [
        near.load(f"{_A_SECOND} events a second, sending server"),
        far.load(f"{_A_SECOND} events a second, receiving server", "waiting times are from sending to the remote sync"),
    ]


async def _join(pair: _Pair, members: int, rooms: int) -> Sequence[Figure]:
    """Somebody far joins rooms near that nobody far is in, one after the other."""
    users = await pair.near.add_users(members)
    await at_once(4, users, User.arrive)
    room_ids = [await room_with(users[0], users[1:], joins_at_once=_JOINS_AT_ONCE) for _ in range(rooms)]
    (joiner,) = await pair.far.add_users(1)
    await joiner.arrive()
    near, far = pair.meters()

    async def join(room_id: str) -> None:
        await _join_remotely(joiner, room_id, pair.near)

    timed = far.timed(join)
    for room_id in room_ids:
        await pair.quiet()
        async with near.running(), far.running():
            await timed(room_id)
    near.waits = far.waits
    return [
        far.load(f"remote join, {members:,} members, joining server"),
        near.load(f"remote join, {members:,} members, resident server"),
    ]
