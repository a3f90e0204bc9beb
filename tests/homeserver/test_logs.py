"""How a log line looks."""

import logging

import orjson
import pytest

from homeserver import logs


def record(**fields: object) -> logging.LogRecord:
    values = {
        "name": "storage.log",
        "levelno": 30,
        "levelname": "WARNING",
        "msg": "slow: %d",
        "args": (3,),
        "created": 0.5,
    }
    return logging.makeLogRecord(values | fields | {"msecs": 500.0})


def test_text_has_time_level_logger_message_and_fields() -> None:
    line = logs.TextFormatter().format(record(room_id="!a:b"))
    assert line == "1970-01-01T00:00:00.500Z WARNING storage.log: slow: 3 room_id=!a:b"


def test_json_is_one_object_a_line() -> None:
    line = logs.JSONFormatter().format(record(room_id="!a:b", msg="two\nlines", args=()))
    assert "\n" not in line
    assert orjson.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "logger": "storage.log",
        "message": "two\nlines",
        "room_id": "!a:b",
    }


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JSONFormatter()])
def test_a_traceback_is_kept(formatter: logging.Formatter) -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        line = formatter.format(record(exc_info=(KeyError, error, error.__traceback__)))
    assert "KeyError: 'gone'" in line
