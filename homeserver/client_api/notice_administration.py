"""Server notices as administrators send them, under the path that existing dashboards use."""

from federation.protocol.errors import InvalidInput
from federation.protocol.types import UserID
from federation.web import Answer, Call
from homeserver.client_api import fields
from homeserver.client_api.routing import requester
from homeserver.services.server_notices import Notice, ServerNotices
from homeserver.services.user_names import UserNames


class NoticeAdministrationAPI:
    """`/_synapse/admin/v1/send_server_notice`."""

    def __init__(self, notices: ServerNotices, names: UserNames) -> None:
        self._notices = notices
        self._names = names

    async def send(self, call: Call) -> Answer:
        """POST, and PUT with a transaction ID: `user_id`, `content`, and maybe `type` and `state_key`."""
        body = await call.body()
        user_id = fields.get_text(body, "user_id")
        if not self._names.is_local(user_id):
            raise InvalidInput("Server notices can only be sent to users of this server")
        content = body.get("content")
        if not isinstance(content, dict):
            raise InvalidInput("content must be an object", "M_MISSING_PARAM" if content is None else "M_BAD_JSON")
        notice = Notice(
            user_id=UserID(user_id),
            type=fields.find_text(body, "type") or "m.room.message",
            content=content,
            state_key=fields.find_text(body, "state_key"),
            txn_id=call.path.get("txn_id"),
        )
        return {"event_id": await self._notices.send(requester(call).user_id, notice)}
