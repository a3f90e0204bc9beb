"""Dehydrated devices (MSC3814)."""

from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.dehydrated_devices import DehydratedDeviceService


class DehydratedDevicesAPI:
    """A user's dehydrated device and its inbox."""

    def __init__(self, dehydrated_devices: DehydratedDeviceService) -> None:
        self._dehydrated_devices = dehydrated_devices

    async def put(self, call: Call) -> Answer:
        """PUT /dehydrated_device."""
        return {"device_id": await self._dehydrated_devices.put(requester(call).user_id, await call.body())}

    async def get(self, call: Call) -> Answer:
        """GET /dehydrated_device."""
        return await self._dehydrated_devices.get(requester(call).user_id)

    async def delete(self, call: Call) -> Answer:
        """DELETE /dehydrated_device."""
        return {"device_id": await self._dehydrated_devices.delete(requester(call).user_id)}

    async def get_events(self, call: Call) -> Answer:
        """GET /dehydrated_device/{device_id}/events."""
        return await self._dehydrated_devices.events(
            requester(call).user_id, call.path["device_id"], call.query_text("from")
        )

    async def take_events(self, call: Call) -> Answer:
        """POST /dehydrated_device/{device_id}/events, which was in the proposal before that."""
        return await self._dehydrated_devices.take_events(
            requester(call).user_id, call.path["device_id"], await call.body(optional=True)
        )
