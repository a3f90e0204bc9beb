"""Dehydrated devices: which of a user's devices is one, and the encrypted secrets that it is made of (MSC3814)."""

from msgspec import Struct

from federation.protocol.types import DeviceID, UserID
from storage.database import Tx


class DehydratedDevice(Struct, frozen=True):
    """A user's dehydrated device."""

    device: int
    device_id: DeviceID
    device_data: bytes
    """The `device_data` object as JSON."""


async def find(tx: Tx, user_id: UserID) -> DehydratedDevice | None:
    """The user's dehydrated device."""
    row = await tx.fetch_one(
        "select device, device_id, device_data from dehydrated_devices join devices using (device)"
        " where dehydrated_devices.user_id = %s",
        (user_id,),
    )
    return None if row is None else DehydratedDevice(*row)


async def insert(tx: Tx, user_id: UserID, device: int, device_data: bytes) -> None:
    """Make a device the user's dehydrated one; the one before, if any, is deleted already."""
    await tx.execute(
        "insert into dehydrated_devices (user_id, device, device_data) values (%s, %s, %s)",
        (user_id, device, device_data),
    )
