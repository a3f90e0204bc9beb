"""The file of the server's signing key, in the format of signedjson: `ed25519 VERSION SEED`.

The key is the server's identity. It is made once, from the system's random source, when the server first runs; after
that a missing key is an error and not a reason to make another. `rotate` replaces it on command. Beside it, in a file
whose name ends in `.old`, stand the public halves of the keys before it, which prove what they signed:
`ed25519 VERSION PUBLIC_KEY EXPIRED_TS`, the last in milliseconds, or `-` until the server runs with a newer key: a
server that still runs at a rotation goes on signing with the key that it started with.
"""

import base64
import binascii
import os
import re
import secrets
import string
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from federation.protocol.errors import InvalidInput
from federation.protocol.event_hashes import decode_base64, encode_base64
from federation.protocol.identifiers import is_server_key_id
from federation.protocol.server_keys import OldKey, is_public_key
from federation.protocol.signatures import SigningKey, VerifyKey
from federation.protocol.types import KeyID

_SEED_BYTES = 32
# Random seeds have 30 different bytes on average; below this one in 10**19 has so few.
_FEWEST_DIFFERENT_BYTES = 16


_NOT_YET = "-"
_TIME = re.compile(r"[0-9]{1,15}")


class OwnKeys(Struct, frozen=True):
    """The key that this server signs with, and those that it signed with before."""

    signing_key: SigningKey
    old: tuple[OldKey, ...] = ()

    def verify_keys(self) -> dict[KeyID, VerifyKey]:
        """What our own signatures are verified with."""
        keys = {old.key_id: VerifyKey(public_key=old.public_key, expired_ts=old.expired_ts) for old in self.old}
        return {**keys, self.signing_key.key_id: VerifyKey(public_key=self.signing_key.public_key)}


class SigningKeyError(Exception):
    """The key cannot be used; the message says why and what to do."""


def create(path: Path) -> SigningKey:
    """Make a key and write it, readable for its owner only. Raises FileExistsError if there is a file."""
    key = _make()
    _write(path, _line_of(key), mode=0o600, replace=False)
    return key


def rotate(path: Path) -> tuple[SigningKey, SigningKey]:
    """Replace the key by a new one and note the old one; both. Raises SigningKeyError as `load` does.

    Killed in between, it leaves the old key in place.
    """
    current, new = load(path), _make()
    old = [entry for entry in _read_old(path) if entry[0] != current.key_id]
    _write_old(path, [*old, (current.key_id, current.public_key, None)])
    _write(path, _line_of(new), mode=0o600, replace=True)
    return current, new


def load_all(path: Path, now_ms: int) -> OwnKeys:
    """The keys of a server that starts now: from now on it signs nothing with a key that was replaced since the last
    time. Raises SigningKeyError.
    """
    current = load(path)
    found = [entry for entry in _read_old(path) if entry[0] != current.key_id]
    stamped = [(key_id, public_key, now_ms if ts is None else ts) for key_id, public_key, ts in found]
    if stamped != found:
        _write_old(path, stamped)
    return OwnKeys(current, tuple(OldKey(key_id=key_id, public_key=key, expired_ts=ts) for key_id, key, ts in stamped))


def check(path: Path) -> None:
    """Raise SigningKeyError if a server that starts now could not use its keys."""
    load(path)
    _read_old(path)


def _make() -> SigningKey:
    version = "h_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(6))
    return SigningKey.from_seed(version, secrets.token_bytes(_SEED_BYTES))


def _line_of(key: SigningKey) -> str:
    return f"ed25519 {key.version} {encode_base64(key.seed)}\n"


def _write(path: Path, text: str, *, mode: int, replace: bool) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            scratch.replace(path)
        else:
            os.link(scratch, path)  # unlike a rename, never over another file
    finally:
        scratch.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


_OldEntry = tuple[KeyID, bytes, int | None]


def _old_path(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _write_old(path: Path, entries: Sequence[_OldEntry]) -> None:
    lines = [
        f"{key_id.replace(':', ' ')} {encode_base64(public_key)} {_NOT_YET if expired_ts is None else expired_ts}\n"
        for key_id, public_key, expired_ts in entries
    ]
    _write(_old_path(path), "".join(lines), mode=0o644, replace=True)


def _read_old(path: Path) -> list[_OldEntry]:
    old = _old_path(path)
    try:
        lines = old.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise SigningKeyError(f"The old signing keys in {old} cannot be read: {error}.") from None
    return [_parse_old(old, line) for line in lines if line.strip()]


def _parse_old(path: Path, line: str) -> _OldEntry:
    words = line.split()
    if len(words) == 4 and words[0] == "ed25519" and (words[3] == _NOT_YET or _TIME.fullmatch(words[3])):
        key_id, public_key = f"ed25519:{words[1]}", decode_base64(words[2])
        if is_server_key_id(key_id) and public_key is not None and is_public_key(public_key):
            return key_id, public_key, None if words[3] == _NOT_YET else int(words[3])
    raise SigningKeyError(
        f"{path} has a line that is not `ed25519 VERSION PUBLIC_KEY EXPIRED_TS`: {line!r}. Correct or remove it."
    )


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
