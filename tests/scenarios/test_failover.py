"""A failover to a synchronous standby under load: nothing answered is lost, nothing is skipped, nobody has to help."""

import asyncio
import random
import shutil
import time

import pytest
from psycopg.conninfo import conninfo_to_dict

from homeserver import signing_keys
from tests.scenarios.hearth_process import a_directory, serving
from tests.scenarios.test_chaos import Crowd, anywhere
from tests.standby import Replicated

DECIDES_SECONDS = 2.0
"""How long whoever watches the primary takes to promote the standby."""
BACK_SECONDS = 15
"""Within which messages are sent again after that."""


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_a_failover_loses_nothing_that_was_answered(capsys: pytest.CaptureFixture[str]) -> None:
    directory = a_directory()
    signing_keys.create(directory / "signing.key")
    replicated = await asyncio.to_thread(Replicated)
    try:
        await asyncio.to_thread(replicated.wait_for_replica)
        ports = [conninfo_to_dict(each)["port"] for each in (replicated.primary, replicated.replica)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = f"postgresql://hearth@{hosts}/hearth?target_session_attrs=read-write"
        settings = f"database: {{url: '{url}'}}\nsigning_key_file: {directory}/signing.key\n"
        async with (
            serving(settings, arguments=("--workers", "2")) as server,
            anywhere(server) as visitor,
        ):
            crowd = Crowd(lambda: replicated.replica, visitor, random.Random("failover"))
            await crowd.gather()
            async with crowd.at_work():
                await asyncio.sleep(2)
                before = len(crowd.journal.events)
                await asyncio.to_thread(replicated.stop_primary)
                await asyncio.sleep(DECIDES_SECONDS)
                at_most = len(crowd.journal.events)
                promoted = time.monotonic()
                await asyncio.to_thread(replicated.promote)
                while len(crowd.journal.events) == at_most:  # noqa: ASYNC110  # of other processes
                    await asyncio.sleep(0.01)
                seconds = time.monotonic() - promoted
                await asyncio.sleep(3)
            messages = await crowd.reckon()
            counts = crowd.journal.counts
            server.stop()
            assert "Traceback" not in server.log, server.log[-6000:]
    finally:
        await asyncio.to_thread(replicated.close)
        shutil.rmtree(directory)

    assert seconds < BACK_SECONDS
    with capsys.disabled():
        print(  # noqa: T201  # the figures
            f"\nfailover: {seconds:.1f} s after the standby was promoted messages were sent again; {before} before,"
            f" {messages} in all; {counts.answered} requests answered, {counts.repeated} repeated, {counts.refused}"
            " refused with 503; every view equals the log",
            end="",
        )
