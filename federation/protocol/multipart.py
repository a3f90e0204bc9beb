"""Bodies of several parts (RFC 2046, section 5.1), read piece by piece: how servers hand each other media."""

import re
from collections.abc import Callable, Iterator, Mapping
from email.errors import MessageError
from email.message import Message

from federation.protocol.errors import InvalidInput

MAX_HEADER_BYTES = 16 * 1024
MAX_PREAMBLE_BYTES = 16 * 1024

_BOUNDARY = re.compile(r"""multipart/mixed\s*;(?:[^"]{0,500};)?\s*boundary="?([0-9A-Za-z'()+_,./:=?-]{1,70})"?""", re.I)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names; raises InvalidInput."""
    match = _BOUNDARY.match(content_type[:1000])
    if match is None:
        raise InvalidInput("The answer is not multipart/mixed with a boundary")
    return match[1].encode()


def filename_of(disposition: str) -> str | None:
    """The file name that a Content-Disposition gives, without control characters; None where it gives none."""
    message = Message()
    try:
        message["Content-Disposition"] = disposition[:3000]
        name = message.get_filename()
    except (ValueError, LookupError, TypeError, MessageError):
        return None
    if not name:
        return None
    return _CONTROL.sub("", name.encode(errors="replace").decode())[:255] or None


class MultipartReader:
    """Takes a body in pieces of any length; gives each part's headers, then its bytes, as soon as they are there."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # the first delimiter may be all that the body begins with
        self._skipped = 0
        self._state: Callable[[], Mapping[str, str] | bytes | None] = self._read_preamble
        self.is_whole = False
        """Whether the last delimiter has come; what follows it means nothing."""

    def feed(self, data: bytes) -> Iterator[Mapping[str, str] | bytes]:
        """What is known by this piece: headers, with names in lower case, begin a part. Raises InvalidInput."""
        self._buffer += data
        while not self.is_whole:
            found = self._state()
            if found is None:
                return
            if found != b"":
                yield found

    def _read_preamble(self) -> bytes | None:
        """None where more is needed; empty where the next state can go on."""
        at = self._buffer.find(self._delimiter)
        if at < 0:
            kept = self._buffer[-len(self._delimiter) :]
            self._skipped += len(self._buffer) - len(kept)
            self._buffer = kept
            if self._skipped > MAX_PREAMBLE_BYTES:
                raise InvalidInput("The answer has no part")
            return None
        self._buffer = self._buffer[at + len(self._delimiter) :]
        self._state = self._read_delimiter_end
        return b""

    def _read_delimiter_end(self) -> bytes | None:
        """The rest of the delimiter's line; its line end stays, as that before the headers."""
        if len(self._buffer) < 2:
            return None
        if self._buffer.startswith(b"--"):
            self.is_whole = True
            self._buffer = b""
            return b""
        at = self._buffer.find(b"\r\n")
        if at < 0 and len(self._buffer) < 200:
            return None
        if at < 0 or self._buffer[:at].strip(b" \t"):
            raise InvalidInput("A delimiter of the answer is malformed")
        self._buffer = self._buffer[at:]
        self._state = self._read_headers
        return b""

    def _read_headers(self) -> Mapping[str, str] | bytes | None:
        end, delimiter = self._buffer.find(b"\r\n\r\n"), self._buffer.find(self._delimiter)
        if delimiter >= 0 and (end < 0 or delimiter < end):
            end = delimiter  # a part of headers alone
            rest = self._buffer[end:]
        elif end >= 0:
            rest = self._buffer[end + 2 :]
        elif len(self._buffer) > MAX_HEADER_BYTES:
            raise InvalidInput("The headers of a part are too long")
        else:
            return None
        if end > MAX_HEADER_BYTES:
            raise InvalidInput("The headers of a part are too long")
        headers = _headers(self._buffer[2:end])
        self._buffer = rest
        self._state = self._begin_body
        return headers

    def _begin_body(self) -> bytes | None:
        """An empty body may share its line end with the delimiter that follows."""
        if len(self._buffer) < len(self._delimiter):
            return None
        if not self._buffer.startswith(self._delimiter):
            self._buffer = self._buffer[2:]
        self._state = self._read_body
        return b""

    def _read_body(self) -> bytes | None:
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            body, self._buffer = self._buffer[:at], self._buffer[at + len(self._delimiter) :]
            self._state = self._read_delimiter_end
            return body
        kept = len(self._delimiter) - 1
        if len(self._buffer) <= kept:
            return None
        body, self._buffer = self._buffer[:-kept], self._buffer[-kept:]
        return body


def _headers(block: bytes) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for line in block.decode(errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if line and not colon:
            raise InvalidInput("A header of a part is malformed")
        if line:
            headers[name.strip().lower()] = value.strip()
    return headers
