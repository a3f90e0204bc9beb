"""Every setting, typed and defaulted, as plain values.

`config_loading.py` reads them from YAML, `config.example.yaml` lists them with their defaults, and `app.py` hands them
on: nothing below `homeserver` knows this module. The docstring below a field is for the reader of the code; the
example file's comment is for the operator. One file, however long: it is a list to look a setting up in.
"""

import dataclasses
import enum
import importlib.util
import ipaddress
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.utils import parseaddr
from pathlib import Path
from typing import Any, NewType

from federation.protocol import room_versions
from federation.protocol.event_hashes import decode_base64
from federation.protocol.identifiers import is_server_name, is_user_id
from federation.protocol.server_keys import is_public_key

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

ByteCount = NewType("ByteCount", int)
"""Written as a number or with a unit: `50 MB`."""

ExistingFile = NewType("ExistingFile", Path)
"""A file that must be there."""

Milliseconds = NewType("Milliseconds", int)
"""Written with a unit: `5 min`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """A value that no log and no message shows; `NAME_file` names a file to read it from."""

    value: str

    def __repr__(self) -> str:
        return "Secret(...)"


class API(enum.StrEnum):
    """What a listener serves."""

    CLIENT = "client"
    FEDERATION = "federation"
    ADMIN = "admin"
    METRICS = "metrics"
    HEALTH = "health"


class RegistrationMode(enum.StrEnum):
    """Who may register an account."""

    CLOSED = "closed"
    OPEN = "open"
    TOKEN = "token"  # noqa: S105  # the name of a mode


class MailTLS(enum.StrEnum):
    """How a connection to the mail server is encrypted."""

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


class ProofOnRegistration(enum.StrEnum):
    """Whether who registers proves to have an e-mail address, or a phone number."""

    NEVER = "never"
    OPTIONAL = "optional"
    REQUIRED = "required"


class BusKind(enum.StrEnum):
    """What tells processes of each other's entries."""

    POSTGRES = "postgres"
    NATS = "nats"


class Language(enum.StrEnum):
    """Languages whose forms of words PostgreSQL knows."""

    NONE = "none"
    ARABIC = "arabic"
    DANISH = "danish"
    DUTCH = "dutch"
    ENGLISH = "english"
    FINNISH = "finnish"
    FRENCH = "french"
    GERMAN = "german"
    HUNGARIAN = "hungarian"
    ITALIAN = "italian"
    NORWEGIAN = "norwegian"
    PORTUGUESE = "portuguese"
    ROMANIAN = "romanian"
    RUSSIAN = "russian"
    SPANISH = "spanish"
    SWEDISH = "swedish"
    TURKISH = "turkish"


