"""Cross-signing keys, and signatures that users add to keys after their upload ("Cross-signing").

Keys of users of other servers may stand here too. A signature is kept apart from the key that it is about, with the
user who made it, so that each reader can be shown what that reader may see.
"""

from collections.abc import Collection, Sequence
from enum import StrEnum

from msgspec import Struct

from federation.protocol.types import DeviceID, UserID
from storage.database import Tx


class Usage(StrEnum):
    """What a cross-signing key is for."""

    MASTER = "master"
    SELF_SIGNING = "self_signing"
    USER_SIGNING = "user_signing"


class CrossSigningKey(Struct, frozen=True):
    """A user's public cross-signing key, checked."""

    user_id: UserID
    usage: Usage
    public_key: str
    """In unpadded base64, as key IDs name it."""
    json: bytes


class KeySignature(Struct, frozen=True):
    """A signature of a device's keys or of a cross-signing key."""

    user_id: UserID
    """Whose key is signed."""
    key_name: str
    """A device ID or a public key."""
    signer: UserID
    signing_key_id: str
    signature: str


async def list_keys(tx: Tx, users: Collection[UserID]) -> list[CrossSigningKey]:
    """All cross-signing keys of these users."""
    rows = await tx.fetch(
        "select user_id, usage, public_key, json from cross_signing_keys where user_id = any(%s::text[])",
        (list(users),),
    )
    return [CrossSigningKey(UserID(row[0]), Usage(row[1]), row[2], row[3]) for row in rows]


async def put_keys(tx: Tx, keys: Sequence[CrossSigningKey]) -> None:
    """Store keys in the place of those with the same user and usage."""
    await tx.execute(
        "insert into cross_signing_keys (user_id, usage, public_key, json)"
        " select * from unnest(%s::text[], %s::text[], %s::text[], %s::bytea[])"
        " on conflict (user_id, usage) do update set public_key = excluded.public_key, json = excluded.json",
        (
            [key.user_id for key in keys],
            [key.usage.value for key in keys],
            [key.public_key for key in keys],
            [key.json for key in keys],
        ),
    )


async def delete_keys(tx: Tx, keys: Sequence[CrossSigningKey]) -> None:
    """Delete keys with the signatures about them and by them."""
    user_ids = [key.user_id for key in keys]
    public_keys = [key.public_key for key in keys]
    await tx.execute(
        "delete from cross_signing_keys using unnest(%s::text[], %s::text[], %s::text[])"
        " as gone (user_id, usage, public_key) where cross_signing_keys.user_id = gone.user_id"
        " and cross_signing_keys.usage = gone.usage and cross_signing_keys.public_key = gone.public_key",
        (user_ids, [key.usage.value for key in keys], public_keys),
    )
    await delete_signatures_about(tx, list(zip(user_ids, public_keys, strict=True)))
    await tx.execute(
        "delete from key_signatures using unnest(%s::text[], %s::text[]) as gone (signer, signing_key_id)"
        " where key_signatures.signer = gone.signer and key_signatures.signing_key_id = gone.signing_key_id",
        (user_ids, [f"ed25519:{public_key}" for public_key in public_keys]),
    )


async def list_signatures(tx: Tx, users: Collection[UserID], seen_by: UserID | None) -> list[KeySignature]:
    """The signatures about keys of these users that `seen_by` may see: the users' own and those that the reader made.

    None is another server: it sees the users' own only.
    """
    rows = await tx.fetch(
        "select user_id, key_name, signer, signing_key_id, signature from key_signatures"
        " where user_id = any(%s::text[]) and (signer = user_id or signer = %s::text)",
        (list(users), seen_by),
    )
    return [KeySignature(*row) for row in rows]


async def put_signatures(tx: Tx, signatures: Sequence[KeySignature]) -> int:
    """Store signatures; how many are new or other than before."""
    return await tx.execute(
        "insert into key_signatures as held (user_id, key_name, signer, signing_key_id, signature)"
        " select * from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[])"
        " on conflict (user_id, key_name, signer, signing_key_id) do update set signature = excluded.signature"
        " where held.signature <> excluded.signature",
        (
            [signature.user_id for signature in signatures],
            [signature.key_name for signature in signatures],
            [signature.signer for signature in signatures],
            [signature.signing_key_id for signature in signatures],
            [signature.signature for signature in signatures],
        ),
    )


async def delete_signatures_about(tx: Tx, keys: Sequence[tuple[UserID, str]]) -> None:
    """Delete what was signed about keys that are no longer what they were: users, and device IDs or public keys."""
    await tx.execute(
        "delete from key_signatures using unnest(%s::text[], %s::text[]) as gone (user_id, key_name)"
        " where key_signatures.user_id = gone.user_id and key_signatures.key_name = gone.key_name",
        ([user_id for user_id, _ in keys], [key_name for _, key_name in keys]),
    )


async def delete_signatures_by_devices(tx: Tx, user_id: UserID, devices: Collection[DeviceID]) -> None:
    """Delete what a user's devices signed: they are gone, or have other keys."""
    await tx.execute(
        "delete from key_signatures where user_id = %s and signer = %s and signing_key_id = any(%s::text[])",
        (user_id, user_id, [f"ed25519:{device_id}" for device_id in devices]),
    )


async def names_in_use(tx: Tx, user_id: UserID, public_keys: Collection[str]) -> list[str]:
    """Those public keys that are the ID of one of the user's devices."""
    rows = await tx.fetch(
        "select device_id from devices where user_id = %s and device_id = any(%s::text[])", (user_id, list(public_keys))
    )
    return [device_id for (device_id,) in rows]


async def is_cross_signing_key(tx: Tx, user_id: UserID, device_id: str) -> bool:
    """Whether a device may not have this ID because it is the name of one of the user's cross-signing keys."""
    row = await tx.fetch_one(
        "select from cross_signing_keys where user_id = %s and public_key = %s", (user_id, device_id)
    )
    return row is not None
