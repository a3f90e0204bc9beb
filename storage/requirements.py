"""What a database must be like before the server uses it."""

import psycopg

OLDEST_VERSION = 150_000


def list_complaints(conninfo: str) -> list[str]:
    """Everything about this database that keeps the server from using it, each with its repair."""
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            return [*_version(connection), *_encoding(connection), *_rights(connection)]
    except psycopg.Error as error:
        return [f"the database cannot be reached: {_first_line(error)}. Start it, or correct database.url"]


def _version(connection: psycopg.Connection) -> list[str]:
    if connection.info.server_version >= OLDEST_VERSION:
        return []
    version = connection.info.parameter_status("server_version")
    return [f"the database runs PostgreSQL {version}: upgrade it to {OLDEST_VERSION // 10_000} or later"]


def _encoding(connection: psycopg.Connection) -> list[str]:
    query = (
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()"
    )
    if connection.execute(query).fetchone() == ("UTF8", "C", "C"):
        return []
    return [
        "the database must have the encoding UTF8 and the collation C, with which order and indexes never change: "
        "create it with ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    ]


def _rights(connection: psycopg.Connection) -> list[str]:
    query = "SELECT has_schema_privilege(current_user, 'public', 'CREATE'), current_user, current_database()"
    row = connection.execute(query).fetchone()
    assert row is not None
    if row[0]:
        return []
    return [f"{row[1]} may not make tables: run ALTER DATABASE {row[2]} OWNER TO {row[1]}"]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
