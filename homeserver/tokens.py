"""The tokens that clients hold: where a sync stopped, where a page begins (Client-Server API, "Syncing", "Pagination").

A token is numbers with a letter before them. It proves nothing and hides nothing: what it allows to be read is decided
anew at every use.
"""

import re
from functools import lru_cache

from msgspec import Struct

from federation.protocol.errors import InvalidInput

_STREAM = re.compile(r"s(\d{1,18})_(\d{1,18})_(\d{1,18})_(\d{1,18})")
_SLIDING = re.compile(r"c(\d{1,18})_(s[\d_]{1,80})")
_MAX_SLIDING_LENGTH = 100
_PAGE = re.compile(r"t(-?\d{1,18})")


class StreamToken(Struct, frozen=True):
    """Up to where a client has seen everything."""

    position: int
    """Of the log."""
    to_device: int = 0
    """Of the log, for the device's inbox, which may be handed out in parts."""
    typing: int = 0
    presence: int = 0
    """Serials of what is only in memory."""

    def __str__(self) -> str:
        return f"s{self.position}_{self.to_device}_{self.typing}_{self.presence}"


def parse_stream_token(text: str) -> StreamToken:
    """What `/sync` gave out; raises M_INVALID_PARAM for anything else."""
    match = _STREAM.fullmatch(text)
    if match is None:
        raise InvalidInput("This is not a token of this server")
    return StreamToken(*(int(number) for number in match.groups()))


class SlidingToken(Struct, frozen=True):
    """The place of a client in sliding sync: a state of its connection, and where it was in the log."""

    number: int
    """Of the connection's state."""
    stream: StreamToken

    def __str__(self) -> str:
        return f"c{self.number}_{self.stream}"


def find_sliding_token(text: str) -> SlidingToken | None:
    """What sliding sync gave out as `pos`; None for anything else."""
    return None if len(text) > _MAX_SLIDING_LENGTH else _find_sliding_token(text)


@lru_cache(4096)  # who has nothing new asks again with the same
def _find_sliding_token(text: str) -> SlidingToken | None:
    match = _SLIDING.fullmatch(text)
    stream = None if match is None else _STREAM.fullmatch(match[2])
    if match is None or stream is None:
        return None
    return SlidingToken(int(match[1]), StreamToken(*(int(number) for number in stream.groups())))


def page_token(position: int) -> str:
    """The place just after a position in a room."""
    return f"t{position}"


def parse_page_token(text: str) -> int:
    """The position after which a page begins or ends, from a token of `/messages`, `/sync` or sliding sync."""
    match = _PAGE.fullmatch(text)
    if match is not None:
        return int(match[1])
    sliding = find_sliding_token(text)
    return parse_stream_token(text).position if sliding is None else sliding.stream.position
