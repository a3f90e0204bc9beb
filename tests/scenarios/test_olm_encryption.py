"""python-olm plays four devices of two users: they verify each other, talk, and read what history allows them.

Everything but the cryptography is plain HTTP to a real server, which must keep nothing that it could read.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from olm.group_session import InboundGroupSession, OlmGroupSessionError, OutboundGroupSession
from olm.session import InboundSession, OlmMessage, OlmPreKeyMessage, OutboundSession
from olm.utility import OlmVerifyError, ed25519_verify

from tests.client import Client, quote
from tests.devices import ALGORITHMS, CrossSigning, Device, claim, cross_signing, query, signable
from tests.rooms import create_room, send_event
from tests.scenarios.hearth_process import HearthProcess, a_visitor, serving
from tests.scenarios.plaintext import places_of

pytestmark = pytest.mark.interoperability

OLM, MEGOLM = ALGORITHMS


@dataclass
class Phone:
    """A device that encrypts: what it holds of others' sessions, and how far it has synced."""

    device: Device
    token: str = ""
    sessions: dict[str, Any] = field(default_factory=dict)
    """Olm sessions by the other's curve25519 key."""
    room_keys: dict[str, InboundGroupSession] = field(default_factory=dict)

    @property
    def client(self) -> Client:
        """Its login."""
        return self.device.client

    @property
    def curve25519(self) -> str:
        """Its identity key."""
        key: str = self.device.account.identity_keys["curve25519"]
        return key

    async def share(self, other: "Phone", content: dict[str, Any]) -> None:
        """Send another device an Olm-encrypted `m.room_key`, in a new session if there is none."""
        session = self.sessions.get(other.curve25519)
        if session is None:
            claimed = await claim(self.client, other.client)
            assert claimed is not None
            check_signed(claimed[1], other.client.user_id, other.device.key_id, ed25519_of(other))
            session = OutboundSession(self.device.account, other.curve25519, claimed[1]["key"])
            self.sessions[other.curve25519] = session
        payload = {
            "type": "m.room_key",
            "content": content,
            "sender": self.client.user_id,
            "recipient": other.client.user_id,
            "recipient_keys": {"ed25519": ed25519_of(other)},
            "keys": {"ed25519": ed25519_of(self)},
        }
        message = session.encrypt(json.dumps(payload))
        body = {
            "algorithm": OLM,
            "sender_key": self.curve25519,
            "ciphertext": {other.curve25519: {"type": message.message_type, "body": message.ciphertext}},
        }
        to = {other.client.user_id: {other.client.device_id: body}}
        path = f"/v3/sendToDevice/m.room.encrypted/{quote(other.client.device_id + content['session_id'])}"
        await self.client.ok("PUT", path, {"messages": to})

    async def sync(self) -> Any:
        """Go on from the last token; takes the room keys that others have shared."""
        query = {"timeout": "0", **({"since": self.token} if self.token else {})}
        body = await self.client.ok("GET", "/v3/sync", params=query)
        self.token = body["next_batch"]
        for event in body.get("to_device", {}).get("events", []):
            self._receive(event["content"])
        return body

    def _receive(self, content: Any) -> None:
        assert content["algorithm"] == OLM
        message = content["ciphertext"][self.curve25519]
        session = self.sessions.get(content["sender_key"])
        if message["type"] == 0 and (session is None or not session.matches(OlmPreKeyMessage(message["body"]))):
            session = InboundSession(self.device.account, OlmPreKeyMessage(message["body"]), content["sender_key"])
            self.device.account.remove_one_time_keys(session)
            self.sessions[content["sender_key"]] = session
        assert session is not None
        kind = OlmPreKeyMessage if message["type"] == 0 else OlmMessage
        payload = json.loads(session.decrypt(kind(message["body"])))
        assert payload["recipient"] == self.client.user_id
        assert payload["recipient_keys"]["ed25519"] == ed25519_of(self)
        key = payload["content"]
        assert (payload["type"], key["algorithm"]) == ("m.room_key", MEGOLM)
        is_exported = key.get("exported", False)
        key_import = InboundGroupSession.import_session if is_exported else InboundGroupSession
        self.room_keys[key["session_id"]] = key_import(key["session_key"])

    async def say(self, room_id: str, session: OutboundGroupSession, text: str) -> str:
        """Send an encrypted message: its event ID."""
        content = {"msgtype": "m.text", "body": text}
        payload = {"type": "m.room.message", "content": content, "room_id": room_id}
        body = {
            "algorithm": MEGOLM,
            "sender_key": self.curve25519,
            "device_id": self.client.device_id,
            "session_id": session.id,
            "ciphertext": session.encrypt(json.dumps(payload)),
        }
        return await send_event(self.client, room_id, "m.room.encrypted", body)

    async def read_history(self, room_id: str) -> list[str | None]:
        """All encrypted messages that the server shows, oldest first; None for those that it has no key for."""
        texts: list[str | None] = []
        query = {"dir": "b", "limit": "3"}
        for _ in range(50):
            page = await self.client.ok("GET", f"/v3/rooms/{quote(room_id)}/messages", params=query)
            texts += [self._decrypt(event) for event in page["chunk"] if event["type"] == "m.room.encrypted"]
            if "end" not in page:
                return texts[::-1]
            query["from"] = page["end"]
        raise AssertionError("the room's history has no end")

    def _decrypt(self, event: Any) -> str | None:
        session = self.room_keys.get(event["content"]["session_id"])
        if session is None:
            return None
        try:
            payload, _ = session.decrypt(event["content"]["ciphertext"])
        except OlmGroupSessionError as error:
            if "UNKNOWN_MESSAGE_INDEX" not in str(error):
                raise
            return None
        decrypted = json.loads(payload)
        assert decrypted["room_id"] == event["room_id"]
        text: str = decrypted["content"]["body"]
        return text


