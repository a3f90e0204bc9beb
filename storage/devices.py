"""Devices of local users (table `devices`)."""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.types import DeviceID, UserID
from storage.database import Row, Tx


class Device(Struct, frozen=True, kw_only=True):
    """A device as its user sees it."""

    device: int
    """Its number here: what transaction IDs and keys refer to."""
    device_id: DeviceID
    display_name: str | None
    last_seen_ts: int | None
    last_seen_ip: str | None
    last_seen_user_agent: str | None


class Seen(Struct, frozen=True):
    """A device was used."""

    device: int
    ts: int
    ip: str
    user_agent: str


_COLUMNS = "device, device_id, display_name, last_seen_ts, last_seen_ip, last_seen_user_agent"


def _device(row: Row) -> Device:
    return Device(
        device=row[0],
        device_id=row[1],
        display_name=row[2],
        last_seen_ts=row[3],
        last_seen_ip=row[4],
        last_seen_user_agent=row[5],
    )


async def ensure(tx: Tx, user_id: UserID, device_id: DeviceID, display_name: str | None, now_ts: int) -> int:
    """The device's number; a new device gets the display name, a known one keeps its own."""
    row = await tx.fetch_one(
        "insert into devices (user_id, device_id, display_name, created_ts) values (%s, %s, %s, %s)"
        " on conflict (user_id, device_id) do update set device_id = excluded.device_id returning device",
        (user_id, device_id, display_name, now_ts),
    )
    if row is None:
        raise RuntimeError("an upsert returned nothing")
    device: int = row[0]
    return device


async def list_of_user(tx: Tx, user_id: UserID) -> list[Device]:
    """All devices of a user."""
    rows = await tx.fetch(f"select {_COLUMNS} from devices where user_id = %s order by device", (user_id,))
    return [_device(row) for row in rows]


async def find(tx: Tx, user_id: UserID, device_id: DeviceID) -> Device | None:
    """One device of a user."""
    row = await tx.fetch_one(
        f"select {_COLUMNS} from devices where user_id = %s and device_id = %s", (user_id, device_id)
    )
    return None if row is None else _device(row)


async def set_display_name(tx: Tx, user_id: UserID, device_id: DeviceID, display_name: str | None) -> bool:
    """Rename a device; False when there is none."""
    return (
        await tx.execute(
            "update devices set display_name = %s where user_id = %s and device_id = %s",
            (display_name, user_id, device_id),
        )
        == 1
    )


async def delete(tx: Tx, user_id: UserID, device_ids: Collection[DeviceID]) -> list[DeviceID]:
    """End devices, and with them by cascade their sessions, keys and inboxes; those that there were."""
    rows = await tx.fetch(
        "delete from devices where user_id = %s and device_id = any(%s) returning device_id",
        (user_id, list(device_ids)),
    )
    return [DeviceID(device_id) for (device_id,) in rows]


async def note_seen(tx: Tx, seen: Sequence[Seen]) -> None:
    """Write down when and from where devices were last used; one statement, later than what stands there.

    Other processes may do so at the same moment: all lock rows in the same order.
    """
    await tx.execute(
        "with seen as materialized (select seen.* from devices join"
        " unnest(%s::int[], %s::bigint[], %s::text[], %s::text[]) as seen (device, ts, ip, user_agent)"
        " on devices.device = seen.device and coalesce(devices.last_seen_ts, 0) < seen.ts"
        " order by devices.device for no key update of devices)"
        " update devices set last_seen_ts = seen.ts, last_seen_ip = seen.ip, last_seen_user_agent = seen.user_agent"
        " from seen where devices.device = seen.device",
        (
            [each.device for each in seen],
            [each.ts for each in seen],
            [each.ip for each in seen],
            [each.user_agent for each in seen],
        ),
    )
