"""Settings: what an operator writes, what the server gets, and what the operator is told."""

import dataclasses
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from homeserver import config_loading
from homeserver.config import API, Config, LogLevel, RateLimit, RegistrationMode, Secret
from homeserver.config_loading import ConfigurationError

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"


def parse(text: str, directory: Path = Path()) -> Config:
    return config_loading.parse(text, file="config.yaml", directory=directory)


def complaints_about(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    return [mistake.describe("config.yaml") for mistake in caught.value.mistakes]


def test_the_example_sets_every_setting_to_its_default() -> None:
    assert parse(EXAMPLE.read_text(encoding="utf-8")) == Config("localhost")


def test_the_example_names_every_setting() -> None:
    def names(value: object, path: str) -> Iterator[str]:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield f"{path}.{field.name}"
                yield from names(getattr(value, field.name), f"{path}.{field.name}")
        elif isinstance(value, tuple):
            for entry in value:
                yield from names(entry, path)

    def written(value: object, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield f"{path}.{name}"
                yield from written(inner, f"{path}.{name}")
        elif isinstance(value, list):
            for entry in value:
                yield from written(entry, path)

    example = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert sorted(written(example, "")) == sorted(names(Config("localhost"), ""))


def test_a_server_name_suffices() -> None:
    config = parse("server_name: example.org")

    assert config.server_name == "example.org"
    assert config.database.url is None
    assert config.base_url == "http://localhost:8008"
    assert config.signing_key_path == Path("data/signing.key")


def test_short_forms() -> None:
    config = parse(
        "server_name: a.example\ndatabase: postgresql://db/x\nrate_limits: off\nlog: debug\nregistration: open"
    )

    assert config.database.url == Secret("postgresql://db/x")
    assert not config.rate_limits.enabled
    assert config.log.level is LogLevel.DEBUG
    assert config.registration.mode is RegistrationMode.OPEN


def test_a_part_of_a_section_leaves_the_rest_as_it_was() -> None:
    config = parse("server_name: a.example\nrate_limits: {messages: {burst: 7}}\nlisteners: [{port: 80}]")

    assert config.rate_limits.messages == RateLimit(10.0, 7)
    assert config.rate_limits.enabled
    assert config.listeners[0].apis == (API.CLIENT, API.FEDERATION, API.ADMIN, API.HEALTH)


def test_numbers_stand_for_text_where_text_is_meant() -> None:
    assert parse("server_name: a.example\ndefault_room_version: 11").default_room_version == "11"


@pytest.mark.parametrize(
    ("written", "size"), [("1234", 1234), ("5 MB", 5_000_000), ("5MiB", 5 * 1024 * 1024), ("1.5 GB", 1_500_000_000)]
)
def test_sizes_have_units(written: str, size: int) -> None:
    assert parse(f"server_name: a.example\nmedia: {{max_upload_size: {written}}}").media.max_upload_size == size


@pytest.mark.parametrize(
    ("written", "ms"), [("500 ms", 500), ("2 h", 7_200_000), ("1.5 min", 90_000), ("7d", 604_800_000)]
)
def test_times_have_units(written: str, ms: int) -> None:
    config = parse(f"server_name: a.example\nsessions: {{refresh_token_lifetime: {written}}}")
    assert config.sessions.refresh_token_lifetime == ms


def test_a_time_without_a_unit_is_refused() -> None:
    assert complaints_about("server_name: a.example\nsessions: {access_token_lifetime: 300}") == [
        "config.yaml:2: sessions.access_token_lifetime: '300' is no such quantity: write it like 5 min, "
        "with a unit of ms, s, min, h, d"
    ]


def test_ranges_of_addresses() -> None:
    config = parse("server_name: a.example\nfederation: {denied_ranges: [], allowed_ranges: [10.0.0.0/8, 'fc00::/7']}")

    assert config.federation.denied_ranges == ()
    assert config.federation.allowed_ranges == (ip_network("10.0.0.0/8"), ip_network("fc00::/7"))


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef\n", encoding="ascii")

    config = parse("server_name: a.example\nregistration: {shared_secret_file: secret}", tmp_path)

    assert config.registration.shared_secret == Secret("0123456789abcdef")
    assert "0123456789" not in repr(config)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    (tmp_path / "bridge.yaml").touch()
    file.write_text("server_name: a.example\napplication_service_files: [bridge.yaml]\n", encoding="ascii")

    config = config_loading.load(file)

    assert config.data_directory == tmp_path / "data"
    assert config.application_service_files == (tmp_path / "bridge.yaml",)


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    text = """\
server_nam: x
listeners:
  - prt: 8
    tls_key: nope.pem
  - port: 99999
    apis: [client, foo]
registration: opn
database:
  url: mysql://db
  max_connections: no
  max_connections: 3
federation: {denied_ranges: [10.0.0.1/8]}
default_room_version: 13
public_base_url: example.org
media: 3
"""
    beginnings = [
        "config.yaml:1: server_nam: unknown setting: did you mean server_name?",
        "config.yaml:1: server_name: missing: add server_name",
        "config.yaml:3: listeners[0].prt: unknown setting: did you mean port?",
        "config.yaml:4: listeners[0].tls_key: there is no file nope.pem",
        "config.yaml:5: listeners[1].port: too large: at most 65535",
        "config.yaml:6: listeners[1].apis[1]: 'foo' is not known: choose one of client, federation, admin",
        "config.yaml:7: registration.mode: 'opn' is not known: choose one of closed, open, token",
        "config.yaml:9: database.url: only PostgreSQL",
        "config.yaml:10: database.max_connections: 'no' is not a whole number",
        "config.yaml:11: database.max_connections: set twice",
        "config.yaml:12: federation.denied_ranges[0]: not a range",
        "config.yaml:13: default_room_version: no room version",
        "config.yaml:14: public_base_url: not an address",
        "config.yaml:15: media: expected settings below it",
    ]
    found = complaints_about(text)

    assert [line[: len(beginning)] for line, beginning in zip(found, beginnings, strict=True)] == beginnings


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("server_name: yes", "put it into quotation marks"),
        ("server_name: ''", "it is empty"),
        ("server_name: a b", "not a server name"),
        ("server_name: {a: b}", "expected a single value"),
        ("[", "not YAML"),
        ("a: b: c", "not YAML"),
        ("- a", "expected settings below it"),
        ("server_name: a.example\nlisteners: []", "a server without a listener serves nobody"),
        ("server_name: a.example\nlisteners: {port: 1}", "expected a list"),
        ("server_name: a.example\nlisteners: [{apis: []}]", "a listener without an API"),
        ("server_name: a.example\nlisteners: [{tls_key: /dev/null}]", "there is no file"),
        ("server_name: a.example\npresence: 1", "write true or false"),
        ("server_name: a.example\nregistration: {shared_secret: short}", "too short to be secret"),
        ("server_name: a.example\nregistration: {shared_secret_file: /nonexistent}", "cannot be read"),
        ("server_name: a.example\nregistration: {shared_secret_file: /dev/null}", "is empty"),
        ("server_name: a.example\nregistration: {terms: [{id: x}]}", "missing: add version"),
        ("server_name: a.example\ndatabase: {url: 'postgresql://x', binaries: /usr/bin}", "remove it, or remove url"),
        ("server_name: a.example\nrate_limits: {login: {per_second: 0}}", "too small"),
        ("server_name: a.example\nrate_limits: {login: {per_second: fast}}", "not a number"),
        ("server_name: a.example\nfederation: {well_known_server: 'a b'}", "not a server name"),
        ("server_name: a.example\nfederation: {notary_servers: ['a b']}", "not a server name"),
        ("server_name: a.example\nsupport: {matrix_id: someone}", "not a user ID"),
        ("server_name: a.example\ncalls: {livekit_service_urls: [lk.example]}", "no address of a service"),
        ("server_name: a.example\npolicy_server: {public_key: AAAA}", "not an Ed25519 key"),
        ("server_name: a.example\n? [a]\n: b", "unknown setting"),
    ],
)
def test_a_mistake_is_explained(text: str, complaint: str) -> None:
    assert any(complaint in line for line in complaints_about(text))


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.pem").touch()
    with pytest.raises(ConfigurationError, match="TLS needs both"):
        parse("server_name: a.example\nlisteners: [{tls_certificate: a.pem}]", tmp_path)


