"""Hearth under test: this checkout, in a process of its own."""

import hashlib
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

import psycopg
import yaml

from benchmarks.cluster import Cluster
from benchmarks.matrix import User
from benchmarks.server import SERVER_NAME, Server
from federation.protocol.types import DeviceID, UserID
from storage import accounts, devices, sessions
from storage.accounts import Account
from storage.database import Memory, Tx
from storage.sessions import NewSession


class Hearth(Server):
    """`hearth serve` with every setting at its default but for rate limits, which are off, and a quiet log."""

    name = "hearth"

    def __init__(self, cluster: Cluster, *, profiler: str | None = None) -> None:
        super().__init__(cluster)
        self._profiler = profiler

    @property
    def profile_file(self) -> Path:
        """Where a profiled server leaves what was found."""
        return self.cluster.directory / "hearth.profile"

    def command(self) -> Sequence[str | Path]:
        """The configuration names the cluster's database."""
        address = self.cluster.address(self.database)
        query = urlencode({"host": address["host"], "port": address["port"]})
        settings = {
            "server_name": SERVER_NAME,
            "data_directory": str(self.cluster.directory / "hearth"),
            "database": f"postgresql://{address['user']}@/{address['dbname']}?{query}",
            "listeners": [{"address": "127.0.0.1", "port": self.port}],
            "registration": "open",
            "rate_limits": False,
            "log": "warning",
        }
        file = self.cluster.directory / "hearth.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        program: list[str | Path] = ["-m", "homeserver"]
        if self._profiler is not None:
            program = ["-m", "benchmarks.profiled_server", self._profiler, self.profile_file]
        return [sys.executable, *program, "serve", "--config", file]

    def note_measuring(self, *, begins: bool) -> None:
        """A profiled server profiles from one signal to the other."""
        if self._profiler is not None:
            assert self._process is not None
            self._process.send_signal(signal.SIGUSR1 if begins else signal.SIGUSR2)

    async def new_users(self, names: Sequence[str]) -> list[User]:
        """Written into the database as registration would: 20,000 password hashes would outlast the run."""
        conninfo, now = self.cluster.conninfo(self.database), int(time.time() * 1000)
        made = []
        async with (
            await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=2) as connection,
            connection.transaction(),
        ):
            tx = Tx(connection, Memory())
            for name in names:
                user_id, token = UserID(f"@{name}:{SERVER_NAME}"), f"hearth_at_{secrets.token_urlsafe(32)}"
                await accounts.insert(tx, Account(user_id=user_id, created_ts=now))
                device = await devices.ensure(tx, user_id, DeviceID("BENCH"), None, now)
                access_hash = hashlib.sha256(token.encode()).digest()
                await sessions.insert(tx, NewSession(device=device, created_ts=now, access_hash=access_hash))
                made.append(User(self.http, user_id, token))
        return made
