"""Device keys, one-time keys and fallback keys of local devices ("One-time and fallback keys").

Everything that is stored here was checked by `homeserver/services/key_checks.py` and is canonical JSON. Devices are
called by their number; all rows go with their device.
"""

from collections.abc import Collection, Sequence

from msgspec import Struct

from federation.protocol.types import DeviceID, UserID
from storage.database import Database, Tx
from storage.invalidations import Invalidated, Kind
from storage.log_entries import Change

REMEMBERED_MS = 7 * 24 * 3600 * 1000
"""How long a key that was given out is remembered, so that a repeated upload does not have it given out again."""


class Key(Struct, frozen=True):
    """A one-time or fallback key."""

    algorithm: str
    key_id: str
    json: bytes
    """The key object, or the key as a JSON string."""


class DeviceKeys(Struct, frozen=True):
    """What /keys/query answers about a device, before signatures of others are added."""

    user_id: UserID
    device_id: DeviceID
    json: bytes
    display_name: str | None


class Claim(Struct, frozen=True):
    """A wish for a key of a device."""

    user_id: UserID
    device_id: DeviceID
    algorithm: str


class KeyCounts(Struct, frozen=True):
    """What a device has left."""

    one_time_keys: dict[str, int]
    """By algorithm; `signed_curve25519` is always named, as clients upload when they see it fall."""
    unused_fallback_keys: list[str]
    """Algorithms with a fallback key that was never given out."""


# --- device keys


async def put_device_keys(tx: Tx, device: int, json: bytes) -> None:
    """Store a device's identity keys in the place of those that it had."""
    await tx.execute(
        "insert into device_keys (device, json) values (%s, %s)"
        " on conflict (device) do update set json = excluded.json",
        (device, json),
    )


async def find_device_keys(tx: Tx, device: int) -> bytes | None:
    """A device's identity keys as they were stored."""
    row = await tx.fetch_one("select json from device_keys where device = %s", (device,))
    return None if row is None else row[0]


async def list_device_keys(tx: Tx, users: Collection[UserID]) -> list[DeviceKeys]:
    """The identity keys of all devices of these users that have any."""
    rows = await tx.fetch(
        "select user_id, device_id, json, display_name from devices join device_keys using (device)"
        " where user_id = any(%s::text[])",
        (list(users),),
    )
    return [DeviceKeys(*row) for row in rows]


# --- one-time and fallback keys


async def add_one_time_keys(tx: Tx, device: int, keys: Sequence[Key], now_ts: int) -> list[Key]:
    """Store keys that are new; those that are refused because another key has their ID, in which case none is stored.

    A key that is here already, or was given out lately, is passed over: the upload was repeated. Runs under the log's
    lock, so no two uploads or claims of a device meet.
    """
    ids = [key.algorithm for key in keys], [key.key_id for key in keys]
    held = {
        (algorithm, key_id): json
        for algorithm, key_id, json in await tx.fetch(
            "select algorithm, key_id, json from one_time_keys"
            " join unnest(%s::text[], %s::text[]) as wanted (algorithm, key_id) using (algorithm, key_id)"
            " where device = %s",
            (*ids, device),
        )
    }
    refused = [key for key in keys if held.get((key.algorithm, key.key_id), key.json) != key.json]
    if refused:
        return refused
    fresh = [key for key in keys if (key.algorithm, key.key_id) not in held]
    if not fresh:
        return []
    await tx.execute(
        "delete from given_one_time_keys where device = %s and given_ts < %s", (device, now_ts - REMEMBERED_MS)
    )
    await tx.execute(
        "insert into one_time_keys (device, algorithm, key_id, json)"
        " select %s, key.* from unnest(%s::text[], %s::text[], %s::bytea[]) as key (algorithm, key_id, json)"
        " where not exists (select from given_one_time_keys given where given.device = %s"
        "  and given.algorithm = key.algorithm and given.key_id = key.key_id and given.digest = sha256(key.json))",
        (
            device,
            [key.algorithm for key in fresh],
            [key.key_id for key in fresh],
            [key.json for key in fresh],
            device,
        ),
    )
    return []


async def put_fallback_keys(tx: Tx, device: int, keys: Sequence[Key]) -> None:
    """Replace the fallback keys of these algorithms; one that is there already stays used if it was."""
    await tx.execute(
        "insert into fallback_keys as held (device, algorithm, key_id, json)"
        " select %s, key.* from unnest(%s::text[], %s::text[], %s::bytea[]) as key (algorithm, key_id, json)"
        " on conflict (device, algorithm) do update"
        " set key_id = excluded.key_id, json = excluded.json, is_used = false"
        " where (held.key_id, held.json) is distinct from (excluded.key_id, excluded.json)",
        (
            device,
            [key.algorithm for key in keys],
            [key.key_id for key in keys],
            [key.json for key in keys],
        ),
    )


