"""Locking, suspending and looking up accounts (Client-Server API, "Server Administration").

Besides, under the paths that existing dashboards use: registration by shared secret, registration tokens.
"""

import hashlib
import hmac
import secrets
import time

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, NotFound
from federation.protocol.types import JsonObject, UserID
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.login import token_fields
from homeserver.client_api.routing import requester
from homeserver.services.accounts import AccountService, NewAccount
from homeserver.services.device_activity import DeviceActivity
from homeserver.services.passwords import Passwords
from homeserver.services.requester import Requester
from homeserver.services.sessions import NewLogin, SessionService
from storage import accounts, devices
from storage.database import Database

NONCE_SECONDS = 60
MAX_TOKEN_LENGTH = 64


class ServerAdministrationAPI:
    """What administrators do to accounts."""

    def __init__(self, database: Database, account_service: AccountService, activity: DeviceActivity) -> None:
        self._database = database
        self._accounts = account_service
        self._activity = activity

    async def whois(self, call: Call) -> Answer:
        """GET /admin/whois/{userId}: for oneself, or for administrators."""
        who, user_id = requester(call), UserID(call.path["user_id"])
        if user_id != who.user_id and not who.is_admin:
            raise Forbidden("You are not an administrator of this server")
        account = await self._accounts.get(user_id)
        await self._activity.flush()
        async with self._database.read() as tx:
            found = await devices.list_of_user(tx, account.user_id)
        return {"user_id": user_id, "devices": {device.device_id: _whois_device(device) for device in found}}

    async def get_locked(self, call: Call) -> Answer:
        """GET /admin/lock/{userId}."""
        return {"locked": (await self._target(call)).is_locked}

    async def put_locked(self, call: Call) -> Answer:
        """PUT /admin/lock/{userId}."""
        target = await self._target(call, is_change=True)
        is_locked = fields.required_bool(await call.body(), "locked")
        await self._accounts.set_locked(target.user_id, is_locked=is_locked)
        return {"locked": is_locked}

    async def get_suspended(self, call: Call) -> Answer:
        """GET /admin/suspend/{userId}."""
        return {"suspended": (await self._target(call)).is_suspended}

    async def put_suspended(self, call: Call) -> Answer:
        """PUT /admin/suspend/{userId}."""
        target = await self._target(call, is_change=True)
        is_suspended = fields.required_bool(await call.body(), "suspended")
        await self._accounts.set_suspended(target.user_id, is_suspended=is_suspended)
        return {"suspended": is_suspended}

    async def _target(self, call: Call, *, is_change: bool = False) -> accounts.Account:
        who: Requester = requester(call)
        if not who.is_admin:
            raise Forbidden("You are not an administrator of this server")
        target = await self._accounts.get(UserID(call.path["user_id"]))
        if target.is_admin and (is_change or target.user_id != who.user_id):
            raise Forbidden("Administrators are not subject to this")
        return target

    # --- registration tokens, under /_synapse/admin/v1/registration_tokens

    async def list_tokens(self, _call: Call) -> Answer:
        """GET: every token."""
        async with self._database.read() as tx:
            rows = await accounts.list_registration_tokens(tx)
        return {"registration_tokens": [_token_fields(*row) for row in rows]}

    async def new_token(self, call: Call) -> Answer:
        """POST .../new: `token` of one's own or of `length`, `uses_allowed`, `expiry_time` in milliseconds."""
        body = await call.body(optional=True)
        length = _optional_int(body, "length") or 16
        token = body.get("token")
        if token is None:
            if not 1 <= length <= MAX_TOKEN_LENGTH:
                raise InvalidInput(f"length must be between 1 and {MAX_TOKEN_LENGTH}")
            token = secrets.token_urlsafe(MAX_TOKEN_LENGTH)[:length]
        elif not _is_token(token):
            raise InvalidInput(f"token must have 1 to {MAX_TOKEN_LENGTH} of the characters A-Z, a-z, 0-9 and ._~-")
        uses_allowed, expires_ts = _optional_int(body, "uses_allowed"), _optional_int(body, "expiry_time")
        if expires_ts is not None and expires_ts <= _now_ms():
            raise InvalidInput("expiry_time must be in the future")
        async with self._database.transaction() as tx:
            if not await accounts.insert_registration_token(
                tx, token, created_ts=_now_ms(), expires_ts=expires_ts, uses_allowed=uses_allowed
            ):
                raise InvalidInput("There is a token of this name")
        return _token_fields(token, expires_ts, uses_allowed, 0)

    async def delete_token(self, call: Call) -> Answer:
        """DELETE .../{token}."""
        async with self._database.transaction() as tx:
            if not await accounts.delete_registration_token(tx, call.path["token"]):
                raise NotFound("There is no such token")
        return {}

    async def get_admin(self, call: Call) -> Answer:
        """GET /_synapse/admin/v1/users/{userId}/admin."""
        return {"admin": (await self._accounts.get(UserID(call.path["user_id"]))).is_admin}


