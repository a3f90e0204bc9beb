"""Makes a random request for an operation: valid by its schema, and about what exists."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.client import PASSWORD
from tests.devices import CrossSigning
from tests.every_endpoint.damage import Prepared
from tests.every_endpoint.values import Values
from tests.every_endpoint.world import Pick, World
from tests.openapi import INCLUDED, Operation, Specification

_ENDING_DEVICES = frozenset(("deactivateAccount", "changePassword", "deleteDevice", "deleteDevices"))
ENDING = _ENDING_DEVICES | {"logout", "logout_all", "refresh"}
"""Operations after which whoever asked may be logged out: victims ask."""
HARMFUL_TO_OTHERS = frozenset(("setAdminLockUser", "setAdminSuspendUser"))
"""Operations that lock somebody out: victims are whom they are about."""
RULES = (
    *(("content", "mine"), ("content", ".m.rule.contains_user_name"), ("override", ".m.rule.master")),
    *(("override", "mine"), ("underride", ".m.rule.message"), ("room", "mine"), ("sender", "mine")),
)
ADMINISTRATION = "/_synapse/admin/"
BY_ADMINISTRATORS = HARMFUL_TO_OTHERS | {"getAdminLockUser", "getAdminSuspendUser", "getWhoIs"}
AUTHENTICATED_AGAIN = _ENDING_DEVICES | {"uploadCrossSigningKeys", "generateLoginToken"}
"""Operations with user-interactive authentication of somebody who is logged in."""
RARE = frozenset(("m.room.power_levels", "m.room.join_rules", "m.room.tombstone", "m.room.create", "m.room.server_acl"))
"""State after which there is less to be done in a room."""
WITH_EVENT_CONTENT = frozenset(("sendMessage", "setRoomStateWithKey", "setAccountData", "setAccountDataPerRoom"))

_EVENT_TYPES: dict[bool, list[str]] = {True: [], False: []}
"""Types whose content has a schema, by whether they are state."""
for _file in sorted((INCLUDED / "event-schemas" / "schema").glob("m.*.yaml")):
    _text = _file.read_text(encoding="utf-8")
    if "\n  content:" in _text:
        _EVENT_TYPES["state_key" in _text].append(_file.name.removesuffix(".yaml"))


class Making:
    """Makes the requests of one world."""

    def __init__(self, specification: Specification, world: World) -> None:
        self.world = world
        self._specification = specification
        self._chance: random.Random = world.chance

    def make(self, operation: Operation) -> tuple[Prepared, Pick]:
        """A request, and who and what it is about."""
        world, chance, name = self.world, self._chance, operation.name
        actor = chance.choice(world.actors)
        if name in ENDING and world.victim is not None:
            actor = world.victim
        elif _is_for_administrators(operation) and world.admin is not None and chance.random() < 0.8:
            actor = world.admin
        pick = Pick(world, actor, chance.choice(world.rooms))
        values = Values(chance, self._specification.registry, pick)
        event_type = self._event_type(name)
        headers = {"Authorization": f"Bearer {actor.access_token}"} if actor.access_token else {}
        parameters: list[tuple[str, Any]] = []
        query: list[tuple[str, str]] = []
        for uri, parameter in self._parameters(operation):
            required = parameter.get("required", False)
            if parameter["in"] == "path":
                parameters.append((parameter["name"], values.of(parameter["schema"], uri, parameter["name"])))
            elif parameter["in"] == "query" and (required or chance.random() < 0.45):
                meant = "since" if name == "getKeysChanges" else parameter["name"]
                query.extend(_as_query(parameter["name"], values.of(parameter["schema"], uri, meant)))
        if "userId" in dict(parameters) and _is_about_oneself(operation) and chance.random() < 0.85:
            parameters.append(("userId", actor.user_id))
        named = self._path(operation, dict(parameters), event_type)
        if is_harmful(operation) and world.victim is not None:
            victim = quote(world.victim.user_id, safe="")
            named = [(each, victim if "user" in each else value) for each, value in named]
        path = [value for _, value in named]
        body = self._body(operation, values, pick, event_type)
        if operation.name == "setProfileField" and chance.random() < 0.8:
            body = {dict(parameters)["keyName"]: "https://a.test" if chance.random() < 0.5 else "mxc://hearth.test/abc"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        template = operation.template
        if chance.random() < 0.05:
            template = template.replace("/_matrix/client/v3/", "/_matrix/client/r0/")  # its name for older clients
        prepared = Prepared(operation.method, template, tuple(path), tuple(query), headers, body)
        return prepared, pick

    def _parameters(self, operation: Operation) -> list[tuple[str, dict[str, Any]]]:
        found = []
        for parameter in operation.definition.get("parameters", ()):
            if "$ref" in parameter:
                file = operation.uri.partition("#")[0]
                resolved = self._specification.registry.resolver(file).lookup(parameter["$ref"])
                found.append((file, dict(resolved.contents)))
            else:
                found.append((operation.uri, parameter))
        return found

    def _event_type(self, name: str) -> str | None:
        if name not in WITH_EVENT_CONTENT or self._chance.random() < 0.2:
            return None
        found = self._chance.choice(_EVENT_TYPES[name == "setRoomStateWithKey"])
        return found if found not in RARE or self._chance.random() < 0.2 else None

    def _path(self, operation: Operation, parameters: dict[str, Any], event_type: str | None) -> list[tuple[str, str]]:
        if event_type is not None:
            parameters["eventType" if "eventType" in parameters else "type"] = event_type.partition("$")[0]
            if event_type == "m.room.member":
                parameters["stateKey"] = self._chance.choice(self.world.values["user_id"])
            elif self._chance.random() < 0.8:
                parameters["stateKey"] = ""
        if self._chance.random() < 0.8:
            self._pair(operation, parameters)
        names = re.findall(r"\{([^}]+)\}", operation.template)
        return [(name, quote(str(parameters[name]), safe="")) for name in names]

    def _pair(self, operation: Operation, parameters: dict[str, Any]) -> None:
        """Let parameters go together."""
        if "kind" in parameters and "ruleId" in parameters:
            parameters["kind"], parameters["ruleId"] = self._chance.choice(RULES)
            if operation.name == "setPushRule":
                parameters["ruleId"] = "mine"
        if operation.name == "getRoomStateWithKey":
            state = ("m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.topic")
            parameters["eventType"], parameters["stateKey"] = self._chance.choice(state), ""

    def _body(self, operation: Operation, values: Values, pick: Pick, event_type: str | None) -> Any:
        content = operation.definition.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        if schema is None:
            return None if operation.method in {"GET", "DELETE"} else {}
        recipe = RECIPES.get(operation.name)
        if event_type is not None:
            file = Path(INCLUDED, "event-schemas", "schema", f"{event_type}.yaml").resolve()
            body = values.of({"$ref": f"{file.as_uri()}#/properties/content"}, operation.uri, depth=1)
        elif recipe is not None and self._chance.random() < 0.7:
            body = recipe(values, pick)
        else:
            body = values.of(schema, operation.uri)
        if operation.name in AUTHENTICATED_AGAIN and self._chance.random() < 0.7:
            body["auth"] = pick.actor.password_auth()
        return body


def _is_about_oneself(operation: Operation) -> bool:
    """Whether only the user whom its path names may call it."""
    own = ("/user/{userId}/", "/typing/{userId}")
    return operation.method in {"PUT", "DELETE"} or any(part in operation.template for part in own)


def is_harmful(operation: Operation) -> bool:
    """Whether it may lock out or log out somebody else: victims are whom it is about."""
    is_admin = operation.template.startswith(ADMINISTRATION) and operation.method != "GET"
    return is_admin or operation.name in HARMFUL_TO_OTHERS


def _is_for_administrators(operation: Operation) -> bool:
    return operation.name in BY_ADMINISTRATORS or operation.template.startswith(ADMINISTRATION)


def _as_query(name: str, value: Any) -> Sequence[tuple[str, str]]:
    if isinstance(value, list):
        return [(name, quote(str(each), safe="")) for each in value]
    return [(name, quote(str(value).lower() if isinstance(value, bool) else str(value), safe=""))]


def _login(_values: Values, pick: Pick) -> Any:
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": pick.actor.user_id}}
    if pick.world.chance.random() < 0.3:
        return {"type": "m.login.token", "token": pick.pick("login_token")}
    return {**body, "password": pick.pick("password"), "refresh_token": pick.world.chance.random() < 0.3}


def _registration(_values: Values, pick: Pick) -> Any:
    return {"username": pick.pick("localpart"), "password": PASSWORD, "auth": {"type": "m.login.dummy"}}


def _new_password(_values: Values, pick: Pick) -> Any:
    return {"new_password": PASSWORD, "logout_devices": pick.world.chance.random() < 0.5}


def _keys(_values: Values, pick: Pick) -> Any:
    device = pick.world.devices.get(pick.actor.user_id)
    if device is None:
        return {"one_time_keys": {"curve25519:AAAA": "A" * 43}}
    keys = {
        "device_keys": device.identity(),
        "one_time_keys": device.one_time_keys(1),
        "fallback_keys": device.fallback_key(),
    }
    kept = pick.world.chance.sample(sorted(keys), pick.world.chance.randint(1, 3))
    return {name: keys[name] for name in kept}


def _cross_signing_keys(_values: Values, pick: Pick) -> Any:
    keys = CrossSigning(pick.actor).body()
    kept = pick.world.chance.sample(sorted(keys), pick.world.chance.choice((1, 2, 3, 3, 3)))
    return {name: keys[name] for name in kept}


def _signatures(_values: Values, pick: Pick) -> Any:
    device = pick.world.devices.get(pick.actor.user_id) or next(iter(pick.world.devices.values()))
    return {device.user_id: {device.client.device_id: device.identity(), pick.pick("device_id"): device.signed({})}}


def _claim(_values: Values, pick: Pick) -> Any:
    device = pick.world.chance.choice(list(pick.world.devices.values()))
    algorithm = pick.world.chance.choice(("signed_curve25519", "curve25519"))
    return {"one_time_keys": {device.user_id: {device.client.device_id: algorithm}}}


def _query_keys(_values: Values, pick: Pick) -> Any:
    return {"device_keys": {pick.pick("user_id"): [] for _ in range(3)}}


def _refresh(_values: Values, pick: Pick) -> Any:
    return {"refresh_token": pick.pick("refresh_token")}


def _to_whom(_values: Values, pick: Pick) -> Any:
    return {"user_id": pick.pick("user_id"), "reason": "because"}


def _new_room(values: Values, pick: Pick) -> Any:
    chance = pick.world.chance
    members: dict[str, Callable[[], Any]] = {
        "preset": lambda: chance.choice(("public_chat", "private_chat", "trusted_private_chat")),
        "name": lambda: "A room",
        "topic": lambda: "A topic",
        "room_version": lambda: pick.pick("room_version"),
        "invite": lambda: [pick.pick("user_id") for _ in range(chance.randint(0, 2))],
        "is_direct": lambda: chance.random() < 0.5,
        "room_alias_name": lambda: pick.pick("localpart"),
        "initial_state": lambda: [{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}],
        "creation_content": lambda: {"m.federate": chance.random() < 0.5, "type": "m.space"},
        "power_level_content_override": lambda: {"users_default": 1, "events": {"m.room.name": 5}},
        "visibility": lambda: chance.choice(("public", "private")),
    }
    return {name: make() for name, make in members.items() if chance.random() < 0.35}


def _push_rule(_values: Values, pick: Pick) -> Any:
    chance = pick.world.chance
    conditions = (
        {"kind": "event_match", "key": "content.body", "pattern": "a*b?"},
        {"kind": "contains_display_name"},
        {"kind": "room_member_count", "is": ">=2"},
        {"kind": "sender_notification_permission", "key": "room"},
        {"kind": "event_property_is", "key": "content.m\\.x", "value": 1},
        {"kind": "event_property_contains", "key": "content.a", "value": "b"},
        {"kind": "org.example.unknown"},
    )
    actions = ("notify", {"set_tweak": "highlight"}, {"set_tweak": "sound", "value": "default"})
    body: dict[str, Any] = {"actions": list(chance.sample(actions, chance.randint(0, 3)))}
    if chance.random() < 0.6:
        body["conditions"] = list(chance.sample(conditions, chance.randint(0, 3)))
    if chance.random() < 0.6:
        body["pattern"] = chance.choice(("a", "a*", "*", "?", "[a-c]", "x" * 200))
    return body


def _pusher(_values: Values, pick: Pick) -> Any:
    chance = pick.world.chance
    url = "https://127.0.0.1:9/_matrix/push/v1/notify"
    names = {"app_display_name": "App", "device_display_name": "Phone", "lang": "en"}
    return {
        "kind": chance.choice(("http", "http", "email", None)),
        "app_id": chance.choice(("org.example.app", "m.email")),
        "pushkey": chance.choice(("key", "a@example.org", pick.pick("user_id"))),
        **(names if chance.random() < 0.8 else {}),
        "data": chance.choice(({"url": url}, {"url": url, "format": "event_id_only", "a": [1]}, {})),
        **({"append": True} if chance.random() < 0.3 else {}),
    }


def _devices(_values: Values, pick: Pick) -> Any:
    return {"devices": [pick.pick("device_id")]}


RECIPES: dict[str, Callable[[Values, Pick], Any]] = {
    "login": _login,
    "register": _registration,
    "changePassword": _new_password,
    "uploadKeys": _keys,
    "uploadCrossSigningKeys": _cross_signing_keys,
    "uploadCrossSigningSignatures": _signatures,
    "claimKeys": _claim,
    "queryKeys": _query_keys,
    "refresh": _refresh,
    "inviteUser": _to_whom,
    "kick": _to_whom,
    "ban": _to_whom,
    "unban": _to_whom,
    "createRoom": _new_room,
    "deleteDevices": _devices,
    "setPushRule": _push_rule,
    "postPusher": _pusher,
    "deactivateAccount": lambda _values, _pick: {},
    "generateLoginToken": lambda _values, _pick: {},
}
"""Bodies that reach further than what follows a schema by chance."""
