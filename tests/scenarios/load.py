"""Users who do everything at once, and remember exactly what the server has answered.

Each request is repeated, as a client repeats it, until it is answered. So when everybody has come to rest, what the
server holds must be what was answered: nothing less, and nothing twice.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.client import Client, quote
from tests.devices import Device

ANSWER_SECONDS = 30
"""Within which each request is answered, or refused with a hint when to come again."""
PATIENCE_SECONDS = 120
"""For how long a client tries."""
FILTER = json.dumps({"room": {"timeline": {"limit": 200}}, "presence": {"types": []}})


class WrongAnswerError(AssertionError):
    """The server answered what it never may."""


@dataclass
class Counts:
    """What a round was like."""

    answered: int = 0
    repeated: int = 0
    refused: int = 0
    """With 503."""


@dataclass
class Stage:
    """The rooms of the moment: those that everybody stays in, and one that they come and go through."""

    rooms: list[str]
    turnstile: str


@dataclass
class Journal:
    """What was answered."""

    events: dict[int, str] = field(default_factory=dict)
    """By the number in its content, which no other event has."""
    transactions: list[tuple["User", str, dict[str, Any], str]] = field(default_factory=list)
    """Who sent it, where, what, and its event ID."""
    to_device_transactions: list[tuple["User", str, dict[str, Any]]] = field(default_factory=list)
    memberships: dict[tuple[str, str], str] = field(default_factory=dict)
    """By room and user, where only the user changes it."""
    sent_to_device: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    account_data: dict[tuple[str, str], int] = field(default_factory=dict)
    claimed_keys: set[tuple[str, str]] = field(default_factory=set)
    """By user and key ID: nobody may get one of them again."""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    counts: Counts = field(default_factory=Counts)


async def until_answered(client: Client, counts: Counts, method: str, path: str, body: Any = None, **query: str) -> Any:
    """The body of the answer 200, however often it takes; only silence and 503 are borne."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            answer = await client.request(method, path, body, params=query, timeout=timeout)
        except TimeoutError as error:
            raise WrongAnswerError(f"{method} {path} is not answered within {ANSWER_SECONDS} s") from error
        except (aiohttp.ClientError, ConnectionError):  # it is being killed, or is not there
            await _pause_before_retry(deadline, 0.1)
        else:
            if answer.status == 200:
                counts.answered += 1
                return answer.body
            check_refusal(method, path, answer.status, answer.body, answer.headers)
            counts.refused += 1
            await _pause_before_retry(deadline, min(answer.body["retry_after_ms"] / 1000, 0.3))
        counts.repeated += 1


def check_refusal(method: str, path: str, status: int, body: Any, headers: Any) -> None:
    """A server that has lost its database says so, and when to come again."""
    if status != 503 or not isinstance(body, dict) or not body.get("retry_after_ms") or "Retry-After" not in headers:
        raise WrongAnswerError(f"{method} {path}: {status} {body} {dict(headers)}")


async def _pause_before_retry(deadline: float, seconds: float) -> None:
    if time.monotonic() > deadline:
        raise WrongAnswerError(f"nothing is answered for {PATIENCE_SECONDS} s")
    await asyncio.sleep(seconds)