class LogLevel(enum.StrEnum):
    """The least important kind of line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.StrEnum):
    """How a line looks."""

    TEXT = "text"
    JSON = "json"


def setting(default: Any, *, minimum: float | None = None, maximum: float | None = None) -> Any:  # noqa: ANN401  # as dataclasses.field
    """A field with a default and the range in which its numbers must lie."""
    metadata = {"minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """One address and port."""

    address: str = "127.0.0.1"
    port: int = setting(8008, minimum=0, maximum=65535)
    tls_certificate: ExistingFile | None = None
    tls_key: ExistingFile | None = None
    apis: tuple[API, ...] = (API.CLIENT, API.FEDERATION, API.ADMIN, API.HEALTH)
    behind_proxy: bool = False
    """Whether `X-Forwarded-For` names the client."""
    request_id_header: str | None = None
    """The header by which our own proxy says what it calls a request."""

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Settings that do not go together."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_certificate"
            yield missing, "TLS needs both a certificate and its key: set both tls_certificate and tls_key, or neither"
        if not self.apis:
            yield "apis", "a listener without an API serves nothing: name at least one, or remove the listener"
        if self.request_id_header is not None and not self.behind_proxy:
            yield "request_id_header", "only your own proxy may name requests: set behind_proxy, too, or remove it"


@dataclasses.dataclass(frozen=True, slots=True)
class Database:
    """PostgreSQL: our own unless `url` is given."""

    SHORTHAND = "url"

    url: Secret | None = None
    binaries: Path | None = None
    """The programs of an installed PostgreSQL for our own cluster; else those of the wheel."""
    max_connections: int = setting(10, minimum=2, maximum=1000)
    replicas: tuple[Secret, ...] = ()
    """Standbys that rooms' history is read from."""

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Settings that do not go together."""
        for replica in self.replicas:
            if not replica.value.startswith(("postgresql://", "postgres://")):
                yield "replicas", "not an address: write postgresql://USER:PASSWORD@HOST/DATABASE"
        if self.url is not None and not self.url.value.startswith(("postgresql://", "postgres://")):
            yield "url", "only PostgreSQL is supported: write postgresql://USER:PASSWORD@HOST/DATABASE"
        if self.url is not None and self.binaries is not None:
            yield "binaries", "used only for a database of our own: remove it, or remove url"


@dataclasses.dataclass(frozen=True, slots=True)
class Bus:
    """How processes hear of each other at once."""

    SHORTHAND = "kind"

    kind: BusKind = BusKind.POSTGRES
    servers: tuple[Secret, ...] = ()
    """None: one on this machine."""
    certificate_authorities: tuple[ExistingFile, ...] = ()
    """Trusted besides the system's."""

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Addresses that are none."""
        for server in self.servers:
            if not server.value.startswith(("nats://", "tls://")):
                yield "servers", "write nats://HOST:PORT, or tls://HOST:PORT, each with USER:PASSWORD@ if need be"


@dataclasses.dataclass(frozen=True, slots=True)
class TermsDocument:
    """A document that people accept when they register (User-Interactive Authentication, "m.login.terms")."""

    id: str
    version: str
    name: str
    url: str
    language: str = "en"


@dataclasses.dataclass(frozen=True, slots=True)
class Captcha:
    """Google's reCAPTCHA 2, or what is made like it; without a site key there is none."""

    site_key: str | None = None
    secret: Secret | None = None
    verify_url: str = "https://www.google.com/recaptcha/api/siteverify"
    script_url: str = "https://www.google.com/recaptcha/api.js"

    def complaints(self) -> Iterator[tuple[str, str]]:
        """A captcha that is named in part."""
        if self.site_key is not None and self.secret is None:
            yield "secret", "needed with site_key"
        for name in ("verify_url", "script_url"):
            if not getattr(self, name).startswith("https://"):
                yield name, "not an address: write https://HOST/PATH"


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """Who may make an account."""

    SHORTHAND = "mode"

    mode: RegistrationMode = RegistrationMode.CLOSED
    allow_guests: bool = False
    shared_secret: Secret | None = None
    """For `/_synapse/admin/v1/register`; without it that endpoint refuses."""
    terms: tuple[TermsDocument, ...] = ()
    email: ProofOnRegistration = ProofOnRegistration.NEVER
    phone: ProofOnRegistration = ProofOnRegistration.NEVER
    captcha: Captcha = Captcha()

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Values that are too weak."""
        if self.shared_secret is not None and len(self.shared_secret.value) < 16:
            yield "shared_secret", "too short to be secret: use at least 16 random characters (openssl rand -hex 32)"


@dataclasses.dataclass(frozen=True, slots=True)
class Passwords:
    """What passwords must be, and what a guess costs (Argon2id)."""

    minimum_length: int = setting(8, minimum=1, maximum=512)
    hash_kib: int = setting(19_456, minimum=8, maximum=1_048_576)
    hash_passes: int = setting(2, minimum=1, maximum=100)


@dataclasses.dataclass(frozen=True, slots=True)
class Sessions:
    """Access tokens that can be refreshed."""

    access_token_lifetime: Milliseconds = setting(300_000, minimum=1000)
    refresh_token_lifetime: Milliseconds | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RateLimit:
    """`burst` at once, and `per_second` more as time passes."""

    per_second: float = setting(1.0, minimum=0.0001)
    burst: int = setting(1, minimum=1)


@dataclasses.dataclass(frozen=True, slots=True)
class RateLimits:
    """Budgets; `rate_limits: off` for tests."""

    SHORTHAND = "enabled"

    enabled: bool = True
    requests: RateLimit = RateLimit(50.0, 500)
    messages: RateLimit = RateLimit(10.0, 100)
    joins: RateLimit = RateLimit(0.5, 20)
    invites: RateLimit = RateLimit(0.5, 30)
    room_creation: RateLimit = RateLimit(0.2, 10)
    login: RateLimit = RateLimit(0.2, 10)
    failed_login: RateLimit = RateLimit(0.1, 5)
    registration: RateLimit = RateLimit(0.1, 5)
    previews: RateLimit = RateLimit(0.5, 30)
    verification: RateLimit = RateLimit(0.005, 5)
    authentication: RateLimit = RateLimit(0.2, 20)
    reports: RateLimit = RateLimit(0.02, 20)
    federation: RateLimit = RateLimit(50.0, 500)


# Addresses that must not be reached from outside by way of our requests.
_PRIVATE_RANGES = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 "
    "192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
    "::/128 ::1/128 64:ff9b::/96 64:ff9b:1::/48 100::/64 2001::/23 2001:db8::/32 2002::/16 fc00::/7 fe80::/10 ff00::/8"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Federation:
    """Other servers."""

    enabled: bool = True
    """Whether the federation API is served."""
    well_known_server: str | None = None
    """What `/.well-known/matrix/server` answers: where other servers reach us."""
    allowed_servers: tuple[str, ...] = ("*",)
    """Names, with `*` and `?`, and without ports, of the servers that this one speaks with."""
    denied_servers: tuple[str, ...] = ()
    """Exceptions from `allowed_servers`."""
    denied_ranges: tuple[IPNetwork, ...] = tuple(ipaddress.ip_network(text) for text in _PRIVATE_RANGES.split())
    allowed_ranges: tuple[IPNetwork, ...] = ()
    """Exceptions from `denied_ranges`."""
    certificate_authorities: tuple[ExistingFile, ...] = ()
    """Trusted besides the system's."""
    notary_servers: tuple[str, ...] = ("matrix.org",)
    send_presence: bool = False
    """Whether other servers are told who is online."""
    show_device_names: bool = False
    """Whether other servers are told what users call their devices."""
    publish_rooms: bool = False
    """Whether other servers are told which rooms are in the directory."""
    message_lifetime: Milliseconds = setting(Milliseconds(90 * 86_400_000), minimum=3_600_000)
    """For how long to-device messages are kept for a server that does not take them, and a server's for a device that
    does not ask for them."""

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Names that are none."""
        if self.well_known_server is not None and not is_server_name(self.well_known_server):
            yield "well_known_server", "not a server name: write HOST or HOST:PORT"
        for name in self.notary_servers:
            if not is_server_name(name):
                yield "notary_servers", f"{name!r} is not a server name: write HOST or HOST:PORT"


@dataclasses.dataclass(frozen=True, slots=True)
class S3:
    """A bucket for media; without an endpoint there is none."""

    endpoint: str | None = None
    bucket: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: Secret | None = None

    def complaints(self) -> Iterator[tuple[str, str]]:
        """A bucket that is named in part."""
        if self.endpoint is None:
            return
        if not self.endpoint.startswith(("https://", "http://")):
            yield "endpoint", "not an address: write https://HOST"
        for name in ("bucket", "access_key", "secret_key"):
            if getattr(self, name) is None:
                yield name, "needed with endpoint"


@dataclasses.dataclass(frozen=True, slots=True)
class Media:
    """Uploads and what is fetched from other servers."""

    max_upload_size: ByteCount = setting(50_000_000, minimum=1000)
    max_remote_size: ByteCount = setting(50_000_000, minimum=1000)
    max_image_pixels: int = setting(32_000_000, minimum=1)
    max_size_per_user: ByteCount | None = None
    max_remote_cache_size: ByteCount | None = ByteCount(10_000_000_000)
    s3: S3 = S3()


@dataclasses.dataclass(frozen=True, slots=True)
class URLPreviews:
    """Previews of pages that users write of."""

    SHORTHAND = "enabled"

    enabled: bool = True
    allowed_hosts: tuple[str, ...] = ("*",)
    denied_hosts: tuple[str, ...] = ()
    allowed_ranges: tuple[IPNetwork, ...] = ()
    """Exceptions from `federation.denied_ranges`; those of federation do not count here."""
    accept_language: tuple[str, ...] = ("en",)
    lifetime: Milliseconds = setting(Milliseconds(3_600_000), minimum=1000)
    max_image_size: ByteCount = setting(10_000_000, minimum=1000)

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Languages that are none."""
        for language in self.accept_language:
            if re.fullmatch(r"[A-Za-z0-9*-]{1,40}(;q=[01](\.[0-9]{1,3})?)?", language) is None:
                yield "accept_language", f"{language!r} is no language: write en, or de;q=0.5"


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """Searching messages."""

    SHORTHAND = "enabled"

    enabled: bool = True
    language: Language = Language.ENGLISH


