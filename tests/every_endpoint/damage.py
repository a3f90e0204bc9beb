"""What is done to a valid request so that it is one no longer: the bad input that a client could send."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Raw:
    """JSON text as it is, also such as no library would write."""

    text: bytes


class Doubled(dict[str, Any]):
    """An object whose first member is there twice."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be sent: everything as it goes over the wire, but for the body's JSON."""

    method: str
    path: str
    parameters: tuple[str, ...]
    """What stands in the path's braces, encoded."""
    query: tuple[tuple[str, str], ...] = ()
    """Encoded."""
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    """JSON, or bytes; None is no body."""

    @property
    def whole_path(self) -> str:
        """The path with its parameters."""
        parameters = iter(self.parameters)
        return re.sub(r"\{[^}]+\}", lambda _: next(parameters), self.path)

    @property
    def target(self) -> str:
        """Path and query."""
        query = "&".join(f"{name}={value}" for name, value in self.query)
        return self.whole_path + (f"?{query}" if query else "")

    @property
    def content(self) -> bytes | None:
        """The body's bytes."""
        return self.body if self.body is None or isinstance(self.body, bytes) else encode(self.body)


def encode(value: Any) -> bytes:
    """JSON, also of what is none."""
    match value:
        case Raw():
            return value.text
        case dict():
            members = [orjson.dumps(name) + b":" + encode(member) for name, member in value.items()]
            if isinstance(value, Doubled):
                members.extend(members[:1])
            return b"{" + b",".join(members) + b"}"
        case list():
            return b"[" + b",".join(encode(item) for item in value) + b"]"
        case int():
            return b"true" if value is True else b"false" if value is False else str(value).encode()
        case _:
            return orjson.dumps(value)


def _nested(depth: int) -> Raw:
    return Raw(b"[" * depth + b"]" * depth)


def _nested_objects(depth: int) -> Raw:
    return Raw(b'{"a":' * depth + b"1" + b"}" * depth)


JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.5, Raw(b"-0"), Raw(b"1.0"), Raw(b"1e3"), Raw(b"1e400"), Raw(b"1E-400")),
    *(Raw(b"NaN"), Raw(b"Infinity"), Raw(b"-Infinity"), Raw(b"01"), Raw(b"+1"), Raw(b"0x10")),
    *(2**31, -(2**31), 2**53 - 1, 2**53, -(2**53), 2**63 - 1, 2**63, -(2**63), 2**64, Raw(b"9" * 400)),
    *("", " ", "\n", "\0", "a\0b", Raw(b'"\\u0000"'), Raw(b'"\\ud800"'), Raw(b'"a\\udfffb"'), Raw(b'"\\ud83d\\ude00"')),
    *(
        Raw(b'"\xff"'),
        Raw(b'"\xed\xa0\x80"'),
        Raw(b'"\t"'),
        Raw(b'"\\x"'),
        "\u202e",
        "\ufeff",
        "e\u0301",
        "NaN",
        "1",
        "true",
    ),
    *("x" * 256, "x" * 70_000, "é" * 200, "*" * 300, "(" * 200, "%00", "../..", "<script>", "'; --", "\\", "."),
    *(
        "@",
        "!",
        "$",
        "#",
        "@:",
        "@a:",
        "@:hearth.test",
        "@a:b:c",
        "@A B:hearth.test",
        "!x:" + "y" * 300,
        "$" + "z" * 300,
    ),
    *("#a:elsewhere.test", "@a:elsewhere.test", "!a:elsewhere.test", "mxc://", "m.room.create", "m.room.member"),
    *(
        [],
        {},
        [None],
        [[]],
        [{}],
        {"": None},
        {"a": {"b": ["c"]}},
        ["a"] * 1000,
        {"\0": 1},
        {"x" * 300: 1},
        {"type": 1},
    ),
    *(_nested(40), _nested(200), _nested(20_000), _nested_objects(60), _nested_objects(5_000)),
    *(Raw(b'{"a":1,"a":2}'), Raw(b'{"a":1,"\\u0061":2}'), Raw(b'{"a":1,}'), Raw(b"[1,]"), Raw(b"{a:1}"), Raw(b"")),
)
"""What stands where something else should."""

