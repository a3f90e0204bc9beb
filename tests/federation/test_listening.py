"""The ports that other servers come to."""

import asyncio
import ssl

import pytest

from tests.federation.authority import Authority
from tests.federation.servers import federating


@pytest.mark.one_process("it lives on when the server has stopped")
async def test_whose_handshake_ends_after_the_server_did_is_turned_away(
    maintenance_conninfo: str, authority: Authority
) -> None:
    async with federating(maintenance_conninfo, authority) as server:
        host, _, port = server.application.config.server_name.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await asyncio.sleep(0.2)  # until it is accepted

    async with asyncio.timeout(10):
        await writer.start_tls(ssl.create_default_context(cafile=authority.certificate), server_hostname=host)
        assert await reader.read() == b""
    writer.close()
