"""Where a server is reached (Server-Server API v1.18, "Resolving server names"), and what of that is remembered."""

import asyncio
import ipaddress
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TypeVar

from msgspec import Struct

from federation.outbound.egress import Egress, EgressError, EgressRequest
from federation.outbound.name_lookup import LookupFailed, Service
from federation.protocol import canonical_json
from federation.protocol.errors import MatrixError
from federation.protocol.identifiers import is_server_name, split_server_name
from federation.protocol.types import ServerName
from storage import background
from storage.figures import Figures, Lookups

logger = logging.getLogger(__name__)


class Ports(Struct, frozen=True):
    """Where servers listen unless their name or DNS says otherwise; others are for tests."""

    https: int = 443
    federation: int = 8448


MAX_WELL_KNOWN_BYTES = 50_000
WELL_KNOWN_SECONDS = 15.0
MAX_REDIRECTS = 5

DEFAULT_LIFETIME = 24 * 3600.0
MAX_LIFETIME = 48 * 3600.0
MIN_LIFETIME = 300.0
"""Of a delegation whose headers ask for less, `no-store` included: no server is asked more often than that."""

FIRST_ERROR_LIFETIME = 60.0
MAX_ERROR_LIFETIME = 3600.0
GRACE = 48 * 3600.0
"""For so long after its end a delegation is still used where the server gives no other: it may be away for a while."""

SERVICES = ("_matrix-fed", "_matrix")
"""The newer name counts."""

SERVICE_LIFETIME = 300.0
MAX_REMEMBERED = 10_000

_MAX_AGE = re.compile(r"(?:^|,)\s*+max-age\s*+=\s*+\"?([0-9]{1,10})", re.IGNORECASE)
_NOT_STORED = re.compile(r"(?:^|,)\s*+no-(?:store|cache)\s*+(?:,|=|$)", re.IGNORECASE)


