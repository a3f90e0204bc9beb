"""Accounts and registration tokens (tables `users`, `registration_tokens`)."""

from collections.abc import Collection

from msgspec import Struct

from federation.protocol.types import UserID
from storage.database import Row, Tx

_COLUMNS = (
    "user_id, password_hash, application_service, created_ts, deactivated_ts, is_admin, is_guest, is_locked,"
    " is_suspended, is_erased"
)


class Account(Struct, frozen=True, kw_only=True):
    """A local account."""

    user_id: UserID
    password_hash: str | None = None
    """Argon2's own encoded form; None where no password logs in."""
    application_service: str | None = None
    created_ts: int
    deactivated_ts: int | None = None
    is_admin: bool = False
    is_guest: bool = False
    is_locked: bool = False
    is_suspended: bool = False
    is_erased: bool = False

    @property
    def is_deactivated(self) -> bool:
        """Whether the account has ended, for good."""
        return self.deactivated_ts is not None


def _account(row: Row) -> Account:
    return Account(
        user_id=row[0],
        password_hash=row[1],
        application_service=row[2],
        created_ts=row[3],
        deactivated_ts=row[4],
        is_admin=row[5],
        is_guest=row[6],
        is_locked=row[7],
        is_suspended=row[8],
        is_erased=row[9],
    )


async def insert(tx: Tx, account: Account) -> bool:
    """Add an account; False when the user ID was given before."""
    return (
        await tx.execute(
            f"insert into users ({_COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
            (
                account.user_id,
                account.password_hash,
                account.application_service,
                account.created_ts,
                account.deactivated_ts,
                account.is_admin,
                account.is_guest,
                account.is_locked,
                account.is_suspended,
                account.is_erased,
            ),
        )
        == 1
    )


async def find(tx: Tx, user_id: UserID) -> Account | None:
    """The account of that user, ended or not."""
    row = await tx.fetch_one(f"select {_COLUMNS} from users where user_id = %s", (user_id,))
    return None if row is None else _account(row)


async def find_many(tx: Tx, user_ids: Collection[UserID]) -> dict[UserID, Account]:
    """The accounts of those users who have one."""
    rows = await tx.fetch(f"select {_COLUMNS} from users where user_id = any(%s)", (list(user_ids),))
    return {row[0]: _account(row) for row in rows}


class Wanted(Struct, frozen=True, kw_only=True):
    """Which accounts to list."""

    text: str = ""
    """Part of the user ID."""
    guests: bool = True
    deactivated: bool = False
    admins: bool | None = None


async def search(tx: Tx, wanted: Wanted, *, offset: int, limit: int) -> tuple[list[Account], int]:
    """Accounts in order of user ID, and how many there are in all."""
    condition = (
        "strpos(user_id, %s) > 0 and (%s or not is_guest) and (%s or deactivated_ts is null)"
        " and (%s::bool is null or is_admin = %s)"
    )
    params = (wanted.text.lower(), wanted.guests, wanted.deactivated, wanted.admins, wanted.admins)
    rows = await tx.fetch(
        f"select {_COLUMNS} from users where {condition} order by user_id offset %s limit %s", (*params, offset, limit)
    )
    total = await tx.fetch_one(f"select count(*) from users where {condition}", params)
    return [_account(row) for row in rows], 0 if total is None else int(total[0])


async def set_password(tx: Tx, user_id: UserID, password_hash: str | None) -> bool:
    """Replace the password; whether there is such an account that has not ended."""
    return (
        await tx.execute(
            "update users set password_hash = %s where user_id = %s and deactivated_ts is null",
            (password_hash, user_id),
        )
        == 1
    )


async def upgrade_guest(tx: Tx, user_id: UserID, password_hash: str | None) -> bool:
    """Make an ordinary account of a guest's; whether it was one, and has not ended."""
    return (
        await tx.execute(
            "update users set password_hash = %s, is_guest = false"
            " where user_id = %s and is_guest and deactivated_ts is null",
            (password_hash, user_id),
        )
        == 1
    )


async def renew_hash(tx: Tx, account: Account, password_hash: str) -> None:
    """Store another hash of the same password, unless there is another password by now."""
    await tx.execute(
        "update users set password_hash = %s where user_id = %s and password_hash = %s",
        (password_hash, account.user_id, account.password_hash),
    )


async def set_locked(tx: Tx, user_id: UserID, *, is_locked: bool) -> None:
    """Lock or unlock."""
    await tx.execute("update users set is_locked = %s where user_id = %s", (is_locked, user_id))


async def set_suspended(tx: Tx, user_id: UserID, *, is_suspended: bool) -> None:
    """Suspend, or end a suspension."""
    await tx.execute("update users set is_suspended = %s where user_id = %s", (is_suspended, user_id))


async def set_admin(tx: Tx, user_id: UserID, *, is_admin: bool) -> None:
    """Make somebody an administrator of this server, or no longer."""
    await tx.execute("update users set is_admin = %s where user_id = %s", (is_admin, user_id))


async def deactivate(tx: Tx, user_id: UserID, *, now_ts: int, erase: bool) -> None:
    """End an account for good: without a password, marked."""
    await tx.execute(
        "update users set deactivated_ts = coalesce(deactivated_ts, %s), password_hash = null, is_admin = false,"
        " is_erased = is_erased or %s where user_id = %s",
        (now_ts, erase, user_id),
    )


# --- registration tokens

_USABLE = "(expires_ts is null or expires_ts > %s) and (uses_allowed is null or used < uses_allowed)"


async def insert_registration_token(
    tx: Tx, token: str, *, created_ts: int, expires_ts: int | None = None, uses_allowed: int | None = None
) -> bool:
    """Add a token; False when there is one of that name."""
    return (
        await tx.execute(
            "insert into registration_tokens (token, created_ts, expires_ts, uses_allowed) values (%s, %s, %s, %s)"
            " on conflict do nothing",
            (token, created_ts, expires_ts, uses_allowed),
        )
        == 1
    )


async def is_registration_token_usable(tx: Tx, token: str, now_ts: int) -> bool:
    """Whether an account could be registered with it now."""
    row = await tx.fetch_one(f"select 1 from registration_tokens where token = %s and {_USABLE}", (token, now_ts))
    return row is not None


async def spend_registration_token(tx: Tx, token: str, now_ts: int) -> bool:
    """Use it up by one; False when it is not usable (any longer)."""
    return (
        await tx.execute(
            f"update registration_tokens set used = used + 1 where token = %s and {_USABLE}", (token, now_ts)
        )
        == 1
    )


async def list_registration_tokens(tx: Tx) -> list[tuple[str, int | None, int | None, int]]:
    """Every token: its name, expiry, uses allowed, uses made."""
    rows = await tx.fetch("select token, expires_ts, uses_allowed, used from registration_tokens order by token")
    return [(token, expires_ts, uses_allowed, used) for token, expires_ts, uses_allowed, used in rows]


async def delete_registration_token(tx: Tx, token: str) -> bool:
    """Take a token away; whether there was one."""
    return await tx.execute("delete from registration_tokens where token = %s", (token,)) == 1
