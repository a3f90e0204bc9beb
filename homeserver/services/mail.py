"""Mail to users: kept in the database until the operator's mail server has taken it.

Who writes one puts it into their own transaction, so that there is no mail of what was not committed, and no request
waits for a mail server. Any process sends what is due; one that dies leaves it to the others, and a message that is
then sent twice has the same Message-ID. What is refused for good is dropped, the rest tried until it expires.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime, localtime, make_msgid, parseaddr
from pathlib import Path

import aiosmtplib
import msgspec
from msgspec import Struct

from federation.protocol.errors import Unavailable
from storage import outgoing_mail
from storage.database import Database, Tx
from storage.figures import Figures
from storage.outgoing_mail import WaitingMail

logger = logging.getLogger(__name__)

LIFETIME_MS = 24 * 3600 * 1000
AT_ONCE = 20
POLL_SECONDS = 5.0
"""How soon a process sees what others have put there, and did not send."""
TURN_SECONDS = 240.0
"""For all that a process takes at once."""
LEASE_MS = 300_000
"""More than a turn: then others may have it."""
COMMAND_SECONDS = 30.0
FIRST_PAUSE_MS = 30_000
LONGEST_PAUSE_MS = 30 * 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """Who takes our mail."""

    host: str
    port: int
    uses_tls: bool
    """From the first byte on."""
    starts_tls: bool
    username: str | None
    password: str | None = field(repr=False)
    sender: str
    """The address that mail is from, which may have a name: `Hearth <noreply@example.org>`."""
    authorities: Sequence[Path] = ()
    """Trusted besides the system's, in PEM format."""


class Mail(Struct, frozen=True, kw_only=True):
    """What somebody is to be told."""

    recipient: str
    """As `email_addresses.canonical_email` gives it."""
    subject: str
    text: str
    html: str
    """The same, as a whole page; what it quotes is escaped."""
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Further ones, such as `List-Unsubscribe`."""
    lifetime_ms: int = LIFETIME_MS
    """For so long it is of use."""


class Mailer:
    """Takes mail, and sends it."""

    def __init__(self, database: Database, server: MailServer | None) -> None:
        self._database = database
        self._server = server
        self._wake = asyncio.Event()
        self._context: ssl.SSLContext | None = None
        self._results = dict.fromkeys(("sent", "refused", "postponed", "expired"), 0)

    @property
    def is_enabled(self) -> bool:
        """Whether there is a server that takes mail."""
        return self._server is not None

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return {"mail_total": self._results}

    async def put(self, tx: Tx, mail: Mail) -> None:
        """Have it sent once the transaction is committed; `wake` after that, so that it is sent at once."""
        if self._server is None:
            raise RuntimeError("there is no mail server")
        now_ts = self._database.now_ms()
        message = compose(mail, self._server.sender)
        await outgoing_mail.insert(tx, mail.recipient, message, now_ts=now_ts, expires_ts=now_ts + mail.lifetime_ms)

    def wake(self) -> None:
        """Send what is due."""
        self._wake.set()

    async def run(self) -> None:
        """Send what is due until cancelled."""
        server, task = self._server, asyncio.current_task()
        while server is not None:
            self._wake.clear()
            is_done = True
            try:
                is_done = await self._send_due(server)
            except Unavailable:  # logged where it arose
                pass
            except Exception:
                logger.exception("mail could not be sent; the next turn tries again")
            if task is not None and task.cancelling():  # `asyncio.wait_for`, which aiosmtplib uses, may have lost it
                raise asyncio.CancelledError
            try:
                async with asyncio.timeout(POLL_SECONDS if is_done else 0):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _send_due(self, server: MailServer) -> bool:
        """Send some of what is due; whether that was all."""
        now_ts = self._database.now_ms()
        async with self._database.transaction() as tx:
            self._results["expired"] += await outgoing_mail.delete_expired(tx, now_ts)
            due = await outgoing_mail.take_due(tx, now_ts=now_ts, until_ts=now_ts + LEASE_MS, limit=AT_ONCE)
        if not due:
            return True
        done: list[int] = []
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._send(server, due, done)
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            logger.warning("the mail server %s:%s takes no mail: %s", server.host, server.port, error)
        finally:
            await self._note_sent(due, done)
        return len(due) < AT_ONCE

    async def _note_sent(self, due: Sequence[WaitingMail], done: Sequence[int]) -> None:
        now_ts = self._database.now_ms()
        left = [(mail.mail, now_ts + _pause_ms(mail.tries)) for mail in due if mail.mail not in done]
        self._results["postponed"] += len(left)
        async with self._database.transaction() as tx:
            if done:
                await outgoing_mail.delete(tx, done)
            if left:
                await outgoing_mail.postpone(tx, left)

    async def _send(self, server: MailServer, due: Sequence[WaitingMail], done: list[int]) -> None:
        """One after the other over one connection; each that was taken, or refused for good, is added to `done`."""
        if self._context is None:  # reading the system's authorities takes some 30 ms
            self._context = await asyncio.to_thread(_tls_context, server.authorities)
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            use_tls=server.uses_tls,
            start_tls=server.starts_tls,
            username=server.username,
            password=server.password,
            tls_context=self._context,
            timeout=COMMAND_SECONDS,
        )
        sender = parseaddr(server.sender)[1]
        async with client:
            for mail in due:
                try:
                    await client.sendmail(sender, [mail.recipient], mail.message)
                except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPDataError) as error:
                    code, text = _reason(error)
                    logger.warning("mail %s was refused: %s %s", mail.mail, code, text)
                    if code < 500:
                        continue
                    self._results["refused"] += 1
                else:
                    self._results["sent"] += 1
                done.append(mail.mail)


def compose(mail: Mail, sender: str) -> bytes:
    """The whole message, in text and in HTML."""
    name, address = parseaddr(sender)
    message = EmailMessage(policy=SMTP_POLICY)
    message["From"] = Address(name, addr_spec=address)
    message["To"] = mail.recipient
    message["Subject"] = " ".join(mail.subject.split())
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = make_msgid(domain=address.rpartition("@")[2])
    message["Auto-Submitted"] = "auto-generated"
    for header, value in mail.headers.items():
        message[header] = value
    message.set_content(mail.text)
    message.add_alternative(mail.html, subtype="html")
    return message.as_bytes()


def _reason(error: aiosmtplib.SMTPRecipientsRefused | aiosmtplib.SMTPDataError) -> tuple[int, str]:
    if isinstance(error, aiosmtplib.SMTPDataError):
        return error.code, error.message
    refused = error.recipients[0]
    return refused.code, refused.message


def _pause_ms(tries: int) -> int:
    """Of chance, too: one message that a mail server breaks off at shall not come before the same others each time."""
    pause_ms = min(FIRST_PAUSE_MS << min(tries - 1, 10), LONGEST_PAUSE_MS)
    return round(pause_ms * random.uniform(0.5, 1.5))  # noqa: S311  # nothing is secret about it


def _tls_context(authorities: Sequence[Path]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for file in authorities:
        context.load_verify_locations(file)
    return context