async def claim(
    tx: Tx, claims: Sequence[Claim], now_ts: int
) -> tuple[list[tuple[Claim, Key]], set[tuple[UserID, DeviceID]]]:
    """Take one key for each claim, and the devices whose counts are other than before.

    Oldest upload first, each one-time key once, ever; a device without any gives its fallback key. What has neither is
    missing in the answer. No claim is in `claims` twice.
    """
    found: list[tuple[Claim, Key]] = []
    changed: set[tuple[UserID, DeviceID]] = set()
    missing: list[Claim] = []
    for user_id, device_id, algorithm, key_id, json in await tx.fetch(_CLAIM, (*_columns(claims), now_ts)):
        claimed = Claim(UserID(user_id), DeviceID(device_id), algorithm)
        if key_id is None:
            missing.append(claimed)
        else:
            found.append((claimed, Key(algorithm, key_id, json)))
            changed.add((claimed.user_id, claimed.device_id))
    if missing:
        for user_id, device_id, algorithm, key_id, json, was_used in await tx.fetch(_CLAIM_FALLBACK, _columns(missing)):
            found.append((Claim(UserID(user_id), DeviceID(device_id), algorithm), Key(algorithm, key_id, json)))
            if not was_used:
                changed.add((UserID(user_id), DeviceID(device_id)))
    return found, changed


_CLAIM = """
with wanted as (
    select devices.device, devices.user_id, devices.device_id, claim.algorithm
    from unnest(%s::text[], %s::text[], %s::text[]) as claim (user_id, device_id, algorithm)
    join devices using (user_id, device_id)
), oldest as (
    select one.device, one.algorithm, one.key_id from wanted cross join lateral (
        select device, algorithm, key_id from one_time_keys
        where one_time_keys.device = wanted.device and one_time_keys.algorithm = wanted.algorithm
        order by sequence limit 1 for update skip locked
    ) as one
), taken as (
    delete from one_time_keys using oldest
    where one_time_keys.device = oldest.device and one_time_keys.algorithm = oldest.algorithm
        and one_time_keys.key_id = oldest.key_id
    returning one_time_keys.device, one_time_keys.algorithm, one_time_keys.key_id, one_time_keys.json
), noted as (
    insert into given_one_time_keys (device, algorithm, key_id, digest, given_ts)
    select device, algorithm, key_id, sha256(json), %s from taken
    on conflict (device, algorithm, key_id) do update set digest = excluded.digest, given_ts = excluded.given_ts
)
select wanted.user_id, wanted.device_id, wanted.algorithm, taken.key_id, taken.json
from wanted left join taken using (device, algorithm)
"""

_CLAIM_FALLBACK = """
update fallback_keys set is_used = true
from (
    select devices.user_id, devices.device_id, held.device, held.algorithm, held.is_used
    from unnest(%s::text[], %s::text[], %s::text[]) as claim (user_id, device_id, algorithm)
    join devices using (user_id, device_id)
    join fallback_keys as held on held.device = devices.device and held.algorithm = claim.algorithm
    for update of held
) as before
where fallback_keys.device = before.device and fallback_keys.algorithm = before.algorithm
returning before.user_id, before.device_id, fallback_keys.algorithm, fallback_keys.key_id, fallback_keys.json,
    before.is_used
"""


def _columns(claims: Sequence[Claim]) -> tuple[list[str], list[str], list[str]]:
    return (
        [claim.user_id for claim in claims],
        [claim.device_id for claim in claims],
        [claim.algorithm for claim in claims],
    )


# --- counts


async def key_counts(tx: Tx, device: int) -> KeyCounts:
    """How many one-time keys a device has left, and which fallback keys were never given out."""
    rows = await tx.fetch(
        "select algorithm, count(*) from one_time_keys where device = %s group by algorithm"
        " union all select algorithm, 0 from fallback_keys where device = %s and not is_used",
        (device, device),
    )
    counts = {"signed_curve25519": 0} | {algorithm: count for algorithm, count in rows if count}
    return KeyCounts(counts, sorted(algorithm for algorithm, count in rows if not count))


_MAX_COUNTS = 50_000
"""Devices of which the counts are remembered."""


class KeyCountCache:
    """The counts of devices that sync, in memory: a view of the tail, which every change of them passes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._counts: dict[int, KeyCounts] = {}
        self._devices: dict[tuple[UserID, str], int] = {}
        self._changes = 0

    def view(self, _position: int, change: Change) -> None:
        """Forget what a change makes stale; to be registered with `Tail.add_view`."""
        if isinstance(change, Invalidated) and change.kind_of is Kind.KEY_COUNTS:
            self._changes += 1
            device = self._devices.pop((change.user_id, change.detail), None)
            if device is not None:
                self._counts.pop(device, None)

    async def get(self, user_id: UserID, device_id: DeviceID, device: int) -> KeyCounts:
        """The counts of a device, without a query when they are known; not to be changed by the caller."""
        known = self._counts.get(device)
        if known is not None:
            return known
        changes = self._changes
        async with self._database.read() as tx:
            counts = await key_counts(tx, device)
        if changes == self._changes:  # else what was read may be older than the change
            while len(self._counts) >= _MAX_COUNTS:
                self._counts.pop(next(iter(self._counts)))
            if len(self._devices) > 2 * _MAX_COUNTS:
                self._devices = {name: number for name, number in self._devices.items() if number in self._counts}
            self._counts[device] = counts
            self._devices[user_id, device_id] = device
        return counts
