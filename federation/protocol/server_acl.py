"""Server access control lists (Client-Server API, "m.room.server_acl"; Server-Server API, same section).

What is malformed counts as missing: no list is an empty list, so that without a proper `allow` nobody is allowed.
"""

import re
from collections.abc import Iterable

from federation.protocol.globs import glob_match, has_wildcards
from federation.protocol.types import JsonObject

_IPV4_LITERAL = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")


def is_allowed(content: JsonObject, server_name: str) -> bool:
    """Whether the content of the room's `m.room.server_acl` lets a server take part; without such an event, it may."""
    return ServerACL(content).allows(server_name)


class ServerACL:
    """An access control list made ready for many questions."""

    __slots__ = ("_allow", "_allows_ip_literals", "_deny")

    def __init__(self, content: JsonObject) -> None:
        self._allows_ip_literals = content.get("allow_ip_literals") is not False
        self._deny = _Patterns(content.get("deny"))
        self._allow = _Patterns(content.get("allow"))

    def allows(self, server_name: str) -> bool:
        """Whether the server may take part in the room. Its port does not matter, nor does case."""
        host = _strip_port(server_name).lower()
        if not self._allows_ip_literals and (host.startswith("[") or _IPV4_LITERAL.fullmatch(host)):
            return False
        return not self._deny.match(host) and self._allow.match(host)


class _Patterns:
    """A list of globs: plain names are looked up, the others tried one by one."""

    __slots__ = ("_globs", "_names")

    def __init__(self, entries: object) -> None:
        patterns: Iterable[object] = entries if isinstance(entries, list) else ()
        lowered = [pattern.lower() for pattern in patterns if isinstance(pattern, str)]
        self._names = frozenset(pattern for pattern in lowered if not has_wildcards(pattern))
        self._globs = tuple(dict.fromkeys(pattern for pattern in lowered if has_wildcards(pattern)))

    def match(self, host: str) -> bool:
        return host in self._names or any(glob_match(pattern, host) for pattern in self._globs)


def _strip_port(server_name: str) -> str:
    if server_name.startswith("["):
        host, bracket, _ = server_name.partition("]")
        return host + bracket
    return server_name.partition(":")[0]
