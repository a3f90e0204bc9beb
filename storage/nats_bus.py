"""The bus over NATS: no process listens at the database, no commit notifies, and entries travel whole.

NATS is trusted: who may publish under our subjects can make processes believe what is not in the log. Accounts,
passwords and TLS are the operator's means against that. What it loses is read from the database.
"""

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from federation.protocol.errors import Unavailable
from storage.bus import Hear, hand_on
from storage.database import Database, Statement, wait_before_retry
from storage.figures import Figures

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Messages that wait to be sent; older ones are then given up."""
RECONNECT_SECONDS = 0.5
PING_SECONDS = 5
"""How often it is asked whether it is still there; two unanswered pings are a no."""
TELL_SECONDS = 1
"""For how long something is waited for that does not matter so much."""
MAX_CARRIED_BYTES = 500_000
_ROOM_FOR_HEADERS = 1_000

_LOOK = "look"
"""The subject under which a process says that it was cut off: others may have missed what it appended meanwhile."""


class NatsServers(Struct, frozen=True):
    """Where NATS is."""

    urls: Sequence[str]
    """Such as `nats://USER:PASSWORD@HOST:4222`, or `tls://...`."""
    certificate_authorities: Sequence[Path] = ()
    """Trusted besides the system's."""


class NatsBus:
    """One connection to one of the servers of a NATS cluster."""

    patience_seconds = 0.02

    def __init__(self, database: Database, servers: NatsServers) -> None:
        self._database = database
        self._servers = servers
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=MAX_WAITING)
        self._has_waiting = asyncio.Event()
        self._is_away = False
        """Whether somebody was told that it is."""
        self._is_up = self._is_ending = False
        self._client = Client()
        self.carried_bytes = MAX_CARRIED_BYTES

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"bus_up": self._is_up, "bus_waiting": len(self._waiting)}

    def is_heard(self, _listeners: str) -> bool:
        """As far as anybody knows: who listens there is not written down."""
        return True

    def with_commit(self, _subject: str, _message: bytes) -> Sequence[Statement]:
        """Nothing: commits need not notify."""
        return ()

    def after_commit(self, subject: str, message: bytes) -> None:
        """Have it sent."""
        self._waiting.append((subject, message))
        self._has_waiting.set()

    async def tell(self, subject: str, message: bytes) -> None:
        """Have it sent; returns when NATS has it, so that others know by the time of an answer, or nearly so."""
        self.after_commit(subject, message)
        if self._is_up:
            await asyncio.sleep(0)  # it is sent
            with contextlib.suppress(Error):
                await self._client.flush(TELL_SECONDS)

    async def run(self, hear: Mapping[str, Hear], look: Callable[[], None]) -> None:
        """Send and hand on until cancelled; goes on by itself when NATS was away."""
        prefix = await self._find_prefix()
        client = self._client

        async def note_error(error: Exception) -> None:
            if not self._is_away:
                logger.warning("NATS: %s", str(error) or type(error).__name__)
            self._is_away = not client.is_connected
            look()  # a message may have been dropped

        async def note_end() -> None:
            self._is_away, self._is_up = True, False
            if not self._is_ending:
                logger.warning("NATS is away: until it is back entries of other processes come late")

        async def note_return() -> None:
            self._is_away, self._is_up = False, True
            logger.info("NATS is back")
            self.after_commit(_LOOK, b"")
            look()

        user, password = self._account()
        try:
            await client.connect(
                servers=list(self._servers.urls),
                user=user,
                password=password,
                name="hearth",
                tls=self._tls(),
                no_echo=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_SECONDS,  # type: ignore[arg-type]  # it is slept for
                ping_interval=PING_SECONDS,
                error_cb=note_error,
                disconnected_cb=note_end,
                reconnected_cb=note_return,
            )
            self.carried_bytes = min(MAX_CARRIED_BYTES, client.max_payload - _ROOM_FOR_HEADERS)
            for subject, handle in {**hear, _LOOK: lambda _message: look()}.items():
                await client.subscribe(f"{prefix}.{subject}", cb=_calling(handle))
            with contextlib.suppress(Error):
                await client.flush()  # what is sent from here on is heard
            await note_return()
            while True:
                await self._has_waiting.wait()
                self._has_waiting.clear()
                await self._send_all(client, prefix)
        finally:
            self._is_ending = True
            with contextlib.suppress(Error):
                await self._send_all(client, prefix)
                if client.is_connected:
                    await client.flush(TELL_SECONDS)
            await client.close()

    async def _send_all(self, client: Client, prefix: str) -> None:
        while self._waiting:
            subject, message = self._waiting.popleft()
            if not client.is_connected:
                continue  # it would come late, and others will have looked by then
            try:
                await client.publish(f"{prefix}.{subject}", message)
            except Error as error:
                logger.warning("NATS took no message of %d bytes: %s", len(message), error)

    async def _find_prefix(self) -> str:
        """What subjects begin with: the same for all processes of this database, and for no others."""
        attempt = 0
        while True:
            try:
                async with self._database.read() as tx:
                    row = await tx.fetch_one(
                        "select system_identifier, oid::bigint from pg_control_system(), pg_database"
                        " where datname = current_database()"
                    )
                return f"hearth.{sha256(repr(row).encode()).hexdigest()[:16]}"
            except Unavailable:
                await wait_before_retry(attempt)
                attempt += 1

    def _account(self) -> tuple[str | None, str | None]:
        """User and password, which the servers of a cluster share; in addresses they are percent-encoded."""
        for parts in map(urlsplit, self._servers.urls):
            if parts.username and parts.password:
                return unquote(parts.username), unquote(parts.password)
        return None, None

    def _tls(self) -> ssl.SSLContext | None:
        authorities = self._servers.certificate_authorities
        if not authorities and not any(url.startswith("tls://") for url in self._servers.urls):
            return None
        context = ssl.create_default_context()
        for file in authorities:
            context.load_verify_locations(file)
        return context


def _calling(handle: Hear) -> Callable[[Msg], Awaitable[None]]:
    async def call(message: Msg) -> None:
        hand_on(handle, message.data)

    return call
