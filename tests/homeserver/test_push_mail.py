"""Mail of unread messages: pushers of kind `email` ("Push Notifications", client behaviour)."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from federation.protocol.types import EventID, RoomID, UserID
from federation.rooms.notices import Notice
from homeserver.followers import push_digests
from homeserver.services import push_mail
from homeserver.services.push_mail import UNSUBSCRIBE_PATH
from storage import identifiers
from storage.identifiers import Identifier, OwnIdentifier
from tests.client import Answer, Client, Server, unique
from tests.homeserver.rooms import a_room
from tests.homeserver.syncs import read
from tests.mail_server import MailServer
from tests.rooms import send
from tests.servers import running

pytestmark = pytest.mark.one_process("it is made to send mail sooner than servers do")


@dataclass(slots=True)
class Mailing:
    """A server that sends mail, and who takes it."""

    server: Server
    mails: MailServer

    async def a_user(self) -> tuple[Client, str]:
        """A user with a confirmed address."""
        user, address = await self.server.register(), f"{unique()}@example.org"
        own = OwnIdentifier(identifier=Identifier("email", address), validated_ts=1, added_ts=1)
        async with self.server.application.database.transaction() as tx:
            assert await identifiers.insert(tx, UserID(user.user_id), own)
        return user, address


@pytest_asyncio.fixture
async def mailing(conninfo: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mailing]:
    """One that sends them soon."""
    monkeypatch.setattr(push_digests, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(push_digests, "DELAY_MS", 300)
    monkeypatch.setattr(push_digests, "FIRST_PAUSE_MS", 200)
    async with MailServer.running() as mails, running(conninfo, mail=mails.settings()) as server:
        yield Mailing(server, mails)


def by_mail(address: str, **changes: Any) -> dict[str, Any]:
    """The body of `POST /pushers/set`."""
    names = {"app_display_name": "Mail", "device_display_name": address, "lang": "en"}
    return {"kind": "email", "app_id": "m.email", "pushkey": address, **names, "data": {}, **changes}


async def test_unread_messages_are_told_by_mail_and_the_link_ends_that(mailing: Mailing) -> None:
    alice = await mailing.server.register("alice")
    bob, address = await mailing.a_user()
    room_id = await a_room(alice, bob, name="<b>Kitchen</b>")
    await bob.ok("POST", "/v3/pushers/set", by_mail(address))
    await send(alice, room_id, "hello <i>bob</i> {server}")
    await send(alice, room_id, "are you\r\nthere?")
    mail = await mailing.mails.next_for(address)

    assert mail.message["Subject"] == "2 unread messages at hearth.test"
    said = mail.part("plain").splitlines()
    assert said[:2] == ["<b>Kitchen</b>:", f"  {alice.user_id}: hello <i>bob</i> {{server}}"]
    assert "are you there?" in mail.part("plain")
    assert "&lt;b&gt;Kitchen&lt;/b&gt;" in mail.part("html")
    assert "<i>" not in mail.part("html")
    link = re.search(rf"\S*({re.escape(UNSUBSCRIBE_PATH)}\?token=\S+)", mail.part("plain"))
    assert link is not None
    assert mail.message["List-Unsubscribe"] == f"<{link[0]}>"
    nobody = mailing.server.anonymous
    assert (await nobody.request("GET", link[1])).status == 200
    assert len((await bob.ok("GET", "/v3/pushers"))["pushers"]) == 1
    assert (await nobody.request("POST", link[1], b"List-Unsubscribe=One-Click")).status == 200
    assert (await bob.ok("GET", "/v3/pushers"))["pushers"] == []
    assert (await nobody.request("POST", link[1], b"")).status == 404
    assert (await nobody.request("GET", f"{UNSUBSCRIBE_PATH}?token=x")).status == 404


async def test_what_was_read_in_time_is_not_told(mailing: Mailing) -> None:
    alice = await mailing.server.register("alice")
    bob, address = await mailing.a_user()
    room_id = await a_room(alice, bob)
    await bob.ok("POST", "/v3/pushers/set", by_mail(address))
    await read(bob, room_id, await send(alice, room_id, "read at once"))
    await send(alice, room_id, "not read")
    first = await mailing.mails.next_for(address)
    assert "read at once" not in first.part("plain")
    await send(alice, room_id, "later")

    second = await mailing.mails.next_for(address, 1)
    assert ("later" in second.part("plain"), "not read" in second.part("plain")) == (True, False)


async def set_pusher(client: Client, body: dict[str, Any]) -> tuple[int, str]:
    answer: Answer = await client.post("/v3/pushers/set", body)
    return answer.status, answer.body["errcode"]


async def test_only_an_own_confirmed_address_is_written_to(mailing: Mailing) -> None:
    bob, address = await mailing.a_user()
    eve = await mailing.server.register("eve")

    assert await set_pusher(eve, by_mail(address)) == (400, "M_THREEPID_NOT_FOUND")
    assert await set_pusher(bob, by_mail("nobody@example.org")) == (400, "M_THREEPID_NOT_FOUND")
    assert await set_pusher(bob, by_mail("no address")) == (400, "M_INVALID_PARAM")
    assert await set_pusher(bob, by_mail(address, app_id="other")) == (400, "M_INVALID_PARAM")


async def test_the_pusher_ends_with_the_address(mailing: Mailing) -> None:
    bob, address = await mailing.a_user()
    await bob.ok("POST", "/v3/pushers/set", by_mail(address))
    await bob.ok("POST", "/v3/account/3pid/delete", {"medium": "email", "address": address})

    assert (await bob.ok("GET", "/v3/pushers"))["pushers"] == []


async def test_without_a_mail_server_there_are_none(alice: Client) -> None:
    assert await set_pusher(alice, by_mail("alice@example.org")) == (400, "M_INVALID_PARAM")


def test_a_digest_is_bounded_and_says_what_it_leaves_out() -> None:
    many = [
        Notice(
            event_id=EventID(f"${number}"),
            room_id=RoomID(f"!{number % 2}:x"),
            type="m.room.encrypted" if number == 99 else "m.room.message",
            sender=UserID("@a:x"),
            content={"body": "x" * 5000},
            sender_display_name="A\nB",
        )
        for number in range(100)
    ]
    mail = push_mail.digest("a@b.c", many, 100, server="x", unsubscribe="https://x/?token=1&a=2")

    assert len(mail.text) < 10_000
    assert "And 70 more." in mail.text
    assert "A B: an encrypted message" in mail.text
    assert 'href="https://x/?token=1&amp;a=2"' in mail.html


async def test_who_knows_an_address_does_not_end_its_owner_s_mails(mailing: Mailing) -> None:
    mallory = await mailing.server.register()
    bob, address = await mailing.a_user()
    await bob.ok("POST", "/v3/pushers/set", by_mail(address))
    data = {"url": "https://push.example.org/_matrix/push/v1/notify"}

    answer = await mallory.post("/v3/pushers/set", by_mail(address, kind="http", data=data))

    assert (answer.status, answer.body["errcode"]) == (400, "M_INVALID_PARAM")
    assert len((await bob.ok("GET", "/v3/pushers"))["pushers"]) == 1
