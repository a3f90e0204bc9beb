"""Events at rest: canonical JSON, compressed with a dictionary of what all events share.

Half of an event is names and punctuation that every event has. Zstandard with a dictionary takes that away for 3 us
(630 bytes of a message become 310, 980 of an encrypted one 550); what remains is hashes, signatures and ciphertext.
Reading gives the exact bytes back.

The dictionary is part of the data: an event can only be read with the one that it was written with, so a released
dictionary is never changed or removed. A better one gets the next number, and `_NEWEST` names it.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import zstandard

from federation.protocol.event_format import MAX_EVENT_BYTES

_NEWEST = 32769
"""The number that new events are written with; Zstandard leaves those above 32768 to us."""

_LEVEL = 3
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS


def dictionary_path(number: int) -> Path:
    """Where the dictionary with this number lies."""
    return Path(__file__).parent / "dictionaries" / f"events-{number}.zstd-dictionary"


@cache
def _codec() -> tuple[Callable[[bytes], bytes], Callable[..., bytes]]:
    dictionary = zstandard.ZstdCompressionDict(dictionary_path(_NEWEST).read_bytes())
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, format=_FORMAT, write_content_size=True, write_checksum=False, write_dict_id=False
    )
    dictionary.precompute_compress(compression_params=parameters)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
    return compressor.compress, zstandard.ZstdDecompressor(dict_data=dictionary, format=_FORMAT).decompress


def pack(canonical: bytes) -> bytes:
    """An event's canonical JSON as it is stored."""
    return bytes((_NEWEST - 32768,)) + _codec()[0](canonical)


def unpack(stored: bytes) -> bytes:
    """The canonical JSON of a stored event; JSON that was stored as it is comes back as it is.

    Raises ValueError for what this version did not write.
    """
    if stored[:1] == b"{":
        return stored
    if stored[:1] != b"\x01":
        raise ValueError("an event was stored by a newer version of Hearth")
    packed = stored[1:]
    try:
        if zstandard.get_frame_parameters(packed, format=_FORMAT).content_size > MAX_EVENT_BYTES:
            raise ValueError("a stored event is larger than an event can be")
        return _codec()[1](packed)
    except zstandard.ZstdError as error:
        raise ValueError(f"a stored event is damaged: {error}") from error
