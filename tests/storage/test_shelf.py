"""What processes of one machine lay down for each other."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.types import UserID
from homeserver.shared_memory import SharedMemory, attach
from storage.database import Memory
from storage.invalidations import Invalidated, Kind
from storage.shelf import MAX_BYTES, RING_BYTES, Shelf, ShelfCarrier, shared_memory


def shelves(places: int = 2) -> list[Shelf]:
    descriptor = shared_memory(places)
    try:
        return [Shelf(descriptor, place, places) for place in range(places)]
    finally:
        os.close(descriptor)


def test_what_one_lays_down_the_others_take() -> None:
    one, other = shelves()

    for number in range(100):  # several times around
        mine, theirs = os.urandom(100_000 + number), os.urandom(number)
        at, there = one.lay(mine), other.lay(theirs)
        assert other.take(at) == one.take(at) == mine
        assert one.take(there) == theirs


def test_what_was_overwritten_is_gone() -> None:
    one, other = shelves()
    first = one.lay(b"first")
    for _ in range(RING_BYTES // MAX_BYTES - 1):
        one.lay(b"x" * MAX_BYTES)
    assert other.take(first) == b"first"

    one.lay(b"x" * MAX_BYTES)

    assert other.take(first) is None


def test_who_follows_another_at_its_place_goes_on_behind_it() -> None:
    descriptor = shared_memory(1)
    first = Shelf(descriptor, 0, 1).lay(b"first")
    successor = Shelf(descriptor, 0, 1)
    os.close(descriptor)

    second = successor.lay(b"second")

    assert (successor.take(first), successor.take(second)) == (b"first", b"second")


def test_what_is_too_large_or_of_another_server_is_not_taken() -> None:
    one, _ = shelves()
    (stranger,) = shelves(1)

    assert one.lay(b"x" * (MAX_BYTES + 1)) == b""
    assert stranger.take(one.lay(b"hello")) is None


@given(st.binary(max_size=80), st.lists(st.integers(-(2**70), 2**70), max_size=6))
@pytest.mark.parametrize("shelf", shelves()[:1])
def test_a_reference_that_means_nothing_is_none(shelf: Shelf, garbage: bytes, numbers: list[int]) -> None:
    token, *_ = shelf.lay(b"hello").split()

    assert shelf.take(garbage) is None
    assert shelf.take(b" ".join((token, *(b"%d" % number for number in numbers)))) is None


def test_bytes_that_are_others_than_were_announced_are_not_taken() -> None:
    one, _ = shelves()
    *place, checksum = one.lay(b"hello").split()

    assert one.take(b" ".join((*place, b"%d" % (int(checksum) ^ 1)))) is None


def test_what_is_too_much_for_the_bus_is_laid_down_where_others_are() -> None:
    changes = [(1, Invalidated(Kind.PROFILE, UserID("@alice:example.org"), "x" * 200))]
    memory, alone = SharedMemory(2), SharedMemory(1)
    one, other, lone = attach(memory.given(1, 0)), attach(memory.given(2, 1)), attach(alone.given(1, 0))
    for descriptor in (*memory.descriptors, *alone.descriptors):
        os.close(descriptor)

    body = one.carrier.encode(changes, 150)
    assert 0 < len(body) <= 150
    assert other.carrier.decode(body, Memory()) == changes
    assert ShelfCarrier().decode(body, Memory()) is lone.carrier.decode(body, Memory()) is None
    assert lone.carrier.encode(changes, 150) == b""
    assert lone.carrier.decode(lone.carrier.encode(changes, 1000), Memory()) == changes
