"""E-mail addresses and phone numbers of accounts: proving that one is yours, adding and removing it (Client-Server
API, "Adding Account Administrative Contact Information").

A proof begins with a link that is mailed, or a code by SMS, and is for one purpose. Whether an address belongs to an
account is told only to who reads what is sent there, unless the settings say otherwise.
"""

import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from msgspec import Struct
from yarl import URL

from federation.protocol.errors import Forbidden, InvalidInput, MatrixError
from federation.protocol.types import UserID
from homeserver.services import mail_texts, sms_texts
from homeserver.services.email_addresses import canonical_email
from homeserver.services.mail import Mail, Mailer
from homeserver.services.phone_numbers import parse_phone
from homeserver.services.rate_limits import RateLimits
from homeserver.services.sms import SMSSender
from storage import identifier_validations, identifiers, pushers
from storage.database import Database, Tx
from storage.identifier_validations import Asked, Purpose, Validation
from storage.identifiers import Identifier, OwnIdentifier

EMAIL, PHONE = "email", "msisdn"
CONFIRM_PATH = "/_matrix/client/unstable/hearth.email/confirm"
"""Of the page that a link in mail leads to."""
SUBMIT_PATH = "/_matrix/client/unstable/hearth.phone/submitToken"
"""Where clients submit the code of an SMS."""
CODE_LIFETIME_MS = 15 * 60 * 1000

MAX_IDENTIFIERS = 20
"""Of one account."""
MAX_FAILURES = 5
MAX_NEXT_LINK = 2000

_WORD = re.compile(r"[0-9a-zA-Z.=_-]{1,255}", re.ASCII)
_Put = Callable[[Tx, Asked, str, UserID | None], Awaitable[None]]
"""Writes what is to be sent, for a validation by its ID, of an address that may have an owner."""


class IdentifierPolicy(Struct, frozen=True, kw_only=True):
    """What the operator decides."""

    server_name: str
    base_url: str
    """Where links in mail lead."""
    reveals_use: bool = False
    """Whether who asks is told that an address is some account's, or nobody's."""
    lifetime_ms: int = 3_600_000
    next_link_hosts: frozenset[str] = frozenset()
    """Where somebody may be led on to who has followed a link."""


class EmailRequest(Struct, frozen=True, kw_only=True):
    """What a client asks for; checked by `IdentifierService.request_email`."""

    client_secret: str
    email: str
    send_attempt: int
    next_link: str | None = None


class PhoneRequest(Struct, frozen=True, kw_only=True):
    """The same for a number; checked by `IdentifierService.request_phone`."""

    client_secret: str
    country: str | None
    """Where it is dialled like this; None where it begins with a plus."""
    phone_number: str
    send_attempt: int