SEGMENTS = (
    *(
        "",
        ".",
        "..",
        "%",
        "%z",
        "%zz",
        "%2",
        "%00",
        "a%00b",
        "%FF",
        "%C3%28",
        "%ED%A0%80",
        "%2F",
        "%2e%2e",
        "a%2Fb",
        "%20",
    ),
    *("@", "!", "%24", "%23", "!x", "!x:", "@x", "@:hearth.test", "@nobody:hearth.test", "!nowhere:hearth.test"),
    *("@a:elsewhere.test", "!a:elsewhere.test", "%23a:elsewhere.test", "%24nothing", "a" * 255, "a" * 256, "a" * 3000),
    *(
        "%C3%BC",
        "%F0%9F%98%80",
        "0",
        "-1",
        "1.5",
        "99999999999999999999",
        "9" * 400,
        "null",
        "true",
        "*",
        "+",
        ";",
        "a;b=c",
        "@a%0Ab:hearth.test",
    ),
    *("m.room.create", "m.room.member", "m.push_rules", "m.fully_read", "m.ignored_user_list", "@A:hearth.test", "'"),
)
"""What stands in a path, encoded as it is sent."""

TOKENS = (
    *(
        "",
        "Bearer",
        "Bearer ",
        "Bearer  x",
        "bearer x",
        "Basic YTpi",
        "Bearer x y",
        "x",
        "Bearer " + "a" * 3000,
        "Bearer %00",
    ),
    *("Bearer \u00fc", "Bearer null", "Bearer 0", "Bearer -", "Bearer syt_a_b_c"),
)
"""Headers that authenticate nobody."""

BODIES = (
    *(
        b"",
        b" ",
        b"{",
        b"}",
        b"{}",
        b"[]",
        b"null",
        b"0",
        b'"x"',
        b"\xff\xfe",
        b"{}{}",
        b"{} x",
        b"\xef\xbb\xbf{}",
        b"\0",
    ),
    *(b"{'a': 1}", b'{"a"}', b"[" * 100_000, b'{"a":' * 3000 + b"1" + b"}" * 3000, '{"a":1}'.encode("utf-16")),
    *(
        b"a=b&c=d",
        b"<xml/>",
        b'{"a":' + b"9" * 5000 + b"}",
        b"{" + b",".join(b'"%d":0' % n for n in range(5000)) + b"}",
    ),
    *(b'{"a":"' + b"x" * 300_000 + b'"}', b'{"auth":{}}', b'{"auth":{"session":"x"}}', b'{"auth":null}'),
)
"""Whole bodies."""

CONTENT_TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/octet-stream"),
    *(
        "application/json; charset=utf-16",
        "application/json; charset=nonsense",
        "nonsense",
        ";",
        "application/JSON",
        "",
    ),
)
"""Content types that are wrong or strange."""

METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "PROPFIND")


