"""What servers reach each other by: a gate in front of each, which knows who comes and may be shut to some of them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.server import Server, ServerFailedError

_CHUNK = 1 << 16
_PART = 1 << 12
SWIFT_BYTES = 40_000
"""So much of what a server answers on one connection passes even while its answers are held up."""


@dataclass(eq=False)
class _Wire:
    """One connection and who made it."""

    origin: Server | None
    ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]

    def cut(self) -> None:
        for end in self.ends:
            if not end.is_closing():
                end.transport.abort()


class Gate:
    """Stands where others look for a server, and passes on what it hears from those that may come."""

    def __init__(self, links: "Links", server: Server) -> None:
        self._links = links
        self.server = server
        self._listener: asyncio.Server | None = None
        self._wires: set[_Wire] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Let others come."""
        assert self.server.peering is not None
        self._listener = await asyncio.start_server(self._accept, self.server.peering.address, self.server.peering.port)

    def cut(self, origin: Server) -> None:
        """End what that server has begun."""
        for wire in list(self._wires):
            if wire.origin is origin:
                wire.cut()

    async def close(self) -> None:
        """Let nobody come any more."""
        if self._listener is not None:
            self._listener.close()
        for wire in list(self._wires):
            wire.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._pass_on(reader, writer)
        except OSError:
            pass  # either side may be gone
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        origin = self._links.owner_of(writer.get_extra_info("peername"))
        assert self.server.peering is not None
        if self._links.is_cut(origin, self.server):
            return
        inner_reader, inner_writer = await asyncio.open_connection(
            self.server.peering.address, self.server.peering.own_port
        )
        wire = _Wire(origin, (writer, inner_writer))
        self._wires.add(wire)
        try:
            if self._links.is_cut(origin, self.server):  # meanwhile
                return
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_copy(reader, inner_writer))
                directions.create_task(self._answer(inner_reader, writer))
        except* OSError:
            pass  # it was cut, or either side is gone
        finally:
            self._wires.discard(wire)
            wire.cut()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held, passed = None, 0
        while data := await reader.read(_CHUNK):
            for start in range(0, len(data), _PART):
                part = data[start : start + _PART]
                if held is not self._links.held(self.server):
                    held, passed = self._links.held(self.server), 0
                passed += len(part)
                if held is not None and passed > SWIFT_BYTES:
                    await held.wait()
                writer.write(part)
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Links:
    """The ways between servers; from each to each other one, which may be cut."""

    def __init__(self) -> None:
        self._gates: list[Gate] = []
        self._cut: set[tuple[Server, Server]] = set()
        self._held: dict[Server, asyncio.Event] = {}

    async def add(self, server: Server) -> None:
        """Open a way to one more."""
        gate = Gate(self, server)
        self._gates.append(gate)
        await gate.open()

    def is_cut(self, origin: Server | None, destination: Server) -> bool:
        """Whether nothing passes; who is not one of the servers always may."""
        return origin is not None and (origin, destination) in self._cut

    def set_cut(self, ways: set[tuple[Server, Server]]) -> None:
        """Cut these ways, where each is from whom to whom, and restore all others."""
        self._cut = set(ways)
        for gate in self._gates:
            for origin, destination in ways:
                if gate.server is destination:
                    gate.cut(origin)

    @contextmanager
    def holding_up(self, server: Server) -> Iterator[None]:
        """Have the server's answers stop after a while, unless they are small."""
        event = self._held[server] = asyncio.Event()
        try:
            yield
        finally:
            del self._held[server]
            event.set()

    def held(self, server: Server) -> asyncio.Event | None:
        """What the server's answers wait for, if they are held up."""
        return self._held.get(server)

    def owner_of(self, address: tuple[str, int]) -> Server | None:
        """Whose end of a connection that is."""
        for gate in self._gates:
            try:
                server = psutil.Process(gate.server.pid)
                processes = [server, *server.children(recursive=True)]  # one that is several, where it is so
            except (psutil.NoSuchProcess, ServerFailedError):  # it died
                continue
            if any(_has_connection_from(process, address[1]) for process in processes):
                return gate.server
        return None

    async def close(self) -> None:
        """Nobody reaches anybody any more."""
        for gate in self._gates:
            await gate.close()


def _has_connection_from(process: psutil.Process, port: int) -> bool:
    try:
        return any(tuple(connection.laddr)[1] == port for connection in process.net_connections(kind="tcp"))
    except psutil.NoSuchProcess:
        return False


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
