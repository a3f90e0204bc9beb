"""Taking the events out of a long answer while it still arrives (`/send_join`, `/state`; Server-Server API).

The answer is a JSON object with arrays of events. It may have any size; what is held of it here is the event that is
just arriving. The events come out as bytes, for the strict parser to read one by one.
"""

import re
from collections.abc import Collection

from federation.protocol import canonical_json
from federation.protocol.errors import InvalidInput
from federation.protocol.types import JsonObject

MAX_ELEMENT_BYTES = 512 * 1024
"""Of one event on the wire, with `unsigned` and every character escaped at worst."""
MAX_OTHER_BYTES = 8 * 1024 * 1024
"""Of all members that are not arrays of events: the list of servers in the room is the longest."""
MAX_DEPTH = 1024
"""Of what stands in one another beside events; nothing deeper is read as JSON afterwards. One event that is too deep
spoils no other."""
_AT_ONCE = 16 * 1024
"""Bytes that are gathered before they are looked at, so that a peer which trickles does not make us look often."""

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*("?)'
_BRACKET_OR_STRING = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_A_STRING = re.compile(_STRING, re.DOTALL)
_A_SCALAR = re.compile(rb"[-+.0-9A-Za-z]+(?=([\s,}\]])?)")
_SPACE = re.compile(rb"[\s,]*")
_COLON = re.compile(rb"\s*:\s*")


class _IncompleteError(Exception):
    """The rest has not arrived yet."""


class EventSplitter:
    """Splits an answer into the events of its arrays and the rest.

    `feed` may raise InvalidInput for what cannot become such an answer. In version 1 of the endpoints the object
    stands in an array, after the status 200.
    """

    def __init__(self, arrays: Collection[str]) -> None:
        self._wanted = frozenset(arrays)
        self._seen: set[str] = set()
        self._array: str | None = None
        self._buffer = bytearray()
        self._at = 0
        self._scanned = 0
        self._depth = 0
        self._key = b""
        self._state = "start"
        self._rest: list[bytes] = []
        self._rest_bytes = 0
        self._fresh = 0
        self._found: list[tuple[str, bytes]] = []

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """The events that are complete now: each with the name of its array, in order."""
        self._buffer += data
        self._fresh += len(data)
        if self._fresh < _AT_ONCE:
            return []
        return self._split()

    def finish(self) -> tuple[list[tuple[str, bytes]], JsonObject]:
        """The last events, and the answer's other members; raises InvalidInput where the answer breaks off."""
        found = self._split()
        if self._state != "end" or bytes(self._buffer[self._at :]).strip(b" \t\r\n]"):
            raise InvalidInput("The answer is not a whole JSON object", "M_NOT_JSON")
        return found, canonical_json.loads_object(b"{" + b",".join(self._rest) + b"}", max_depth=None)

    @property
    def arrays_seen(self) -> frozenset[str]:
        """The arrays that the answer had."""
        return frozenset(self._seen)

    def _split(self) -> list[tuple[str, bytes]]:
        self._fresh = 0
        try:
            while self._state != "end":
                self._step()
        except _IncompleteError:
            if len(self._buffer) - self._at > (MAX_ELEMENT_BYTES if self._array else MAX_OTHER_BYTES):
                raise InvalidInput("A member of the answer is too large", "M_TOO_LARGE") from None
        del self._buffer[: self._at]
        self._scanned = max(self._scanned - self._at, 0)
        self._at = 0
        found, self._found = self._found, []
        return found

    def _step(self) -> None:
        if self._state == "start":
            self._start()
        elif self._array is not None:
            self._element(self._array)
        elif self._key:
            self._value()
        else:
            self._member()

    def _start(self) -> None:
        """Up to the object's brace; before it stands nothing, or the status of version 1."""
        opening = re.match(rb"\s*(?:\[\s*200\s*,\s*)?\{", self._buffer)
        if opening is None:
            if len(self._buffer) > 1000 or re.match(rb"\s*[^\s\[{]", self._buffer):
                raise InvalidInput("The answer is not a JSON object", "M_NOT_JSON")
            raise _IncompleteError
        self._at = opening.end()
        self._state = "object"

    def _peek(self) -> int:
        """The next byte that is neither space nor comma."""
        space = _SPACE.match(self._buffer, self._at)
        self._at = self._at if space is None else space.end()
        if self._at >= len(self._buffer):
            raise _IncompleteError
        return self._buffer[self._at]

    def _element(self, array: str) -> None:
        first = self._peek()
        if first == ord("]"):
            self._at += 1
            self._array = None
            return
        if first != ord("{"):
            raise InvalidInput("The answer has what is no event among its events", "M_BAD_JSON")
        end = self._end_of_nested()
        self._found.append((array, bytes(self._buffer[self._at : end])))
        self._at = end

    def _member(self) -> None:
        start = self._peek()
        if start == ord("}"):
            self._at += 1
            self._state = "end"
            return
        key = _A_STRING.match(self._buffer, self._at)
        if key is None:
            raise InvalidInput("The answer is not a JSON object", "M_NOT_JSON")
        if not key[1]:
            self._check_string(self._at)
            raise _IncompleteError
        colon = _COLON.match(self._buffer, key.end())
        if colon is None or colon.end() >= len(self._buffer):
            if len(bytes(self._buffer[key.end() :]).strip()) > 0 and colon is None:
                raise InvalidInput("The answer is not a JSON object", "M_NOT_JSON")
            raise _IncompleteError
        name = str(canonical_json.loads(bytes(key[0])))
        value = self._buffer[colon.end()]
        if name in self._wanted and value == ord("["):
            if name in self._seen:
                raise InvalidInput(f"The answer has {name} twice", "M_BAD_JSON")
            self._seen.add(name)
            self._array = name
            self._at = colon.end() + 1
            return
        self._key = bytes(key[0])
        self._at = colon.end()

    def _value(self) -> None:
        end = self._end_of_value(self._buffer[self._at])
        self._rest.append(self._key + b":" + bytes(self._buffer[self._at : end]))
        self._key = b""
        self._rest_bytes += end - self._at
        if self._rest_bytes > MAX_OTHER_BYTES:
            raise InvalidInput("The answer has too much besides events", "M_TOO_LARGE")
        self._at = end

    def _end_of_value(self, first: int) -> int:
        if first in b"{[":
            return self._end_of_nested()
        if first == ord('"'):
            text = _A_STRING.match(self._buffer, self._at)
            if text is None or not text[1]:
                self._check_string(self._at)
                raise _IncompleteError
            return text.end()
        scalar = _A_SCALAR.match(self._buffer, self._at)
        if scalar is None:
            raise InvalidInput("The answer is not JSON", "M_NOT_JSON")
        if scalar[1] is None:
            raise _IncompleteError
        return scalar.end()

    def _end_of_nested(self) -> int:
        """Where the object or array that begins here ends; goes on where the last look stopped."""
        scanned, depth = max(self._scanned, self._at), self._depth
        for token in _BRACKET_OR_STRING.finditer(self._buffer, scanned):
            first = self._buffer[token.start()]
            if first == 0x22:
                if not token[1]:
                    self._check_string(scanned)
                    break
            elif first in b"{[":
                depth += 1
                if depth > MAX_DEPTH and self._array is None:
                    raise InvalidInput("The answer is too deep", "M_BAD_JSON")
            else:
                depth -= 1
                if depth == 0:
                    self._scanned = self._depth = 0
                    return token.end()
            scanned = token.end()
        self._scanned, self._depth = scanned, depth
        raise _IncompleteError

    def _check_string(self, start: int) -> None:
        """An incomplete string is looked through again each time: it may not be long."""
        if len(self._buffer) - start > MAX_ELEMENT_BYTES:
            raise InvalidInput("The answer has too long a string", "M_TOO_LARGE")
