"""Sessions: who an access token stands for, and their beginning and end.

"May this account act now" is decided by `check_may_act` alone, on every request, from a session that is remembered in
memory and forgotten through the log: what ends a session is appended together with its `Invalidated` entry, so every
process stops honouring the token when it applies that position. Client-Server API, "Client Authentication".
"""

import hashlib
import secrets
import string
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, Unauthorized
from federation.protocol.types import DeviceID, UserID
from homeserver.services.requester import Requester
from storage import account_data, accounts, cross_signing, devices, sessions
from storage.database import Database, Tx
from storage.figures import Figures, Lookups
from storage.invalidations import Invalidated, Kind
from storage.log import Log
from storage.log_entries import Change, Entry

_REMEMBERED = 50_000
_DEVICE_ID_LETTERS = string.ascii_uppercase
MAX_DEVICE_ID = 255
MAX_DISPLAY_NAME = 100
NOTIFICATION_SETTINGS = ("m.local_notification_settings", "org.matrix.msc3890.local_notification_settings")
"""Global account data that belongs to one device, whose ID follows (MSC3890)."""

DevicesChanged = Callable[[Tx, UserID, Sequence[DeviceID]], Awaitable[Sequence[Change]]]
"""What follows, in the same transaction, from devices having been renamed or ended; what others must hear of it.

At most four changes."""


class Standing(Protocol):
    """What of an account decides whether it may act."""

    @property
    def is_deactivated(self) -> bool:
        """It has ended."""

    @property
    def is_locked(self) -> bool:
        """An administrator keeps its user out for a time."""


def check_may_act(standing: Standing, *, while_locked: bool = False) -> None:
    """Raise unless the account may act now; `while_locked` is for logging out."""
    if standing.is_deactivated:
        raise Unauthorized("This account has been deactivated", soft_logout=False)
    if standing.is_locked and not while_locked:
        raise Unauthorized("This account has been locked", "M_USER_LOCKED", soft_logout=True)


class NewLogin(Struct, frozen=True, kw_only=True):
    """What a client asks for when it logs in."""

    device_id: DeviceID | None = None
    display_name: str | None = None
    wants_refresh_token: bool = False


class Tokens(Struct, frozen=True, kw_only=True):
    """What a client gets."""

    user_id: UserID
    device_id: DeviceID
    access_token: str
    refresh_token: str | None
    expires_in_ms: int | None


class Lifetimes(Struct, frozen=True, kw_only=True):
    """How long tokens live; None is for ever."""

    refreshable_ms: int = 300_000
    """Access tokens of clients that can refresh them."""
    plain_ms: int | None = None
    """Access tokens of clients that cannot."""
    refresh_token_ms: int | None = None


class _Remembered(Struct, frozen=True):
    session: sessions.StoredSession
    requester: Requester


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _now_ms() -> int:
    return int(time.time() * 1000)


