"""Mail to users, handed to the operator's mail server (`outgoing_messages.py` says when)."""

import asyncio
import logging
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

from homeserver.services.outgoing_messages import Done, Outcome, OutgoingMessages
from storage.database import Database, Tx
from storage.figures import Figures
from storage.outgoing_messages import Channel, WaitingMessage

logger = logging.getLogger(__name__)

LIFETIME_MS = 24 * 3600 * 1000
COMMAND_SECONDS = 30.0


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
    """Takes mail, and sends it; a message that is sent twice has the same Message-ID."""

    def __init__(self, database: Database, server: MailServer | None) -> None:
        self._server = server
        self._context: ssl.SSLContext | None = None
        self._queue = OutgoingMessages(database, Channel.MAIL, self._send)

    @property
    def is_enabled(self) -> bool:
        """Whether there is a server that takes mail."""
        return self._server is not None

    def figures(self) -> Figures:
        """For `homeserver.metrics`."""
        return self._queue.figures()

    async def put(self, tx: Tx, mail: Mail) -> None:
        """Have it sent once the transaction is committed; `wake` after that, so that it is sent at once."""
        message = compose(mail, self._known_server().sender)
        await self._queue.put(tx, mail.recipient, message, lifetime_ms=mail.lifetime_ms)

    def wake(self) -> None:
        """Send what is due."""
        self._queue.wake()

    async def run(self) -> None:
        """Send what is due until cancelled."""
        await self._queue.run()

    def _known_server(self) -> MailServer:
        if self._server is None:
            raise RuntimeError("there is no mail server")
        return self._server

    async def _send(self, due: Sequence[WaitingMessage], done: Done) -> None:
        server = self._known_server()
        try:
            await self._hand_over(server, due, done)
        except (aiosmtplib.SMTPException, OSError) as error:
            logger.warning("the mail server %s:%s takes no mail: %s", server.host, server.port, error)

    async def _hand_over(self, server: MailServer, due: Sequence[WaitingMessage], done: Done) -> None:
        """One after the other over one connection."""
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
                    await client.sendmail(sender, [mail.recipient], mail.content)
                except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPDataError) as error:
                    code, text = _reason(error)
                    logger.warning("mail %s was refused: %s %s", mail.message, code, text)
                    if code < 500:
                        continue
                    done[mail.message] = Outcome.REFUSED
                else:
                    done[mail.message] = Outcome.SENT


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


def _tls_context(authorities: Sequence[Path]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for file in authorities:
        context.load_verify_locations(file)
    return context