class Target(Struct, frozen=True):
    """One place to connect to for a server."""

    host: str
    """A name or an address, which is without brackets."""
    port: int
    host_header: str
    tls_name: str
    """What the certificate must be for: a name, or an address without brackets."""

    @property
    def authority(self) -> str:
        """Host and port as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Remembered(Struct):
    delegated: ServerName | None
    until: float
    errors: int = 0
    usable_until: float = 0.0  # of the last delegation that was valid


class _Services(Struct):
    targets: list[Target]
    until: float


class ServerDiscovery:
    """Finds servers by their names; the same name is looked up once at a time."""

    def __init__(
        self, egress: Egress, *, now: Callable[[], float] = time.monotonic, ports: Ports | None = None
    ) -> None:
        self._egress = egress
        self._ports = ports or Ports()
        self._now = now
        self._well_known: OrderedDict[str, _Remembered] = OrderedDict()
        self._services: OrderedDict[str, _Services] = OrderedDict()
        self._looking_up: dict[str, asyncio.Task[list[Target]]] = {}
        self._lookups = Lookups("server_addresses")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._well_known))

    async def find(self, server_name: ServerName) -> list[Target]:
        """At least one target, in the order to be tried; none has been tried."""
        host, port = split_server_name(server_name)
        if _is_address(host) or port is not None:  # steps 1 and 2
            return [self._direct(server_name)]
        targets = self._remembered(host)
        self._lookups.note(is_hit=targets is not None)
        if targets is None:
            task = self._looking_up.get(host)
            if task is None:
                # Goes on for whoever else waits, and to be remembered, when the one who asked first gives up.
                task = asyncio.create_task(self._look_up(host), name=f"discovery of {host}")
                self._looking_up[host] = task
                task.add_done_callback(lambda _: self._looking_up.pop(host, None))
            targets = await asyncio.shield(task)
        return targets

    async def close(self) -> None:
        """Stop asking."""
        await background.end(self._looking_up.values())

    def forget(self, server_name: ServerName) -> None:
        """Look it up anew at the next request: its targets do not answer."""
        host, _ = split_server_name(server_name)
        self._services.pop(host, None)
        remembered = self._well_known.get(host)
        if remembered is not None and remembered.delegated is not None:
            self._services.pop(split_server_name(remembered.delegated)[0], None)
            remembered.until = min(remembered.until, self._now() + MIN_LIFETIME)

    def _direct(self, server_name: ServerName) -> Target:
        host, port = split_server_name(server_name)
        return Target(host, self._ports.federation if port is None else port, server_name, host)

    def _remembered(self, host: str) -> list[Target] | None:
        known = self._well_known.get(host)
        return None if known is None or known.until <= self._now() else self._known_targets(host, known.delegated)

    def _known_targets(self, host: str, delegated: ServerName | None) -> list[Target] | None:
        if delegated is not None:
            host, port = split_server_name(delegated)
            if _is_address(host) or port is not None:  # steps 3.1 and 3.2
                return [self._direct(delegated)]
        services = self._services.get(host)
        return None if services is None or services.until <= self._now() else services.targets

    async def _look_up(self, host: str) -> list[Target]:
        known = self._well_known.get(host)
        if known is not None and known.until > self._now():
            delegated = known.delegated
        else:
            delegated = await self._ask(host, known)  # step 3
        targets = self._known_targets(host, delegated)
        if targets is None:  # steps 3.3 to 3.5, or 4 to 6
            served = host if delegated is None else split_server_name(delegated)[0]
            targets, lifetime = await self._look_up_services(served)
            _keep(self._services, served, _Services(targets, self._now() + lifetime))
        return targets

    async def _look_up_services(self, host: str) -> tuple[list[Target], float]:
        # Both at once: there are name servers that answer no question for SRV records, and they cost their time once.
        newer, older = await asyncio.gather(*(self._services_of(service, host) for service in SERVICES))
        found = newer or older
        lifetime = FIRST_ERROR_LIFETIME if newer is None or (not newer and older is None) else SERVICE_LIFETIME
        if found:
            return [Target(each.host, each.port, host, host) for each in found], lifetime
        return [Target(host, self._ports.federation, host, host)], lifetime

    async def _services_of(self, service: str, host: str) -> Sequence[Service] | None:
        """None if DNS does not say."""
        try:
            return await self._egress.lookup.services(f"{service}._tcp.{host}")
        except LookupFailed as error:
            logger.debug("no services of %s: %s", host, error)
            return None

    async def _ask(self, host: str, known: _Remembered | None) -> ServerName | None:
        port = "" if self._ports.https == 443 else f":{self._ports.https}"
        request = EgressRequest(
            url=f"https://{host}{port}/.well-known/matrix/server",
            max_bytes=MAX_WELL_KNOWN_BYTES,
            timeout=WELL_KNOWN_SECONDS,
            redirects=MAX_REDIRECTS,
        )
        try:
            response = await self._egress.fetch(request)
            delegated = _parse_well_known(response.status, response.body)
        except (EgressError, MatrixError) as error:
            logger.debug("no delegation by %s: %s", host, error)
            return self._note_error(host, known)
        lifetime = lifetime_of(response.headers)
        until = self._now() + lifetime
        _keep(self._well_known, host, _Remembered(delegated, until, usable_until=until + GRACE))
        return delegated

    def _note_error(self, host: str, known: _Remembered | None) -> ServerName | None:
        errors = 1 if known is None else known.errors + 1
        until = self._now() + min(FIRST_ERROR_LIFETIME * 2.0 ** min(errors - 1, 10), MAX_ERROR_LIFETIME)
        delegated, usable_until = None, 0.0
        if known is not None and known.usable_until > self._now():
            delegated, usable_until = known.delegated, known.usable_until
        _keep(self._well_known, host, _Remembered(delegated, until, errors, usable_until))
        return delegated


@lru_cache(maxsize=4096)
def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _parse_well_known(status: int, body: bytes) -> ServerName:
    if status != 200:
        raise EgressError(f"status {status}")
    delegated = canonical_json.loads_object(body).get("m.server")
    if not is_server_name(delegated):
        raise EgressError("m.server is no server name")
    return delegated


def lifetime_of(headers: Mapping[str, str]) -> float:
    """How long the answer may be used, in seconds (RFC 9111: max-age less Age)."""
    directives = headers.get("Cache-Control", "")
    if _NOT_STORED.search(directives):
        return MIN_LIFETIME
    match = _MAX_AGE.search(directives)
    if match is not None:
        age = headers.get("Age", "0")
        lifetime = float(match[1]) - (float(age) if age.isascii() and age.isdigit() and len(age) < 11 else 0.0)
    elif "Expires" in headers:
        lifetime = _seconds_until(headers["Expires"])
    else:
        lifetime = DEFAULT_LIFETIME
    return min(max(lifetime, MIN_LIFETIME), MAX_LIFETIME)


def _seconds_until(date: str) -> float:
    try:
        moment = parsedate_to_datetime(date)
    except (ValueError, OverflowError):  # `0`, for instance, which means the past
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()


_Entry = TypeVar("_Entry")


def _keep(memory: OrderedDict[str, _Entry], key: str, entry: _Entry) -> None:
    memory[key] = entry
    memory.move_to_end(key)
    if len(memory) > MAX_REMEMBERED:
        memory.popitem(last=False)
