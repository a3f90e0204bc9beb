"""Makes a dictionary for `event_bytes.py` from events that are made up: `python -m storage.train_dictionary NUMBER`.

Only for a new number: a dictionary that was released is part of everybody's data.
"""

import base64
import random
import sys
from collections.abc import Callable
from typing import Any

import orjson
import zstandard

from storage.event_bytes import dictionary_path

SIZE_BYTES = 8192
SAMPLES = 8000

_TEXT = """
the be to of and a in that have it for not on with he as you do at this but his by from they we say her she or an will
my one all would there their what so up out if about who get which go me when make can like time no just him know take
people into year your good some could them see other than then now look only come its over think also back after use
two how our work first well way even new want because any these give day most us
"""
_WORDS = _TEXT.split()
_SERVERS = ("example.org", "matrix.org", "localhost", "chat.example.com", "server.example")

_random = random.Random(20261120)  # noqa: S311  # made-up events, the same each time


def _hash(count: int = 32) -> str:
    return base64.urlsafe_b64encode(_random.randbytes(count)).rstrip(b"=").decode()


def _standard(count: int) -> str:
    return base64.b64encode(_random.randbytes(count)).rstrip(b"=").decode()


def _text(most: int = 25) -> str:
    return " ".join(_random.choices(_WORDS, k=_random.randint(1, most)))


def _user() -> str:
    return f"@{_random.choice(_WORDS)}{_random.randint(1, 999)}:{_random.choice(_SERVERS)}"


def _message() -> dict[str, Any]:
    content: dict[str, Any] = {"body": _text(), "msgtype": _random.choice(("m.text", "m.text", "m.notice", "m.emote"))}
    if _random.random() < 0.5:
        content["m.mentions"] = {} if _random.random() < 0.7 else {"user_ids": [_user()]}
    if _random.random() < 0.3:
        content |= {"format": "org.matrix.custom.html", "formatted_body": f"<p>{_text()}</p>\n<strong>a</strong>"}
    if _random.random() < 0.3:
        content["m.relates_to"] = _random.choice(
            (
                {"m.in_reply_to": {"event_id": "$" + _hash()}},
                {"event_id": "$" + _hash(), "is_falling_back": True, "rel_type": "m.thread"},
                {"event_id": "$" + _hash(), "rel_type": "m.replace"},
            )
        )
    return content


def _encrypted() -> dict[str, Any]:
    return {
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": "AwgA" + _standard(_random.randint(150, 400)),
        "device_id": "".join(_random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=10)),
        "sender_key": _standard(32),
        "session_id": _standard(32),
    }


def _file() -> dict[str, Any]:
    return {
        "body": "image.png",
        "file": {
            "hashes": {"sha256": _standard(32)},
            "iv": _standard(16),
            "key": {"alg": "A256CTR", "ext": True, "k": _hash(), "key_ops": ["encrypt", "decrypt"], "kty": "oct"},
            "url": f"mxc://{_random.choice(_SERVERS)}/{_hash(18)}",
            "v": "v2",
        },
        "info": {"h": 1080, "mimetype": "image/png", "size": _random.randint(1000, 999999), "w": 1920},
        "msgtype": "m.image",
    }


def _member() -> dict[str, Any]:
    content = {"membership": _random.choice(("join", "join", "join", "leave", "invite", "ban"))}
    if _random.random() < 0.7:
        content["displayname"] = _random.choice(_WORDS)
    if _random.random() < 0.4:
        content["avatar_url"] = f"mxc://{_random.choice(_SERVERS)}/{_hash(18)}"
    return content


def _power_levels() -> dict[str, Any]:
    return {
        "ban": 50,
        "events": {
            "m.room.avatar": 50,
            "m.room.canonical_alias": 50,
            "m.room.encryption": 100,
            "m.room.history_visibility": 100,
            "m.room.name": 50,
            "m.room.power_levels": 100,
            "m.room.server_acl": 100,
            "m.room.tombstone": 150,
        },
        "events_default": 0,
        "invite": 0,
        "kick": 50,
        "redact": 50,
        "state_default": 50,
        "users": {_user(): 100},
        "users_default": 0,
    }


_KINDS: tuple[tuple[int, str, Callable[[], dict[str, Any]]], ...] = (
    (30, "m.room.message", _message),
    (30, "m.room.encrypted", _encrypted),
    (3, "m.room.message", _file),
    (20, "m.room.member", _member),
    (6, "m.reaction", lambda: {"m.relates_to": {"event_id": "$" + _hash(), "key": "👍️", "rel_type": "m.annotation"}}),
    (2, "m.room.redaction", lambda: {"reason": _text(5), "redacts": "$" + _hash()}),
    (2, "m.room.topic", lambda: {"m.topic": {"m.text": [{"body": _text(8)}]}, "topic": _text(8)}),
    (1, "m.room.name", lambda: {"name": _text(3)}),
    (1, "m.room.power_levels", _power_levels),
    (1, "m.room.join_rules", lambda: {"join_rule": _random.choice(("public", "invite", "knock"))}),
    (1, "m.room.history_visibility", lambda: {"history_visibility": "shared"}),
    (1, "m.room.guest_access", lambda: {"guest_access": "can_join"}),
    (1, "m.room.encryption", lambda: {"algorithm": "m.megolm.v1.aes-sha2"}),
    (1, "m.space.child", lambda: {"suggested": True, "via": [_random.choice(_SERVERS)]}),
)


def made_up_event() -> bytes:
    """The canonical JSON of an event such as servers exchange, with random hashes and signatures."""
    _, kind, make = _random.choices(_KINDS, [weight for weight, _, _ in _KINDS])[0]
    sender = _user()
    json: dict[str, Any] = {
        "auth_events": ["$" + _hash() for _ in range(_random.randint(2, 4))],
        "content": make(),
        "depth": _random.randint(1, 20_000),
        "hashes": {"sha256": _standard(32)},
        "origin_server_ts": 1_700_000_000_000 + _random.randrange(10**11),
        "prev_events": ["$" + _hash() for _ in range(_random.choice((1, 1, 1, 2)))],
        "room_id": "!" + _hash() if _random.random() < 0.6 else f"!{_hash(13)}:{sender.partition(':')[2]}",
        "sender": sender,
        "signatures": {sender.partition(":")[2]: {f"ed25519:{_random.choice(('auto', 'a_Abcd', '1'))}": _standard(64)}},
        "type": kind,
    }
    if kind.startswith("m.room.") and kind not in ("m.room.message", "m.room.encrypted", "m.room.redaction"):
        json["state_key"] = sender if kind == "m.room.member" else ""
    return orjson.dumps(json, option=orjson.OPT_SORT_KEYS)


def main(number: int) -> None:
    """Write the dictionary, unless there is one."""
    path = dictionary_path(number)
    if path.exists():
        raise SystemExit(f"{path} exists, and what is stored depends on it")
    samples: list[bytes | bytearray | memoryview] = [made_up_event() for _ in range(SAMPLES)]
    trained = zstandard.train_dictionary(SIZE_BYTES, samples, dict_id=number, level=9)
    path.write_bytes(trained.as_bytes())


if __name__ == "__main__":
    main(int(sys.argv[1]))