@dataclasses.dataclass(frozen=True, slots=True)
class UserDirectory:
    """Searching users."""

    all_local_users: bool = False
    """Whether everybody finds every user of this server."""


@dataclasses.dataclass(frozen=True, slots=True)
class Logging:
    """What the server says of itself."""

    SHORTHAND = "level"

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class Tracing:
    """What a collector of OpenTelemetry is told."""

    SHORTHAND = "endpoint"

    endpoint: str | None = None
    """Where it takes OTLP over HTTP; None: nothing is traced."""
    authorization: Secret | None = None
    sample_ratio: float = setting(0.01, minimum=0.0, maximum=1.0)

    def complaints(self) -> Iterator[tuple[str, str]]:
        """An address that is none."""
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            yield "endpoint", "no address: write http://HOST:4318/v1/traces"
        elif self.endpoint is not None and not _is_installed("opentelemetry.sdk"):
            yield "endpoint", "the libraries for it are not installed: pip install 'hearth[tracing]', or remove it"


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyServer:
    """What `/.well-known/matrix/policy_server` answers; nothing if nothing is set."""

    SHORTHAND = "public_key"

    public_key: str | None = None

    def complaints(self) -> Iterator[tuple[str, str]]:
        """A key that is none."""
        if self.public_key is not None and not is_public_key(decode_base64(self.public_key) or b""):
            yield "public_key", "not an Ed25519 key in base64, as the policy server prints it"


