"""Every operation of the Client-Server API is served, but those of what this server does not do yet, by name."""

import re

import pytest

from tests import openapi
from tests.client import Server

UPSTREAM_SIGN_ON = ("redirectToSSO", "redirectToIdP")
OAUTH = ("getAuthMetadata",)
APPLICATION_SERVICES = (
    "getProtocols",
    "getProtocolMetadata",
    "queryLocationByProtocol",
    "queryLocationByAlias",
    "queryUserByProtocol",
    "queryUserByID",
)
NOT_SERVED = frozenset((*UPSTREAM_SIGN_ON, *OAUTH, *APPLICATION_SERVICES))

OPERATIONS = openapi.Specification(openapi.INCLUDED).operations


def test_the_operations_are_those_of_the_specification() -> None:
    assert len(OPERATIONS) == 166
    assert {operation.name for operation in OPERATIONS} >= NOT_SERVED


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_an_operation_is_served(server: Server, operation: openapi.Operation) -> None:
    path = re.sub(r"\{\w+\}", "x", operation.template)

    answer = await server.anonymous.request(operation.method.upper(), path)

    is_recognized = answer.body.get("errcode") != "M_UNRECOGNIZED" if isinstance(answer.body, dict) else True
    assert is_recognized is (operation.name not in NOT_SERVED)
