"""Wrapped lists arrive as the arrays that they are wrapped as."""

from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from storage import arrays
from storage.arrays import Byteas, Int2, Int4, Int8, Texts


@pytest.mark.parametrize(
    ("wrapper", "type_name", "values"),
    [
        (Int2, "smallint[]", [1, None, -32768]),
        (Int4, "int[]", [2**31 - 1, None, -(2**31)]),
        (Int4, "int[]", list(range(1000))),
        (Int8, "bigint[]", [2**63 - 1, None, 0]),
        (Int2, "smallint[]", [-32768]),
        (Int4, "int[]", [2**31 - 1]),
        (Int8, "bigint[]", [-(2**63)]),
        (Int8, "bigint[]", [None]),
        (Int8, "bigint[]", []),
        (Texts, "text[]", ["", None, "é\n'\"{},\\", "NULL"]),
        (Texts, "text[]", []),
        (Byteas, "bytea[]", [b"", None, b"\x00\xff\\"]),
        (Byteas, "bytea[]", [None]),
    ],
)
def test_an_array_arrives_as_it_is(conninfo: str, wrapper: Any, type_name: str, values: list[Any]) -> None:
    assert _sent(conninfo, wrapper(values), type_name) == values


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_any_texts_arrive(worker_conninfo: str, values: list[str | None]) -> None:
    assert _sent(worker_conninfo, Texts(values), "text[]") == values


def test_a_text_with_a_nul_is_a_data_error(conninfo: str) -> None:
    with pytest.raises(psycopg.DataError):
        _sent(conninfo, Texts(["a\0b"]), "text[]")


def _sent(conninfo: str, value: Any, type_name: str) -> list[Any]:
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    arrays.register(adapters)
    with psycopg.connect(conninfo, context=adapters) as connection:
        query = sql.SQL("select * from unnest(%s::{})").format(sql.SQL(type_name))
        rows = connection.execute(query, (value,)).fetchall()
    return [element for (element,) in rows]