class IdentifierService:
    """The addresses of this server's accounts."""

    def __init__(
        self, database: Database, mailer: Mailer, sms: SMSSender, rate_limits: RateLimits, policy: IdentifierPolicy
    ) -> None:
        self._database = database
        self._mailer = mailer
        self._sms = sms
        self._rate_limits = rate_limits
        self._policy = policy

    @property
    def media(self) -> set[str]:
        """Of what kind addresses can be proven."""
        return {medium for medium, sender in ((EMAIL, self._mailer), (PHONE, self._sms)) if sender.is_enabled}

    # --- proofs

    async def request_email(self, purpose: Purpose, request: EmailRequest, *, asker: str) -> str:
        """Have a link sent, or not again: the ID of the validation, for whoever asks from the address `asker`.

        Raises M_THREEPID_MEDIUM_NOT_SUPPORTED, M_INVALID_PARAM, M_LIMIT_EXCEEDED, and where the settings reveal it
        M_THREEPID_IN_USE or M_THREEPID_NOT_FOUND.
        """
        if EMAIL not in self.media:
            raise InvalidInput("This server uses no e-mail addresses", "M_THREEPID_MEDIUM_NOT_SUPPORTED")
        _check_asked(request)
        asked = Asked(
            client_secret=request.client_secret,
            purpose=purpose,
            identifier=Identifier(EMAIL, canonical_email(request.email)),
            send_attempt=request.send_attempt,
            next_link=self._followed(request.next_link),
        )
        sid = await self._request(asked, asker=asker, lifetime_ms=self._policy.lifetime_ms, put=self._put_mail)
        self._mailer.wake()
        return sid

    async def request_phone(self, purpose: Purpose, request: PhoneRequest, *, asker: str) -> str:
        """Have a code sent by SMS, or not again; as `request_email`, and raises M_THREEPID_DENIED for numbers of
        countries that the settings leave out.
        """
        if PHONE not in self.media:
            raise InvalidInput("This server uses no phone numbers", "M_THREEPID_MEDIUM_NOT_SUPPORTED")
        _check_asked(request)
        number = parse_phone(request.country, request.phone_number)
        if not self._sms.reaches(number.country):
            raise Forbidden("This server sends no SMS to this country", "M_THREEPID_DENIED")
        asked = Asked(
            client_secret=request.client_secret,
            purpose=purpose,
            identifier=Identifier(PHONE, number.msisdn),
            send_attempt=request.send_attempt,
            next_link=None,  # of no meaning where a client submits the code ("submitToken")
        )
        sid = await self._request(asked, asker=asker, lifetime_ms=CODE_LIFETIME_MS, put=self._put_sms)
        self._sms.wake()
        return sid

    @property
    def submit_url(self) -> str:
        """Where a client submits the code of an SMS."""
        return self._policy.base_url + SUBMIT_PATH

    async def _request(self, asked: Asked, *, asker: str, lifetime_ms: int, put: _Put) -> str:
        """Begin or go on with a validation, and `put` what is to be sent for it."""
        self._rate_limits.spend("verification", asker)
        now_ts = self._database.now_ms()
        async with self._database.transaction() as tx:
            owner = await identifiers.find_user(tx, asked.identifier)
            self._check_reveals(asked.purpose, owner)
            sid, is_to_be_sent = await identifier_validations.begin(
                tx,
                secrets.token_urlsafe(18),
                asked,
                now_ts=now_ts,
                expires_ts=now_ts + lifetime_ms,
                max_failures=MAX_FAILURES,
            )
            if is_to_be_sent:
                self._rate_limits.spend("verification", asked.identifier.address)
                await put(tx, asked, sid, owner)
        return sid

    def _check_reveals(self, purpose: Purpose, owner: UserID | None) -> None:
        if not self._policy.reveals_use:
            return
        if purpose is Purpose.RESET_PASSWORD and owner is None:
            raise InvalidInput("No account has this address", "M_THREEPID_NOT_FOUND")
        if purpose is not Purpose.RESET_PASSWORD and owner is not None:
            raise _in_use()

    async def _put_mail(self, tx: Tx, asked: Asked, sid: str, owner: UserID | None) -> None:
        await self._mailer.put(tx, await self._mail(tx, asked, sid, owner))

    async def _mail(self, tx: Tx, asked: Asked, sid: str, owner: UserID | None) -> Mail:
        """A link, or what is to be told instead."""
        policy, purpose, address = self._policy, asked.purpose, asked.identifier.address
        if purpose is Purpose.RESET_PASSWORD and owner is None:
            return mail_texts.no_account(address, server=policy.server_name, lifetime_ms=policy.lifetime_ms)
        if purpose is not Purpose.RESET_PASSWORD and owner is not None:
            return mail_texts.in_use(address, server=policy.server_name, lifetime_ms=policy.lifetime_ms)
        token = secrets.token_urlsafe(32)
        await identifier_validations.add_token(tx, sid, token)
        link = f"{policy.base_url}{CONFIRM_PATH}?{urlencode({'sid': sid, 'token': token})}"
        return mail_texts.proof(purpose, address, server=policy.server_name, link=link, lifetime_ms=policy.lifetime_ms)

    async def _put_sms(self, tx: Tx, asked: Asked, sid: str, owner: UserID | None) -> None:
        """A code, or what is to be told instead."""
        purpose, server = asked.purpose, self._policy.server_name
        if purpose is Purpose.RESET_PASSWORD and owner is None:
            text = sms_texts.no_account(server=server)
        elif purpose is not Purpose.RESET_PASSWORD and owner is not None:
            text = sms_texts.in_use(server=server)
        else:
            code = f"{secrets.randbelow(100_000_000):08}"
            await identifier_validations.set_code(tx, sid, code)
            text = sms_texts.code(purpose, code, server=server, lifetime_ms=CODE_LIFETIME_MS)
        await self._sms.put(tx, asked.identifier.address, text, lifetime_ms=CODE_LIFETIME_MS)

    def _followed(self, link: str | None) -> str | None:
        """The link, if somebody may be led there; apps also give such as only they understand, which is no mistake."""
        try:
            url = URL(link or "")
        except ValueError:
            return None
        hosts = {(host or "").lower() for host in (url.host, url.raw_host)}
        is_good = url.scheme in ("http", "https") and url.user is None and len(str(url)) <= MAX_NEXT_LINK
        return str(url) if is_good and not hosts.isdisjoint(self._policy.next_link_hosts) else None

    async def find_awaited(self, sid: str, token: str) -> Validation:
        """What the link of a mail is for; raises M_THREEPID_AUTH_FAILED for one that is not good (any more)."""
        return await self._by_token(sid, token, confirms=False)

    async def confirm(self, sid: str, token: str) -> Validation:
        """Take the link of a mail as proof; raises as `find_awaited`."""
        return await self._by_token(sid, token, confirms=True)

    async def _by_token(self, sid: str, token: str, *, confirms: bool) -> Validation:
        found, now_ts = None, self._database.now_ms()
        if _WORD.fullmatch(sid) and _WORD.fullmatch(token):
            async with self._database.transaction() as tx:  # nothing is raised within: it counts failures
                found = await identifier_validations.find_by_token(
                    tx, sid, token, now_ts=now_ts, max_failures=MAX_FAILURES
                )
                if found is not None and confirms:
                    await identifier_validations.set_validated(tx, sid, now_ts)
        if found is None:
            raise MatrixError("M_THREEPID_AUTH_FAILED", "This link is not good, or not any longer", 403)
        return found

    async def submit_code(self, sid: str, client_secret: str, code: str) -> None:
        """Take the code of an SMS as proof (Identity Service API, "submitToken").

        Raises M_INVALID_PARAM, M_TOKEN_INCORRECT, and M_SESSION_EXPIRED also where there never was such a session, or
        too many wrong codes were tried.
        """
        check_client_secret(client_secret)
        if not _WORD.fullmatch(sid):
            raise InvalidInput("sid must be what the server gave")
        now_ts = self._database.now_ms()
        async with self._database.transaction() as tx:  # nothing is raised within: it counts failures
            is_right = await identifier_validations.try_code(
                tx, sid, client_secret, code.strip(), now_ts=now_ts, max_failures=MAX_FAILURES
            )
            if is_right:
                await identifier_validations.set_validated(tx, sid, now_ts)
        if is_right is None:
            raise InvalidInput("No code is awaited here any longer: ask for another", "M_SESSION_EXPIRED")
        if not is_right:
            raise InvalidInput("This is not the code", "M_TOKEN_INCORRECT")

    async def check_proven(self, purpose: Purpose, sid: str, client_secret: str) -> Validation:
        """What the client has had proven; raises M_THREEPID_AUTH_FAILED."""
        async with self._database.read() as tx:
            return await find_proven(tx, purpose, sid, client_secret, now_ts=self._database.now_ms())

    async def forget_expired(self) -> None:
        """Remove what nobody finished."""
        async with self._database.transaction() as tx:
            await identifier_validations.delete_expired(tx, self._database.now_ms())

    # --- identifiers

    async def find_user(self, identifier: Identifier) -> UserID | None:
        """Whose it is."""
        async with self._database.read() as tx:
            return await identifiers.find_user(tx, identifier)

    async def list_of_user(self, user_id: UserID) -> list[OwnIdentifier]:
        """All that an account has."""
        async with self._database.read() as tx:
            return await identifiers.list_of_user(tx, user_id)

    async def add(self, user_id: UserID, sid: str, client_secret: str) -> None:
        """Give the account what it has had proven; raises M_THREEPID_AUTH_FAILED, M_THREEPID_IN_USE."""
        now_ts = self._database.now_ms()
        async with self._database.transaction() as tx:
            proven = await find_proven(tx, Purpose.ADD, sid, client_secret, now_ts=now_ts)
            if len(await identifiers.list_of_user(tx, user_id)) >= MAX_IDENTIFIERS:
                raise Forbidden(f"An account has at most {MAX_IDENTIFIERS} addresses", "M_THREEPID_DENIED")
            await give(tx, user_id, proven, now_ts)

    async def remove(self, user_id: UserID, identifier: Identifier) -> bool:
        """Take it from the account; whether it was theirs."""
        async with self._database.transaction() as tx:
            await pushers.delete(tx, user_id, "m.email", identifier.address)
            return await identifiers.delete(tx, user_id, identifier)


