"""A real SMTP server on loopback, which keeps what it takes: for tests of mail.

async with MailServer.running() as mails:
    async with running(conninfo, mail=mails.settings()) as server:
        ...
        message = await mails.next_for("alice@example.org")
"""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from homeserver.config import ExistingFile, Mail, MailTLS, Secret
from tests.federation.authority import Authority

USERNAME, PASSWORD = "hearth", "mail password"
SENDER = "Hearth <noreply@hearth.test>"
SECONDS = 20


@dataclass(slots=True)
class Taken:
    """One message, as it came."""

    sender: str
    recipients: list[str]
    message: EmailMessage
    was_encrypted: bool
    was_authenticated: bool

    def part(self, kind: str) -> str:
        """Its text, or its HTML."""
        part = self.message.get_body((kind,))
        assert part is not None
        return str(part.get_content())


@dataclass
class MailServer:
    """Takes mail, unless it is told what to answer instead. No slots: aiosmtpd looks at every attribute, and in Python
    3.11.2 the one for weak references, which classes with slots have from dataclasses, cannot be looked at.
    """

    port: int = 0
    taken: list[Taken] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)
    """By recipient what is answered to the next messages for them, instead of taking them."""
    asked: int = 0
    tls: MailTLS = MailTLS.NONE
    authority: Path | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @classmethod
    @asynccontextmanager
    async def running(
        cls, tls: MailTLS = MailTLS.NONE, authority: Authority | None = None
    ) -> AsyncIterator["MailServer"]:
        """A server on a free port; with an authority it has a certificate for 127.0.0.1, and wants a password."""
        context = None
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.issue("127.0.0.1"))
        mails = cls(tls=tls, authority=None if authority is None else authority.certificate)
        loop = asyncio.get_running_loop()
        starts_tls = tls is MailTLS.STARTTLS

        def connected() -> SMTP:
            with warnings.catch_warnings(action="ignore"):  # it knows of no TLS but STARTTLS
                return SMTP(
                    mails,
                    hostname="mail.test",
                    loop=loop,
                    tls_context=context if starts_tls else None,
                    require_starttls=starts_tls,
                    authenticator=_check if context is not None else None,
                    auth_required=context is not None,
                    auth_require_tls=starts_tls,
                )

        server = await loop.create_server(
            connected, "127.0.0.1", 0, ssl=context if tls is MailTLS.TLS else None, start_serving=True
        )
        mails.port = server.sockets[0].getsockname()[1]
        try:
            yield mails
        finally:
            server.close()

    def settings(self) -> Mail:
        """With which a Hearth sends its mail here."""
        return Mail(
            host="127.0.0.1",
            port=self.port,
            tls=self.tls,
            username=USERNAME if self.authority else None,
            password=Secret(PASSWORD) if self.authority else None,
            sender=SENDER,
            certificate_authorities=(ExistingFile(self.authority),) if self.authority else (),
        )

    async def next_for(self, recipient: str, number: int = 0) -> Taken:
        """The first message to this address, or a later one, once it is there."""
        async with self._changed, asyncio.timeout(SECONDS):
            while len(found := [each for each in self.taken if recipient in each.recipients]) <= number:
                await self._changed.wait()
            return found[number]

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        """What aiosmtpd calls with each message."""
        self.asked += 1
        for recipient in envelope.rcpt_tos:
            if self.answers.get(recipient):
                return self.answers[recipient].pop(0)
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        async with self._changed:
            self.taken.append(
                Taken(
                    str(envelope.mail_from),
                    list(envelope.rcpt_tos),
                    message,
                    session.ssl is not None or self.tls is MailTLS.TLS,
                    bool(session.authenticated),
                )
            )
            self._changed.notify_all()
        return "250 OK"


def _check(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: object) -> AuthResult:
    is_right = data == LoginPassword(USERNAME.encode(), PASSWORD.encode())
    return AuthResult(success=is_right, handled=False)