def test_a_missing_file_is_a_mistake_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        config_loading.load(tmp_path / "none.yaml")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["url", "mode", "port"]), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(Config)]), VALUES) | VALUES)
def test_whatever_is_written_is_read_or_refused_with_a_reason(value: object) -> None:
    refused: ConfigurationError | None = None
    try:
        parse(yaml.safe_dump(value))
    except ConfigurationError as error:
        refused = error
    assert refused is None or refused.mistakes


@pytest.mark.parametrize("sender", ["h@example.org", "Hearth <h@example.org>", '"A, B" <h@localhost>'])
def test_mail_is_from_an_address(sender: str) -> None:
    assert parse(f"server_name: a.example\nmail: {{host: m, sender: '{sender}'}}").mail.sender == sender


@pytest.mark.parametrize("sender", ["nobody", "Hearth", "a b@c@d", "<>", "x <a@>", "ü@example.org"])
def test_mail_is_from_nobody_else(sender: str) -> None:
    [complaint] = complaints_about(f"server_name: a.example\nmail: {{host: m, sender: '{sender}'}}")
    assert "mail.sender: needed with host" in complaint


@pytest.mark.parametrize(
    "url", ["https://sms.example.org/send", "http://localhost:9000/", "http://127.0.0.1/", "http://[::1]:1/"]
)
def test_sms_go_to_a_gateway_encrypted_or_on_this_machine(url: str) -> None:
    settings = parse(f"server_name: a.example\nsms: {{url: '{url}', allowed_countries: [DE, 'NO']}}").sms
    assert (settings.url, settings.allowed_countries) == (url, ("DE", "NO"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sms: {url: 'http://sms.example.org/'}", "sms.url: not an address"),
        ("sms: {url: 'http://localhost.example.org/'}", "sms.url: not an address"),
        ("sms: {allowed_countries: [Germany]}", "sms.allowed_countries: 'Germany' is no country"),
        ("sms: {allowed_countries: [de]}", "'de' is no country"),
        ("sms: {allowed_countries: [NO]}", "allowed_countries"),
        ("registration: {phone: optional}", "sms.url"),
    ],
)
def test_sms_that_go_nowhere_are_refused(text: str, said: str) -> None:
    [complaint] = complaints_about(f"server_name: a.example\n{text}")
    assert said in complaint


def test_mail_that_does_not_go_together_is_refused() -> None:
    password = "server_name: a.example\nmail: {host: m, sender: a@b.c, password: x"
    assert len(complaints_about(password + "}")) == 1
    assert "in the clear" in complaints_about(password + ", username: u, tls: none}")[0]
    assert "mail.host" in complaints_about("server_name: a.example\nregistration: {email: required}")[0]
    assert "captcha.secret" in complaints_about("server_name: a.example\nregistration: {captcha: {site_key: k}}")[0]
    assert "is no language" in complaints_about("server_name: a.example\nurl_previews: {accept_language: ['a, b']}")[0]
