"""Work on what strangers made, in a process of its own: a program of ours that is run by its path and never imported,
limits itself, and speaks by its output and its exit code alone. One that takes too long or says too much is killed.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import BinaryIO


async def run(
    program: Path, arguments: list[str], given: BinaryIO, *, seconds: float, max_bytes: int
) -> tuple[int, bytes]:
    """Its exit code and output, with the file as its input; -1 for one that was killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-B",
        "-P",
        "-s",
        str(program),
        *arguments,
        stdin=given,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
        cwd="/",
    )
    assert process.stdout is not None
    output = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await process.stdout.read(65_536):
                output += chunk
                if len(output) > max_bytes:
                    break
            else:
                return await process.wait(), bytes(output)
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return -1, b""
