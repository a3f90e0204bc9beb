"""Hearth under test: this checkout, in a process of its own."""

import hashlib
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from benchmarks.cluster import Databases
from benchmarks.matrix import User
from benchmarks.peering import Peering
from benchmarks.server import Server
from federation.protocol.types import DeviceID, UserID
from storage import accounts, devices, sessions
from storage.accounts import Account
from storage.database import Memory, Tx
from storage.sessions import NewSession
from storage.statements import Connection


class Hearth(Server):
    """`hearth serve` with every setting at its default but for rate limits, which are off, and a quiet log."""

    def __init__(
        self,
        cluster: Databases,
        *,
        name: str = "hearth",
        peering: Peering | None = None,
        profiler: str | None = None,
        log: str = "warning",
    ) -> None:
        super().__init__(name, cluster, peering)
        self._profiler = profiler
        self._log = log
        self.workers = 0
        """0 for a single process, without one that looks after workers."""
        self.shows_metrics = False
        self.trusted_authority: Path | None = None
        """Of whose certificates servers on this machine may be asked."""
        self.nats: str | None = None
        """The address of the NATS server that is its bus; None: PostgreSQL is."""

    def another(self, cluster: Databases, name: str, peering: Peering) -> Server:
        """Without a profiler."""
        return Hearth(cluster, name=name, peering=peering)

    @property
    def profile_file(self) -> Path:
        """Where a profiled server leaves what was found."""
        return self.cluster.directory / f"{self.name}.profile"

    def command(self) -> Sequence[str | Path]:
        """The configuration names the cluster's database."""
        address = self.cluster.address(self.database)
        query = urlencode({"host": address["host"], "port": address["port"]})
        settings: dict[str, Any] = {
            "server_name": self.server_name,
            "data_directory": str(self.cluster.directory / self.name),
            "database": f"postgresql://{address['user']}@/{address['dbname']}?{query}",
            "listeners": [{"address": "127.0.0.1", "port": self.port}],
            "registration": "open",
            "rate_limits": False,
            "log": self._log,
        }
        if self.nats is not None:
            settings["bus"] = {"kind": "nats", "servers": [self.nats]}
        if self.shows_metrics:
            settings["listeners"][0]["apis"] = ["client", "metrics"]
        if self.trusted_authority is not None:
            settings["federation"] = {
                "allowed_ranges": ["127.0.0.0/8"],
                "certificate_authorities": [str(self.trusted_authority)],
            }
        if self.peering is not None:
            settings |= _settings_among_others(settings["listeners"], self.peering)
        file = self.cluster.directory / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        program: list[str | Path] = ["-m", "homeserver"]
        if self._profiler is not None:
            program = ["-m", "benchmarks.profiled_server", self._profiler, self.profile_file]
        workers = ["--workers", str(self.workers)] if self.workers else []
        return [sys.executable, *program, "serve", "--config", file, *workers]

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
            await Connection.connect(conninfo, autocommit=True, prepare_threshold=2) as connection,
            connection.transaction(),
        ):
            tx = Tx(connection, Memory())
            for name in names:
                user_id, token = UserID(f"@{name}:{self.server_name}"), f"hearth_at_{secrets.token_urlsafe(32)}"
                await accounts.insert(tx, Account(user_id=user_id, created_ts=now))
                device = await devices.ensure(tx, user_id, DeviceID("BENCH"), None, now)
                access_hash = hashlib.sha256(token.encode()).digest()
                await sessions.insert(tx, NewSession(device=device, created_ts=now, access_hash=access_hash))
                made.append(User(self.http, user_id, token))
        return made


def _settings_among_others(listeners: list[dict[str, Any]], peering: Peering) -> dict[str, Any]:
    for listener in listeners:
        listener["apis"] = ["client", "admin"]
    to_servers = {
        "address": peering.address,
        "port": peering.own_port,
        "tls_certificate": str(peering.certificate),
        "tls_key": str(peering.key),
        "apis": ["federation"],
    }
    return {
        "listeners": [*listeners, to_servers],
        "federation": {
            "allowed_ranges": ["127.0.0.0/8", "::1/128"],
            "certificate_authorities": [str(peering.authority)],
            "notary_servers": [],
            "send_presence": True,
            "show_device_names": True,
            "publish_rooms": True,
        },
    }
