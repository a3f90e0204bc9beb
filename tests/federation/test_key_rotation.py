"""A server whose key is replaced by `hearth rotate-key`, as another server sees it, both whole and over TLS."""

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

from federation.protocol.errors import PeerRefused
from federation.protocol.types import JsonObject, ServerName
from homeserver import signing_keys
from homeserver.app import Application
from homeserver.config import ExistingFile, Federation, Listener
from tests.federation.peer import now_ms
from tests.federation.servers import Pair, free_port
from tests.servers import TEST_CONFIG

NOWHERE = "/_matrix/federation/v1/event/$" + "x" * 43


@asynccontextmanager
async def started(pair: Pair, conninfo: str, port: int, key_file: Path) -> AsyncIterator[Application]:
    """The server of this key file, as it is at each start."""
    certificate, key = pair.authority.issue("127.0.0.1")
    config = dataclasses.replace(
        TEST_CONFIG,
        server_name=f"127.0.0.1:{port}",
        listeners=(Listener(port=port, tls_certificate=ExistingFile(certificate), tls_key=ExistingFile(key)),),
        federation=Federation(
            allowed_ranges=(ip_network("127.0.0.0/8"),),
            certificate_authorities=(ExistingFile(pair.authority.certificate),),
            notary_servers=(),
        ),
    )
    application = Application(config, conninfo, signing_keys.load_all(key_file, now_ms()))
    await application.start()
    try:
        yield application
    finally:
        await application.stop()


async def asked(application: Application, pair: Pair) -> int:
    """The status of a signed request to the far server for an event that there is not: 404, or 401."""
    with pytest.raises(PeerRefused) as refused:
        await application.outbound.client.get(ServerName(pair.far.name), NOWHERE)
    return refused.value.status


async def published(application: Application, pair: Pair) -> JsonObject:
    """Its keys, as the far server gets them."""
    name = ServerName(application.config.server_name)
    return await pair.far.application.outbound.client.get(name, "/_matrix/key/v2/server", patient=True)


@pytest.mark.one_process("the clock of who asks for keys is set here")
async def test_a_server_goes_on_with_its_new_key(
    pair: Pair, conninfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, key_file = free_port(), tmp_path / "signing.key"
    signing_keys.create(key_file)
    async with started(pair, conninfo, port, key_file) as before:
        assert await asked(before, pair) == 404
        old, new = signing_keys.rotate(key_file)
        assert await asked(before, pair) == 404  # with the key that it was started with
        assert list((await published(before, pair))["verify_keys"]) == [old.key_id]

    restarted_ts = now_ms()
    monkeypatch.setattr(pair.far.application.outbound.keyring._fetcher, "_clock", lambda: time.monotonic() + 60)
    async with started(pair, conninfo, port, key_file) as after:
        assert await asked(after, pair) == 404
        keys = await published(after, pair)
        assert list(keys["verify_keys"]) == [new.key_id]
        assert restarted_ts <= keys["old_verify_keys"][old.key_id]["expired_ts"] <= now_ms()
        monkeypatch.setattr(after.outbound.client, "_signing_key", old)
        assert await asked(after, pair) == 401  # whoever has the old key is nobody now
