"""The X-Matrix header: made, read and verified (Server-Server API, "Request Authentication")."""

import re

from msgspec import Struct

from federation.protocol.canonical_json import encode
from federation.protocol.errors import Unauthorized
from federation.protocol.identifiers import is_server_key_id, is_server_name
from federation.protocol.signatures import SigningKey, is_signature_of
from federation.protocol.types import KeyID, ServerName

# Names and unquoted values as tokens, the latter with what older servers leave unquoted. Possessive, so linear.
_PARAMETER = re.compile(
    r"[ \t]*+(?:(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+=[ \t]*+"
    r'(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<plain>[^\s,"\\]*+))[ \t]*+)?+(?:,|\Z)'
)
_ESCAPED = re.compile(r"\\(.)")


class Authorization(Struct, frozen=True, kw_only=True):
    """What an X-Matrix header claims."""

    origin: ServerName
    destination: ServerName | None
    """Older servers leave it out."""
    key_id: KeyID
    signature: str


class SignedRequest(Struct, frozen=True, kw_only=True):
    """All of a request that its signature covers."""

    method: str
    uri: str
    """Path and query as in the request line."""
    origin: ServerName
    destination: ServerName
    content: bytes | None
    """The body's canonical JSON; None if there is no body."""

    def signed_bytes(self) -> bytes:
        """The canonical JSON that is signed; raises InvalidInput for a URI that is no Unicode."""
        content = b"" if self.content is None else b'"content":' + self.content + b","
        return (
            b"{" + content + b'"destination":' + encode(self.destination) + b',"method":'
            + encode(self.method) + b',"origin":' + encode(self.origin) + b',"uri":'
            + encode(self.uri) + b"}"
        )  # fmt: skip


def make_header(request: SignedRequest, signing_key: SigningKey) -> str:
    """The value of the Authorization header that signs the request."""
    signature = signing_key.sign(request.signed_bytes())
    return (
        f'X-Matrix origin="{request.origin}",destination="{request.destination}",'
        f'key="{signing_key.key_id}",sig="{signature}"'
    )


def parse_header(value: str) -> Authorization:
    """What the Authorization header claims, however loosely it is written; raises Unauthorized for any other scheme."""
    scheme, _, rest = value.strip(" \t").partition(" ")
    if scheme.lower() != "x-matrix":
        raise _unauthorized("The request has no X-Matrix authorization")
    parameters = _parse_parameters(rest)
    origin, destination = parameters.get("origin"), parameters.get("destination")
    key_id = parameters.get("key")
    signature = parameters.get("sig", parameters.get("signature"))
    if not is_server_name(origin) or not is_server_key_id(key_id) or not signature:
        raise _unauthorized("The X-Matrix authorization needs origin, key and sig")
    if destination is not None and not is_server_name(destination):
        raise _unauthorized("The destination of the X-Matrix authorization is no server name")
    return Authorization(origin=origin, destination=destination, key_id=key_id, signature=signature)


def verify(authorization: Authorization, request: SignedRequest, public_key: bytes) -> None:
    """Raise Unauthorized unless the request, built with our own name as destination, is what the header signs."""
    if authorization.origin != request.origin:
        raise _unauthorized("The request is signed by another server")
    if authorization.destination is not None and authorization.destination != request.destination:
        raise _unauthorized("The request is meant for another server")
    if not is_signature_of(authorization.signature, request.signed_bytes(), public_key):
        raise _unauthorized("The signature of the request is wrong")


def _parse_parameters(text: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _PARAMETER.match(text, position)
        if match is None:
            raise _unauthorized("The X-Matrix authorization is malformed")
        position = match.end()
        if match["name"] is None:
            continue
        name = match["name"].lower()
        if name in parameters:
            raise _unauthorized(f"The X-Matrix authorization has {name} twice")
        quoted: str | None = match["quoted"]
        parameters[name] = match["plain"] if quoted is None else _ESCAPED.sub(r"\1", quoted)
    return parameters


def _unauthorized(message: str) -> Unauthorized:
    return Unauthorized(message, "M_UNAUTHORIZED")
