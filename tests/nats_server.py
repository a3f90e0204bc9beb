"""NATS servers for tests: the Debian package `nats-server`, installed or unpacked into a directory of ours.

`python -m tests.nats_server`, which `make test` runs, fetches it where it is missing. That needs neither root nor the
system's lists of packages, and leaves those as they are; apt checks Debian's signatures as always.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from homeserver.config import Bus, BusKind, Secret

ADDRESS = "HEARTH_TEST_NATS"
PLACE = Path(sys.prefix) / "nats-server"
_UNPACKED = PLACE / "usr" / "sbin" / "nats-server"
_SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"


def find() -> Path | None:
    """The program, where there is one; NATS_SERVER names another."""
    named = os.environ.get("NATS_SERVER") or shutil.which("nats-server", path=_SYSTEM_PATH)
    if named is not None:
        return Path(named)
    return _UNPACKED if _UNPACKED.exists() else None


def install() -> None:
    """Fetch and unpack the package, unless there is a server already."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "busy").open("w") as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        if find() is not None:
            return
        if shutil.which("apt-get") is None:
            sys.exit("Tests need nats-server 2.9 or later: install it, or name it: NATS_SERVER=/path/to/nats-server")
        sys.stdout.write(f"Unpacking nats-server into {PLACE} ...\n")
        sys.stdout.flush()
        if not _download([]):
            # Lists of our own: the system's are missing, old, or not ours to renew.
            for name in ("lists/partial", "cache/archives/partial"):
                (PLACE / name).mkdir(parents=True, exist_ok=True)
            own = ["-o", f"Dir::State::lists={PLACE / 'lists'}", "-o", f"Dir::Cache={PLACE / 'cache'}"]
            _apt([*own, "update"])
            fetched = _download(own)
            for name in ("lists", "cache"):
                shutil.rmtree(PLACE / name)
            if not fetched:
                sys.exit(
                    "apt-get could not fetch nats-server: install it, or name it: NATS_SERVER=/path/to/nats-server"
                )
        (package,) = PLACE.glob("nats-server_*.deb")
        subprocess.run(["dpkg", "-x", package, PLACE], check=True)  # noqa: S607  # of the system


def _download(options: list[str]) -> bool:
    return _apt([*options, "download", "nats-server"]) and any(PLACE.glob("nats-server_*.deb"))


def _apt(arguments: list[str]) -> bool:
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", *arguments]
    return subprocess.run(command, cwd=PLACE, check=False, stdout=subprocess.DEVNULL).returncode == 0


def configured() -> Bus:
    """The bus of servers that tests start: NATS where HEARTH_TEST_NATS has its address."""
    address = os.environ.get(ADDRESS)
    return Bus() if address is None else Bus(BusKind.NATS, (Secret(address),))


class NatsServer:
    """A server on a port of its own, which it keeps when it is killed and started again."""

    def __init__(self, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """For who may do without a password."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return when it answers."""
        program = find()
        assert program is not None, "run `python -m tests.nats_server`"
        command = [str(program), "-a", "127.0.0.1", "-p", str(self.port), *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, "nats-server ended"
                time.sleep(0.02)
            else:
                return
        raise AssertionError("nats-server does not answer")

    def signal(self, number: signal.Signals) -> None:
        """Such as SIGSTOP."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


if __name__ == "__main__":
    install()
