"""Running servers for tests, each on a database and a random port: one `Application`, or several (`fellows.py`)."""

import atexit
import dataclasses
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from federation.protocol.signatures import SigningKey
from homeserver.config import Config, Listener, Passwords, RateLimits, Registration, RegistrationMode
from homeserver.signing_keys import OwnKeys
from tests import fellows, nats_server
from tests.client import Client, Server

_DATA = Path(tempfile.mkdtemp(prefix="hearth-test-"))
atexit.register(shutil.rmtree, _DATA, ignore_errors=True)

TEST_CONFIG = Config(
    server_name="hearth.test",
    data_directory=_DATA,
    listeners=(Listener(address="127.0.0.1", port=0),),
    registration=Registration(mode=RegistrationMode.OPEN, allow_guests=True),
    rate_limits=RateLimits(enabled=False),
    passwords=Passwords(hash_kib=8, hash_passes=1),
    bus=nats_server.configured(),
)
"""Open registration, guests allowed, no rate limits, passwords that cost nothing."""
SIGNING_KEY = SigningKey.from_seed("test", bytes(range(32)))


@asynccontextmanager
async def running(conninfo: str, *, keys: OwnKeys | None = None, **changes: Any) -> AsyncIterator[Server]:
    """A server on this database, with `TEST_CONFIG` changed; stopped at the end of the block."""
    config = dataclasses.replace(TEST_CONFIG, **changes)
    async with (
        AsyncExitStack() as afterwards,  # clients hear how the server ends
        fellows.started(config, conninfo, keys or OwnKeys(SIGNING_KEY)) as application,
    ):
        session = await afterwards.enter_async_context(fellows.a_session(application))
        yield Server(application, Client(f"http://127.0.0.1:{application.ports[0]}", session))
