"""The settings in the form that the parts take, so that nothing below `homeserver` knows `config.py`."""

import dataclasses
import importlib
from collections.abc import Callable

from federation.protocol.identifiers import check_localpart
from federation.protocol.server_acl import ServerACL
from federation.protocol.types import ServerName
from homeserver import config as settings
from homeserver.client_api import interactive_auth as uia
from homeserver.client_api.accounts import RegistrationPolicy
from homeserver.client_api.auth_stages import Policy
from homeserver.client_api.discovery import ServerDescription
from homeserver.client_api.outside_services import TurnServers
from homeserver.config import Config, ProofOnRegistration, RegistrationMode
from homeserver.services import application_services as registrations
from homeserver.services.application_services import ApplicationServiceError, ApplicationServices
from homeserver.services.budget_table import BudgetTable
from homeserver.services.captcha import CaptchaKeys
from homeserver.services.identifiers import IdentifierPolicy
from homeserver.services.mail import MailServer
from homeserver.services.rate_limits import Limit, RateLimits
from homeserver.services.server_notices import NoticePolicy
from homeserver.services.sessions import Lifetimes
from homeserver.services.sms import SMSGateway
from homeserver.services.url_previews import PreviewPolicy
from homeserver.startup import StartupError
from storage.bus import Bus, PostgresBus
from storage.database import Database
from storage.media_files import MediaFiles, MediaStore
from storage.s3 import S3Bucket
from storage.s3_media import S3Media
from storage.s3_signing import Credentials


def bus(configured: settings.Bus, database: Database, *, shares: bool) -> Bus:
    """What tells other processes; `shares` when some are known to be there."""
    if configured.kind is settings.BusKind.POSTGRES:
        return PostgresBus(database, carries=shares)
    nats = importlib.import_module("storage.nats_bus")  # only where it is used: it takes time and memory
    servers = nats.NatsServers(
        [each.value for each in configured.servers] or ["nats://127.0.0.1:4222"], configured.certificate_authorities
    )
    made: Bus = nats.NatsBus(database, servers)
    return made


def media_store(config: Config) -> MediaStore:
    """Where media is kept."""
    files, bucket = MediaFiles(config.data_directory / "media"), config.media.s3
    if bucket.endpoint is None or bucket.bucket is None or bucket.access_key is None or bucket.secret_key is None:
        return files
    credentials = Credentials(bucket.access_key, bucket.secret_key.value, bucket.region)
    return S3Media(files, S3Bucket(f"{bucket.endpoint.rstrip('/')}/{bucket.bucket}", credentials))


def lifetimes(configured: settings.Sessions) -> Lifetimes:
    """How long tokens live."""
    return Lifetimes(
        refreshable_ms=configured.access_token_lifetime, refresh_token_ms=configured.refresh_token_lifetime
    )


def application_services(config: Config) -> ApplicationServices:
    """The application services whose registration files are listed; raises StartupError."""
    try:
        return registrations.load_all(config.application_service_files, ServerName(config.server_name))
    except ApplicationServiceError as error:
        raise StartupError([str(error)]) from error


def speaks_with(configured: settings.Federation) -> Callable[[ServerName], bool]:
    """Whether this server has to do with another."""
    if not configured.enabled:
        return lambda _server_name: False
    return ServerACL({"allow": list(configured.allowed_servers), "deny": list(configured.denied_servers)}).allows


def rate_limits(configured: settings.RateLimits, table: BudgetTable | None) -> RateLimits:
    """Every budget that the settings name, in a table that is shared with other processes, or its own."""
    limits = {
        each.name: Limit(value.per_second, value.burst)
        for each in dataclasses.fields(configured)
        if isinstance(value := getattr(configured, each.name), settings.RateLimit)
    }
    return RateLimits(limits, enabled=configured.enabled, table=table)


def policies(configured: settings.Registration) -> list[Policy]:
    """What people agree to when they register."""
    return [
        Policy(name=each.id, version=each.version, language=each.language, title=each.name, url=each.url)
        for each in configured.terms
    ]


