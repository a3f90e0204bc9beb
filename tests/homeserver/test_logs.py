"""How a log line looks, and which request it belongs to."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import orjson
import pytest

from federation.protocol.types import UserID
from federation.web import Answer, Call, Route
from homeserver import logs
from homeserver.config import API, Listener, LogFormat, Logging
from homeserver.listening import Listening
from homeserver.services.requester import Requester
from tests.client import Server
from tests.rooms import create_room, send


def record(**fields: object) -> logging.LogRecord:
    values = {
        "name": "storage.log",
        "levelno": 30,
        "levelname": "WARNING",
        "msg": "slow: %d",
        "args": (3,),
        "created": 0.5,
    }
    return logging.makeLogRecord(values | fields | {"msecs": 500.0})


def test_text_has_time_level_logger_message_and_fields() -> None:
    line = logs.TextFormatter().format(record(room_id="!a:b"))
    assert line == "1970-01-01T00:00:00.500Z WARNING storage.log: slow: 3 room_id=!a:b"


def test_json_is_one_object_a_line() -> None:
    line = logs.JSONFormatter().format(record(room_id="!a:b", msg="two\nlines", args=()))
    assert "\n" not in line
    assert orjson.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "storage.log",
        "message": "two\nlines",
        "room_id": "!a:b",
    }


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JSONFormatter()])
def test_a_traceback_is_kept(formatter: logging.Formatter) -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        line = formatter.format(record(exc_info=(KeyError, error, error.__traceback__)))
    assert "KeyError: 'gone'" in line


def test_what_others_send_makes_no_lines_of_its_own() -> None:
    line = logs.TextFormatter().format(record(room_id="!a b\n2026 ERROR", msg="refused: %s", args=("x\ny",)))
    assert line.endswith(r'refused: x\ny room_id="!a b\n2026 ERROR"')


def test_no_text_is_too_strange_for_a_line() -> None:
    for formatter in (logs.TextFormatter(), logs.JSONFormatter()):
        formatter.format(record(room_id="\ud800", msg="two", args=())).encode()


class Lines(logging.Handler):
    """What a server writes, as it would be written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logs.set_up(Logging(format=LogFormat.JSON))
        [stream] = logging.getLogger().handlers
        self.setFormatter(stream.formatter)
        self.filters = stream.filters

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def of(self, logger: str) -> list[dict[str, str]]:
        """Those of one logger, as objects."""
        return [line for line in map(orjson.loads, self.lines) if line["logger"] == logger]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    lines = Lines()
    root.handlers[:] = [lines]
    root.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(capture=False)


async def speak(call: Call) -> Answer:
    """An endpoint that writes lines by itself, in a task and in a thread."""
    logger = logging.getLogger("test.speaking")
    call.context = Requester(user_id=UserID("@alice:hearth.test"), device_id=None, device=None)
    logger.info("one")
    await asyncio.sleep(0.01)
    await asyncio.gather(asyncio.create_task(_speak_later(logger)), asyncio.to_thread(logger.info, "three"))
    return {}


async def _speak_later(logger: logging.Logger) -> None:
    logger.info("two")


@asynccontextmanager
async def speaking(listener: Listener, routes: Sequence[Route] = ()) -> AsyncIterator[str]:
    listening = Listening({API.CLIENT: [Route("GET", "/speak/{room_id}", speak), *routes]})
    await listening.start([listener])
    try:
        yield f"http://127.0.0.1:{listening.ports[0]}"
    finally:
        await listening.stop()


LISTENER = Listener(address="127.0.0.1", port=0, apis=(API.CLIENT,))
BEHIND_PROXY = Listener(
    address="127.0.0.1", port=0, apis=(API.CLIENT,), behind_proxy=True, request_id_header="X-Request-ID"
)


async def ask(session: aiohttp.ClientSession, url: str, **headers: str) -> str:
    """The request's ID, as its answer says."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.get(url, headers=given) as answer:
        assert answer.status == 200
        return answer.headers["X-Request-ID"]


async def test_each_line_says_which_request_it_belongs_to(lines: Lines) -> None:
    async with speaking(LISTENER) as url, aiohttp.ClientSession() as session:
        rooms = [f"!room{number}:hearth.test" for number in range(8)]
        found = await asyncio.gather(*(ask(session, f"{url}/speak/{room_id}") for room_id in rooms))
        logging.getLogger("test.speaking").info("between requests")

    assert len(set(found)) == len(rooms)
    answered = lines.of("homeserver.listening")
    assert {line["request_id"] for line in answered} == set(found)
    assert all(line["message"].startswith("GET /speak/{room_id}: 200, ") for line in answered)
    *written, between = lines.of("test.speaking")
    for request_id, room_id in zip(found, rooms, strict=True):
        own = [line for line in written if line["request_id"] == request_id]
        assert {line["message"] for line in own} == {"one", "two", "three"}
        assert {line["room_id"] for line in own} == {room_id}
        assert {line["user_id"] for line in own} == {"@alice:hearth.test"}
    assert "request_id" not in between


async def test_only_a_proxy_that_is_configured_names_requests(lines: Lines) -> None:
    async with speaking(LISTENER) as url, aiohttp.ClientSession() as session:
        assert await ask(session, f"{url}/speak/x", X_Request_ID="theirs") != "theirs"
    async with speaking(BEHIND_PROXY) as url, aiohttp.ClientSession() as session:
        assert await ask(session, f"{url}/speak/x", X_Request_ID="ours-7") == "ours-7"
        assert lines.of("test.speaking")[-1]["request_id"] == "ours-7"
        for nonsense in ("with spaces", "x" * 129, "a;b", '"'):
            assert await ask(session, f"{url}/speak/x", X_Request_ID=nonsense) != nonsense


async def test_errors_have_an_id_too(lines: Lines) -> None:
    async def fail(_call: Call) -> Answer:
        raise RuntimeError("unforeseen")

    async with (
        speaking(LISTENER, [Route("GET", "/fail", fail)]) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/fail") as answer,
    ):
        assert answer.status == 500
        [line] = lines.of("federation.web")
        assert line["request_id"] == answer.headers["X-Request-ID"]
        assert "unforeseen" in line["traceback"]


async def test_no_token_and_no_content_is_written(server: Server, lines: Lines) -> None:
    alice = await server.register("alice")
    again = await alice.login()
    room_id = await create_room(alice)
    await send(alice, room_id, "a secret message")
    await server.anonymous.request("GET", "/v3/account/whoami", params={"access_token": again.access_token})
    await alice.request("PUT", f"/v3/rooms/{room_id}/send/m.room.message/1", b'{"body": "a secret message')
    await alice.request("PUT", f"/v3/rooms/{room_id}/state/x/", {"x": "a secret message", "y": 1.5})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.application.ports[0])
    writer.write(f"GET /_matrix/client/v3/sync?access_token={alice.access_token} nonsense\r\n\r\n".encode())
    await reader.read(10)
    writer.close()

    written = "\n".join(lines.lines)
    for secret in (alice.access_token, again.access_token, alice.password, "a secret message"):
        assert secret not in written
