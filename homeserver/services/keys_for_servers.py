"""What other servers are told of the keys of this server's users, and the one-time keys that they claim."""

from federation.protocol.errors import NotFound
from federation.protocol.identifiers import server_name_of
from federation.protocol.types import JsonObject, ServerName, UserID
from homeserver.services.device_keys import DeviceKeysService, wanted_claims, wanted_devices
from homeserver.services.key_answers import answer_query
from storage import accounts, device_lists
from storage.database import Database


class KeysForServers:
    """Answers about this server's own users; no others are named."""

    def __init__(
        self, database: Database, keys: DeviceKeysService, server_name: ServerName, *, with_device_names: bool
    ) -> None:
        self._database = database
        self._keys = keys
        self._server_name = server_name
        self._with_device_names = with_device_names

    async def devices(self, user_id: UserID) -> JsonObject:
        """A user's devices that have keys, and the `stream_id` of the newest update that they contain for certain."""
        async with self._database.read() as tx:
            if server_name_of(user_id) != self._server_name or await accounts.find(tx, user_id) is None:
                raise NotFound("There is no such user")
            # What is read after it may be newer, which a repeated update mends, but never older.
            newest = await device_lists.stream_ids_of(tx, [user_id])
            found = await answer_query(tx, {user_id: frozenset()}, None)
        answer: JsonObject = {"user_id": user_id, "stream_id": newest.get(user_id, 0), "devices": []}
        for device_id, keys in sorted(found["device_keys"][user_id].items()):
            name = keys.pop("unsigned", {}).get("device_display_name")
            device: JsonObject = {"device_id": device_id, "keys": keys}
            if self._with_device_names and name is not None:
                device["device_display_name"] = name
            answer["devices"].append(device)
        for usage in ("master", "self_signing"):
            if user_id in found[f"{usage}_keys"]:
                answer[f"{usage}_key"] = found[f"{usage}_keys"][user_id]
        return answer

    async def query(self, body: JsonObject) -> JsonObject:
        """The keys of users as other servers may know them."""
        wanted = wanted_devices(body)
        own = {user_id: ids for user_id, ids in wanted.items() if server_name_of(user_id) == self._server_name}
        async with self._database.read() as tx:
            found = await answer_query(tx, own, None)
        if not self._with_device_names:
            for devices in found["device_keys"].values():
                for device in devices.values():
                    device.pop("unsigned", None)
        del found["user_signing_keys"]
        return found

    async def claim(self, body: JsonObject) -> JsonObject:
        """One-time keys of devices."""
        claims = wanted_claims(body)
        own = [claim for claim in claims if server_name_of(claim.user_id) == self._server_name]
        return {"one_time_keys": await self._keys.claim_local(own)}
