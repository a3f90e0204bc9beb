"""Setting and listing pushers (Client-Server API v1.19, "Push Notifications"; MSC3881, MSC4076)."""

import secrets
from collections.abc import Collection
from typing import Final

import orjson
from yarl import URL

from federation.protocol.errors import InvalidInput, NotFound
from federation.protocol.types import DeviceID, JsonObject, UserID
from homeserver.services.email_addresses import canonical_email
from homeserver.services.requester import Requester
from storage import devices, identifiers, pushers
from storage.database import Database, Tx
from storage.identifiers import Identifier
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Entry, Work
from storage.pushers import EMAIL, HTTP, NewPusher, Pusher

PATH: Final = "/_matrix/push/v1/notify"
ENABLED: Final = "org.matrix.msc3881.enabled"
DEVICE_ID: Final = "org.matrix.msc3881.device_id"
WITHOUT_BADGE: Final = "org.matrix.msc4076.disable_badge_count"
EMAIL_APP: Final = "m.email"
MAX_PUSHKEY_BYTES = 512
MAX_APP_ID = 64
MAX_TEXT = 255
MAX_URL = 2048
MAX_DATA_BYTES = 4096
MAX_PUSHERS = 50
"""Of one user."""
_MAX_TOLD = 8
"""Other users whose pushers one request ends, before all are told that some of theirs may have."""

_REQUIRED = ("app_display_name", "device_display_name", "lang")


def parse_pusher(body: JsonObject) -> NewPusher | None:
    """The pusher that a client asks for, None where it asks for its end; raises what the specification says."""
    app_id, pushkey = _key(body)
    if "kind" not in body:
        raise InvalidInput("Missing parameters: kind", "M_MISSING_PARAM")
    kind = body["kind"]
    if kind is None:
        return None
    if kind not in (HTTP, EMAIL):
        raise InvalidInput("kind must be http, email or null")
    missing = [name for name in (*_REQUIRED, "data") if body.get(name) is None]
    if missing:
        raise InvalidInput(f"Missing parameters: {', '.join(missing)}", "M_MISSING_PARAM")
    description: JsonObject = {name: _text(body, name, MAX_TEXT) for name in _REQUIRED}
    if body.get("profile_tag") is not None:
        description["profile_tag"] = _text(body, "profile_tag", MAX_TEXT)
    description["data"] = data = body["data"]
    if not isinstance(data, dict):
        raise InvalidInput("data must be an object", "M_BAD_JSON")
    if len(orjson.dumps(data)) > MAX_DATA_BYTES:
        raise InvalidInput(f"data may not be larger than {MAX_DATA_BYTES} bytes")
    if kind == HTTP:
        _check_url(data.get("url"))
        if not isinstance(data.get("format", ""), str):
            raise InvalidInput("data.format must be a string", "M_BAD_JSON")
    if (kind == EMAIL) is not (app_id == EMAIL_APP):  # else who knows an address could take its owner's pusher over
        raise InvalidInput(f"app_id of a pusher by mail, and of no other, must be {EMAIL_APP}")
    enabled = body.get(ENABLED, True)
    if not isinstance(enabled, bool):
        raise InvalidInput(f"{ENABLED} must be a boolean", "M_BAD_JSON")
    return NewPusher(
        kind=kind,
        app_id=app_id,
        pushkey=pushkey,
        is_enabled=enabled,
        description=description,
        token=secrets.token_urlsafe(32) if kind == EMAIL else None,
    )


def _key(body: JsonObject) -> tuple[str, str]:
    missing = [name for name in ("app_id", "pushkey") if body.get(name) is None]
    if missing:
        raise InvalidInput(f"Missing parameters: {', '.join(missing)}", "M_MISSING_PARAM")
    pushkey = _text(body, "pushkey", MAX_PUSHKEY_BYTES)
    if len(pushkey.encode()) > MAX_PUSHKEY_BYTES:
        raise InvalidInput(f"pushkey may not be longer than {MAX_PUSHKEY_BYTES} bytes")
    return _text(body, "app_id", MAX_APP_ID), pushkey


def _text(body: JsonObject, name: str, longest: int) -> str:
    value = body[name]
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a string", "M_BAD_JSON")
    if len(value) > longest or "\0" in value:
        raise InvalidInput(f"{name} may not be longer than {longest} characters")
    return value


