"""Stored events come back byte for byte, and nothing else that lies in the column does harm."""

import hashlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from storage.event_bytes import dictionary_path, pack, unpack
from storage.train_dictionary import made_up_event

RELEASED = {32769: "ca911853fd18e67fcd6d5effd2d11a5e17cef189a9ca431be17ed741808500c3"}
"""Dictionaries that databases depend on: they must never change."""


def test_an_event_comes_back_byte_for_byte() -> None:
    for _ in range(200):
        event = made_up_event()

        assert unpack(pack(event)) == event


@given(st.binary(max_size=2000))
def test_any_bytes_come_back(data: bytes) -> None:
    assert unpack(pack(data)) == data


def test_events_take_little_more_than_half_their_space() -> None:
    events = [made_up_event() for _ in range(300)]

    assert sum(len(pack(event)) for event in events) < 0.6 * sum(len(event) for event in events)


def test_json_that_was_stored_as_it_is_is_read() -> None:
    assert unpack(b'{"type":"m.room.message"}') == b'{"type":"m.room.message"}'


@given(st.binary(max_size=200))
def test_what_was_never_written_is_refused_and_no_worse(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"stored"):
        unpack(b"\x01\xff" + data)
    with pytest.raises(ValueError, match=r"newer version"):
        unpack(b"\x02" + data)


def test_a_frame_that_would_fill_the_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(b"\0" * 100_000_000)

    with pytest.raises(ValueError, match="larger than an event"):
        unpack(b"\x01" + bomb)


@pytest.mark.parametrize("number", RELEASED)
def test_a_released_dictionary_never_changes(number: int) -> None:
    assert hashlib.sha256(dictionary_path(number).read_bytes()).hexdigest() == RELEASED[number]
