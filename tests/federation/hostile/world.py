"""The stage of the campaign: a Hearth in its own process, the hostile server, an honest third, and what is measured.

    async with a_world(maintenance_conninfo, directory) as world:
        stage = await world.stage("11")
        ...
        await stage.check(cases)

`stage.check` looks for what must not be: in the database, in the room's state, in what its users see; and whether the
room still works for a user here and for the honest server, and another room, too.
"""

import asyncio
import itertools
import shutil
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
import psycopg
import yaml

from benchmarks.cluster import Databases
from benchmarks.hearth import Hearth
from benchmarks.peering import Peering
from federation.protocol import canonical_json
from federation.protocol.event_hashes import decode_base64
from federation.protocol.redaction import redact
from federation.protocol.room_versions import get_rules
from federation.protocol.signatures import is_signature_of
from federation.protocol.types import JsonObject
from storage.event_bytes import unpack
from storage.events import Flag
from tests.client import Client, quote
from tests.federation.answering_peer import Answerer, AnsweringPeer, listening
from tests.federation.authority import Authority
from tests.federation.hostile.faults import NONE, Fate, Fault, Forger, canonical
from tests.federation.listening_peer import ListeningPeer
from tests.federation.peer import Reached
from tests.federation.remote_room import RemoteRoom, join_room, push
from tests.federation.servers import free_port
from tests.rooms import create_room, send

PATIENCE_SECONDS = 10.0
"""For what a user does, and for what an honest server sends, to be done; however busy the machine is."""

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ServerProcess(Reached):
    """The server under attack, as other servers reach it."""

    name: str
    base_url: str
    anonymous: Client


@dataclass(frozen=True, slots=True)
class Case:
    """One fault on one way in."""

    path: str
    fault: Fault
    wire: bytes
    event_id: str
    """By which the event would be known; empty for what has none."""

    @property
    def name(self) -> str:
        """What is tried."""
        return f"{self.path}: {self.fault.name}"


class HonestServer(AnsweringPeer):
    """The third server: what it is sent becomes its newest."""

    def __init__(self, server: Reached, name: str) -> None:
        super().__init__(server, name)
        self.came = asyncio.Event()
        self.answers = {name: _knowing(answerer) for name, answerer in self.answers.items()}

    def _take(self, _path: Any, _query: Any, body: Any) -> Any:
        for pdu in body["pdus"]:
            for room in self.rooms:
                if pdu["room_id"] == room.room_id:
                    room.keep(pdu)
        self.came.set()
        return {"pdus": {}}

    async def until(self, event_id: str) -> None:
        """Wait until an event has come."""
        while self.find(event_id) is None:
            self.came.clear()
            await self.came.wait()


def _knowing(answerer: Answerer) -> Answerer:
    """The same, but 404 for what the server does not know."""

    def answer(path: list[str], query: dict[str, str], body: Any) -> Any:
        try:
            return answerer(path, query, body)
        except (StopIteration, LookupError):
            return None

    return answer


class HostileServer(AnsweringPeer):
    """The attacker; it takes what it is sent, and answers what a case says."""

    def __init__(self, server: Reached, name: str) -> None:
        super().__init__(server, name)
        self.answers = {name: _knowing(answerer) for name, answerer in self.answers.items()}


class _Target(Hearth):
    """May reach one address alone."""

    def command(self) -> Sequence[str | Path]:
        words = super().command()
        file = Path(words[-1])
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings["federation"]["allowed_ranges"] = ["127.0.0.1/32"]
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return words


