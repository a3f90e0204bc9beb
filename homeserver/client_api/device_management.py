"""Devices (Client-Server API, "Device Management")."""

from federation.protocol.errors import InvalidInput, NotFound
from federation.protocol.types import DeviceID, JsonObject
from federation.web import Answer, Call, json_response
from homeserver.client_api.interactive_auth import InteractiveAuth
from homeserver.client_api.routing import requester
from homeserver.services.device_activity import DeviceActivity
from homeserver.services.sessions import SessionService, check_display_name
from storage import devices
from storage.database import Database

MAX_DELETED_AT_ONCE = 1000


class DeviceManagementAPI:
    """A user's own devices."""

    def __init__(
        self,
        database: Database,
        sessions: SessionService,
        activity: DeviceActivity,
        interactive_auth: InteractiveAuth,
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._activity = activity
        self._interactive_auth = interactive_auth

    async def list_devices(self, call: Call) -> Answer:
        """GET /devices."""
        await self._activity.flush()
        async with self._database.read() as tx:
            found = await devices.list_of_user(tx, requester(call).user_id)
        return {"devices": [_client_device(device) for device in found]}

    async def get_device(self, call: Call) -> Answer:
        """GET /devices/{deviceId}."""
        await self._activity.flush()
        async with self._database.read() as tx:
            found = await devices.find(tx, requester(call).user_id, DeviceID(call.path["device_id"]))
        if found is None:
            raise NotFound("You have no such device")
        return _client_device(found)

    async def put_device(self, call: Call) -> Answer:
        """PUT /devices/{deviceId}: rename it; an application service may also make it."""
        who, device_id = requester(call), DeviceID(call.path["device_id"])
        body = await call.body()
        name = check_display_name(body.get("display_name"))
        if name is None:
            async with self._database.read() as tx:
                is_there = await devices.find(tx, who.user_id, device_id) is not None
        else:
            is_there = await self._sessions.rename_device(who.user_id, device_id, name)
        if not is_there and who.application_service is not None:
            await self._sessions.make_device(who.user_id, device_id, name)
            return json_response({}, 201)
        if not is_there:
            raise NotFound("You have no such device")
        return {}

    async def delete_device(self, call: Call) -> Answer:
        """DELETE /devices/{deviceId}."""
        who = requester(call)
        await self._interactive_auth.require(call, await call.body(optional=True), who)
        await self._sessions.end_devices(who.user_id, [DeviceID(call.path["device_id"])])
        return {}

    async def delete_devices(self, call: Call) -> Answer:
        """POST /delete_devices."""
        who = requester(call)
        attempt = await self._interactive_auth.begin(call, await call.body(), who)
        named = _device_ids(attempt.body)
        if who.application_service is None:
            await self._interactive_auth.complete(attempt, [["m.login.password"]])
        await self._sessions.end_devices(who.user_id, named)
        return {}


def _device_ids(body: JsonObject) -> list[DeviceID]:
    named = body.get("devices")
    if named is None:
        raise InvalidInput("devices is required", "M_MISSING_PARAM")
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise InvalidInput("devices must be a list of device IDs")
    if len(named) > MAX_DELETED_AT_ONCE:
        raise InvalidInput(f"At most {MAX_DELETED_AT_ONCE} devices can be deleted at once")
    return [DeviceID(each) for each in named]


def _client_device(device: devices.Device) -> JsonObject:
    fields: JsonObject = {"device_id": device.device_id}
    for name, value in (
        ("display_name", device.display_name),
        ("last_seen_ip", device.last_seen_ip),
        ("last_seen_ts", device.last_seen_ts),
    ):
        if value is not None:
            fields[name] = value
    return fields
