"""The `m.room.member` branch of the authorisation rules: 5, in versions 6 to 11 rule 4."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from msgspec import Struct

from federation.protocol.auth_events import JOIN_RULES, third_party_token
from federation.protocol.errors import AuthRuleViolated, InvalidInput
from federation.protocol.event_hashes import decode_base64
from federation.protocol.identifiers import is_user_id, server_name_of
from federation.protocol.pdu import PDU
from federation.protocol.power_levels import PowerLevels, get_creators
from federation.protocol.signatures import is_signature_of, signed_bytes
from federation.protocol.types import JsonObject, StateKey

_MAX_KEYS = 16
_MAX_SIGNATURES = 16


def check_membership(pdu: PDU, state: Mapping[StateKey, PDU], create: PDU, levels: PowerLevels, rule: int) -> None:
    """Raise AuthRuleViolated unless the sender may give the target this membership; `rule` is this rule's number.

    Whether the server of `join_authorised_via_users_server` signed validly is checked with the other signatures; here
    its signature must be there.
    """
    content, rules = pdu.content, pdu.rules
    if pdu.state_key is None or "membership" not in content:
        raise AuthRuleViolated(f"{rule}.1", "A membership has a state key and a membership")
    first = 2
    if rules.restricted_joins:
        first = 3
        if "join_authorised_via_users_server" in content:
            _check_authoriser_signed(pdu, f"{rule}.2.1")
    numbers = {"join": first, "invite": first + 1, "leave": first + 2, "ban": first + 3}
    if rules.knocking:
        numbers["knock"] = first + 4
    membership = content["membership"]
    number = numbers.get(membership) if isinstance(membership, str) else None
    if number is None:
        raise AuthRuleViolated(f"{rule}.{first + len(numbers)}", "The membership is not known")
    _CHECKS[membership](_Change(pdu, pdu.state_key, state, create, levels, f"{rule}.{number}"))


class _Change(Struct, frozen=True):
    """A change of one membership and what decides on it."""

    pdu: PDU
    target: str
    state: Mapping[StateKey, PDU]
    create: PDU
    levels: PowerLevels
    rule: str

    def reject(self, number: str, message: str) -> AuthRuleViolated:
        return AuthRuleViolated(f"{self.rule}.{number}", message)

    def membership_of(self, user_id: str) -> object:
        """The membership in the state: `leave` without one."""
        member = self.state.get(("m.room.member", user_id))
        return "leave" if member is None else member.content.get("membership")

    @property
    def is_own(self) -> bool:
        return self.pdu.sender == self.target

    @property
    def join_rule(self) -> object:
        """`invite` when nothing says otherwise."""
        join_rules = self.state.get(JOIN_RULES)
        return "invite" if join_rules is None else join_rules.content.get("join_rule")

    def may_sender(self, level: int) -> bool:
        return self.levels.of_user(self.pdu.sender) >= level

    @property
    def sender_outranks_target(self) -> bool:
        return self.levels.of_user(self.target) < self.levels.of_user(self.pdu.sender)


def _check_authoriser_signed(pdu: PDU, rule: str) -> None:
    authoriser = pdu.content["join_authorised_via_users_server"]
    signatures = pdu.json.get("signatures")
    if not is_user_id(authoriser) or not isinstance(signatures, dict) or not signatures.get(server_name_of(authoriser)):
        raise AuthRuleViolated(rule, "The server that authorised the join has not signed it")


def _check_join(change: _Change) -> None:
    pdu, rules = change.pdu, change.pdu.rules
    if pdu.prev_event_ids == (change.create.event_id,) and change.target in _first_joiners(change.create):
        return  # .1
    if not change.is_own:
        raise change.reject("2", "Nobody can join somebody else")
    membership, join_rule = change.membership_of(pdu.sender), change.join_rule
    if membership == "ban":
        raise change.reject("3", f"{pdu.sender} is banned")
    if join_rule == "public":
        return
    is_asked = membership in ("join", "invite")
    if (join_rule == "restricted" and rules.restricted_joins) or (
        join_rule == "knock_restricted" and rules.knock_restricted
    ):
        if not is_asked:
            _check_authoriser(change)  # .5
        return
    if is_asked and (join_rule == "invite" or (join_rule == "knock" and rules.knocking)):
        return  # .4
    raise change.reject("7" if rules.restricted_joins else "6", f"{pdu.sender} may not join")


def _first_joiners(create: PDU) -> frozenset[str]:
    """Who may join right after the create event: not the additional creators of version 12."""
    return frozenset((create.sender,)) if create.rules.implicit_creator else get_creators(create)


def _check_authoriser(change: _Change) -> None:
    authoriser = change.pdu.content.get("join_authorised_via_users_server")
    if (
        not isinstance(authoriser, str)
        or change.membership_of(authoriser) != "join"
        or change.levels.of_user(authoriser) < change.levels.invite
    ):
        raise change.reject("5.2", "Nobody who may invite has authorised the join")


def _check_invite(change: _Change) -> None:
    pdu = change.pdu
    if "third_party_invite" in pdu.content:
        _check_third_party_invite(change)  # .1
        return
    if change.membership_of(pdu.sender) != "join":
        raise change.reject("2", f"{pdu.sender} is not in the room")
    if change.membership_of(change.target) in ("join", "ban"):
        raise change.reject("3", f"{change.target} is in the room or banned")
    if not change.may_sender(change.levels.invite):
        raise change.reject("5", f"{pdu.sender} may not invite")


def _check_third_party_invite(change: _Change) -> None:
    pdu = change.pdu
    if change.membership_of(change.target) == "ban":
        raise change.reject("1.1", f"{change.target} is banned")
    third_party_invite = pdu.content["third_party_invite"]
    signed = third_party_invite.get("signed") if isinstance(third_party_invite, dict) else None
    if not isinstance(signed, dict):
        raise change.reject("1.2", "The third-party invite is not signed")
    token = third_party_token(pdu.content)
    if token is None or "mxid" not in signed:
        raise change.reject("1.3", "The third-party invite lacks mxid or token")
    if signed["mxid"] != change.target:
        raise change.reject("1.4", "The third-party invite is for another user")
    promise = change.state.get(("m.room.third_party_invite", token))
    if promise is None:
        raise change.reject("1.5", "The room has no such third-party invite")
    if promise.sender != pdu.sender:
        raise change.reject("1.6", "The third-party invite is another user's")
    if not _is_signed(signed, promise.content):
        raise change.reject("1.8", "No key of the third-party invite has signed")


def _check_leave(change: _Change) -> None:
    sender, levels = change.pdu.sender, change.levels
    membership = change.membership_of(change.target)
    if change.is_own:
        if membership in ("invite", "join") or (membership == "knock" and change.pdu.rules.knocking):
            return
        raise change.reject("1", f"{sender} has nothing to leave")
    if change.membership_of(sender) != "join":
        raise change.reject("2", f"{sender} is not in the room")
    if membership == "ban" and not change.may_sender(levels.ban):
        raise change.reject("3", f"{sender} may not lift bans")
    if not (change.may_sender(levels.kick) and change.sender_outranks_target):
        raise change.reject("5", f"{sender} may not remove {change.target}")


def _check_ban(change: _Change) -> None:
    sender = change.pdu.sender
    if change.membership_of(sender) != "join":
        raise change.reject("1", f"{sender} is not in the room")
    if not (change.may_sender(change.levels.ban) and change.sender_outranks_target):
        raise change.reject("3", f"{sender} may not ban {change.target}")


def _check_knock(change: _Change) -> None:
    """Since version 7."""
    join_rule = change.join_rule
    if join_rule != "knock" and not (join_rule == "knock_restricted" and change.pdu.rules.knock_restricted):
        raise change.reject("1", "The room cannot be knocked on")
    if not change.is_own:
        raise change.reject("2", "Nobody can knock for somebody else")
    if change.membership_of(change.target) in ("ban", "invite", "join"):
        raise change.reject("4", f"{change.target} is banned, invited or in the room")


_CHECKS: Mapping[str, Callable[[_Change], None]] = {
    "join": _check_join,
    "invite": _check_invite,
    "leave": _check_leave,
    "ban": _check_ban,
    "knock": _check_knock,
}


def _is_signed(signed: JsonObject, promise: JsonObject) -> bool:
    """Whether any Ed25519 signature is of any key in the promise; of each only the first 16 are tried."""
    try:
        message = signed_bytes(signed)
    except InvalidInput:
        return False
    signatures = list(islice(_signatures(signed.get("signatures")), _MAX_SIGNATURES))
    return any(
        is_signature_of(signature, message, key)
        for key in islice(_public_keys(promise), _MAX_KEYS)
        for signature in signatures
    )


def _public_keys(promise: JsonObject) -> Iterator[bytes]:
    public_keys = promise.get("public_keys")
    entries = public_keys if isinstance(public_keys, list) else []
    for entry in (promise, *entries):
        text = entry.get("public_key") if isinstance(entry, dict) else None
        key = decode_base64(text) if isinstance(text, str) else None
        if key is not None:
            yield key


def _signatures(signatures: object) -> Iterator[object]:
    for by_key in signatures.values() if isinstance(signatures, dict) else ():
        for key_id, signature in by_key.items() if isinstance(by_key, dict) else ():
            if key_id.startswith("ed25519:"):
                yield signature
