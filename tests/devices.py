"""Devices of test clients: python-olm holds their keys and makes their signatures, as a real client does."""

import json
from typing import Any

from olm.account import Account
from olm.pk import PkSigning

from tests.client import Client

ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]


def signable(value: dict[str, Any]) -> str:
    """What a signature of an object covers, by the reference's definition."""
    kept = {name: member for name, member in value.items() if name not in {"signatures", "unsigned"}}
    return json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Device:
    """The crypto of one logged-in client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.account = Account()

    @property
    def user_id(self) -> str:
        """Whose device it is."""
        return self.client.user_id

    @property
    def key_id(self) -> str:
        """Of the key that it signs with."""
        return f"ed25519:{self.client.device_id}"

    def signed(self, value: dict[str, Any]) -> dict[str, Any]:
        """The object with this device's signature added."""
        signatures = {user: dict(by_key) for user, by_key in value.get("signatures", {}).items()}
        signatures.setdefault(self.user_id, {})[self.key_id] = self.account.sign(signable(value))
        return {**value, "signatures": signatures}

    def identity(self) -> dict[str, Any]:
        """`device_keys` for /keys/upload."""
        keys = self.account.identity_keys
        device_id = self.client.device_id
        return self.signed(
            {
                "user_id": self.user_id,
                "device_id": device_id,
                "algorithms": ALGORITHMS,
                "keys": {f"{algorithm}:{device_id}": key for algorithm, key in keys.items()},
            }
        )

    def one_time_keys(self, count: int) -> dict[str, Any]:
        """`one_time_keys` for /keys/upload, new ones."""
        self.account.generate_one_time_keys(count)
        keys = self.account.one_time_keys["curve25519"]
        self.account.mark_keys_as_published()
        return {f"signed_curve25519:{key_id}": self.signed({"key": key}) for key_id, key in keys.items()}

    def fallback_key(self) -> dict[str, Any]:
        """`fallback_keys` for /keys/upload: a new one."""
        (named,) = self.one_time_keys(1).items()
        return {named[0]: self.signed({"key": named[1]["key"], "fallback": True})}

    async def upload(self, **parts: Any) -> Any:
        """Publish; the counts that the server answers."""
        body = await self.client.ok("POST", "/v3/keys/upload", parts)
        return body["one_time_key_counts"]


async def a_device(client: Client, one_time_keys: int = 0) -> Device:
    """The client's device, its identity keys published."""
    device = Device(client)
    await device.upload(device_keys=device.identity(), one_time_keys=device.one_time_keys(one_time_keys))
    return device


class CrossSigning:
    """A user's three cross-signing key pairs."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.pairs = {usage: PkSigning(PkSigning.generate_seed()) for usage in USAGES}

    def public_key(self, usage: str) -> str:
        """In unpadded base64."""
        key: str = self.pairs[usage].public_key
        return key

    def sign(self, usage: str, value: dict[str, Any]) -> dict[str, Any]:
        """The object with a signature by one of these keys, and no other."""
        signature = self.pairs[usage].sign(signable(value))
        return {**value, "signatures": {self.client.user_id: {f"ed25519:{self.public_key(usage)}": signature}}}

    def key(self, usage: str) -> dict[str, Any]:
        """One public key, signed by the master key unless it is that."""
        public_key = self.public_key(usage)
        key = {"user_id": self.client.user_id, "usage": [usage], "keys": {f"ed25519:{public_key}": public_key}}
        return key if usage == "master" else self.sign("master", key)

    def body(self) -> dict[str, Any]:
        """For /keys/device_signing/upload."""
        return {f"{usage}_key": self.key(usage) for usage in USAGES}


USAGES = ("master", "self_signing", "user_signing")


async def cross_signing(client: Client) -> CrossSigning:
    """A user's first cross-signing keys, published."""
    keys = CrossSigning(client)
    await client.ok("POST", "/v3/keys/device_signing/upload", keys.body())
    return keys


async def query(asker: Client, *users: Client) -> Any:
    """/keys/query for all devices of these users."""
    return await asker.ok("POST", "/v3/keys/query", {"device_keys": {user.user_id: [] for user in users}})


async def claim(asker: Client, client: Client, algorithm: str = "signed_curve25519") -> Any:
    """/keys/claim for one device: the key's ID and the key, or None."""
    wanted = {client.user_id: {client.device_id: algorithm}}
    body = await asker.ok("POST", "/v3/keys/claim", {"one_time_keys": wanted})
    keys = body["one_time_keys"].get(client.user_id, {}).get(client.device_id)
    return None if keys is None else next(iter(keys.items()))
