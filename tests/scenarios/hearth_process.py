"""A real server: `hearth serve` as a process of its own, with its own PostgreSQL, that a test may kill."""

import asyncio
import atexit
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from homeserver import startup
from homeserver.config import Config
from storage.embedded import find_running
from tests import fellows
from tests.client import Client

ROOT = Path(__file__).parents[2]
READY_SECONDS = 90

_CONFIG = """
server_name: hearth.test
registration: {{mode: open}}
rate_limits: off
passwords: {{hash_kib: 8, hash_passes: 1}}
listeners: [{{address: 127.0.0.1, port: {port}, apis: {apis}}}]
"""


class HearthProcess:
    """A server in a directory of its own. Its port stays the same from one life to the next."""

    def __init__(
        self,
        directory: Path,
        settings: str = "",
        arguments: Sequence[str] = (),
        apis: str = "[client, federation, admin]",
        python_path: Path = ROOT,
    ) -> None:
        """`python_path` holds what Python is to load besides."""
        self.directory = directory
        self.python_path = f"{python_path}{os.pathsep}{ROOT}"
        if fellows.COUNT > 1 and "--workers" not in arguments:
            arguments = (*arguments, "--workers", str(fellows.COUNT))
        self.arguments = arguments
        self.port = free_port()
        given = _CONFIG.format(port=self.port, apis=apis)
        if "rate_limits" in settings:
            given = given.replace("rate_limits: off\n", "")
        (directory / "config.yaml").write_text(given + settings, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self._said_before = 0
        """How much of the log is from earlier lives."""

    @property
    def base_url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """Its data directory."""
        return self.directory / "data"

    @property
    def cluster(self) -> Path:
        """The files of its PostgreSQL."""
        return (self.data / "postgresql").resolve() / "cluster"

    @property
    def log(self) -> str:
        """What the server has said in all its lives."""
        return (self.directory / "server.log").read_text(encoding="utf-8")

    @property
    def _has_greeted(self) -> bool:
        """Whether it says that it serves, in this life: one of several workers may answer before."""
        with (self.directory / "server.log").open("rb") as log:
            log.seek(self._said_before)
            return b"Hearth serves" in log.read()

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def conninfo(self) -> str:
        """Of its database, while it runs."""
        conninfo = find_running(self.data)
        assert conninfo is not None, "the server does not run"
        return conninfo

    def start(self) -> None:
        """Start the process, without waiting for it."""
        with (self.directory / "server.log").open("ab") as log:
            self._said_before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "homeserver", "serve", *self.arguments],
                cwd=self.directory,
                env={
                    **os.environ,
                    "PYTHONPATH": self.python_path,
                    "PYTHONWARNINGS": "error",
                    "PYTHONFAULTHANDLER": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def wait_until_ready(self, *, lives: int = 1) -> float:
        """Return when all of it answers from its database; how long that took.

        It may end while it starts, less than `lives` times: then it is started again, as whoever supervises it would.
        """
        began, heard = time.monotonic(), Counter[str]()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                if not self.is_running and lives > 1:
                    lives -= 1
                    self.start()
                assert self.is_running, f"the server ended:\n{self.log[-4000:]}"
                if time.monotonic() - began > READY_SECONDS:
                    self.abort()
                    raise AssertionError(f"the server does not answer, but for {dict(heard)}:\n{self.log[-8000:]}")
                try:
                    async with session.get(
                        f"{self.base_url}/_matrix/client/v3/directory/room/%23x%3Ahearth.test"
                    ) as it:
                        if it.status == 404 and self._has_greeted:
                            return time.monotonic() - began
                        heard[str(it.status)] += 1
                except (aiohttp.ClientError, TimeoutError) as error:
                    heard[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def abort(self) -> None:
        """SIGABRT: it says where each of its threads is, and ends."""
        assert self._process is not None
        self._process.send_signal(signal.SIGABRT)
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, as an operator stops it; at the end of a test it is killed if it does not obey."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_for_end(self) -> int:
        """The exit code, when the process ends by itself."""
        assert self._process is not None
        return self._process.wait(timeout=60)

    def postmaster(self) -> int | None:
        """The process ID of PostgreSQL's first process, if it runs."""
        try:
            pid = int((self.cluster / "postmaster.pid").read_text(encoding="ascii").splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        return pid if psutil.pid_exists(pid) else None

    def backends(self, *, of_clients: bool = False) -> list[int]:
        """The postmaster's children, or only those that serve connections."""
        postmaster = self.postmaster()
        if postmaster is None:
            return []
        try:
            children = [(child.pid, child.cmdline()) for child in psutil.Process(postmaster).children()]
        except psutil.NoSuchProcess:
            return []
        return sorted(pid for pid, command in children if not of_clients or " hearth hearth " in " ".join(command))


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def free_port() -> int:
    """A port that nobody listens on, and that no connection is given while the server is down."""
    for _ in range(200):
        port = random.randrange(20_000, 32_000)  # below those for outgoing connections
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    raise AssertionError("no port is free")


def a_directory() -> Path:
    """A new directory below /tmp itself: pytest's own are closed to the user that PostgreSQL runs as for root."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-scenario-"))
    directory.chmod(0o711)
    return directory


@functools.cache
def _prepared_data() -> Path:
    """The data directory of a server that has run, to be copied: a first run takes seconds."""
    data = a_directory()
    atexit.register(shutil.rmtree, data, ignore_errors=True)
    with startup.prepare(Config("hearth.test", data_directory=data)):
        return data


def _a_prepared_directory() -> Path:
    directory = a_directory()
    subprocess.run(["/bin/cp", "-a", _prepared_data(), directory / "data"], check=True)
    return directory


@asynccontextmanager
async def serving(settings: str = "", directory: Path | None = None, **how: Any) -> AsyncIterator[HearthProcess]:
    """A server that answers, in a new directory or this one; gone with all its data at the end of the block.

    This is its first run only if it is given an empty directory. `how` is for `HearthProcess`.
    """
    directory = directory or _a_prepared_directory()
    server = HearthProcess(directory, settings, **how)
    try:
        server.start()
        await server.wait_until_ready()
        yield server
    finally:
        server.stop()
        shutil.rmtree((directory / "data" / "postgresql").resolve(), ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def a_visitor(server: HearthProcess, seconds: float = 60) -> AsyncIterator[Client]:
    """A client that is not logged in."""
    connector = aiohttp.TCPConnector(limit=0, force_close=fellows.COUNT > 1)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=seconds)) as session:
        yield Client(server.base_url, session)
