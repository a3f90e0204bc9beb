"""Who a login names (Client-Server API, "Identifier types")."""

from federation.protocol.errors import Forbidden, InvalidInput
from federation.protocol.types import JsonObject
from homeserver.client_api.fields import find_text, get_text
from homeserver.services.email_addresses import canonical_email
from homeserver.services.identifiers import EMAIL, PHONE
from homeserver.services.phone_numbers import parse_phone
from homeserver.services.third_party_inviting import ThirdPartyInvite
from storage.identifiers import Identifier


def user_of_login(body: JsonObject) -> str | Identifier:
    """The user ID or localpart in `identifier`, or in the older `user`, or the address there; raises for others."""
    identifier = body.get("identifier")
    if identifier is None:
        if body.get("user") is None and "address" in body:
            return canonical(get_text(body, "medium"), get_text(body, "address"))
        if body.get("user") is None:
            raise InvalidInput("identifier is required", "M_MISSING_PARAM")
        return get_text(body, "user")
    if not isinstance(identifier, dict):
        raise InvalidInput("identifier must be an object", "M_BAD_JSON")
    kind = identifier.get("type")
    if kind == "m.id.user":
        return get_text(identifier, "user")
    if kind == "m.id.thirdparty":
        return canonical(get_text(identifier, "medium"), get_text(identifier, "address"))
    if kind == "m.id.phone":
        number = find_text(identifier, "phone") or get_text(identifier, "number")  # as it was once called
        return _dialled(find_text(identifier, "country"), number)
    raise InvalidInput("Unknown type of identifier", "M_UNKNOWN")


def canonical(medium: str, address: str) -> Identifier:
    """The identifier as such are kept; raises M_FORBIDDEN for what no account can have."""
    if medium == EMAIL:
        try:
            return Identifier(EMAIL, canonical_email(address))
        except InvalidInput:
            raise _unknown() from None
    number = address.removeprefix("+")
    if medium != PHONE or not number.isascii() or not number.isdigit() or len(number) > 20:
        raise _unknown()
    return Identifier(PHONE, number)


def _dialled(country: str | None, number: str) -> Identifier:
    try:
        return Identifier(PHONE, parse_phone(country, number).msisdn)
    except InvalidInput:
        raise _unknown() from None


def third_party_invite(body: JsonObject) -> ThirdPartyInvite:
    """Whom a client invites by address; raises M_MISSING_PARAM, M_INVALID_PARAM."""
    medium, address = get_text(body, "medium"), get_text(body, "address")
    if medium != EMAIL:
        raise InvalidInput("People can be invited by e-mail address only", "M_THREEPID_MEDIUM_NOT_SUPPORTED")
    return ThirdPartyInvite(
        identifier=Identifier(EMAIL, canonical_email(address)),
        id_server=get_text(body, "id_server"),
        id_access_token=get_text(body, "id_access_token"),
    )


def _unknown() -> Forbidden:
    return Forbidden("No account has this third-party identifier")
