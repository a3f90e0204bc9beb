"""Keys given out: our own, and as a notary those of others (Server-Server API, "Retrieving server keys")."""

import time
from collections.abc import Mapping, Sequence

from federation.outbound.keyring import Keyring
from federation.protocol import identifiers, server_keys, signatures
from federation.protocol.canonical_json import MAX_INTEGER
from federation.protocol.errors import InvalidInput
from federation.protocol.server_keys import OldKey
from federation.protocol.signatures import SigningKey
from federation.protocol.types import JsonObject, KeyID, ServerName
from federation.web import Answer, Call

VALIDITY_MS = 24 * 3600 * 1000
"""For so long others may trust our keys without asking again; a lost key can be misused as long."""

RENEWED_MS = 3600 * 1000
"""So old an answer may be that is given out."""

MAX_SERVERS = 1000
"""A notary is asked for the keys of so many servers at once."""

MAX_QUERY_BYTES = 256 * 1024
"""Whoever asks need not say who they are."""


class ServerKeysAPI:
    """GET /_matrix/key/v2/server; GET and POST /_matrix/key/v2/query."""

    def __init__(
        self, server_name: ServerName, signing_key: SigningKey, old_keys: Sequence[OldKey], keyring: Keyring
    ) -> None:
        self._server_name = server_name
        self._signing_key = signing_key
        self._old_keys = {old.key_id: old for old in old_keys}
        self._keyring = keyring
        self._made_ms = 0
        self._own: JsonObject = {}

    async def get_own(self, _call: Call) -> Answer:
        """GET /server, and /server/{key_id} as servers ask that follow older versions: all keys, signed."""
        return self._own_keys()

    async def query_one(self, call: Call) -> Answer:
        """GET /query/{server_name}: its keys signed by it and by us; none if it was never reached."""
        name = identifiers.check_server_name(call.path["server_name"])
        least_ts = call.query_int("minimum_valid_until_ts", _now_ms(), maximum=MAX_INTEGER)
        return {"server_keys": await self._query({name: ({}, least_ts)})}

    async def query_many(self, call: Call) -> Answer:
        """POST /query: the same for many servers; those that were never reached are left out."""
        body = await call.body(max_bytes=MAX_QUERY_BYTES)
        wanted = body.get("server_keys")
        if not isinstance(wanted, dict):
            raise InvalidInput("server_keys must be an object", "M_BAD_JSON")
        if len(wanted) > MAX_SERVERS:
            raise InvalidInput(f"server_keys may name at most {MAX_SERVERS} servers")
        now = _now_ms()
        return {
            "server_keys": await self._query(
                {identifiers.check_server_name(name): _criteria(keys, now) for name, keys in wanted.items()}
            )
        }

    async def _query(self, wanted: Mapping[ServerName, tuple[Mapping[KeyID, int], int]]) -> list[JsonObject]:
        others = {name: criteria for name, criteria in wanted.items() if name != self._server_name}
        lists = await self._keyring.find_lists(others) if others else []
        answer = [signatures.sign_json(json, self._server_name, self._signing_key) for json in lists]
        return answer if len(others) == len(wanted) else [self._own_keys(), *answer]

    def _own_keys(self) -> JsonObject:
        now = _now_ms()
        if self._made_ms + RENEWED_MS <= now:
            self._made_ms = now
            self._own = server_keys.make(self._server_name, self._signing_key, self._old_keys, now + VALIDITY_MS)
        return self._own


def _criteria(keys: object, now_ms: int) -> tuple[Mapping[KeyID, int], int]:
    """The keys that are asked for, each with the time until when it should be valid, and the latest of those times."""
    if not isinstance(keys, dict):
        raise InvalidInput("server_keys must have an object for each server", "M_BAD_JSON")
    criteria: dict[KeyID, int] = {}
    for key_id, criterion in keys.items():
        least_ts = criterion.get("minimum_valid_until_ts", now_ms) if isinstance(criterion, dict) else None
        if type(least_ts) is not int or not 0 <= least_ts <= MAX_INTEGER:
            raise InvalidInput("minimum_valid_until_ts must be an integer", "M_BAD_JSON")
        criteria[KeyID(key_id)] = least_ts
    return criteria, max(criteria.values(), default=now_ms)


def _now_ms() -> int:
    return int(time.time() * 1000)
