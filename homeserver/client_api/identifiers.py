"""Who a login names (Client-Server API, "Identifier types")."""

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import JsonObject
from homeserver.client_api.fields import get_text


def user_of_login(body: JsonObject) -> str:
    """The user ID or localpart in `identifier`, or in the older `user`; raises where it is of another kind."""
    identifier = body.get("identifier")
    if identifier is None:
        user = body.get("user")
        if user is None and "address" in body:
            raise Forbidden("No account has this third-party identifier")
        if user is None:
            raise InvalidInput("identifier is required", "M_MISSING_PARAM")
        return get_text(body, "user")
    if not isinstance(identifier, dict):
        raise InvalidInput("identifier must be an object", "M_BAD_JSON")
    kind = identifier.get("type")
    if kind == "m.id.user":
        return get_text(identifier, "user")
    if kind in ("m.id.thirdparty", "m.id.phone"):
        raise Forbidden("No account has this third-party identifier")
    raise InvalidInput("Unknown type of identifier", "M_UNKNOWN")
