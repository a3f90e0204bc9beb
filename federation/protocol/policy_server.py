"""Policy servers as other servers in the room see them (Server-Server API v1.18, "Policy Servers"). Pure."""

from msgspec import Struct
from msgspec.structs import replace

from federation.protocol import canonical_json, event_format, signatures
from federation.protocol.errors import Forbidden, TooLarge
from federation.protocol.event_hashes import decode_base64
from federation.protocol.pdu import PDU, VerifiedPDU
from federation.protocol.signatures import POLICY_SERVER_KEY
from federation.protocol.types import JsonObject, ServerName, StateKey

POLICY: StateKey = ("m.room.policy", "")
"""The state event that names a room's policy server. It alone is not shown to it."""


class PolicyServer(Struct, frozen=True):
    """What a valid `m.room.policy` names. The room uses it while one of the server's users is joined."""

    server_name: ServerName
    public_key: bytes
    """What its recommendations are signed with; empty where the room names what is no key, and so no event will do."""


def read(content: JsonObject) -> PolicyServer | None:
    """The policy server that the content of an `m.room.policy` names; None for content that is not valid."""
    via, keys = content.get("via"), content.get("public_keys")
    key = keys.get("ed25519") if isinstance(keys, dict) else None
    if not isinstance(via, str) or not isinstance(key, str):
        return None
    return PolicyServer(ServerName(via), decode_base64(key) or b"")


def is_policy(pdu: PDU) -> bool:
    """Whether the event is the room's `m.room.policy` itself."""
    return (pdu.type, pdu.state_key) == POLICY


def is_endorsed(pdu: PDU, policy: PolicyServer) -> bool:
    """Whether the policy server recommends the event, by its signature, or needs not be asked."""
    return is_policy(pdu) or signatures.is_signed_with(pdu, policy.server_name, POLICY_SERVER_KEY, policy.public_key)


def endorsed(pdu: VerifiedPDU, policy: PolicyServer, answer: JsonObject) -> VerifiedPDU:
    """The event with the signature that the policy server answered, added to those that it has.

    Nothing else is taken from the answer. Raises Forbidden where there is none in it that holds, TooLarge where the
    event has no room for it.
    """
    given = answer.get(policy.server_name)
    signature = given.get(POLICY_SERVER_KEY) if isinstance(given, dict) else None
    if not isinstance(signature, str):
        raise Forbidden(f"The policy server {policy.server_name} did not sign the event")
    json = signatures.with_signature(pdu.json, policy.server_name, POLICY_SERVER_KEY, signature)
    signed = replace(pdu, json=json, canonical=canonical_json.encode(json))
    if not is_endorsed(signed, policy):
        raise Forbidden(f"The signature of the policy server {policy.server_name} is not by the room's key for it")
    if len(signed.canonical) > event_format.MAX_EVENT_BYTES:
        raise TooLarge("The event is too large once the policy server has signed it")
    return signed
