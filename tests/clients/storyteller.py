"""The Node process that tells stories: one for all of them, asked for one after another."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.clients.installing import CHROMIUM, HERE, NODE

_SECONDS = 110
"""Longer than a story may take, which it notices by itself."""
_STORY = re.compile(r"^export async function (\w+)\(world\)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Story:
    """A function of one of the files in `stories/`."""

    file: str
    name: str


def stories() -> Sequence[Story]:
    """All of them."""
    return [
        Story(file.stem, name)
        for file in sorted((HERE / "stories").glob("*.mjs"))
        for name in _STORY.findall(file.read_text(encoding="utf-8"))
    ]


class Storyteller:
    """What it says besides its answers goes to `log`."""

    def __init__(self, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self._process = process
        self._log = log

    async def tell(self, story: Story, world: dict[str, Any]) -> None:
        """Return when the story has come to its good end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said_before = self._log.seek(0, 2)
        request = {"file": story.file, "story": story.name, "world": world}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            async with asyncio.timeout(_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            self._process.kill()  # or the next story would be told this one's end
            raise
        answer = json.loads(line or '{"failure": "the process that tells stories has ended"}')
        if answer:
            self._log.seek(said_before)
            said = self._log.read()[-6000:].decode(errors="replace")
            raise AssertionError(f"{answer['failure']}\n\nClients said:\n{said}")


@asynccontextmanager
async def a_storyteller(directory: Path) -> AsyncIterator[Storyteller]:
    """One that listens; ended at the end of the block. `directory` is for its files."""
    with (directory / "clients.log").open("w+b") as log:
        process = await asyncio.create_subprocess_exec(
            NODE,
            *("--import", HERE / "loopback.mjs", HERE / "telling.mjs"),
            cwd=directory,
            # Nothing of the environment: no proxy, no certificates, no options of Node.
            env={"HOME": str(directory), "TMPDIR": str(directory), "CHROMIUM": str(CHROMIUM)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
        )
        try:
            yield Storyteller(process, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