class SharedSecretRegistrationAPI:
    """Accounts made by who knows the configured secret, for scripts and bootstrapping.

    A nonce carries its own proof and time, so any process answers for any other; one that is used again names a user
    who exists by then.
    """

    def __init__(
        self, account_service: AccountService, sessions: SessionService, passwords: Passwords, secret: str | None
    ) -> None:
        self._accounts = account_service
        self._sessions = sessions
        self._passwords = passwords
        self._secret = None if secret is None else secret.encode()

    async def get_nonce(self, _call: Call) -> Answer:
        """GET /_synapse/admin/v1/register."""
        text = f"{int(time.time())}.{secrets.token_hex(16)}"
        return {"nonce": f"{text}.{self._proof(text)}"}

    async def register(self, call: Call) -> Answer:
        """POST /_synapse/admin/v1/register."""
        self._required_secret()
        body = await call.body(max_bytes=64 * 1024)
        nonce, username = fields.get_text(body, "nonce"), fields.get_text(body, "username")
        password, mac = self._passwords.check_new(body.get("password")), fields.get_text(body, "mac")
        is_admin, inhibit_login = body.get("admin", False) is True, body.get("inhibit_login", False) is True
        self._check_nonce(nonce)
        parts = [nonce, username, password, "admin" if is_admin else "notadmin"]
        if body.get("user_type") is not None:
            parts.append(fields.get_text(body, "user_type"))
        if not hmac.compare_digest(self._mac("\x00".join(parts)), mac.encode("utf-8", "surrogatepass")):
            raise Forbidden("HMAC incorrect")
        user_id = await self._accounts.register(
            NewAccount(localpart=username.lower(), password=password, is_admin=is_admin)
        )
        if inhibit_login:
            return {"user_id": user_id, "home_server": user_id.partition(":")[2]}
        return token_fields(await self._sessions.start(user_id, NewLogin()))

    def _required_secret(self) -> bytes:
        if self._secret is None:
            raise MatrixError("M_UNKNOWN", "Shared secret registration is not enabled", 400)
        return self._secret

    def _check_nonce(self, nonce: str) -> None:
        text, _, proof = nonce.rpartition(".")
        made_at = text.partition(".")[0]
        if (
            not hmac.compare_digest(self._proof(text).encode(), proof.encode("utf-8", "surrogatepass"))
            or int(made_at) + NONCE_SECONDS < time.time()
        ):
            raise MatrixError("M_UNKNOWN", "Unrecognised nonce", 400)

    def _proof(self, text: str) -> str:
        key = hashlib.sha256(b"nonce " + self._required_secret()).digest()
        return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def _mac(self, content: str) -> bytes:
        # SHA-1 is what existing scripts compute; HMAC does not need the hash to resist collisions.
        digest = hmac.new(self._required_secret(), content.encode("utf-8", "surrogatepass"), hashlib.sha1)
        return digest.hexdigest().encode()


def _whois_device(device: devices.Device) -> JsonObject:
    connection = {
        "ip": device.last_seen_ip,
        "last_seen": device.last_seen_ts,
        "user_agent": device.last_seen_user_agent,
    }
    known = {name: value for name, value in connection.items() if value is not None}
    return {"sessions": [{"connections": [known] if known else []}]}


def _token_fields(token: str, expires_ts: int | None, uses_allowed: int | None, used: int) -> JsonObject:
    return {
        "token": token,
        "uses_allowed": uses_allowed,
        "pending": 0,
        "completed": used,
        "expiry_time": expires_ts,
    }


def _is_token(value: object) -> bool:
    return (
        isinstance(value, str)
        and 1 <= len(value) <= MAX_TOKEN_LENGTH
        and value.isascii()
        and all(letter.isalnum() or letter in "._~-" for letter in value)
    )


def _optional_int(body: JsonObject, name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidInput(f"{name} must be a number that is not negative")
    return value


def _now_ms() -> int:
    return int(time.time() * 1000)
