"""Bodies of several parts, whole and broken, however they are cut into pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.errors import InvalidInput
from federation.protocol.multipart import MAX_HEADER_BYTES, MultipartReader, boundary_of, filename_of

BODY = (
    b"--edge\r\nContent-Type: application/json\r\n\r\n{}\r\n"
    b"--edge \t\r\nContent-Type: image/png\r\nX: a:b\r\n\r\nby\r\n--edg\r\ntes\r\n--edge--\r\nmore"
)
Parts = list[tuple[dict[str, str], bytes]]


def read(*pieces: bytes) -> tuple[Parts, bool]:
    reader = MultipartReader(b"edge")
    parts: Parts = []
    for piece in pieces:
        for found in reader.feed(piece):
            if isinstance(found, bytes):
                parts[-1] = (parts[-1][0], parts[-1][1] + found)
            else:
                parts.append((dict(found), b""))
    return parts, reader.is_whole


@given(st.lists(st.integers(0, len(BODY)), max_size=30))
def test_parts_are_the_same_however_the_body_is_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:end] for start, end in itertools.pairwise(places)]
    expected: Parts = [
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "image/png", "x": "a:b"}, b"by\r\n--edg\r\ntes"),
    ]
    assert read(*pieces) == (expected, True)
    assert read(*(bytes([byte]) for byte in BODY)) == (expected, True)


@given(st.binary(max_size=300), st.sampled_from((b"", b"--edge\r\n", b"--edge\r\n\r\n", b"x\r\n--edge\r\nA: b\r\n")))
def test_anything_is_read_or_refused(data: bytes, before: bytes) -> None:
    try:
        read(before + data)
    except InvalidInput:
        return


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"--edge\r\nLocation: /x\r\n\r\n\r\n--edge--", {"location": "/x"}),
        (b"--edge\r\nLocation: /x\r\n\r\n--edge--", {"location": "/x"}),
        (b"--edge\r\nLocation: /x\r\n--edge--", {"location": "/x"}),
        (b"--edge\r\n\r\n\r\n--edge--", {}),
    ],
)
def test_a_part_may_be_empty(body: bytes, headers: dict[str, str]) -> None:
    assert read(body) == ([(headers, b"")], True)


@pytest.mark.parametrize("length", range(len(BODY) - 9))
def test_what_is_cut_off_is_not_whole(length: int) -> None:
    assert not read(BODY[:length])[1]


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 20_000,
        b"--edge\r\n" + b"A: " + b"x" * MAX_HEADER_BYTES,
        b"--edge\r\n" + b"A: " + b"x" * MAX_HEADER_BYTES + b"\r\n\r\n",
        b"--edge\r\nno header\r\n\r\n",
        b"--edgeother\r\n\r\n",
        b"--edge" + b" " * 300,
    ],
)
def test_what_is_malformed_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(body)


def test_boundaries() -> None:
    assert boundary_of("multipart/mixed; boundary=a-b") == b"a-b"
    assert boundary_of('Multipart/Mixed; charset=x; boundary="a:b"') == b"a:b"
    for wrong in ("", "multipart/mixed", "text/html; boundary=a", "multipart/mixed; boundary=" + '"' * 9):
        with pytest.raises(InvalidInput):
            boundary_of(wrong)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="a b.png"', "a b.png"),
        ("inline; filename*=utf-8''%F0%9F%90%88.png", "🐈.png"),
        ("inline; filename*=utf-8''a%0D%0Ab%00", "ab"),
        ("inline; filename*=utf-8''%00", None),
        ("inline", None),
        ("", None),
        ("in\nline; filename=x", "x"),
        ("inline; filename*=a\0''x", None),
    ],
)
def test_file_names(disposition: str, name: str | None) -> None:
    assert filename_of(disposition) == name


@given(st.text(max_size=100))
def test_any_disposition_is_read(disposition: str) -> None:
    filename_of(disposition)
    filename_of("inline; filename*=" + disposition)
