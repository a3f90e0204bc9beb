"""Synapse under test, set up by its public documentation: a virtual environment and a configuration file of its own."""

import fcntl
import hashlib
import hmac
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from signedjson.key import generate_signing_key, write_signing_keys

from benchmarks.cluster import Databases
from benchmarks.matrix import User, at_once
from benchmarks.peering import Peering
from benchmarks.server import Server

_LOCK = Path(__file__).resolve().parent / "synapse.lock"
_PLACE = Path(__file__).resolve().parent / ".synapse"
_SECRET = "a secret that lives for one run"
_PASSWORD = "correct horse battery staple"
_UNLIMITED = {"per_second": 1_000_000, "burst_count": 1_000_000}


def install() -> Path:
    """The interpreter of a virtual environment with what `synapse.lock` names; made unless it is there already.

    All of it comes as wheels from the package index, and nothing else is needed but Python's own venv.
    """
    python = _PLACE / "venv" / "bin" / "python"
    wanted = _LOCK.read_bytes()
    marker = _PLACE / "installed.lock"
    _PLACE.mkdir(exist_ok=True)
    with (_PLACE / "busy").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        if not marker.exists() or marker.read_bytes() != wanted:
            print(f"Installing Synapse into {_PLACE} ...", flush=True)
            # The interpreter that Hearth runs on, not a link into its virtual environment.
            subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--clear", _PLACE / "venv"], check=True)
            install: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
            subprocess.run([*install, "--require-hashes", "--only-binary", ":all:", "-r", _LOCK], check=True)
            marker.write_bytes(wanted)
    return python


class Synapse(Server):
    """One Synapse process with its defaults, but for rate limits, which are out of reach, and a quiet log."""

    def __init__(
        self,
        cluster: Databases,
        python: Path,
        *,
        name: str = "synapse",
        peering: Peering | None = None,
        log: str = "WARNING",
    ) -> None:
        """`log` is the level of what it says about federation."""
        super().__init__(name, cluster, peering)
        self._python = python
        self._log = log

    def another(self, cluster: Databases, name: str, peering: Peering) -> Server:
        """Of the same installation."""
        return Synapse(cluster, self._python, name=name, peering=peering)

    def command(self) -> Sequence[str | Path]:
        """Its configuration file names the cluster's database; the signing key is made once."""
        place = self.cluster.directory / self.name
        place.mkdir(exist_ok=True)
        file, log_file = place / "homeserver.yaml", place / "log.yaml"
        log_file.write_text(yaml.safe_dump(_log_settings(self._log)), encoding="utf-8")
        file.write_text(yaml.safe_dump(self._settings(place, log_file)), encoding="utf-8")
        key_file = place / "signing.key"
        if not key_file.exists():  # Synapse would take as long to make it as to start
            with key_file.open("w", encoding="utf-8") as keys:
                write_signing_keys(keys, [generate_signing_key("made")])
        return [self._python, "-m", "synapse.app.homeserver", "--config-path", file]

    def _settings(self, place: Path, log_file: Path) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "server_name": self.server_name,
            "report_stats": False,
            "pid_file": str(place / "pid"),
            "media_store_path": str(place / "media"),
            "signing_key_path": str(place / "signing.key"),
            "log_config": str(log_file),
            "macaroon_secret_key": _SECRET,
            "form_secret": _SECRET,
            "registration_shared_secret": _SECRET,
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "enable_registration": True,
            "enable_registration_without_verification": True,
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
        return settings if self.peering is None else {**settings, **_settings_among_others(settings, self.peering)}

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


def _settings_among_others(settings: dict[str, Any], peering: Peering) -> dict[str, Any]:
    for listener in settings["listeners"]:
        listener["resources"] = [{"names": ["client"]}]
    to_servers = {
        "port": peering.own_port,
        "bind_addresses": [peering.address],
        "type": "http",
        "tls": True,
        "resources": [{"names": ["federation"]}],
    }
    return {
        "listeners": [*settings["listeners"], to_servers],
        "tls_certificate_path": str(peering.certificate),
        "tls_private_key_path": str(peering.key),
        "federation_custom_ca_list": [str(peering.authority)],
        "federation_ip_range_blacklist": [],
        "ip_range_blacklist": [],
        "allow_public_rooms_over_federation": True,
        "room_list_publication_rules": [{"action": "allow"}],
        # A server that was away is back soon here.
        "federation": {
            "destination_min_retry_interval": "1s",
            "destination_max_retry_interval": "1s",
            "max_long_retry_delay": "1s",
            "max_short_retry_delay": "1s",
        },
        "rc_federation": {"window_size": 1000, "sleep_limit": 1_000_000, "reject_limit": 1_000_000, "concurrent": 50},
        "rc_presence": {"per_user": _UNLIMITED},
    }


def _log_settings(level: str) -> dict[str, Any]:
    federation = ("synapse.federation", "synapse.handlers.federation", "synapse.handlers.federation_event")
    return {
        "version": 1,
        "formatters": {"timed": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "timed"}},
        "root": {"level": "WARNING", "handlers": ["console"]},
        "loggers": {name: {"level": level} for name in federation},
        "disable_existing_loggers": False,
    }


if __name__ == "__main__":
    install()