@dataclass
class World:
    """All of it."""

    hearth: Hearth
    server: ServerProcess
    authority: Authority
    hostile: HostileServer
    honest: HonestServer
    visitor: Client
    database: psycopg.AsyncConnection[Any]
    stack: AsyncExitStack
    stages: dict[str, "Stage"] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    costs: dict[str, str] = field(default_factory=dict)
    """What floods took."""
    slowest: float = 0.0
    """For how long at most a local user or the honest server had to wait."""
    keys: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Of all servers in this world, by name."""
    start_rss: int = 0
    start_cpu: float = 0.0

    async def stage(self, version: str) -> "Stage":
        """The rooms of a version, made when they are first asked for."""
        if version not in self.stages:
            self.stages[version] = await Stage.made(self, version)
        return self.stages[version]

    async def add(self, peer: ListeningPeer) -> None:
        """One more server, until the end."""
        await peer.start()
        self.stack.push_async_callback(peer.stop)
        self.keys[peer.name] = (peer.key.key_id, peer.key.public_key)

    def note(self, case: Case | str, what: str) -> None:
        """Something that must not be."""
        self.wrong.append(f"{case if isinstance(case, str) else case.name}: {what}")

    def expect(self, holds: object, case: Case | str, what: str) -> None:
        """Note `what` unless it holds."""
        if not holds:
            self.note(case, what)

    # --- measuring

    def begin(self) -> None:
        """What is used from here on counts."""
        Path(f"/proc/{self.hearth.pid}/clear_refs").write_text("5", encoding="ascii")
        self.start_rss, self.start_cpu = self._status("VmRSS"), self._cpu()

    def grown_megabytes(self) -> float:
        """By how much the peak of memory is above what there was."""
        return (self._status("VmHWM") - self.start_rss) / 1024

    def cpu_seconds(self) -> float:
        """That the server spent."""
        return self._cpu() - self.start_cpu

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.hearth.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))

    def _cpu(self) -> float:
        times = psutil.Process(self.hearth.pid).cpu_times()
        return float(times.user + times.system)

    async def rows(self, statement: str, *values: Any) -> list[Any]:
        """What the server's database holds."""
        cursor = await self.database.execute(statement, values)
        return await cursor.fetchall()

    def errors(self) -> list[str]:
        """What the server logged as its own failure, and what follows in the log."""
        lines = self.hearth.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        first = next((number for number, line in enumerate(lines) if " ERROR " in line or "Traceback" in line), None)
        return [] if first is None else lines[first : first + 40]

    def summary(self) -> str:
        """The figures."""
        tried = ", ".join(f"{path} {count}" for path, count in self.tried.most_common())
        return (
            f"hostile server: {self.tried.total()} cases tried, {len(self.wrong)} wrong;"
            f" peak memory +{self.grown_megabytes():.0f} MB over {self.start_rss / 1024:.0f} MB,"
            f" {self.cpu_seconds():.1f} s of CPU, others waited at most {self.slowest:.2f} s\n{tried}"
            + "".join(f"\n  {name}: {cost}" for name, cost in self.costs.items())
        )