@dataclasses.dataclass(frozen=True, slots=True)
class Support:
    """What `/.well-known/matrix/support` answers; nothing if nothing is set."""

    page: str | None = None
    email: str | None = None
    matrix_id: str | None = None

    def complaints(self) -> Iterator[tuple[str, str]]:
        """A user ID that is none."""
        if self.matrix_id is not None and not is_user_id(self.matrix_id):
            yield "matrix_id", "not a user ID: write @NAME:SERVER in quotation marks"


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """Servers that relay calls between clients that cannot reach each other."""

    uris: tuple[str, ...] = ()
    shared_secret: Secret | None = None
    username: str | None = None
    password: Secret | None = None
    lifetime: Milliseconds = setting(Milliseconds(86_400_000), minimum=60_000)

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Settings that do not go together."""
        for uri in self.uris:
            if not uri.startswith(("turn:", "turns:", "stun:", "stuns:")):
                yield "uris", f"{uri!r} is no address of a TURN server: write turn:HOST:PORT?transport=udp"
        if self.uris and self.shared_secret is None and (self.username is None or self.password is None):
            yield "shared_secret", "needed with uris, unless there are a username and a password"


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """What carries the sound and pictures of group calls (MatrixRTC)."""

    livekit_service_urls: tuple[str, ...] = ()

    def complaints(self) -> Iterator[tuple[str, str]]:
        """What clients could not connect to."""
        for url in self.livekit_service_urls:
            if not url.startswith(("https://", "http://")):
                yield "livekit_service_urls", f"{url!r} is no address of a service: write https://HOST/..."


@dataclasses.dataclass(frozen=True, slots=True)
class Mail:
    """The server that takes mail; without a host there is none."""

    host: str | None = None
    port: int | None = setting(None, minimum=1, maximum=65535)
    tls: MailTLS = MailTLS.STARTTLS
    username: str | None = None
    password: Secret | None = None
    sender: str | None = None
    certificate_authorities: tuple[ExistingFile, ...] = ()

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Settings that do not go together."""
        if self.host is None:
            return
        if self.sender is None or not is_sender(self.sender):
            yield "sender", "needed with host: write an address, or 'NAME <ADDRESS>'"
        if (self.username is None) != (self.password is None):
            yield "username", "set both username and password, or neither"
        if self.password is not None and self.tls is MailTLS.NONE:
            yield (
                "tls",
                "a password would be sent in the clear: choose starttls or tls, or remove username",
            )


@dataclasses.dataclass(frozen=True, slots=True)
class SMS:
    """The gateway that takes SMS; without a URL there is none."""

    url: str | None = None
    token: Secret | None = None
    allowed_countries: tuple[str, ...] = ()
    """To whose numbers any are sent; none: to all."""

    def complaints(self) -> Iterator[tuple[str, str]]:
        """What is no address, and no country."""
        if self.url is not None and not self.url.startswith(("https://", *_THIS_MACHINE)):
            yield "url", "not an address: write https://HOST/PATH, or http://localhost:PORT/PATH"
        for country in self.allowed_countries:
            if not re.fullmatch(r"[A-Z]{2}", country):
                yield "allowed_countries", f"{country!r} is no country: write its two capital letters, such as DE"


_THIS_MACHINE = tuple(f"http://{host}{end}" for host in ("localhost", "127.0.0.1", "[::1]") for end in ":/")


