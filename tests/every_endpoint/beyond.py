"""Endpoints that the specification's files do not have: unstable ones, the admin API, pages, ways of old clients.

Nothing says what they answer, but errors must be error objects, and nothing may be a 500.
"""

import re
from collections.abc import Iterable
from typing import Any

from federation.web import Route
from tests.openapi import Operation, Specification

MEMBERS = {
    **dict.fromkeys(("password", "new_password", "username", "displayname", "avatar_url", "device_id"), "string"),
    **dict.fromkeys(
        ("nonce", "mac", "token", "action", "next_batch", "user_type", "initial_device_display_name"), "string"
    ),
    **dict.fromkeys(("admin", "deactivated", "erase", "locked", "logout_devices", "suspended"), "boolean"),
    **dict.fromkeys(("uses_allowed", "expiry_time", "length", "valid_until_ms"), "integer"),
    **dict.fromkeys(("device_data", "device_keys", "one_time_keys", "fallback_keys", "master_key", "auth"), "object"),
    **dict.fromkeys(("threepids", "external_ids"), "array"),
}
"""What bodies have, by the type that it should be of."""
QUERY: dict[str, dict[str, Any]] = {
    **{name: {"type": "integer"} for name in ("from", "limit", "ts")},
    **{name: {"type": "boolean"} for name in ("guests", "deactivated", "valid")},
    **{name: {"type": "string"} for name in ("name", "user_id", "next_batch", "session", "via")},
    "dir": {"enum": ["f", "b"]},
}


def operations_beyond(specification: Specification, routes: Iterable[Route]) -> list[Operation]:
    """An operation for each endpoint that the specification has none for, and that is no old name of another."""
    found = []
    for route in routes:
        filled = re.sub(r"[{}]", "", route.path)
        if "/client/r0/" not in route.path and specification.find(route.method, filled) is None:
            found.append(_operation(route))
    return found


def _operation(route: Route) -> Operation:
    names = re.findall(r"\{([^}]+)\}", route.path)
    text, whole = {"type": "string"}, {"type": "object"}
    properties = {name: {"type": kind, "items": whole} for name, kind in MEMBERS.items()}
    definition = {
        "parameters": [
            *({"in": "path", "name": name, "schema": text} for name in names),
            *({"in": "query", "name": name, "schema": schema} for name, schema in QUERY.items()),
        ],
        "requestBody": {"content": {"application/json": {"schema": {"type": "object", "properties": properties}}}},
        "responses": {},
    }
    if route.method in {"GET", "DELETE"}:
        del definition["requestBody"]
    return Operation(
        name=f"{route.method} {route.path}",
        method=route.method,
        template=route.path,
        path=re.compile(re.sub(r"\\\{[^}]+\\\}", "[^/]+", re.escape(route.path))),
        parameters=len(names),
        uri="",
        definition=definition,
    )