@dataclass
class Stage:
    """Rooms of one version: `room`, that all are in, and `other`, where the hostile server is not."""

    world: World
    version: str
    alice: Client
    room: RemoteRoom
    """As the hostile server has it."""
    honest: RemoteRoom
    other: RemoteRoom
    forger: Forger
    seen: set[str] = field(default_factory=set)
    since: str = ""

    @classmethod
    async def made(cls, world: World, version: str) -> "Stage":
        alice = await world.visitor.register("alice")
        levels = {"events": {"test.state": 0}}
        room_id = await create_room(
            alice, preset="public_chat", room_version=version, power_level_content_override=levels
        )
        other_id = await create_room(alice, preset="public_chat", room_version=version)
        honest = await join_room(world.honest, room_id, version)
        other = await join_room(world.honest, other_id, version)
        world.honest.rooms += [honest, other]
        room = await join_room(world.hostile, room_id, version)
        world.hostile.rooms.append(room)
        forger = Forger(
            name=world.hostile.name,
            key=world.hostile.key,
            rules=get_rules(version),
            honest_user=honest.user_id,
            our_user=alice.user_id,
            other_room=other_id,
        )
        stage = cls(world, version, alice, room, honest, other, forger)
        stage.since = (await alice.ok("GET", "/v3/sync"))["next_batch"]
        await stage.check(())
        return stage

    # --- cases

    def template(
        self, event_type: str, *, state_key: str | None = None, prev: Sequence[str] | None = None
    ) -> JsonObject:
        """A right event of the hostile server's user, not signed."""
        event = self.room.make(event_type, {"body": "x", "msgtype": "m.text"}, prev=prev, state_key=state_key)
        return {key: value for key, value in event.items() if key not in ("signatures", "hashes", "origin")}

    def cases(self, path: str, faults: Iterable[Fault], template: JsonObject) -> list[Case]:
        """A case for each of the faults; an event that has a state key of its own gets another one each time."""
        return [self.case(path, fault, template) for fault in faults if fault.only(self.forger.rules)]

    def case(self, path: str, fault: Fault, template: JsonObject, forger: Forger | None = None) -> Case:
        """One case."""
        forger = forger or self.forger
        number = next(_numbers)
        marker = f"{'any' if fault.fate is Fate.ANYTHING else 'hostile'}-{number}"
        event = {**template, "content": {**template["content"], "marker": marker}}
        if template.get("state_key") == "":
            event["state_key"] = f"k{number}"
        if forger.rules.event_id_format == "server":
            event["event_id"] = f"$hostile{number}:{forger.name}"
        spoiled = fault.spoil(forger, event)
        event_id = forger.id_of(spoiled) if isinstance(spoiled, dict) else ""
        self.world.tried[path] += 1
        return Case(path, fault, spoiled if isinstance(spoiled, bytes) else canonical(spoiled), event_id)

    def control(self, template: JsonObject, forger: Forger | None = None) -> JsonObject:
        """The same without a fault: it must get in."""
        forger = forger or self.forger
        event = {**template, "content": {**template["content"], "control": True}}
        if template.get("state_key") == "":
            event["state_key"] = f"k{next(_numbers)}"
        if forger.rules.event_id_format == "server":
            event["event_id"] = f"$right{next(_numbers)}:{forger.name}"
        sealed: JsonObject = NONE.spoil(forger, event)
        return sealed

    # --- checks

    async def check(self, cases: Iterable[Case]) -> None:
        """Note where something of the cases got in, or the rooms do not work any more."""
        by_id = {case.event_id: case for case in cases if case.event_id}
        where = next((case.path for case in by_id.values()), "before all")
        await self._check_stored(by_id)
        for room in (self.honest, self.other):
            started = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._check_usable(room)
            except TimeoutError:
                self.world.note(where, f"after it {room.room_id} does not work")
            self.world.slowest = max(self.world.slowest, time.monotonic() - started)
        await self._check_shown(by_id)

    async def expect_stored(self, event: JsonObject, why: Case | str) -> None:
        """Note unless a right event is here."""
        event_id = self.forger.id_of(event)
        rows = await self.world.rows("select flags from events where event_id = %s", event_id)
        is_there = bool(rows) and not rows[0][0] & (Flag.REJECTED | Flag.SOFT_FAILED)
        self.world.expect(is_there, why, f"keeps a right event out: {rows} {event}")

    async def _check_stored(self, by_id: dict[str, Case]) -> None:
        rows = await self.world.rows(
            "select event_id, flags, room_id, json, exists(select 1 from room_state s where s.room = events.room"
            " and s.event = events.position and s.line = 0 and s.until_version is null)"
            " from events join rooms using (room) where not event_id = any(%s::text[])",
            list(self.seen),
        )
        for event_id, flags, room_id, packed, is_state in rows:
            self.seen.add(event_id)
            stored: JsonObject = orjson.loads(unpack(packed))
            version = (await self.world.rows("select room_version from rooms where room_id = %s", room_id))[0][0]
            if not self._is_genuine(event_id, stored, room_id, version):
                self.world.note(by_id.get(event_id, "?"), f"an event that nobody signed is in the database: {stored}")
            case = by_id.get(event_id)
            if case is None or case.fault.fate is Fate.ANYTHING:
                continue
            is_out = flags & (Flag.REJECTED | Flag.SOFT_FAILED) and not is_state
            is_redacted = stored == redact(stored, get_rules(version))
            if not (case.fault.fate is Fate.REJECTED and is_out) and not (
                case.fault.fate is Fate.REDACTED and is_redacted
            ):
                self.world.note(case, f"is in the database with flags {flags}: {stored}")

    def _is_genuine(self, event_id: str, stored: JsonObject, room_id: str, version: str) -> bool:
        """Whether the sender's server signed the event, by our own reckoning, and it is what its ID and room say."""
        rules = get_rules(version)
        server = stored["sender"].partition(":")[2]
        if server not in self.world.keys:
            return False
        key_id, public_key = self.world.keys[server]
        signed = {k: v for k, v in redact(stored, rules).items() if k not in ("signatures", "unsigned")}
        forger = Forger(server, self.world.hostile.key, rules, "", "", "")
        is_create_of_12 = rules.room_id_is_create_hash and stored["type"] == "m.room.create"
        return (
            is_signature_of(stored["signatures"].get(server, {}).get(key_id), canonical(signed), public_key)
            and forger.id_of(stored) == event_id
            and (is_create_of_12 or stored["room_id"] == room_id)
            and len(canonical(stored)) <= 65_536
        )

    async def _check_usable(self, room: RemoteRoom) -> None:
        """A user here and the honest server hear each other."""
        said = await send(self.alice, room.room_id, "still here")
        await self.world.honest.until(said)
        answer = room.add(content={"body": "so am I", "msgtype": "m.text"})
        assert await room.push([answer]) == {room.id_of(answer): {}}
        path = f"/v3/rooms/{quote(room.room_id)}/event/{quote(room.id_of(answer))}"
        await self.alice.ok("GET", path)

    async def _check_shown(self, by_id: dict[str, Case]) -> None:
        """What the user hears of has nothing of the cases in it."""
        answer = await self.alice.ok("GET", "/v3/sync", params={"since": self.since, "timeout": "0"})
        self.since = answer["next_batch"]
        if "hostile-" in orjson.dumps(answer).decode():
            self.world.note(next(iter(by_id.values()), "?"), "something hostile is shown in a sync")
        for room in answer.get("rooms", {}).get("join", {}).values():
            for event in (*room["timeline"]["events"], *room["state"]["events"]):
                case = by_id.get(event["event_id"])
                if case is not None and case.fault.fate not in (Fate.REDACTED, Fate.ANYTHING):
                    self.world.note(case, "is shown")

    async def push(self, events: Sequence[JsonObject], edus: Sequence[Any] = ()) -> dict[str, Any]:
        """The hostile server sends what is right; what was said of it."""
        answer: dict[str, Any] = (await push(self.world.hostile, events, edus))["pdus"]
        return answer