def damage(request: Prepared, chance: random.Random) -> Prepared:
    """The request with one thing wrong, or a few."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        ways: list[Callable[[Prepared, random.Random], Prepared]] = [_token, _content_type, _method, _more_query]
        ways += [_segment] * (4 if request.parameters else 0)
        ways += [_query] * (4 if request.query else 0)
        ways += [_member] * (12 if isinstance(request.body, dict) and request.body else 0)
        ways += [_body] * (3 if request.method in {"POST", "PUT"} else 1)
        request = chance.choice(ways)(request, chance)
    return request


def _token(request: Prepared, chance: random.Random) -> Prepared:
    headers = dict(request.headers)
    token = headers.pop("Authorization", "Bearer x")
    match chance.randrange(5):
        case 0:
            pass
        case 1:
            headers["Authorization"] = chance.choice(TOKENS)
        case 2:  # tampered
            at = chance.randrange(8, max(9, len(token)))
            headers["Authorization"] = token[:at] + chance.choice("aZ0_") + token[at + 1 :]
        case 3:
            headers["Authorization"] = token + "x"
        case _:  # as old clients send it
            query = (*request.query, ("access_token", token.removeprefix("Bearer ")))
            return replace(request, query=query, headers=headers)
    return replace(request, headers=headers)


def _content_type(request: Prepared, chance: random.Random) -> Prepared:
    return replace(request, headers={**request.headers, "Content-Type": chance.choice(CONTENT_TYPES)})


def _method(request: Prepared, chance: random.Random) -> Prepared:
    return replace(request, method=chance.choice(METHODS))


def _segment(request: Prepared, chance: random.Random) -> Prepared:
    parameters = list(request.parameters)
    parameters[chance.randrange(len(parameters))] = chance.choice(SEGMENTS)
    return replace(request, parameters=tuple(parameters))


def _query(request: Prepared, chance: random.Random) -> Prepared:
    query = list(request.query)
    at = chance.randrange(len(query))
    name, value = query[at]
    match chance.randrange(4):
        case 0:
            del query[at]
        case 1:
            query.append((name, chance.choice(SEGMENTS)))
        case 2:
            query[at] = (name, value + chance.choice(("x", "%00", "%FF", "%", "0", "_", "-1")))
        case _:
            query[at] = (name, chance.choice(SEGMENTS))
    return replace(request, query=tuple(query))


def _more_query(request: Prepared, chance: random.Random) -> Prepared:
    more = chance.choice(
        (
            (("user_id", "@a:hearth.test"),),
            (("limit", chance.choice(SEGMENTS)), ("dir", "x")),
            (("from", chance.choice(SEGMENTS)), ("since", chance.choice(SEGMENTS))),
            tuple((f"a{number}", "") for number in range(800)),
            (("filter", chance.choice(("%7B", "%7B%7D", "null", "%5B%5D", "%7B%22room%22:1%7D"))),),
            (("ts", chance.choice(SEGMENTS)), ("access_token", "x")),
            (("delay", chance.choice(SEGMENTS)), ("org.matrix.msc4140.delay", chance.choice(SEGMENTS))),
        )
    )
    return replace(request, query=(*request.query, *more))


def _body(request: Prepared, chance: random.Random) -> Prepared:
    content = request.content or b"{}"
    match chance.randrange(4):
        case 0:
            body: bytes | None = content[: chance.randrange(len(content) + 1)]
        case 1:
            at = chance.randrange(len(content) + 1)
            body = content[:at] + chance.choice((b"\0", b"\xff", b'"', b"}", b"\\u", b"9")) + content[at + 1 :]
        case 2:
            body = None
        case _:
            body = chance.choice(BODIES)
    return replace(request, body=body)


def _member(request: Prepared, chance: random.Random) -> Prepared:
    """One value of the body replaced, removed, added, renamed, repeated or doubled."""
    body = _copied(request.body)
    places = list(_places(body))
    holder, key = chance.choice(places)
    value = holder[key]
    match chance.randrange(10):
        case 0:
            del holder[key]
        case 1 if isinstance(value, dict):
            holder[key] = Doubled(value)
        case 1:
            body = Doubled(body)
        case 2 if isinstance(value, dict):
            value[chance.choice(("", "x", "type", "user_id", "\0", "x" * 300, "m.relates_to"))] = chance.choice(JUNK)
        case 2 if isinstance(value, list):
            value.append(chance.choice(JUNK))
        case 3:
            holder[key] = [value] * chance.choice((1, 2, 300))
        case 4 if isinstance(holder, dict):
            holder[key + chance.choice(("x", "\0", " ", ":"))] = holder.pop(key)
        case _:
            holder[key] = chance.choice(JUNK)
    return replace(request, body=body)


def _copied(value: Any) -> Any:
    match value:
        case dict():
            return type(value)((key, _copied(member)) for key, member in value.items())
        case list():
            return [_copied(item) for item in value]
        case _:
            return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where each value stands: what holds it, and under which key."""
    for key, member in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(member, dict | list):
            yield from _places(member)
