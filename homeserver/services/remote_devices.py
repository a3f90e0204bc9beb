"""Device lists of other servers' users: what their servers tell, and what is fetched anew (Server-Server API, "Device
Management").

A change concerns those of our users who share a room with its user; of others nothing is noted. It is applied to the
list that is held of the user, if one is; where something is missing before it, the list is stale and fetched whole,
again and again until the server answers. Meanwhile clients are answered by the server itself (`remote_keys.py`).
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from federation.outbound.device_requests import DeviceRequests
from federation.protocol.edu import DeviceListUpdate, SigningKeyUpdate
from federation.protocol.errors import InvalidInput, MatrixError, PeerFailed, PeerUnreachable, Unavailable
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import ServerName, UserID
from homeserver.services.remote_key_checks import MAX_DEVICES, DeviceList, checked_device, checked_keys, checked_list
from storage import background, cross_signing, device_lists, remote_devices
from storage.cross_signing import CrossSigningKey
from storage.database import Database, Tx
from storage.end_to_end_keys import DeviceKeys
from storage.log import Log
from storage.log_entries import Entry
from storage.remote_devices import RemoteList
from storage.tail import Tail

logger = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
"""Until somebody looks for what other processes left to be fetched."""
AT_ONCE = 100
"""Lists that are taken together; those of one server are fetched one after the other."""
SERVERS_AT_ONCE = 200
"""Servers that are asked at the same time: none waits for another that is slow."""
TURN_SECONDS = 60.0
"""For the lists that were taken of a server: the others are fetched later."""
FIRST_RETRY_SECONDS = 10.0
MAX_RETRY_SECONDS = 3600.0
SWEEP_SECONDS = 600.0


class RemoteDevices:
    """Keeps the lists."""

    def __init__(self, database: Database, log: Log, tail: Tail, requests: DeviceRequests) -> None:
        self._database = database
        self._log = log
        self._tail = tail
        self._requests = requests
        self._wanted = asyncio.Event()
        self._back: set[ServerName] = set()
        self._under_way: dict[ServerName, asyncio.Task[None]] = {}
        """Those that are being asked."""
        self._swept_at = time.monotonic()

    # --- what their servers tell

    async def receive_update(self, update: DeviceListUpdate) -> None:
        """A device is new, other than before, or gone."""
        device = _device_of(update)
        entry = Entry(width=1)

        async def work(tx: Tx) -> bool:
            change = await device_lists.of_user(tx, update.user_id, [update.device_id])
            held = await remote_devices.lock(tx, update.user_id)
            if not change.changed_in or (held is not None and was_announced(held, update)):
                return False
            entry.changes = [change]
            if held is not None and contains(held, update):
                await remote_devices.note_update(tx, update.user_id, update.stream_id)
                return False
            if held is None or (follows(update, held) and await _apply(tx, update, device)):
                return False
            await remote_devices.note_missing(tx, update.user_id, self._database.now_ms())
            return True

        await self._append(entry, work)

    async def receive_signing_keys(self, update: SigningKeyUpdate) -> None:
        """Cross-signing keys were replaced."""
        keys = checked_keys(update.user_id, update.master_key, update.self_signing_key)
        entry = Entry(width=1)

        async def work(tx: Tx) -> bool:
            change = await device_lists.of_user(tx, update.user_id)
            held = await remote_devices.lock(tx, update.user_id)
            if not change.changed_in:
                return False
            entry.changes = [change]
            if held is None:
                return False
            if held.is_stale or len(keys) < 2:  # whether the other one is still good, only the whole list says
                await remote_devices.note_missing(tx, update.user_id, self._database.now_ms())
                return True
            await _replace_keys(tx, update.user_id, keys)
            return False

        await self._append(entry, work)

    async def _append(self, entry: Entry, work: Callable[[Tx], Awaitable[bool]]) -> None:
        """Append what `work` does; it says whether a list is to be fetched now."""
        entry.work = work
        if (await self._log.append(entry)).result:
            self._wanted.set()

    # --- what is fetched

    async def want(self, asker: UserID, users: Iterable[UserID]) -> None:
        """Have the lists of those who share a room with the asker held from now on."""
        async with self._database.transaction() as tx:
            sharing = await device_lists.still_sharing(tx, asker, set(users))
            if sharing:
                await remote_devices.want(tx, sharing, self._database.now_ms())
        if sharing:
            self._wanted.set()

    def server_is_back(self, server: ServerName) -> None:
        """What a server did not answer is asked once more, soon."""
        self._back.add(server)
        self._wanted.set()

    async def run(self) -> None:
        """Fetch what is stale, and forget whom nobody follows any longer, until cancelled."""
        try:
            while True:
                self._wanted.clear()
                try:
                    while await self._fetch_due():
                        pass
                    if time.monotonic() - self._swept_at > SWEEP_SECONDS:
                        self._swept_at = time.monotonic()
                        await self.sweep()
                except Unavailable:
                    await asyncio.sleep(1)  # logged where it arose
                except Exception:
                    logger.exception("device lists could not be fetched; the next turn tries again")
                    await asyncio.sleep(LOOK_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._wanted.wait()
        finally:
            await background.end(self._under_way.values())

    async def sweep(self) -> None:
        """Forget the lists of users who share no room with ours."""
        async with self._database.transaction() as tx:
            dropped = await remote_devices.drop_unshared(tx)
        if dropped:
            logger.info("the devices of %d users of other servers concern nobody here any longer", dropped)

    async def _fetch_due(self) -> bool:
        """Begin to fetch lists whose time has come; False where there are none, or enough are being fetched."""
        if len(self._under_way) >= SERVERS_AT_ONCE:
            return False
        now_ts, back = self._database.now_ms(), self._back
        self._back = set()
        position = self._tail.position
        async with self._database.transaction() as tx:
            if back:
                await remote_devices.hasten(tx, back, now_ts)
            leased_until_ts = now_ts + int(TURN_SECONDS * 2000)
            due = await remote_devices.take_due(
                tx, now_ts=now_ts, leased_until_ts=leased_until_ts, limit=AT_ONCE, besides=self._under_way.keys()
            )
        by_server: dict[ServerName, list[RemoteList]] = {}
        for wanted in due:
            by_server.setdefault(server_name_of(wanted.user_id), []).append(wanted)
        for server, lists in by_server.items():
            task = asyncio.get_running_loop().create_task(self._fetch_in_time(server, lists, position))
            self._under_way[server] = task
            task.add_done_callback(partial(self._note_done, server))
        return bool(due)

    def _note_done(self, server: ServerName, _task: "asyncio.Task[None]") -> None:
        del self._under_way[server]
        self._wanted.set()  # there may be more of its users

    async def _fetch_in_time(self, server: ServerName, lists: Sequence[RemoteList], position: int) -> None:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._fetch_from(server, lists, position)
        except TimeoutError:
            logger.info("not all device lists of %s could be fetched in %.0f seconds", server, TURN_SECONDS)
        except Unavailable:
            pass  # logged where it arose; they are due again when the lease ends
        except Exception:
            logger.exception("the device lists of %s could not be fetched", server)

    async def _fetch_from(self, server: ServerName, lists: Sequence[RemoteList], position: int) -> None:
        """Fetch lists of one server; when it is not there, none of the others is asked for."""
        away: PeerUnreachable | None = None
        for wanted in lists:
            try:
                if away is not None:
                    raise away
                answer = await self._requests.list_devices(wanted.user_id)
                await self._store(wanted, checked_list(answer, wanted.user_id), position)
            except (PeerFailed, InvalidInput) as error:
                if isinstance(error, PeerUnreachable):
                    away = error
                await self._note_failure(wanted, error)

    async def _store(self, wanted: RemoteList, found: DeviceList, position: int) -> None:
        user_id = wanted.user_id
        entry = Entry(width=1)

        async def work(tx: Tx) -> None:
            held = await remote_devices.lock(tx, user_id)
            if held is None:
                return  # nobody follows the user any longer
            changed = await remote_devices.replace(tx, user_id, found.devices)
            changed = await _replace_keys(tx, user_id, found.keys) or changed
            # Who asked while the server did not answer has something else, or nothing.
            is_announced = changed and (held.position is not None or held.failures > 0)
            if is_announced:
                change = await device_lists.of_user(tx, user_id)
                entry.changes = [change] if change.changed_in else []
            stream_ids = [found.stream_id] * (1 + is_announced)
            is_current = held.version == wanted.version
            await remote_devices.note_fetched(tx, user_id, stream_ids, position, is_current=is_current)

        entry.work = work
        await self._log.append(entry)

    async def _note_failure(self, wanted: RemoteList, error: MatrixError) -> None:
        seconds = min(FIRST_RETRY_SECONDS * 2.0 ** min(wanted.failures, 20), MAX_RETRY_SECONDS)
        seconds *= random.uniform(0.8, 1.2)  # noqa: S311  # no secret
        logger.info("the devices of %s could not be fetched, next in %.0f s: %s", wanted.user_id, seconds, error)
        async with self._database.transaction() as tx:
            await remote_devices.note_failure(tx, wanted.user_id, self._database.now_ms() + int(seconds * 1000))
        if seconds < LOOK_SECONDS:
            asyncio.get_running_loop().call_later(seconds, self._wanted.set)


def contains(held: RemoteList, update: DeviceListUpdate) -> bool:
    """Whether a list is complete with what came before."""
    return not held.is_stale and update.stream_id in held.stream_ids


def was_announced(held: RemoteList, update: DeviceListUpdate) -> bool:
    """Whether clients were told of an update that a list contains."""
    return contains(held, update) and update.stream_id in held.stream_ids[1:]


def follows(update: DeviceListUpdate, held: RemoteList) -> bool:
    """Whether a list that was complete before this update is complete with it."""
    known = held.stream_ids
    return (
        not held.is_stale
        and bool(known)
        and bool(update.prev_ids)
        and update.stream_id > max(known)
        and all(previous in known for previous in update.prev_ids)
    )


def _device_of(update: DeviceListUpdate) -> DeviceKeys | None:
    """The device with its keys, if it has any that are well made."""
    if update.deleted or update.keys is None:
        return None
    return checked_device(update.keys, update.user_id, update.device_id, update.device_display_name)


async def _apply(tx: Tx, update: DeviceListUpdate, device: DeviceKeys | None) -> bool:
    """Apply what follows; False where that leaves the list incomplete."""
    if device is not None:
        if not await remote_devices.put(tx, device, MAX_DEVICES):
            return False
    elif update.deleted or update.keys is None:
        await remote_devices.remove(tx, update.user_id, update.device_id)
    else:
        return False
    await remote_devices.note_update(tx, update.user_id, update.stream_id)
    return True


async def _replace_keys(tx: Tx, user_id: UserID, keys: Sequence[CrossSigningKey]) -> bool:
    """Hold these cross-signing keys of a user and no others; whether anything is other than before."""
    held = {key.usage: key for key in await cross_signing.list_keys(tx, [user_id])}
    new = {key.usage: key for key in keys}
    gone = [key for usage, key in held.items() if usage not in new or new[usage].public_key != key.public_key]
    if gone:
        await cross_signing.delete_keys(tx, gone)
    changed = [key for usage, key in new.items() if usage not in held or held[usage].json != key.json]
    if changed:
        await cross_signing.put_keys(tx, changed)
    return bool(gone or changed)
