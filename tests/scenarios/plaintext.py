"""Searching what a server keeps, byte by byte, for what it must not have been able to read."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from storage import event_bytes
from tests.scenarios.hearth_process import HearthProcess


def places_of(needles: Collection[str], server: HearthProcess) -> dict[str, set[str]]:
    """Where each text stands: in tables, PostgreSQL's files with its log of writes, the server's own files."""
    encoded = {needle: needle.encode() for needle in needles}
    found: dict[str, set[str]] = {needle: set() for needle in needles}
    for place, content in [*_tables(server).items(), *_files(server).items()]:
        for needle, text in encoded.items():
            if text in content:
                found[needle].add(place)
    return found


def _tables(server: HearthProcess) -> dict[str, bytes]:
    """Each table as PostgreSQL copies it, columns of bytes as they are; and what was compressed for them."""
    with psycopg.connect(server.conninfo()) as connection, connection.cursor() as cursor:
        names = cursor.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        assert len(names) > 20
        tables = {}
        for (name,) in names:
            with cursor.copy(sql.SQL("copy {} to stdout (format binary)").format(sql.Identifier(name))) as copy:
                tables[f"table {name}"] = b"".join(bytes(chunk) for chunk in copy)
        columns = cursor.execute(
            "select table_name, column_name from information_schema.columns"
            " where table_schema = 'public' and data_type = 'bytea'"
        ).fetchall()
        for name, column in columns:
            values = cursor.execute(
                sql.SQL("select {} from {}").format(sql.Identifier(column), sql.Identifier(name))
            ).fetchall()
            tables[f"table {name}"] += b"\n".join(_unpacked(bytes(value)) for (value,) in values if value is not None)
    return tables


def _unpacked(value: bytes) -> bytes:
    try:
        return event_bytes.unpack(value)
    except ValueError:  # it is something else
        return b""


def _files(server: HearthProcess) -> dict[str, bytes]:
    """Every file of the server, with all that PostgreSQL has in memory written out."""
    with psycopg.connect(make_conninfo(server.conninfo(), user="postgres"), autocommit=True) as connection:
        connection.execute("checkpoint")
    places = [server.directory, server.cluster.parent]
    files = {path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()}
    assert any("pg_wal" in path.parts for path in files)
    contents: dict[str, bytes] = {}
    for path in sorted(files):
        with suppress(FileNotFoundError):  # PostgreSQL has just removed it
            contents[_described(path)] = path.read_bytes()
    return contents


def _described(path: Path) -> str:
    return f"file {path.parent.name}/{path.name}"