@asynccontextmanager
async def a_world(maintenance_conninfo: str) -> AsyncIterator[World]:
    """Gone with all that belongs to it at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="hearth-hostile-"))
    databases = Databases(directory, maintenance_conninfo)
    authority = Authority(directory)
    port = free_port()
    hearth = _Target(databases, peering=Peering.of(authority, port, "127.0.0.1"), log="warning")
    hearth.database = f"hostile_{next(_numbers)}_{port}"
    databases.create_database(hearth.database, "template0")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    try:
        async with AsyncExitStack() as stack:
            await hearth.start()
            stack.push_async_callback(hearth.stop)
            sessions = [
                await stack.enter_async_context(
                    aiohttp.ClientSession(
                        connector=aiohttp.TCPConnector(limit=0, ssl=tls), timeout=aiohttp.ClientTimeout(total=400)
                    )
                )
                for tls in (context, False)
            ]
            base_url = f"https://127.0.0.1:{port}"
            server = ServerProcess(hearth.server_name, base_url, Client(base_url, sessions[0]))
            own_key = await server.anonymous.request("GET", "/_matrix/key/v2/server")
            ports = [free_port(), free_port()]
            world = World(
                hearth=hearth,
                server=server,
                authority=authority,
                hostile=HostileServer(server, f"127.0.0.1:{ports[0]}"),
                honest=HonestServer(server, f"127.0.0.1:{ports[1]}"),
                visitor=Client(f"http://127.0.0.1:{hearth.port}", sessions[1]),
                database=await stack.enter_async_context(
                    await psycopg.AsyncConnection.connect(databases.conninfo(hearth.database), autocommit=True)
                ),
                stack=stack,
            )
            for key_id, key in own_key.body["verify_keys"].items():
                world.keys[server.name] = (key_id, decode_base64(key["key"]) or b"")
            for peer, number in ((world.hostile, ports[0]), (world.honest, ports[1])):
                await stack.enter_async_context(listening(peer, authority, number))
                world.keys[peer.name] = (peer.key.key_id, peer.key.public_key)
            yield world
    finally:
        databases.drop_database(hearth.database)
        shutil.rmtree(directory, ignore_errors=True)


def transaction_body(peer: AnsweringPeer, wires: Sequence[bytes], edus: bytes = b"[]") -> bytes:
    """A transaction with events that need not be JSON."""
    head = canonical_json.encode({"origin": peer.name, "origin_server_ts": 1})
    return head[:-1] + b',"edus":' + edus + b',"pdus":[' + b",".join(wires) + b"]}"