def ed25519_of(phone: Phone) -> str:
    key: str = phone.device.account.identity_keys["ed25519"]
    return key


def check_signed(value: Any, user_id: str, key_id: str, public_key: str) -> None:
    """Raise unless the object bears this signature."""
    ed25519_verify(public_key, signable(value), value["signatures"][user_id][key_id])


async def verify_own_device(phone: Phone, keys: CrossSigning) -> None:
    """The user's self-signing key signs the device."""
    answer = await query(phone.client, phone.client)
    device = answer["device_keys"][phone.client.user_id][phone.client.device_id]
    check_signed(device, phone.client.user_id, phone.device.key_id, ed25519_of(phone))
    device.pop("unsigned", None)
    signed = keys.sign("self_signing", {name: each for name, each in device.items() if name != "signatures"})
    body = {phone.client.user_id: {phone.client.device_id: signed}}
    answer = await phone.client.ok("POST", "/v3/keys/signatures/upload", body)
    assert answer.get("failures", {}) == {}


async def verify_user(phone: Phone, own: CrossSigning, other: CrossSigning) -> None:
    """As after comparing emoji: our user-signing key signs the other's master key, which we saw to be theirs."""
    answer = await query(phone.client, other.client)
    master = answer["master_keys"][other.client.user_id]
    assert list(master["keys"].values()) == [other.public_key("master")]
    signed = own.sign("user_signing", {name: each for name, each in master.items() if name != "signatures"})
    body = {other.client.user_id: {other.public_key("master"): signed}}
    answer = await phone.client.ok("POST", "/v3/keys/signatures/upload", body)
    assert answer.get("failures", {}) == {}


async def trusted_devices(phone: Phone, own: CrossSigning, other: Client) -> set[str]:
    """The other user's devices that a chain of signatures leads to, from our own master key."""
    me, them = phone.client.user_id, other.user_id
    answer = await query(phone.client, phone.client, other)
    master = next(iter(answer["master_keys"][me]["keys"].values()))
    assert master == own.public_key("master")
    chain = [(answer["self_signing_keys"][them], them, answer["master_keys"][them])]
    if me != them:
        user_signing = answer["user_signing_keys"][me]
        check_signed(user_signing, me, f"ed25519:{master}", master)
        chain.insert(0, (answer["master_keys"][them], me, user_signing))
    for signed, signer, key in chain:
        public_key = next(iter(key["keys"].values()))
        check_signed(signed, signer, f"ed25519:{public_key}", public_key)
    self_signing = next(iter(answer["self_signing_keys"][them]["keys"].values()))
    trusted = set()
    for device_id, device in answer["device_keys"][them].items():
        try:
            check_signed(device, them, f"ed25519:{self_signing}", self_signing)
        except (KeyError, OlmVerifyError):
            continue
        trusted.add(device_id)
    return trusted