def _check_url(value: object) -> None:
    if value is None:
        raise InvalidInput("Missing parameters: data.url", "M_MISSING_PARAM")
    if not isinstance(value, str):
        raise InvalidInput("data.url must be a string", "M_BAD_JSON")
    if len(value) > MAX_URL or not value.isascii() or not value.isprintable() or not _is_right(value):
        raise InvalidInput(f"data.url must be an https URL with the path {PATH}")


def _is_right(text: str) -> bool:
    try:
        url = URL(text, encoded=True)
        has_host = bool(url.raw_host) and url.port is not None and url.user is None and url.password is None
    except ValueError:
        return False
    return has_host and url.scheme == "https" and text.endswith(PATH) and url.raw_path == PATH


def client_form(pusher: Pusher) -> JsonObject:
    """A pusher as its user sees it."""
    answer = {
        **pusher.description,
        "kind": pusher.kind,
        "app_id": pusher.app_id,
        "pushkey": pusher.pushkey,
        ENABLED: pusher.is_enabled,
    }
    if pusher.device_id is not None:
        answer[DEVICE_ID] = pusher.device_id
    return answer


class PusherService:
    """The pushers of all local users."""

    def __init__(self, database: Database, log: Log, *, sends_mail: bool) -> None:
        self._database = database
        self._log = log
        self._sends_mail = sends_mail

    async def list(self, user_id: UserID) -> list[Pusher]:
        """A user's pushers."""
        async with self._database.read() as tx:
            return await pushers.list_of_user(tx, user_id)

    async def set(self, who: Requester, body: JsonObject) -> None:
        """Set or end a pusher as a client asks; raises what the specification says."""
        new = parse_pusher(body)
        if new is None:
            app_id, pushkey = _key(body)
            await self._change(who.user_id, lambda tx: pushers.delete(tx, who.user_id, app_id, pushkey))
            return
        if new.kind == EMAIL and not self._sends_mail:
            raise InvalidInput("This server sends no notifications by mail")
        append, device_id = body.get("append", False), body.get(DEVICE_ID)
        if not isinstance(append, bool) or not isinstance(device_id, str | None):
            raise InvalidInput(f"append must be a boolean, and {DEVICE_ID} a string", "M_BAD_JSON")
        entry = Entry(width=1 + _MAX_TOLD)

        async def work(tx: Tx) -> None:
            device = None  # mail goes to the account's own address, whatever becomes of the session
            if new.kind == EMAIL:
                await _check_address(tx, who.user_id, new.pushkey)
            else:
                device = await _device(tx, who, device_id)
            others: Collection[UserID] = ()
            if not append:
                others = set(await pushers.delete_of_others(tx, who.user_id, new.app_id, new.pushkey))
            now_ts = self._database.now_ms()
            if not await pushers.put(tx, who.user_id, device, new, now_ts=now_ts, at_most=MAX_PUSHERS):
                raise InvalidInput(f"A user may have no more than {MAX_PUSHERS} pushers")
            told = others if len(others) <= _MAX_TOLD else [UserID("")]
            entry.changes = [Invalidated(Kind.PUSHERS, user_id) for user_id in (who.user_id, *told)]

        entry.work = work
        await self._log.append(entry)

    async def remove(self, pusher: Pusher) -> None:
        """End a pusher whose gateway, or reader, wants no more."""
        await self._change(pusher.user_id, lambda tx: pushers.delete(tx, pusher.user_id, pusher.app_id, pusher.pushkey))

    async def find_by_token(self, token: str) -> Pusher:
        """The pusher whose mails have this token; raises M_NOT_FOUND."""
        async with self._database.read() as tx:
            found = await pushers.find_by_token(tx, token)
        if found is None:
            raise NotFound("These notifications have ended already")
        return found

    async def unsubscribe(self, token: str) -> None:
        """Send no more of the mails that have this token; raises M_NOT_FOUND."""
        await self.remove(await self.find_by_token(token))

    async def _change(self, user_id: UserID, change: Work) -> None:
        await self._log.append(Entry([Invalidated(Kind.PUSHERS, user_id)], change))


async def _check_address(tx: Tx, user_id: UserID, address: str) -> None:
    if await identifiers.find_user(tx, Identifier("email", canonical_email(address))) != user_id:
        raise InvalidInput("This is not a confirmed e-mail address of your account", "M_THREEPID_NOT_FOUND")


async def _device(tx: Tx, who: Requester, named: str | None) -> int | None:
    """The device that the pusher is to end with: the one that sets it, unless that says that it is another's."""
    if named is not None and named != who.device_id and "\0" not in named:
        found = await devices.find(tx, who.user_id, DeviceID(named))
        if found is not None:
            return found.device
    return who.device