@dataclasses.dataclass(frozen=True, slots=True)
class Identifiers:
    """E-mail addresses and phone numbers of accounts."""

    reveal_use: bool = False
    """Whether who asks is told that an address is some account's, or nobody's."""
    link_lifetime: Milliseconds = setting(Milliseconds(3_600_000), minimum=60_000, maximum=7 * 86_400_000)
    next_link_hosts: tuple[str, ...] = ()
    """Where somebody may be led on to who has followed a link in mail."""
    identity_servers: tuple[str, ...] = ("*",)


def is_sender(text: str) -> bool:
    """Whether mail may be from this: an address of ASCII, which may have a name."""
    name, address = parseaddr(text)
    try:
        return Address(name, addr_spec=address).domain != "" and address.isascii()
    except (HeaderParseError, IndexError, ValueError):  # whatever it raises at what is none
        return False


_LOCALPART = re.compile(r"[a-z0-9._=/+-]{1,200}")


@dataclasses.dataclass(frozen=True, slots=True)
class ServerNotices:
    """What the operator tells users in rooms of their own; without a sender there are none."""

    SHORTHAND = "sender"

    sender: str | None = None
    display_name: str = "Server notices"
    avatar_url: str | None = None
    room_name: str = "Server notices"
    auto_join: bool = False

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Names that are none."""
        if self.sender is not None and not _LOCALPART.fullmatch(self.sender):
            yield "sender", "write the part of a user ID between @ and the colon, such as notices"
        if self.avatar_url is not None and not self.avatar_url.startswith("mxc://"):
            yield "avatar_url", "not media of a server: write mxc://SERVER/ID"


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """All settings of a server."""

    server_name: str
    public_base_url: str | None = None
    data_directory: Path = Path("data")
    signing_key_file: Path | None = None
    database: Database = Database()
    bus: Bus = Bus()
    listeners: tuple[Listener, ...] = (Listener(),)
    shutdown_delay: Milliseconds = setting(Milliseconds(0), maximum=600_000)
    """For how long `/ready` says that the server will end before it takes no more requests."""
    registration: Registration = Registration()
    passwords: Passwords = Passwords()
    sessions: Sessions = Sessions()
    rate_limits: RateLimits = RateLimits()
    federation: Federation = Federation()
    default_room_version: str = "12"
    forget_rooms_on_leave: bool = False
    """Whether who leaves a room has forgotten it."""
    media: Media = Media()
    url_previews: URLPreviews = URLPreviews()
    presence: bool = True
    search: Search = Search()
    user_directory: UserDirectory = UserDirectory()
    server_notices: ServerNotices = ServerNotices()
    query_string_tokens: bool = True
    application_service_files: tuple[ExistingFile, ...] = ()
    log: Logging = Logging()
    tracing: Tracing = Tracing()
    support: Support = Support()
    policy_server: PolicyServer = PolicyServer()
    turn: Turn = Turn()
    calls: Calls = Calls()
    mail: Mail = Mail()
    sms: SMS = SMS()
    identifiers: Identifiers = Identifiers()

    @property
    def base_url(self) -> str:
        """Where clients reach this server, without a slash at the end."""
        if self.public_base_url is not None:
            return self.public_base_url.rstrip("/")
        listener = self.listeners[0]
        scheme = "http" if listener.tls_certificate is None else "https"
        host = "localhost" if listener.address in ("127.0.0.1", "::1", "0.0.0.0", "::") else listener.address  # noqa: S104  # compared
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.port}"

    @property
    def signing_key_path(self) -> Path:
        """The file of the server's signing key."""
        return self.signing_key_file or self.data_directory / "signing.key"

    def complaints(self) -> Iterator[tuple[str, str]]:
        """Values that cannot be, and settings that do not go together."""
        if not is_server_name(self.server_name):
            yield "server_name", "not a server name: write the domain of your users' IDs, such as example.org"
        if self.public_base_url is not None and not self.public_base_url.startswith(("http://", "https://")):
            yield "public_base_url", "not an address: write https://HOST"
        if self.registration.email is not ProofOnRegistration.NEVER and self.mail.host is None:
            yield "registration", "email: addresses are proven by mail: set mail.host, too, or write never"
        if self.registration.phone is not ProofOnRegistration.NEVER and self.sms.url is None:
            yield "registration", "phone: numbers are proven by SMS: set sms.url, too, or write never"
        if not self.listeners:
            yield "listeners", "a server without a listener serves nobody: add one, or remove the setting"
        if self.default_room_version not in room_versions.ROOM_VERSIONS:
            known = ", ".join(room_versions.ROOM_VERSIONS)
            yield "default_room_version", f"no room version that this server knows: choose one of {known}"
