"""What holds for every endpoint of the Server-Server API: who must sign, and how others are refused."""

import re

import pytest

from homeserver.config import API
from tests.client import Server
from tests.federation.peer import Peer
from tests.openapi import SERVERS, specification

UNSIGNED = {
    "/_matrix/federation/v1/version",
    "/_matrix/federation/v1/openid/userinfo",
    "/_matrix/federation/v1/3pid/onbind",
    "/_matrix/key/v2/server",
    "/_matrix/key/v2/server/{key_id}",
    "/_matrix/key/v2/query",
    "/_matrix/key/v2/query/{server_name}",
    "/_matrix/key/v2/query/{server_name}/{key_id}",
}
"""What is asked by those who have no key, or need one first."""
WITHIN_ANOTHER_API = {"getWellKnown"}
"""Served with what clients ask for."""
ELSEWHERE = {"askPolicyServerToSign", "queryInfo"}
"""Being a policy server is optional; what other queries there may be, the specification does not say."""

PARAMETER = re.compile(r"\{[^}]+\}")


def endpoints(server: Server) -> list[tuple[str, str]]:
    return [(route.method, route.path) for route in server.application.listening.routes[API.FEDERATION]]


def filled(path: str) -> str:
    return PARAMETER.sub("%21x%3Ahearth.test", path)


async def test_every_endpoint_of_the_specification_is_served(server: Server) -> None:
    served = {(method, PARAMETER.sub("{}", path)) for method, path in endpoints(server)}
    wanted = {
        (operation.method, PARAMETER.sub("{}", operation.template)): operation.name
        for operation in specification(SERVERS).operations
    }

    assert {name for at, name in wanted.items() if at not in served} == WITHIN_ANOTHER_API | ELSEWHERE


async def test_every_other_endpoint_must_be_asked_with_a_signature(server: Server) -> None:
    stranger = Peer(server)  # whose key nobody knows
    for method, path in endpoints(server):
        if path in UNSIGNED:
            continue
        body = None if method == "GET" else b"{}"

        unsigned = await stranger.send(method, filled(path), body)
        unknown = await stranger.send(method, filled(path), body, stranger.header(method, filled(path), body))

        for answer in (unsigned, unknown):
            assert (answer.status, answer.body["errcode"]) == (401, "M_UNAUTHORIZED"), path


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_another_method_is_refused_as_such(server: Server, method: str) -> None:
    for path in {path for _, path in endpoints(server)}:
        answer = await Peer(server).send(method, filled(path), None)

        assert (answer.status, answer.body["errcode"]) == (405, "M_UNRECOGNIZED"), path


@pytest.mark.parametrize(
    "path", ["federation/v1/nonsense", "federation/v3/send/1", "key/v2/nonsense", "policy/v2/sign"]
)
async def test_an_unknown_endpoint_is_not_recognized(server: Server, path: str) -> None:
    peer = await Peer(server).trust()

    answer = await peer.request("GET", f"/_matrix/{path}")

    assert (answer.status, answer.body["errcode"]) == (404, "M_UNRECOGNIZED")
