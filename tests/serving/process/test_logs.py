"""The service's log lines: one JSON object each, without passwords."""

import json
import logging
from typing import Any

import pytest

from serving.process.logs import JsonLines


def _line(message: str, fields: dict[str, Any]) -> str:
    logger = logging.getLogger("serving")
    extra = {"facts": fields}
    return JsonLines().format(logger.makeRecord(logger.name, logging.INFO, __file__, 1, message, (), None, extra=extra))


def test_a_line_holds_its_facts() -> None:
    fields = {"request_id": "r-1", "items": 2, "release": None, "unusual": 'a "quote", ſ and a\nline'}
    event = json.loads(_line("POST /rerank: 200", fields))
    assert {name: event[name] for name in fields} == fields
    assert (event["level"], event["logger"], event["message"]) == ("info", "serving", "POST /rerank: 200")


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "redis://user:hunter2@host"},
        {"url": ["a", {"b": "https://hunter2hunter2hunter2hunter2@host"}]},
        {"error": "host=db PASſWORD=hunter2"},
        {"error": 'PWD="hun ter2"'},
        {"note": 'quoted "password": "hun ter2" within a text'},
        {"Passwd=hunter2": 1},
        {"path": "a?sig=hunter2"},
        {"header": "Authorization: Bearer hunter2hunter2hunter2"},
    ],
)
def test_no_fact_gives_a_password_away(fields: dict[str, Any]) -> None:
    line = _line("failed", fields)
    assert "ter2" not in line
    assert "***" in line
    json.loads(line)
