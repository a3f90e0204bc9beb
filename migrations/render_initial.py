"""Write `versions/0001_initial.sql` from `storage/schema.py`: `make initial-migration`, until the first release."""

from pathlib import Path

from sqlalchemy import Table, create_engine
from sqlalchemy.schema import CreateIndex, CreateTable, ExecutableDDLElement, SetColumnComment, SetTableComment

from storage.schema import metadata
from storage.strings import WELL_KNOWN

TARGET = Path(__file__).parent / "versions" / "0001_initial.sql"


def render() -> str:
    """The whole schema as SQL, with the rows that it starts with."""
    statements = ["-- Written by `make initial-migration` from storage/schema.py."]
    for table in metadata.sorted_tables:
        statements += [_compile(element) for element in _elements(table)]
    statements.append("INSERT INTO log_head (id, position) VALUES (1, 0)")
    rows = ",\n".join(f"\t({number}, '{value}')" for value, number in WELL_KNOWN.items())
    statements.append(f"INSERT INTO strings (id, value) VALUES\n{rows}")
    header, *rest = statements
    return header + "\n\n" + "".join(f"{statement};\n\n" for statement in rest).rstrip("\n") + "\n\n"


def _elements(table: Table) -> list[ExecutableDDLElement]:
    elements: list[ExecutableDDLElement] = [CreateTable(table)]
    elements += [CreateIndex(index) for index in sorted(table.indexes, key=lambda index: str(index.name))]
    if table.comment:
        elements.append(SetTableComment(table))
    elements += [SetColumnComment(column) for column in table.columns if column.comment]
    return elements


def _compile(element: ExecutableDDLElement) -> str:
    # Not %-formatted afterwards: the driver gets no parameters, so a doubled percent sign would stay doubled.
    text = str(element.compile(create_engine("postgresql+psycopg://", paramstyle="named"))).strip()
    return "\n".join(line.rstrip() for line in text.splitlines())


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
