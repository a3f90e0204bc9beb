"""A part of `make test-workers`: the tests that tell most of what processes must agree on."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TELLING = ("test_sync_rooms.py", "test_sync_to_device.py", "test_user_data_in_sync.py")


@pytest.mark.one_process("it runs tests with several")
@pytest.mark.timeout(300)
async def test_four_processes_behind_one_port_are_as_one() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-n0", "-q", "--no-cov", "-p", "no:cacheprovider"),
        *(f"tests/homeserver/{each}" for each in TELLING),
        cwd=ROOT,
        env={**os.environ, "HEARTH_TEST_WORKERS": "4"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert process.returncode == 0, said.decode(errors="replace")[-8000:]