@pytest_asyncio.fixture(scope="module")
async def server() -> AsyncIterator[HearthProcess]:
    """One real server for this module."""
    async with serving() as server:
        yield server


async def a_phone(client: Client) -> Phone:
    device = Device(client)
    await device.upload(device_keys=device.identity(), one_time_keys=device.one_time_keys(5))
    return Phone(device)


@dataclass
class People:
    """Two users with two verified devices each, and one device of the second that nobody has verified."""

    alices: list[Phone]
    bobs: list[Phone]

    @classmethod
    async def meet(cls, visitor: Client) -> "People":
        alice, bob = await visitor.register("alice"), await visitor.register("bob")
        alices = [await a_phone(alice), await a_phone(await alice.login())]
        bobs = [await a_phone(bob), await a_phone(await bob.login())]
        alice_keys, bob_keys = await cross_signing(alice), await cross_signing(bob)
        for phones, keys in ((alices, alice_keys), (bobs, bob_keys)):
            for phone in phones:
                await verify_own_device(phone, keys)
        await verify_user(alices[0], alice_keys, bob_keys)
        await verify_user(bobs[1], bob_keys, alice_keys)
        stranger = await bob.login()
        await a_phone(stranger)
        for phones, own in ((alices, alice_keys), (bobs, bob_keys)):
            for phone in phones:
                for others in (alices, bobs):
                    trusted = await trusted_devices(phone, own, others[0].client)
                    assert trusted == {other.client.device_id for other in others}
        return cls(alices, bobs)


ALLOWED = {"shared": 4, "invited": 3, "joined": 2}
"""How many of the four messages somebody sees who was invited after the first and joined after the second."""


@pytest.mark.parametrize("visibility", ALLOWED)
async def test_devices_verify_each_other_talk_and_read_what_history_allows(
    server: HearthProcess, visibility: str
) -> None:
    async with a_visitor(server) as visitor:
        people = await People.meet(visitor)
        alice, bob = people.alices[0], people.bobs[0]
        said = [f"{visibility}: whispered {when}" for when in ("alone", "to the invited", "to all", "back")]
        initial_state = [
            {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": MEGOLM}},
            {"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": visibility}},
        ]
        room_id = await create_room(alice.client, initial_state=initial_state)
        session = OutboundGroupSession()
        key_from_start = session.session_key
        own_copy = InboundGroupSession(key_from_start)
        room_key = {"algorithm": MEGOLM, "room_id": room_id, "session_id": session.id, "session_key": key_from_start}
        for phone in people.alices:
            phone.room_keys[session.id] = InboundGroupSession(key_from_start)
        await alice.say(room_id, session, said[0])
        await alice.client.ok("POST", f"/v3/rooms/{quote(room_id)}/invite", {"user_id": bob.client.user_id})
        await alice.say(room_id, session, said[1])
        await bob.client.ok("POST", f"/v3/rooms/{quote(room_id)}/join")
        # Bob's first device gets the key from its beginning, the second from where the session stands now.
        await alice.share(people.bobs[0], room_key)
        exported = own_copy.export_session(session.message_index)
        await alice.share(people.bobs[1], {**room_key, "session_key": exported, "exported": True})
        await alice.say(room_id, session, said[2])
        await bob.sync()
        answer = OutboundGroupSession()
        answer_key = {"algorithm": MEGOLM, "room_id": room_id, "session_id": answer.id}
        for phone in (*people.alices, people.bobs[1]):
            await bob.share(phone, {**answer_key, "session_key": answer.session_key})
        bob.room_keys[answer.id] = InboundGroupSession(answer.session_key)
        await bob.say(room_id, answer, said[3])
        for phone in (*people.alices, people.bobs[1]):
            await phone.sync()

        for phone in people.alices:
            assert await phone.read_history(room_id) == said
        shown = said[-ALLOWED[visibility] :]
        assert await people.bobs[0].read_history(room_id) == shown
        assert await people.bobs[1].read_history(room_id) == [None] * (len(shown) - 2) + said[2:]
        secrets = [*said, key_from_start, exported, bob.room_keys[answer.id].export_session(0)]
        places = places_of([*secrets, session.id], server)
    assert all(places[secret] == set() for secret in secrets), places
    assert "table events" in places[session.id], "the search finds nothing at all"