class User:
    """Somebody with one device, who does several things at the same time."""

    def __init__(self, client: Client, journal: Journal, chance: random.Random) -> None:
        self.client = client
        self.journal = journal
        self.random = chance
        self.stage = Stage([], "")
        self.device = Device(client)

    async def ask(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """A request that is repeated until it is answered."""
        return await until_answered(self.client, self.journal.counts, method, path, body, **query)

    async def publish(self) -> None:
        """The device's identity keys."""
        await self.ask("POST", "/v3/keys/upload", {"device_keys": self.device.identity()})

    def activities(self, others: list["User"]) -> list[Callable[[], Awaitable[None]]]:
        """What the user does, each a step to be repeated."""
        return [
            self.send_message,
            self.send_message,
            self.set_state,
            self.come_or_go,
            lambda: self.send_to_device(self.random.choice(others)),
            self.set_account_data,
            self.upload_keys,
            lambda: self.claim_key(self.random.choice(others)),
            self.repeat_a_transaction,
        ]

    async def send_message(self) -> None:
        """A message with a transaction ID."""
        number = next(self.journal.numbers)
        path = f"/v3/rooms/{quote(self.random.choice(self.stage.rooms))}/send/m.room.message/t{number}"
        content = {"msgtype": "m.text", "body": f"message {number}", "n": number}
        event_id = (await self.ask("PUT", path, content))["event_id"]
        self.journal.events[number] = event_id
        self.journal.transactions.append((self, path, content, event_id))

    async def set_state(self, event_type: str = "test.counter") -> None:
        """State that nobody sets meanwhile: then the same again is the same event."""
        number = next(self.journal.numbers)
        room_id = self.random.choice(self.stage.rooms)
        path = f"/v3/rooms/{quote(room_id)}/state/{event_type}/{quote(self.client.user_id)}"
        self.journal.events[number] = (await self.ask("PUT", path, {"n": number}))["event_id"]

    async def come_or_go(self) -> None:
        """Join the turnstile, or leave it."""
        key = (self.stage.turnstile, self.client.user_id)
        goes = self.journal.memberships.get(key) == "join"
        await self.ask("POST", f"/v3/rooms/{quote(self.stage.turnstile)}/{'leave' if goes else 'join'}", {})
        self.journal.memberships[key] = "leave" if goes else "join"

    async def send_to_device(self, other: "User") -> None:
        """A to-device message with a transaction ID."""
        number = next(self.journal.numbers)
        to = (other.client.user_id, other.client.device_id)
        path = f"/v3/sendToDevice/test.message/t{number}"
        body = {"messages": {to[0]: {to[1]: {"n": number}}}}
        await self.ask("PUT", path, body)
        self.journal.sent_to_device.setdefault(to, set()).add(number)
        self.journal.to_device_transactions.append((self, path, body))

    async def set_account_data(self) -> None:
        """The next number under a type of the user's own."""
        number = next(self.journal.numbers)
        path = f"/v3/user/{quote(self.client.user_id)}/account_data/test.counter"
        await self.ask("PUT", path, {"n": number})
        self.journal.account_data[self.client.user_id, "test.counter"] = number

    async def upload_keys(self) -> None:
        """Some one-time keys; the same again changes nothing."""
        await self.ask("POST", "/v3/keys/upload", {"one_time_keys": self.device.one_time_keys(2)})

    async def claim_key(self, other: "User") -> None:
        """One of another's one-time keys, that nobody has had."""
        user_id, device_id = other.client.user_id, other.client.device_id
        body = {"one_time_keys": {user_id: {device_id: "signed_curve25519"}}}
        answer = await self.ask("POST", "/v3/keys/claim", body)
        for key_id in answer["one_time_keys"].get(user_id, {}).get(device_id, {}):
            assert (user_id, key_id) not in self.journal.claimed_keys, f"{key_id} of {user_id} was handed out twice"
            self.journal.claimed_keys.add((user_id, key_id))

    async def repeat_a_transaction(self) -> None:
        """A request that was answered long ago has the same answer still."""
        if self.journal.transactions:
            user, path, content, event_id = self.random.choice(self.journal.transactions[-2000:])
            again = (await user.ask("PUT", path, content))["event_id"]
            assert again == event_id, f"{path} made {event_id}, and when repeated {again}"
        if self.journal.to_device_transactions:
            user, path, content = self.random.choice(self.journal.to_device_transactions[-2000:])
            await user.ask("PUT", path, content)  # and nobody receives it again

    async def send_many(self, others: list["User"]) -> None:
        """Much at once, so that a kill finds requests at every stage."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(self.send_message())
            for other in others:
                tasks.create_task(self.send_to_device(other))
            tasks.create_task(self.set_state("test.burst"))


@dataclass(frozen=True)
class Mark:
    """A token, and how much its owner had seen with it."""

    token: str
    seen: dict[str, int]


class Syncer:
    """A device that syncs, and keeps a ledger of what it was told."""

    def __init__(self, client: Client, journal: Journal, chance: random.Random) -> None:
        self.client = client
        self.journal = journal
        self.random = chance
        self.token = ""
        self.rooms: dict[str, list[str]] = {}
        """The events of each room in the order in which they came."""
        self.to_device: list[int] = []
        self.account_data: dict[str, int] = {}
        self.marks: list[Mark] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Sync until told to stop."""
        while not stop.is_set():
            await self.sync(timeout_ms=self.random.choice((0, 300, 1500)))

    async def sync(self, timeout_ms: int = 0) -> bool:
        """Go on from the token; whether there was anything."""
        query = {"timeout": str(timeout_ms), "filter": FILTER}
        if self.token:
            query["since"] = self.token
        body = await until_answered(self.client, self.journal.counts, "GET", "/v3/sync", **query)
        for room_id, room in body.get("rooms", {}).get("join", {}).items():
            known = self.rooms.setdefault(room_id, [])
            known += await self._timeline(room_id, room, known[-1] if known else None)
        messages = [event["content"]["n"] for event in body.get("to_device", {}).get("events", [])]
        self.to_device += messages
        for event in body.get("account_data", {}).get("events", []):
            if event["type"] == "test.counter":
                number = event["content"]["n"]
                assert number >= self.account_data.get(event["type"], 0), "account data went back"
                self.account_data[event["type"]] = number
        self.token = body["next_batch"]
        self.marks.append(Mark(self.token, {room_id: len(events) for room_id, events in self.rooms.items()}))
        return bool(body.get("rooms") or messages)

    async def catch_up(self) -> None:
        """Sync until there is nothing new; nobody else does anything meanwhile."""
        for _ in range(100):
            if not await self.sync():
                return
        raise WrongAnswerError("there is always something new")

    async def _timeline(self, room_id: str, room: Any, last_known: str | None) -> list[str]:
        """The timeline, and what it left out after the last event that is known."""
        timeline = room["timeline"]
        found = [event["event_id"] for event in timeline["events"]]
        if not timeline.get("limited") or last_known is None:
            return found
        if last_known in found and room_id not in self.lasting:  # back in a room, its last events are told anew
            return found[found.index(last_known) + 1 :]
        token = timeline["prev_batch"]
        for _ in range(200):
            page = await until_answered(
                self.client,
                self.journal.counts,
                "GET",
                f"/v3/rooms/{quote(room_id)}/messages",
                **{"dir": "b", "from": token, "limit": "100"},
            )
            for event in page["chunk"]:
                if event["event_id"] == last_known:
                    return found
                found.insert(0, event["event_id"])
            assert "end" in page, f"{last_known} of {room_id} is gone"
            token = page["end"]
        raise WrongAnswerError("the room's history has no end")

    async def replay(self, mark: Mark) -> None:
        """From an old token comes once more exactly what came after it."""
        query = {"timeout": "0", "filter": FILTER, "since": mark.token}
        body = await until_answered(self.client, self.journal.counts, "GET", "/v3/sync", **query)
        told = body.get("rooms", {}).get("join", {})
        for room_id, events in self.rooms.items():
            seen = mark.seen.get(room_id, 0)
            if not seen or room_id not in self.lasting:
                continue
            again = await self._timeline(room_id, told[room_id], events[seen - 1]) if room_id in told else []
            assert again == events[seen:], f"sync from {mark.token} tells of {room_id} something else than before"

    lasting: frozenset[str] = frozenset()
    """The rooms that the user never leaves."""


async def repeat(step: Callable[[], Awaitable[None]], stop: asyncio.Event, chance: random.Random) -> None:
    """Do it again and again with short pauses, until told to stop; a step that was begun is finished."""
    while not stop.is_set():
        await step()
        await asyncio.sleep(chance.uniform(0, 0.1))
