"""Synapse under test, set up by its public documentation: a virtual environment and a configuration file of its own."""

import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cluster import Cluster
from benchmarks.matrix import User, at_once
from benchmarks.server import SERVER_NAME, Server

VERSION = "1.163.2"
_PLACE = Path(__file__).resolve().parent / ".synapse"
_SECRET = "a secret that lives for one run"
_PASSWORD = "correct horse battery staple"
_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}


def install() -> Path:
    """The interpreter of the virtual environment with Synapse; made on the first call, from the package index."""
    python = _PLACE / "venv" / "bin" / "python"
    marker = _PLACE / f"installed-{VERSION}"
    if not marker.exists():
        print(f"Installing Synapse {VERSION} into {_PLACE} ...", flush=True)
        # The interpreter that Hearth runs on, not a link into its virtual environment.
        base = os.path.realpath(sys.executable)
        subprocess.run([base, "-m", "venv", "--clear", _PLACE / "venv"], check=True)
        wanted = f"matrix-synapse[postgres]=={VERSION}"
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "-q", "install", wanted], check=True)
        marker.touch()
    return python


class Synapse(Server):
    """One Synapse process with its defaults, but for rate limits, which are out of reach, and a quiet log."""

    name = "synapse"

    def __init__(self, cluster: Cluster, python: Path) -> None:
        super().__init__(cluster)
        self._python = python

    def command(self) -> Sequence[str | Path]:
        """Its configuration file names the cluster's database; the signing key is made once."""
        place = self.cluster.directory / "synapse"
        place.mkdir(exist_ok=True)
        file, log_file = place / "homeserver.yaml", place / "log.yaml"
        log_file.write_text(yaml.safe_dump(_log_settings()), encoding="utf-8")
        file.write_text(yaml.safe_dump(self._settings(place, log_file)), encoding="utf-8")
        command: list[str | Path] = [self._python, "-m", "synapse.app.homeserver", "--config-path", file]
        if not (place / "signing.key").exists():
            subprocess.run([*command, "--generate-keys"], check=True, capture_output=True)
        return command

    def _settings(self, place: Path, log_file: Path) -> dict[str, Any]:
        return {
            "server_name": SERVER_NAME,
            "report_stats": False,
            "pid_file": str(place / "pid"),
            "media_store_path": str(place / "media"),
            "signing_key_path": str(place / "signing.key"),
            "log_config": str(log_file),
            "macaroon_secret_key": _SECRET,
            "form_secret": _SECRET,
            "registration_shared_secret": _SECRET,
            "trusted_key_servers": [],
            "listeners": [
                {
                    "port": self.port,
                    "bind_addresses": ["127.0.0.1"],
                    "type": "http",
                    "resources": [{"names": ["client", "federation"]}],
                }
            ],
            # As many connections as Hearth may have.
            "database": {
                "name": "psycopg2",
                "args": {**self.cluster.address(self.database), "cp_min": 5, "cp_max": 10},
            },
            "bcrypt_rounds": 4,  # accounts are set-up; no scenario measures passwords
            "rc_message": _UNLIMITED,
            "rc_registration": _UNLIMITED,
            "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
            "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
            "rc_joins_per_room": _UNLIMITED,
            "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
            "rc_room_creation": _UNLIMITED,
        }

    async def new_users(self, names: Sequence[str]) -> list[User]:
        """Registered with the shared secret."""
        made: dict[str, User] = {}

        async def register(name: str) -> None:
            answer: Any = await self.http.request("GET", "/_synapse/admin/v1/register")
            fields = [answer["nonce"], name, _PASSWORD, "notadmin"]
            mac = hmac.new(_SECRET.encode(), "\x00".join(fields).encode(), hashlib.sha1).hexdigest()
            body = {"nonce": answer["nonce"], "username": name, "password": _PASSWORD, "mac": mac, "admin": False}
            answer = await self.http.request("POST", "/_synapse/admin/v1/register", body)
            made[name] = User(self.http, answer["user_id"], answer["access_token"])

        await at_once(4, names, register)
        return [made[name] for name in names]


def _log_settings() -> dict[str, Any]:
    return {
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"level": "WARNING", "handlers": ["console"]},
        "disable_existing_loggers": False,
    }
