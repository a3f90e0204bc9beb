"""What servers say to each other, held to the specification's schemas: every answer that a peer of the tests gets, and
every request that a server under test sends.

What is wrong with a request is noted, and told when the test ends (`conftest.py`): raised where the request is sent, it
would be taken for another server's failure.
"""

from typing import Any
from urllib.parse import parse_qsl

import orjson
from yarl import URL

from federation.outbound.egress import Egress, EgressRequest, EgressStream
from tests.openapi import SERVERS, Operation, directory, specification

NOTED: list[str] = []
"""What is wrong with requests that were sent since the test began."""

_EVENTS = ("pdus", "auth_chain", "state", "events", "knock_room_state")
"""Members of answers, and of transactions, that hold events."""
_DEFINITIONS = directory() / "api" / SERVERS / "definitions"
_KINDS_OF_PDU = ("pdu_v1", "pdu_v3", "pdu_v4", "pdu_v6", "pdu_v11", "pdu_v12")
_WHOLE_EVENTS = frozenset(("sendJoinV2", "sendLeaveV2", "sendKnock"))
_INVITES = frozenset(("sendInviteV1", "sendInviteV2"))


def check_answer(method: str, uri: str, status: int, body: Any) -> None:
    """Raise AssertionError unless this is an answer that the specification has for the request."""
    path = URL(uri, encoded=True).raw_path
    whole = specification(SERVERS)
    operation = whole.find(method, path)
    if isinstance(body, bytes) or operation is None:
        return
    if operation.name in _INVITES and status == 200:  # what we gave back is what we got
        *ok, told = body if isinstance(body, list) else [body]
        told = {"event": {"origin": "", **told["event"]}}
        body = [*ok, told] if ok else told
    whole.check(method, path, status, body)
    if status == 200 and isinstance(body, dict):
        for event in _events_in(operation, body):
            check_pdu(event)


def check_request(method: str, uri: str, content: bytes | None) -> None:
    """Raise AssertionError where the specification has this request otherwise."""
    url = URL(uri, encoded=True)
    whole = specification(SERVERS)
    operation = whole.find(method, url.raw_path)
    if operation is None:
        return  # what older servers are asked, among others
    body: Any = None if content is None else orjson.loads(content)
    whole.check_request(method, url.raw_path, parse_qsl(url.raw_query_string, keep_blank_values=True), body)
    if operation.name in _WHOLE_EVENTS:
        check_pdu(body)
    if operation.name == "sendTransaction":
        assert len(body["pdus"]) <= 50, "too many PDUs"
        assert len(body.get("edus", ())) <= 100, "too many EDUs"
        for event in body["pdus"]:
            check_pdu(event)
        for edu in body.get("edus", ()):
            check_edu(edu)
    if operation.name in _INVITES:
        check_pdu(body.get("event", body))
        for event in body.get("invite_room_state", body.get("unsigned", {}).get("invite_room_state")):
            check_pdu(event)


def check_pdu(event: Any) -> None:
    """Raise AssertionError unless this is an event of some room version."""
    wrong = []
    for kind in _KINDS_OF_PDU:
        try:
            specification(SERVERS).check_value(kind, (_DEFINITIONS / f"{kind}.yaml").as_uri(), event)
        except AssertionError as error:
            wrong.append(str(error))
        else:
            return
    if event.get("type") == "m.room.create" and all("'room_id' is a required" in each for each in wrong[-1:]):
        return  # from version 12 on; the schema says so in words alone
    raise AssertionError(f"{event} is no event: {wrong}")


def check_edu(edu: Any) -> None:
    """Raise AssertionError unless this is an EDU of a kind that the specification has."""
    file = _DEFINITIONS / "event-schemas" / f"{edu['edu_type']}.yaml"
    assert file.exists(), f"{edu['edu_type']} is no EDU"
    specification(SERVERS).check_value(edu["edu_type"], file.as_uri(), edu)
    if edu["edu_type"] == "m.direct_to_device":
        assert len(edu["content"]["message_id"]) <= 32, "the message ID is too long"


def watch(egress: Egress) -> None:
    """Hold to the specification whatever is sent to other servers from now on."""
    send = egress.open

    async def open_watched(request: EgressRequest) -> EgressStream:
        try:
            check_request(request.method, request.url, request.body)
        except AssertionError as error:
            NOTED.append(str(error))
        return await send(request)

    egress.open = open_watched  # type: ignore[method-assign]  # seen where it leaves the server


def _events_in(operation: Operation, body: dict[str, Any]) -> list[Any]:
    if operation.name.startswith("make"):
        return []
    events = [event for name in _EVENTS if isinstance(body.get(name), list) for event in body[name]]
    return [*events, body["event"]] if "event" in body else events
