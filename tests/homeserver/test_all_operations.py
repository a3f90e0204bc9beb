"""Every operation of the Client-Server API is served, but those of what this server does not do yet, by name."""

import dataclasses
import re

import pytest

from homeserver.config import RateLimit, RateLimits
from tests import openapi
from tests.client import Server
from tests.servers import running

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


@pytest.mark.one_process("each process has budgets of its own here")
async def test_what_the_specification_limits_has_a_budget(conninfo: str) -> None:
    names = [field.name for field in dataclasses.fields(RateLimits) if field.name != "enabled"]
    limits = dataclasses.replace(RateLimits(), **dict.fromkeys(names, RateLimit(0.0001, 1)))  # type: ignore[arg-type]  # all are of this type
    async with running(conninfo, rate_limits=limits) as server:
        alice, unlimited = await server.register("alice"), list[str]()
        for operation in OPERATIONS:
            if "429" not in operation.responses or operation.name in NOT_SERVED:
                continue
            path = re.sub(r"\{\w+\}", "x", operation.template)
            await alice.request(operation.method.upper(), path)
            if (await alice.request(operation.method.upper(), path)).status != 429:
                unlimited.append(operation.name)

    assert unlimited == []
