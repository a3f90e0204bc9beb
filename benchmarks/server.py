"""A server under test: its process, its cluster and database, and how it gets users."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from benchmarks import processes
from benchmarks.cluster import Databases
from benchmarks.http_client import HttpClient, RequestFailedError
from benchmarks.matrix import User
from benchmarks.peering import Peering

SERVER_NAME = "bench.test"
PREPARED = "prepared"
"""The database that every scenario starts with a copy of."""

_CHECKOUT = Path(__file__).resolve().parent.parent
_START_SECONDS = 120.0
_STOP_SECONDS = 30.0


class ServerFailedError(Exception):
    """The server did not start, or ended by itself."""


@dataclass(frozen=True, slots=True)
class Start:
    """What it took until the server answered."""

    cpu_seconds: float
    postgres_cpu_seconds: float
    seconds: float


class Server(ABC):
    """One server on one database of its cluster; started and stopped as often as wanted.

    With `peering` it speaks with others, under the name that this gives it.
    """

    def __init__(self, name: str, cluster: Databases, peering: Peering | None = None) -> None:
        """`name` is what its files are called in the cluster's directory."""
        self.name = name
        self.cluster = cluster
        self.peering = peering
        self.database = PREPARED
        self.port = free_port()
        self.http = HttpClient(self.port)
        self._process: subprocess.Popen[bytes] | None = None
        self._users = 0

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """Write what it reads on start; returns the command that runs the server."""

    @abstractmethod
    async def new_users(self, names: Sequence[str]) -> list[User]:
        """Make accounts, logged in."""

    @abstractmethod
    def another(self, cluster: Databases, name: str, peering: Peering) -> "Server":
        """One more of its kind, which speaks with others."""

    async def add_users(self, count: int) -> list[User]:
        """As many accounts that nobody had before."""
        first = self._users + 1
        self._users += count
        return await self.new_users([f"user{number}" for number in range(first, self._users + 1)])

    @property
    def server_name(self) -> str:
        """The part of user IDs after the colon."""
        return SERVER_NAME if self.peering is None else self.peering.server_name

    @property
    def pid(self) -> int:
        """The server's first process."""
        if self._process is None:
            raise ServerFailedError(f"{self.name} is not running")
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """What the server says."""
        return self.cluster.directory / f"{self.name}.log"

    def last_words(self) -> list[str]:
        """The last lines of that."""
        return self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]

    async def start(self) -> Start:
        """Start the server on its database; returns when it answers."""
        command = self.command()
        postgres_before = processes.cpu_seconds(self.cluster.pid)
        begin = time.monotonic()
        with self.log_file.open("ab") as log:
            self._process = _launch(command, log)
        await self._wait_until_it_answers(begin + _START_SECONDS)
        seconds = time.monotonic() - begin
        postgres = processes.cpu_seconds(self.cluster.pid) - postgres_before
        return Start(processes.cpu_seconds(self.pid), postgres, seconds)

    async def stop(self) -> None:
        """Stop it, gently at first."""
        process, self._process = self._process, None
        if process is None:
            return
        self.http.close()
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    def kill(self) -> None:
        """SIGKILL; `start` makes it live again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self.http.close()

    async def restart(self) -> Start:
        """With the same data, but nothing in memory."""
        await self.stop()
        return await self.start()

    def note_measuring(self, *, begins: bool) -> None:  # noqa: B027  # most servers do nothing about it
        """What follows is measured, or is no longer; for a profiler."""

    async def _wait_until_it_answers(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError, RequestFailedError):
                await self.http.request("GET", "/_matrix/client/versions")
                return
            await asyncio.sleep(0.02)
        await self.stop()
        raise ServerFailedError("\n".join([f"{self.name} does not start. It says:", *self.last_words()]))


def _launch(command: Sequence[str | Path], log: BinaryIO) -> subprocess.Popen[bytes]:
    words = [str(word) for word in command]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), cwd=_CHECKOUT)


def _environment() -> dict[str, str]:
    # Nothing of the caller's that changes how Python runs.
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interpreter_version() -> str:
    """Of the Python that runs both servers."""
    return sys.version.split()[0]
