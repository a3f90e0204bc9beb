"""A server in a process of its own, on a database that is there, for tests that kill it.

python -m tests.federation.sending_process CONNINFO SERVER_NAME AUTHORITY CERTIFICATE KEY PORT
"""

import asyncio
import contextlib
import hashlib
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path

from federation.protocol.signatures import SigningKey
from homeserver.app import Application
from homeserver.config import ExistingFile, Federation, Listener
from homeserver.signing_keys import OwnKeys
from tests.federation.authority import Authority
from tests.federation.servers import free_port
from tests.servers import TEST_CONFIG

ROOT = Path(__file__).parents[2]


@dataclass
class Running:
    """A server that may be killed."""

    process: Process
    base_url: str

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


@asynccontextmanager
async def process(conninfo: str, server_name: str, authority: Authority) -> AsyncIterator[Running]:
    """One that runs; killed at the end at the latest."""
    port = free_port()
    arguments = [conninfo, server_name, authority.certificate, *authority.issue("127.0.0.1"), port]
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.federation.sending_process",
        *map(str, arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        assert await running.stdout.readline() == b"ready\n", "the process ended"
        yield Running(running, f"https://127.0.0.1:{port}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.communicate()


async def _serve(conninfo: str, server_name: str, authority: str, certificate: str, key: str, port: str) -> None:
    tls = Listener("127.0.0.1", int(port), ExistingFile(Path(certificate)), ExistingFile(Path(key)))
    federation = Federation(
        allowed_ranges=(ip_network("127.0.0.0/8"),),
        certificate_authorities=(ExistingFile(Path(authority)),),
        notary_servers=(),
    )
    config = replace(TEST_CONFIG, server_name=server_name, listeners=(tls,), federation=federation)
    seed = hashlib.sha256(server_name.encode()).digest()
    application = Application(config, conninfo, OwnKeys(SigningKey.from_seed("test", seed)))
    await application.start()
    print("ready", flush=True)  # noqa: T201  # who started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(*sys.argv[1:]))
