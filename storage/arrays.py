"""Lists as PostgreSQL arrays, fast: one `pack` for an array of integers, one join for texts and bytes.

psycopg looks at every element to find an array's type. An append sends 33 arrays, so the caller says the type instead,
by wrapping the list: `Int8([...])` for `%s::bigint[]`. `None` is null.
"""

import struct
from collections.abc import Callable, Iterable
from typing import ClassVar

from psycopg.adapt import AdaptersMap, Dumper
from psycopg.pq import Format

_HEADER = struct.Struct(">iIIii")
_NULL = struct.pack(">i", -1)
_MOST_OF_ONE_PACK = 256


class Int2(list[int | None]):
    """A `smallint[]`."""


class Int4(list[int | None]):
    """An `int[]`."""


class Int8(list[int | None]):
    """A `bigint[]`."""


class Texts(list[str | None]):
    """A `text[]`."""


class Byteas(list[bytes | None]):
    """A `bytea[]`."""


def register(adapters: AdaptersMap) -> None:
    """Have connections with these adapters know the wrappers."""
    for wrapper, dumper in _DUMPERS:
        adapters.register_dumper(wrapper, dumper)


class _ArrayDumper(Dumper):
    format = Format.BINARY
    element_oid: ClassVar[int]

    def dump(self, obj: list[object]) -> bytes:
        if not obj:
            return struct.pack(">iII", 0, 0, self.element_oid)
        return _HEADER.pack(1, 1, self.element_oid, len(obj), 1) + self._body(obj)

    def _body(self, obj: list[object]) -> bytes:
        raise AssertionError("each kind of element has its own")


class _IntegerDumper(_ArrayDumper):
    size: ClassVar[int]
    code: ClassVar[str]
    pack_one: ClassVar[Callable[..., bytes]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.pack_one = struct.Struct(f">iIIiii{cls.code}").pack

    def dump(self, obj: list[object]) -> bytes:
        if len(obj) == 1 and obj[0] is not None:  # most of what a lone message sends
            return self.pack_one(1, 0, self.element_oid, 1, 1, self.size, obj[0])
        return super().dump(obj)

    def _body(self, obj: list[object]) -> bytes:
        size = self.size
        if None in obj or len(obj) > _MOST_OF_ONE_PACK:
            one = struct.Struct(f">i{self.code}").pack
            return b"".join([_NULL if value is None else one(size, value) for value in obj])
        flat: list[object] = []
        for value in obj:
            flat += (size, value)
        return struct.pack(">" + f"i{self.code}" * len(obj), *flat)


class _Int2Dumper(_IntegerDumper):
    oid, element_oid, size, code = 1005, 21, 2, "h"


class _Int4Dumper(_IntegerDumper):
    oid, element_oid, size, code = 1007, 23, 4, "i"


class _Int8Dumper(_IntegerDumper):
    oid, element_oid, size, code = 1016, 20, 8, "q"


def _with_lengths(values: Iterable[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (len(value).to_bytes(4, "big"), value)
    return b"".join(parts)


class _TextsDumper(_ArrayDumper):
    oid, element_oid = 1009, 25

    def dump(self, obj: list[str | None]) -> bytes:  # type: ignore[override]  # of the wrapper that it is for
        encoded = [None if value is None else value.encode() for value in obj]
        if not encoded:
            return struct.pack(">iII", 0, 0, self.element_oid)
        return _HEADER.pack(1, 1, self.element_oid, len(encoded), 1) + _with_lengths(encoded)


class _ByteasDumper(_ArrayDumper):
    oid, element_oid = 1001, 17

    def _body(self, obj: list[bytes | None]) -> bytes:  # type: ignore[override]  # of the wrapper that it is for
        return _with_lengths(obj)


_DUMPERS: tuple[tuple[type, type[_ArrayDumper]], ...] = (
    (Int2, _Int2Dumper),
    (Int4, _Int4Dumper),
    (Int8, _Int8Dumper),
    (Texts, _TextsDumper),
    (Byteas, _ByteasDumper),
)
