"""Mail (homeserver/services/mail.py), as a mail server gets it."""

import asyncio
import dataclasses
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from msgspec.structs import replace

from federation.protocol.errors import InvalidInput
from homeserver.config import MailTLS, Secret
from homeserver.services import mail, outgoing_messages
from homeserver.services.email_addresses import canonical_email
from homeserver.services.mail import Mail
from tests.client import Server, unique
from tests.federation.authority import Authority
from tests.mail_server import MailServer
from tests.servers import running


def a_mail(recipient: str, **changes: object) -> Mail:
    whole = Mail(recipient=recipient, subject="Grüße", text="Hello ünïcode", html="<p>Hello <b>you</b></p>")
    return replace(whole, **changes)


def an_address() -> str:
    return f"{unique()}@example.org"


async def put(server: Server, *mails: Mail) -> None:
    application = server.application
    async with application.database.transaction() as tx:
        for each in mails:
            await application.mailer.put(tx, each)
    application.mailer.wake()


async def until_nothing_waits(connection: psycopg.Connection) -> None:
    await until(connection, "select count(*) = 0 from outgoing_messages")


async def until(connection: psycopg.Connection, query: LiteralString) -> None:
    async with asyncio.timeout(20):
        while connection.execute(query).fetchone() != (True,):  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.05)


async def test_a_mail_arrives_in_text_and_html(conninfo: str) -> None:
    address = an_address()
    async with MailServer.running() as mails, running(conninfo, mail=mails.settings()) as server:
        await put(server, a_mail(address, headers={"List-Unsubscribe": "<https://hearth.test/u>"}))

        taken = await mails.next_for(address)

    assert (taken.sender, taken.recipients) == ("noreply@hearth.test", [address])
    headers = taken.message
    assert (headers["From"], headers["To"], headers["Subject"]) == ("Hearth <noreply@hearth.test>", address, "Grüße")
    assert headers["Auto-Submitted"] == "auto-generated"
    assert headers["List-Unsubscribe"] == "<https://hearth.test/u>"
    assert headers["Message-ID"].endswith("@hearth.test>")
    assert headers["Date"] is not None
    assert taken.part("plain").strip() == "Hello ünïcode"
    assert taken.part("html").strip() == "<p>Hello <b>you</b></p>"


@pytest.mark.parametrize("tls", [MailTLS.STARTTLS, MailTLS.TLS])
async def test_mail_goes_encrypted_to_a_server_that_knows_us(conninfo: str, tmp_path: Path, tls: MailTLS) -> None:
    address = an_address()
    async with (
        MailServer.running(tls, Authority(tmp_path)) as mails,
        running(conninfo, mail=mails.settings()) as server,
    ):
        await put(server, a_mail(address))

        taken = await mails.next_for(address)

    assert (taken.was_encrypted, taken.was_authenticated) == (True, True)


@pytest.mark.parametrize("changes", [{"certificate_authorities": ()}, {"password": Secret("wrong")}])
async def test_a_server_that_is_another_or_does_not_know_us_gets_no_mail(
    conninfo: str, tmp_path: Path, changes: dict[str, object], connection: psycopg.Connection
) -> None:
    async with MailServer.running(MailTLS.STARTTLS, Authority(tmp_path)) as mails:
        settings = dataclasses.replace(mails.settings(), **changes)  # type: ignore[arg-type]  # fields of Mail
        async with running(conninfo, mail=settings) as server:
            await put(server, a_mail(an_address()))

            await until(
                connection,
                "select count(*) = 1 from outgoing_messages where tries = 1 and next_try_ts - created_ts < 200000",
            )

    assert (mails.asked, mails.taken) == (0, [])


@pytest.mark.one_process("its patience is shortened here")
async def test_mail_that_is_put_off_is_sent_again(
    conninfo: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_messages, "FIRST_PAUSE_MS", 1)
    monkeypatch.setattr(outgoing_messages, "POLL_SECONDS", 0.05)
    late, prompt = an_address(), an_address()
    async with MailServer.running() as mails:
        mails.answers[late] = ["451 come back", "451 later"]
        async with running(conninfo, mail=mails.settings()) as server:
            await put(server, a_mail(late), a_mail(prompt))

            await mails.next_for(prompt)
            await mails.next_for(late)
            await until_nothing_waits(connection)

    assert sorted(taken.recipients[0] for taken in mails.taken) == sorted([late, prompt])


