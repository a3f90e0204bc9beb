"""The limits and shape of `/send` (Server-Server API, "Transactions")."""

from collections.abc import Sequence
from typing import Any

import orjson
from msgspec import Struct

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject, ServerName

MAX_PDUS = 50
MAX_EDUS = 100


class Transaction(Struct, frozen=True, kw_only=True):
    """What one server sent another at once; each PDU and EDU succeeds or fails alone."""

    pdus: tuple[JsonObject, ...]
    """Objects, else unchecked."""
    edus: tuple[JsonObject, ...]
    """Objects, else unchecked."""


def parse(json: object, origin: ServerName) -> Transaction:
    """The transaction that `origin` sent; what cannot be a PDU or EDU at all is left out.

    Raises InvalidInput if it has too many of them, no such lists, or is said to be from another server.
    """
    if not isinstance(json, dict):
        raise InvalidInput("A transaction is an object", "M_BAD_JSON")
    if json.get("origin", origin) != origin:
        raise InvalidInput("The transaction's origin is not the server that sent it")
    return Transaction(pdus=_objects(json, "pdus", MAX_PDUS), edus=_objects(json, "edus", MAX_EDUS))


def encode(origin: ServerName, origin_server_ts: int, pdus: Sequence[bytes], edus: Sequence[JsonObject]) -> bytes:
    """The canonical JSON of a transaction of PDUs that are canonical JSON already: to send and to sign as it is.

    The caller promises to keep to the limits.
    """
    members = [b'"origin":' + orjson.dumps(origin), b'"origin_server_ts":%d' % origin_server_ts]
    if edus:
        members.insert(0, b'"edus":' + canonical_json.encode(edus))
    members.append(b'"pdus":[' + b",".join(pdus) + b"]")
    return b"{" + b",".join(members) + b"}"


def _objects(json: JsonObject, key: str, most: int) -> tuple[JsonObject, ...]:
    items: Any = json.get(key, [])
    if not isinstance(items, list):
        raise InvalidInput(f"{key} is an array", "M_BAD_JSON")
    if len(items) > most:
        raise InvalidInput(f"A transaction has at most {most} {key}", "M_BAD_JSON")
    return tuple(item for item in items if isinstance(item, dict))
