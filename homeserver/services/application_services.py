"""Application services: their registrations and namespaces (Application Service API, "Registration").

Registrations are files that the operator lists; they are read once, when the server starts.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import check_localpart, server_name_of
from federation.protocol.types import ServerName, UserID


class ApplicationServiceError(Exception):
    """A registration cannot be used; the message says which and why."""


class Namespace(Struct, frozen=True):
    """Identifiers that a service is interested in."""

    pattern: re.Pattern[str]
    is_exclusive: bool


class ApplicationService(Struct, frozen=True, kw_only=True):
    """A registered service."""

    id: str
    url: str | None
    as_token: str
    hs_token: str
    sender: UserID
    """The user that it acts as when it names none."""
    users: tuple[Namespace, ...] = ()
    aliases: tuple[Namespace, ...] = ()
    rooms: tuple[Namespace, ...] = ()
    protocols: tuple[str, ...] = ()
    is_rate_limited: bool = True
    receives_ephemeral: bool = False

    def may_act_as(self, user_id: UserID) -> bool:
        """Whether it may make this local user, log in as them, and act as them."""
        is_local = server_name_of(user_id) == server_name_of(self.sender)
        return user_id == self.sender or (is_local and matches(self.users, user_id))

    def __repr__(self) -> str:
        return f"ApplicationService({self.id!r})"  # without its tokens


def matches(namespaces: Collection[Namespace], identifier: str) -> bool:
    """Whether an identifier lies in one of the namespaces."""
    return any(namespace.pattern.match(identifier) for namespace in namespaces)


class ApplicationServices:
    """All registered services."""

    def __init__(self, services: Sequence[ApplicationService]) -> None:
        self.all = tuple(services)
        self._by_token = {_hash(service.as_token): service for service in services}
        self._by_id = {service.id: service for service in services}

    def find_by_token(self, as_token: str) -> ApplicationService | None:
        """The service whose token this is."""
        return self._by_token.get(_hash(as_token)) if self._by_token else None

    def find(self, service_id: str) -> ApplicationService | None:
        """The service of that ID."""
        return self._by_id.get(service_id)

    def check_user_not_exclusive(self, user_id: UserID, asker: str | None = None) -> None:
        """Raise M_EXCLUSIVE when only another service than `asker` may make this user."""
        for service in self.all:
            if service.id != asker and (user_id == service.sender or _is_exclusive(service.users, user_id)):
                raise InvalidInput("This user ID is reserved by an application service", "M_EXCLUSIVE")

    def check_alias_not_exclusive(self, alias: str, asker: str | None = None) -> None:
        """Raise M_EXCLUSIVE when only another service than `asker` may make or delete this alias."""
        for service in self.all:
            if service.id != asker and _is_exclusive(service.aliases, alias):
                raise InvalidInput("This alias is reserved by an application service", "M_EXCLUSIVE")


def _is_exclusive(namespaces: Iterable[Namespace], identifier: str) -> bool:
    return any(namespace.is_exclusive and namespace.pattern.match(identifier) for namespace in namespaces)


def _hash(token: str) -> bytes:
    # Looked up by hash, so that the time it takes says nothing about how much of a guess was right.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


# --- registration files


def load_all(files: Sequence[Path], server_name: ServerName) -> ApplicationServices:
    """The services of these files; raises ApplicationServiceError."""
    services = [_load(file, server_name) for file in files]
    for name in ("id", "as_token", "sender"):
        values = [getattr(service, name) for service in services]
        if len(set(values)) != len(values):
            raise ApplicationServiceError(f"two application services have the same {name}: each needs its own")
    return ApplicationServices(services)


def _load(file: Path, server_name: ServerName) -> ApplicationService:
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ApplicationServiceError(f"{file} cannot be read: {error}") from error
    try:
        return parse(data, server_name)
    except ApplicationServiceError as error:
        raise ApplicationServiceError(f"{file}: {error}") from error


def parse(data: Any, server_name: ServerName) -> ApplicationService:  # noqa: ANN401  # whatever stands in the file
    """A registration's content, checked; raises ApplicationServiceError."""
    if not isinstance(data, dict):
        raise ApplicationServiceError("a registration is a mapping of keys to values")
    namespaces = data.get("namespaces") or {}
    if not isinstance(namespaces, dict):
        raise ApplicationServiceError("namespaces must be a mapping with users, aliases and rooms")
    url = data.get("url")
    if url is not None and (not isinstance(url, str) or not url.startswith(("http://", "https://"))):
        raise ApplicationServiceError("url must be an http or https address, or null")
    protocols = data.get("protocols") or []
    if not isinstance(protocols, list) or not all(isinstance(each, str) for each in protocols):
        raise ApplicationServiceError("protocols must be a list of names")
    try:
        sender = check_localpart(_text(data, "sender_localpart"), server_name)
    except InvalidInput as error:
        raise ApplicationServiceError(f"sender_localpart: {error.message}") from error
    return ApplicationService(
        id=_text(data, "id"),
        url=url.rstrip("/") if url else None,
        as_token=_text(data, "as_token"),
        hs_token=_text(data, "hs_token"),
        sender=sender,
        users=_namespaces(namespaces, "users"),
        aliases=_namespaces(namespaces, "aliases"),
        rooms=_namespaces(namespaces, "rooms"),
        protocols=tuple(protocols),
        is_rate_limited=_flag(data, "rate_limited", default=True),
        receives_ephemeral=_flag(data, "receive_ephemeral", default=False)
        or _flag(data, "de.sorunome.msc2409.push_ephemeral", default=False),
    )


def _namespaces(data: dict[str, Any], name: str) -> tuple[Namespace, ...]:
    entries = data.get(name) or []
    if not isinstance(entries, list):
        raise ApplicationServiceError(f"namespaces.{name} must be a list")
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("regex"), str):
            raise ApplicationServiceError(f"each entry of namespaces.{name} needs a regex")
        try:
            pattern = re.compile(entry["regex"])
        except re.error as error:
            raise ApplicationServiceError(f"namespaces.{name}: {entry['regex']!r} is no regex: {error}") from error
        found.append(Namespace(pattern, _flag(entry, "exclusive", default=False)))
    return tuple(found)


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise ApplicationServiceError(f"{name} is required and must be a text")
    return value


def _flag(data: dict[str, Any], name: str, *, default: bool) -> bool:
    value = data.get(name, default)
    if not isinstance(value, bool):
        raise ApplicationServiceError(f"{name} must be true or false")
    return value
