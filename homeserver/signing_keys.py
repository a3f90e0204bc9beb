"""The file of the server's signing key, in the format of signedjson: `ed25519 VERSION SEED`.

The key is the server's identity. It is made once, from the system's random source, when the server first runs; after
that a missing key is an error and not a reason to make another.
"""

import base64
import binascii
import os
import secrets
import string
from pathlib import Path

from federation.protocol.errors import InvalidInput
from federation.protocol.signatures import SigningKey

_SEED_BYTES = 32
# Random seeds have 30 different bytes on average; below this one in 10**19 has so few.
_FEWEST_DIFFERENT_BYTES = 16


class SigningKeyError(Exception):
    """The key cannot be used; the message says why and what to do."""


def create(path: Path) -> SigningKey:
    """Make a key and write it, readable for its owner only. Raises FileExistsError if there is a file."""
    version = "h_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(6))
    key = SigningKey.from_seed(version, secrets.token_bytes(_SEED_BYTES))
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(f"ed25519 {version} {base64.b64encode(key.seed).decode().rstrip('=')}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        os.link(scratch, path)  # unlike a rename, never over another file
    finally:
        scratch.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return key


def load(path: Path) -> SigningKey:
    """The key in this file. Raises SigningKeyError if it is missing, malformed, weak, or readable for others."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise SigningKeyError(
            f"The signing key {path} is missing, and this server has run before. Restore it from a backup: with "
            "another key, other servers refuse this one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SigningKeyError(f"The signing key {path} cannot be read: {error}.") from None
    if mode & 0o077:
        raise SigningKeyError(f"The signing key {path} can be read by other users: chmod 600 {path}")
    return _parse(path, text)


def _parse(path: Path, text: str) -> SigningKey:
    words = text.split()
    if len(words) != 3 or words[0] != "ed25519":
        raise SigningKeyError(
            f"The signing key {path} is not one line `ed25519 VERSION SEED`. Restore it from a backup."
        )
    try:
        seed = base64.b64decode(words[2] + "=" * (-len(words[2]) % 4), validate=True)
        key = SigningKey.from_seed(words[1], seed)
    except (binascii.Error, InvalidInput) as error:
        raise SigningKeyError(f"The signing key {path} is malformed ({error}). Restore it from a backup.") from None
    if len(set(seed)) < _FEWEST_DIFFERENT_BYTES:
        raise SigningKeyError(
            f"The signing key {path} is weak: its bytes were not chosen at random, so that others can guess it. "
            "Move it away; a server that has not federated yet may make another with a new data directory."
        )
    return key