async def test_mail_that_is_refused_for_good_is_dropped(conninfo: str, connection: psycopg.Connection) -> None:
    nobody, somebody = an_address(), an_address()
    async with MailServer.running() as mails:
        mails.answers[nobody] = ["550 no such mailbox"]
        async with running(conninfo, mail=mails.settings()) as server:
            await put(server, a_mail(nobody), a_mail(somebody))

            await mails.next_for(somebody)
            await until_nothing_waits(connection)

    assert [taken.recipients for taken in mails.taken] == [[somebody]]


@pytest.mark.one_process("its patience is shortened here")
async def test_mail_waits_for_a_server_that_is_away(
    conninfo: str, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_messages, "FIRST_PAUSE_MS", 1)
    monkeypatch.setattr(outgoing_messages, "POLL_SECONDS", 0.05)
    address = an_address()
    async with MailServer.running() as away:
        settings = away.settings()
    async with running(conninfo, mail=settings) as server:
        await put(server, a_mail(address))
        await until(connection, "select count(*) = 1 from outgoing_messages where tries > 1")
    connection.execute("update outgoing_messages set next_try_ts = 0")  # else what it was at is left to it for minutes
    async with MailServer.running() as mails, running(conninfo, mail=mails.settings()):
        await mails.next_for(address)


async def test_mail_that_is_of_no_use_any_more_is_given_up(conninfo: str, connection: psycopg.Connection) -> None:
    useless, useful = an_address(), an_address()
    async with MailServer.running() as mails, running(conninfo, mail=mails.settings()) as server:
        await put(server, a_mail(useless, lifetime_ms=0), a_mail(useful))

        await mails.next_for(useful)
        await until_nothing_waits(connection)

    assert [taken.recipients for taken in mails.taken] == [[useful]]


async def test_two_processes_send_each_mail_once(conninfo: str, connection: psycopg.Connection) -> None:
    addresses = [an_address() for _ in range(50)]
    async with (
        MailServer.running() as mails,
        running(conninfo, mail=mails.settings()) as server,
        running(conninfo, mail=mails.settings()) as fellow,
    ):
        await put(server, *(a_mail(address) for address in addresses))
        fellow.application.mailer.wake()
        await until_nothing_waits(connection)

    assert sorted(taken.recipients[0] for taken in mails.taken) == sorted(addresses)


async def test_mail_of_what_is_not_committed_is_not_sent(conninfo: str, connection: psycopg.Connection) -> None:
    async def put_and_fail(server: Server) -> None:
        async with server.application.database.transaction() as tx:
            await server.application.mailer.put(tx, a_mail(an_address()))
            raise InvalidInput("after all not")

    async with MailServer.running() as mails, running(conninfo, mail=mails.settings()) as server:
        with pytest.raises(InvalidInput, match="after all not"):
            await put_and_fail(server)
        assert connection.execute("select count(*) from outgoing_messages").fetchone() == (0,)

    assert mails.taken == []


def test_a_subject_ends_no_header() -> None:
    composed = mail.compose(a_mail("a@example.org", subject="Hi\r\nBcc: b@example.org"), "Hearth <h@hearth.test>")

    assert b"Subject: Hi Bcc: b@example.org\r\n" in composed
    assert b"\r\nBcc" not in composed


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("Alice@Example.ORG", "alice@example.org"), (" a+b@x.y ", "a+b@x.y"), ("a@localhost", "a@localhost")],
)
def test_addresses_are_compared_without_capitals(text: str, canonical: str) -> None:
    assert canonical_email(text) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a@", "@a", "a@b@c", "a b@c.d", "a@b..c", "a@-b.c", "a@b.c\r\nRCPT TO:<x@y>", "a@b.c,d@e.f"),
        *("<a@b.c>", '"a b"@c.d', "a@[127.0.0.1]", "é@b.c", "a" * 65 + "@b.c", "a@" + "b." * 130 + "c", "a\x00@b.c"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        canonical_email(text)
