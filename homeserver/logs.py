"""Where log lines go: to standard error, as text or as one JSON object a line.

What is written while a request is served says which: its ID, which its answer has, too, and, where they are known, the
user or server that asks, and the room that it is about.
"""

import json
import logging
import time

import orjson

from federation.web import SERVING
from homeserver.config import LogFormat, Logging

# What every record has; anything else was given as `extra` and belongs into the line.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def set_up(settings: Logging, *, worker: int | None = None) -> None:
    """Send every line of this process there, and nowhere else; with the number of the worker that it is."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if settings.format is LogFormat.JSON else TextFormatter())
    handler.addFilter(_add_request)
    if worker is not None:
        handler.addFilter(_Numbered(worker))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it introduces its plugins
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # `storage.database` says when PostgreSQL is away


def _add_request(record: logging.LogRecord) -> bool:
    """Give a line that is written while a request is served fields that say which."""
    serving = SERVING.get()
    if serving is not None:
        fields = serving.fields()
        vars(record).update({name: value for name, value in fields.items() if name not in vars(record)})
    return True


class _Numbered(logging.Filter):
    """Gives each line the field `worker`."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO storage.log: what happened room_id=!a:b`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback."""
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        message = record.message.replace("\n", "\\n").replace("\r", "\\r")  # what others send makes no lines of its own
        return f"{_timestamp(record)} {record.levelname} {record.name}: {message}{fields}"


class JSONFormatter(logging.Formatter):
    """One object with time, level, logger, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback is a field of its own."""
        line: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half of a surrogate pair, or a number too large
            return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _plain(value: object) -> str:
    """The value in one word, also where it is what somebody sent."""
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