async def find_proven(tx: Tx, purpose: Purpose, sid: str, client_secret: str | None, *, now_ts: int) -> Validation:
    """What was proven for this purpose; raises M_THREEPID_AUTH_FAILED. Without a secret: for who has checked it."""
    found = await identifier_validations.find_validated(tx, sid, client_secret, purpose, now_ts=now_ts)
    if found is None:
        raise MatrixError("M_THREEPID_AUTH_FAILED", "The address is not confirmed yet, or not any longer", 403)
    return found


async def give(tx: Tx, user_id: UserID, proven: Validation, now_ts: int) -> None:
    """Use a proof up for an account; raises M_THREEPID_AUTH_FAILED, M_THREEPID_IN_USE."""
    await use_up(tx, proven)
    validated_ts = proven.validated_ts or now_ts  # by another process's clock, which may be some milliseconds ahead
    own = OwnIdentifier(identifier=proven.identifier, validated_ts=validated_ts, added_ts=max(now_ts, validated_ts))
    if not await identifiers.insert(tx, user_id, own):
        raise _in_use()


async def use_up(tx: Tx, proven: Validation) -> None:
    """A proof is good once; raises M_THREEPID_AUTH_FAILED."""
    if not await identifier_validations.delete(tx, proven.sid):
        raise MatrixError("M_THREEPID_AUTH_FAILED", "This proof was used already", 403)


def _check_asked(request: EmailRequest | PhoneRequest) -> None:
    check_client_secret(request.client_secret)
    if not 0 <= request.send_attempt < 1 << 53:
        raise InvalidInput("send_attempt must be a positive number")


def check_client_secret(text: str) -> None:
    """Raise M_INVALID_PARAM for what can be none ("Client secret")."""
    if not _WORD.fullmatch(text):
        raise InvalidInput("client_secret must be 1 to 255 of the characters 0-9 a-z A-Z . = _ -")


def _in_use() -> InvalidInput:
    return InvalidInput("This address is in use", "M_THREEPID_IN_USE")
