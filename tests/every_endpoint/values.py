"""Values that follow a schema of the specification, with real identifiers of the server where one is meant."""

import random
import re
from collections.abc import Mapping
from typing import Any, Protocol

from referencing import Registry

JSON = Any

FORMATS = {
    "mx-user-id": "user_id",
    "mx-room-id": "room_id",
    "mx-event-id": "event_id",
    "mx-room-alias": "alias",
    "mx-server-name": "server_name",
    "mx-mxc-uri": "mxc",
}
"""Kinds of identifiers by the format that the specification calls them."""

NAMES = {
    "alias": "alias",
    "authtype": "stage",
    "delayid": "delay_id",
    "mfullyread": "event_id",
    "mread": "event_id",
    "mreadprivate": "event_id",
    "reportid": "report_id",
    "room": "room_id_or_alias",
    "batch": "sync_token",
    "before": "sync_token",
    "after": "sync_token",
    "deviceid": "device_id",
    "eventid": "event_id",
    "eventtype": "event_type",
    "filter": "filter",
    "filterid": "filter_id",
    "from": "token",
    "id": "device_id",
    "inreplyto": "event_id",
    "key": "base64",
    "keyname": "profile_field",
    "kind": "push_kind",
    "limit": "limit",
    "logintoken": "login_token",
    "nextbatch": "sync_token",
    "password": "password",
    "newpassword": "password",
    "newversion": "room_version",
    "receipttype": "receipt_type",
    "refreshtoken": "refresh_token",
    "roomalias": "alias",
    "roomid": "room_id",
    "roomidoralias": "room_id_or_alias",
    "roomversion": "room_version",
    "ruleid": "rule_id",
    "server": "server_name",
    "servername": "server_name",
    "session": "session",
    "sessionid": "session_id",
    "since": "sync_token",
    "statekey": "state_key",
    "tag": "tag",
    "timeout": "timeout",
    "to": "token",
    "token": "login_token",
    "ts": "timestamp",
    "txnid": "txn_id",
    "type": "account_data_type",
    "user": "user_id",
    "userid": "user_id",
    "username": "localpart",
    "version": "backup_version",
    "via": "server_name",
}
"""Kinds of values by the name that the specification gives them, without underscores and case."""

TEXTS = (
    "",
    "a",
    "m.text",
    "Room name",
    "a.b.c",
    "ü",
    "日本語",
    "👩‍👩‍👧",
    "x" * 200,
    "http://a.test/",
    "*",
    "0",
    "null",
)


class Pool(Protocol):
    """Where real values come from."""

    def pick(self, kind: str) -> Any:
        """A value of this kind: nearly always one that exists."""


class Values:
    """Makes values, the same ones for the same seed and pool."""

    def __init__(self, chance: random.Random, registry: Registry[Any], pool: Pool) -> None:
        self._chance = chance
        self._registry = registry
        self._pool = pool

    def of(self, schema: Mapping[str, Any], uri: str, name: str = "", depth: int = 0) -> JSON:
        """A value of the schema that stands at `uri`; `name` is what it is a value of."""
        if "$ref" in schema:
            found = self._registry.resolver(uri).lookup(schema["$ref"])
            merged = {**found.contents, **{key: value for key, value in schema.items() if key != "$ref"}}
            return self.of(merged, found.resolver._base_uri, name, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._chance.choice(schema["enum"])
        known = self._known(schema, name)
        if known is not None:
            return known
        for combined in ("allOf", "oneOf", "anyOf"):
            if combined in schema:
                return self._combined(schema, combined, uri, name, depth)
        return self._plain(schema, uri, name, depth)

    def _known(self, schema: Mapping[str, Any], name: str) -> JSON:
        kind = FORMATS.get(schema.get("format", "")) or NAMES.get(re.sub("[^a-z]", "", name.lower()))
        kinds = _types(schema)
        if kind is None or not ({"string", "integer"} & set(kinds)) or self._chance.random() < 0.03:
            return None
        value = self._pool.pick(kind)
        fits = ("integer" if type(value) is int else "string") in kinds
        return value if fits else None

    def _combined(self, schema: Mapping[str, Any], combined: str, uri: str, name: str, depth: int) -> JSON:
        parts = schema[combined] if combined == "allOf" else [self._chance.choice(schema[combined])]
        values = [self.of(part, uri, name, depth) for part in parts]
        rest = {key: value for key, value in schema.items() if key != combined}
        if "properties" in rest or not values:
            values.append(self.of(rest, uri, name, depth))
        if all(isinstance(value, dict) for value in values):
            return {key: value for each in values for key, value in each.items()}
        return values[-1]

    def _plain(self, schema: Mapping[str, Any], uri: str, name: str, depth: int) -> JSON:
        if "example" in schema and self._chance.random() < 0.2:
            return schema["example"]
        match self._chance.choice(_types(schema)):
            case "object":
                return self._object(schema, uri, depth)
            case "array":
                return self._array(schema, uri, name, depth)
            case "string":
                return self._text(schema)
            case "integer":
                return self._pool.pick("timestamp") if self._chance.random() < 0.3 else self._chance.randint(0, 100)
            case "number":
                return self._chance.choice([0, 1, 0.25, 100])
            case "boolean":
                return self._chance.random() < 0.5
            case _:
                return None

    def _object(self, schema: Mapping[str, Any], uri: str, depth: int) -> dict[str, JSON]:
        required = set(schema.get("required", ()))
        likely = 0.5 if depth < 3 else 0.2
        made = {
            name: self.of(part, uri, name, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if name in required or self._chance.random() < likely
        }
        for part in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
            if isinstance(part, dict) and depth < 6:
                kind = FORMATS.get(schema.get("x-pattern-format") or part.get("x-pattern-format", ""))
                for _ in range(self._chance.randint(0, 2)):
                    made[self._key(kind)] = self.of(part, uri, "", depth + 1)
        return made

    def _key(self, kind: str | None) -> str:
        if kind is None:
            kind = self._chance.choice(["user_id", "device_id", "room_id", "event_id", "word"])
        return str(self._pool.pick(kind))

    def _array(self, schema: Mapping[str, Any], uri: str, name: str, depth: int) -> list[JSON]:
        part = schema.get("items", {"type": "string"})
        count = max(self._chance.randint(0, 3) if depth < 6 else 0, schema.get("minItems", 0))
        return [self.of(part, uri, name.removesuffix("s"), depth + 1) for _ in range(count)]

    def _text(self, schema: Mapping[str, Any]) -> str:
        match schema.get("format"):
            case "uri":
                return "https://hearth.test/"
            case "email":
                return "alice@hearth.test"
            case "mx-unpadded-base64":
                return str(self._pool.pick("base64"))
        return self._chance.choice(TEXTS) if self._chance.random() < 0.7 else str(self._pool.pick("word"))


def _types(schema: Mapping[str, Any]) -> list[str]:
    given = schema.get("type")
    if isinstance(given, list):
        return [str(each) for each in given]
    if given is not None:
        return [str(given)]
    if "properties" in schema or "additionalProperties" in schema or "patternProperties" in schema:
        return ["object"]
    return ["array"] if "items" in schema else ["string"]
