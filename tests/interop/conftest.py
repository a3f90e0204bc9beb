"""One Synapse and one Hearth for the run: tests/scheduling.py has everything here run in one worker."""

from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.interop.border import Border, a_border
from tests.interop.people import Person

_HERE = Path(__file__).parent
_LOG_BYTES = 20_000


def pytest_itemcollected(item: pytest.Item) -> None:
    """Everything here speaks with other people's software."""
    if _HERE in item.path.parents:
        item.add_marker(pytest.mark.interoperability)


@pytest_asyncio.fixture(scope="session")
async def border(maintenance_conninfo: str) -> AsyncIterator[Border]:
    """The servers of this run, started when they are first asked for."""
    async with a_border(maintenance_conninfo) as border:
        yield border


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A failure's report tells what the servers said during the test."""
    report = yield
    arguments: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed and "logs" in arguments:
        for file in arguments["border"].log_sizes():
            with file.open("rb") as log:
                log.seek(arguments["logs"].get(file, 0))
                report.sections.append((f"{file.name} said", log.read()[-_LOG_BYTES:].decode(errors="replace")))
    return report


@pytest.fixture(autouse=True)
def logs(border: Border) -> dict[Path, int]:
    """How long the logs were when the test began."""
    return border.log_sizes()


@pytest_asyncio.fixture
async def alice(border: Border) -> Person:
    """Somebody new on Hearth."""
    return await border.person(await border.hearth(), "alice")


@pytest_asyncio.fixture
async def bob(border: Border) -> Person:
    """Somebody new on Synapse."""
    return await border.person(await border.synapse(), "bob")


@pytest.fixture(params=["hearth", "synapse"])
def host(request: pytest.FixtureRequest, alice: Person, bob: Person) -> Person:
    """Who makes the room: each test is told once from either side of the border."""
    return alice if request.param == "hearth" else bob


@pytest.fixture
def guest(host: Person, alice: Person, bob: Person) -> Person:
    """Somebody on the other side."""
    return bob if host is alice else alice
