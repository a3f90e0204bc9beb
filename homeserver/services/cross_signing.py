"""Cross-signing keys of this server's users and the signatures that they publish ("Cross-signing")."""

from collections.abc import Mapping, Sequence

import orjson

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError, TooLarge
from federation.protocol.types import DeviceID, JsonObject, UserID
from homeserver.services import key_checks
from homeserver.services.requester import Requester
from storage import cross_signing, device_lists, end_to_end_keys
from storage.cross_signing import CrossSigningKey, KeySignature, Usage
from storage.database import Tx
from storage.device_lists import DeviceListChanged
from storage.log import Log
from storage.log_entries import Change, Entry

MAX_SIGNED_KEYS = 2_000
"""Keys in one upload of signatures."""

_MEMBERS = {f"{usage}_key": usage for usage in Usage}


class AuthenticationNeeded(MatrixError):
    """The user has a master key and this would add to it or replace it: who uploads must prove who they are first."""

    def __init__(self) -> None:
        super().__init__("M_FORBIDDEN", "Keys that exist are only replaced after authentication", 403)


class CrossSigningService:
    """Uploads of cross-signing keys and of signatures."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def upload_keys(self, requester: Requester, body: JsonObject, *, is_authenticated: bool) -> None:
        """Publish cross-signing keys.

        Raises AuthenticationNeeded, unless `is_authenticated`, when the user has a master key and the request is not
        merely a repetition of keys that are there; nothing is stored then.
        """
        user_id = requester.user_id
        keys = {
            usage: key_checks.cross_signing_key(body[member], user_id, usage)
            for member, usage in _MEMBERS.items()
            if body.get(member) is not None
        }
        entry = Entry(width=1)

        async def work(tx: Tx) -> None:
            entry.changes = []
            held = {key.usage: key for key in await cross_signing.list_keys(tx, [user_id])}
            if Usage.MASTER in held and not is_authenticated:
                if not _is_repetition(keys, held):
                    raise AuthenticationNeeded
                return
            entry.changes = await _replace(tx, user_id, keys, held)

        entry.work = work
        await self._log.append(entry)

    async def upload_signatures(self, requester: Requester, body: JsonObject) -> JsonObject:
        """Add signatures to keys; user -> key name -> error for those that were refused."""
        wanted = _wanted(body)
        entry = Entry(width=sum(len(keys) for keys in wanted.values()))

        async def work(tx: Tx) -> JsonObject:
            accepted, failures = await _check(tx, requester.user_id, wanted)
            entry.changes = await _publish(tx, requester.user_id, accepted)
            return failures

        entry.work = work
        failures: JsonObject = (await self._log.append(entry)).result
        return failures


# --- keys


def _is_repetition(keys: Mapping[Usage, CrossSigningKey], held: Mapping[Usage, CrossSigningKey]) -> bool:
    return Usage.MASTER in keys and all(
        usage in held and key_checks.is_same_key(orjson.loads(key.json), orjson.loads(held[usage].json))
        for usage, key in keys.items()
    )


async def _replace(
    tx: Tx, user_id: UserID, keys: Mapping[Usage, CrossSigningKey], held: Mapping[Usage, CrossSigningKey]
) -> list[Change]:
    """Store what differs from the keys held; the changes to log."""
    master = keys.get(Usage.MASTER, held.get(Usage.MASTER))
    if master is None:
        raise InvalidInput("There is no master key", "M_MISSING_PARAM")
    for usage, key in keys.items():
        signing_key_id = f"ed25519:{master.public_key}"
        if usage is not Usage.MASTER and not key_checks.is_signed_by(
            orjson.loads(key.json), user_id, signing_key_id, master.public_key
        ):
            raise InvalidInput(f"The {usage} key is not signed by the master key", "M_INVALID_SIGNATURE")
    if await cross_signing.names_in_use(tx, user_id, [key.public_key for key in keys.values()]):
        raise Forbidden("A key has the name of one of the user's devices")

    changed = {usage: key for usage, key in keys.items() if usage not in held or held[usage].json != key.json}
    if not changed:
        return []
    replaced = {usage: held[usage] for usage, key in changed.items() if _is_other(held.get(usage), key)}
    if Usage.MASTER in replaced:
        # What the old master key vouched for is nothing without it.
        replaced |= {usage: key for usage, key in held.items() if usage not in keys}
    if replaced:
        await cross_signing.delete_keys(tx, list(replaced.values()))
    await cross_signing.put_keys(tx, list(changed.values()))
    if changed.keys() | replaced.keys() == {Usage.USER_SIGNING}:
        return [DeviceListChanged(user_id, (), seen_by=user_id)]
    return [await device_lists.of_user(tx, user_id)]


def _is_other(held: CrossSigningKey | None, key: CrossSigningKey) -> bool:
    return held is not None and held.public_key != key.public_key


# --- signatures


def _wanted(body: JsonObject) -> dict[UserID, JsonObject]:
    wanted: dict[UserID, JsonObject] = {}
    for user_id in key_checks.user_ids(body):
        wanted[user_id] = key_checks.an_object(body[user_id], "The signed keys of a user")
        for name, signed in wanted[user_id].items():
            key_checks.a_text(name, "A key's name")
            key_checks.an_object(signed, "A signed key")
    if sum(len(keys) for keys in wanted.values()) > MAX_SIGNED_KEYS:
        raise TooLarge(f"More than {MAX_SIGNED_KEYS} keys")
    return wanted


async def _check(tx: Tx, signer: UserID, wanted: Mapping[UserID, JsonObject]) -> tuple[list[KeySignature], JsonObject]:
    """The signatures that hold, and why the others do not."""
    known = await _known_keys(tx, signer, wanted)
    accepted: list[KeySignature] = []
    failures: JsonObject = {}
    for user_id, signed_keys in wanted.items():
        for name, signed in signed_keys.items():
            try:
                accepted += known.accept(user_id, name, signed)
            except MatrixError as error:
                failures.setdefault(user_id, {})[name] = error.body()
    return accepted, failures


class _KnownKeys:
    """The keys that one user may sign, and those that they sign with."""

    def __init__(self, signer: UserID, devices: Mapping[str, JsonObject], keys: Sequence[CrossSigningKey]) -> None:
        self._signer = signer
        self._devices = devices
        self._masters = {key.user_id: key for key in keys if key.usage is Usage.MASTER}
        self._own = {key.usage: key.public_key for key in keys if key.user_id == signer}

    def accept(self, user_id: UserID, name: str, signed: JsonObject) -> list[KeySignature]:
        """The signatures about a key that may be published; raises when there is none."""
        key_checks.checked_signatures(signed.get("signatures"), "A signed key")
        if user_id == signed.get("user_id") == self._signer and name in self._devices:
            return [self._signature(user_id, name, self._devices[name], signed, Usage.SELF_SIGNING)]
        master = self._masters.get(user_id)
        if master is None or master.public_key != name:
            raise MatrixError("M_NOT_FOUND", "There is no such key to sign", 404)
        held = orjson.loads(master.json)
        if user_id != self._signer:
            return [self._signature(user_id, name, held, signed, Usage.USER_SIGNING)]
        return self._by_own_devices(user_id, name, held, signed)

    def _signature(
        self, user_id: UserID, name: str, held: JsonObject, signed: JsonObject, usage: Usage
    ) -> KeySignature:
        public_key = self._own.get(usage)
        if public_key is None:
            raise MatrixError("M_NOT_FOUND", f"There is no {usage} key to sign with", 404)
        return self._verified(user_id, name, held, signed, (f"ed25519:{public_key}", public_key))

    def _by_own_devices(self, user_id: UserID, name: str, held: JsonObject, signed: JsonObject) -> list[KeySignature]:
        signing_keys = [
            (f"ed25519:{device_id}", device["keys"].get(f"ed25519:{device_id}"))
            for device_id, device in self._devices.items()
            if f"ed25519:{device_id}" in signed["signatures"].get(user_id, {})
        ]
        if not signing_keys:
            raise InvalidInput("No device of the user has signed the key", "M_INVALID_SIGNATURE")
        return [self._verified(user_id, name, held, signed, signing_key) for signing_key in signing_keys]

    def _verified(
        self, user_id: UserID, name: str, held: JsonObject, signed: JsonObject, signing_key: tuple[str, object]
    ) -> KeySignature:
        signing_key_id, public_key = signing_key
        if not key_checks.is_same_key(held, signed):
            raise InvalidInput("The signed key is not the one that was published")
        # What is verified is the key as it is held, with the signature that was sent.
        with_signature = {**held, "signatures": signed["signatures"]}
        if not key_checks.is_signed_by(with_signature, self._signer, signing_key_id, public_key):
            raise InvalidInput("The signature is not valid", "M_INVALID_SIGNATURE")
        signature = signed["signatures"][self._signer][signing_key_id]
        return KeySignature(user_id, name, self._signer, signing_key_id, signature)


async def _known_keys(tx: Tx, signer: UserID, wanted: Mapping[UserID, JsonObject]) -> _KnownKeys:
    devices = await end_to_end_keys.list_device_keys(tx, [signer])
    keys = await cross_signing.list_keys(tx, {signer, *wanted})
    return _KnownKeys(signer, {device.device_id: orjson.loads(device.json) for device in devices}, keys)


async def _publish(tx: Tx, signer: UserID, accepted: Sequence[KeySignature]) -> list[Change]:
    """Store signatures; the changes to log, one for each key about which there is something new."""
    if not accepted or not await cross_signing.put_signatures(tx, accepted):
        return []
    changes: list[Change] = []
    about_own = sorted({signature.key_name for signature in accepted if signature.user_id == signer})
    if about_own:
        in_rooms = (await device_lists.of_user(tx, signer)).changed_in
        masters = {key.public_key for key in await cross_signing.list_keys(tx, [signer])}
        devices = [DeviceID(name) for name in about_own if name not in masters]
        if devices:
            changes.append(DeviceListChanged(signer, in_rooms, devices))
        if len(devices) < len(about_own):
            changes.append(DeviceListChanged(signer, in_rooms))
    others = sorted({signature.user_id for signature in accepted} - {signer})
    changes += [DeviceListChanged(user_id, (), seen_by=signer) for user_id in others]
    return changes
