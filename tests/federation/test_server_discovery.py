"""Resolving server names: every step of the specification, with real servers for `.well-known`."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federation.outbound.name_lookup import Service
from federation.outbound.server_discovery import Ports, ServerDiscovery, Target, lifetime_of
from federation.protocol.types import ServerName
from tests.federation.authority import Authority
from tests.federation.https_servers import (
    AnswerFunction,
    Names,
    Place,
    Request,
    Write,
    an_egress,
    https_server,
    json_answer,
    redirect_to,
    whole_answer,
)

FAR = ServerName("far.test")
FED, OLD = "_matrix-fed._tcp.", "_matrix._tcp."
Services = Mapping[str, Sequence[Service] | None]
NOT_FOUND = whole_answer(b"no", status=404)


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class World:
    """far.test's web server, and discovery with a clock."""

    def __init__(self, place: Place, discovery: ServerDiscovery, clock: Clock, names: Names) -> None:
        self.place, self.discovery, self.clock, self.names = place, discovery, clock, names
        self.answer: AnswerFunction = NOT_FOUND

    async def find(self) -> list[Target]:
        """Where far.test is."""
        return await self.discovery.find(FAR)

    @property
    def asked(self) -> int:
        """How often far.test was asked for its delegation."""
        return len(self.place.requests)


