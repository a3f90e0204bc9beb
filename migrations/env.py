"""Alembic's set-up. `storage.migrate` hands the connection over; the schema is `storage.schema`."""

from alembic import context
from sqlalchemy import Connection

from storage.schema import metadata

# A migration that has to wait for a lock makes every later query wait behind it; better that it fails and is repeated.
LOCK_TIMEOUT = "10s"
STATEMENT_TIMEOUT = "1h"


def _run() -> None:
    connection = context.config.attributes.get("connection")
    if not isinstance(connection, Connection):
        raise TypeError("Migrations are run by `hearth migrate`, which knows the database.")
    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    connection.exec_driver_sql(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
    connection.commit()
    context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


_run()