class SessionService:
    """All sessions of this server."""

    def __init__(
        self,
        database: Database,
        log: Log,
        lifetimes: Lifetimes,
        *,
        devices_changed: Sequence[DevicesChanged] = (),
    ) -> None:
        self._database = database
        self._log = log
        self._lifetimes = lifetimes
        self._devices_changed = devices_changed
        self._remembered: dict[bytes, _Remembered] = {}
        self._by_user: dict[UserID, set[bytes]] = {}
        self._invalidations = 0
        self._lookups = Lookups("sessions")

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._lookups.figures(len(self._remembered))

    # --- who asks

    async def authenticate(self, access_token: str, *, while_locked: bool = False) -> Requester:
        """Who this token stands for; raises M_UNKNOWN_TOKEN or M_USER_LOCKED. No query when it is remembered."""
        access_hash = _hash(access_token)
        found = self._remembered.get(access_hash)
        self._lookups.note(is_hit=found is not None)
        if found is None:
            found = await self._load(access_hash)
        session = found.session
        if session.expires_ts is not None and session.expires_ts <= self._database.now_ms():
            raise Unauthorized("The access token has expired", soft_logout=True)
        check_may_act(session, while_locked=while_locked)
        return found.requester

    async def _load(self, access_hash: bytes) -> _Remembered:
        before = self._invalidations
        async with self._database.read() as tx:
            session = await sessions.find_by_access_token(tx, access_hash)
        if session is None:
            raise Unauthorized("Unknown access token", soft_logout=False)
        if session.previous is not None:
            await self._confirm(session)
        found = _Remembered(
            session,
            Requester(
                user_id=session.user_id,
                device_id=session.device_id,
                device=session.device,
                is_guest=session.is_guest,
                is_admin=session.is_admin,
                is_suspended=session.is_suspended,
            ),
        )
        # If anything ended meanwhile, what was read may be from before it.
        if before == self._invalidations:
            self._remember(access_hash, found)
        return found

    def _remember(self, access_hash: bytes, found: _Remembered) -> None:
        if len(self._remembered) >= _REMEMBERED:
            self._forget(next(iter(self._remembered)))
        self._remembered[access_hash] = found
        self._by_user.setdefault(found.session.user_id, set()).add(access_hash)

    def _forget(self, access_hash: bytes) -> None:
        found = self._remembered.pop(access_hash)
        hashes = self._by_user[found.session.user_id]
        hashes.discard(access_hash)
        if not hashes:
            del self._by_user[found.session.user_id]

    def on_change(self, _position: int, change: Change) -> None:
        """A view of the tail: forget what is no longer so."""
        if isinstance(change, Invalidated) and change.kind_of is Kind.SESSIONS:
            self._invalidations += 1
            for access_hash in list(self._by_user.get(change.user_id, ())):
                if change.detail in ("", self._remembered[access_hash].session.device_id):
                    self._forget(access_hash)

    async def _confirm(self, session: sessions.StoredSession) -> None:
        """The new pair is used for the first time, so the pair before it ends."""
        previous = session.previous
        if previous is None:
            return

        async def work(tx: Tx) -> None:
            await sessions.confirm(tx, session.session, previous)

        await self._log.append(Entry([_ended(session.user_id, session.device_id)], work))

    # --- beginning

    async def start(self, user_id: UserID, login: NewLogin) -> Tokens:
        """Log in: a known device's earlier tokens end. Raises when the account may not act."""
        device_id = login.device_id or DeviceID("".join(secrets.choice(_DEVICE_ID_LETTERS) for _ in range(10)))
        tokens, new = self._new_pair(user_id, device_id, wants_refresh_token=login.wants_refresh_token)
        entry = Entry(width=1)

        async def work(tx: Tx) -> None:
            account = await accounts.find(tx, user_id)
            if account is None:
                raise Forbidden("There is no such account")
            check_may_act(account)
            device = await _ensure_device(tx, user_id, device_id, login.display_name)
            ended = await sessions.delete_of_device(tx, device)
            entry.changes = [_ended(user_id, device_id)] if ended else []
            await sessions.insert(tx, new.of_device(device))

        entry.work = work
        await self._log.append(entry)
        return tokens

    async def refresh(self, refresh_token: str) -> Tokens:
        """A new pair of tokens; the old pair ends when one of the new is used. Raises M_UNKNOWN_TOKEN."""
        refresh_hash = _hash(refresh_token)
        async with self._database.read() as tx:
            known = await sessions.find_by_refresh_token(tx, refresh_hash)
        if known is None:
            raise Unauthorized("Unknown refresh token", soft_logout=False)
        lifetime_ms = self._lifetimes.refresh_token_ms
        if lifetime_ms is not None and known.created_ts + lifetime_ms <= self._database.now_ms():
            raise Unauthorized("The refresh token has expired", soft_logout=True)
        tokens, new = self._new_pair(known.user_id, known.device_id, wants_refresh_token=True)

        async def work(tx: Tx) -> None:
            session = await sessions.find_by_refresh_token(tx, refresh_hash)
            if session is None:
                raise Unauthorized("Unknown refresh token", soft_logout=False)
            check_may_act(session)
            if session.previous is not None:
                await sessions.confirm(tx, session.session, session.previous)
            await sessions.delete_successors(tx, session.session)
            await sessions.insert(tx, new.of_device(session.device, previous=session.session))

        await self._log.append(Entry([_ended(known.user_id, known.device_id)], work))
        return tokens

    def _new_pair(
        self, user_id: UserID, device_id: DeviceID, *, wants_refresh_token: bool
    ) -> tuple[Tokens, "_NewPair"]:
        now = self._database.now_ms()
        lifetime_ms = self._lifetimes.refreshable_ms if wants_refresh_token else self._lifetimes.plain_ms
        tokens = Tokens(
            user_id=user_id,
            device_id=device_id,
            access_token=f"hearth_at_{secrets.token_urlsafe(32)}",
            refresh_token=f"hearth_rt_{secrets.token_urlsafe(32)}" if wants_refresh_token else None,
            expires_in_ms=lifetime_ms,
        )
        pair = _NewPair(
            created_ts=now,
            access_hash=_hash(tokens.access_token),
            refresh_hash=None if tokens.refresh_token is None else _hash(tokens.refresh_token),
            expires_ts=None if lifetime_ms is None else now + lifetime_ms,
        )
        return tokens, pair

    # --- ending

    async def end_devices(self, user_id: UserID, device_ids: Sequence[DeviceID] | None = None) -> None:
        """End devices (all of them when none are named) with their sessions, keys and inboxes."""
        await self.end_devices_with(user_id, device_ids)

    async def end_devices_with(
        self,
        user_id: UserID,
        device_ids: Sequence[DeviceID] | None = None,
        *,
        keep: DeviceID | None = None,
        work: Callable[[Tx], Awaitable[object]] | None = None,
    ) -> None:
        """As `end_devices`, but for `keep`, in one transaction with what `work` does to the account."""
        entry = Entry(width=1 + 4 * len(self._devices_changed))

        async def all_work(tx: Tx) -> None:
            if work is not None:
                await work(tx)
            named = device_ids
            if named is None:
                named = [device.device_id for device in await devices.list_of_user(tx, user_id)]
            ended = await devices.delete(tx, user_id, [device_id for device_id in named if device_id != keep])
            entry.changes = [_ended(user_id, DeviceID(""))]
            if ended:
                settings = [f"{prefix}.{device_id}" for prefix in NOTIFICATION_SETTINGS for device_id in ended]
                await account_data.forget(tx, user_id, settings)
                for also in self._devices_changed:
                    entry.changes.extend(await also(tx, user_id, ended))

        entry.work = all_work
        await self._log.append(entry)

    async def make_device(self, user_id: UserID, device_id: DeviceID, display_name: str | None) -> None:
        """Give a user a device without a session, for application services."""
        check_device_id(device_id)
        async with self._database.transaction() as tx:
            await _ensure_device(tx, user_id, device_id, display_name)

    async def rename_device(self, user_id: UserID, device_id: DeviceID, display_name: str) -> bool:
        """Give a device another name, which other servers may see; whether there is such a device."""
        entry = Entry(width=1 + 4 * len(self._devices_changed))

        async def work(tx: Tx) -> bool:
            entry.changes = []
            if not await devices.set_display_name(tx, user_id, device_id, display_name):
                return False
            for also in self._devices_changed:
                entry.changes.extend(await also(tx, user_id, [device_id]))
            return True

        entry.work = work
        return bool((await self._log.append(entry)).result)

    async def change_standing(self, user_id: UserID, work: Callable[[Tx], Awaitable[object]]) -> None:
        """Change what decides whether the account may act; every process hears of it."""
        await self._log.append(Entry([_ended(user_id, DeviceID(""))], work))


