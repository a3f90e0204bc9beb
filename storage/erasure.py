"""What ends with an account, in the tables of several modules."""

from collections.abc import Collection

from federation.protocol.types import UserID
from storage import cross_signing, profiles
from storage.database import Tx


async def end_keys(tx: Tx, user_id: UserID) -> None:
    """Delete the user's cross-signing keys and key backups; those of devices go with the devices."""
    await cross_signing.delete_keys(tx, await cross_signing.list_keys(tx, [user_id]))
    await tx.execute("delete from key_backup_keys where user_id = %s", (user_id,))
    await tx.execute("update key_backups set is_deleted = true, count = 0 where user_id = %s", (user_id,))


async def erase(tx: Tx, user_id: UserID) -> None:
    """Delete what the user kept here that is no event: profile, account data, filters, subscriptions, status."""
    await profiles.delete(tx, user_id)
    await tx.execute("delete from account_data where user_id = %s", (user_id,))
    await tx.execute("delete from filters where user_id = %s", (user_id,))
    await tx.execute("delete from thread_subscriptions where user_id = %s", (user_id,))
    await tx.execute("delete from sync_connections where user_id = %s", (user_id,))
    await tx.execute("delete from presence where user_id = %s", (user_id,))


async def erased_among(tx: Tx, user_ids: Collection[UserID]) -> set[UserID]:
    """Those of these users whose accounts here were erased."""
    rows = await tx.fetch("select user_id from users where user_id = any(%s::text[]) and is_erased", (list(user_ids),))
    return {UserID(user_id) for (user_id,) in rows}
