"""Accounts: registering, checking a password, ending an account (Client-Server API, "Legacy account management")."""

import secrets
import string
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from federation.protocol.errors import Forbidden, InvalidInput, NotFound
from federation.protocol.types import DeviceID, UserID
from homeserver.services.application_services import ApplicationService
from homeserver.services.identifiers import find_proven, give, use_up
from homeserver.services.passwords import Passwords
from homeserver.services.rate_limits import RateLimits
from homeserver.services.sessions import SessionService
from homeserver.services.user_names import UserNames
from storage import accounts, erasure, identifiers, pushers, short_lived_tokens
from storage.database import Database, Tx
from storage.identifier_validations import Purpose as ProofPurpose
from storage.identifier_validations import Validation
from storage.identifiers import Identifier
from storage.short_lived_tokens import Purpose

LOGIN_TOKEN_LIFETIME_MS = 120_000

LeaveAllRooms = Callable[[UserID], Awaitable[None]]


class NewAccount(Struct, frozen=True, kw_only=True):
    """An account about to be made."""

    localpart: str | None
    """None: the server chooses one."""
    password: str | None
    is_guest: bool = False
    is_admin: bool = False
    application_service: str | None = None
    registration_token: str | None = None
    """Used up together with the making of the account."""
    identifier_proofs: Sequence[str] = ()
    """IDs of validations, used up together with the making of the account, which then has the addresses."""
    address: str | None = None
    """Who registers, if it is not an administrator: their budget is spent."""