@asynccontextmanager
async def a_world(
    authority: Authority, answer: AnswerFunction = NOT_FOUND, services: Services | None = None, name: str = "far.test"
) -> AsyncIterator[World]:
    """`answer` is what far.test says to every request, until `World.answer` is another."""

    async def current(request: Request, write: Write) -> None:
        await world.answer(request, write)

    addresses = {"far.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}
    async with (
        https_server(authority, name, "other.test", answer=current) as place,
        an_egress(authority, addresses, services=services) as egress,
    ):
        clock = Clock()
        discovery = ServerDiscovery(egress, now=clock, ports=Ports(https=place.port))
        names = egress.lookup
        assert isinstance(names, Names)
        world = World(place, discovery, clock, names)
        world.answer = answer
        yield world
        await discovery.close()


def delegation(to: str, *headers: str) -> AnswerFunction:
    """A valid answer."""
    return json_answer({"m.server": to}, headers=headers)


# --- steps 1 and 2: nothing is asked


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("1.2.3.4", Target("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),
        ("1.2.3.4:5", Target("1.2.3.4", 5, "1.2.3.4:5", "1.2.3.4")),
        ("[2a00::1]", Target("2a00::1", 8448, "[2a00::1]", "2a00::1")),
        ("[2a00::1]:5", Target("2a00::1", 5, "[2a00::1]:5", "2a00::1")),
        ("far.test:5", Target("far.test", 5, "far.test:5", "far.test")),
    ],
)
async def test_addresses_and_ports_stand_for_themselves(authority: Authority, name: str, target: Target) -> None:
    async with a_world(authority) as world:
        assert await world.discovery.find(ServerName(name)) == [target]
        assert (world.names.asked, world.asked) == ([], 0)


def test_an_ipv6_address_has_brackets_in_a_url() -> None:
    assert Target("2a00::1", 5, "", "").authority == "[2a00::1]:5"
    assert Target("far.test", 5, "", "").authority == "far.test:5"


# --- step 3: the delegation


@pytest.mark.parametrize(
    ("delegated", "target"),
    [
        ("1.2.3.4", Target("1.2.3.4", 8448, "1.2.3.4", "1.2.3.4")),  # 3.1
        ("[2a00::1]:5", Target("2a00::1", 5, "[2a00::1]:5", "2a00::1")),
        ("matrix.far.test:443", Target("matrix.far.test", 443, "matrix.far.test:443", "matrix.far.test")),  # 3.2
        ("matrix.far.test", Target("matrix.far.test", 8448, "matrix.far.test", "matrix.far.test")),  # 3.5
    ],
)
async def test_a_delegation(authority: Authority, delegated: str, target: Target) -> None:
    # A service of the server itself does not count once it delegates.
    async with a_world(authority, delegation(delegated), {FED + "far.test": [Service("wrong.test", 1)]}) as world:
        assert await world.find() == [target]
        assert world.place.requests[0].path == "/.well-known/matrix/server"
        assert FED + "far.test" not in world.names.asked


async def test_a_delegation_to_services(authority: Authority) -> None:
    services = {
        FED + "matrix.far.test": [Service("one.test", 1), Service("two.test", 2)],
        OLD + "matrix.far.test": [Service("old.test", 3)],
    }
    async with a_world(authority, delegation("matrix.far.test"), services) as world:
        assert await world.find() == [
            Target("one.test", 1, "matrix.far.test", "matrix.far.test"),
            Target("two.test", 2, "matrix.far.test", "matrix.far.test"),
        ]


async def test_a_delegation_to_an_old_service(authority: Authority) -> None:
    services = {OLD + "matrix.far.test": [Service("old.test", 3)]}
    async with a_world(authority, delegation("matrix.far.test"), services) as world:
        assert await world.find() == [Target("old.test", 3, "matrix.far.test", "matrix.far.test")]


async def test_redirects_lead_to_the_delegation(authority: Authority) -> None:
    async def answer(request: Request, write: Write) -> None:
        if request.headers["host"].startswith("far.test"):
            await redirect_to(f"https://other.test:{request.headers['host'].partition(':')[2]}/there")(request, write)
        else:
            await delegation("matrix.far.test:1")(request, write)

    async with a_world(authority, answer) as world:
        assert [target.host for target in await world.find()] == ["matrix.far.test"]


# --- steps 4 to 6: no valid delegation

DEEP = b'{"m.server":"deep.test:1","x":' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize(
    "answer",
    [
        NOT_FOUND,
        json_answer({"m.server": "wrong.test:1"}, status=500),
        whole_answer(b"<html>"),
        whole_answer(b""),
        json_answer([]),
        json_answer({}),
        json_answer({"m.server": 5}),
        json_answer({"m.server": "not a name"}),
        json_answer({"m.server": "https://wrong.test"}),
        json_answer({"m.server": "wrong.test:99999"}),
        whole_answer(b'{"m.server":"a.test:1","m.server":"b.test:1"}'),
        whole_answer(b'{"m.server":"wrong.test:1"' + b" " * 60_000 + b"}"),
        whole_answer(DEEP),
        redirect_to("/.well-known/matrix/server"),
        redirect_to("http://other.test/"),
        redirect_to("https://10.0.0.1/"),
    ],
)
async def test_without_a_valid_delegation_the_name_itself_counts(authority: Authority, answer: AnswerFunction) -> None:
    async with a_world(authority, answer) as world:
        assert await world.find() == [Target("far.test", 8448, "far.test", "far.test")]
        assert world.asked >= 1


async def test_nobody_else_can_delegate(authority: Authority) -> None:
    async with a_world(authority, delegation("wrong.test:1"), name="wrong.test") as world:
        assert await world.find() == [Target("far.test", 8448, "far.test", "far.test")]


@pytest.mark.parametrize(
    ("services", "places"),
    [
        ({FED: [Service("a.test", 1)], OLD: [Service("b.test", 2)]}, [("a.test", 1)]),  # 4
        ({OLD: [Service("b.test", 2)]}, [("b.test", 2)]),  # 5
        ({FED: None, OLD: [Service("b.test", 2)]}, [("b.test", 2)]),
        ({FED: None, OLD: None}, [("far.test", 8448)]),  # 6
    ],
)
async def test_services_of_the_name_itself(
    authority: Authority, services: Services, places: list[tuple[str, int]]
) -> None:
    named = {service + "far.test": found for service, found in services.items()}
    async with a_world(authority, services=named) as world:
        targets = await world.find()

    assert [(target.host, target.port) for target in targets] == places
    assert {(target.host_header, target.tls_name) for target in targets} == {("far.test", "far.test")}


# --- what is remembered

HOUR = 3600.0


@pytest.mark.parametrize(
    ("headers", "lifetime"),
    [
        ((), 24 * HOUR),
        (("Cache-Control: public, max-age=7200",), 2 * HOUR),
        (("Cache-Control: max-age=7200", "Age: 3600"), HOUR),
        (("Cache-Control: max-age=7200", "Age: many"), 2 * HOUR),
        (("Cache-Control: max-age=99999999999999999999",), 48 * HOUR),
        (("Cache-Control: max-age=1000000",), 48 * HOUR),
        (("Cache-Control: max-age=0",), 300.0),
        (("Cache-Control: no-store",), 300.0),
        (("Cache-Control: private, no-cache, max-age=7200",), 300.0),
        (("Expires: 0",), 300.0),
        (("Cache-Control: max-age=7200", "Expires: 0"), 2 * HOUR),
        (("Cache-Control: ???",), 24 * HOUR),
    ],
)
async def test_a_delegation_is_remembered_as_long_as_it_says(
    authority: Authority, headers: Sequence[str], lifetime: float
) -> None:
    async with a_world(authority, delegation("one.test:1", *headers)) as world:
        await world.find()
        world.answer = delegation("two.test:1")
        world.clock.seconds += lifetime - 2
        assert [target.host for target in await world.find()] == ["one.test"]
        world.clock.seconds += 4
        assert [target.host for target in await world.find()] == ["two.test"]
        assert world.asked == 2


async def test_a_delegation_that_expires_at_a_date(authority: Authority) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    async with a_world(authority, delegation("one.test:1", f"Expires: {soon}")) as world:
        await world.find()
        world.clock.seconds += 1.9 * HOUR
        await world.find()
        assert world.asked == 1
        world.clock.seconds += 0.2 * HOUR
        await world.find()
        assert world.asked == 2


async def test_errors_are_remembered_for_longer_and_longer_up_to_an_hour(authority: Authority) -> None:
    async with a_world(authority) as world:
        await world.find()
        pauses = []
        for _ in range(10):
            before, asked = world.clock.seconds, world.asked
            while world.asked == asked:
                world.clock.seconds += 30
                await world.find()
            pauses.append(world.clock.seconds - before)
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


async def test_a_delegation_outlives_a_time_in_which_the_web_server_is_broken(authority: Authority) -> None:
    async with a_world(authority, delegation("one.test:1", "Cache-Control: max-age=3600")) as world:
        await world.find()
        world.answer = NOT_FOUND
        world.clock.seconds += 2 * HOUR
        assert [target.host for target in await world.find()] == ["one.test"]
        world.clock.seconds += 48 * HOUR
        assert [target.host for target in await world.find()] == ["far.test"]
        world.answer = delegation("two.test:1")
        world.clock.seconds += HOUR
        assert [target.host for target in await world.find()] == ["two.test"]


async def test_those_who_ask_at_the_same_time_share_one_answer(authority: Authority) -> None:
    async with a_world(authority, delegation("one.test:1")) as world:
        first = asyncio.create_task(world.find())
        others = [asyncio.create_task(world.find()) for _ in range(20)]
        await asyncio.sleep(0)
        first.cancel()
        found = await asyncio.gather(*others)
        assert {targets[0].host for targets in found} == {"one.test"}
        assert world.asked == 1


async def test_who_gives_up_does_not_end_the_search(authority: Authority) -> None:
    go_on = asyncio.Event()

    async def answer(request: Request, write: Write) -> None:
        await go_on.wait()
        await delegation("one.test")(request, write)

    async with a_world(authority, answer, {FED + "one.test": [Service("a.test", 1)]}) as world:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await world.find()
        go_on.set()
        assert [target.host for target in await world.find()] == ["a.test"]
        assert world.asked == 1


async def test_services_are_remembered_for_a_while(authority: Authority) -> None:
    services = {FED + "far.test": [Service("a.test", 1)]}
    async with a_world(authority, services=services) as world:
        for _ in range(3):
            await world.find()
        assert world.names.asked.count(FED + "far.test") == 1
        world.clock.seconds += 301
        await world.find()
        assert world.names.asked.count(FED + "far.test") == 2


async def test_a_server_that_was_not_found_where_it_was_is_looked_up_anew_soon(authority: Authority) -> None:
    async with a_world(authority, delegation("one.test")) as world:
        await world.find()
        world.answer = delegation("two.test")
        world.discovery.forget(FAR)
        world.clock.seconds += 301
        assert [target.host for target in await world.find()] == ["two.test"]


HEADER = st.one_of(
    st.text(max_size=100),
    st.lists(
        st.sampled_from(
            ["max-age=", "no-store", "99", "9" * 30, ",", '"', " ", "=", "Mon", "01 Jan", "2030", "00:00:00", "+9999"]
        )
    ).map("".join),
)


@given(HEADER, HEADER, HEADER)
@example("", "", "Feb 31 99:9901 99999999999999999999 01 ")
def test_whatever_the_headers_say_a_delegation_is_kept_within_bounds(control: str, age: str, expires: str) -> None:
    assert 300 <= lifetime_of({"Cache-Control": control, "Age": age}) <= 48 * HOUR
    assert 300 <= lifetime_of({"Expires": expires}) <= 48 * HOUR
