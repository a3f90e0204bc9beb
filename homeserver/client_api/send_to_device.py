"""To-device messages (Client-Server API, "Send-to-Device messaging"); they are received by /sync."""

from federation.protocol.errors import InvalidInput
from federation.protocol.identifiers import fits
from federation.web import Answer, Call
from homeserver.client_api.routing import requester
from homeserver.services.send_to_device import SendToDeviceService


class SendToDeviceAPI:
    """Sending to devices."""

    def __init__(self, send_to_device: SendToDeviceService) -> None:
        self._send_to_device = send_to_device

    async def send(self, call: Call) -> Answer:
        """PUT /sendToDevice/{eventType}/{txnId}."""
        event_type, txn_id = call.path["event_type"], call.path["txn_id"]
        if "\0" in event_type + txn_id or not fits(event_type) or not fits(txn_id):
            raise InvalidInput("Event types and transaction IDs have at most 255 bytes")
        await self._send_to_device.send(requester(call), event_type, txn_id, await call.body())
        return {}