class AccountService:
    """The accounts of this server."""

    def __init__(
        self,
        database: Database,
        sessions: SessionService,
        passwords: Passwords,
        rate_limits: RateLimits,
        names: UserNames,
        *,
        leave_all_rooms: LeaveAllRooms,
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._passwords = passwords
        self._rate_limits = rate_limits
        self._names = names
        self._leave_all_rooms = leave_all_rooms

    async def check_available(self, localpart: object) -> UserID:
        """The user ID that a person may register; raises M_INVALID_USERNAME, M_EXCLUSIVE or M_USER_IN_USE."""
        user_id = self._names.for_people(localpart)
        async with self._database.read() as tx:
            if await accounts.find(tx, user_id) is not None:
                raise InvalidInput("This user ID is taken", "M_USER_IN_USE")
        return user_id

    async def register(self, new: NewAccount) -> UserID:
        """Make an account; raises M_USER_IN_USE, or M_FORBIDDEN when the registration token is used up."""
        localpart = new.localpart
        if localpart is None:
            localpart = "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(16))
        user_id = self._names.new(localpart)
        if new.address is not None:
            self._rate_limits.spend("registration", new.address)
        account = accounts.Account(
            user_id=user_id,
            password_hash=None if new.password is None else await self._passwords.hash(new.password),
            application_service=new.application_service,
            created_ts=self._database.now_ms(),
            is_admin=new.is_admin,
            is_guest=new.is_guest,
        )
        async with self._database.transaction() as tx:
            if not await accounts.insert(tx, account):
                raise InvalidInput("This user ID is taken", "M_USER_IN_USE")
            await self._use_proofs_up(tx, user_id, new)
        return user_id

    async def upgrade_guest(self, user_id: UserID, new: NewAccount) -> UserID:
        """Make an ordinary account of a guest's, whose sessions stay; raises as `register`."""
        if new.address is not None:
            self._rate_limits.spend("registration", new.address)
        password_hash = None if new.password is None else await self._passwords.hash(new.password)

        async def work(tx: Tx) -> None:
            if not await accounts.upgrade_guest(tx, user_id, password_hash):
                raise InvalidInput("This user is no guest any longer", "M_USER_IN_USE")
            await self._use_proofs_up(tx, user_id, new)

        await self._sessions.change_standing(user_id, work)
        return user_id

    async def _use_proofs_up(self, tx: Tx, user_id: UserID, new: NewAccount) -> None:
        """What allowed the account to be made allows no other."""
        if new.registration_token is not None and not await accounts.spend_registration_token(
            tx, new.registration_token, self._database.now_ms()
        ):
            raise Forbidden("The registration token is no longer valid")
        for proof in new.identifier_proofs:  # two at most
            now_ts = self._database.now_ms()
            proven = await find_proven(tx, ProofPurpose.REGISTER, proof, None, now_ts=now_ts)
            await give(tx, user_id, proven, now_ts)

    async def register_for_service(self, service: ApplicationService, localpart: object) -> UserID:
        """Make an account without a password in the service's namespace; raises M_EXCLUSIVE outside of it."""
        self._names.for_service(service, localpart)
        return await self.register(NewAccount(localpart=str(localpart), password=None, application_service=service.id))

    async def find_for_service(self, service: ApplicationService, user: str) -> UserID:
        """The user whom the service may log in; raises M_EXCLUSIVE outside its namespaces, M_FORBIDDEN for no user."""
        user_id = self._names.check_namespace(service, self._names.find(user))
        async with self._database.read() as tx:
            if await accounts.find(tx, user_id) is None:
                raise Forbidden("There is no such user")
        return user_id

    # --- passwords

    async def check_password(self, user: str | Identifier, password: str, *, address: str) -> UserID:
        """The user whose password this is; raises M_FORBIDDEN, the same for no such user, or LimitExceeded."""
        if isinstance(user, Identifier):
            async with self._database.read() as tx:
                user_id = await identifiers.find_user(tx, user)
            key = user_id or user.address
        else:
            user_id = self._names.find(user)
            key = user_id or "?"
        key = key.lower()  # other capitals are the same account, as a rule: they share its budget
        self._rate_limits.spend("login", address)
        self._rate_limits.spend("login", key)
        self._rate_limits.check("failed_login", key)
        account = await self._find_by_any_case(user_id)
        is_right = await self._passwords.verify(account.password_hash if account else None, password)
        if not is_right or account is None:
            self._rate_limits.spend("failed_login", key)
            raise Forbidden("Invalid user name or password")
        if account.password_hash is not None and self._passwords.is_outdated(account.password_hash):
            renewed = await self._passwords.hash(password)
            async with self._database.transaction() as tx:
                await accounts.renew_hash(tx, account, renewed)
        return account.user_id

    def check_new_password(self, password: object) -> str:
        """The password, if it may be one; raises M_WEAK_PASSWORD, M_INVALID_PARAM or M_MISSING_PARAM."""
        return self._passwords.check_new(password)

    async def make_login_token(self, user_id: UserID) -> str:
        """What logs this user in once, within `LOGIN_TOKEN_LIFETIME_MS`."""
        async with self._database.transaction() as tx:
            expires_ts = self._database.now_ms() + LOGIN_TOKEN_LIFETIME_MS
            return await short_lived_tokens.make(tx, Purpose.LOGIN, user_id, expires_ts)

    async def use_login_token(self, token: str, *, address: str) -> UserID:
        """The user whom this token logs in; raises M_FORBIDDEN, or LimitExceeded."""
        self._rate_limits.spend("login", address)
        async with self._database.transaction() as tx:
            user_id = await short_lived_tokens.use_up(tx, Purpose.LOGIN, token, self._database.now_ms())
        if user_id is None:
            raise Forbidden("Invalid login token")
        return user_id

    async def _find_by_any_case(self, user_id: UserID | None) -> accounts.Account | None:
        """The account, where people's capitals do not matter unless there is a historical account with them."""
        if user_id is None:
            return None
        folded = UserID(user_id.partition(":")[0].lower() + f":{self._names.server_name}")
        async with self._database.read() as tx:
            found = await accounts.find_many(tx, {user_id, folded})
        return found.get(user_id) or found.get(folded)

    async def change_password(
        self,
        user_id: UserID,
        password: str,
        *,
        keep: DeviceID | None,
        end_others: bool,
        proven: Validation | None = None,
    ) -> None:
        """Set a new password; `end_others` ends all devices but `keep`. What allows it, if given, is used up."""
        password_hash = await self._passwords.hash(password)

        async def work(tx: Tx) -> None:
            if proven is not None:
                await use_up(tx, proven)
            if not await accounts.set_password(tx, user_id, password_hash):
                raise NotFound("There is no such account")
            await short_lived_tokens.delete_of_user(tx, user_id)
            await pushers.delete_of_sessions(tx, user_id, keep=keep)

        if end_others:
            await self._sessions.end_devices_with(user_id, keep=keep, work=work)
        else:
            await self._sessions.change_standing(user_id, work)

    async def reset_password(self, proof: str, password: str, *, end_others: bool) -> None:
        """Set a new password for whose e-mail address or phone number was proven; raises M_THREEPID_AUTH_FAILED."""
        async with self._database.read() as tx:
            proven = await find_proven(tx, ProofPurpose.RESET_PASSWORD, proof, None, now_ts=self._database.now_ms())
            user_id = await identifiers.find_user(tx, proven.identifier)
        if user_id is None:
            raise Forbidden("No account has this address any longer", "M_THREEPID_AUTH_FAILED")
        await self.change_password(user_id, password, keep=None, end_others=end_others, proven=proven)

    # --- standing

    async def deactivate(self, user_id: UserID, *, erase: bool) -> None:
        """End the account for good: its sessions, its devices, its keys, its memberships; with `erase` its data."""

        async def work(tx: Tx) -> None:
            await accounts.deactivate(tx, user_id, now_ts=self._database.now_ms(), erase=erase)
            await erasure.end_keys(tx, user_id)
            await identifiers.delete_of_user(tx, user_id)
            await pushers.delete_of_user(tx, user_id)
            await short_lived_tokens.delete_of_user(tx, user_id)
            if erase:
                await erasure.erase(tx, user_id)

        await self._sessions.end_devices_with(user_id, work=work)
        await self._leave_all_rooms(user_id)

    async def get(self, user_id: UserID) -> accounts.Account:
        """A local account that has not ended; raises M_NOT_FOUND, or M_INVALID_PARAM for another server's user."""
        if not self._names.is_local(user_id):
            raise InvalidInput("This is not a user of this server")
        async with self._database.read() as tx:
            account = await accounts.find(tx, user_id)
        if account is None or account.is_deactivated:
            raise NotFound("There is no such account")
        return account

    async def set_locked(self, user_id: UserID, *, is_locked: bool) -> None:
        """Keep the user out, or let them in again; sessions stay."""
        await self._sessions.change_standing(user_id, lambda tx: accounts.set_locked(tx, user_id, is_locked=is_locked))

    async def set_suspended(self, user_id: UserID, *, is_suspended: bool) -> None:
        """Let the user only read and leave, or end that."""
        await self._sessions.change_standing(
            user_id, lambda tx: accounts.set_suspended(tx, user_id, is_suspended=is_suspended)
        )

    async def set_admin(self, user_id: UserID, *, is_admin: bool) -> None:
        """Make the user an administrator of this server, or no longer."""
        await self._sessions.change_standing(user_id, lambda tx: accounts.set_admin(tx, user_id, is_admin=is_admin))

    async def is_registration_token_usable(self, token: str, *, address: str | None = None) -> bool:
        """Whether an account can be registered with it now; raises LimitExceeded for an address that guesses."""
        if address is not None:
            self._rate_limits.spend("login", address)
        async with self._database.read() as tx:
            return await accounts.is_registration_token_usable(tx, token, self._database.now_ms())
