"""A wire between the server and PostgreSQL that breaks at the worst moment: around the commit of an append."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from storage.cluster_settings import PORT
from tests.scenarios.hearth_process import a_directory

_RESERVING = b"update log_head set position"
_PREPARED = re.compile(rb"(_pg3_\d+)\0commit\0")
_UNPREPARED = re.compile(rb"P....\0commit\0", re.DOTALL)


class Cut(Enum):
    """Where the next commit's connection breaks."""

    BEFORE = auto()
    """PostgreSQL never hears of it, and rolls back."""
    AFTER = auto()
    """PostgreSQL commits; its answer is lost."""


class _Appending:
    """Finds, in what is sent to PostgreSQL on one connection, the commits of an appender."""

    def __init__(self) -> None:
        self._is_appender = False
        self._names: set[bytes] = set()
        """What commits are prepared as."""

    def commits(self, data: bytes) -> bool:
        """Whether there is one."""
        self._is_appender |= _RESERVING in data
        self._names.update(_PREPARED.findall(data))
        is_bound = any(b"\0%b\0" % name in data for name in self._names)
        return self._is_appender and (is_bound or _UNPREPARED.search(data) is not None)


@dataclass(frozen=True)
class _Wire:
    ends: tuple[asyncio.StreamWriter, ...]
    directions: tuple[asyncio.Task[None], ...]

    async def cut(self) -> None:
        for task in self.directions:
            task.cancel()
        await asyncio.gather(*self.directions, return_exceptions=True)
        for end in self.ends:
            end.close()


class CuttingProxy:
    """Passes on what it hears, until it is told to cut."""

    def __init__(self, target: Path, conninfo: str) -> None:
        self._target = target
        self.conninfo = conninfo
        """How to connect through it."""
        self._cut: Cut | None = None
        self._wires: list[_Wire] = []

    @property
    def is_armed(self) -> bool:
        """Whether the commit that breaks is still to come."""
        return self._cut is not None

    def arm(self, cut: Cut) -> None:
        """Break the wire of the next commit."""
        self._cut = cut

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        backend_reader, backend_writer = await asyncio.open_unix_connection(str(self._target))
        is_committing = asyncio.Event()
        wire = _Wire(
            (writer, backend_writer),
            (
                asyncio.create_task(self._to_backend(reader, backend_writer, is_committing)),
                asyncio.create_task(self._to_server(backend_reader, writer, is_committing)),
            ),
        )
        self._wires.append(wire)
        await asyncio.wait(wire.directions, return_when=asyncio.FIRST_COMPLETED)
        await wire.cut()

    async def _to_backend(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_committing: asyncio.Event
    ) -> None:
        appending = _Appending()
        while data := await reader.read(1 << 20):
            if appending.commits(data) and self._cut is not None:
                cut, self._cut = self._cut, None
                if cut is Cut.BEFORE:
                    return
                is_committing.set()
            writer.write(data)
            await writer.drain()

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_committing: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 20):
            if is_committing.is_set():
                return
            writer.write(data)
            await writer.drain()

    async def close(self) -> None:
        """Break every wire."""
        for wire in self._wires:
            await wire.cut()


@asynccontextmanager
async def cutting_proxy(conninfo: str) -> AsyncIterator[CuttingProxy]:
    """A wire to this database, which is reached by a unix socket."""
    directory = a_directory()
    name = f".s.PGSQL.{PORT}"
    target = Path(str(conninfo_to_dict(conninfo)["host"])) / name
    proxy = CuttingProxy(target, make_conninfo(conninfo, host=str(directory)))
    listener = await asyncio.start_unix_server(proxy.accept, path=directory / name)
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.close()
        shutil.rmtree(directory)