def registration_policy(configured: settings.Registration) -> RegistrationPolicy:
    """Who may make an account, and what it takes."""
    first = [uia.REGISTRATION_TOKEN] if configured.mode is RegistrationMode.TOKEN else []
    if configured.captcha.site_key is not None:
        first.append(uia.RECAPTCHA)
    if configured.terms:
        first.append(uia.TERMS)
    stages = {uia.EMAIL: configured.email, uia.PHONE: configured.phone}
    first += [stage for stage, proof in stages.items() if proof is ProofOnRegistration.REQUIRED]
    optional = [stage for stage, proof in stages.items() if proof is ProofOnRegistration.OPTIONAL]
    # No flow may be the beginning of another ("Dummy Auth"): who completes it could not take the longer one.
    last = [uia.DUMMY, *optional] if optional or not first else []
    is_closed = configured.mode is RegistrationMode.CLOSED
    return RegistrationPolicy(
        flows=None if is_closed else [[*first, stage] for stage in last] or [first],
        allows_guests=configured.allow_guests,
        uses_tokens=configured.mode is RegistrationMode.TOKEN,
    )


def turn_servers(configured: settings.Turn) -> TurnServers:
    """Who relays calls."""
    secret, password = configured.shared_secret, configured.password
    return TurnServers(
        uris=configured.uris,
        shared_secret=None if secret is None else secret.value,
        username=configured.username,
        password=None if password is None else password.value,
        lifetime_ms=configured.lifetime,
    )


def mail_server(configured: settings.Mail) -> MailServer | None:
    """Who takes mail, if anybody does."""
    if configured.host is None or configured.sender is None:
        return None
    ports = {settings.MailTLS.STARTTLS: 587, settings.MailTLS.TLS: 465, settings.MailTLS.NONE: 25}
    return MailServer(
        host=configured.host,
        port=configured.port or ports[configured.tls],
        uses_tls=configured.tls is settings.MailTLS.TLS,
        starts_tls=configured.tls is settings.MailTLS.STARTTLS,
        username=configured.username,
        password=None if configured.password is None else configured.password.value,
        sender=configured.sender,
        authorities=configured.certificate_authorities,
    )


def sms_gateway(configured: settings.SMS) -> SMSGateway | None:
    """Who takes SMS, if anybody does."""
    if configured.url is None:
        return None
    return SMSGateway(
        url=configured.url,
        token=None if configured.token is None else configured.token.value,
        allowed_countries=frozenset(configured.allowed_countries),
    )


def captcha(configured: settings.Captcha) -> CaptchaKeys | None:
    """What who registers has to solve, if anything."""
    if configured.site_key is None or configured.secret is None:
        return None
    return CaptchaKeys(site_key=configured.site_key, secret=configured.secret.value, verify_url=configured.verify_url)


def identifier_policy(config: Config) -> IdentifierPolicy:
    """What is decided of e-mail addresses and phone numbers."""
    configured = config.identifiers
    return IdentifierPolicy(
        server_name=config.server_name,
        base_url=config.base_url,
        reveals_use=configured.reveal_use,
        lifetime_ms=configured.link_lifetime,
        next_link_hosts=frozenset(host.lower() for host in configured.next_link_hosts),
    )


def trusts(configured: settings.Identifiers) -> Callable[[ServerName], bool]:
    """Whether users may use an identity server."""
    return ServerACL({"allow": list(configured.identity_servers), "deny": []}).allows


def preview_policy(config: Config) -> PreviewPolicy:
    """What is decided of previews."""
    configured = config.url_previews
    return PreviewPolicy(
        enabled=configured.enabled,
        allowed_hosts=tuple(host.lower() for host in configured.allowed_hosts),
        denied_hosts=tuple(host.lower() for host in configured.denied_hosts),
        accept_language=", ".join(configured.accept_language) or "*",
        lifetime_ms=configured.lifetime,
        max_image_bytes=configured.max_image_size,
        max_image_pixels=config.media.max_image_pixels,
    )


def notice_policy(config: Config) -> NoticePolicy | None:
    """Who tells users what the operator has to tell them, if anybody does."""
    configured = config.server_notices
    if configured.sender is None:
        return None
    return NoticePolicy(
        sender=check_localpart(configured.sender, ServerName(config.server_name)),
        display_name=configured.display_name,
        avatar_url=configured.avatar_url,
        room_name=configured.room_name,
        joins=configured.auto_join,
        room_version=config.default_room_version,
    )


def description(config: Config) -> ServerDescription:
    """What the server says of itself."""
    return ServerDescription(
        base_url=config.base_url,
        federation_server=config.federation.well_known_server,
        default_room_version=config.default_room_version,
        makes_previews=config.url_previews.enabled,
        forgets_rooms_on_leave=config.forget_rooms_on_leave,
        changes_identifiers=config.mail.host is not None or config.sms.url is not None,
        livekit_service_urls=config.calls.livekit_service_urls,
        policy_server_key=config.policy_server.public_key,
        support_page=config.support.page,
        support_email=config.support.email,
        support_matrix_id=config.support.matrix_id,
    )
