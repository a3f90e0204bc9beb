"""The schema of the first release, as `0001_initial.sql` has it.

Until that release the file is written anew whenever `storage/schema.py` changes (`make initial-migration`), and
databases of development are made anew. From the release on it never changes.
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run the file; it holds no parameters and ends every statement with an empty line."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection = op.get_bind()
    for statement in text.split(";\n\n"):
        if statement.strip():
            connection.exec_driver_sql(statement)
