"""Endpoints whose path names the user who calls them."""

from federation.protocol.errors import Forbidden
from federation.protocol.types import UserID
from federation.web import Call
from homeserver.client_api.routing import requester


def own_user(call: Call) -> UserID:
    """The caller, whom the path has to name; raises Forbidden where it names another user."""
    user_id = requester(call).user_id
    if call.path["user_id"] != user_id:
        raise Forbidden("You may only do this for yourself")
    return user_id
