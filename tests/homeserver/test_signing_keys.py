"""The server's identity: made once, never replaced silently, never weak."""

from pathlib import Path

import pytest
import signedjson.key

from homeserver import signing_keys
from homeserver.signing_keys import SigningKeyError


def test_a_new_key_is_read_back_and_by_signedjson_too(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    created = signing_keys.create(path)

    assert signing_keys.load(path) == created
    with path.open(encoding="ascii") as file:
        [theirs] = signedjson.key.read_signing_keys(file)
    assert (theirs.version, theirs.encode()) == (created.version, created.seed)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["signing.key"]


def test_a_key_that_signedjson_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    theirs = signedjson.key.generate_signing_key("a_bc")
    with path.open("w", encoding="ascii") as file:
        signedjson.key.write_signing_keys(file, [theirs])
    path.chmod(0o600)

    assert signing_keys.load(path).seed == theirs.encode()


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    created = signing_keys.create(path)

    with pytest.raises(FileExistsError):
        signing_keys.create(path)

    assert signing_keys.load(path) == created


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not one line"),
        ("ed25519 a", "is not one line"),
        ("rsa a AAAA", "is not one line"),
        ("ed25519 a_b ????", "malformed"),
        ("ed25519 a_b AAAA", "malformed"),
        ("ed25519 a-b " + "A" * 43, "malformed"),
        ("ed25519 a_b " + "A" * 43, "weak"),
        ("ed25519 a_b " + "ABCD" * 10 + "ABA", "weak"),
    ],
)
def test_an_unusable_key_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "signing.key"
    path.write_text(text, encoding="ascii")
    path.chmod(0o600)

    with pytest.raises(SigningKeyError, match=complaint):
        signing_keys.load(path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    signing_keys.create(path)
    path.chmod(0o640)

    with pytest.raises(SigningKeyError, match="chmod 600"):
        signing_keys.load(path)


def test_a_missing_key_is_not_made_by_loading(tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match="missing"):
        signing_keys.load(tmp_path / "signing.key")