class _NewPair(Struct, frozen=True, kw_only=True):
    created_ts: int
    access_hash: bytes
    refresh_hash: bytes | None
    expires_ts: int | None

    def of_device(self, device: int, previous: int | None = None) -> sessions.NewSession:
        return sessions.NewSession(
            device=device,
            created_ts=self.created_ts,
            access_hash=self.access_hash,
            refresh_hash=self.refresh_hash,
            expires_ts=self.expires_ts,
            previous=previous,
        )


async def _ensure_device(tx: Tx, user_id: UserID, device_id: DeviceID, display_name: str | None) -> int:
    if await cross_signing.is_cross_signing_key(tx, user_id, device_id):
        raise Forbidden("A device cannot have the name of a cross-signing key")
    return await devices.ensure(tx, user_id, device_id, display_name, _now_ms())


def _ended(user_id: UserID, device_id: DeviceID) -> Invalidated:
    return Invalidated(Kind.SESSIONS, user_id, device_id)


def check_device_id(value: object) -> DeviceID | None:
    """A device ID that a client chose; None when it chose none."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_DEVICE_ID or "\x00" in value:
        raise InvalidInput(f"device_id must be a string of at most {MAX_DEVICE_ID} characters")
    return DeviceID(value)


def check_display_name(value: object) -> str | None:
    """A device's display name that a client chose."""
    if value is None:
        return None
    if not isinstance(value, str) or "\x00" in value:
        raise InvalidInput("The display name must be a string")
    if len(value) > MAX_DISPLAY_NAME:
        raise MatrixError("M_TOO_LARGE", f"The display name is longer than {MAX_DISPLAY_NAME} characters", 400)
    return value
