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


def test_a_rotated_key_is_old_from_the_next_start_on(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    created = signing_keys.create(path)

    old, new = signing_keys.rotate(path)
    keys = signing_keys.load_all(path, 1000)

    assert old == created
    assert keys.signing_key == new == signing_keys.load(path)
    [retired] = keys.old
    assert (retired.key_id, retired.public_key, retired.expired_ts) == (old.key_id, old.public_key, 1000)
    assert signing_keys.load_all(path, 2000) == keys
    assert keys.verify_keys()[old.key_id].expired_ts == 1000
    assert keys.verify_keys()[new.key_id].expired_ts is None


def test_every_key_that_was_rotated_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    signing_keys.create(path)

    first, second = signing_keys.rotate(path)
    signing_keys.load_all(path, 1000)
    signing_keys.rotate(path)
    third, fourth = signing_keys.rotate(path)  # twice while the server runs
    keys = signing_keys.load_all(path, 2000)

    assert [(old.key_id, old.expired_ts) for old in keys.old] == [
        (first.key_id, 1000),
        (second.key_id, 2000),
        (third.key_id, 2000),
    ]
    assert keys.signing_key == fourth
    assert (tmp_path / "signing.key.old").read_text().count(third.key_id.removeprefix("ed25519:")) == 1


def test_no_secret_stands_in_the_file_of_old_keys(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    created = signing_keys.create(path)
    secret = path.read_text().split()[2]

    signing_keys.rotate(path)

    assert secret not in (tmp_path / "signing.key.old").read_text()
    assert created.version in (tmp_path / "signing.key.old").read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["signing.key", "signing.key.old"]


def test_killed_while_it_rotates_a_server_keeps_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "signing.key"
    created = signing_keys.create(path)
    monkeypatch.setattr(signing_keys, "_line_of", lambda _key: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        signing_keys.rotate(path)

    assert signing_keys.load_all(path, 1000) == signing_keys.OwnKeys(created)


@pytest.mark.parametrize(
    "line",
    ["ed25519 a", "ed25519 a_b AAAA 1", "rsa a_b " + "A" * 43 + " 1", "ed25519 a-b " + "A" * 43 + " 1", "é"],
)
def test_old_keys_that_cannot_be_read_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "signing.key"
    signing_keys.create(path)
    (tmp_path / "signing.key.old").write_text(line)

    with pytest.raises(SigningKeyError, match=r"signing\.key\.old"):
        signing_keys.check(path)
